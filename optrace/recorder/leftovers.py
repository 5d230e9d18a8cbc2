"""Sees whether gradients outlive the step that used them, so that the next backward adds to them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Container, Iterable
from typing import Any

import torch

STEPS = 3
"""Steps of an optimizer after which its gradients are watched: who never clears them does not clear these."""

Left = tuple[weakref.ref[torch.Tensor], weakref.ref[torch.Tensor], int]
"""A parameter, its gradient and the gradient's version; neither is kept alive."""


class Leftovers:
    """The gradients that the first steps of each optimizer left behind, as long as nothing but a backward touches them.

    A gradient is followed by its identity and version from the end of a step through every backward to the next step.
    What is cleared (in place or not), replaced or edited between two backwards is no longer followed. So nothing rests
    on whether a `zero_grad` was seen.
    """

    def __init__(self) -> None:
        self.left: dict[int, list[Left]] = {}
        """Gradients that are followed, by id of the optimizer; empty after the first steps of all."""
        self._touched: set[int] = set()
        """Optimizers for which a backward has run since their step."""
        self._steps: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._found: set[int] = set()

    def before_backward(self, within: Container[int]) -> None:
        """Forget gradients that are no longer what the step, or the last backward, left; of optimizers `within`."""
        for key in [key for key in list(self.left) if key in within]:
            left = [entry for entry in self.left[key] if _as_left(entry)]
            if left:
                self.left[key] = left
            else:
                del self.left[key]

    def after_backward(self, within: Container[int]) -> None:
        """Take the gradients that a backward has added to as the same ones; of optimizers `within`."""
        for key in [key for key in list(self.left) if key in within]:
            left = self.left[key]
            grown = [entry for entry in left if not _as_left(entry)]
            if grown:
                self._touched.add(key)
                self.left[key] = _look(param for reference, _, _ in left if (param := reference()) is not None)

    def after_step(self, optimizer: Any, probes: Callable[[Any], Iterable[torch.Tensor]]) -> bool:
        """Judge a step, one of an optimizer's first, and follow what it leaves. Whether more are to be judged."""
        key = id(optimizer)
        if key in self.left and key in self._touched:
            self._found.add(key)
        self.left.pop(key, None)
        self._touched.discard(key)
        reference, count = self._steps.get(key, (None, 0))
        if reference is None or reference() is not optimizer:
            reference, count = weakref.ref(optimizer), 0
        if count < STEPS:
            with torch._C.DisableTorchFunction():
                self.left[key] = _look(probes(optimizer))
        if count <= STEPS:
            self._steps[key] = reference, count + 1
        return count < STEPS

    def found(self, optimizer: Any) -> bool:
        """Whether the step last judged used gradients left by the one before; asked once a step."""
        key = id(optimizer)
        if key in self._found:
            self._found.discard(key)
            return True
        return False


def version_of(grad: torch.Tensor) -> int:
    """How often a gradient was written to; -1 for one made in inference mode, which does not count that."""
    return -1 if grad.is_inference() else grad._version


def _look(params: Iterable[torch.Tensor]) -> list[Left]:
    with torch._C.DisableTorchFunction():
        return [
            (weakref.ref(param), weakref.ref(grad), version_of(grad))
            for param in params
            if type(grad := param.grad) is torch.Tensor
        ]


def _as_left(entry: Left) -> bool:
    param = entry[0]()
    with torch._C.DisableTorchFunction():
        grad = None if param is None else param.grad
        return grad is not None and grad is entry[1]() and version_of(grad) == entry[2]
