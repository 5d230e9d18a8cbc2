"""ExponentialLR and PolynomialLR: lr decays by a constant factor, or along a power of a line."""

from __future__ import annotations

from optrace.reference.schedulers.base import LRScheduler
from optrace.reference.schedulers.groups import HasGroups


class ExponentialLR(LRScheduler):
    """Multiply lr by gamma every epoch.

        chained:  lr(e) = lr(e - 1) * gamma   for e >= 1
        closed:   lr(e) = lr_initial * gamma ** e

    Traps: nothing happens at epoch 0. Product and power drift apart by rounding (6e-15 relative in 10,000 epochs).

    Args:
        optimizer: see `LRScheduler`.
        gamma: the factor of one epoch.
        last_epoch: see `LRScheduler`.

    >>> from types import SimpleNamespace
    >>> scheduler = ExponentialLR(SimpleNamespace(param_groups=[{"lr": 1.0}]), gamma=0.5)
    >>> for _ in range(3): print(scheduler.get_last_lr()); scheduler.step()
    [1.0]
    [0.5]
    [0.25]

    Source: torch 2.13, torch/optim/lr_scheduler.py, ExponentialLR.
    """

    def __init__(self, optimizer: HasGroups, gamma: float, last_epoch: int = -1) -> None:
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """Return the current lr times gamma."""
        return self._kept() if self._is_initial else self._times(self.gamma)

    def _get_closed_form_lr(self) -> list[float]:
        return self._base_times(self.gamma**self.last_epoch)


class PolynomialLR(LRScheduler):
    """A power of the line that falls from 1 to 0 within `total_iters` epochs.

    With n = total_iters:

        chained:  lr(e) = lr(e - 1) * ((1 - e/n) / (1 - (e-1)/n)) ** power   for 1 <= e <= n;   then unchanged
        closed:   lr(e) = lr_initial * (1 - min(n, e)/n) ** power

    Traps: lr is exactly 0 from epoch n on, and chained form cannot leave 0. n=0 leaves lr alone in the chained form and
    divides by zero in the closed one.

    Args:
        optimizer: see `LRScheduler`.
        total_iters: number of epochs until lr is 0.
        power: of the polynomial; 1 is a line.
        last_epoch: see `LRScheduler`.

    >>> from types import SimpleNamespace
    >>> scheduler = PolynomialLR(SimpleNamespace(param_groups=[{"lr": 1.0}]), total_iters=2, power=2)
    >>> for _ in range(3): print(scheduler.get_last_lr()); scheduler.step()
    [1.0]
    [0.25]
    [0.0]

    Source: torch 2.13, torch/optim/lr_scheduler.py, PolynomialLR.
    """

    def __init__(self, optimizer: HasGroups, total_iters: int = 5, power: float = 1.0, last_epoch: int = -1) -> None:
        self.total_iters = total_iters
        self.power = power
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """Return the current lr times the ratio of this epoch's factor to the last one's."""
        if self._is_initial or self.last_epoch > self.total_iters:
            return self._kept()
        left = 1.0 - self.last_epoch / self.total_iters
        left_before = 1.0 - (self.last_epoch - 1) / self.total_iters
        return self._times((left / left_before) ** self.power)

    def _get_closed_form_lr(self) -> list[float]:
        left = 1.0 - min(self.total_iters, self.last_epoch) / self.total_iters
        return self._base_times(left**self.power)
