"""Drives a scheduler of ours and torch's of the same name through the same life, comparing them after every act."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch.optim import lr_scheduler, swa_utils

from optrace.reference import schedulers as ours_module

OURS: Any = ours_module
TORCH: Any = SimpleNamespace(**vars(lr_scheduler), SWALR=swa_utils.SWALR)
Build = Callable[..., Any]  # (OURS or TORCH, optimizer, further options) -> scheduler

# Three groups: an ordinary lr, one that is no power of anything, a tiny one.
LRS = (0.1, 0.037, 3e-7)


@dataclass(frozen=True)
class Case:
    """A scheduler with its options, and the optimizer that it needs."""

    name: str
    build: Build
    optimizer: str = "sgd"

    def __str__(self) -> str:
        return self.name


def case(scheduler: str, optimizer: str = "sgd", **options: Any) -> Case:
    """A case of one scheduler: options as torch spells them, each side getting copies of its own."""

    def build(side: Any, target: Any, **more: Any) -> Any:
        return getattr(side, scheduler)(target, **copy.deepcopy(options), **more)

    shown = "-".join(f"{key}={_shown(value)}" for key, value in options.items())
    return Case(f"{scheduler}-{optimizer}-{shown}", build, optimizer)


def _shown(value: Any) -> str:
    """An option for a test's id, the same in every process: functions by their names."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_shown, value))}]"
    return str(getattr(value, "__name__", value))


def torch_optimizer(kind: str = "sgd", lrs: tuple[Any, ...] = LRS) -> torch.optim.Optimizer:
    """A torch optimizer with one empty-handed parameter a group: its step() is cheap and does nothing."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": copy.deepcopy(lr)} for lr in lrs]
    if kind == "adam":
        return torch.optim.Adam(groups, betas=(0.87, 0.99))
    return torch.optim.SGD(groups, momentum=0.6 if kind == "momentum" else 0.0)


def plain_optimizer(kind: str = "sgd", lrs: tuple[Any, ...] = LRS) -> SimpleNamespace:
    """The least that is an optimizer to our schedulers: the same groups and defaults, without torch."""
    model = torch_optimizer(kind, lrs)
    groups = [{key: value for key, value in group.items() if key != "params"} for group in model.param_groups]
    return SimpleNamespace(param_groups=groups, defaults=dict(model.defaults))


def group_scalars(optimizer: Any) -> list[str]:
    """All that the groups hold but parameters, by exact text: equal means equal bits, -0.0 and nan included."""
    return [
        repr(sorted((key, value) for key, value in group.items() if key != "params"))
        for group in optimizer.param_groups
    ]


def saved(scheduler: Any) -> str:
    """The state by exact text, in one order of keys, less a flag that only serves a warning of torch's."""

    def clean(state: dict[str, Any]) -> list[tuple[str, Any]]:
        state = {key: value for key, value in state.items() if key != "_get_lr_called_within_step"}
        if "_schedulers" in state:
            state["_schedulers"] = [clean(child) for child in state["_schedulers"]]
        return sorted(state.items())

    return repr(clean(scheduler.state_dict()))


class Pair:
    """One life lived twice."""

    def __init__(self, case: Case, ours_on: Callable[..., Any] = plain_optimizer, lrs: tuple[Any, ...] = LRS) -> None:
        self.case = case
        self.optimizers = (ours_on(case.optimizer, lrs), torch_optimizer(case.optimizer, lrs))
        self.sides = (OURS, TORCH)
        self.schedulers: list[Any] = []
        self.ended = False

    def build(self) -> Pair:
        """Construct both; when torch's raises, ours must, and the life is over."""
        self.act(lambda index: self.schedulers.append(self.case.build(self.sides[index], self.optimizers[index])))
        if not self.ended:
            self.optimizers[1].step()
        return self

    def act(self, what: Callable[[int], Any]) -> None:
        """Do something to ours (0) and to torch's (1); both must raise alike or end equal."""
        errors: list[Exception | None] = []
        for index in (0, 1):
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message="The epoch parameter|Detected call of `lr_scheduler.step")
                    warnings.filterwarnings("ignore", message="step\\(epoch\\) is deprecated")
                    what(index)
                errors.append(None)
            except Exception as error:
                errors.append(error)
        ours, torchs = errors
        if torchs is not None:
            assert isinstance(ours, type(torchs)), f"torch raised {torchs!r}, ours {ours!r}"
            assert str(ours), "an error needs words"
            self.ended = True
        elif ours is not None:
            raise ours
        self.compare()

    def compare(self) -> None:
        assert group_scalars(self.optimizers[0]) == group_scalars(self.optimizers[1])
        if not self.ended:
            ours, torchs = self.schedulers
            assert repr(ours.get_last_lr()) == repr(torchs.get_last_lr())
            assert saved(ours) == saved(torchs)

    def step(self, *args: Any) -> None:
        self.act(lambda index: self.schedulers[index].step(*args))

    def steps(self, count: int) -> None:
        for _ in range(count):
            if self.ended:
                return
            self.step()

    def edit(self, group: int, key: str, value: Any) -> None:
        """Somebody changes an option from outside."""
        for optimizer in self.optimizers:
            optimizer.param_groups[group][key] = value

    def scale(self, factor: float) -> None:
        """Somebody multiplies every lr from outside."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] *= factor
