"""Rows of the table `tensors` of either side as NumPy columns under one numbering: A's steps, cells and quantities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optrace.compare.arrow import coded, integers, lists, numbers
from optrace.compare.match import Cell, Matching
from optrace.compare.names import Renaming
from optrace.compare.source import Source, param_rows
from optrace.trace.reader import Trace

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

HEAD = ("step", "optimizer", "group", "param", "quantity", "present", "fingerprint")
"""What is read of every row."""
KEYS = HEAD[:5]
BODY = (*HEAD, "dtype", "numel", "mean", "l1", "l2", "min", "max", "n_nan", "n_inf", "n_zero", "sample")
"""What is read of rows that differ."""


class Numbering:
    """Numbers for the cells and quantities that two sides share; grows as rows turn up.

    Cells come from the table `params`; rows under other names (state of an optimizer as a whole, scalars of a group)
    get cells of their own, matched by equal names.
    """

    def __init__(self, matching: Matching, renaming: Renaming) -> None:
        self.matching = matching
        self.renaming = renaming
        self.cells: list[Cell] = list(matching.cells)
        self.quantities: list[str] = []
        """A's names, B's where A has none."""
        self.names_a: set[str] = set()
        self._codes: dict[str, int] = {}
        self._of_b: dict[str, str] = {}
        self._loose: dict[tuple[int, str, int], int] = {}

    def quantity_a(self, name: str) -> int:
        """Number of A's quantity."""
        if name not in self.names_a:
            self.names_a.add(name)
            other = self.renaming.quantity(name)
            if other != name:
                self.rename(name, other)
        if name not in self._codes:
            self._codes[name] = len(self.quantities)
            self.quantities.append(name)
        return self._codes[name]

    def quantity_b(self, name: str) -> int:
        """Number of B's quantity, which may have another name in A."""
        name = self._of_b.get(name, name)
        if name not in self._codes:
            self._codes[name] = len(self.quantities)
            self.quantities.append(name)
        return self._codes[name]

    def rename(self, name_a: str, name_b: str) -> None:
        """Say that B's `name_b` is A's `name_a`; for a state also before the step."""
        self._of_b[name_b] = name_a
        if name_a.startswith("state.") and name_b.startswith("state."):
            self._of_b["state_in." + name_b.removeprefix("state.")] = "state_in." + name_a.removeprefix("state.")

    def name_in_b(self, quantity: int) -> str:
        """B's name of a quantity."""
        name = self.quantities[quantity]
        return next((b for b, a in self._of_b.items() if a == name), name)

    def loose(self, pair: int, name_a: str, name_b: str, group_a: int, group_b: int) -> int:
        """Cell of rows that belong to no parameter of the table `params`."""
        key = (pair, name_b, group_a)
        if key not in self._loose:
            self._loose[key] = len(self.cells)
            self.cells.append(Cell(pair, name_a, name_b, group_a, group_b, None, None, "", ""))
        return self._loose[key]


@dataclass(frozen=True)
class Rows:
    """Rows of one side: their place under the numbering and the columns that were read."""

    step: Ints
    """A's number of the step."""
    cell: Ints
    quantity: Ints
    columns: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.step)

    def keys(self, n_cells: int, n_quantities: int) -> Ints:
        """One number a row; steps above 2**63 / (cells * quantities) do not occur."""
        return (self.step * n_cells + self.cell) * n_quantities + self.quantity

    def at(self, place: Any, keys_only: bool = False) -> Rows:
        """Some of the rows, in that order; all columns must be plain arrays, unless only the keys are wanted."""
        columns = {} if keys_only else {name: column[place] for name, column in self.columns.items()}
        return Rows(self.step[place], self.cell[place], self.quantity[place], columns)

    def texts(self, name: str) -> NDArray[np.object_]:
        """A string column as objects."""
        codes, words = self.columns[name]
        return np.array(words, dtype=object)[codes] if len(words) else np.empty(0, object)


def joined(parts: Sequence[Rows]) -> Rows:
    """Rows one after the other; all have the same columns, plain arrays."""
    if len(parts) == 1:
        return parts[0]
    columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}
    return Rows(
        np.concatenate([part.step for part in parts]),
        np.concatenate([part.cell for part in parts]),
        np.concatenate([part.quantity for part in parts]),
        columns,
    )


class Side:
    """Loads rows of one source under a numbering."""

    def __init__(self, source: Source, numbering: Numbering, offsets: Sequence[int], is_a: bool) -> None:
        """`offsets`: for each pair what is added to this side's step numbers to give A's."""
        self.source = source
        self.numbering = numbering
        self.offsets = offsets
        self.is_a = is_a
        pairs = numbering.matching.pairs
        self._pair_of = {pair.a if is_a else pair.b: number for number, pair in enumerate(pairs)}
        self._only = next(iter(self._pair_of)) if len(self._pair_of) == 1 else None
        self._cells: dict[tuple[int, str], int] = {}
        for number, cell in enumerate(numbering.matching.cells):
            self._cells[cell.pair, cell.param_a if is_a else cell.param_b] = number
        self._groups: list[dict[int, int]] = [dict(numbering.matching.groups(p)) for p in range(len(pairs))]
        if not is_a:
            self._groups = [{b: a for a, b in reversed(groups.items())} for groups in self._groups]
        self._coded: dict[str, Any] = {"coded": True} if isinstance(source.trace, Trace) else {}
        self._known = {(row["optimizer"], row["param"]) for row in param_rows(source)}

    def load(
        self,
        low: int,
        high: int,
        columns: Sequence[str],
        param: str | Sequence[str] | None = None,
        quantity: str | None = None,
    ) -> Rows:
        """Rows of A's steps low to high, both included; `param` and `quantity` are this side's own names.

        Rows of unmatched optimizers and parameters and of steps outside the source's stretch are left out.
        """
        return self.rows(self.read(low, high, columns, param, quantity), low, high, columns)

    def read(
        self,
        low: int,
        high: int,
        columns: Sequence[str],
        param: str | Sequence[str] | None = None,
        quantity: str | None = None,
    ) -> Any:
        """The Arrow table that `rows` makes rows of: what of `load` takes time and numbers nothing."""
        own = (low - max(self.offsets), high - min(self.offsets))
        stretch_low, stretch_high = self.source.steps
        own = (
            own[0] if stretch_low is None else max(own[0], stretch_low),
            own[1] if stretch_high is None else min(own[1], stretch_high),
        )
        asked = {"step": own, "optimizer": self._only, "param": param, "quantity": quantity, "columns": list(columns)}
        return self.source.trace.arrow("tensors", **asked, **self._coded)

    def rows(self, table: Any, low: int, high: int, columns: Sequence[str]) -> Rows:
        """Rows of a table that `read` returned for the same steps and columns."""
        step = integers(table.column("step"))
        optimizer = integers(table.column("optimizer"))
        pair = self._pairs(optimizer)
        step = step + np.array(self.offsets, np.int64)[pair]
        cell = self._cell_numbers(table, optimizer, pair)
        quantity_numbers = self._quantity_numbers(table)
        keep = (pair >= 0) & (cell >= 0) & (step >= low) & (step <= high)
        kept = slice(None) if keep.all() else np.flatnonzero(keep)
        taken = {
            name: _column(table.column(name), kept)
            for name in columns
            if name not in ("step", "optimizer", "group", "param", "quantity")
        }
        return Rows(step[kept], cell[kept], quantity_numbers[kept], taken)

    def _pairs(self, optimizer: Ints) -> Ints:
        size = max(int(optimizer.max(initial=0)), max(self._pair_of, default=0)) + 1
        lookup = np.full(size, -1, np.int64)
        for index, number in self._pair_of.items():
            lookup[index] = number
        return lookup[optimizer]

    def _cell_numbers(self, table: Any, optimizer: Ints, pair: Ints) -> Ints:
        codes, names = coded(table.column("param"))
        if not names:
            return np.empty(0, np.int64)
        joint = np.where(pair >= 0, pair, 0) * len(names) + codes
        lookup = np.full(len(self._pair_of) * len(names), -1, np.int64)
        loose = []
        for number in np.flatnonzero(np.bincount(joint[pair >= 0], minlength=len(lookup))):
            which, name = divmod(int(number), len(names))
            known = self._cells.get((which, names[name]))
            if known is not None:
                lookup[number] = known
            else:
                loose.append(number)
        cells = np.where(pair >= 0, lookup[joint], -1)
        for number in loose:
            which, code = divmod(int(number), len(names))
            own = self.numbering.matching.pairs[which]
            if (own.a if self.is_a else own.b, names[code]) in self._known:
                continue  # a parameter that the other side lacks
            rows = np.flatnonzero((joint == number) & (pair >= 0))
            groups = numbers(table.column("group"))[rows]
            for group in np.unique(groups):
                cells[rows[groups == group]] = self._loose(which, names[code], int(group))
        return cells

    def _loose(self, pair: int, name: str, group: int) -> int:
        other = self._groups[pair].get(group, group)
        if self.is_a:
            return self.numbering.loose(pair, name, self.numbering.renaming.name(name) if name else name, group, other)
        return self.numbering.loose(pair, name, name, other, group)

    def _quantity_numbers(self, table: Any) -> Ints:
        codes, names = coded(table.column("quantity"))
        number = self.numbering.quantity_a if self.is_a else self.numbering.quantity_b
        used = np.bincount(codes, minlength=len(names)) if names else ()
        lookup = np.array([number(name) if count else -1 for name, count in zip(names, used, strict=True)], np.int64)
        return lookup[codes] if names else np.empty(0, np.int64)


def _column(column: Any, kept: Any) -> Any:
    import pyarrow as pa

    if pa.types.is_string(column.type) or pa.types.is_dictionary(column.type):
        codes, words = coded(column)
        return codes[kept], words
    if pa.types.is_fixed_size_list(column.type):
        return lists(column)[kept]
    return numbers(column)[kept]
