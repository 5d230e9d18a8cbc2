"""The table `steps` of a run of many ranks, from the tables of its ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from optrace.trace.arrays import elements, numbers
from optrace.trace.schema import arrow_schema

_SAME = ("grad_norm", "batch", "rng")
"""Known of the run where all ranks that know it say the same."""


def merge_steps(parts: Sequence[Any]) -> Any:
    """One row a step and optimizer: the mean of the losses, the most backwards and skipped steps, the longest time.

    The loss is null where a rank that knows it at other steps has gone. `grad_norm`, `batch` and `rng` are null where
    two ranks know different ones: they are then facts of a rank.
    """
    import pyarrow as pa

    parts = [part for part in parts if part.num_rows]
    schema = arrow_schema("steps")
    if not parts:
        return pa.Table.from_batches([], schema)
    rows = pa.concat_tables(parts)
    step, optimizer = elements(rows.column("step")), elements(rows.column("optimizer")).astype(np.int64)
    width = int(optimizer.max()) + 1
    keys, place = np.unique(step * width + optimizer, return_inverse=True)
    count = len(keys)
    columns: dict[str, Any] = {
        "step": numbers(keys // width),
        "optimizer": numbers((keys % width).astype(np.int32)),
    }
    for name in ("n_backward", "n_skipped"):
        most = np.zeros(count, np.int64)
        np.maximum.at(most, place, elements(rows.column(name)))
        columns[name] = numbers(most)
    there = _known(rows.column("loss"))
    losses = np.bincount(place[there], elements(rows.column("loss"))[there], count)
    ranks = np.bincount(place[there], minlength=count)
    all_ranks = np.zeros(width, np.int64)
    np.maximum.at(all_ranks, keys % width, ranks)
    with np.errstate(all="ignore"):
        columns["loss"] = _nullable(losses / ranks, (ranks > 0) & (ranks == all_ranks[keys % width]))
    there = _known(rows.column("seconds"))
    longest = np.full(count, -np.inf)
    np.maximum.at(longest, place[there], elements(rows.column("seconds"))[there])
    columns["seconds"] = _nullable(longest, np.isfinite(longest))
    for name in _SAME:
        rows_known = np.flatnonzero(_known(rows.column(name)))
        values = elements(rows.column(name))
        bits = values.view(np.int64)
        first = np.zeros(count, values.dtype)
        known = np.zeros(count, np.bool_)
        first[place[rows_known[::-1]]] = values[rows_known[::-1]]
        known[place[rows_known]] = True
        other = rows_known[bits[rows_known] != first.view(np.int64)[place[rows_known]]]
        known[place[other]] = False
        columns[name] = _nullable(first, known)
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def _known(column: Any) -> npt.NDArray[np.bool_]:
    """Where a column is not null."""
    valid = column.is_valid()
    parts = [np.empty(0, np.bool_)]
    for chunk in valid.chunks:
        bits = np.unpackbits(np.frombuffer(chunk.buffers()[1], np.uint8), bitorder="little")
        parts.append(bits[chunk.offset : chunk.offset + len(chunk)].astype(np.bool_))
    return np.concatenate(parts)


def _nullable(values: npt.NDArray[Any], known: npt.NDArray[np.bool_]) -> Any:
    """An Arrow array of int64 or float64 that is null where a value is not known."""
    import pyarrow as pa

    kind = pa.int64() if values.dtype == np.int64 else pa.float64()
    bits = pa.py_buffer(np.packbits(known, bitorder="little"))
    return pa.Array.from_buffers(kind, len(values), [bits, pa.py_buffer(np.ascontiguousarray(values))])
