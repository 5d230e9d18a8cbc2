"""One optimizer's account since its last step: losses and backwards, read without waiting for a device."""

from __future__ import annotations

import ctypes
import struct
from collections import deque
from collections.abc import Iterable
from typing import Any

import torch

from optrace.recorder.fingerprints import is_plain
from optrace.recorder.later import Mean, Slots

Value = float | torch.Tensor
"""A number, or a 0-d tensor on a device that is read when the step has ended."""

PENDING = 4096
"""Losses on a device that are kept for an optimizer that does not step."""

_READERS: dict[torch.dtype, Any] = {torch.float32: ctypes.c_float, torch.float64: ctypes.c_double}
_HALF = {torch.float16: lambda bits: struct.unpack("<e", struct.pack("<H", bits))[0]} | {
    torch.bfloat16: lambda bits: struct.unpack("<f", struct.pack("<I", bits << 16))[0]
}


def read_scalar(tensor: Any) -> Value | None:
    """Return the value of a tensor of one element, unseen by whoever watches torch's functions or operators.

    On the CPU it is read from memory; a tensor on a device is kept, detached, for `number` to read later, so that
    nothing waits. None for anything else: several elements, integers, fake tensors, DTensors.
    """
    if (type(tensor) is not torch.Tensor and not is_plain(tensor)) or tensor.numel() != 1 or tensor.is_sparse:
        return None
    if not tensor.is_cpu:
        if tensor.is_meta or torch._C._len_torch_dispatch_stack():
            return None
        return tensor.detach() if tensor.is_floating_point() else None
    reader = _READERS.get(tensor.dtype)
    if reader is not None:
        value: float = reader.from_address(tensor.data_ptr()).value
        return value
    half = _HALF.get(tensor.dtype)
    return None if half is None else float(half(ctypes.c_uint16.from_address(tensor.data_ptr()).value))


def number(value: Value | None) -> float | None:
    """Return a value as a float, waiting for the device; None stays None, as does what a captured graph still holds."""
    if not isinstance(value, torch.Tensor):
        return value
    if value.is_cuda and torch.cuda.is_current_stream_capturing():
        return None
    return float(value.item())


class Account:
    """One optimizer's account since its last step."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.n_backward = self.n_skipped = self.n_losses = 0
        self.total = 0.0
        self.pending: deque[torch.Tensor] | None = None
        self.norm: Value | None = None
        self.batch: int | None = None
        self.rng: int | None = None

    def forget_losses(self) -> None:
        """Drop the losses, whose gradients are gone."""
        self.total, self.n_losses, self.pending = 0.0, 0, None

    def copy_from(self, other: Account) -> None:
        """Hold what `other` holds."""
        vars(self).update(vars(other))
        if self.pending is not None:
            self.pending = self.pending.copy()

    def join(self, other: Account) -> None:
        """Take over what `other` counted, and clear it."""
        self.n_backward += other.n_backward
        self.total, self.n_losses = self.total + other.total, self.n_losses + other.n_losses
        if other.pending:
            self.pending = deque([*(self.pending or ()), *other.pending], maxlen=PENDING)
        self.rng = other.rng if self.rng is None else self.rng
        self.batch = other.batch if self.batch is None else self.batch
        other.clear()

    def add(self, values: Iterable[Value], rng: int | None) -> None:
        """Count one backward."""
        self.n_backward += 1
        self.norm = None
        if self.rng is None:
            self.rng = rng
        for value in values:
            if isinstance(value, float):
                self.total += value
                self.n_losses += 1
            else:
                if self.pending is None:
                    self.pending = deque(maxlen=PENDING)
                self.pending.append(value)

    def drop(self, values: Iterable[Value]) -> None:
        """Uncount the last backward, which raised."""
        self.n_backward -= 1
        for value in values:
            if isinstance(value, float):
                self.total, self.n_losses = self.total - value, self.n_losses - 1
            elif self.pending:
                self.pending.pop()

    def loss(self, slots: Slots | None) -> float | Mean | None:
        """The mean loss; values on a device are waited for, or put into `slots`."""
        total, count = self.total, self.n_losses
        if self.pending and slots is not None:
            return Mean(total, count, [slots.put(value) for value in self.pending])
        if self.pending:
            late = [value for value in map(number, self.pending) if value is not None]
            total, count = total + sum(late), count + len(late)
        return total / count if count else None
