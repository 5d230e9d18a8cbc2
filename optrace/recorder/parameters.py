"""Finds the parameters of a hand-written optimizer, in `param_groups` or attributes, without importing torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from optrace.errors import RecordError

_LIKELY = ("params", "parameters", "weights", "model", "net", "module")
"""Attributes that are looked at before others."""


@dataclass(frozen=True)
class Parameters:
    """The parameters of an object, group by group, each with a name within the object."""

    groups: tuple[tuple[tuple[str, Any], ...], ...]
    holder: str | None
    """The attribute that holds them; None: `param_groups`."""

    @property
    def torch(self) -> bool:
        """Whether they are torch tensors."""
        return all(is_tensor(param) for group in self.groups for _, param in group)

    @property
    def flat(self) -> list[tuple[str, Any]]:
        """All of them, in order."""
        return [item for group in self.groups for item in group]

    def arrays(self) -> dict[str, Any]:
        """Values by name."""
        return {name: values_of(param) for name, param in self.flat}

    def grads(self) -> dict[str, Any]:
        """Gradients by name; parameters without one are left out."""
        found = {name: getattr(param, "grad", None) for name, param in self.flat}
        return {name: grad for name, grad in found.items() if grad is not None}


def is_tensor(thing: Any) -> bool:
    """Whether it is a torch tensor, told without importing torch."""
    return hasattr(thing, "requires_grad") and hasattr(thing, "detach") and hasattr(thing, "dtype")


def is_parameter(thing: Any) -> bool:
    """A tensor that requires grad, or anything with `data` and `grad` whose data is an array."""
    if is_tensor(thing):
        return bool(thing.requires_grad)
    return hasattr(thing, "grad") and isinstance(getattr(thing, "data", None), np.ndarray)


def values_of(param: Any) -> Any:
    """The array of a parameter."""
    return param.detach() if is_tensor(param) else getattr(param, "data", param)


def find_parameters(thing: Any) -> Parameters:
    """The parameters of an object with `step()`. RecordError when none are found; it says how to hand them over."""
    groups = getattr(thing, "param_groups", None)
    if isinstance(groups, list | tuple) and all(isinstance(g, Mapping) and "params" in g for g in groups) and groups:
        count = iter(range(10**9))
        made = []
        for group in groups:
            own = group.get("param_names")
            names = own if own is not None and len(own) == len(group["params"]) else None
            made.append(
                tuple(
                    (names[i] if names else f"param{next(count)}", p) for i, p in enumerate(_members(group["params"]))
                )
            )
        return Parameters(tuple(made), None)
    best: tuple[int, str, tuple[tuple[str, Any], ...]] | None = None
    for name, value in _attributes(thing):
        items = tuple(_items(value))
        if items and all(is_parameter(param) for _, param in items):
            rank = (len(items) + (10**6 if name.lstrip("_") in _LIKELY else 0), name, items)
            if best is None or rank[0] > best[0]:
                best = rank
    if best is None:
        raise RecordError(
            f"the parameters of a {type(thing).__name__} are neither in param_groups nor in an attribute;"
            " keep them in a list like self.params, or tell the recorder of each step: run.step(params=..., grads=...)"
        )
    return Parameters((best[2],), best[1])


def _members(params: Any) -> list[Any]:
    return [params] if is_parameter(params) else list(params)


def _attributes(thing: Any) -> Iterator[tuple[str, Any]]:
    for name, value in list(getattr(thing, "__dict__", {}).items()):
        yield name, value
    for kind in type(thing).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(thing, name) and not name.startswith("__"):
                yield name, getattr(thing, name)


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """The parameters that an attribute may hold, with names."""
    if isinstance(value, Mapping):
        yield from ((str(key), item) for key, item in value.items())
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            pair = isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)
            yield (item[0], item[1]) if pair else (f"param{i}", item)
    elif hasattr(value, "named_parameters"):
        yield from ((name, param) for name, param in value.named_parameters() if param.requires_grad)
    elif is_parameter(value):
        yield "param0", value
