"""Columns of a `pyarrow.Table` as NumPy arrays without `to_numpy`, which imports pandas and takes half a second."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def numbers(column: Any) -> NDArray[Any]:
    """A column of numbers or booleans, sharing memory where it is in one piece; a null's place holds anything."""
    parts = [_numbers(chunk) for chunk in getattr(column, "chunks", [column])]
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty(0, _dtype(column.type))


def integers(column: Any) -> NDArray[np.int64]:
    """A column of integers as int64."""
    return numbers(column).astype(np.int64, copy=False)


def known(column: Any) -> NDArray[np.bool_]:
    """Where a column is not null."""
    return numbers(column.is_valid())


def coded(column: Any) -> tuple[NDArray[np.int64], list[str]]:
    """A column of strings as numbers into a list of its words."""
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    chunks = column.unify_dictionaries().chunks
    if not chunks:
        return np.empty(0, np.int64), []
    codes = [integers(chunk.indices) for chunk in chunks]
    return codes[0] if len(codes) == 1 else np.concatenate(codes), chunks[0].dictionary.to_pylist()


def texts(column: Any) -> list[str]:
    """A column of strings as a list."""
    codes, words = coded(column)
    return [words[code] for code in codes]


def lists(column: Any) -> NDArray[np.float64]:
    """A column of lists of one length as [rows, length]."""
    width = column.type.list_size
    parts = [numbers(chunk.flatten()).reshape(-1, width) for chunk in column.chunks]
    return np.concatenate(parts) if parts else np.empty((0, width))


def _dtype(kind: Any) -> np.dtype[Any]:
    name = str(kind)
    return np.dtype({"double": "float64", "float": "float32", "halffloat": "float16"}.get(name, name))


def _numbers(array: Any) -> NDArray[Any]:
    dtype = _dtype(array.type)
    buffer = array.buffers()[1]
    if buffer is None or not len(array):
        return np.empty(0, dtype) if not len(array) else np.zeros(len(array), dtype)
    if dtype == np.bool_:
        bits = np.unpackbits(np.frombuffer(buffer, np.uint8), bitorder="little")
        return bits[array.offset : array.offset + len(array)].astype(np.bool_)
    return np.frombuffer(buffer, dtype, len(array), array.offset * dtype.itemsize)
