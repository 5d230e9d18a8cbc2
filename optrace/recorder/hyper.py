"""Reads the hyper-parameters of a group by value: what `step()` is about to use, as plain scalars."""

from __future__ import annotations

import enum
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch

Scalar = float | int | bool | str | None

MAX_ITEMS = 16
"""Tuples and lists longer than this are no hyper-parameters but data, and are left out."""

_NOT_OPTIONS = frozenset({"params", "param_names"})
_SIMPLE = frozenset({float, int, bool, str, type(None)})


def scalars_of_group(group: Mapping[str, Any]) -> dict[str, Scalar]:
    """The group's options as scalars: `lr`, `betas.0`, `schedule.warmup`; one-element tensors and arrays by value.

    Functions, classes, dtypes and enums are given by name; anything else (data, long lists) is left out:
    `unread_options` names it.

    >>> scalars_of_group({"params": [], "lr": torch.tensor(0.5), "betas": (0.9, 0.99), "foreach": None})
    {'lr': 0.5, 'betas.0': 0.9, 'betas.1': 0.99, 'foreach': None}
    """
    found: dict[str, Scalar] = {}
    for key, value in group.items():
        if type(value) in _SIMPLE:
            found[key] = value
        elif key not in _NOT_OPTIONS:
            found.update(_flatten(str(key), value))
    return found


def unread_options(group: Mapping[str, Any]) -> list[str]:
    """Keys of the group that hold something that is no scalar, as `key (type)`, sorted."""
    read = scalars_of_group(group)
    return sorted(
        f"{key} ({type(value).__name__})"
        for key, value in group.items()
        if key not in _NOT_OPTIONS
        and key not in read
        and not any(name.startswith(f"{key}.") for name in read)
        # an empty tuple or dict holds nothing to miss
        and not (isinstance(value, tuple | list | dict) and not value)
    )


def _flatten(key: str, value: Any) -> Iterator[tuple[str, Scalar]]:
    """The scalars within one option, each with its dotted name."""
    if type(value) in _SIMPLE:
        yield key, value
    elif isinstance(value, torch.Tensor):
        yield from _flatten_tensor(key, value)
    elif isinstance(value, enum.Enum):
        yield key, value.name
    elif isinstance(value, bool | int | float | str):  # a subclass, like numpy.float64
        yield key, next(kind(value) for kind in (bool, int, float, str) if isinstance(value, kind))
    elif isinstance(value, tuple | list):
        if len(value) <= MAX_ITEMS:
            for index, item in enumerate(value):
                yield from _flatten(f"{key}.{index}", item)
    elif isinstance(value, Mapping):
        if len(value) <= MAX_ITEMS:
            for name, item in value.items():
                yield from _flatten(f"{key}.{name}", item)
    elif isinstance(value, torch.dtype | torch.device):
        yield key, str(value).removeprefix("torch.")
    elif isinstance(value, type | types.FunctionType | types.BuiltinFunctionType | types.MethodType):
        yield key, f"{value.__module__}.{value.__qualname__}"
    elif getattr(value, "size", None) == 1 and hasattr(value, "item"):  # a NumPy scalar or array of one element
        yield from _flatten(key, value.item())


def _flatten_tensor(key: str, tensor: torch.Tensor) -> Iterator[tuple[str, Scalar]]:
    if tensor.numel() != 1 or tensor.is_meta:
        return
    try:
        value = tensor.detach().item()
    except RuntimeError:  # a fake or wrapped tensor has no value
        return
    if isinstance(value, complex):
        yield f"{key}.real", value.real
        yield f"{key}.imag", value.imag
    else:
        yield key, value


def written_by_step(before: Mapping[str, Scalar], after: Mapping[str, Scalar]) -> list[str]:
    """Keys whose number `step()` itself changed or created, in the group's order."""
    if before == after:
        return []
    return [key for key, value in after.items() if _is_number(value) and not _same(before.get(key), value)]


def _is_number(value: Scalar) -> bool:
    return isinstance(value, float | int)


def _same(one: Scalar, other: Scalar) -> bool:
    return one == other or (one != one and other != other)
