"""Makes the data of an event JSON: numbers, strings and lists as they are, 0-d tensors and arrays by value."""

from __future__ import annotations

import math
from typing import Any

from optrace.errors import RecordError

PLAIN = frozenset({str, bool, int, type(None)})
"""JSON as they are, and unable to change."""


def clean_json(data: Any, where: str = "data") -> Any:
    """Return `data` as something that strict JSON can hold, and nothing that could change later.

    Dicts with string keys, lists, tuples, strings, numbers, booleans and None pass; 0-d tensors, 0-d arrays and NumPy
    scalars go by value (a tensor on a device is waited for). NaN and infinities become "nan", "inf" and "-inf".

    Raises RecordError, naming the place, for anything else: an array of several elements, an object, a number without
    a real value.

    >>> clean_json({"loss": float("inf"), "at": (1, 2)})
    {'loss': 'inf', 'at': [1, 2]}
    """
    if data is None or isinstance(data, str | bool | int):
        return data if type(data) in (str, bool, int, type(None)) else _plain(data)
    if isinstance(data, float):
        return float(data) if math.isfinite(data) else _word(data)
    if isinstance(data, dict):
        return {_key(key, where): clean_json(value, f"{where}[{key!r}]") for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [clean_json(value, f"{where}[{index}]") for index, value in enumerate(data)]
    return clean_json(_value(data, where), where)


def json_of(data: dict[str, Any]) -> dict[str, Any]:
    """The data of an event, cleaned; or what is wrong with it, under `unreadable`."""
    try:
        cleaned: dict[str, Any] = clean_json(data)
    except RecordError as error:
        cleaned = {"unreadable": str(error)}
    return cleaned


def _plain(data: Any) -> Any:
    """Strip the subclass (an IntEnum, a str subclass) off a plain value."""
    return str(data) if isinstance(data, str) else int(data)


def _word(number: float) -> str:
    return "nan" if math.isnan(number) else "inf" if number > 0 else "-inf"


def _key(key: Any, where: str) -> str:
    if not isinstance(key, str):
        raise RecordError(f"{where} has the key {key!r}; an event's keys are strings")
    return str(key)


def _value(data: Any, where: str) -> bool | int | float | str:
    """Value of a 0-d tensor, array or NumPy scalar."""
    shape, item = getattr(data, "shape", None), getattr(data, "item", None)
    if shape is None or item is None:
        raise RecordError(
            f"{where} is a {type(data).__qualname__}; an event holds numbers, strings, lists, dicts and 0-d tensors"
        )
    if len(shape):
        raise RecordError(
            f"{where} has the shape {list(shape)}; an event holds single values: give x.item(), x.mean() or x.tolist()"
        )
    value = item()
    if not isinstance(value, bool | int | float | str):
        raise RecordError(f"{where} has the value {value!r}, which JSON cannot hold; give its parts as numbers")
    return value
