"""The file of one golden case: CSV text that ten lines of any language can read, and the same as safetensors.

The file is UTF-8 with LF line ends. First come header lines `# key: value`; `hyper` is a JSON list of one object a
group with every option written out. Then one line of column names and one **tensor** a row,

    step,group,param,quantity,shape,values
    3,0,w,grad,3x4,0.1 -0.5 ...

with the values row-major, one space between them, in the shortest form that reads back to the same bits of the case's
dtype (`nan`, `inf`, `-inf` and `-0.0` in words). A 0-d tensor has an empty shape. Quantities: `param` at step 0 (before
step 1) and after each step; `grad`, an input (no row: the gradient was None); `state.<key>` after each step;
`hyper`, whose `param` is the option's name, where an option changed before that step; for schedules also the inputs
`metric`, `epoch` and `edit`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optrace.errors import GoldenError

FORMAT = 1
COLUMNS = "step,group,param,quantity,shape,values"
Array = NDArray[Any]
REQUIRED = ("format", "rule", "case", "dtype", "hyper", "tolerance_step", "tolerance_free")
SAFETENSORS_NAMES = {"float64": "F64", "float32": "F32"}


@dataclass(frozen=True)
class Row:
    """One tensor of a case; `values` has the case's dtype and the tensor's shape."""

    step: int
    group: int
    param: str
    quantity: str
    values: Array

    @property
    def key(self) -> str:
        """The tensor's key in the safetensors file: `3/grad/w`, and `3/hyper/0/lr` for what belongs to a group."""
        if self.quantity in ("hyper", "edit", "metric", "epoch"):
            return f"{self.step}/{self.quantity}/{self.group}/{self.param}".rstrip("/")
        return f"{self.step}/{self.quantity}/{self.param}"


@dataclass(frozen=True)
class Golden:
    """One case of one rule: header and rows, in the order of the file."""

    rule: str
    case: str
    dtype: str
    hyper: tuple[Mapping[str, Any], ...]
    """One mapping a group: every option of the rule."""
    tolerance_step: float
    """In eps of the dtype: what a correct implementation may be off after one step from exact inputs."""
    tolerance_free: float
    """In eps of the dtype: the same for its own numbers carried from step to step."""
    rows: tuple[Row, ...]
    notes: Mapping[str, str] = field(default_factory=dict)
    """All other header lines (provenance and what the case is for)."""

    @property
    def name(self) -> str:
        """`rule/case` and, for other dtypes than float64, `-dtype`."""
        return f"{self.rule}/{self.case}" + ("" if self.dtype == "float64" else f"-{self.dtype}")

    @property
    def steps(self) -> int:
        """Number of the last step."""
        return max((row.step for row in self.rows), default=0)

    def at(self, step: int, quantity: str) -> dict[str, Array]:
        """Tensors of one quantity at one step, by param."""
        return {row.param: row.values for row in self.rows if row.step == step and row.quantity == quantity}


def write_number(value: Any) -> str:
    """Shortest text that reads back to the same bits of the value's own dtype."""
    if np.isnan(value):
        return "nan"
    if np.isinf(value):
        return "inf" if value > 0 else "-inf"
    scientific = np.format_float_scientific(value, unique=True, trim="0", exp_digits=1)
    if value != 0 and not 1e-4 <= abs(value) < 1e16:
        return str(scientific)
    plain = np.format_float_positional(value, unique=True, trim="0")
    return str(min(plain, scientific, key=len))


def write_csv(golden: Golden) -> str:
    """The whole file as text; the inverse of `parse_csv`."""
    header = {
        "format": str(FORMAT),
        "rule": golden.rule,
        "case": golden.case,
        "dtype": golden.dtype,
        "hyper": json.dumps([dict(group) for group in golden.hyper]),
        "shapes": json.dumps({row.param: list(row.values.shape) for row in golden.rows if row.quantity == "param"}),
        "tolerance_step": write_number(np.float64(golden.tolerance_step)),
        "tolerance_free": write_number(np.float64(golden.tolerance_free)),
    } | dict(golden.notes)
    lines = [f"# {key}: {value}" for key, value in header.items()] + [COLUMNS]
    for row in golden.rows:
        shape = "x".join(map(str, row.values.shape))
        values = " ".join(write_number(v) for v in row.values.reshape(-1))
        lines.append(f"{row.step},{row.group},{row.param},{row.quantity},{shape},{values}")
    return "\n".join(lines) + "\n"


def parse_csv(text: str, name: str) -> Golden:
    """Read one case; GoldenError (with `name` and the line's number) for anything that is not one."""
    header: dict[str, str] = {}
    rows: list[Row] = []
    dtype: np.dtype[Any] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if dtype is None and line.startswith("#"):
            key, colon, value = line[1:].strip().partition(":")
            if not colon:
                raise GoldenError(f"{name}:{number}: the header line {line!r} is not `# key: value`")
            header[key.strip()] = value.strip()
        elif dtype is None:
            if line != COLUMNS:
                raise GoldenError(f"{name}:{number}: expected the column names `{COLUMNS}`, found {line[:80]!r}")
            dtype = _check_header(header, name)
        elif line:
            rows.append(_parse_row(line, dtype, f"{name}:{number}"))
    if dtype is None:
        raise GoldenError(f"{name} has no line of column names `{COLUMNS}`; it is no golden")
    try:
        hyper = tuple(json.loads(header["hyper"]))
        tolerances = float(header["tolerance_step"]), float(header["tolerance_free"])
    except ValueError as error:
        raise GoldenError(f"{name}: a header line does not parse: {error}") from None
    if not all(isinstance(group, dict) for group in hyper):
        raise GoldenError(f"{name}: `hyper` must be a JSON list of one object a group")
    notes = {k: v for k, v in header.items() if k not in REQUIRED and k != "shapes"}
    return Golden(header["rule"], header["case"], header["dtype"], hyper, *tolerances, tuple(rows), notes)


def _check_header(header: Mapping[str, str], name: str) -> np.dtype[Any]:
    missing = [key for key in REQUIRED if key not in header]
    if missing:
        raise GoldenError(f"{name} lacks the header lines {', '.join(missing)}; it is no golden of format {FORMAT}")
    if not header["format"].isdigit() or int(header["format"]) > FORMAT:
        raise GoldenError(
            f"{name} has format {header['format']!r}; this optrace reads up to {FORMAT}, a newer one may more"
        )
    if header["dtype"] not in SAFETENSORS_NAMES:
        raise GoldenError(f"{name} has dtype {header['dtype']!r}; goldens are float64 or float32")
    return np.dtype(header["dtype"])


def _parse_row(line: str, dtype: np.dtype[Any], where: str) -> Row:
    parts = line.split(",")
    if len(parts) != 6:
        raise GoldenError(f"{where}: {len(parts)} columns instead of 6 ({COLUMNS})")
    step, group, param, quantity, shape_text, values_text = parts
    try:
        shape = tuple(int(n) for n in shape_text.split("x")) if shape_text else ()
        values = np.array([dtype.type(v) for v in values_text.split()], dtype=dtype).reshape(shape)
        return Row(int(step), int(group), param, quantity, values)
    except ValueError as error:
        raise GoldenError(f"{where}: {error}") from None


def write_safetensors(golden: Golden) -> bytes:
    """The case in the safetensors format: keys as `Row.key`, the CSV's header as metadata."""
    header_text = write_csv(Golden(**{**golden.__dict__, "rows": ()})).splitlines()[:-1]
    metadata = dict(line[2:].split(": ", 1) for line in header_text)
    metadata["shapes"] = json.dumps({r.param: list(r.values.shape) for r in golden.rows if r.quantity == "param"})
    metadata["groups"] = json.dumps({row.key: row.group for row in golden.rows})
    entries: dict[str, Any] = {"__metadata__": metadata}
    blobs: list[bytes] = []
    offset = 0
    for row in golden.rows:
        blob = np.ascontiguousarray(row.values).astype(row.values.dtype.newbyteorder("<")).tobytes()
        entries[row.key] = {
            "dtype": SAFETENSORS_NAMES[golden.dtype],
            "shape": list(row.values.shape),
            "data_offsets": [offset, offset + len(blob)],
        }
        blobs.append(blob)
        offset += len(blob)
    head = json.dumps(entries, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + b"".join(blobs)


def parse_safetensors(data: bytes, name: str) -> Golden:
    """Read what `write_safetensors` wrote; GoldenError for anything else."""
    try:
        (length,) = struct.unpack_from("<Q", data)
        entries: dict[str, Any] = json.loads(data[8 : 8 + length])
        header = dict(entries.pop("__metadata__"))
        groups = json.loads(header.pop("groups", "{}"))
        dtype = _check_header(header, name)
        rows = [_row_of(key, e, data[8 + length :], dtype, int(groups.get(key, 0))) for key, e in entries.items()]
        hyper = tuple(json.loads(header["hyper"]))
        tolerances = float(header["tolerance_step"]), float(header["tolerance_free"])
    except GoldenError:
        raise
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise GoldenError(f"{name} is no golden in safetensors: {type(error).__name__}: {error}") from None
    notes = {k: v for k, v in header.items() if k not in REQUIRED and k != "shapes"}
    return Golden(header["rule"], header["case"], header["dtype"], hyper, *tolerances, tuple(rows), notes)


def _row_of(key: str, entry: Mapping[str, Any], body: bytes, dtype: np.dtype[Any], group: int) -> Row:
    step, quantity, *rest = key.split("/")
    if quantity in ("hyper", "edit", "metric", "epoch"):
        rest = rest[1:]
    start, end = entry["data_offsets"]
    values = np.frombuffer(body[start:end], dtype=dtype.newbyteorder("<")).astype(dtype).reshape(entry["shape"])
    return Row(int(step), group, "/".join(rest), quantity, values)


def read_golden(path: Path) -> Golden:
    """Read a `.csv` or `.safetensors` case; GoldenError if it is missing or is none."""
    try:
        if path.suffix == ".safetensors":
            return parse_safetensors(path.read_bytes(), path.name)
        return parse_csv(path.read_text(encoding="utf-8"), path.name)
    except OSError as error:
        raise GoldenError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise GoldenError(f"{path} is no text; a golden is a CSV or a .safetensors file") from None


def rows_of(step: int, group: int, quantity: str, tensors: Mapping[str, Array]) -> Iterable[Row]:
    """One row a tensor."""
    for param, values in tensors.items():
        yield Row(step, group, param, quantity, values)
