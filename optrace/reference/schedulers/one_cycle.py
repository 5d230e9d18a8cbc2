"""OneCycleLR: one climb to a high lr, one long descent far below the start, with momentum against it."""

from __future__ import annotations

import math
from typing import Any, TypedDict

from optrace.errors import OptionError
from optrace.reference.schedulers.base import LRScheduler
from optrace.reference.schedulers.groups import (
    HasGroups,
    begin_momentum_cycle,
    groups_of,
    per_group,
    uses_beta1,
    write_momentum,
)


class Phase(TypedDict):
    """A stretch of the cycle: up to which step (a fraction is possible), and which keys of the group are its ends."""

    end_step: float
    start_lr: str
    end_lr: str
    start_momentum: str
    end_momentum: str


class OneCycleLR(LRScheduler):
    """The 1cycle policy: warm up to `max_lr`, then anneal to almost nothing, within a fixed number of steps.

        initial_lr = max_lr / div_factor,   min_lr = initial_lr / final_div_factor

    With N = total_steps and p = pct_start, the phases and the steps at which they end:

        two phases    initial_lr -> max_lr (p*N - 1), max_lr -> min_lr (N - 1)
        three phases  initial_lr -> max_lr (p*N - 1), max_lr -> initial_lr (2*p*N - 2), initial_lr -> min_lr (N - 1)

    In a phase from step a to step b, t = (e - a) / (b - a), and a value moves from u to v as

        cos      v + (u - v) / 2 * (1 + cos(pi * t))
        linear   u + (v - u) * t

    Momentum goes max -> base while lr climbs, and base -> max while it falls; a third phase keeps it at max.

    Traps: a step is meant to be a *batch*. The lr given to the optimizer is ignored and replaced by max_lr /
    div_factor. The cycle lives in the groups: construction writes initial_lr (over one that is there), max_lr,
    min_lr, and with cycle_momentum (**on by default**) also max_momentum and base_momentum, and every step reads them
    there. It sets `momentum` or `betas[0]`, also of an SGD built with momentum=0. Stepping past N raises, although
    one step more than planned is let through: it runs beyond the end of the last phase, where the cosine turns up
    again. An empty phase divides by zero: p*N = 1 at construction, p = 1 after the last step.

    Args:
        optimizer: see `LRScheduler`; with cycle_momentum it needs `momentum` or `betas`, else OptionError.
        max_lr: the top, one for all groups or a list of one a group.
        total_steps: length of the cycle in steps, a positive int; or else give the next two (OptionError).
        epochs: with steps_per_epoch instead of total_steps; positive ints.
        steps_per_epoch: see epochs.
        pct_start: share of the cycle that climbs; a float from 0 to 1, else OptionError (an int is refused).
        anneal_strategy: "cos" or "linear", else OptionError.
        cycle_momentum: whether momentum moves against lr.
        base_momentum: lowest momentum, at the top of lr; one for all groups or a list.
        max_momentum: highest momentum, at both ends; likewise.
        div_factor: max_lr / initial_lr.
        final_div_factor: initial_lr / min_lr (not max_lr / min_lr).
        three_phase: descend to initial_lr as fast as it climbed, then on to min_lr.
        last_epoch: see `LRScheduler`.

    >>> from types import SimpleNamespace
    >>> optimizer = SimpleNamespace(param_groups=[{"lr": 9.0}])
    >>> scheduler = OneCycleLR(optimizer, max_lr=1.0, total_steps=5, pct_start=0.6, anneal_strategy="linear",
    ...                        cycle_momentum=False, div_factor=2.0, final_div_factor=4.0)
    >>> for _ in range(4): print(scheduler.get_last_lr()); scheduler.step()
    [0.5]
    [0.75]
    [1.0]
    [0.5625]

    Source: super-convergence, https://arxiv.org/abs/1708.07120; torch 2.13, torch/optim/lr_scheduler.py, OneCycleLR.
    """

    def __init__(
        self,
        optimizer: HasGroups,
        max_lr: float | list[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float | list[float] = 0.85,
        max_momentum: float | list[float] = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        last_epoch: int = -1,
    ) -> None:
        groups = groups_of(optimizer)
        self.total_steps = _total_steps(total_steps, epochs, steps_per_epoch)
        if not isinstance(pct_start, float) or pct_start < 0 or pct_start > 1:
            raise OptionError(f"pct_start={pct_start!r} is not a float between 0 and 1")
        if anneal_strategy not in ("cos", "linear"):
            raise OptionError(f"anneal_strategy={anneal_strategy!r} is neither 'cos' nor 'linear'")
        self._schedule_phases = _phases(pct_start, self.total_steps, three_phase)
        self._anneal_func_type = anneal_strategy

        max_lrs = per_group("max_lr", max_lr, optimizer)
        if last_epoch == -1:
            for group, top in zip(groups, max_lrs, strict=True):
                group["initial_lr"] = top / div_factor
                group["max_lr"] = top
                group["min_lr"] = group["initial_lr"] / final_div_factor

        self.cycle_momentum = cycle_momentum
        if cycle_momentum:
            self.use_beta1 = uses_beta1(optimizer)
            max_momentums = per_group("max_momentum", max_momentum, optimizer)
            base_momentums = per_group("base_momentum", base_momentum, optimizer)
            if last_epoch == -1:
                begin_momentum_cycle(optimizer, base_momentums, max_momentums, self.use_beta1)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """Return each group's lr in the present phase; also **writes** its momentum, when that is cycled.

        Raises:
            OptionError: the schedule is over.
        """
        if self.last_epoch > self.total_steps:
            raise OptionError(
                f"step {self.last_epoch} of a schedule of total_steps={self.total_steps}; "
                "make total_steps as large as the number of batches in all epochs"
            )
        phase, done = self._locate(self.last_epoch)
        lrs = []
        for group in groups_of(self.optimizer):
            lrs.append(self._anneal(group[phase["start_lr"]], group[phase["end_lr"]], done))
            if self.cycle_momentum:
                momentum = self._anneal(group[phase["start_momentum"]], group[phase["end_momentum"]], done)
                write_momentum(group, momentum, self.use_beta1)
        return lrs

    def _locate(self, step: int) -> tuple[Phase, float]:
        """Return the phase that a step falls in, and how much of that phase is done."""
        start: float = 0
        for phase in self._schedule_phases[:-1]:
            if step <= phase["end_step"]:
                break
            start = phase["end_step"]
        else:
            phase = self._schedule_phases[-1]
        return phase, (step - start) / (phase["end_step"] - start)

    def _anneal(self, start: Any, end: Any, done: float) -> Any:
        if self._anneal_func_type == "linear":
            return (end - start) * done + start
        return end + (start - end) / 2.0 * (math.cos(math.pi * done) + 1)


def _total_steps(total_steps: int | None, epochs: int | None, steps_per_epoch: int | None) -> int:
    if total_steps is not None:
        return _positive_int("total_steps", total_steps)
    if epochs is None or steps_per_epoch is None:
        raise OptionError("the length of the cycle is missing; give total_steps, or both epochs and steps_per_epoch")
    return _positive_int("epochs", epochs) * _positive_int("steps_per_epoch", steps_per_epoch)


def _positive_int(name: str, value: int) -> int:
    if not isinstance(value, int) or value <= 0:
        raise OptionError(f"{name}={value!r} is not a positive int")
    return value


def _phases(pct_start: float, total_steps: int, three_phase: bool) -> list[Phase]:
    """Return the phases in order; `state_dict` holds them in this form."""
    top = float(pct_start * total_steps) - 1
    end = total_steps - 1
    climb = _phase(top, "initial_lr", "max_lr", "max_momentum", "base_momentum")
    if not three_phase:
        return [climb, _phase(end, "max_lr", "min_lr", "base_momentum", "max_momentum")]
    back = float(2 * pct_start * total_steps) - 2
    return [
        climb,
        _phase(back, "max_lr", "initial_lr", "base_momentum", "max_momentum"),
        _phase(end, "initial_lr", "min_lr", "max_momentum", "max_momentum"),
    ]


def _phase(end_step: float, start_lr: str, end_lr: str, start_momentum: str, end_momentum: str) -> Phase:
    return Phase(
        end_step=end_step,
        start_lr=start_lr,
        end_lr=end_lr,
        start_momentum=start_momentum,
        end_momentum=end_momentum,
    )
