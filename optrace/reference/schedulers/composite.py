"""SequentialLR and ChainedScheduler: several schedulers on one optimizer, one after another or all at once."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from optrace.errors import OptionError
from optrace.reference.schedulers.base import LRScheduler
from optrace.reference.schedulers.groups import HasGroups, groups_of, write
from optrace.reference.schedulers.plateau import ReduceLROnPlateau


class _Composite(LRScheduler):
    """Schedulers of one optimizer; the states of all are saved together. No lr of its own, so no `get_lr`."""

    _schedulers: Sequence[LRScheduler]

    def _adopt(self, schedulers: Sequence[LRScheduler], optimizer: HasGroups | None) -> None:
        name = type(self).__name__
        if len(schedulers) == 0:
            raise OptionError(f"{name} got no scheduler; give it at least one")
        for index, scheduler in enumerate(schedulers):
            kind = type(scheduler).__name__
            if not hasattr(scheduler, "optimizer"):
                raise TypeError(f"schedulers[{index}] of {name} is no scheduler: {kind} has no `optimizer`")
            if isinstance(scheduler, ReduceLROnPlateau):
                raise OptionError(f"schedulers[{index}] of {name} is a ReduceLROnPlateau, whose step() needs a metric")
            if optimizer is None:
                optimizer = scheduler.optimizer
            if scheduler.optimizer is not optimizer:
                raise OptionError(f"schedulers[{index}] of {name}, {kind}, belongs to another optimizer")
        assert optimizer is not None
        self.optimizer = optimizer
        self._schedulers = schedulers

    def state_dict(self) -> dict[str, Any]:
        """Return the state, with a list of the schedulers' states under `_schedulers`."""
        return super().state_dict() | {"_schedulers": [scheduler.state_dict() for scheduler in self._schedulers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state and hand each scheduler its own."""
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "_schedulers"})
        for scheduler, state in zip(self._schedulers, state_dict["_schedulers"], strict=True):
            scheduler.load_state_dict(state)


class SequentialLR(_Composite):
    """One scheduler after another: number i rules from milestone i - 1 until milestone i.

        at construction   every lr goes back to initial_lr, all children's counters go back by the step that their own
                          construction took, and the scheduler of epoch 0 takes its initial step again
        at a milestone    the next scheduler is put at its epoch 0, by its closed form where it has one
        else              the scheduler in charge steps

    Traps: each child already moved lr when it was built; construction here undoes the last of it only if the groups'
    `initial_lr` is right. From a milestone on, a child with a closed form starts from the *initial* lr, not from where
    the last scheduler left it; one with only a chained form goes on from there. Milestones count epochs of the whole. A
    child that is itself a composite works only in the first place: at a milestone it has no lr to be put at
    (NotImplementedError). A first milestone of 0 skips the first scheduler. This is torch 2.13; 2.6, 2.8 and 2.10
    each changed nested composites.

    Args:
        optimizer: the one that all schedulers belong to, else OptionError.
        schedulers: at least one; no ReduceLROnPlateau (OptionError).
        milestones: epochs at which the next scheduler takes over, increasing; one fewer than schedulers (OptionError).
        last_epoch: -1, or the last epoch of the run to resume; `load_state_dict` is the better way.

    >>> from types import SimpleNamespace
    >>> from optrace.reference.schedulers import ConstantLR, ExponentialLR
    >>> optimizer = SimpleNamespace(param_groups=[{"lr": 1.0}])
    >>> parts = [ConstantLR(optimizer, factor=0.5, total_iters=9), ExponentialLR(optimizer, gamma=0.5)]
    >>> scheduler = SequentialLR(optimizer, parts, milestones=[2])
    >>> for _ in range(4): print(scheduler.get_last_lr()); scheduler.step()
    [0.5]
    [0.5]
    [1.0]
    [0.5]

    Source: torch 2.13, torch/optim/lr_scheduler.py, SequentialLR.
    """

    def __init__(
        self, optimizer: HasGroups, schedulers: list[LRScheduler], milestones: list[int], last_epoch: int = -1
    ) -> None:
        self._adopt(schedulers, optimizer)
        if len(milestones) != len(schedulers) - 1:
            raise OptionError(
                f"{len(schedulers)} schedulers need {len(schedulers) - 1} milestones between them, "
                f"and got {len(milestones)}"
            )
        self._milestones = milestones
        self.last_epoch = last_epoch + 1
        for group in groups_of(optimizer):
            write(group, "lr", group["initial_lr"])
        _undo_construction(self)
        first = schedulers[bisect_right(milestones, 0)]
        first._initial_step()
        self._last_lr = first.get_last_lr()

    def step(self) -> None:  # type: ignore[override]  # as torch's: a composite cannot jump to an epoch
        """Go on by one epoch, with the scheduler in charge."""
        self.last_epoch += 1
        index = bisect_right(self._milestones, self.last_epoch)
        scheduler = self._schedulers[index]
        if index > 0 and self._milestones[index - 1] == self.last_epoch:
            scheduler._update_lr(0)
        else:
            scheduler.step()
        self._last_lr = scheduler.get_last_lr()


def _undo_construction(scheduler: LRScheduler) -> None:
    """Take the construction's step off the counter of every scheduler inside composites, however deep."""
    if isinstance(scheduler, _Composite):
        for child in scheduler._schedulers:
            _undo_construction(child)
    else:
        scheduler.last_epoch -= 1


class ChainedScheduler(_Composite):
    """All schedulers step, in order, each starting from the lr that the one before it left.

        lr(e) = the product of what all chained forms do to lr at epoch e

    Traps: a scheduler that computes lr directly (LambdaLR, CyclicLR, OneCycleLR, CosineAnnealingWarmRestarts) wipes
    what those before it did. Each child applied its epoch 0 when *it* was built; the chain adds nothing at
    construction.

    Args:
        schedulers: at least one, of the same optimizer; no ReduceLROnPlateau (OptionError).
        optimizer: to check that all belong to it; None takes that of the first.

    >>> from types import SimpleNamespace
    >>> from optrace.reference.schedulers import ConstantLR, ExponentialLR
    >>> optimizer = SimpleNamespace(param_groups=[{"lr": 1.0}])
    >>> parts = [ConstantLR(optimizer, factor=0.25, total_iters=2), ExponentialLR(optimizer, gamma=0.5)]
    >>> scheduler = ChainedScheduler(parts)
    >>> for _ in range(3): print(scheduler.get_last_lr()); scheduler.step()
    [0.25]
    [0.125]
    [0.25]

    Source: torch 2.13, torch/optim/lr_scheduler.py, ChainedScheduler.
    """

    def __init__(self, schedulers: Sequence[LRScheduler], optimizer: HasGroups | None = None) -> None:
        self._adopt(schedulers, optimizer)
        self._last_lr = self._kept()

    def step(self) -> None:  # type: ignore[override]  # as torch's: a composite cannot jump to an epoch
        """Step every scheduler in order."""
        for scheduler in self._schedulers:
            scheduler.step()
        self._last_lr = self._kept()
