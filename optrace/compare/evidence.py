"""How far rows with different fingerprints lie apart, judged from what was recorded: values, samples, statistics."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optrace.compare.bodies import Body, Kept, Place, Reading, Words, blocks
from optrace.compare.columns import Floats, Ints, Numbering, Rows, Side
from optrace.compare.grid import Grid, after_name
from optrace.compare.match import Cell
from optrace.compare.samples import IS_BEFORE, IS_STATE, LIMITS, SLOTS, apart, moments
from optrace.compare.threads import in_threads
from optrace.compare.tolerance import (
    Statistics,
    Tolerance,
    is_grad,
    statistics_errors,
)
from optrace.trace.dtypes import eps_of, tiny_of

BITWISE, VALUES, SAMPLES, STATISTICS = range(4)
WORDS = ("bitwise", "values", "samples", "statistics")
_SLICE = 8192
"""Rows whose samples are compared at once: their arrays stay in a core's cache."""


@dataclass(frozen=True)
class Errors:
    """What is known of n differing rows, one array [n] each."""

    raw: Floats
    """Error in eps of its scale; a lower bound unless the evidence is values."""
    net: Floats
    """`step` less what atol and rtol allow: what is judged."""
    step: Floats
    """`raw` less, for state, the difference that it had before the step."""
    evidence: NDArray[np.int8]
    slot: Ints
    """Where in the sample the error is largest; -1 when it comes from statistics."""
    a: Floats
    """A's value there; NaN without a slot."""
    b: Floats
    numel: Ints
    kind: NDArray[np.int8]
    """VALUE, NONE (a gradient that was None on one side) or SHAPE (another number of elements)."""
    dtypes: tuple[tuple[Ints, list[str]], tuple[Ints, list[str]]]
    """Codes into words, of either side."""

    def dtype_of(self, row: int, cell: Cell) -> str:
        """The coarser dtype of a row's two sides; the parameter's where a row is an update."""
        words: list[str] = [names[codes[row]] for codes, names in self.dtypes]
        if words[0] == words[1] == "float64" and cell.dtype_a and cell.dtype_b:
            words += [cell.dtype_a, cell.dtype_b] if self.is_update[row] else []
        return max(words, key=eps_of)

    is_update: NDArray[np.bool_]
    alike: NDArray[np.bool_]
    """Updates of which one side knows the sample only, and the samples agree: their fingerprints tell nothing."""
    unit: Floats
    """One eps of an element of usual size, as a share of rms(change); NaN where nothing changed."""
    rms: Floats
    """rms(change) of the tensor, of the side where it is larger."""
    rms_told: NDArray[np.bool_]
    """Whether that comes from statistics of the whole tensors, not from samples."""
    eps: Floats
    """Of the coarser dtype."""
    tiny: Floats
    """Its smallest normal number."""
    gap: Floats
    """Largest |a - b| of the sampled elements; 0 without any."""


VALUE, NONE, SHAPE = range(3)
KIND_WORDS = ("value", "none", "shape")


def judge(
    grid: Grid,
    side_a: Side,
    side_b: Side,
    numbering: Numbering,
    where: Sequence[Ints],
    tolerance: Tolerance,
    kept: Kept | None = None,
) -> Errors:
    """Errors of the rows at `where` (steps, cells, quantities of the grid, [n] each), all of which differ.

    What was recorded of them is read block by block of cells, by as many threads as there are cores, four at most.
    `kept`: the same object for stretches that follow each other, so that their common step is read once.
    """
    s, c, q = (np.asarray(part) for part in where)
    kept = Kept() if kept is None else kept
    before = kept.take()
    errors = _nothing(len(s), kept.words)
    last = int(grid.steps[-1])
    sides = (
        (side_a, grid.rows_a, grid.at_a, grid.before_a),
        (side_b, grid.rows_b, grid.at_b, grid.before_b),
    )

    def block(cells: Ints) -> tuple[Rows, Rows]:
        inside = np.zeros(len(numbering.cells), bool)
        inside[cells] = True
        own = np.flatnonzero(inside[c])
        own = own[np.argsort(_small(q[own] * len(inside) + c[own]), kind="stable")]  # as they lie on disk
        context = _Context(grid, s[own], c[own], q[own])
        halves, readings = [], []
        beyond = np.zeros(len(own), bool)
        for (side, head, at, earlier), old in zip(sides, before, strict=True):
            needed = context.rows(at, earlier)
            reading = Reading(side, numbering, head, inside, needed.ravel(), kept.words, old)
            present = head.columns["present"][needed[0]]
            half = _Half(reading.body, np.stack([reading.find(row) for row in needed], axis=1), present)
            beyond |= half.places.max(axis=1) >= len(reading.body)
            halves.append(half)
            readings.append(reading)
        for part in _slices(np.flatnonzero(~beyond)):
            rows, parts = own[part], [half.part(part) for half in halves]
            _judge_slice(numbering, context.part(part), parts, tolerance.of(rows), errors, rows)
        for part in _slices(np.flatnonzero(beyond)):  # the few rows that need kept ones
            rows, parts = own[part], [half.part(part) for half in halves]
            parts = [
                _Half(*reading.together(half.places), half.present)
                for reading, half in zip(readings, parts, strict=True)
            ]
            _judge_slice(numbering, context.part(part), parts, tolerance.of(rows), errors, rows)
        return readings[0].last(last), readings[1].last(last)

    every = list(blocks(numbering, (grid.rows_a, grid.rows_b), c))
    for found in in_threads(block, every):
        for parts, rows in zip(kept.parts, found, strict=True):
            parts.append(rows)
    return errors


def _slices(rows: Ints) -> Iterator[Ints]:
    """The rows, so many at a time that what is made of them stays in a core's cache."""
    for start in range(0, len(rows), _SLICE):
        yield rows[start : start + _SLICE]


def _judge_slice(
    numbering: Numbering,
    context: _Context,
    halves: Sequence[_Half],
    tolerance: Tolerance,
    errors: Errors,
    rows: Ints,
) -> None:
    """Fill in the errors of some rows, few enough for the cache of a core."""
    a, b = halves
    from_a, from_b = context.scale(a), context.scale(b)
    stat_a, stat_b = from_a.own, from_b.own
    rms = np.fmax(from_a.rms, from_b.rms)
    eps, tiny = _formats(numbering, context, a, b)
    limits = np.empty((len(rows), len(LIMITS)))
    for number, each in enumerate(
        (rms, eps, tiny, tolerance.atol, tolerance.rtol, stat_a.numel, stat_b.numel, stat_a.n_nan, stat_b.n_nan)
    ):
        limits[:, number] = each
    found = apart(a.body.samples, b.body.samples, np.hstack([a.places, b.places]), context.flags, limits)

    with_samples = found.n_valid > 0
    whole = with_samples & (stat_a.numel <= SLOTS) & (found.n_valid == stat_a.numel)
    bound, bound_net = statistics_errors(
        stat_a, stat_b, from_a.statistics, from_b.statistics, rms, eps, tiny, tolerance
    )
    best, best_net, best_step = (np.maximum(part, 0.0) for part in (found.raw, found.net, found.step))
    by_statistics = ~whole & (bound > best)
    best = np.where(whole, best, np.maximum(best, bound))
    best_net = np.where(whole, best_net, np.maximum(best_net, bound_net))
    best_step = np.where(whole, best_step, np.maximum(best_step, bound))
    evidence = np.where(whole, VALUES, np.where(with_samples & ~by_statistics, SAMPLES, STATISTICS)).astype(np.int8)

    kind = np.where(a.present != b.present, NONE, np.where(stat_a.numel != stat_b.numel, SHAPE, VALUE)).astype(np.int8)
    best, best_net, best_step = (np.where(kind != VALUE, np.inf, part) for part in (best, best_net, best_step))
    slot = np.where(with_samples & (kind == VALUE) & (evidence != STATISTICS), found.slot, -1)
    errors.raw[rows], errors.net[rows], errors.step[rows] = best, best_net, best_step
    errors.evidence[rows] = np.where(kind != VALUE, VALUES, evidence)
    errors.slot[rows], errors.kind[rows] = slot, kind
    errors.a[rows] = np.where(slot >= 0, found.a, np.nan)
    errors.b[rows] = np.where(slot >= 0, found.b, np.nan)
    errors.numel[rows] = stat_a.numel
    for (codes, _), half in zip(errors.dtypes, halves, strict=True):
        codes[rows] = half.body.dtype(half.places[:, 0])
    errors.is_update[rows] = context.is_update
    errors.alike[rows] = ((stat_a.n_nan < 0) != (stat_b.n_nan < 0)) & (best == 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        errors.unit[rows] = np.where(rms > 0, eps * (np.sqrt(found.magnitude) + rms) / rms, np.nan)
    errors.rms_told[rows] = from_a.told & from_b.told
    errors.rms[rows], errors.eps[rows], errors.tiny[rows], errors.gap[rows] = rms, eps, tiny, found.gap


def _nothing(n: int, words: Words) -> Errors:
    """Room for the errors of n rows."""
    dtypes = tuple((np.zeros(n, np.int64), words.names) for _ in range(2))
    return Errors(
        raw=np.empty(n),
        net=np.empty(n),
        step=np.empty(n),
        evidence=np.empty(n, np.int8),
        slot=np.empty(n, np.int64),
        a=np.empty(n),
        b=np.empty(n),
        numel=np.empty(n, np.int64),
        kind=np.empty(n, np.int8),
        dtypes=(dtypes[0], dtypes[1]),
        is_update=np.empty(n, bool),
        alike=np.empty(n, bool),
        unit=np.empty(n),
        rms=np.empty(n),
        rms_told=np.empty(n, bool),
        eps=np.empty(n),
        tiny=np.empty(n),
        gap=np.zeros(n),
    )


def _small(keys: Ints) -> NDArray[Any]:
    """The keys in 16 bits where they fit: NumPy sorts those in linear time."""
    return keys.astype(np.uint16) if int(keys.max(initial=0)) < 2**16 else keys


@dataclass(frozen=True)
class _Scale:
    """What one side says of rows and of their scale."""

    own: Statistics
    """Of the rows themselves."""
    rms: Floats
    told: NDArray[np.bool_]
    """Whether `rms` comes from a norm."""
    statistics: Statistics
    """Of the rows that tell the scale: the parameters for updates."""


@dataclass(frozen=True)
class _Half:
    """Rows of one side, and their places in what was read of it: own, base, update, other (`samples.apart`), [n, 4]."""

    body: Body
    places: Place
    present: NDArray[np.bool_]

    def part(self, part: Ints) -> _Half:
        """Some of the rows."""
        return _Half(self.body, self.places[part], self.present[part])


class _Context:
    """Which other rows tell the scale of a row: its parameter, its update, its value before or after the step."""

    def __init__(self, grid: Grid, s: Ints, c: Ints, q: Ints) -> None:
        self.cell = c
        names = grid.names
        self.is_update = np.array([name == "update" for name in names])[q]
        self.is_param = np.array([name in ("param", "param_in") for name in names])[q]
        self.is_grad = np.array([is_grad(name) for name in names])[q]
        self._is_before = np.array([name.partition(".")[0].endswith("_in") for name in names])[q]
        is_state = np.array([name.startswith(("state.", "group.")) for name in names])[q]
        self.flags = (IS_BEFORE * self._is_before + IS_STATE * is_state).astype(np.uint8)
        after = [grid.number(after_name(name)) for name in names]
        self._after = np.array([-1 if number is None else number for number in after], np.int64)[q]
        self._update, self._param = grid.number("update"), grid.number("param")
        _, n_cells, n_names = grid.at_a.shape
        self._row = (s * n_cells + c) * n_names
        self._own = self._row + q

    def part(self, part: Ints) -> _Context:
        """The same of some of the rows."""
        own = copy.copy(self)
        for name in ("cell", "is_update", "is_param", "is_grad", "flags"):
            setattr(own, name, getattr(self, name)[part])
        return own

    def rows(self, at: NDArray[np.int32], before: NDArray[np.int32]) -> NDArray[np.int32]:
        """Rows of one side: own, base, update, other, [4, n]; -1 for none."""
        flat = at.ravel()
        none = np.full(len(self._row), -1, np.int32)
        own = flat[self._own]
        update = flat[self._row + self._update] if self._update is not None else none
        param = flat[self._row + self._param] if self._param is not None else none
        update = np.where(self.is_update | self.is_param, update, np.int32(-1))
        base = np.where(self.is_update & (param >= 0), param, own)
        other = before.ravel()[self._own]
        if self._is_before.any():
            after = np.where(self._after >= 0, flat[self._row + self._after], np.int32(-1))
            other = np.where(self._is_before, after, other)
        other = np.where(self.is_grad | self.is_update, np.int32(-1), other)
        return np.stack([own, base, update, other])

    def scale(self, half: _Half) -> _Scale:
        """What one side says of each row and contributes to its scale."""
        body = half.body
        own, base, update, other = half.places.T
        statistics = body.statistics(own)
        found = moments(body.samples, half.places, self.flags)
        with np.errstate(invalid="ignore"):
            root = np.sqrt(np.maximum(np.nan_to_num(statistics.numel, nan=1.0), 1.0))
            ends = statistics.l2 + np.nan_to_num(body.number("l2", other))
            rms = np.where(found.has_moved, np.sqrt(found.moved), ends / root)
            rms = np.where((other < 0) & self.is_param, 0.0, rms)  # start values: no step has changed them
            norm = body.number("l2", update) / root
            told = np.isfinite(np.where(self.is_grad, statistics.l2, norm))
            norm = np.where(np.isnan(norm) & found.has_update, np.sqrt(found.update), norm)  # only its sample is known
            rms = np.where(update >= 0, norm, rms)
            rms = np.where(self.is_grad, statistics.l2 / root, rms)
        return _Scale(statistics, rms, told, statistics if (base == own).all() else body.statistics(base))


def _formats(numbering: Numbering, context: _Context, a: _Half, b: _Half) -> tuple[Floats, Floats]:
    """Eps and smallest normal number of the coarser dtype of each row; for an update those of its parameter."""
    eps, tiny = [], []
    for half, name in ((a, "dtype_a"), (b, "dtype_b")):
        own_eps, own_tiny = (half.body.per_dtype(half.places[:, 0], number) for number in (eps_of, tiny_of))
        if context.is_update.any():
            words = [getattr(c, name) for c in numbering.cells]
            declared = np.array([eps_of(word) if word else np.nan for word in words])[context.cell]
            least = np.array([tiny_of(word) if word else np.nan for word in words])[context.cell]
            use = context.is_update & ~np.isnan(declared)
            own_eps, own_tiny = np.where(use, declared, own_eps), np.where(use, least, own_tiny)
        eps.append(own_eps)
        tiny.append(own_tiny)
    return np.fmax(*eps), np.fmax(*tiny)
