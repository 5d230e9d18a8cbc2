"""Whole tensors of a step: one safetensors file, written by rename and read back through mmap.

The file is what the `safetensors` package reads: 8 bytes with the length of the header, a JSON header, the elements.
dtypes that the format does not know are stored as their bytes with one more dimension (complex: real and imaginary
part), and their own name is in the header's `__metadata__` under `optrace.dtypes`.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from optrace.errors import TraceError
from optrace.trace import fingerprint
from optrace.trace.direct import BLOCK, LEAST, write_file

CODES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
"""torch's names of dtypes and safetensors' for them."""

_STORED = {"complex128": ("F64", 2), "complex64": ("F32", 2), "complex32": ("F16", 2)}
_STORED |= {name: ("U8", 1) for name in ("float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")}
"""dtypes that are stored under another code, with the size of the dimension that this adds."""

_NUMPY: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F8_E4M3": np.dtype("u1"),
    "F8_E5M2": np.dtype("u1"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_FLOAT8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")
_METADATA = "optrace.dtypes"
_LONGEST_HEADER = 100_000_000  # the limit of the safetensors package


def values_folder(rank: Path) -> Path:
    """Where a rank keeps its whole tensors."""
    return rank / "values"


def values_name(step: int, part: int = 0) -> str:
    """File name of a step's tensors; another optimizer's step of the same number is a further part."""
    return f"{step:08d}.{part}.safetensors" if part else f"{step:08d}.safetensors"


def write_values(
    rank: Path, step: int, values: Mapping[str, tuple[str, Sequence[int], Any]], room: int | None
) -> int | None:
    """Write the tensors of a step below `rank`; the file's bytes, or None when that is more than `room`.

    `values`: key to (dtype name, shape, C-contiguous buffer). TraceError for a buffer that does not fit its shape;
    OSError as the system gives it; the file appears whole or not at all.
    """
    packed = pack_values(values)
    if room is not None and packed.size > room:
        return None
    write_packed(rank, step, packed)
    return packed.size


@dataclass(frozen=True)
class Packed:
    """A values file before it is written: its header, the buffers behind it, and its size in bytes."""

    header: bytes
    buffers: list[memoryview]
    size: int


def pack_values(values: Mapping[str, tuple[str, Sequence[int], Any]]) -> Packed:
    """Lay out a values file over the given buffers; TraceError for one that does not fit its shape."""
    header, buffers = _pack(values)
    return Packed(header, buffers, len(header) + sum(len(buffer) for buffer in buffers))


def write_packed(rank: Path, step: int, packed: Packed) -> None:
    """Write a values file below `rank`; it appears whole or not at all. OSError as the system gives it."""
    folder = values_folder(rank)
    folder.mkdir(exist_ok=True)
    temporary = folder / f".{values_name(step)}.tmp"
    try:
        write_file(temporary, [packed.header, *packed.buffers], packed.size)
        part = 0
        while (target := folder / values_name(step, part)).exists():
            part += 1
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _pack(values: Mapping[str, tuple[str, Sequence[int], Any]]) -> tuple[bytes, list[memoryview]]:
    """Header and buffers, wide dtypes first so that every tensor starts at a multiple of its element's size.

    Of one dtype those that are whole blocks come first, and the header of a large file is padded to whole blocks: so
    most of its bytes can be written from where they lie.
    """
    entries = []
    dtypes = {}
    for key, (dtype, shape, buffer) in values.items():
        sizes = [int(size) for size in shape]
        try:
            data = memoryview(buffer).cast("B") if not isinstance(buffer, np.ndarray) else _bytes_of(buffer)
        except TypeError as error:
            raise TraceError(f"the values of {key!r} are no contiguous buffer: {error}") from None
        numel = math.prod(sizes)
        if dtype in CODES:
            code = CODES[dtype]
        elif dtype in _STORED:
            code, more = _STORED[dtype]
            sizes.append(more)
            dtypes[key] = dtype
        else:  # a dtype of another kind: its bytes
            width = len(data) // numel if numel else 0
            code = "U8"
            sizes.append(width)
            dtypes[key] = dtype
        if len(data) != math.prod(sizes) * _NUMPY[code].itemsize:
            raise TraceError(f"the values of {key!r} are {len(data)} bytes, not {dtype} of shape {tuple(shape)}")
        entries.append((key, code, sizes, data))
    entries.sort(key=lambda entry: (-_NUMPY[entry[1]].itemsize, len(entry[3]) % BLOCK != 0, entry[0]))
    header: dict[str, Any] = {"__metadata__": {"format": "optrace"}}
    if dtypes:
        header["__metadata__"][_METADATA] = json.dumps(dtypes, separators=(",", ":"))
    start = 0
    for key, code, sizes, data in entries:
        header[key] = {"dtype": code, "shape": sizes, "data_offsets": [start, start + len(data)]}
        start += len(data)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % (BLOCK if start >= LEAST else 8))
    return len(text).to_bytes(8, "little") + text, [entry[3] for entry in entries]


def _bytes_of(array: npt.NDArray[Any]) -> memoryview:
    if not array.flags.c_contiguous:
        raise TypeError("the array is strided")
    return array.reshape(-1).view(np.uint8).data


class ValuesFile:
    """The tensors of one safetensors file, mapped and checked; nothing in it is trusted."""

    def __init__(self, path: Path) -> None:
        """Map the file and check its header; TraceError says what is wrong with it."""
        self.path = path
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < 8:
                    raise self._damaged(f"{size} bytes are no safetensors file")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise TraceError(f"cannot read {path}: {error.strerror or error}") from None
        length = int.from_bytes(self._map[:8], "little")
        if length > min(size - 8, _LONGEST_HEADER):
            raise self._damaged(f"its header should be {length} bytes long")
        self._start = 8 + length
        try:
            header = json.loads(self._map[8 : self._start].decode("utf-8"))
            metadata = header.pop("__metadata__", {})
            self._dtypes = json.loads(metadata.get(_METADATA, "{}"))
            self._entries = {key: self._entry(entry, size - self._start) for key, entry in header.items()}
        except RecursionError:
            raise self._damaged("its header is nested too deeply") from None
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise self._damaged(f"its header cannot be read ({error})") from None
        if not isinstance(self._dtypes, dict):
            raise self._damaged("its list of dtypes cannot be read")

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def keys(self) -> list[str]:
        """The keys `<optimizer>/<quantity>/<param>` of the tensors."""
        return list(self._entries)

    def dtype(self, key: str) -> str:
        """The tensor's dtype in torch's words; KeyError for an unknown key."""
        own = self._dtypes.get(key)
        if isinstance(own, str):
            return own
        code = self._entries[key][0]
        return next(name for name, value in CODES.items() if value == code)

    def raw(self, key: str) -> npt.NDArray[Any]:
        """The elements as they are stored, read-only: bf16 and float8 as their bits; KeyError for an unknown key."""
        code, shape, start, count = self._entries[key]
        array = np.frombuffer(self._map, _NUMPY[code], count, self._start + start).reshape(shape)
        own = self._dtypes.get(key)
        if own in ("complex128", "complex64") and array.dtype == _NUMPY[_STORED[own][0]] and shape[-1:] == (2,):
            return array.view(own)[..., 0] if array.size else array[..., 0].astype(own)
        if own in _FLOAT8 and array.dtype == np.uint8 and shape[-1:] == (1,):
            return array[..., 0]
        return array

    def read(self, key: str) -> npt.NDArray[Any]:
        """The tensor as a read-only array: mapped as it is, bf16 and float8 widened exactly to float32."""
        array = self.raw(key)
        array = widen(array, self.dtype(key))
        array.flags.writeable = False
        return array

    def _entry(self, entry: Any, room: int) -> tuple[str, tuple[int, ...], int, int]:
        code, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if code not in _NUMPY:
            raise ValueError(f"dtype {code!r} is not known")
        numbers = [start, end, *shape]
        if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
            raise ValueError("a size is no natural number")
        if len(shape) > 32:
            raise ValueError(f"{len(shape)} dimensions are too many")
        count = math.prod(shape)
        if not start <= end <= room or count * _NUMPY[code].itemsize != end - start:
            raise ValueError("a tensor lies outside the file or has another size than its shape")
        return code, tuple(shape), start, count

    def _damaged(self, why: str) -> TraceError:
        return TraceError(f"{self.path} is damaged: {why}")


def widen(array: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """Elements stored as bits (bf16, float8) as float32 of the same value; other dtypes as they are."""
    if dtype == "bfloat16" or dtype in _FLOAT8:
        return fingerprint.widen(array.reshape(-1), dtype).view(np.float32).reshape(array.shape)
    return array
