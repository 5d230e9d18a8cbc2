"""What all learning-rate schedulers share: counting epochs, writing lr into the groups, saving and loading."""

from __future__ import annotations

import warnings
from typing import Any

from optrace.reference.schedulers.groups import HasGroups, groups_of, read, snapshot, write

EPOCH_WARNING = (
    "step(epoch) is deprecated: it jumps to that epoch by the closed form, which forgets every edit of lr made from "
    "outside and rounds differently; call step() once an epoch instead"
)


class LRScheduler:
    """A learning rate per group as a function of the epoch e = `last_epoch`, counted from 0.

    The life of a scheduler:

    - **Construction performs a step**: `last_epoch` goes from -1 to 0 and every group's lr becomes lr(0). So
      `optimizer.step()` number t (from 1) sees lr(t - 1), when `scheduler.step()` is called after each one.
      Construction also keeps the lr it found as `group["initial_lr"]`, unless an earlier scheduler has written one
      already.
    - `step()` advances e by one and calls `get_lr()`, the **chained form**: in most schedulers it computes the new lr
      from the *current* one, so edits of `group["lr"]` from outside live on, several schedulers can be chained on one
      optimizer, and rounding errors add up over the epochs.
    - `step(epoch)`, deprecated, jumps to an epoch by the **closed form**, from the initial lr, where a scheduler has
      one (`_get_closed_form_lr`), and by `get_lr()` otherwise. The two agree but for rounding, and as long as nobody
      edited lr.

    A subclass defines `get_lr()`, perhaps `_get_closed_form_lr()`, each returning one lr a group, and stores its
    options before it calls `super().__init__`, which already asks for lr(0).

    Resuming: build the scheduler as before and `load_state_dict(...)`, beside the optimizer's own state (the lr itself
    is in its groups). Passing `last_epoch=k` to the constructor resumes as well: groups must then hold `initial_lr`
    and the lr of epoch k, and construction steps to k + 1. Mind that a scheduler which multiplies at certain epochs
    (StepLR, MultiStepLR) does so here too when k + 1 is one of them.

    lr may be a float or a one-element torch Tensor, which keeps its identity and is filled in place. Unlike torch's,
    these classes leave `optimizer.step` alone, so they cannot warn when it is called in the wrong order.

    Args:
        optimizer: anything with `param_groups`, a list of dicts that each have an `lr`.
        last_epoch: -1 to start afresh, or the last epoch of the run to resume.

    Raises:
        TypeError: the optimizer has no param groups.
        KeyError: resuming, and a group has no `initial_lr`.

    Source: torch 2.13, torch/optim/lr_scheduler.py, LRScheduler.
    """

    def __init__(self, optimizer: HasGroups, last_epoch: int = -1) -> None:
        for index, group in enumerate(groups_of(optimizer)):
            if last_epoch == -1:
                group.setdefault("initial_lr", snapshot(group["lr"]))
            elif "initial_lr" not in group:
                raise KeyError(
                    f"param_groups[{index}] has no 'initial_lr', which last_epoch={last_epoch} needs to resume: "
                    "load the optimizer's state first, or leave last_epoch out in a fresh run"
                )
        self.optimizer = optimizer
        self.base_lrs: list[float] = read(optimizer, "initial_lr")
        self.last_epoch = last_epoch
        self._initial_step()

    def _initial_step(self) -> None:
        """Take the step that belongs to construction; `get_lr` sees `_is_initial` during it."""
        self._step_count = 0
        self._is_initial = True
        try:
            self.step()
        finally:
            self._is_initial = False

    def step(self, epoch: int | None = None) -> None:
        """Go on by one epoch (chained form), or jump to `epoch` (closed form; deprecated, warns)."""
        self._step_count += 1
        if epoch is not None:
            warnings.warn(EPOCH_WARNING, UserWarning, stacklevel=2)
        self._update_lr(epoch)

    def _update_lr(self, epoch: int | None = None) -> None:
        if epoch is None:
            self.last_epoch += 1
            lrs = self.get_lr()
        else:
            self.last_epoch = epoch
            lrs = getattr(self, "_get_closed_form_lr", self.get_lr)()
        self._write_lrs(lrs)

    def _write_lrs(self, lrs: list[float]) -> None:
        for group, lr in zip(groups_of(self.optimizer), lrs, strict=True):
            write(group, "lr", lr)
        self._last_lr = self._kept()

    def get_lr(self) -> list[float]:
        """Return the lr of each group for the epoch that `last_epoch` has just become; for use by `step()`.

        To ask for the lr in force use `get_last_lr()`: calling this by hand may apply a factor once more.
        """
        raise NotImplementedError(f"{type(self).__name__} has no get_lr of its own, so it cannot be put at an epoch")

    def get_last_lr(self) -> list[float]:
        """Return the lr of each group as this scheduler's last step left it."""
        return self._last_lr

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the optimizer; the keys are torch's, so either can load the other's."""
        return {key: value for key, value in self.__dict__.items() if key != "optimizer"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict()` returned. Writes no lr: that comes with the optimizer's state."""
        self.__dict__.update(state_dict)

    def _kept(self) -> list[float]:
        """Return each group's lr as it is."""
        return read(self.optimizer, "lr")

    def _times(self, factor: float) -> list[float]:
        """Return each group's current lr times a factor."""
        return [group["lr"] * factor for group in groups_of(self.optimizer)]

    def _base_times(self, factor: float) -> list[float]:
        """Return each group's initial lr times a factor."""
        return [base_lr * factor for base_lr in self.base_lrs]
