"""Adds rows of `tensors` of many ranks up to rows of whole tensors, one rank after the other, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from optrace.errors import TraceError
from optrace.trace.arrays import booleans, elements, numbers
from optrace.trace.blocks import NOWHERE, Blocks
from optrace.trace.schema import SAMPLE_SLOTS, arrow_schema

Ints = npt.NDArray[np.int64]
Row = tuple[int, int, str, str]
"""Step, optimizer, param, quantity."""

KEYS = ("step", "optimizer", "group", "param", "quantity")

_PARAM_BITS, _QUANTITY_BITS, _OPTIMIZER_BITS = 20, 10, 8
_LOW = _PARAM_BITS + _QUANTITY_BITS + _OPTIMIZER_BITS
_COUNTS = ("n_nan", "n_inf", "n_zero")


class Names:
    """Numbers for params and quantities, the same for every rank; one number then stands for the place of a row."""

    def __init__(self) -> None:
        self.params: dict[tuple[str, int], int] = {}
        """(name, group) -> number; the group counts only where the name is empty."""
        self.quantities: dict[str, int] = {}
        self._param_list: list[str] = []
        self._quantity_list: list[str] = []

    def keys(self, rows: Any) -> Ints:
        """One number per row of a table that has the columns KEYS: equal for rows of the same tensor and step."""
        step, optimizer = elements(rows.column("step")), elements(rows.column("optimizer")).astype(np.int64)
        param, names = coded(rows.column("param"))
        quantity, words = coded(rows.column("quantity"))
        if any(not name for name in names):
            group = elements(rows.column("group"))
            table = {name: self._param(name, -1) for name in names if name}
            numbers_of = np.array([table.get(name, -1) for name in names], np.int64)[param]
            for one in np.unique(group[numbers_of < 0]).tolist():
                numbers_of[(numbers_of < 0) & (group == one)] = self._param("", one)
        else:
            numbers_of = np.array([self._param(name, -1) for name in names], np.int64)[param] if names else param
        kinds = np.array([self._quantity(word) for word in words], np.int64)[quantity] if words else quantity
        if len(self.params) >= 1 << _PARAM_BITS or len(self.quantities) >= 1 << _QUANTITY_BITS:
            raise TraceError(
                f"{len(self.params)} parameters of {len(self.quantities)} quantities are too many to merge"
            )
        if len(step) and (optimizer.max() >= 1 << _OPTIMIZER_BITS or step.max() >= 1 << (62 - _LOW)):
            raise TraceError("the ranks have too many optimizers or steps to merge")
        low = (optimizer << (_PARAM_BITS + _QUANTITY_BITS)) | (numbers_of << _QUANTITY_BITS) | kinds
        result: Ints = (step << _LOW) | low
        return result

    def _param(self, name: str, group: int) -> int:
        number = self.params.setdefault((name, group), len(self.params))
        if number == len(self._param_list):
            self._param_list.append(name)
        return number

    def _quantity(self, name: str) -> int:
        number = self.quantities.setdefault(name, len(self.quantities))
        if number == len(self._quantity_list):
            self._quantity_list.append(name)
        return number

    def place(self, low: int) -> tuple[int, str, str]:
        """Optimizer, param and quantity of a row's number without its step."""
        param = (low >> _QUANTITY_BITS) & ((1 << _PARAM_BITS) - 1)
        quantity = low & ((1 << _QUANTITY_BITS) - 1)
        return low >> (_PARAM_BITS + _QUANTITY_BITS), self._param_list[param], self._quantity_list[quantity]

    @property
    def param_words(self) -> list[str]:
        """Names by number."""
        return self._param_list

    @property
    def quantity_words(self) -> list[str]:
        """Quantities by number."""
        return self._quantity_list

    @staticmethod
    def quantity_numbers(keys: Ints) -> Ints:
        """The number of each row's quantity."""
        return keys & ((1 << _QUANTITY_BITS) - 1)

    @staticmethod
    def _parts(keys: Ints) -> tuple[Ints, Ints, Ints]:
        quantity = keys & ((1 << _QUANTITY_BITS) - 1)
        param = (keys >> _QUANTITY_BITS) & ((1 << _PARAM_BITS) - 1)
        return (keys >> (_PARAM_BITS + _QUANTITY_BITS)) & ((1 << _OPTIMIZER_BITS) - 1), param, quantity

    def columns(self, keys: Ints) -> dict[str, Any]:
        """The columns step, optimizer, param and quantity that numbers stand for, as Arrow arrays."""
        import pyarrow as pa

        optimizer, param, quantity = self._parts(keys)
        found = {"step": numbers(keys >> _LOW), "optimizer": numbers(optimizer.astype(np.int32))}
        for name, codes, words in (
            ("param", param, self.param_words),
            ("quantity", quantity, self.quantity_words),
        ):
            indices = numbers(codes.astype(np.int32))
            found[name] = pa.DictionaryArray.from_arrays(indices, _strings(words)).cast(pa.string())
        return found


def low_of(keys: Ints) -> Ints:
    """The numbers of rows without their steps."""
    return keys & ((1 << _LOW) - 1)


def step_of(keys: Ints) -> Ints:
    """The steps of rows."""
    return keys >> _LOW


class Placing:
    """For the rows of one rank the number of the block that each holds, and how many blocks make the whole."""

    def __init__(self, blocks: Blocks, names: Names, rank: int) -> None:
        self._blocks, self._names, self._rank = blocks, names, rank
        self._known: dict[int, tuple[int, int, bool, int]] = {}

    def of(self, keys: Ints) -> tuple[Ints, Ints, npt.NDArray[np.bool_], Ints]:
        """Number of the block, blocks of the whole (0: they do not cover it), whether they are summands, holders."""
        low, inverse = np.unique(low_of(keys), return_inverse=True)
        found = [self._find(one) for one in low.tolist()]
        block, count, summed, holders = (np.array(column) for column in zip(*found, strict=True))
        return block[inverse], count[inverse], summed[inverse].astype(np.bool_), holders[inverse]

    def _find(self, low: int) -> tuple[int, int, bool, int]:
        known = self._known.get(low)
        if known is None:
            split = self._blocks.split(*self._names.place(low))
            number = split.number_of.get(self._rank, NOWHERE)
            holders = len(split.holders[number]) if number != NOWHERE else 0
            known = self._known[low] = (number, split.count, split.summed, holders)
        return known


class Merger:
    """Takes the rows of one rank after the other; of several that hold the same block the first counts."""

    def __init__(self, blocks: Blocks, columns: Sequence[str], last: Mapping[int, Mapping[int, int]]) -> None:
        """`columns` of the merged rows; `last`: rank to its last step per optimizer."""
        self._blocks, self._last = blocks, last
        self.columns = tuple(columns)
        self.read = tuple(dict.fromkeys([*KEYS, *columns, *(("numel", *_COUNTS) if "mean" in columns else ())]))
        """The columns that `add` needs."""
        self._values = [name for name in self.read if name not in KEYS]
        self._names = Names()
        self._dtypes: dict[str, int] = {}
        self._keys: Ints = np.empty(0, np.int64)
        self._state: dict[str, npt.NDArray[Any]] = {}
        self.incomplete: dict[int, int] = {}
        """Step -> tensors that could not be put together, because a rank's block is missing."""

    def add(self, rank: int, rows: Any) -> None:
        """Add a rank's rows: a `pyarrow.Table` with the columns `read`."""
        if not rows.num_rows:
            return
        keys = self._names.keys(rows)
        block, count, summed, _ = Placing(self._blocks, self._names, rank).of(keys)
        kept = np.flatnonzero(block >= 0)
        kept = kept[np.argsort(keys[kept], kind="stable")]
        keys, block, count, summed = keys[kept], block[kept], count[kept], summed[kept]
        last_of_equal = np.append(keys[1:] != keys[:-1], True)
        if not last_of_equal.all():
            kept, keys, block = kept[last_of_equal], keys[last_of_equal], block[last_of_equal]
            count, summed = count[last_of_equal], summed[last_of_equal]
        given = {"group": elements(rows.column("group"))[kept]}
        for name in self._values:
            given[name] = self._column(name, rows.column(name))[kept]
        at = self._places(keys, int(block.max(initial=0)) // 64 + 1, given)
        state = self._state
        word, bit = block // 64, np.uint64(1) << (block % 64).astype(np.uint64)
        fresh = (state["seen"][at, word] & bit) == 0
        state["copies"][at] += 1
        state["seen"][at, word] |= bit
        first = fresh & (state["count"][at] == 0)
        more = fresh & ~first
        self._set(at[first], {name: values[first] for name, values in given.items()})
        state["wanted"][at] = count
        if more.any():
            self._combine(at[more], {name: values[more] for name, values in given.items()}, summed[more])
        state["count"][at[fresh]] += 1

    def _column(self, name: str, column: Any) -> npt.NDArray[Any]:
        if name == "dtype":
            codes, words = coded(column)
            return np.array([self._dtypes.setdefault(word, len(self._dtypes)) for word in words] or [0])[codes]
        if name == "sample":
            parts = [elements(chunk.flatten()) for chunk in column.chunks]
            return np.concatenate(parts or [np.empty(0)]).reshape(-1, SAMPLE_SLOTS)
        if name == "present":
            return flags(column)
        return elements(column)

    def _places(self, keys: Ints, words: int, given: Mapping[str, npt.NDArray[Any]]) -> Ints:
        """Where the rows lie among those known, which grow by those that are new."""
        if len(keys) == len(self._keys) and (keys == self._keys).all() and self._wide(words):
            return np.arange(len(keys))
        union = np.union1d(self._keys, keys)
        old = np.searchsorted(union, self._keys)
        blank: dict[str, npt.NDArray[Any]] = {"seen": np.zeros((0, words), np.uint64)}
        blank |= {name: np.zeros(0, np.int64) for name in ("count", "copies", "wanted")}
        state = self._state or {**blank, **{name: values[:0] for name, values in given.items()}}
        words = max(words, state["seen"].shape[1])
        for name, values in state.items():
            shape = (len(union), words) if name == "seen" else (len(union), *values.shape[1:])
            grown = np.zeros(shape, values.dtype)
            if name == "seen":
                grown[old, : values.shape[1]] = values
            else:
                grown[old] = values
            state[name] = grown
        self._state, self._keys = state, union
        return np.searchsorted(union, keys)

    def _wide(self, words: int) -> bool:
        return bool(self._state) and self._state["seen"].shape[1] >= words

    def _set(self, at: Ints, given: Mapping[str, npt.NDArray[Any]]) -> None:
        for name, values in given.items():
            self._state[name][at] = values

    def _combine(self, at: Ints, given: Mapping[str, npt.NDArray[Any]], summed: npt.NDArray[np.bool_]) -> None:
        """Add further blocks to rows that have one already."""
        state = self._state
        with np.errstate(all="ignore"):
            if "mean" in given:
                own = np.maximum(state["numel"][at] - np.maximum(state["n_nan"][at] + state["n_inf"][at], 0), 0)
                new = np.maximum(given["numel"] - np.maximum(given["n_nan"] + given["n_inf"], 0), 0)
                parts = np.where(own > 0, state["mean"][at] * own, 0.0) + np.where(new > 0, given["mean"] * new, 0.0)
                mean = np.where(summed, state["mean"][at] + given["mean"], parts / (own + new))
                state["mean"][at] = mean
            if "numel" in given:
                state["numel"][at] = np.where(summed, state["numel"][at], state["numel"][at] + given["numel"])
            for name in _COUNTS:
                if name in given:
                    old, more = state[name][at], given[name]
                    state[name][at] = np.where((old < 0) | (more < 0), -1, old + more)
            for name, join in (("l1", np.add), ("l2", np.hypot), ("min", np.fmin), ("max", np.fmax)):
                if name in given:
                    joined = np.where(summed, np.nan, join(state[name][at], given[name]))
                    state[name][at] = joined
            if "fingerprint" in given:
                state["fingerprint"][at] = (
                    state["fingerprint"][at].view(np.uint64) + given["fingerprint"].view(np.uint64)
                ).view(np.int64)
            if "present" in given:
                state["present"][at] &= given["present"]
            if "sample" in given:
                old, more = state["sample"][at], given["sample"]
                state["sample"][at] = np.where(summed[:, None], old + more, np.where(np.isnan(old), more, old))

    def unedited(self) -> dict[int, list[Row]]:
        """Rows of what stood before a step that are missing because a rank's block was not edited, by rank.

        Such rows (`param_in`) are written only where the values are not those of the row before. Where no holder of
        a block has one and holders of others have, that block is as it was.
        """
        found: dict[int, list[Row]] = {}
        if not self._state:
            return found
        before = [number for word, number in self._names.quantities.items() if _is_before(word)]
        numbers_of = self._names.quantity_numbers(self._keys)
        short = np.isin(numbers_of, before) & (self._state["count"] < self._state["wanted"])
        for row in np.flatnonzero(short).tolist():
            place, step = self._names.place(int(low_of(self._keys[row]))), int(step_of(self._keys[row]))
            for number, ranks in enumerate(self._blocks.split(*place).holders):
                if not int(self._state["seen"][row, number // 64]) >> (number % 64) & 1:
                    for rank in ranks:
                        if self._last.get(rank, {}).get(place[0], -1) >= step:
                            found.setdefault(rank, []).append((step, *place))
        return found

    def table(self) -> Any:
        """The merged rows, sorted by step, as a `pyarrow.Table` of `columns`."""
        import pyarrow as pa

        schema = pa.schema([arrow_schema("tensors").field(name) for name in self.columns])
        if not self._state:
            return pa.Table.from_batches([], schema)
        state = self._state
        whole = (state["count"] == state["wanted"]) & self._told_by_all()
        for step, count in zip(*np.unique(step_of(self._keys[~whole]), return_counts=True), strict=True):
            self.incomplete[int(step)] = int(count)
        rows = np.flatnonzero(whole)
        found = self._names.columns(self._keys[rows])
        found["group"] = numbers(state["group"][rows].astype(np.int32))
        for name in self._values:
            values = state[name][rows]
            if name == "dtype":
                words = _strings(list(self._dtypes))
                found[name] = pa.DictionaryArray.from_arrays(numbers(values.astype(np.int32)), words).cast(pa.string())
            elif name == "sample":
                flat = numbers(np.ascontiguousarray(values).reshape(-1))
                found[name] = pa.FixedSizeListArray.from_arrays(flat, type=schema.field(name).type)
            else:
                found[name] = booleans(values) if name == "present" else numbers(values)
        return pa.Table.from_arrays([found[name] for name in self.columns], schema=schema)

    def _told_by_all(self) -> npt.NDArray[np.bool_]:
        """False for rows of what stood before a step (`param_in`) that not every rank has: a drift, not an edit."""
        result = np.ones(len(self._keys), np.bool_)
        before = [number for word, number in self._names.quantities.items() if _is_before(word)]
        if before:
            low = low_of(self._keys)
            for row in np.flatnonzero(np.isin(low & ((1 << _QUANTITY_BITS) - 1), before)).tolist():
                place = self._names.place(int(low[row]))
                step = int(self._keys[row] >> _LOW)
                ranks = [rank for ranks in self._blocks.split(*place).holders for rank in ranks]
                alive = [rank for rank in ranks if self._last.get(rank, {}).get(place[0], -1) >= step]
                result[row] = self._state["copies"][row] >= len(alive)
        return result


def _is_before(quantity: str) -> bool:
    return quantity.partition(".")[0].endswith("_in")


def coded(column: Any) -> tuple[Ints, list[str]]:
    """A column of strings as numbers into a list of words."""
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    column = column.unify_dictionaries()
    if not column.num_chunks:
        return np.empty(0, np.int64), []
    codes = np.concatenate([elements(chunk.indices) for chunk in column.chunks]).astype(np.int64)
    return codes, column.chunk(0).dictionary.to_pylist()


def flags(column: Any) -> npt.NDArray[np.bool_]:
    """A column of booleans."""
    parts = [np.empty(0, np.bool_)]
    for chunk in column.chunks:
        bits = np.unpackbits(np.frombuffer(chunk.buffers()[1], np.uint8), bitorder="little")
        parts.append(bits[chunk.offset : chunk.offset + len(chunk)].astype(np.bool_))
    return np.concatenate(parts)


def _strings(words: Iterable[str]) -> Any:
    from optrace.trace.arrays import strings

    return strings(list(words))
