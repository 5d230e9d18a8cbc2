"""The file of one golden case: CSV text that ten lines of any language can read, and the same as safetensors.

The file is UTF-8 with LF line ends. First come header lines `# key: value`; `hyper` is a JSON list of one object a
group with every option written out. Then one line of column names and one **tensor** a row,

    step,group,param,quantity,shape,values
    3,0,w,grad,3x4,0.1 -0.5 ...

with the values row-major, one space between them, in the shortest form that, read as a double and rounded to the
case's dtype, gives the same bits (`nan`, `inf`, `-inf` and `-0.0` in words). A 0-d tensor has an empty shape.
Quantities of an optimizer: `param` at step 0 (before step 1) and after each step; `grad`, an input (no row: the
gradient was None); `state.<key>` after each step; `hyper`, an input whose `param` is the option's name, where an option
was changed before that step. Of a schedule: the inputs `edit`, `metric` and `epoch` of a step, and what it made of
them, `hyper`, after construction (step 0) and after each step. These four are float64 in every case.
"""

from __future__ import annotations

import functools
import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
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
OF_GROUPS = ("hyper", "edit", "metric", "epoch")
"""Quantities that belong to a group, not to a parameter."""


@dataclass(frozen=True)
class Row:
    """One tensor of a case; `values` has the tensor's shape and the case's dtype (float64 where it is of a group)."""

    step: int
    group: int
    param: str
    quantity: str
    values: Array

    @property
    def key(self) -> str:
        """The tensor's key in the safetensors file: `3/grad/w`, and `3/hyper/0/lr` for what belongs to a group."""
        if self.quantity in OF_GROUPS:
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

    def at(self, step: int, quantity: str) -> Mapping[str, Array]:
        """Tensors of one quantity at one step, by param."""
        return {row.param: row.values for row in self.rows_at(step, quantity)}

    def rows_at(self, step: int, quantity: str) -> Sequence[Row]:
        """Rows of one quantity at one step, in the order of the file."""
        return self._index.get((step, quantity), ())

    @functools.cached_property
    def _index(self) -> Mapping[tuple[int, str], list[Row]]:
        index: dict[tuple[int, str], list[Row]] = {}
        for row in self.rows:
            index.setdefault((row.step, row.quantity), []).append(row)
        return index


def write_number(value: Any) -> str:
    """Shortest text that, read as a double and rounded to the value's own dtype, gives the same bits."""
    if np.isnan(value):
        return "nan"
    if np.isinf(value):
        return "inf" if value > 0 else "-inf"
    scientific = np.format_float_scientific(value, unique=True, trim="0", exp_digits=1)
    text = str(scientific)
    if value == 0 or 1e-4 <= abs(value) < 1e16:
        text = str(min(np.format_float_positional(value, unique=True, trim="0"), scientific, key=len))
    return text if type(value)(float(text)) == value else repr(float(value))


def write_csv(golden: Golden) -> str:
    """The whole file as text; the inverse of `parse_csv`. GoldenError for a name or note that it cannot hold."""
    lines = [f"# {key}: {_one_line(value)}" for key, value in _header(golden).items()] + [COLUMNS]
    for row in golden.rows:
        names = row.param + row.quantity
        if any(mark in names for mark in ',\n\r"') or names != names.strip():
            raise GoldenError(f"a golden cannot hold the name {row.param!r} ({row.quantity}): no commas, quotes, lines")
        shape = "x".join(map(str, row.values.shape))
        values = " ".join(write_number(v) for v in row.values.reshape(-1))
        lines.append(f"{row.step},{row.group},{row.param},{row.quantity},{shape},{values}")
    return "\n".join(lines) + "\n"


def _header(golden: Golden) -> dict[str, str]:
    shapes = {row.param: list(row.values.shape) for row in golden.rows if row.quantity == "param"}
    return {
        "format": str(FORMAT),
        "rule": golden.rule,
        "case": golden.case,
        "dtype": golden.dtype,
        "hyper": json.dumps([dict(group) for group in golden.hyper]),
        "shapes": json.dumps(shapes),
        "tolerance_step": write_number(np.float64(golden.tolerance_step)),
        "tolerance_free": write_number(np.float64(golden.tolerance_free)),
    } | dict(golden.notes)


def _one_line(value: str) -> str:
    if len(value.splitlines()) > 1 or value != value.strip():
        raise GoldenError(f"a header line of a golden is one line without spaces around it, not {value[:80]!r}")
    return value


def parse_csv(text: str, name: str) -> Golden:
    """Read one case; GoldenError (with `name` and the line's number) for anything that is not one."""
    header: dict[str, str] = {}
    rows: list[Row] = []
    dtype: np.dtype[Any] | None = None
    for number, line in enumerate(text.split("\n"), 1):
        if not line:
            continue
        if dtype is None and line.startswith("#"):
            key, colon, value = line[1:].strip().partition(":")
            if not colon:
                raise GoldenError(f"{name}:{number}: the header line {line[:80]!r} is not `# key: value`")
            header[key.strip()] = value.strip()
        elif dtype is None:
            if line != COLUMNS:
                raise GoldenError(f"{name}:{number}: expected the column names `{COLUMNS}`, found {line[:80]!r}")
            dtype = _check_header(header, name)
        else:
            rows.append(_parse_row(line, dtype, f"{name}:{number}"))
    if dtype is None:
        raise GoldenError(f"{name} has no line of column names `{COLUMNS}`; it is no golden")
    return _golden(header, rows, name)


def _golden(header: Mapping[str, str], rows: Sequence[Row], name: str) -> Golden:
    try:
        hyper = json.loads(header["hyper"])
        tolerances = float(header["tolerance_step"]), float(header["tolerance_free"])
    except (ValueError, TypeError, RecursionError) as error:
        raise GoldenError(f"{name}: a header line does not parse: {error}") from None
    if not isinstance(hyper, list) or not all(isinstance(group, dict) for group in hyper):
        raise GoldenError(f"{name}: `hyper` must be a JSON list of one object a group")
    last = max((row.step for row in rows), default=0)
    if last > len(rows):
        raise GoldenError(f"{name} goes to step {last} with only {len(rows)} rows; steps are missing")
    strange = next((row for row in rows if row.group >= len(hyper)), None)
    if strange is not None:
        raise GoldenError(f"{name}: {strange.key} is in group {strange.group}, but `hyper` has {len(hyper)} groups")
    notes = {k: v for k, v in header.items() if k not in REQUIRED and k != "shapes"}
    return Golden(header["rule"], header["case"], header["dtype"], tuple(hyper), *tolerances, tuple(rows), notes)


def _check_header(header: Mapping[str, str], name: str) -> np.dtype[Any]:
    missing = [key for key in REQUIRED if key not in header]
    if missing:
        raise GoldenError(f"{name} lacks the header lines {', '.join(missing)}; it is no golden of format {FORMAT}")
    if not header["format"].isdecimal() or len(header["format"]) > 9 or int(header["format"]) > FORMAT:
        raise GoldenError(
            f"{name} has format {header['format'][:80]!r}; this optrace reads up to {FORMAT}, a newer one may more"
        )
    if header["dtype"] not in SAFETENSORS_NAMES:
        raise GoldenError(f"{name} has dtype {header['dtype'][:80]!r}; goldens are float64 or float32")
    return np.dtype(header["dtype"])


def _parse_row(line: str, dtype: np.dtype[Any], where: str) -> Row:
    parts = line.split(",")
    if len(parts) != 6:
        raise GoldenError(f"{where}: {len(parts)} columns instead of 6 ({COLUMNS})")
    step, group, param, quantity, shape_text, values_text = parts
    try:
        shape = tuple(int(n) for n in shape_text.split("x")) if shape_text else ()
        kind = np.dtype(np.float64) if quantity in OF_GROUPS else dtype
        with np.errstate(over="ignore"):
            values = np.array([float(v) for v in values_text.split()]).astype(kind)
        return Row(_natural(step), _natural(group), param, quantity, _shaped(values, shape))
    except ValueError as error:
        raise GoldenError(f"{where}: {error}") from None


def _natural(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError(f"{number} is negative")
    return number


def _shaped(values: Array, shape: Sequence[int]) -> Array:
    if any(not isinstance(n, int) or n < 0 for n in shape) or math.prod(shape) != values.size or len(shape) > 32:
        raise ValueError(f"{values.size} values for the shape {tuple(shape)}")
    return values.reshape(tuple(shape))


def write_safetensors(golden: Golden) -> bytes:
    """The case in the safetensors format: keys as `Row.key`, the CSV's header and each param's group as metadata."""
    metadata = _header(golden)
    metadata["groups"] = json.dumps({row.param: row.group for row in golden.rows if row.quantity not in OF_GROUPS})
    entries: dict[str, Any] = {"__metadata__": metadata}
    blobs: list[bytes] = []
    offset = 0
    for row in sorted(golden.rows, key=lambda row: row.quantity not in OF_GROUPS):  # float64 first: aligned
        blob = np.ascontiguousarray(row.values).astype(row.values.dtype.newbyteorder("<")).tobytes()
        if row.key in entries:
            raise GoldenError(f"two rows of a golden would be called {row.key!r} as safetensors")
        entries[row.key] = {
            "dtype": SAFETENSORS_NAMES[row.values.dtype.name],
            "shape": list(row.values.shape),
            "data_offsets": [offset, offset + len(blob)],
        }
        blobs.append(blob)
        offset += len(blob)
    head = json.dumps(entries, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + b"".join(blobs)


def parse_safetensors(data: bytes, name: str) -> Golden:
    """Read what `write_safetensors` wrote, rows by step; GoldenError for anything else."""
    try:
        (length,) = struct.unpack_from("<Q", data)
        entries: dict[str, Any] = json.loads(data[8 : 8 + length])
        header = {str(k): str(v) for k, v in entries.pop("__metadata__").items()}
        groups = json.loads(header.pop("groups", "{}"))
        dtype = _check_header(header, name)
        rows = [_row_of(key, entry, data[8 + length :], dtype, groups) for key, entry in entries.items()]
        rows.sort(key=lambda row: row.step)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise GoldenError(f"{name} is no golden in safetensors: {type(error).__name__}: {error}") from None
    return _golden(header, rows, name)


def _row_of(key: str, entry: Mapping[str, Any], body: bytes, dtype: np.dtype[Any], groups: Mapping[str, Any]) -> Row:
    step, quantity, *rest = key.split("/")
    if quantity in OF_GROUPS:
        group, param, dtype = _natural(rest[0]), "/".join(rest[1:]), np.dtype(np.float64)
    else:
        param = "/".join(rest)
        group = _natural(groups[param])
    if entry["dtype"] != SAFETENSORS_NAMES[dtype.name]:
        raise ValueError(f"{key} is {entry['dtype']}, not {SAFETENSORS_NAMES[dtype.name]}")
    start, end = (_natural(offset) for offset in entry["data_offsets"])
    values = np.frombuffer(body[start:end], dtype=dtype.newbyteorder("<")).astype(dtype)
    return Row(_natural(step), group, param, quantity, _shaped(values, list(entry["shape"])))


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
