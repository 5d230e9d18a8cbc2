"""Which rows of a table are wanted, told to Parquet's row-group statistics first and to the rows after."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from optrace.errors import TraceError
from optrace.trace.arrays import elements

_SPECIAL = re.compile(r"[*?\[]")

Names = str | Iterable[str] | None
Steps = int | tuple[int | None, int | None] | None


@dataclass(frozen=True)
class Selection:
    """Bounds of step (both included), an optimizer, patterns of names; None or empty means all."""

    first: int | None = None
    last: int | None = None
    optimizer: int | None = None
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Column (`param`, `quantity`) to exact names or globs, of which one must match."""

    @classmethod
    def of(cls, step: Steps, optimizer: int | None, param: Names, quantity: Names) -> Selection:
        """From the arguments of `Trace.table`; TraceError for a step that is neither a number nor a pair."""
        first: int | None
        last: int | None
        if step is None or isinstance(step, int | np.integer):
            first = last = None if step is None else int(step)
        else:
            try:
                first, last = (None if bound is None else int(bound) for bound in step)
            except (TypeError, ValueError):
                raise TraceError(f"step={step!r} selects nothing; give a number or (first, last)") from None
        names = {}
        for column, wanted in (("param", param), ("quantity", quantity)):
            if wanted is not None:
                names[column] = (wanted,) if isinstance(wanted, str) else tuple(wanted)
        return cls(first, last, optimizer, names)

    def columns(self, schema: Any) -> set[str]:
        """The columns that must be read to decide; TraceError when the table has no column of that name."""
        needed = set()
        if self.first is not None or self.last is not None:
            needed.add("step")
        if self.optimizer is not None:
            needed.add("optimizer")
        needed.update(self.names)
        for name in needed:
            if name not in schema.names:
                raise TraceError(f"this table has no {name} to select by; it has {', '.join(schema.names)}")
        return needed

    def reaches(self, span: tuple[int, int] | None) -> bool:
        """Whether a segment of those steps (None: not known) can hold wanted rows."""
        if span is None:
            return True
        return (self.last is None or span[0] <= self.last) and (self.first is None or span[1] >= self.first)

    def row_groups(self, metadata: Any) -> list[int]:
        """Which row groups of a Parquet file can hold wanted rows, judged by their statistics."""
        looked_at = {"step", "optimizer", *self.names} if self != Selection() else set()
        names = metadata.schema.names
        columns = [(number, name) for number, name in enumerate(names) if name in looked_at]
        groups = range(metadata.num_row_groups)
        return [number for number in groups if self._may_hold(metadata.row_group(number), columns)]

    def _may_hold(self, row_group: Any, columns: list[tuple[int, str]]) -> bool:
        for index, name in columns:
            statistics = row_group.column(index).statistics
            if statistics is None or not statistics.has_min_max:
                continue
            low, high = statistics.min, statistics.max
            if name == "step":
                fits = (self.last is None or low <= self.last) and (self.first is None or high >= self.first)
            elif name == "optimizer":
                fits = self.optimizer is None or low <= self.optimizer <= high
            else:
                fits = any(_reaches(pattern, low, high) for pattern in self.names[name])
            if not fits:
                return False
        return True

    def mask(self, rows: Any) -> npt.NDArray[np.bool_] | None:
        """For each row of a `pyarrow.Table` whether it is wanted; None for all."""
        masks: list[npt.NDArray[np.bool_]] = []
        if self.first is not None or self.last is not None:
            step = elements(rows.column("step"))
            if self.first is not None:
                masks.append(step >= self.first)
            if self.last is not None:
                masks.append(step <= self.last)
        if self.optimizer is not None:
            masks.append(elements(rows.column("optimizer")) == self.optimizer)
        masks.extend(_matching(rows.column(name), patterns) for name, patterns in self.names.items())
        return reduce(np.logical_and, masks) if masks else None


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name is one of the patterns or fits one of them as a glob (case matters)."""
    return any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns)


def _matching(column: Any, patterns: tuple[str, ...]) -> npt.NDArray[np.bool_]:
    import pyarrow as pa

    parts = [np.empty(0, np.bool_)]
    exact = set(patterns)
    globs = [pattern for pattern in patterns if _SPECIAL.search(pattern)]
    for chunk in column.chunks:
        encoded = chunk if isinstance(chunk, pa.DictionaryArray) else chunk.dictionary_encode()
        names = encoded.dictionary.to_pylist()
        fits = np.array([name in exact or matches(name, globs) for name in names], np.bool_)
        parts.append(fits[elements(encoded.indices)])
    return np.concatenate(parts)


def _reaches(pattern: str, low: str, high: str) -> bool:
    """Whether a name that fits the pattern can lie between two names (by code points, as Parquet's UTF-8 order is)."""
    special = _SPECIAL.search(pattern)
    if special is None:
        return low <= pattern <= high
    prefix = pattern[: special.start()]
    return low[: len(prefix)] <= prefix <= high[: len(prefix)] if prefix else True
