"""Gradients after each backward between two steps, for `--micro`: which micro-batch was lost, or counted twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from optrace.recorder.jobs import Rows, measure_now
from optrace.recorder.tensors import NOTHING, Found, Unmeasurable, locate

MOST = 64
"""So many backwards of a step are kept; those that follow are only counted."""


@dataclass
class MicroGradients:
    """The gradients of one optimizer's parameters after a backward: what has accumulated so far."""

    number: int
    """Of the backward, since the last step, from 1."""
    place: dict[int, int]
    """By id of the parameter: its row."""
    found: list[Found]
    rows: Rows

    @property
    def quantity(self) -> str:
        """What the rows are called."""
        return f"grad_micro.{self.number}"


def micro_gradients(number: int, params: Sequence[Any]) -> MicroGradients:
    """Measure the gradients that `params` have after the `number`-th backward."""
    keep: list[Any] = []
    found: list[Found] = []
    with torch._C.DisableTorchFunction():
        for param in params:
            grad = param.grad if param.is_leaf or param.retains_grad else None
            one = NOTHING if grad is None else locate(grad, keep)
            found.append(NOTHING if isinstance(one[2], Unmeasurable) else one)
        rows = measure_now(found, torch.get_num_threads())
    return MicroGradients(number, {id(param): row for row, param in enumerate(params)}, found, rows)
