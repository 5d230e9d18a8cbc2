"""ReduceLROnPlateau: lr drops when a metric has stopped improving."""

from __future__ import annotations

import math
import warnings
from typing import Any, SupportsFloat

from optrace.errors import OptionError
from optrace.reference.schedulers.base import EPOCH_WARNING, LRScheduler
from optrace.reference.schedulers.groups import HasGroups, groups_of, per_group, write


class ReduceLROnPlateau(LRScheduler):
    """Multiply lr by `factor` once a metric has not improved for more than `patience` epochs.

    A metric m improves on the best one so far when

        mode min:   m < best * (1 - threshold)  (rel)   or   m < best - threshold  (abs)
        mode max:   m > best * (1 + threshold)  (rel)   or   m > best + threshold  (abs)

    Each step, in this order: an improvement sets best and clears the count of bad epochs, anything else (NaN too) adds
    one to it; during a cooldown the cooldown counts down and the count of bad epochs is cleared; a count **above**
    patience reduces lr, clears the count and begins a cooldown. Reducing is lr = max(lr * factor, min_lr), and only
    where that lowers lr by more than eps.

    Traps: `step(metric)` needs the metric. patience=0 reduces at the first bad epoch, patience=2 at the third.
    Construction does **not** change lr and writes no `initial_lr`; there are no base_lrs. A small lr stays for ever
    when the drop is not above eps. In rel mode a negative best moves the bar the wrong way. best stays as it is when
    lr is reduced.

    Args:
        optimizer: see `LRScheduler`.
        mode: "min" for a metric that should fall, "max" for one that should rise, else OptionError.
        factor: below 1, else OptionError.
        patience: number of bad epochs in a row that are forgiven.
        threshold: what counts as an improvement.
        threshold_mode: "rel" or "abs", else OptionError.
        cooldown: epochs after a reduction during which bad epochs are not counted.
        min_lr: lower bound, one for all groups or a list of one a group (OptionError on a wrong length).
        eps: drops of lr up to this are left out.

    >>> from types import SimpleNamespace
    >>> scheduler = ReduceLROnPlateau(SimpleNamespace(param_groups=[{"lr": 1.0}]), factor=0.5, patience=1)
    >>> for loss in [3.0, 2.0, 2.0, 2.0, 1.0]: scheduler.step(loss); print(scheduler.get_last_lr())
    [1.0]
    [1.0]
    [1.0]
    [0.5]
    [0.5]

    Source: torch 2.13, torch/optim/lr_scheduler.py, ReduceLROnPlateau.
    """

    def __init__(
        self,
        optimizer: HasGroups,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float | list[float] = 0,
        eps: float = 1e-8,
    ) -> None:
        if factor >= 1.0:
            raise OptionError(f"factor={factor!r} would not reduce lr; it must be below 1")
        self.factor = factor
        self.optimizer = optimizer
        self.default_min_lr = None if isinstance(min_lr, list | tuple) else min_lr
        self.min_lrs = per_group("min_lr", min_lr, optimizer)
        self.patience = patience
        self.cooldown = cooldown
        self.eps = eps
        self.last_epoch = 0
        self._last_lr = self._kept()
        self._set_mode(mode, threshold, threshold_mode)
        self._reset()

    def _set_mode(self, mode: str, threshold: float, threshold_mode: str) -> None:
        if mode not in ("min", "max"):
            raise OptionError(f"mode={mode!r} is neither 'min' nor 'max'")
        if threshold_mode not in ("rel", "abs"):
            raise OptionError(f"threshold_mode={threshold_mode!r} is neither 'rel' nor 'abs'")
        self.mode = mode
        self.threshold = threshold
        self.threshold_mode = threshold_mode
        self.mode_worse = math.inf if mode == "min" else -math.inf

    def _reset(self) -> None:
        self.best = self.mode_worse
        self.cooldown_counter = 0
        self.num_bad_epochs = 0

    def step(self, metrics: SupportsFloat, epoch: int | None = None) -> None:  # type: ignore[override]
        """Take the metric of an epoch (anything that float() reads) into account; `epoch` only sets `last_epoch`."""
        metric = float(metrics)
        if epoch is not None:
            warnings.warn(EPOCH_WARNING, UserWarning, stacklevel=2)
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch

        if self._is_better(metric, self.best):
            self.best = metric
            self.num_bad_epochs = 0
        else:
            self.num_bad_epochs += 1
        if self.in_cooldown:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            self._reduce()
            self.cooldown_counter = self.cooldown
            self.num_bad_epochs = 0
        self._last_lr = self._kept()

    @property
    def in_cooldown(self) -> bool:
        """Whether bad epochs are not counted at present."""
        return self.cooldown_counter > 0

    def _is_better(self, metric: float, best: float) -> bool:
        if self.mode == "min":
            bar = best * (1.0 - self.threshold) if self.threshold_mode == "rel" else best - self.threshold
            return metric < bar
        bar = best * (self.threshold + 1.0) if self.threshold_mode == "rel" else best + self.threshold
        return metric > bar

    def _reduce(self) -> None:
        groups = groups_of(self.optimizer)
        if len(groups) != len(self.min_lrs):
            if self.default_min_lr is None:
                raise RuntimeError(
                    f"{len(groups)} param groups now, but min_lr was given for {len(self.min_lrs)}; "
                    "after adding a group set `min_lrs` to one value a group"
                )
            self.min_lrs = per_group("min_lr", self.default_min_lr, self.optimizer)
        for group, min_lr in zip(groups, self.min_lrs, strict=True):
            old_lr = float(group["lr"])
            new_lr = max(old_lr * self.factor, min_lr)
            if old_lr - new_lr > self.eps:
                write(group, "lr", new_lr)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict()` returned."""
        super().load_state_dict(state_dict)
        self._set_mode(self.mode, self.threshold, self.threshold_mode)
