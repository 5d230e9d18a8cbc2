"""From Arrow tables as they are stored to pandas frames as people use them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from optrace.errors import TraceError
from optrace.trace.arrays import elements
from optrace.trace.rank import event_data
from optrace.trace.schema import PARAM_COLUMNS

if TYPE_CHECKING:
    import pandas as pd

_QUANTITIES = ("param_in", "state_in.", "grad", "update", "param", "state.", "group.")
"""Order of a parameter's rows within a step: what went in, what came out."""


def params_frame(rows: Sequence[Any]) -> pd.DataFrame:
    """The table `params`; shapes and strides are tuples. TraceError when a row is no object."""
    import pandas as pd

    names = [column.name for column in PARAM_COLUMNS]
    for row in rows:
        if not isinstance(row, dict):
            raise TraceError(f"params.json is damaged: {str(row)[:60]!r} is no object")
    columns: dict[str, Any] = {}
    for name in names:
        values = [row.get(name) for row in rows]
        if name in ("shape", "stride"):
            values = [tuple(value) if isinstance(value, list) else value for value in values]
            columns[name] = objects(values)
        elif name == "placement":
            columns[name] = objects(values)
        else:
            columns[name] = pd.Series(values, dtype=None if rows else object)
    return pd.DataFrame(columns, columns=names)


def params_arrow(frame: pd.DataFrame) -> Any:
    """The table `params` as a `pyarrow.Table` of the types that its columns should have; TraceError if they do not."""
    import pyarrow as pa

    types = {"int": pa.int64(), "str": pa.string(), "bool": pa.bool_(), "list of int": pa.list_(pa.int64())}
    types["str or null"] = pa.string()
    schema = pa.schema([(column.name, types[column.type]) for column in PARAM_COLUMNS])
    try:
        rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
        return pa.Table.from_pylist(rows, schema)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise TraceError(f"params.json is damaged: {str(error).splitlines()[0]}") from None


def tensors_frame(rows: Any, places: Mapping[tuple[int, str], int]) -> pd.DataFrame:
    """The table `tensors`, sorted by step, optimizer, place of the parameter in its optimizer, quantity."""
    order = [elements(rows.column(name)) for name in ("step", "optimizer")]
    order += [_param_places(rows, places), _quantity_places(rows.column("quantity"))]
    return _frame(rows.take(np.lexsort(order[::-1])))


def steps_frame(rows: Any) -> pd.DataFrame:
    """The table `steps`; floats that were not known are NaN, unknown `batch` and `rng` are missing (Int64)."""
    return _frame(rows)


def events_frame(rows: Any) -> pd.DataFrame:
    """The table `events` in order of seq (in the files, those that waited for an optimizer's first step come late);
    `data` holds dicts.
    """
    rows = rows.take(np.argsort(elements(rows.column("seq")), kind="stable")) if "seq" in rows.column_names else rows
    frame = _frame(rows)
    if "data" in frame:
        frame["data"] = objects([event_data(text) for text in rows.column("data").to_pylist()])
    return frame


def groups_frame(rows: Any) -> pd.DataFrame:
    """The table `groups`, one row a step, optimizer and group, one column a key.

    A key that is a float everywhere is a float64 column, likewise int64 and bool; any other column holds Python objects
    of the kinds that were recorded: float, int, bool, str, None; NaN where the group has no such key. Keys that are
    called like the first three columns (many optimizers count in `group["step"]`) are `group.step` and so on.
    """
    import pandas as pd

    index = [elements(rows.column(name)) for name in ("step", "optimizer", "group")]
    count = len(index[0])
    changes = np.zeros(count, np.bool_)
    for column in index:
        changes[1:] |= column[1:] != column[:-1]
    if count:
        changes[0] = True
    row_of = np.cumsum(changes) - 1
    starts = np.flatnonzero(changes)
    columns: dict[str, Any] = {
        name: column[starts].astype(np.int64)
        for name, column in zip(("step", "optimizer", "group"), index, strict=True)
    }
    keys = rows.column("key").combine_chunks().dictionary_encode()
    kinds = rows.column("kind").combine_chunks().dictionary_encode()
    kind_words = kinds.dictionary.to_pylist()
    key_codes, kind_codes = elements(keys.indices), elements(kinds.indices)
    numbers, texts = elements(rows.column("number")), rows.column("text")
    by_key = np.argsort(key_codes, kind="stable")
    bounds = np.searchsorted(key_codes[by_key], np.arange(len(keys.dictionary) + 1))
    for code, key in enumerate(keys.dictionary.to_pylist()):
        at = by_key[bounds[code] : bounds[code + 1]]
        found = {kind_words[kind] for kind in np.unique(kind_codes[at]).tolist()}
        columns[f"group.{key}" if key in ("step", "optimizer", "group") else key] = _option(
            row_of[at], len(starts), numbers[at], [kind_words[k] for k in kind_codes[at]], texts, at, found
        )
    return pd.DataFrame(columns)


def _option(
    where: npt.NDArray[np.int64],
    count: int,
    numbers: npt.NDArray[np.float64],
    kinds: list[str],
    texts: Any,
    at: npt.NDArray[np.int64],
    found: set[str],
) -> Any:
    """One key's column: `numbers`, `kinds` and `texts` belong to the rows `where` of `count`."""
    complete = len(where) == count
    if found == {"float"}:
        column = np.full(count, math.nan)
        column[where] = numbers
        return column
    if complete and found == {"int"} and np.isfinite(numbers).all():
        whole = np.empty(count, np.int64)
        whole[where] = numbers.astype(np.int64)
        return whole
    if complete and found == {"bool"}:
        flags = np.empty(count, np.bool_)
        flags[where] = numbers != 0
        return flags
    values: list[Any] = [math.nan] * count
    words = texts.take(at).to_pylist() if found & {"str", "other", "int"} else [""] * len(kinds)
    for row, kind, number, text in zip(where.tolist(), kinds, numbers.tolist(), words, strict=True):
        values[row] = _python(kind, number, text)
    return objects(values)


def _python(kind: str, number: float, text: str) -> Any:
    try:
        if kind == "int":
            return int(text, 16) if text else int(number)
    except (ValueError, OverflowError):
        raise TraceError(f"the groups are damaged: {text[:60]!r} is no int") from None
    if kind == "bool":
        return number != 0
    if kind == "float":
        return number
    return None if kind == "none" else text


def objects(values: Sequence[Any]) -> Any:
    """A pandas Series that holds the very objects, whatever they are."""
    import pandas as pd

    array = np.empty(len(values), object)
    array[:] = values if not values or not isinstance(values[0], list | tuple | np.ndarray) else None
    for row, value in enumerate(values):
        array[row] = value
    return pd.Series(array, dtype=object)


def _frame(rows: Any) -> pd.DataFrame:
    """Columns as pandas has them; int64 with nulls as Int64, so that fingerprints keep their 64 bits."""
    import pandas as pd
    import pyarrow as pa

    frame: pd.DataFrame = rows.to_pandas()
    for name in rows.column_names:
        column = rows.column(name)
        if pa.types.is_int32(column.type):
            frame[name] = frame[name].astype("int64")
        if pa.types.is_int64(column.type) and name in ("batch", "rng"):
            missing = column.is_null().to_numpy()
            frame[name] = pd.Series(pd.arrays.IntegerArray(column.fill_null(0).to_numpy(), missing))
    return frame


def _param_places(rows: Any, places: Mapping[tuple[int, str], int]) -> npt.NDArray[np.int64]:
    """For each row the place of its parameter; parameters that params.json does not name follow in order of name."""
    encoded = rows.column("param").combine_chunks().dictionary_encode()
    names = encoded.dictionary.to_pylist()
    optimizers = elements(rows.column("optimizer"))
    codes = elements(encoded.indices)
    last = len(places)
    rank = {name: last + position for position, name in enumerate(sorted(names))}
    result = np.empty(len(codes), np.int64)
    for optimizer in np.unique(optimizers).tolist():
        table = np.array([places.get((optimizer, name), rank[name]) for name in names], np.int64)
        own = optimizers == optimizer
        result[own] = table[codes[own]]
    return result


def _quantity_places(column: Any) -> npt.NDArray[np.int64]:
    encoded = column.combine_chunks().dictionary_encode()
    names = encoded.dictionary.to_pylist()
    ordered = sorted(names, key=lambda name: (_rank(name), name))
    places = {name: place for place, name in enumerate(ordered)}
    table = np.array([places[name] for name in names], np.int64)
    result: npt.NDArray[np.int64] = table[elements(encoded.indices)]
    return result


def _rank(quantity: str) -> int:
    for place, start in enumerate(_QUANTITIES):
        if quantity == start or (start.endswith(".") and quantity.startswith(start)):
            return place
    return len(_QUANTITIES)
