"""Turns located tensors into measuring jobs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from optrace.recorder.shards import Shard
from optrace.recorder.tensors import CODES, Found, Unmeasurable, torch_dtype
from optrace.trace.jobs import ITEMSIZE
from optrace.trace.measure import JOB, ROW, STAT, measure

Jobs = npt.NDArray[np.void]
Rows = npt.NDArray[np.void]


def fill_job(job: np.void, op: int, found: Found, row: int, row2: int = 0, b: int = 0) -> None:
    """Write one job: `op` on what was located, into rows[row] (and rows[row2]); nothing is measured as empty."""
    address, numel, kind = found
    assert not isinstance(kind, Unmeasurable)
    job["op"], job["a"], job["b"], job["numel"], job["row"], job["row2"] = op, address, b, numel, row, row2
    job["dtype"] = 0 if kind is None else CODES[torch_dtype(kind)]
    if isinstance(kind, Shard):
        job["index_base"], job["global_numel"] = kind.index_base, kind.global_numel
        job["layout"] = 0 if kind.layout is None else kind.layout.ctypes.data


def measure_now(found: Sequence[Found], threads: int) -> Rows:
    """Statistics, fingerprint and sample of each of `found`, [n] of ROW."""
    rows: Rows = np.zeros(len(found), ROW)
    jobs: Jobs = np.zeros(len(found), JOB)
    for number, one in enumerate(found):
        fill_job(jobs[number], STAT, one, number)
    measure(jobs, rows, threads)
    return rows


def size_of(found: Found) -> int:
    """Bytes that located values occupy."""
    _, numel, kind = found
    return numel * ITEMSIZE[CODES[torch_dtype(kind)]] if kind is not None else 0
