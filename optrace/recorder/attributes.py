"""Reads a hand-written optimizer's attributes: hyper-parameters by value, and state that belongs to parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from optrace.errors import RecordError
from optrace.recorder.parameters import find_parameters, is_tensor

_PLAIN = (bool, int, float, str)
_STATE = ("state", "_state", "states")
"""Attributes whose inner keys name the state by themselves."""


@dataclass(frozen=True)
class Options:
    """Hyper-parameters of each group, and which parameters are in it."""

    options: list[dict[str, Any]]
    members: dict[int, list[str]]


def options_of(thing: Any) -> Options:
    """The options in `param_groups`, else the public attributes that are numbers, strings, bools or None."""
    groups = getattr(thing, "param_groups", None)
    if isinstance(groups, list | tuple) and groups and all(isinstance(group, Mapping) for group in groups):
        try:
            members = {i: [name for name, _ in group] for i, group in enumerate(find_parameters(thing).groups)}
        except RecordError:
            members = {}
        return Options([scalars(group) for group in groups], members)
    return Options([scalars(public(thing))], {})


def public(thing: Any) -> dict[str, Any]:
    """Attributes of an object whose names do not begin with `_`."""
    return {name: value for name, value in getattr(thing, "__dict__", {}).items() if not name.startswith("_")}


def scalars(options: Mapping[Any, Any]) -> dict[str, Any]:
    """Those options that are scalars or short tuples of them; one-element arrays by value."""
    found: dict[str, Any] = {}
    for key, value in options.items():
        if key in ("params", "param_names"):
            continue
        if value is None or isinstance(value, _PLAIN):
            found[str(key)] = value
        elif isinstance(value, np.generic) or (hasattr(value, "shape") and getattr(value, "shape", None) == ()):
            found[str(key)] = value.item()
        elif isinstance(value, tuple) and 0 < len(value) <= 16 and all(isinstance(item, _PLAIN) for item in value):
            found |= {f"{key}.{i}": item for i, item in enumerate(value)}
    return found


def state_of(thing: Any, params: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """State by parameter and key; `params` are the values by name, in order."""
    if thing is None:
        return {}
    holder = None
    objects: list[Any] = list(params.values())
    try:
        found = find_parameters(thing)
        holder, objects = found.holder, [param for _, param in found.flat]
    except RecordError:
        pass
    result: dict[str, dict[str, Any]] = {}
    shapes = [getattr(value, "shape", None) for value in params.values()]
    for attribute, value in list(getattr(thing, "__dict__", {}).items()):
        if attribute in (holder, "param_groups", "grads", "params"):
            continue
        for index, key, entry in matched(attribute.lstrip("_"), value, list(params), objects, shapes):
            result.setdefault(list(params)[index], {})[key] = entry
    return result


def matched(
    attribute: str, value: Any, names: list[str], objects: list[Any], shapes: list[Any]
) -> Iterator[tuple[int, str, Any]]:
    """Entries of one attribute that belong to parameters: (index of the parameter, key, array or number)."""
    if isinstance(value, Mapping):
        ids = {id(thing): i for i, thing in enumerate(objects)}
        at_name = {name: i for i, name in enumerate(names)}
        for key, entry in list(value.items()):
            if id(key) in ids and not isinstance(key, int | str):
                index = ids[id(key)]
            elif isinstance(key, str) and key in at_name:
                index = at_name[key]
            elif isinstance(key, int) and not isinstance(key, bool) and (key in ids or 0 <= key < len(names)):
                index = ids.get(key, key)
            else:
                if isinstance(entry, Mapping) and attribute in _STATE:
                    yield from matched(str(key), entry, names, objects, shapes)
                continue
            yield from _entries(attribute, entry, index, shapes[index])
    elif isinstance(value, list | tuple) and len(value) == len(names):
        if all(item is thing for item, thing in zip(value, objects, strict=True)):
            return
        for index, entry in enumerate(value):
            yield from _entries(attribute, entry, index, shapes[index])
    elif len(names) == 1 and hasattr(value, "shape") and value.shape == shapes[0] and value is not objects[0]:
        if shapes[0] != ():
            yield 0, attribute, value


def _entries(attribute: str, entry: Any, index: int, shape: Any) -> Iterator[tuple[int, str, Any]]:
    if isinstance(entry, Mapping):
        for key, inner in entry.items():
            name = str(key) if attribute in _STATE else f"{attribute}.{key}"
            if _is_state(inner, shape):
                yield index, name, inner
    elif _is_state(entry, shape):
        yield index, attribute, entry


def _is_state(entry: Any, shape: Any) -> bool:
    if isinstance(entry, bool | str) or entry is None:
        return False
    if isinstance(entry, int | float | np.generic):
        return True
    return (isinstance(entry, np.ndarray) or is_tensor(entry)) and getattr(entry, "dtype", None) != np.dtype(object)
