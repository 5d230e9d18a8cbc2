"""Statistics and samples of rows that differ, read for a few parameters at a time, so that memory stays bounded."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optrace.compare.columns import KEYS, Floats, Ints, Numbering, Rows, Side, joined
from optrace.compare.tolerance import Statistics

ROWS_AT_ONCE = 128_000
"""Rows of one side that are read together at least, where a stretch has so many."""

_NUMBERS = ("numel", "mean", "l1", "l2", "min", "max", "n_nan", "n_inf")
_READ = (*KEYS, "dtype", *_NUMBERS, "sample")

Place = NDArray[np.int32]


class Words:
    """Numbers for the names of dtypes, the same for all that is read; may be used by several threads."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._codes: dict[str, int] = {}
        self._lock = threading.Lock()

    def codes(self, names: list[str]) -> Ints:
        """The number of each name, [n]."""
        with self._lock:
            for name in names:
                if name not in self._codes:
                    self._codes[name] = len(self.names)
                    self.names.append(name)
            return np.array([self._codes[name] for name in names], np.int64)


@dataclass
class Kept:
    """What the end of a stretch leaves to the next, which begins with it: rows of its last step, by side."""

    parts: tuple[list[Rows], list[Rows]] = field(default_factory=lambda: ([], []))
    words: Words = field(default_factory=Words)

    def take(self) -> tuple[Rows | None, Rows | None]:
        """The rows of either side, None where there are none; they are forgotten here."""
        found = tuple(joined(parts) if parts else None for parts in self.parts)
        for parts in self.parts:
            parts.clear()
        return found[0], found[1]


def blocks(numbering: Numbering, sides: tuple[Rows, Rows], cell: Ints) -> Iterator[Ints]:
    """The cells that occur in `cell`, cut into blocks of cells whose rows lie together on disk and are read together.

    Sealed segments are in order of optimizer and name.
    """
    counts = np.zeros(len(numbering.cells), np.int64)
    for rows in sides:
        np.maximum(counts, np.bincount(rows.cell, minlength=len(counts)), out=counts)
    wanted = [int(number) for number in np.flatnonzero(np.bincount(cell, minlength=len(counts)))]
    wanted.sort(key=lambda number: (numbering.cells[number].pair, numbering.cells[number].param_a.encode()))
    block: list[int] = []
    n_rows = 0
    for number in wanted:
        block.append(number)
        n_rows += int(counts[number])
        if n_rows >= ROWS_AT_ONCE:
            yield np.array(block, np.int64)
            block, n_rows = [], 0
    if block:
        yield np.array(block, np.int64)


@dataclass(frozen=True)
class Body:
    """Statistics and samples of rows of one side, found by their place; dtypes are numbers into `words`."""

    rows: Rows
    words: Words

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def samples(self) -> Floats:
        """Samples of all rows, [m, 16]."""
        samples: Floats = self.rows.columns["sample"]
        return samples

    def number(self, name: str, row: Place) -> Floats:
        """A column [n] as float64; NaN where there is no row."""
        return _taken(self.rows.columns[name], row)

    def statistics(self, row: Place) -> Statistics:
        """Statistics of rows."""
        return Statistics(*(self.number(name, row) for name in _NUMBERS))

    def dtype(self, row: Place) -> Ints:
        """Numbers of the dtypes of rows that are there, [n]."""
        codes: Ints = self.rows.columns["dtype"]
        return codes[row]

    def per_dtype(self, row: Place, number: Callable[[str], float]) -> Floats:
        """A number of each row's dtype, [n]; NaN where there is no row."""
        table = np.array([*map(number, self.words.names), np.nan])
        codes = self.dtype(row) if len(self) else np.full(len(row), -1)
        return table[np.where(row >= 0, codes, -1)]


class Reading:
    """What was read of one side for a block of cells, found by row of the grid."""

    def __init__(
        self,
        side: Side,
        numbering: Numbering,
        head: Rows,
        inside: NDArray[np.bool_],
        needed: Place,
        words: Words,
        kept: Rows | None,
    ) -> None:
        """Read what `needed` rows of the grid (-1: none) say; they are rows of cells that are `inside`, [cells].

        `kept` are rows of the step before the stretch that need not be read again.
        """
        needed = needed[needed >= 0]
        steps = head.step[needed]
        first, last = int(steps.min()), int(steps.max())
        self._kept: Rows | None = None
        if kept is not None and len(kept):
            before = int(kept.step[0])
            old = needed[steps <= before]
            if first == before < last and len(old) and _has(kept, head, old, numbering):
                self._kept, first = kept.at(np.flatnonzero(inside[kept.cell])), int(steps[steps > before].min())
        rows = side.load(first, last, _READ, param=_names(side, numbering, inside))
        codes, names = rows.columns["dtype"]
        dtype = words.codes(names)[codes] if names else np.empty(0, np.int64)
        self.body = Body(Rows(rows.step, rows.cell, rows.quantity, {**rows.columns, "dtype": dtype}), words)
        here = np.flatnonzero(inside[head.cell] & (head.step >= first) & (head.step <= last))
        self._place = _places(head, here, rows, numbering)
        if self._kept is not None and len(self._kept):
            here = np.flatnonzero(inside[head.cell] & (head.step == int(self._kept.step[0])))
            place = _places(head, here, self._kept, numbering)
            self._place = np.where(place >= 0, place + np.int32(len(rows)), self._place)

    def find(self, at: Place) -> Place:
        """Place in `body` for each row of the grid, beyond its end for kept rows; -1 for -1."""
        if not len(self._place):
            return np.full(len(at), -1, np.int32)
        return np.where(at >= 0, self._place[at], np.int32(-1))

    def together(self, places: Place) -> tuple[Body, Place]:
        """The rows at some places, kept ones too, as a body of their own, and their places in it."""
        used = np.unique(places[places >= 0])
        here, beyond = used[used < len(self.body)], used[used >= len(self.body)] - len(self.body)
        parts = [self.body.rows.at(here), *([self._kept.at(beyond)] if self._kept is not None else ())]
        found = np.where(places >= 0, np.searchsorted(used, places), -1).astype(np.int32)
        return Body(joined(parts), self.body.words), found

    def last(self, step: int) -> Rows:
        """Copies of the rows of a step, for `Kept`."""
        return self.body.rows.at(np.flatnonzero(self.body.rows.step == step))


def _names(side: Side, numbering: Numbering, inside: NDArray[np.bool_]) -> tuple[str, ...] | None:
    """The side's own names of the cells inside; None where these are all."""
    if inside.all():
        return None
    cells = (numbering.cells[int(number)] for number in np.flatnonzero(inside))
    return tuple(dict.fromkeys(cell.param_a if side.is_a else cell.param_b for cell in cells))


def _places(head: Rows, here: Ints, rows: Rows, numbering: Numbering) -> Place:
    """Where each row of `head` is among `rows`, [len(head)]; -1 for those that are not `here`.

    What was read twice from the same files comes in the same order; where it does not (a segment was sealed meanwhile,
    or names of others came along), rows are found by their keys.
    """
    place = np.full(len(head), -1, np.int32)
    shape = len(numbering.cells), len(numbering.quantities)
    wanted, there = head.at(here, keys_only=True).keys(*shape), rows.keys(*shape)
    if len(wanted) == len(there) and (wanted == there).all():
        place[here] = np.arange(len(here), dtype=np.int32)
    elif len(there):
        order = np.argsort(there, kind="stable")
        found = np.minimum(np.searchsorted(there, wanted, sorter=order), len(order) - 1)
        place[here] = np.where(there[order[found]] == wanted, order[found], -1)
    return place


def _has(kept: Rows, head: Rows, rows: Place, numbering: Numbering) -> bool:
    """Whether all those rows of `head` were kept."""
    shape = len(numbering.cells), len(numbering.quantities)
    return bool(np.isin(head.at(rows, keys_only=True).keys(*shape), kept.keys(*shape)).all())


def _taken(values: NDArray[Any], row: Place) -> Floats:
    if not len(values):
        return np.full(len(row), np.nan)
    taken: Floats = values[row].astype(np.float64, copy=False)
    missing = row < 0
    if missing.any():
        taken[missing] = np.nan
    return taken
