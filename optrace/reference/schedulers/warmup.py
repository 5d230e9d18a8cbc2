"""ConstantLR and LinearLR: a reduced lr for the first epochs, lifted at once or along a line."""

from __future__ import annotations

from optrace.errors import OptionError
from optrace.reference.schedulers.base import LRScheduler
from optrace.reference.schedulers.groups import HasGroups


class ConstantLR(LRScheduler):
    """A fraction of lr until epoch `total_iters`, then the whole.

        chained:  lr(0) = lr_initial * factor;   lr(total_iters) = lr * (1 / factor);   unchanged at other epochs
        closed:   lr(e) = lr_initial * factor   for e < total_iters;   lr_initial   from then on

    Traps: factor=0 is accepted, and the division at total_iters raises ZeroDivisionError. total_iters=0 is not off: the
    chained form applies the factor at epoch 0 and never takes it back, while the closed form gives the initial lr.
    factor * (1 / factor) need not be exactly 1.

    Args:
        optimizer: see `LRScheduler`.
        factor: from 0 to 1, else OptionError.
        total_iters: the epoch from which lr is whole.
        last_epoch: see `LRScheduler`.

    >>> from types import SimpleNamespace
    >>> scheduler = ConstantLR(SimpleNamespace(param_groups=[{"lr": 1.0}]), factor=0.5, total_iters=2)
    >>> for _ in range(3): print(scheduler.get_last_lr()); scheduler.step()
    [0.5]
    [0.5]
    [1.0]

    Source: torch 2.13, torch/optim/lr_scheduler.py, ConstantLR.
    """

    def __init__(
        self, optimizer: HasGroups, factor: float = 1.0 / 3, total_iters: int = 5, last_epoch: int = -1
    ) -> None:
        if factor > 1.0 or factor < 0:
            raise OptionError(f"factor={factor!r} is not between 0 and 1")
        self.factor = factor
        self.total_iters = total_iters
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """Return the current lr, reduced at epoch 0 and restored at epoch `total_iters`."""
        if self.last_epoch == 0:
            return self._times(self.factor)
        if self.last_epoch == self.total_iters:
            return self._times(1.0 / self.factor)
        return self._kept()

    def _get_closed_form_lr(self) -> list[float]:
        return self._base_times(self.factor if self.last_epoch < self.total_iters else 1.0)


class LinearLR(LRScheduler):
    """A factor that moves on a line from `start_factor` to `end_factor` within `total_iters` epochs.

    With s = start_factor, d = end_factor - start_factor, n = total_iters:

        chained:  lr(0) = lr * s;   lr(e) = lr(e - 1) * (1 + d / (n * s + (e - 1) * d))   for 1 <= e <= n
        closed:   lr(e) = lr_initial * (s + d * min(n, e) / n)

    The chained factor is the ratio of two neighbours on the line, (n*s + e*d) / (n*s + (e-1)*d). From epoch n on lr
    stays as it is.

    Traps: s may not be 0 (the ratios could never leave it). n=0 keeps lr * s in the chained form and divides by zero in
    the closed one. After a long ramp the end value is off by rounding (2.6e-15 relative after 9000 epochs).
    Resuming by `last_epoch` leaves lr as it is, unless that makes epoch 0.

    Args:
        optimizer: see `LRScheduler`.
        start_factor: above 0 and at most 1, else OptionError.
        end_factor: from 0 to 1, else OptionError.
        total_iters: number of epochs of the ramp.
        last_epoch: see `LRScheduler`.

    >>> from types import SimpleNamespace
    >>> scheduler = LinearLR(SimpleNamespace(param_groups=[{"lr": 1.0}]), start_factor=0.5, total_iters=2)
    >>> for _ in range(3): print(scheduler.get_last_lr()); scheduler.step()
    [0.5]
    [0.75]
    [1.0]

    Source: torch 2.13, torch/optim/lr_scheduler.py, LinearLR.
    """

    def __init__(
        self,
        optimizer: HasGroups,
        start_factor: float = 1.0 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:
        if start_factor > 1.0 or start_factor <= 0:
            raise OptionError(f"start_factor={start_factor!r} is not above 0 and at most 1")
        if end_factor > 1.0 or end_factor < 0:
            raise OptionError(f"end_factor={end_factor!r} is not between 0 and 1")
        self.start_factor = start_factor
        self.end_factor = end_factor
        self.total_iters = total_iters
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """Return the current lr times the ratio of this epoch's point on the line to the last one's."""
        if self.last_epoch == 0:
            return self._times(self.start_factor)
        if self._is_initial or self.last_epoch > self.total_iters:
            return self._kept()
        slope = self.end_factor - self.start_factor
        point_before = self.total_iters * self.start_factor + (self.last_epoch - 1) * slope
        return self._times(1.0 + slope / point_before)

    def _get_closed_form_lr(self) -> list[float]:
        slope = self.end_factor - self.start_factor
        return self._base_times(self.start_factor + slope * min(self.total_iters, self.last_epoch) / self.total_iters)
