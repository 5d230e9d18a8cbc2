"""SWALR: from the lr in force to a constant one, for stochastic weight averaging."""

from __future__ import annotations

import math
from typing import Any

from optrace.errors import OptionError
from optrace.reference.schedulers.base import LRScheduler
from optrace.reference.schedulers.groups import HasGroups, groups_of, per_group


class SWALR(LRScheduler):
    """Move lr from where it is to `swa_lr` within `anneal_epochs` steps, then hold it there.

    With n = anneal_epochs, a(t) = t ("linear") or (1 - cos(pi * t)) / 2 ("cos"), and step k from 0 (construction):

        start   = (lr - a((k-1)/n) * swa_lr) / (1 - a((k-1)/n))     the lr the move began from, worked back
        lr(k)   = swa_lr * a(k/n) + start * (1 - a(k/n))

    with k/n clipped to [0, 1]; where the last a was 1, start is swa_lr. It is worked back each time because
    another scheduler may move lr in between.

    Traps: k is `_step_count`, the calls of `step`, not `last_epoch`; `step(epoch)` moves on by one all the same. Writes
    `group["swa_lr"]`, and reads it at each step. n=0 jumps to swa_lr at construction.

    Args:
        optimizer: see `LRScheduler`.
        swa_lr: the lr to reach, one for all groups or a list of one a group.
        anneal_epochs: number of steps of the move; an int >= 0, else OptionError.
        anneal_strategy: "cos" or "linear", else OptionError.
        last_epoch: see `LRScheduler`.

    >>> from types import SimpleNamespace
    >>> optimizer = SimpleNamespace(param_groups=[{"lr": 1.0}])
    >>> scheduler = SWALR(optimizer, swa_lr=0.5, anneal_epochs=2, anneal_strategy="linear")
    >>> for _ in range(4): print(scheduler.get_last_lr()); scheduler.step()
    [1.0]
    [0.75]
    [0.5]
    [0.5]

    Source: averaged weights, https://arxiv.org/abs/1803.05407; torch 2.13, torch/optim/swa_utils.py, SWALR.
    """

    def __init__(
        self,
        optimizer: HasGroups,
        swa_lr: float | list[float],
        anneal_epochs: int = 10,
        anneal_strategy: str = "cos",
        last_epoch: int = -1,
    ) -> None:
        for group, value in zip(groups_of(optimizer), per_group("swa_lr", swa_lr, optimizer), strict=True):
            group["swa_lr"] = value
        if anneal_strategy not in ("cos", "linear"):
            raise OptionError(f"anneal_strategy={anneal_strategy!r} is neither 'cos' nor 'linear'")
        if not isinstance(anneal_epochs, int) or anneal_epochs < 0:
            raise OptionError(f"anneal_epochs={anneal_epochs!r} is not an int of at least 0")
        self._anneal_strategy = anneal_strategy
        self.anneal_epochs = anneal_epochs
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """Return the next lr on the way from the worked-back start to `swa_lr`."""
        step = self._step_count - 1
        if self.anneal_epochs == 0:
            step = max(1, step)
        before, now = self._share(step - 1), self._share(step)
        return [self._next_lr(group["lr"], group["swa_lr"], before, now) for group in groups_of(self.optimizer)]

    def _share(self, step: int) -> float:
        """Return how much of the way is done at a step: 0 at first, 1 at the end."""
        t = max(0, min(1, step / max(1, self.anneal_epochs)))
        return t if self._anneal_strategy == "linear" else (1 - math.cos(math.pi * t)) / 2

    @staticmethod
    def _next_lr(lr: Any, swa_lr: Any, before: float, now: float) -> Any:
        start = swa_lr if before == 1 else (lr - before * swa_lr) / (1 - before)
        return swa_lr * now + start * (1 - now)
