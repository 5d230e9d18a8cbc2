"""Arrow arrays from NumPy ones and back, without `pa.array` and `to_numpy`: those import pandas, for half a second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from optrace.trace.schema import SAMPLE_SLOTS, arrow_schema

_DTYPES = {"int64": "i8", "int32": "i4", "double": "f8"}


def record_batch(table: str, rows: int, columns: dict[str, Any], nulls: frozenset[str] = frozenset()) -> Any:
    """A `pyarrow.RecordBatch` of a table's `rows` rows: columns as given, null if in `nulls`, or else zero."""
    import pyarrow as pa

    schema = arrow_schema(table)
    arrays = []
    for field in schema:
        values = columns.get(field.name)
        kind = str(field.type)
        if field.name in nulls:
            arrays.append(pa.nulls(rows, field.type))
        elif pa.types.is_fixed_size_list(field.type):
            arrays.append(pa.FixedSizeListArray.from_arrays(numbers(np.zeros(rows * SAMPLE_SLOTS)), type=field.type))
        elif kind == "string":
            arrays.append(strings(values if values is not None else [""] * rows))
        elif kind == "bool":
            arrays.append(booleans(np.zeros(rows, np.bool_) if values is None else np.asarray(values, np.bool_)))
        else:
            dtype = np.dtype(_DTYPES[kind])
            arrays.append(numbers(np.zeros(rows, dtype) if values is None else np.asarray(values, dtype)))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def no_rows(schema: Any) -> Any:
    """A `pyarrow.Table` of that schema without rows."""
    import pyarrow as pa

    return pa.Table.from_batches([], schema)


def numbers(values: npt.NDArray[Any]) -> Any:
    """A `pyarrow.Array` over the memory of a contiguous array of int64, int32 or float64."""
    import pyarrow as pa

    kind = {"int64": pa.int64(), "int32": pa.int32(), "float64": pa.float64()}[values.dtype.name]
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def booleans(values: npt.NDArray[np.bool_]) -> Any:
    """A `pyarrow.BooleanArray` of the same values."""
    import pyarrow as pa

    return pa.Array.from_buffers(pa.bool_(), len(values), [None, pa.py_buffer(np.packbits(values, bitorder="little"))])


def strings(values: Sequence[str]) -> Any:
    """A `pyarrow.StringArray` of the same words; UnicodeEncodeError for lone surrogates."""
    import pyarrow as pa

    encoded = [value.encode() for value in values]
    offsets = np.zeros(len(encoded) + 1, np.int32)
    np.cumsum([len(word) for word in encoded], out=offsets[1:])
    return pa.StringArray.from_buffers(len(encoded), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded)))


def elements(column: Any) -> npt.NDArray[Any]:
    """The elements of an Arrow column of numbers (int64, int32, float64), sharing its memory if in one piece.

    A null's place holds whatever its memory does.
    """
    chunks = getattr(column, "chunks", None)
    parts = [_memory(chunk) for chunk in ([column] if chunks is None else chunks)]
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty(0, _DTYPES[str(column.type)])


def _memory(array: Any) -> npt.NDArray[Any]:
    dtype = np.dtype(_DTYPES[str(array.type)])
    buffer = array.buffers()[1]
    if buffer is None or len(array) == 0:
        return np.empty(0, dtype)
    return np.frombuffer(buffer, dtype, len(array), array.offset * dtype.itemsize)
