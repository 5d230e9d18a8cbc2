"""A rank's trace in which some parameters have the names that they have in the run as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from optrace.trace.arrays import booleans, elements, numbers, strings
from optrace.trace.merge import coded as codes_of
from optrace.trace.own import rows_of
from optrace.trace.reader import Trace
from optrace.trace.select import Selection, matches


class RenamedTrace(Trace):
    """Rows of `params` and `tensors`, and whole values, under the new names; all else as the rank recorded it."""

    def __init__(
        self, path: Path, info: dict[str, Any], rank: tuple[int, int], names: Mapping[tuple[int, str], str]
    ) -> None:
        """`names`: optimizer and recorded name to the new one."""
        super().__init__(path, info, rank)
        self._new = dict(names)
        self._recorded = {(optimizer, new): name for (optimizer, name), new in names.items()}

    def params_rows(self) -> list[Any]:
        """The rows of params.json with the new names."""
        return self._cached(
            "renamed",
            lambda: [
                {**row, "param": self._new.get((row["optimizer"], row["param"]), row["param"])}
                for row in rows_of(super(RenamedTrace, self).params_rows())
            ],
        )

    def stored(
        self,
        name: str,
        selection: Selection,
        columns: Sequence[str] | None,
        after: Mapping[int, int] | None = None,
        coded: bool = False,
    ) -> Any:
        """Rows of a stored table; parameters are selected by the new names."""
        if name != "tensors":
            return super().stored(name, selection, columns, after, coded)
        patterns = selection.names.get("param")
        if patterns is not None:
            known = {(0, ""), *((row["optimizer"], row["param"]) for row in self.params_rows())}
            recorded = {self._recorded.get(key, key[1]) for key in known if matches(key[1], patterns)}
            names = {**selection.names, "param": tuple(sorted(recorded))}
            selection = Selection(selection.first, selection.last, selection.optimizer, names)
        read = None if columns is None else list(dict.fromkeys([*columns, "optimizer", "param"]))
        rows = self._renamed(super().stored(name, selection, read, after, coded))
        mask = None if patterns is None else Selection(names={"param": patterns}).mask(rows)
        rows = rows if mask is None else rows.filter(booleans(mask))
        return rows if columns is None else rows.select(list(columns))

    def _renamed(self, rows: Any) -> Any:
        import pyarrow as pa

        optimizer = elements(rows.column("optimizer")).astype(np.int64)
        param, words = codes_of(rows.column("param"))
        pairs, at = np.unique(optimizer * len(words) + param, return_inverse=True)
        each = [(pair // len(words), words[pair % len(words)]) for pair in pairs.tolist()]
        new = [self._new.get(key, key[1]) for key in each]
        unique = list(dict.fromkeys(new))
        numbers_of = np.array([unique.index(name) for name in new], np.int32)[at] if new else param.astype(np.int32)
        place = rows.schema.get_field_index("param")
        field = rows.schema.field(place)
        column = pa.DictionaryArray.from_arrays(numbers(numbers_of), strings(unique))
        return rows.set_column(place, field, column.cast(field.type))

    def value_in_files(self, step: int, param: str, quantity: str, optimizer: int) -> npt.NDArray[Any] | None:
        """What a values file has of the parameter of that new name; None where none has."""
        name = self._recorded.get((optimizer, param), param)
        return super().value_in_files(step, name, quantity, optimizer)
