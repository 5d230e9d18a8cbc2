"""What a call of an optimizer's `step()` may be, and what its parameters tell of that."""

from __future__ import annotations

from collections import Counter
from enum import Enum
from typing import Any

import torch

from optrace.recorder.jobs import measure_now
from optrace.recorder.tensors import Unmeasurable, locate


class Kind(Enum):
    """What a running call of `step()` turned out to be."""

    NOT_SEEN = "not seen"
    SKIPPED = "skipped"
    STATE_INIT = "state_init"
    COUNTED = "counted"
    RECORDED = "recorded"


def first_param(optimizer: Any) -> Any:
    """The first parameter; None without any."""
    for group in optimizer.param_groups:
        for param in group["params"]:
            return param
    return None


def params_of(optimizer: Any) -> list[Any]:
    """All parameters, in order."""
    groups = getattr(optimizer, "param_groups", None) or ()  # none: its constructor has raised
    return [param for group in groups for param in group["params"]]


def held_twice(optimizer: Any) -> list[Any]:
    """Parameters that the groups list more than once, each once."""
    counts = Counter(map(id, params := params_of(optimizer)))
    return list({id(param): param for param in params if counts[id(param)] > 1}.values())


def _differs_from_zero(rate: Any) -> bool:
    return bool((rate.detach() if isinstance(rate, torch.Tensor) else rate) != 0)


def initialises_state(optimizer: Any) -> bool:
    """Whether this step only makes the optimizer create its state: every lr 0, every gradient zero, no state yet.

    torch.distributed.checkpoint does so before it can load or save an optimizer that has not stepped.
    """
    rates = []
    for group in optimizer.param_groups:
        if "lr" in group:
            rate = group["lr"]
            if rate != 0 if type(rate) is float else _differs_from_zero(rate):
                return False
            rates.append(rate)
    if not rates:
        return False
    with_grad = [param for param in params_of(optimizer) if param.is_leaf and param.grad is not None]
    if not with_grad or any(optimizer.state.get(param) for param in with_grad):
        return False
    keep: list[Any] = []
    found = [locate(param.grad, keep) for param in with_grad]
    if any(isinstance(kind, Unmeasurable) for _, _, kind in found):
        return False
    rows = measure_now(found, 1)
    return bool((rows["n_zero"] == [numel for _, numel, _ in found]).all())
