"""Measures on a device with torch's own operators, where there is no Triton: the same results, more launches.

Tensors of one dtype are laid end to end, a bounded number of elements at a time, cut into pieces, and reduced by piece,
then by tensor (`torch.segment_reduce`, which adds in a fixed order). Integers are int64, whose products and sums wrap
around as those of uint64 do. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from optrace.recorder.device_table import (
    BASE,
    BIG,
    DTYPE,
    EXPONENT,
    FINGERPRINT,
    HIGH,
    LOW,
    N_INF,
    N_NAN,
    N_ZERO,
    NDIM,
    NUMEL,
    OP,
    RESULT,
    RESULT_SAMPLE,
    SAMPLE,
    SHIFT,
    SIZES,
    SMALL,
    STRIDES,
    TOTAL,
    DeviceTable,
    Longs,
)
from optrace.trace.fingerprint import CANONICAL_NAN, GOLDEN, is_narrow, widen
from optrace.trace.jobs import COPY, ITEMSIZE, NAMES, SAMPLE_SIZE, UPDATE

PIECE = 4096
"""Elements in a piece."""
PASS = 1 << 21
"""Elements worked on at a time: temporaries take some 200 MB."""

View = Callable[[int, int], torch.Tensor]
"""From an address and a number of bytes to them as a tensor of uint8, not copied."""
Upload = Callable[[Longs], torch.Tensor]
"""An array of int64 on the device."""

_FLOAT64 = NAMES.index("float64")
_INTEGERS = {name: getattr(torch, name) for name in ("int8", "int16", "int32", "int64")}


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


_GOLDEN, _MUL1, _MUL2 = _signed(GOLDEN), _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


@dataclass
class _Slice:
    """A stretch of one tensor within a pass."""

    row: int
    start: int
    length: int
    at: int
    """Where it begins in the pass."""


@dataclass
class _Pass:
    """Stretches of tensors of one dtype that are measured together."""

    dtype: int
    update: bool
    slices: list[_Slice] = field(default_factory=list)
    count: int = 0
    lengths: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    """Of its pieces."""
    pieces: int = 0
    shifts: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    """[2, slices]: logical index of the first element less its place in the pass, and length."""
    sample_from: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    sample_to: torch.Tensor = field(default_factory=lambda: torch.empty(0))


class Passes:
    """How the tensors of a table are measured by torch's operators on one device."""

    def __init__(self, table: DeviceTable, upload: Upload) -> None:
        self._table = table
        jobs = table.jobs
        self._order = sorted(range(len(jobs)), key=lambda row: (jobs[row, DTYPE], jobs[row, OP] == UPDATE, row))
        self._passes = list(self._cut())
        counts = -(-jobs[self._order, NUMEL] // PIECE)
        self._pieces_of = upload(counts)
        self._n_pieces = int(counts.sum())
        self._back = upload(np.argsort(np.array(self._order, np.int64)).astype(np.int64))
        names = {NAMES[one.dtype] for one in self._passes if is_narrow(NAMES[one.dtype])} - {"bfloat16"}
        self._wide = {name: upload(_table_of(name)) for name in sorted(names)}
        for one in self._passes:
            self._complete(one, upload)

    def _cut(self) -> Iterator[_Pass]:
        """Passes in the order of the tensors; none holds more than PASS elements, nor pieces of two dtypes."""
        current: _Pass | None = None
        for row in self._order:
            entry = self._table.jobs[row]
            dtype, update, numel = int(entry[DTYPE]), bool(entry[OP] == UPDATE), int(entry[NUMEL])
            start = 0
            while start < numel:
                if current is None or (current.dtype, current.update) != (dtype, update) or PASS - current.count < 1:
                    if current is not None:
                        yield current
                    current = _Pass(dtype, update)
                room = PASS - current.count
                length = numel - start if numel - start <= room else room // PIECE * PIECE
                if not length:  # less than a piece is left: the tensor begins in the next pass
                    yield current
                    current = None
                    continue
                current.slices.append(_Slice(row, start, length, current.count))
                current.count += length
                start += length
        if current is not None:
            yield current

    def _complete(self, one: _Pass, upload: Upload) -> None:
        jobs = self._table.jobs
        lengths: list[int] = []
        shifts = np.zeros((2, len(one.slices)), np.int64)
        source: list[int] = []
        target: list[int] = []
        for number, part in enumerate(one.slices):
            whole, rest = divmod(part.length, PIECE)
            lengths += [PIECE] * whole + ([rest] if rest else [])
            shifts[:, number] = jobs[part.row, BASE] + part.start - part.at, part.length
            for slot, position in enumerate(jobs[part.row, SAMPLE:].tolist()):
                if part.start <= position < part.start + part.length:
                    source.append(part.at + position - part.start)
                    target.append(part.row * SAMPLE_SIZE + slot)
        one.pieces = len(lengths)
        one.lengths = upload(np.array(lengths, np.int64))
        one.shifts = upload(shifts)
        one.sample_from, one.sample_to = upload(np.array(source, np.int64)), upload(np.array(target, np.int64))

    def run(self, addresses: Longs, view: View) -> torch.Tensor:
        """Measure what lies at `addresses` (int64 [n, 2]); int64 [n, RESULT] on the device, as `finish_jobs` gives."""
        n = len(self._table.jobs)
        floats = torch.empty((6, self._n_pieces), dtype=torch.float64, device=self._back.device)
        longs = torch.empty((4, self._n_pieces), dtype=torch.int64, device=self._back.device)
        sample = torch.full((n * SAMPLE_SIZE,), torch.nan, dtype=torch.float64, device=self._back.device)
        at = 0
        for one in self._passes:
            self._measure(one, addresses, view, floats[:, at : at + one.pieces], longs[:, at : at + one.pieces], sample)
            at += one.pieces
        results = torch.zeros((n, RESULT), dtype=torch.int64, device=self._back.device)
        numbers = results.view(torch.float64)
        counts = self._pieces_of
        exponent = _reduce(floats[5], "max", counts).clamp_min(-SHIFT)
        below = torch.repeat_interleave(exponent, counts, output_size=self._n_pieces) - floats[5]
        factor = (below == 0).double() + (below == SHIFT).double() * 2.0**-SHIFT
        for column in range(2):
            numbers[:, TOTAL + column] = _reduce(floats[column] * factor, "sum", counts)
        numbers[:, TOTAL + 2] = _reduce(torch.where(below == 0, floats[2], 0.0), "sum", counts)
        numbers[:, LOW] = _reduce(floats[3], "min", counts)
        numbers[:, HIGH] = _reduce(floats[4], "max", counts)
        results[:, EXPONENT] = exponent.long()
        for column in range(3):
            results[:, N_NAN + column] = _reduce(longs[column].double(), "sum", counts).long()
        results[:, FINGERPRINT] = _reduce_words(longs[3], counts)
        results = results[self._back]
        results.view(torch.float64)[:, RESULT_SAMPLE:] = sample.view(n, SAMPLE_SIZE)
        return results

    def _measure(
        self,
        one: _Pass,
        addresses: Longs,
        view: View,
        floats: torch.Tensor,
        longs: torch.Tensor,
        sample: torch.Tensor,
    ) -> None:
        """Measure one pass, a column for each of its pieces."""
        words, values = self._elements(one, addresses[:, 0], view)
        if one.update:
            values = values - self._elements(one, addresses[:, 1], view)[1]
            words = torch.where(values.isnan(), CANONICAL_NAN, values.view(torch.int64))
        self._copy(one, addresses, view)
        sample[one.sample_to] = values[one.sample_from]
        mixed = _mix(words + (self._indices(one) + 1) * _GOLDEN)
        lengths = one.lengths
        longs[3] = _reduce_words(torch.where(words != 0, mixed, 0), lengths)
        finite = values.isfinite()
        for row, mask in ((N_NAN, values.isnan()), (N_INF, values.isinf()), (N_ZERO, values == 0)):
            longs[row - N_NAN] = _reduce(mask.double(), "sum", lengths).long()
        floats[3] = _reduce(torch.where(finite, values, torch.inf), "min", lengths)
        floats[4] = _reduce(torch.where(finite, values, -torch.inf), "max", lengths)
        values = torch.where(finite, values, 0.0)
        if one.dtype == _FLOAT64:
            most = _reduce(values.abs(), "max", lengths)
            floats[5] = SHIFT * (most > BIG).double() - SHIFT * (most < SMALL).double()
            scale = torch.ones_like(most).masked_fill(most > BIG, 2.0**-SHIFT).masked_fill(most < SMALL, 2.0**SHIFT)
            values = values * torch.repeat_interleave(scale, lengths, output_size=one.count)
        else:
            floats[5] = 0
        floats[0] = _reduce(values, "sum", lengths)
        floats[1] = _reduce(values.abs(), "sum", lengths)
        floats[2] = _reduce(values * values, "sum", lengths)

    def _elements(self, one: _Pass, addresses: Longs, view: View) -> tuple[torch.Tensor, torch.Tensor]:
        """What is hashed of the elements of a pass (int64), and their values (float64)."""
        name, size = NAMES[one.dtype], ITEMSIZE[one.dtype]
        parts = [view(int(addresses[part.row]) + part.start * size, part.length * size) for part in one.slices]
        raw = torch.cat(parts)
        if name == "float64":
            return raw.view(torch.int64), raw.view(torch.float64)
        words = raw.long() if size == 1 else raw.view(_INTEGERS[f"int{8 * size}"]).long()
        if name in _INTEGERS:
            values = raw.view(_INTEGERS[name]).double()
            return words if size == 8 else words & (1 << 8 * size) - 1, values
        if name == "uint64":
            return words, raw.view(torch.uint64).double()
        words &= (1 << 8 * size) - 1
        if name == "bfloat16":
            words <<= 16
        elif is_narrow(name):
            words = self._wide[name][words]
        elif name != "float32":
            return words, words.double()
        return words, words.int().view(torch.float32).double()

    def _copy(self, one: _Pass, addresses: Longs, view: View) -> None:
        """Copy the stretches whose tensors are to be copied."""
        size = ITEMSIZE[one.dtype]
        for part in one.slices:
            if self._table.jobs[part.row, OP] == COPY:
                source, target = (int(address) + part.start * size for address in addresses[part.row])
                view(target, part.length * size).copy_(view(source, part.length * size))

    def _indices(self, one: _Pass) -> torch.Tensor:
        """Logical index in its whole tensor of each element of a pass."""
        places = torch.arange(one.count, dtype=torch.int64, device=self._back.device)
        indices = places + torch.repeat_interleave(one.shifts[0], one.shifts[1], output_size=one.count)
        for part in one.slices:
            entry = self._table.jobs[part.row].tolist()
            if entry[NDIM]:
                rest = places[: part.length] + part.start
                index = torch.full_like(rest, entry[BASE])
                for size, stride in zip(entry[SIZES:STRIDES][: entry[NDIM]], entry[STRIDES:SAMPLE], strict=False):
                    index += rest % size * stride
                    rest = rest // size
                indices[part.at : part.at + part.length] = index
        return indices


def _table_of(name: str) -> Longs:
    """The float32 bits of every float of a narrow dtype."""
    codes = np.arange(1 << 16, dtype=np.uint16) if name == "float16" else np.arange(256, dtype=np.uint8)
    return widen(codes, name).astype(np.int64)


def _mix(z: torch.Tensor) -> torch.Tensor:
    z = (z ^ (z >> 30 & (1 << 34) - 1)) * _MUL1
    z = (z ^ (z >> 27 & (1 << 37) - 1)) * _MUL2
    return z ^ (z >> 31 & (1 << 33) - 1)


def _reduce(values: torch.Tensor, how: str, lengths: torch.Tensor) -> torch.Tensor:
    return torch.segment_reduce(values.contiguous(), how, lengths=lengths, unsafe=True)


def _reduce_words(words: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Sums modulo 2**64, by halves: sums of 32-bit numbers are exact in float64."""
    low = _reduce((words & 0xFFFFFFFF).double(), "sum", lengths).long()
    high = _reduce((words >> 32 & 0xFFFFFFFF).double(), "sum", lengths).long()
    return low + (high << 32)
