"""Rows that only one side has: data that is missing, or structure that the other side never had."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from optrace.compare.columns import Ints, Numbering
from optrace.compare.grid import Bools, Grid
from optrace.compare.match import told_to_skip
from optrace.compare.order import rank_of
from optrace.compare.source import Source

_BEFORE = ("param_in", "state_in", "group_in")


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

    def __init__(self, a: Source, b: Source, numbering: Numbering, offsets: Sequence[int]) -> None:
        self._a, self._b = a, b
        self._numbering = numbering
        self._offsets = offsets
        self._absent: dict[tuple[int, str, bool], Absence] = {}
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
        cells, quantities = np.nonzero(alone.any(axis=0))
        for cell, quantity in zip(cells, quantities, strict=True):
            rows = np.flatnonzero(alone[:, cell, quantity])
            for only_in_a in (True, False):
                own = rows[has_a[rows, cell, quantity] == only_in_a]
                if len(own):
                    key = (int(cell), grid.names[quantity], only_in_a)
                    known = self._absent.setdefault(key, Absence(*key, int(grid.steps[own[0]]), 0))
                    known.count += len(own)

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
        notes = []
        for (pair, quantity, only_in_a), absences in sorted(lacking.items()):
            matched = self._numbering.matching.pairs[pair]
            here, there = ("{A}", "{B}") if only_in_a else ("{B}", "{A}")
            other = self._b if only_in_a else self._a
            name = self._numbering.renaming.quantity(quantity) if only_in_a else quantity
            if told_to_skip(other, "quantities", name):
                notes.append(f"{quantity} was not compared: {there} was told not to record it")
            elif not quantity.startswith(("state.", "group.")) or not other.recorded:
                notes.append(f"{quantity} was not compared: {there} has none")
            elif matched.class_a != matched.class_b:
                notes.append(f"{here} has {quantity}, which {there} has not")
            else:
                missing += absences
        return Verdict(tuple(missing), tuple(notes))
