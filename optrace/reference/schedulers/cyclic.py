"""CyclicLR: lr climbs and falls between two bounds, over and over, and momentum does the reverse."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from optrace.errors import OptionError
from optrace.reference.schedulers.base import LRScheduler
from optrace.reference.schedulers.functions import stored_callable
from optrace.reference.schedulers.groups import (
    HasGroups,
    begin_momentum_cycle,
    groups_of,
    per_group,
    uses_beta1,
    write,
    write_momentum,
)


class CyclicLR(LRScheduler):
    """A triangle wave between `base_lr` and `max_lr`, perhaps shrinking.

    With up, down = step_size_up, step_size_down and n = up + down:

        cycle = floor(1 + e/n)                          1 in the first cycle, 2 in the second, ...
        x     = 1 + e/n - cycle                         how much of the cycle is done, in [0, 1)
        rise  = x / (up/n)  if x <= up/n,  else  (x - 1) / (up/n - 1)       0 -> 1 -> 0
        lr(e) = base_lr + (max_lr - base_lr) * rise * scale
        momentum(e) = max_momentum - (max_momentum - base_momentum) * rise * scale

    scale is 1 ("triangular"), 1 / 2**(cycle - 1) ("triangular2"), gamma**e ("exp_range"), or scale_fn(cycle), or
    scale_fn(e) with scale_mode="iterations".

    Traps: a step is meant to be a *batch*, not an epoch. The lr that the optimizer was given is lost at construction,
    and edits of lr last one step. cycle_momentum is **on by default** and sets `momentum` (or `betas[0]`) of every
    group from construction on, also of an SGD built with momentum=0; max_momentum and base_momentum are written into
    the groups. Where an earlier scheduler left an `initial_lr`, that is the lr of epoch 0, and base_lr rules only
    afterwards. scale_mode is ignored unless scale_fn is given, and a given scale_fn is used whatever the mode; it is
    not part of `state_dict`. step_size_down=0 is accepted: a sawtooth that jumps from near the top to the bottom.

    Args:
        optimizer: see `LRScheduler`; with cycle_momentum it needs `momentum` or `betas`, else OptionError.
        base_lr: the lower bound, one for all groups or a list of one a group.
        max_lr: the upper bound, likewise.
        step_size_up: number of steps up.
        step_size_down: number of steps down; None: as many as up.
        mode: "triangular", "triangular2" or "exp_range", else OptionError unless there is a scale_fn.
        gamma: for "exp_range".
        scale_fn: your own scale.
        scale_mode: what scale_fn is called with, "cycle" (from 1) or "iterations" (from 0).
        cycle_momentum: whether momentum moves against lr.
        base_momentum: the lower bound of momentum, one for all groups or a list.
        max_momentum: the upper bound of momentum, likewise.
        last_epoch: see `LRScheduler`.

    >>> from types import SimpleNamespace
    >>> optimizer = SimpleNamespace(param_groups=[{"lr": 9.0, "momentum": 0.0}])
    >>> scheduler = CyclicLR(optimizer, base_lr=1.0, max_lr=2.0, step_size_up=2)
    >>> for _ in range(5): print(scheduler.get_last_lr(), optimizer.param_groups[0]["momentum"]); scheduler.step()
    [1.0] 0.9
    [1.5] 0.8500000000000001
    [2.0] 0.8
    [1.5] 0.8500000000000001
    [1.0] 0.9

    Source: cyclical learning rates, https://arxiv.org/abs/1506.01186; torch 2.13, torch/optim/lr_scheduler.py,
    CyclicLR.
    """

    def __init__(
        self,
        optimizer: HasGroups,
        base_lr: float | list[float],
        max_lr: float | list[float],
        step_size_up: int = 2000,
        step_size_down: int | None = None,
        mode: str = "triangular",
        gamma: float = 1.0,
        scale_fn: Callable[[float], float] | None = None,
        scale_mode: str = "cycle",
        cycle_momentum: bool = True,
        base_momentum: float | list[float] = 0.8,
        max_momentum: float | list[float] = 0.9,
        last_epoch: int = -1,
    ) -> None:
        base_lrs = per_group("base_lr", base_lr, optimizer)
        if last_epoch == -1:
            for group, lr in zip(groups_of(optimizer), base_lrs, strict=True):
                write(group, "lr", lr)
        self.max_lrs = per_group("max_lr", max_lr, optimizer)

        up = float(step_size_up)
        down = up if step_size_down is None else float(step_size_down)
        self.total_size = up + down
        self.step_ratio = up / self.total_size

        if mode not in ("triangular", "triangular2", "exp_range") and scale_fn is None:
            raise OptionError(f"mode={mode!r} is not triangular, triangular2 or exp_range, and there is no scale_fn")
        self.mode = mode
        self.gamma = gamma
        self._scale_fn_custom = scale_fn
        self.scale_mode = scale_mode
        if scale_fn is None:
            self.scale_mode = "iterations" if mode == "exp_range" else "cycle"

        self.cycle_momentum = cycle_momentum
        if cycle_momentum:
            self.use_beta1 = uses_beta1(optimizer)
            self.base_momentums = per_group("base_momentum", base_momentum, optimizer)
            self.max_momentums = per_group("max_momentum", max_momentum, optimizer)
            if last_epoch == -1:
                begin_momentum_cycle(optimizer, self.base_momentums, self.max_momentums, self.use_beta1)
        super().__init__(optimizer, last_epoch)
        self.base_lrs = base_lrs

    def scale_fn(self, x: float) -> float:
        """Return the height of the triangle at cycle x (from 1), or at step x where scale_mode is "iterations"."""
        if self._scale_fn_custom is not None:
            return self._scale_fn_custom(x)
        scale: float = 1.0
        if self.mode == "triangular2":
            scale = 1 / 2.0 ** (x - 1)
        elif self.mode == "exp_range":
            scale = self.gamma**x
        return scale

    def get_lr(self) -> list[float]:
        """Return each group's lr on the triangle; also **writes** its momentum, when that is cycled."""
        cycle = math.floor(1 + self.last_epoch / self.total_size)
        x = 1.0 + self.last_epoch / self.total_size - cycle
        climbing = x <= self.step_ratio
        rise = x / self.step_ratio if climbing else (x - 1) / (self.step_ratio - 1)

        def move(start: float, end: float) -> float:
            reach = (end - start) * rise
            return start + reach * self.scale_fn(cycle if self.scale_mode == "cycle" else self.last_epoch)

        lrs = [move(base_lr, max_lr) for base_lr, max_lr in zip(self.base_lrs, self.max_lrs, strict=True)]
        if self.cycle_momentum:
            bounds = zip(groups_of(self.optimizer), self.max_momentums, self.base_momentums, strict=True)
            for group, max_momentum, base_momentum in bounds:
                write_momentum(group, move(max_momentum, base_momentum), self.use_beta1)
        return lrs

    def state_dict(self) -> dict[str, Any]:
        """Return the state; a scale_fn that is a plain function is stored as None and must be given again."""
        return super().state_dict() | {"_scale_fn_custom": stored_callable(self._scale_fn_custom)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state; a scale_fn that is an object gets its attributes back."""
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "_scale_fn_custom"})
        stored = state_dict["_scale_fn_custom"]
        if stored is not None:
            self._scale_fn_custom.__dict__.update(stored)
