"""Finds tensors again that were located before, cheaply, as long as nothing about them has changed."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch

from optrace.recorder.state import Scalars
from optrace.recorder.tensors import COMPLEX, Kind

_STRIDED = torch.strided
_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})
_NUMBERS = (int, float, bool)

Mark = tuple["weakref.ref[torch.Tensor]", int, int]
"""A tensor, its address, its number of elements."""


def mark(tensor: Any, address: int) -> Mark | None:
    """What to look at to know `tensor` again; None where it had to be copied to be measured.

    The same object at the same address has the same dtype and device. It is held by weak reference only.
    """
    if type(tensor) not in _PLAIN or tensor.layout is not _STRIDED or not tensor.is_cpu or tensor.data_ptr() != address:
        return None
    return weakref.ref(tensor), address, tensor.numel()


class KnownTensors:
    """A list of tensors, in order."""

    def __init__(self, marks: list[Mark]) -> None:
        self._marks = marks

    @classmethod
    def of(cls, tensors: Sequence[torch.Tensor], addresses: Sequence[int]) -> KnownTensors | None:
        """Remember `tensors`; None when one of them cannot be known again."""
        marks = [found for one in zip(tensors, addresses, strict=True) if (found := mark(*one)) is not None]
        return cls(marks) if len(marks) == len(tensors) else None

    def are(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether `tensors` are those, with their values where they were."""
        if len(tensors) != len(self._marks):
            return False
        for tensor, (ref, address, numel) in zip(tensors, self._marks, strict=True):
            if (
                ref() is not tensor
                or tensor.data_ptr() != address
                or not tensor.is_contiguous()
                or tensor.numel() != numel
            ):
                return False
        return True


class KnownState:
    """The state of an optimizer that holds plain tensors and numbers, without containers."""

    def __init__(self, size: int, entries: list[tuple[tuple[str, ...], list[Mark | type]] | None]) -> None:
        self._size = size
        self._entries = entries
        self.tensors_only = all(isinstance(one, tuple) for entry in entries if entry is not None for one in entry[1])

    @classmethod
    def of(
        cls, state: Any, params: Sequence[torch.Tensor], found: Sequence[tuple[int, str, Any]], addresses: Sequence[int]
    ) -> KnownState | None:
        """Remember what was found in `state` (leaves and their addresses); None when it cannot be known again."""
        leaves = iter(zip(found, addresses, strict=True))
        entries: list[tuple[tuple[str, ...], list[Mark | type]] | None] = []
        total = 0
        for index, param in enumerate(params):
            entry = state.get(param)
            if entry is None:
                entries.append(None)
                continue
            if type(entry) is not dict:
                return None
            marks: list[Mark | type] = []
            for key, value in entry.items():
                (where, name, thing), address = next(leaves, ((-1, "", None), 0))
                if where != index or name != key or thing is not value:
                    return None
                known = type(value) if type(value) in _NUMBERS else mark(value, address)
                if known is None:
                    return None
                marks.append(known)
                total += 1
            entries.append((tuple(entry), marks))
        return cls(len(state), entries) if total == len(found) else None

    def holds(self, state: Any, params: Sequence[torch.Tensor], scalars: Scalars) -> bool:
        """Whether `state` holds the same tensors, with their values where they were; its numbers go to `scalars`."""
        if len(state) != self._size or len(params) != len(self._entries):
            return False
        get = state.get
        for param, known in zip(params, self._entries, strict=True):
            entry = get(param)
            if entry is None or known is None:
                if entry is not known:
                    return False
                continue
            keys, marks = known
            if tuple(entry) != keys:
                return False
            values: Any = entry.values()
            for value, one in zip(values, marks, strict=True):
                if isinstance(one, tuple):
                    ref, address, numel = one
                    tensor = ref()
                    if (
                        tensor is not value
                        or tensor is None
                        or tensor.data_ptr() != address
                        or not tensor.is_contiguous()
                        or tensor.numel() != numel
                    ):
                        return False
                elif type(value) is one:
                    scalars.place(value)  # type: ignore[arg-type]
                else:
                    return False
        return True


def addresses_of(
    tensors: Sequence[torch.Tensor | None], numels: Sequence[int], kinds: Sequence[Kind]
) -> list[int] | None:
    """Addresses of plain tensors that have these sizes and dtypes (None: no tensor); None where one is otherwise."""
    addresses = []
    for tensor, numel, kind in zip(tensors, numels, kinds, strict=True):
        if tensor is None or kind is None:
            if tensor is not None or kind is not None:
                return None
            addresses.append(0)
        elif (
            type(tensor) in _PLAIN
            and tensor.dtype is kind
            and kind not in COMPLEX
            and tensor.layout is _STRIDED
            and tensor.numel() == numel
            and tensor.is_cpu
            and tensor.is_contiguous()
            and not (numel == 1 and tensor.is_neg())
        ):
            addresses.append(tensor.data_ptr())
        else:
            return None
    return addresses
