"""Rows that only one side has: data that is missing, or structure that the other side never had."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optrace.compare.columns import HEAD, Ints, Numbering, Side
from optrace.compare.grid import Bools, Grid
from optrace.compare.match import one_class, told_to_skip
from optrace.compare.order import rank_of

_BEFORE = ("param_in", "state_in", "group_in")
_COUNTER = "state.step"
_IDLE = (*HEAD, "l2", "n_nan", "n_inf")


@dataclass
class Absence:
    """Rows of one cell and quantity that one side lacks."""

    cell: int
    quantity: str
    only_in_a: bool
    step: int
    """First of them, A's number."""
    count: int


@dataclass(frozen=True)
class Verdict:
    """Absences that are differences, and notes on those that are structure."""

    missing: tuple[Absence, ...]
    notes: tuple[str, ...]


class Presence:
    """Collects, stretch by stretch, which rows have no partner."""

    def __init__(self, a: Side, b: Side, numbering: Numbering, offsets: Sequence[int]) -> None:
        self._sides = a, b
        self._a, self._b = a.source, b.source
        self._numbering = numbering
        self._offsets = offsets
        self._absent: dict[tuple[int, str, bool], Absence] = {}
        self._begun = np.zeros((2, 0, 0), bool)
        """By side, cell and quantity: state that the side has used, or the other side has had."""
        self._early: set[tuple[int, int, str]] = set()
        """State (side, pair, quantity) that one side makes before it is first used."""
        self._seen_a: set[tuple[int, str]] = set()
        self._seen_b: set[tuple[int, str]] = set()

    def add(self, grid: Grid, common: Bools, pair_of: Ints) -> None:
        """Take note of a stretch; `common` says which steps both sides recorded, [steps, pairs]."""
        has_a, has_b = grid.at_a >= 0, grid.at_b >= 0
        for number, name in enumerate(grid.names):
            for pair in np.unique(pair_of[has_a[:, :, number].any(axis=0)]):
                self._seen_a.add((int(pair), name))
            for pair in np.unique(pair_of[has_b[:, :, number].any(axis=0)]):
                self._seen_b.add((int(pair), name))
        alone = (has_a != has_b) & common[:, pair_of][:, :, None]
        alone[: grid.overlap] = False
        starts = self._starts(grid, pair_of)
        for number, name in enumerate(grid.names):
            if name.partition(".")[0] in _BEFORE:
                alone[:, :, number] = False
            elif rank_of(name) and not name.startswith(("param", "state.")):
                alone[:, :, number] &= ~starts
        self._forgive_early(grid, alone, (has_a, has_b))
        cells, quantities = np.nonzero(alone.any(axis=0))
        for cell, quantity in zip(cells, quantities, strict=True):
            rows = np.flatnonzero(alone[:, cell, quantity])
            for only_in_a in (True, False):
                own = rows[has_a[rows, cell, quantity] == only_in_a]
                if len(own):
                    key = (int(cell), grid.names[quantity], only_in_a)
                    known = self._absent.setdefault(key, Absence(*key, int(grid.steps[own[0]]), 0))
                    known.count += len(own)

    def _forgive_early(self, grid: Grid, alone: Bools, has: tuple[Bools, Bools]) -> None:
        """Take out of `alone` state that one side has made and not yet used, where the other makes it when it does.

        Such state is all zeros, or its parameter's counter is; the other side must have none until then.
        """
        state = np.array([name.startswith("state.") for name in grid.names], bool)
        self._begun = _grown(self._begun, has[0].shape[1:])
        for side, other in ((0, 1), (1, 0)):
            open_ = (alone & has[side]).any(axis=0) & state & ~self._begun[side]
            if open_.any():
                cells = np.flatnonzero(open_.any(axis=1))
                ends = has[other] | (has[side] & ~self._idle(grid, side, cells)[:, :, None])
                before = ~np.logical_or.accumulate(ends, axis=0) & open_
                early = before & alone
                alone &= ~early
                self._begun[side] |= ends.any(axis=0) & open_
                for cell, number in zip(*np.nonzero(early.any(axis=0)), strict=True):
                    self._early.add((side, self._numbering.cells[cell].pair, grid.names[number]))
            self._begun[side] |= has[other].any(axis=0) & state

    def _idle(self, grid: Grid, side: int, cells: Ints) -> Bools:
        """Where all state of a cell is zeros, or its counter is, on one side, [steps, cells]."""
        idle = np.zeros((len(grid.steps), grid.at_a.shape[1]), bool)
        only = None
        if len(cells) == 1:
            cell = self._numbering.cells[int(cells[0])]
            only = (cell.param_b if side else cell.param_a) or None
        rows = self._sides[side].load(int(grid.steps[0]), int(grid.steps[-1]), _IDLE, param=only)
        names = self._numbering.quantities
        state = np.array([name.startswith("state.") for name in names], bool)[rows.quantity]
        counter = (np.array(names, object) == _COUNTER)[rows.quantity]
        zero = (rows.columns["l2"] == 0) & (rows.columns["n_nan"] == 0) & (rows.columns["n_inf"] == 0)
        place = np.searchsorted(grid.steps, rows.step), rows.cell
        used = np.zeros_like(idle)
        np.logical_or.at(used, tuple(part[state & ~zero] for part in place), True)
        np.logical_or.at(idle, tuple(part[state] for part in place), True)
        idle &= ~used
        np.logical_or.at(idle, tuple(part[counter & zero] for part in place), True)
        return idle

    def _starts(self, grid: Grid, pair_of: Ints) -> Bools:
        """Where a step is the world before step 1 on either side: it has parameters and state only, [steps, cells]."""
        offsets = np.array(self._offsets, np.int64)
        own_b = grid.steps[:, None] - offsets[None, :]
        starts: Bools = (grid.steps[:, None] == 0) | (own_b == 0)
        return starts[:, pair_of]

    @property
    def on_both(self) -> set[str]:
        """Quantities that both sides have."""
        return {name for _, name in self._seen_a & self._seen_b}

    def judge(self) -> Verdict:
        """Tell missing data from structure, now that everything has been seen."""
        missing: list[Absence] = []
        lacking: dict[tuple[int, str, bool], list[Absence]] = {}
        for absence in self._absent.values():
            pair = self._numbering.cells[absence.cell].pair
            seen = self._seen_b if absence.only_in_a else self._seen_a
            if (pair, absence.quantity) in seen:
                missing.append(absence)
            else:
                lacking.setdefault((pair, absence.quantity, absence.only_in_a), []).append(absence)
        notes = [
            f"{here} makes {', '.join(keys)} before its first step, {there} when it is first used"
            for number, here, there in ((0, "{A}", "{B}"), (1, "{B}", "{A}"))
            if (keys := sorted({q.removeprefix("state.") for side, pair, q in self._early if side == number}))
        ]
        for (pair, quantity, only_in_a), absences in sorted(lacking.items()):
            matched = self._numbering.matching.pairs[pair]
            here, there = ("{A}", "{B}") if only_in_a else ("{B}", "{A}")
            other = self._b if only_in_a else self._a
            name = self._numbering.renaming.quantity(quantity) if only_in_a else quantity
            if told_to_skip(other, "quantities", name):
                notes.append(f"{quantity} was not compared: {there} was told not to record it")
            elif not quantity.startswith(("state.", "group.")) or not other.recorded:
                notes.append(f"{quantity} was not compared: {there} has none")
            elif not one_class(self._a, self._b, matched):
                notes.append(f"{here} has {quantity}, which {there} has not")
            else:
                missing += absences
        return Verdict(tuple(missing), tuple(notes))


def _grown(flags: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The same flags with room for the cells and quantities that have turned up since, [2, cells, quantities]."""
    grown = np.zeros((len(flags), *shape), bool)
    grown[:, : flags.shape[1], : flags.shape[2]] = flags
    return grown
