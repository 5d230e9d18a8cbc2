"""Walks an optimizer's state without touching it: every tensor and number in it, under a stable name."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from optrace.recorder.tensors import Found, Unmeasurable, locate

Leaf = tuple[int, str, Any]
"""Index of the parameter (-1: the entry belongs to none), the dotted key, and a tensor, a number or an array."""

_NUMBERS = frozenset({int, float, bool})
_TENSORS = frozenset({torch.Tensor, torch.nn.Parameter})


def leaves(state: Any, params: Sequence[torch.Tensor]) -> list[Leaf]:
    """What the state holds for each of `params`, in their order, then what it holds under names of its own.

    Lists, tuples and dicts are walked: `old_dirs.0`, `ema.fast`. None and empty containers hold nothing. Things that
    are neither numbers nor tensors (strings, functions) come too, for the caller to tell about. A missing parameter is
    never looked up by `[]`: `optimizer.state` is a defaultdict, and reading would insert.
    """
    found: list[Leaf] = []
    if not isinstance(state, Mapping) or not state:
        return found
    get = state.get
    seen = 0
    append = found.append
    for index, param in enumerate(params):
        entry = get(param)
        if entry is None:
            continue
        seen += 1
        if not isinstance(entry, Mapping):
            found.extend(_walk(index, "value", entry))
            continue
        for key, value in entry.items():
            kind = type(value)
            if (kind in _TENSORS or kind in _NUMBERS) and type(key) is str:
                append((index, key, value))
            else:
                found.extend(_walk(index, str(key), value))
    if seen < len(state):
        for key, value in list(state.items()):
            if isinstance(key, str):
                found.extend(_walk(-1, key, value))
    return found


def _walk(index: int, key: str, value: Any) -> Iterator[Leaf]:
    if value is None:
        return
    if isinstance(value, Mapping):
        for name, item in value.items():
            # dicts keyed by parameters or other objects have no stable names
            if isinstance(name, str | int | float | bool):
                yield from _walk(index, f"{key}.{name}", item)
    elif isinstance(value, list | tuple | deque):
        for number, item in enumerate(value):
            yield from _walk(index, f"{key}.{number}", item)
    else:
        yield index, key, value


class Scalars:
    """A small memory for the numbers of a step, so that they are measured like 0-d tensors."""

    _SLOTS = 256

    def __init__(self) -> None:
        self._blocks: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.bool_], int]] = []
        self._used = 0

    def clear(self) -> None:
        """Forget the numbers; their addresses are used again."""
        self._used = 0

    def place(self, number: float | int | bool) -> Found:
        """Write a number to the next slot: a bool as bool, an int as int64 (float64 beyond its range), else float64."""
        block, slot = divmod(self._used, self._SLOTS)
        if block == len(self._blocks):
            ints = np.zeros(self._SLOTS, np.int64)
            self._blocks.append((ints, ints.view(np.float64), ints.view(np.bool_), ints.ctypes.data))
        ints, floats, flags, start = self._blocks[block]
        self._used += 1
        address = start + 8 * slot
        if isinstance(number, bool):
            flags[8 * slot] = number
            return address, 1, torch.bool
        if isinstance(number, int) and -(2**63) <= number < 2**63:
            ints[slot] = number
            return address, 1, torch.int64
        try:
            floats[slot] = number
        except OverflowError:
            floats[slot] = math.inf if number > 0 else -math.inf
        return address, 1, torch.float64


def locate_leaf(value: Any, scalars: Scalars, keep: list[Any]) -> Found:
    """Where a leaf's values lie: a tensor's memory, a NumPy array's (copied to `keep`), a number's slot in `scalars`.

    What holds no numbers comes back as Unmeasurable.
    """
    if isinstance(value, torch.Tensor):
        return locate(value, keep)
    if isinstance(value, bool | int | float):
        return scalars.place(value)
    if isinstance(value, np.generic | np.ndarray | complex):
        array = np.array(value, order="C")
        try:
            keep.append(torch.from_numpy(array))
        except TypeError:
            return 0, 0, Unmeasurable(f"a NumPy array of {array.dtype}")
        return locate(keep[-1], keep)
    return 0, 0, Unmeasurable(f"a {type(value).__module__}.{type(value).__qualname__} holds no numbers")
