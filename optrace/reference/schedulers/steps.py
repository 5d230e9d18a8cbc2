"""StepLR and MultiStepLR: lr drops by a factor at regular or at chosen epochs."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable

from optrace.reference.schedulers.base import LRScheduler
from optrace.reference.schedulers.groups import HasGroups


class StepLR(LRScheduler):
    """Multiply lr by gamma every `step_size` epochs.

        chained:  lr(e) = lr(e - 1) * gamma   if e is a multiple of step_size, e != 0;   else lr(e - 1)
        closed:   lr(e) = lr_initial * gamma ** (e // step_size)

    Traps: the first drop is at epoch `step_size`, not at 0. An lr edited from outside lives on in the chained form and
    is wiped by `step(epoch)`. Chained products and the power round differently.

    Args:
        optimizer: see `LRScheduler`.
        step_size: epochs between two drops.
        gamma: the factor of one drop.
        last_epoch: see `LRScheduler`; resuming to a multiple of step_size multiplies at construction.

    >>> from types import SimpleNamespace
    >>> scheduler = StepLR(SimpleNamespace(param_groups=[{"lr": 1.0}]), step_size=2, gamma=0.5)
    >>> for _ in range(4): scheduler.step(); print(scheduler.get_last_lr())
    [1.0]
    [0.5]
    [0.5]
    [0.25]

    Source: torch 2.13, torch/optim/lr_scheduler.py, StepLR.
    """

    def __init__(self, optimizer: HasGroups, step_size: int, gamma: float = 0.1, last_epoch: int = -1) -> None:
        self.step_size = step_size
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """Return the current lr, times gamma where a period ends."""
        period_ends = self.last_epoch != 0 and self.last_epoch % self.step_size == 0
        return self._times(self.gamma) if period_ends else self._kept()

    def _get_closed_form_lr(self) -> list[float]:
        return self._base_times(self.gamma ** (self.last_epoch // self.step_size))


class MultiStepLR(LRScheduler):
    """Multiply lr by gamma at each milestone.

        chained:  lr(e) = lr(e - 1) * gamma ** (how often e is listed);   lr(e - 1) if it is not
        closed:   lr(e) = lr_initial * gamma ** (how many milestones are <= e)

    Traps: a milestone listed twice drops lr twice; the list need not be sorted; a milestone 0 applies at construction.
    An lr edited from outside lives on in the chained form and is wiped by `step(epoch)`.

    Args:
        optimizer: see `LRScheduler`.
        milestones: epochs; kept as a Counter {epoch: how often}, also in `state_dict`.
        gamma: the factor of one drop.
        last_epoch: see `LRScheduler`; resuming to a milestone multiplies at construction.

    >>> from types import SimpleNamespace
    >>> scheduler = MultiStepLR(SimpleNamespace(param_groups=[{"lr": 1.0}]), milestones=[2, 3, 3], gamma=0.5)
    >>> for _ in range(3): scheduler.step(); print(scheduler.get_last_lr())
    [1.0]
    [0.5]
    [0.125]

    Source: torch 2.13, torch/optim/lr_scheduler.py, MultiStepLR.
    """

    def __init__(
        self, optimizer: HasGroups, milestones: Iterable[int], gamma: float = 0.1, last_epoch: int = -1
    ) -> None:
        self.milestones = Counter(milestones)
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """Return the current lr, times gamma for each time that this epoch is a milestone."""
        times_listed = self.milestones[self.last_epoch]
        return self._times(self.gamma**times_listed) if self.last_epoch in self.milestones else self._kept()

    def _get_closed_form_lr(self) -> list[float]:
        n_passed = bisect_right(sorted(self.milestones.elements()), self.last_epoch)
        return self._base_times(self.gamma**n_passed)
