"""The noise of the reference: how far a second recording of A lies from A, row by row, as a floor for what differs.

Kernels that add in any order (atomics on a GPU, threads) give other bits each time, and from step to step the two drift
apart. How far a row of A and of its second recording lie apart is one draw of that noise, so a row's floor is the
largest error that its parameter and quantity have shown up to that step, and at least what is usual (the median) among
the noisy parameters of the same optimizer; of a row that has always repeated itself to the bit it is 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optrace.compare import evidence
from optrace.compare.bodies import Kept
from optrace.compare.columns import Floats, Ints, Numbering, Side
from optrace.compare.grid import Grid, LastRows, lay_out
from optrace.compare.match import Cell, Matching, match_sources
from optrace.compare.names import Renaming
from optrace.compare.source import Source
from optrace.compare.timeline import Timeline
from optrace.compare.tolerance import Tolerance

FACTOR = 3.0
"""Floors away from A beyond which a row differs."""


class NoiseFloor:
    """Reads A and a second recording of it, stretch by stretch; memory does not grow with their length."""

    def __init__(self, a: Source, again: Source) -> None:
        """CompareError when the two have no parameter or no step in common."""
        self.name = again.name
        self._matching = match_sources(a, again, Renaming())
        self._numbering = Numbering(self._matching, Renaming())
        offsets = [0] * len(self._matching.pairs)
        self._timeline = Timeline(a, again, self._matching, offsets)
        self._sides = (Side(a, self._numbering, offsets, is_a=True), Side(again, self._numbering, offsets, is_a=False))
        self._level = np.zeros((0, 0))
        self._previous: int | None = None
        self._kept = Kept()
        self._last = LastRows()
        self.last_step = int(self._timeline.steps[-1])
        """The last step that both recorded."""
        self.largest: tuple[float, int, str, str] | None = None
        """Largest finite error, in eps of its scale, with its step, quantity and parameter."""

    def any(self, rows_at_once: int) -> bool:
        """Whether A and its second recording differ in any bit; looks until it finds one."""
        steps = self._timeline.steps
        count = max(rows_at_once // (max(len(self._numbering.cells), 1) * 8), 1)
        done = 0
        while done < len(steps):
            part = steps[done : done + self._timeline.within(done, count)]
            if lay_out(*self._sides, self._numbering, int(part[0]), int(part[-1]), None).differs.any():
                return True
            done += len(part)
        return False

    def floors(self, grid: Grid, cells: Sequence[Cell], matching: Matching) -> Floats:
        """Floor of each row of a grid whose A is this A, in eps of its scale, [steps, cells, quantities].

        Grids have to come in the order of their steps.
        """
        low, high = int(grid.steps[min(grid.overlap, len(grid.steps) - 1)]), int(grid.steps[-1])
        own = lay_out(*self._sides, self._numbering, low, high, self._previous, self._last)
        shape = (len(self._numbering.cells), len(self._numbering.quantities))
        errors = np.zeros((len(own.steps), *shape))
        differs = own.differs.copy()
        differs[: own.overlap] = False  # they were judged in the stretch before, beside what came before them
        where = np.nonzero(differs)
        if len(where[0]):
            found = evidence.judge(own, *self._sides, self._numbering, where, Tolerance(), self._kept)
            errors[where] = found.step
            self._remember(own, where, found.step)
        both = np.flatnonzero(own.both.any(axis=(1, 2)))
        self._previous = int(own.steps[both[-1]]) if len(both) else self._previous
        before = np.zeros((1, *shape))
        before[0, : self._level.shape[0], : self._level.shape[1]] = self._level
        finite = np.where(np.isfinite(errors), errors, 0.0)
        level = np.maximum.accumulate(np.concatenate([before, finite]), axis=0)
        self._level = level[-1]
        floor = np.maximum(level, self._usual(level))
        floor[1:] = np.maximum(floor[1:], np.where(np.isfinite(errors), 0.0, np.inf))
        return self._onto(floor, own.steps, grid, cells, matching)

    def _usual(self, level: Floats) -> Floats:
        """Median of the noisy parameters of each optimizer and quantity; 0 for rows without noise of their own."""
        usual = np.zeros_like(level)
        pair_of = np.array([cell.pair for cell in self._numbering.cells])
        noisy = np.where(level > 0, level, np.nan)
        for pair in np.unique(pair_of):
            own = np.flatnonzero(pair_of == pair)
            s, q = np.nonzero((level[:, own] > 0).any(axis=1))
            if len(s):
                usual[s[:, None], own[None, :], q[:, None]] = np.nanmedian(noisy[:, own][s, :, q], axis=1)[:, None]
        return np.where(level > 0, usual, 0.0)

    def _onto(self, floor: Floats, steps: Ints, grid: Grid, cells: Sequence[Cell], matching: Matching) -> Floats:
        """The floor under the numbering of another grid; 0 where A has no second recording of a row."""
        pairs = self._matching.pairs
        known = {(pairs[c.pair].a, c.param_a, c.group_a): n for n, c in enumerate(self._numbering.cells)}
        at_cell = np.array([known.get((matching.pairs[c.pair].a, c.param_a, c.group_a), -1) for c in cells], np.int64)
        numbers = {name: n for n, name in enumerate(self._numbering.quantities)}
        at_name = np.array([numbers.get(name, -1) for name in grid.names], np.int64)
        place = np.searchsorted(steps, grid.steps, side="right")
        found = floor[np.ix_(place, np.maximum(at_cell, 0), np.maximum(at_name, 0))] if floor.size else None
        if found is None:
            return np.zeros((len(grid.steps), len(cells), len(grid.names)))
        return np.where((at_cell >= 0)[None, :, None] & (at_name >= 0)[None, None, :], found, 0.0)

    def _remember(self, own: Grid, where: tuple[Ints, ...], errors: Floats) -> None:
        finite = np.where(np.isfinite(errors), errors, -1.0)
        row = int(np.argmax(finite))
        if finite[row] > (self.largest[0] if self.largest else 0.0):
            cell = self._numbering.cells[int(where[1][row])]
            name = own.names[int(where[2][row])]
            self.largest = float(finite[row]), int(own.steps[where[0][row]]), name, cell.param_a
