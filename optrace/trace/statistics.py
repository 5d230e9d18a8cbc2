"""Measures tensors in NumPy: statistics, fingerprint and sample of each job, in fixed blocks of bounded memory."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optrace.trace.fingerprint import (
    BLOCK,
    CANONICAL_NAN,
    MASK,
    Layout,
    hash_words,
    is_narrow,
    sample_indices,
    widen,
    words_of,
)
from optrace.trace.jobs import COPY, HASH, ITEMSIZE, NAMES, ROW, STAT, UPDATE

Floats = NDArray[np.float64]

_BIG, _SMALL = 2.0**480, 2.0**-450  # outside, squares leave the range of float64: sums are taken of scaled values


def measure_numpy(jobs: NDArray[np.void], rows: NDArray[np.void]) -> None:
    """Do what `optrace.trace.measure.measure` says, one job after the other."""
    for number, job in enumerate(jobs):
        _check(job, number, len(rows))
        op, a, numel = int(job["op"]), _Values(job, "a"), int(job["numel"])
        layout, total = _layout(job, number), int(job["global_numel"]) or numel
        if op in (COPY, HASH):
            rows["fingerprint"][job["row"]] = _signed(_fingerprint(a.words, numel, layout))
            if op == COPY:
                np.copyto(_Values(job, "b").raw, a.raw)
        elif op == STAT:
            rows[job["row"]] = _row(a.floats, a.words, numel, layout, total)
        else:
            update = _Update(a, _Values(job, "b"))
            rows[job["row"]] = _row(update.floats, update.words, numel, layout, total)
            rows[job["row2"]] = _row(a.floats, a.words, numel, layout, total)


def _check(job: np.void, number: int, n_rows: int) -> None:
    """Raise ValueError for a job that cannot be run, in the words of the C kernel."""
    op, dtype, numel, row, row2 = (int(job[field]) for field in ("op", "dtype", "numel", "row", "row2"))
    if op > HASH:
        raise ValueError(f"job {number}: unknown op {op}")
    if dtype >= len(NAMES):
        raise ValueError(f"job {number}: unknown dtype code {dtype}")
    if not 0 <= row < n_rows:
        raise ValueError(f"job {number}: row {row} of {n_rows}")
    if op == UPDATE and not 0 <= row2 < n_rows:
        raise ValueError(f"job {number}: row2 {row2} of {n_rows}")
    if numel < 0:
        raise ValueError(f"job {number}: numel {numel}")
    if numel and not (job["a"] and (job["b"] or op in (STAT, HASH))):
        raise ValueError(f"job {number}: no address for {numel} elements")


class _Values:
    """The elements at an address, seen as float64 or as the words that are hashed, a slice at a time."""

    def __init__(self, job: np.void, side: str) -> None:
        self.dtype = int(job["dtype"])
        self.name = NAMES[self.dtype]
        size = ITEMSIZE[self.dtype]
        count = int(job["numel"]) * size
        memory = memoryview((ctypes.c_ubyte * count).from_address(int(job[side])) if count else b"")
        if self.name.startswith(("float8", "bfloat", "bool")):
            self.raw: NDArray[Any] = np.frombuffer(memory, dtype=f"u{size}")
        else:
            self.raw = np.frombuffer(memory, dtype=self.name)

    def words(self, low: int, high: int) -> NDArray[np.uint64]:
        return words_of(self.raw[low:high], self.dtype)

    def floats(self, low: int, high: int) -> Floats:
        part = self.raw[low:high]
        if is_narrow(self.name):
            return _exact_double(widen(part.view(f"u{part.itemsize}"), self.name))
        if self.name == "float32":
            return _exact_double(part.view(np.uint32))
        return part.astype(np.float64)


class _Update:
    """After - before, in float64, with one NaN: inf - inf has no sign worth telling."""

    def __init__(self, after: _Values, before: _Values) -> None:
        self.after, self.before = after, before

    def floats(self, low: int, high: int) -> Floats:
        with np.errstate(invalid="ignore", over="ignore"):
            return self.after.floats(low, high) - self.before.floats(low, high)

    def words(self, low: int, high: int) -> NDArray[np.uint64]:
        change = self.floats(low, high)
        bits = change.view(np.uint64)
        bits[np.isnan(change)] = CANONICAL_NAN
        return bits


def _exact_double(bits: NDArray[np.uint32]) -> Floats:
    """Return float32 bits as float64, subnormals too where torch.set_flush_denormal makes the processor drop them."""
    with np.errstate(invalid="ignore"):
        value = bits.view(np.float32).astype(np.float64)
    subnormal = (bits & np.uint32(0x7F800000) == 0) & (bits & np.uint32(0x7FFFFF) != 0)
    if subnormal.any():
        small = bits[subnormal]
        value[subnormal] = (small & np.uint32(0x7FFFFF)).astype(np.float64) * 2.0**-149
        value[subnormal] *= np.where(small >> np.uint32(31), -1.0, 1.0)
    return value


def _layout(job: np.void, number: int) -> Layout:
    base, numel, address = int(job["index_base"]), int(job["numel"]), int(job["layout"])
    if not address:
        return Layout(base, [numel], [1])
    ndim = ctypes.c_int64.from_address(address).value
    if not 0 <= ndim <= 64:
        raise ValueError(f"job {number}: a layout of {ndim} dimensions")
    fields = list((ctypes.c_int64 * (1 + 2 * ndim)).from_address(address))
    sizes, strides = fields[1 : 1 + ndim], fields[1 + ndim :]
    steps = [stride for size, stride in zip(sizes, strides, strict=True) if size > 1]
    if math.prod(sizes) != numel or min(sizes, default=0) < 0 or min(steps, default=1) < 1:
        raise ValueError(f"job {number}: its layout does not describe its {numel} elements")
    return Layout(base, sizes, strides)


@dataclass
class _Sums:
    """What is gathered over the blocks of one tensor; scaled values are summed when squares could leave the range."""

    count: int = 0
    total: float = 0.0
    absolute: float = 0.0
    squares: float = 0.0

    def add(self, finite: Floats) -> None:
        self.count += finite.size
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            self.total += float(finite.sum())
            self.absolute += float(np.abs(finite).sum())
            self.squares += float(np.square(finite).sum())


def _row(
    floats: Callable[[int, int], Floats],
    words: Callable[[int, int], NDArray[np.uint64]],
    numel: int,
    layout: Layout,
    total: int,
) -> NDArray[np.void]:
    row = np.zeros((), dtype=ROW)
    sums, low, high = _Sums(), math.inf, -math.inf
    for start in range(0, numel, BLOCK):
        block = floats(start, min(start + BLOCK, numel))
        finite = block[np.isfinite(block)]
        nans = int(np.isnan(block).sum())
        row["n_nan"] += nans
        row["n_inf"] += block.size - finite.size - nans
        row["n_zero"] += block.size - np.count_nonzero(block.view(np.uint64) << np.uint64(1))
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
        sums.add(finite)
    scale = 0
    largest = max(abs(low), abs(high)) if sums.count else 0.0
    if largest and not _SMALL <= largest <= _BIG:
        scale, sums = math.frexp(largest)[1], _Sums()
        for start in range(0, numel, BLOCK):
            block = floats(start, min(start + BLOCK, numel))
            sums.add(np.ldexp(block[np.isfinite(block)], -scale))
    with np.errstate(over="ignore", under="ignore"):
        row["mean"] = np.ldexp(sums.total / sums.count, scale) if sums.count else math.nan
        row["l1"] = np.ldexp(sums.absolute, scale)
        row["l2"] = np.ldexp(math.sqrt(sums.squares), scale)
    row["min"] = low + 0.0 if sums.count else math.nan
    row["max"] = high + 0.0 if sums.count else math.nan
    row["fingerprint"] = _signed(_fingerprint(words, numel, layout))
    row["sample"] = math.nan
    for slot, index in enumerate(sample_indices(total).tolist()):
        position = layout.position(index)
        if position is not None and position < numel:
            value = floats(position, position + 1)[0]
            row["sample"][slot] = math.nan if np.isnan(value) else value
    return row


def _fingerprint(words: Callable[[int, int], NDArray[np.uint64]], numel: int, layout: Layout) -> int:
    if not numel:
        return 0
    total, step = 0, layout.strides[-1]
    for position, index, length in layout.runs():
        for low in range(0, length, BLOCK):
            high = min(low + BLOCK, length)
            total += hash_words(words(position + low, position + high), index + low * step, step)
    return total & MASK


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
