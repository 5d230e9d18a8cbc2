"""Turns measuring jobs into the tables that a device works from, and what it found into rows."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from optrace.recorder.jobs import Jobs, Rows
from optrace.trace.fingerprint import Layout, sample_indices
from optrace.trace.jobs import COPY, ROW, SAMPLE_SIZE, STAT, UPDATE

Longs = npt.NDArray[np.int64]

DIMS = 6
"""A tensor that does not follow its logical order is measured where it lies if it has at most so many dimensions."""

OP, DTYPE, NUMEL, FIRST_UNIT, N_UNITS, BASE, NDIM, SIZES = range(8)
STRIDES = SIZES + DIMS
SAMPLE = STRIDES + DIMS
FIELDS = SAMPLE + SAMPLE_SIZE
"""Columns of the table `jobs`: sizes and strides from the fastest dimension on; positions of the sample (or -1)."""

TOTAL, ABSOLUTE, SQUARES, LOW, HIGH, EXPONENT, N_NAN, N_INF, N_ZERO, FINGERPRINT = range(10)
PARTS = 10
"""64-bit words that each unit leaves: five floats, then five integers."""

RESULT = 32
RESULT_SAMPLE = RESULT - SAMPLE_SIZE
"""A measured tensor is so many words: those of a unit, and from RESULT_SAMPLE on its sample as float64."""

BIG, SMALL, SHIFT = 2.0**480, 2.0**-450, 600
"""Of units whose greatest magnitude is beyond BIG or below SMALL, values times 2**-SHIFT or 2**SHIFT are summed: their
squares would leave the range of float64."""

LEAST_UNIT = 8192
MOST_UNITS = 65536


@dataclass
class DeviceTable:
    """What to measure, apart from the addresses, which may change from step to step.

    An UPDATE becomes two tensors to measure, the update and the value after it; everything else becomes one. HASH is
    STAT here: what changed between two steps is known only when the results have arrived, and then its statistics are
    wanted.
    """

    jobs: Longs
    """[n, FIELDS]."""
    units: Longs
    """[u, 2]: job and position of the first element of each unit, in the order of the jobs."""
    unit: int
    """Elements in a unit, a power of two."""
    sources: npt.NDArray[np.intp]
    """[n]: which of the given jobs each row of `jobs` came from."""
    rows: Longs
    """[n]: the row that each is written to."""

    @classmethod
    def of(cls, jobs: Jobs) -> DeviceTable:
        """The tables for `jobs` (dtype JOB), whose addresses are on the device (layouts are on the host)."""
        ops: list[int] = []
        sources: list[int] = []
        rows: list[int] = []
        for number, job in enumerate(jobs):
            if job["op"] == UPDATE:
                ops += [UPDATE, STAT]
                sources += [number, number]
                rows += [int(job["row"]), int(job["row2"])]
            else:
                ops.append(COPY if job["op"] == COPY else STAT)
                sources.append(number)
                rows.append(int(job["row"]))
        numels = [int(jobs["numel"][number]) for number in sources]
        unit = LEAST_UNIT
        while sum(-(-numel // unit) for numel in numels) > MOST_UNITS:
            unit *= 2
        table = np.zeros((len(ops), FIELDS), np.int64)
        starts: list[npt.NDArray[np.int64]] = [np.zeros((0, 2), np.int64)]
        known: dict[int, tuple[Layout, Longs]] = {}
        first = 0
        for place, (op, number, numel) in enumerate(zip(ops, sources, numels, strict=True)):
            if number not in known:
                known = {number: _layout(jobs[number])}
            layout, positions = known[number]
            count = -(-numel // unit)
            entry = table[place]
            entry[[OP, DTYPE, NUMEL, FIRST_UNIT, N_UNITS]] = op, int(jobs["dtype"][number]), numel, first, count
            entry[BASE] = layout.base
            if layout.strides != [1]:
                entry[NDIM] = len(layout.sizes)
                entry[SIZES : SIZES + len(layout.sizes)] = layout.sizes[::-1]
                entry[STRIDES : STRIDES + len(layout.sizes)] = layout.strides[::-1]
            entry[SAMPLE:] = positions
            own = np.empty((count, 2), np.int64)
            own[:, 0], own[:, 1] = place, np.arange(count) * unit
            starts.append(own)
            first += count
        return cls(table, np.concatenate(starts), unit, np.array(sources, np.intp), np.array(rows, np.int64))

    def addresses(self, jobs: Jobs) -> Longs:
        """[n, 2]: `a` and `b` of each row of `jobs`, as the given jobs have them now."""
        found = np.empty((len(self.sources), 2), np.uint64)
        found[:, 0], found[:, 1] = jobs["a"][self.sources], jobs["b"][self.sources]
        return found.view(np.int64)


def is_measurable(sizes: tuple[int, ...]) -> bool:
    """Whether a tensor of these dimensions, in the order of memory, can be measured where it lies."""
    return sum(size != 1 for size in sizes) <= DIMS


def _layout(job: np.void) -> tuple[Layout, Longs]:
    """Where a job's elements lie in the whole tensor, and the positions in memory of its sample."""
    base, numel, address = int(job["index_base"]), int(job["numel"]), int(job["layout"])
    layout = Layout(base, [numel], [1])
    if address:
        ndim = ctypes.c_int64.from_address(address).value
        fields = list((ctypes.c_int64 * (1 + 2 * ndim)).from_address(address))
        layout = Layout(base, fields[1 : 1 + ndim], fields[1 + ndim :])
    positions = np.full(SAMPLE_SIZE, -1, np.int64)
    for slot, index in enumerate(sample_indices(int(job["global_numel"]) or numel).tolist()):
        position = layout.position(index)
        if position is not None and position < numel:
            positions[slot] = position
    return layout, positions


def rows_of(table: DeviceTable, results: Longs, rows: Rows) -> None:
    """Write what a device found (int64 [n, RESULT]) into the rows (dtype ROW) that the jobs named."""
    floats = results.view(np.float64)
    found: Rows = np.zeros(len(results), ROW)
    for name, column in (("n_nan", N_NAN), ("n_inf", N_INF), ("n_zero", N_ZERO), ("fingerprint", FINGERPRINT)):
        found[name] = results[:, column]
    count = table.jobs[:, NUMEL] - results[:, N_NAN] - results[:, N_INF]
    exponent = results[:, EXPONENT].astype(np.int32)
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        mean = np.ldexp(floats[:, TOTAL] / count, exponent)
        found["l1"] = np.ldexp(floats[:, ABSOLUTE], exponent)
        found["l2"] = np.ldexp(np.sqrt(floats[:, SQUARES]), exponent)
    for name, values in (("mean", mean), ("min", floats[:, LOW] + 0.0), ("max", floats[:, HIGH] + 0.0)):
        found[name] = np.where(count > 0, values, np.nan)
    sample = floats[:, RESULT_SAMPLE:]
    found["sample"] = np.where(np.isnan(sample), np.nan, sample)
    rows[table.rows] = found
