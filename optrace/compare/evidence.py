"""How far rows with different fingerprints lie apart, judged from what was recorded: values, samples, statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optrace.compare.columns import BODY, Floats, Ints, Numbering, Rows, Side
from optrace.compare.grid import Grid, after_name
from optrace.compare.match import Cell
from optrace.compare.tolerance import (
    Statistics,
    Tolerance,
    element_errors,
    is_grad,
    statistics_errors,
)
from optrace.trace.dtypes import eps_of, tiny_of

BITWISE, VALUES, SAMPLES, STATISTICS = range(4)
WORDS = ("bitwise", "values", "samples", "statistics")
SLOTS = 16


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


VALUE, NONE, SHAPE = range(3)
KIND_WORDS = ("value", "none", "shape")


class _Body:
    """Statistics and samples of a stretch, found by row of the grid."""

    def __init__(self, side: Side, numbering: Numbering, head: Rows, needed: Ints) -> None:
        needed = needed[needed >= 0]
        steps, cells = head.step[needed], np.unique(head.cell[needed])
        only = None
        if len(cells) == 1:
            cell = numbering.cells[int(cells[0])]
            only = cell.param_a if side.is_a else cell.param_b
        self.rows = side.load(int(steps.min()), int(steps.max()), BODY, param=only or None)
        self.shape = (len(numbering.cells), len(numbering.quantities))
        keys = self.rows.keys(*self.shape)
        self.order = np.argsort(keys, kind="stable")
        self.keys = keys[self.order]
        self.head = head

    def find(self, at: NDArray[np.int32]) -> Ints:
        """Row of this body for each row of the grid; -1 for -1."""
        safe = np.maximum(at, 0)
        wanted = (self.head.step[safe] * self.shape[0] + self.head.cell[safe]) * self.shape[1]
        wanted = wanted + self.head.quantity[safe]
        place = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return np.where((at >= 0) & (self.keys[place] == wanted), self.order[place], -1)

    def sample(self, row: Ints) -> Floats:
        """Samples [n, 16]; NaN where there is no row."""
        return np.where(row[:, None] >= 0, self.rows.columns["sample"][row], np.nan)

    def number(self, name: str, row: Ints) -> Floats:
        """A column [n] as float64; NaN where there is no row."""
        return np.where(row >= 0, self.rows.columns[name][row].astype(np.float64), np.nan)

    def statistics(self, row: Ints) -> Statistics:
        """Statistics of rows."""
        names = ("numel", "mean", "l1", "l2", "min", "max", "n_nan", "n_inf")
        return Statistics(*(self.number(name, row) for name in names))

    @property
    def dtypes(self) -> tuple[Ints, list[str]]:
        """The column dtype, as codes into words."""
        codes, words = self.rows.columns["dtype"]
        return codes, words

    def per_dtype(self, row: Ints, number: Any) -> Floats:
        """A number of each row's dtype, [n]; NaN where there is no row."""
        codes, words = self.dtypes
        table = np.array([number(word) for word in words] or [np.nan])
        return np.where(row >= 0, table[codes[row]] if len(codes) else np.nan, np.nan)


def judge(
    grid: Grid, side_a: Side, side_b: Side, numbering: Numbering, where: Sequence[Ints], tolerance: Tolerance
) -> Errors:
    """Errors of the rows at `where` (steps, cells, quantities of the grid, [n] each), all of which differ."""
    s, c, q = (np.asarray(part) for part in where)
    at_a, at_b = grid.at_a[s, c, q], grid.at_b[s, c, q]
    context = _Context(grid, s, c, q)
    body_a = _Body(side_a, numbering, grid.rows_a, np.concatenate([at_a, *context.rows(grid.at_a, grid.before_a)]))
    body_b = _Body(side_b, numbering, grid.rows_b, np.concatenate([at_b, *context.rows(grid.at_b, grid.before_b)]))
    a, b = body_a.find(at_a), body_b.find(at_b)
    sample_a, sample_b = body_a.sample(a), body_b.sample(b)
    stat_a, stat_b = body_a.statistics(a), body_b.statistics(b)
    from_a = context.scale(body_a, grid.at_a, grid.before_a, a)
    from_b = context.scale(body_b, grid.at_b, grid.before_b, b)
    magnitude = np.fmax(from_a.magnitude, from_b.magnitude)
    rms = np.fmax(from_a.rms, from_b.rms)
    eps, tiny = _formats(numbering, context, c, (body_a, a), (body_b, b))

    valid = _valid(sample_a, stat_a) & _valid(sample_b, stat_b)
    raw, net = element_errors(sample_a, sample_b, magnitude, rms, eps, tiny, tolerance)
    with np.errstate(invalid="ignore"):  # inf before the step on both sides
        brought = np.where(context.is_state[:, None], np.abs(from_a.old - from_b.old), np.nan)
    brought, _ = element_errors(np.zeros_like(brought), brought, magnitude, rms, eps, tiny, tolerance)
    brought = np.where(np.isfinite(brought), brought, 0.0)
    step, net = np.maximum(raw - brought, 0.0), np.maximum(net - brought, 0.0)
    raw, net, step = (np.where(valid, errors, -1.0) for errors in (raw, net, step))
    slot = np.argmax(raw, axis=1)
    each = np.arange(len(s))
    sampled, sampled_net, sampled_step = raw[each, slot], net.max(axis=1), step.max(axis=1)
    with_samples = valid.any(axis=1)
    whole = with_samples & (stat_a.numel <= SLOTS) & (valid.sum(axis=1) == stat_a.numel)

    bound, bound_net = statistics_errors(
        stat_a, stat_b, from_a.statistics, from_b.statistics, rms, eps, tiny, tolerance
    )
    by_statistics = ~whole & (bound > np.maximum(sampled, 0.0))
    best, best_net, best_step = (np.maximum(errors, 0.0) for errors in (sampled, sampled_net, sampled_step))
    best = np.where(whole, best, np.maximum(best, bound))
    best_net = np.where(whole, best_net, np.maximum(best_net, bound_net))
    best_step = np.where(whole, best_step, np.maximum(best_step, bound))
    evidence = np.where(whole, VALUES, np.where(with_samples & ~by_statistics, SAMPLES, STATISTICS)).astype(np.int8)

    there_a = grid.rows_a.columns["present"][at_a]
    there_b = grid.rows_b.columns["present"][at_b]
    kind = np.where(there_a != there_b, NONE, np.where(stat_a.numel != stat_b.numel, SHAPE, VALUE)).astype(np.int8)
    best, best_net, best_step = (np.where(kind != VALUE, np.inf, errors) for errors in (best, best_net, best_step))
    slot = np.where(with_samples & (kind == VALUE) & (evidence != STATISTICS), slot, -1)
    evidence = np.where(kind != VALUE, VALUES, evidence).astype(np.int8)
    shown_a = np.where(slot >= 0, sample_a[each, slot], np.nan)
    shown_b = np.where(slot >= 0, sample_b[each, slot], np.nan)
    dtypes = tuple((codes[row], words) for (codes, words), row in ((body_a.dtypes, a), (body_b.dtypes, b)))
    return Errors(
        best,
        best_net,
        best_step,
        evidence,
        slot,
        shown_a,
        shown_b,
        stat_a.numel.astype(np.int64),
        kind,
        (dtypes[0], dtypes[1]),
        context.is_update,
        ((stat_a.n_nan < 0) != (stat_b.n_nan < 0)) & (best == 0),
        _unit(magnitude, rms, eps),
    )


def _unit(magnitude: Floats, rms: Floats, eps: Floats) -> Floats:
    known = np.isfinite(magnitude)
    squares = (np.where(known, magnitude, 0.0) ** 2).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(rms > 0, eps * (np.sqrt(squares) + rms) / rms, np.nan)


def _valid(sample: Floats, statistics: Statistics) -> NDArray[np.bool_]:
    """Which slots hold an element: not the padding of a small tensor, nor an index of another shard."""
    inside = np.arange(SLOTS)[None, :] < np.minimum(statistics.numel, SLOTS)[:, None]
    return inside & (~np.isnan(sample) | (statistics.n_nan > 0)[:, None])


@dataclass(frozen=True)
class _Scale:
    magnitude: Floats
    """max(|own|, |old|) of each slot, [n, 16]; of the parameter for an update."""
    old: Floats
    """Value before the step, [n, 16]; NaN where it is not known."""
    rms: Floats
    statistics: Statistics


class _Context:
    """Which other rows tell the scale of a row: its parameter, its update, its value before or after the step."""

    def __init__(self, grid: Grid, s: Ints, c: Ints, q: Ints) -> None:
        self.s, self.c, self.q = s, c, q
        names = np.array(grid.names, dtype=object)[q]
        self.is_update = names == "update"
        self.is_param = np.isin(names, ("param", "param_in"))
        self.is_grad = np.array([is_grad(name) for name in names], bool)
        self.is_state = np.array([name.startswith(("state.", "group.")) for name in names], bool)
        after = {name: grid.number(after_name(name)) for name in grid.names}
        self.after = np.array([after[name] if after[name] is not None else -1 for name in names], np.int64)
        self.is_before = np.array([name.partition(".")[0].endswith("_in") for name in names], bool)
        self.update, self.param = grid.number("update"), grid.number("param")

    def rows(self, at: NDArray[np.int32], before: NDArray[np.int32]) -> tuple[NDArray[np.int32], ...]:
        """Rows of the grid for the update, the parameter, and the other end of the step, [n] each; -1 where none."""
        none = np.full(len(self.s), -1, np.int32)
        update = at[self.s, self.c, self.update] if self.update is not None else none
        param = at[self.s, self.c, self.param] if self.param is not None else none
        update = np.where(self.is_update | self.is_param, update, -1)
        param = np.where(self.is_update, param, -1)
        after = np.where(self.after >= 0, at[self.s, self.c, self.after], -1)
        other = np.where(self.is_before, after, before[self.s, self.c, self.q])
        other = np.where(self.is_grad | self.is_update, -1, other)
        return update, param, other

    def scale(self, body: _Body, at: NDArray[np.int32], before: NDArray[np.int32], own: Ints) -> _Scale:
        """What one side contributes to the scale of each row."""
        update, param, other = (body.find(row) for row in self.rows(at, before))
        base = np.where(self.is_update & (param >= 0), param, own)
        value, change = body.sample(base), body.sample(update)
        numel = np.maximum(np.nan_to_num(body.number("numel", own), nan=1.0), 1.0)
        with np.errstate(invalid="ignore"):
            from_update = np.where(self.is_before[:, None], value + change, value - change)
            old = np.where((update >= 0)[:, None], from_update, body.sample(other))
            moved = body.sample(own) - old
            sampled = np.isfinite(moved)
            mean_square = (np.where(sampled, moved, 0.0) ** 2).sum(axis=1) / np.maximum(sampled.sum(axis=1), 1)
            magnitude = np.fmax(np.abs(value), np.abs(old))
            root = np.sqrt(numel)
            ends = body.number("l2", own) + np.nan_to_num(body.number("l2", other))
            rms = np.where(sampled.any(axis=1), np.sqrt(mean_square), ends / root)
            rms = np.where((other < 0) & self.is_param, 0.0, rms)  # start values: no step has changed them
            norm = body.number("l2", update) / root
            seen = np.isfinite(change)
            squares = (np.where(seen, change, 0.0) ** 2).sum(axis=1) / np.maximum(seen.sum(axis=1), 1)
            norm = np.where(np.isnan(norm) & seen.any(axis=1), np.sqrt(squares), norm)  # only its sample is known
            rms = np.where(update >= 0, norm, rms)
            rms = np.where(self.is_grad, body.number("l2", own) / root, rms)
        return _Scale(magnitude, old, rms, body.statistics(base))


def _formats(
    numbering: Numbering, context: _Context, cell: Ints, one: tuple[_Body, Ints], other: tuple[_Body, Ints]
) -> tuple[Floats, Floats]:
    """Eps and smallest normal number of the coarser dtype of each row; for an update those of its parameter."""
    eps, tiny = [], []
    for (body, row), name in ((one, "dtype_a"), (other, "dtype_b")):
        words = [getattr(c, name) for c in numbering.cells]
        declared = np.array([eps_of(word) if word else np.nan for word in words])[cell]
        least = np.array([tiny_of(word) if word else np.nan for word in words])[cell]
        use = context.is_update & ~np.isnan(declared)
        eps.append(np.where(use, declared, body.per_dtype(row, eps_of)))
        tiny.append(np.where(use, least, body.per_dtype(row, tiny_of)))
    return np.fmax(*eps), np.fmax(*tiny)
