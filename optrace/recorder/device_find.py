"""Finds what an optimizer holds where it lies on a device, without copying it to the host."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from optrace.recorder.device import Device
from optrace.recorder.device_table import is_measurable
from optrace.recorder.finding import Finder, StateFound
from optrace.recorder.inventory import Inventory
from optrace.recorder.plans import Located, StateLabel
from optrace.recorder.selection import Quantities
from optrace.recorder.shards import Shard
from optrace.recorder.state import Leaf, leaves, locate_leaf
from optrace.recorder.tensors import (
    CODES,
    COMPLEX,
    NOTHING,
    Found,
    Kind,
    Unmeasurable,
    first_line,
    locate,
    plain_strided,
    quiet_torch,
)

_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})
_STRIDED = torch.strided


class DeviceAddress(int):
    """An address of the device; other addresses are the host's."""


def locate_on(device: Device, tensor: torch.Tensor, keep: list[Any]) -> Found:
    """Where the values of `tensor` lie: on the device (a DeviceAddress), or else in CPU memory, as `locate` finds them.

    A dense tensor whose dimensions lie in another order (channels_last, a transpose) stays where it is too: it comes as
    a Shard that holds all of its tensor, in that order. What has to be copied on the device first (gaps between its
    elements, conjugated, sparse, quantised) is appended to `keep`, which the caller holds until it has launched what
    reads it. Never raises.
    """
    if (
        type(tensor) in _PLAIN
        and tensor.layout is _STRIDED
        and tensor.dtype in CODES
        and device.owns(tensor)
        and tensor.is_contiguous()
        and not tensor.is_neg()
        and not (tensor.dtype in COMPLEX and tensor.is_conj())
    ):
        try:
            address = tensor.data_ptr()
        except RuntimeError as error:
            return 0, 0, Unmeasurable(first_line(error))
        dtype, numel = tensor.dtype, tensor.numel()
        return DeviceAddress(address), numel + numel if dtype in COMPLEX else numel, dtype
    if tensor.is_cpu and not device.owns(tensor):
        return locate(tensor, keep)
    try:
        return _locate_slowly(device, tensor, keep)
    except Exception as error:
        return 0, 0, Unmeasurable(f"{type(tensor).__name__}: {first_line(error)}")


def _locate_slowly(device: Device, tensor: torch.Tensor, keep: list[Any]) -> Found:
    with quiet_torch():
        local, place = plain_strided(tensor)
        if isinstance(local, Unmeasurable):
            return 0, 0, local
        if not device.owns(local) or local.dtype not in CODES:
            return locate(tensor, keep)
        factor = 2 if local.dtype in COMPLEX else 1
        kind: Kind = local.dtype
        if place is not None or not local.is_contiguous():
            order = None if place is not None else _order_of_memory(local)
            if order is None or not is_measurable(tuple(local.shape)):
                local = local.contiguous()
                keep.append(local)
            else:
                kind = _reordered(local, order, factor)
            if place is not None:
                kind = place(local.dtype, factor)
        elif local is not tensor:
            keep.append(local)
        keep.append(kind)
        return DeviceAddress(local.data_ptr()), local.numel() * factor, kind


def _order_of_memory(tensor: torch.Tensor) -> list[int] | None:
    """Dimensions from the slowest to the fastest in memory; None where elements overlap or there are gaps."""
    dims = sorted((d for d in range(tensor.ndim) if tensor.shape[d] != 1), key=tensor.stride, reverse=True)
    expected = 1
    for d in reversed(dims):
        if tensor.stride(d) != expected:
            return None
        expected *= tensor.shape[d]
    return dims


def _reordered(tensor: torch.Tensor, order: list[int], factor: int) -> Shard:
    """A tensor that holds all of itself, its dimensions in another order of memory."""
    logical = [factor] * tensor.ndim
    for d in range(tensor.ndim - 2, -1, -1):
        logical[d] = logical[d + 1] * tensor.shape[d + 1]
    sizes, strides = [tensor.shape[d] for d in order], [logical[d] for d in order]
    if factor == 2:
        sizes.append(2)
        strides.append(1)
    layout = np.array([len(sizes), *sizes, *strides], dtype=np.int64)
    return Shard(tensor.dtype, 0, tensor.numel() * factor, tuple(sizes), tuple(strides), layout)


def as_recorded(kind: Kind) -> Kind:
    """The kind without the order in memory, which no recorded value depends on."""
    return kind.dtype if isinstance(kind, Shard) and kind.piece is None else kind


class _Seen:
    """The state of an optimizer at the last look, if it held only plain tensors that were located as they lie."""

    def __init__(self, marks: list[tuple[weakref.ref[torch.Tensor], int, int]], found: StateFound) -> None:
        self._marks = marks
        self.found = found

    @classmethod
    def of(cls, held: Sequence[Leaf], found: StateFound) -> _Seen | None:
        """Remember what was `held`, by weak reference; None when it cannot be known again."""
        marks = []
        for (_, _, thing), (address, numel, kind) in zip(held, found.located, strict=True):
            if type(thing) not in _PLAIN or thing.dtype is not kind or thing.data_ptr() != address:
                return None
            marks.append((weakref.ref(thing), address, numel))
        return cls(marks, found)

    def are(self, held: Sequence[Leaf]) -> bool:
        """Whether `held` are those, with their values where they were."""
        if len(held) != len(self._marks):
            return False
        for (index, key, thing), label, (ref, address, numel) in zip(held, self.found.labels, self._marks, strict=True):
            tensor = ref()
            if (
                tensor is None
                or tensor is not thing
                or (index, key) != label
                or tensor.data_ptr() != address
                or tensor.numel() != numel
                or not tensor.is_contiguous()
            ):
                return False
        return True


class DeviceFinder(Finder):
    """Where things lie, on the device or the host; state that lies where it did is known again."""

    def __init__(
        self, inventory: Inventory, wanted: Quantities, tell_once: Callable[[str, str], None], device: Device
    ) -> None:
        """As `Finder`, for one device."""
        super().__init__(inventory, wanted, tell_once)
        self._device = device
        self._last: tuple[list[int], list[Kind]] | None = None
        self._seen: _Seen | None = None

    def _params_at(self, params: list[torch.Tensor], keep: list[Any]) -> tuple[Located, dict[int, str]]:
        located = Located.of([locate_on(self._device, param, keep) for param in params])
        if self._flat:
            located = self._pieces(params, located)
        blind = {i: kind.reason for i, kind in enumerate(located.kinds) if isinstance(kind, Unmeasurable)}
        if not blind:
            seen = located.numels, [as_recorded(kind) for kind in located.kinds]
            if self._last is not None and self._last != seen:
                self.changed = True
            self._last = seen
        return located, blind

    def grads(self, params: list[torch.Tensor], keep: list[Any], scale: torch.Tensor | None) -> Located:
        """The gradients, divided by `scale` where there is one."""
        if not self._wanted.grad:
            return Located([], [], [])
        grads = [param.grad if param.is_leaf or param.retains_grad else _grad_of_inner(param) for param in params]
        found: list[Found] = []
        for grad in grads:
            if grad is None:
                found.append(NOTHING)
                continue
            if scale is not None:
                with quiet_torch():
                    grad = grad.detach() / scale.to(grad.device)
                keep.append(grad)
            one = locate_on(self._device, grad, keep)
            if isinstance(one[2], Unmeasurable):
                self._tell_once("gradient not recorded", one[2].reason)
                one = NOTHING
            found.append(one)
        located = Located.of(found)
        if self._flat:
            located = self._pieces(grads, located)
        return located

    def state(self, optimizer: Any, params: list[torch.Tensor], keep: list[Any], things: bool) -> StateFound:
        """The state of `params`; `things` says whether the leaves themselves are needed."""
        leaves_now = leaves(optimizer.state, params)
        if self._seen is not None and not things and self._seen.are(leaves_now):
            return self._seen.found
        labels: list[StateLabel] = []
        kept: list[Any] = []
        located: list[Found] = []
        for index, key, thing in leaves_now:
            if not self._wanted.has(f"state.{key}"):
                continue
            if isinstance(thing, torch.Tensor):
                one = locate_on(self._device, thing, keep)
            else:
                one = locate_leaf(thing, self.scalars, keep)
            if isinstance(one[2], Unmeasurable):
                self._tell_once("state not recorded", f"{key}: {one[2].reason}")
                continue
            if self._flat and index >= 0:
                one = self._flat.within(index, thing, one)
            labels.append((index, key))
            kept.append(thing)
            located.append(one)
        names = [(self._inventory.names[index] if index >= 0 else "", key) for index, key in labels]
        found = StateFound(labels, names, Located.of(located), kept if things else [])
        self._seen = _Seen.of(leaves_now, found) if len(leaves_now) == len(labels) else None
        return found


def on_device(addresses: Sequence[int]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which addresses are the device's, [n] of bool."""
    return np.array([type(address) is DeviceAddress for address in addresses], np.bool_)


def _grad_of_inner(param: torch.Tensor) -> torch.Tensor | None:
    """The gradient of a parameter that is no leaf, without torch's warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return param.grad
