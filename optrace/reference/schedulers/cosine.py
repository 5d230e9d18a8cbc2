"""CosineAnnealingLR and CosineAnnealingWarmRestarts: lr falls along half a cosine."""

from __future__ import annotations

import math

from optrace.errors import OptionError
from optrace.reference.schedulers.base import LRScheduler
from optrace.reference.schedulers.groups import HasGroups, groups_of


class CosineAnnealingLR(LRScheduler):
    """Half a cosine from the initial lr down to `eta_min` in `T_max` epochs, and up again after it.

    With c(e) = 1 + cos(pi * e / T_max):

        closed:   lr(e) = eta_min + (lr_initial - eta_min) * c(e) / 2
        chained:  lr(e) = eta_min + (lr(e - 1) - eta_min) * c(e) / c(e - 1)
                  but one epoch after a bottom (e = T_max + 1, 3 T_max + 1, ...), where c(e - 1) is 0:
                  lr(e) = lr(e - 1) + (lr_initial - eta_min) * (1 - cos(pi / T_max)) / 2

    Traps: lr does **not** stay at the bottom, it climbs back to the initial lr at 2 T_max; a run of at most T_max
    epochs cannot tell an implementation that clamps. There is no restart, see `CosineAnnealingWarmRestarts`. The
    chained form drifts: 2.5e-12 relative over 100 periods.

    Args:
        optimizer: see `LRScheduler`.
        T_max: epochs from top to bottom, half a period.
        eta_min: lr at the bottom, one for all groups.
        last_epoch: see `LRScheduler`.

    >>> from types import SimpleNamespace
    >>> scheduler = CosineAnnealingLR(SimpleNamespace(param_groups=[{"lr": 1.0}]), T_max=2)
    >>> for _ in range(5): print(round(scheduler.get_last_lr()[0], 12)); scheduler.step()
    1.0
    0.5
    0.0
    0.5
    1.0

    Source: SGDR, https://arxiv.org/abs/1608.03983, without its restarts; torch 2.13, torch/optim/lr_scheduler.py,
    CosineAnnealingLR.
    """

    def __init__(self, optimizer: HasGroups, T_max: int, eta_min: float = 0.0, last_epoch: int = -1) -> None:
        self.T_max = T_max
        self.eta_min = eta_min
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """Return lr moved along the cosine by one epoch."""
        if self._is_initial:
            return self._kept()
        if self._step_count == 1 and self.last_epoch > 0:  # asked by hand, right after resuming by last_epoch
            return self._get_closed_form_lr()
        groups = groups_of(self.optimizer)
        if (self.last_epoch - 1 - self.T_max) % (2 * self.T_max) == 0:
            rise = 1 - math.cos(math.pi / self.T_max)
            pairs = zip(groups, self.base_lrs, strict=True)
            return [group["lr"] + (base_lr - self.eta_min) * rise / 2 for group, base_lr in pairs]
        ratio = self._height(self.last_epoch) / self._height(self.last_epoch - 1)
        return [ratio * (group["lr"] - self.eta_min) + self.eta_min for group in groups]

    def _get_closed_form_lr(self) -> list[float]:
        height = self._height(self.last_epoch)
        return [self.eta_min + (base_lr - self.eta_min) * height / 2 for base_lr in self.base_lrs]

    def _height(self, epoch: int) -> float:
        return 1 + math.cos(math.pi * epoch / self.T_max)


class CosineAnnealingWarmRestarts(LRScheduler):
    """Half a cosine from the initial lr towards `eta_min`, then a jump back to the top, in ever longer periods.

        lr = eta_min + (lr_initial - eta_min) * (1 + cos(pi * T_cur / T_i)) / 2

    T_cur counts the epochs since the last restart; T_i is the length of the present period: T_0, then T_0 * T_mult,
    T_0 * T_mult**2, ... Period n begins at epoch T_0 * (T_mult**n - 1) / (T_mult - 1), or n * T_0 where T_mult is 1.

    Traps: computed from the initial lr, so edits of lr from outside last one step. `step(epoch)` is a normal call here
    (no warning) and takes fractions, such as epoch + batch / n_batches; `last_epoch` is then floor(epoch) while T_cur
    keeps the fraction: with T_0=10, step(2.5) then step() give T_cur 3.5 and last_epoch 3. The bottom itself is never
    reached by whole epochs. Resuming by `last_epoch` knows only of the first restart: load a `state_dict` instead. The
    period of step(epoch) comes from a logarithm, whose rounding can put an epoch on a boundary into the period before.

    Args:
        optimizer: see `LRScheduler`.
        T_0: length of the first period in epochs; a positive int, else OptionError.
        T_mult: growth of the periods; an int >= 1, else OptionError.
        eta_min: lr at the bottom; a number, else OptionError.
        last_epoch: see `LRScheduler`.

    >>> from types import SimpleNamespace
    >>> scheduler = CosineAnnealingWarmRestarts(SimpleNamespace(param_groups=[{"lr": 1.0}]), T_0=2, T_mult=2)
    >>> for _ in range(7): print(scheduler.T_cur, "of", scheduler.T_i); scheduler.step()
    0 of 2
    1 of 2
    0 of 4
    1 of 4
    2 of 4
    3 of 4
    0 of 8

    Source: SGDR, https://arxiv.org/abs/1608.03983; torch 2.13, torch/optim/lr_scheduler.py,
    CosineAnnealingWarmRestarts.
    """

    def __init__(
        self, optimizer: HasGroups, T_0: int, T_mult: int = 1, eta_min: float = 0.0, last_epoch: int = -1
    ) -> None:
        if T_0 <= 0 or not isinstance(T_0, int):
            raise OptionError(f"T_0={T_0!r} is not a positive int")
        if T_mult < 1 or not isinstance(T_mult, int):
            raise OptionError(f"T_mult={T_mult!r} is not an int of at least 1")
        if not isinstance(eta_min, float | int):
            raise OptionError(f"eta_min={eta_min!r} is a {type(eta_min).__name__}, not a number")
        self.T_0 = T_0
        self.T_i = T_0
        self.T_mult = T_mult
        self.eta_min = eta_min
        self.T_cur: float = last_epoch
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """Return the lr at `T_cur` of the present period."""
        height = 1 + math.cos(math.pi * self.T_cur / self.T_i)
        return [self.eta_min + (base_lr - self.eta_min) * height / 2 for base_lr in self.base_lrs]

    def step(self, epoch: float | None = None) -> None:
        """Go on by one epoch, or to `epoch`, which may be a fraction; OptionError if it is negative."""
        if epoch is None and self.last_epoch >= 0:
            epoch = self.last_epoch + 1
            self._advance()
        else:
            epoch = 0 if epoch is None else epoch
            self._locate(epoch)
        self.last_epoch = math.floor(epoch)
        self._write_lrs(self.get_lr())

    def _advance(self) -> None:
        self.T_cur += 1
        if self.T_cur >= self.T_i:
            self.T_cur %= self.T_i
            self.T_i *= self.T_mult

    def _locate(self, epoch: float) -> None:
        if epoch < 0:
            raise OptionError(f"epoch={epoch!r} is negative")
        if epoch < self.T_0:
            self.T_cur, self.T_i = epoch, self.T_0
        elif self.T_mult == 1:
            self.T_cur = epoch % self.T_0
        else:
            n_restarts = int(math.log(epoch / self.T_0 * (self.T_mult - 1) + 1, self.T_mult))
            growth = self.T_mult**n_restarts
            self.T_cur = epoch - self.T_0 * (growth - 1) / (self.T_mult - 1)
            self.T_i = self.T_0 * growth
