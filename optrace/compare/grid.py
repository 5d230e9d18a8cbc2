"""Rows of both sides over one stretch of steps, laid out by (step, cell, quantity) so that each finds its partner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optrace.compare.columns import HEAD, Ints, Numbering, Rows, Side, joined
from optrace.compare.threads import in_threads

Index = NDArray[np.int32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Grid:
    """Positions of rows, each array [steps, cells, quantities]; -1 where a side has no row."""

    steps: Ints
    """A's numbers, ascending. The first `overlap` of them come before this stretch: the last step that was compared,
    and later ones that one side alone recorded."""
    overlap: int
    rows_a: Rows
    rows_b: Rows
    at_a: Index
    at_b: Index
    before_a: Index
    """The row that holds a quantity's value before the step: its `_in` row, or its row of the last recorded step."""
    before_b: Index
    differs: Bools
    """Rows on both sides whose fingerprints differ, or of which one is a gradient that was None."""
    names: tuple[str, ...]
    """A's names of the quantities."""

    @property
    def both(self) -> Bools:
        """Where both sides have a row."""
        return (self.at_a >= 0) & (self.at_b >= 0)

    def number(self, name: str) -> int | None:
        """Position of a quantity; None when no row has it."""
        return self.names.index(name) if name in self.names else None

    @property
    def bases(self) -> list[tuple[int, int | None]]:
        """Quantities that a step carries on to the next, with their `_in` quantity: param, state.*, group.*."""
        found = []
        for number, name in enumerate(self.names):
            if name == "param" or name.startswith(("state.", "group.")):
                found.append((number, self.number(before_name(name))))
        return found


def before_name(name: str) -> str:
    """`param` -> `param_in`, `state.x` -> `state_in.x`."""
    kind, dot, key = name.partition(".")
    return f"{kind}_in{dot}{key}"


def after_name(name: str) -> str:
    """`param_in` -> `param`, `state_in.x` -> `state.x`; others as they are."""
    kind, dot, key = name.partition(".")
    return kind.removesuffix("_in") + dot + key


@dataclass
class LastRows:
    """What the end of a stretch leaves to the next, which begins with it: the rows of its last step, by side."""

    step: int | None = None
    rows: tuple[Rows, ...] = ()

    def keep(self, step: int, rows: Sequence[Rows]) -> None:
        """Take copies of the rows of a step."""
        self.step = step
        self.rows = tuple(side.at(np.flatnonzero(side.step == step)) for side in rows)


def lay_out(
    side_a: Side,
    side_b: Side,
    numbering: Numbering,
    low: int,
    high: int,
    previous: int | None,
    last: LastRows | None = None,
) -> Grid:
    """Load A's steps low to high from both sides; `previous` is the last compared step before them, loaded along.

    `last`: the same object for stretches that follow each other, so that their common step is read once.
    """
    kept = last.rows if last is not None and last.step is not None and last.step == previous else ()
    start = low if previous is None else previous + 1 if kept else previous
    sides = side_a, side_b
    tables = in_threads(lambda side: side.read(start, high, HEAD), sides)
    rows = [side.rows(table, start, high, HEAD) for side, table in zip(sides, tables, strict=True)]
    del tables
    rows = [joined(parts) for parts in zip(kept, rows, strict=True)] if kept else rows
    if last is not None:
        last.keep(high, rows)
    rows_a, rows_b = rows
    steps = _steps_of(rows_a, rows_b)
    overlap = int((steps < low).sum())
    n_cells, names = len(numbering.cells), tuple(numbering.quantities)
    shape = (len(steps), n_cells, len(names))
    at_a, at_b = _place(rows_a, steps, shape), _place(rows_b, steps, shape)
    before_a, before_b = np.full(shape, -1, np.int32), np.full(shape, -1, np.int32)
    for base, name in enumerate(names):
        if name != "param" and not name.startswith(("state.", "group.")):
            continue
        before = names.index(before_name(name)) if before_name(name) in names else None
        last_a, last_b = _last_before(at_a[:, :, base]), _last_before(at_b[:, :, base])
        if before is not None:
            in_a, in_b = at_a[:, :, before], at_b[:, :, before]
            told = (in_a >= 0) | (in_b >= 0)
            last_a, last_b = np.where(in_a >= 0, in_a, last_a), np.where(in_b >= 0, in_b, last_b)
            known = told & (last_a >= 0) & (last_b >= 0)
            at_a[:, :, before] = np.where(known, last_a, -1)
            at_b[:, :, before] = np.where(known, last_b, -1)
        before_a[:, :, base], before_b[:, :, base] = last_a, last_b
    differs = _differs(rows_a, rows_b, at_a, at_b)
    return Grid(steps, overlap, rows_a, rows_b, at_a, at_b, before_a, before_b, differs, names)


def _steps_of(*sides: Rows) -> Ints:
    """The steps that any side has a row of, ascending."""
    parts = []
    for rows in sides:
        if len(rows):
            first = int(rows.step.min())
            if int(rows.step.max()) - first <= 4 * len(rows):  # as a rule: steps follow each other
                parts.append(first + np.flatnonzero(np.bincount(rows.step - first)))
            else:
                parts.append(np.unique(rows.step))
    return np.unique(np.concatenate(parts)) if parts else np.empty(0, np.int64)


def _place(rows: Rows, steps: Ints, shape: tuple[int, int, int]) -> Index:
    at = np.full(shape, -1, np.int32)
    if len(rows):
        place = np.minimum(np.searchsorted(steps, rows.step), len(steps) - 1)
        fits = steps[place] == rows.step
        at[place[fits], rows.cell[fits], rows.quantity[fits]] = np.flatnonzero(fits)
    return at


def _last_before(at: Index) -> Index:
    """For each step the last earlier position that is not -1; [steps, cells]."""
    result = np.full_like(at, -1)
    if len(at) > 1:
        latest = np.where(at >= 0, np.arange(len(at))[:, None], -1)
        latest = np.maximum.accumulate(latest, axis=0)[:-1]
        found = np.take_along_axis(at, np.maximum(latest, 0), axis=0)
        result[1:] = np.where(latest >= 0, found, -1)
    return result


def _differs(rows_a: Rows, rows_b: Rows, at_a: Index, at_b: Index) -> Bools:
    differs = np.zeros(at_a.shape, bool)
    both = np.flatnonzero((at_a >= 0) & (at_b >= 0))
    one, other = at_a.ravel()[both], at_b.ravel()[both]
    unequal = rows_a.columns["fingerprint"][one] != rows_b.columns["fingerprint"][other]
    unequal |= rows_a.columns["present"][one] != rows_b.columns["present"][other]
    differs.ravel()[both[unequal]] = True
    return differs
