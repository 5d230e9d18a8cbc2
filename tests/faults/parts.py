"""What faults of the bench are made of: how one is written down, and pieces that several use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tests.faults.optimizers import OwnAdamW, OwnSGD
from tests.faults.programs import DIGITS, REGRESSION, Recipe, State, checkpoint, decay_groups, restore, two_groups

lr_scheduler = torch.optim.lr_scheduler


@dataclass(frozen=True)
class Fault:
    """One fault in one program."""

    name: str
    case: str
    """The real case, or `own`."""
    codes: tuple[str, ...]
    """Codes that are right; none: nothing may be blamed on the optimizer."""
    where: tuple[int, str] | None
    """First divergence: A's step, and how its quantity begins; None: there is none."""
    a: Callable[[], Recipe]
    b: Callable[[], Recipe]


FAULTS: list[Fault] = []


def fault(name: str, case: str, codes: str, where: tuple[int, str] | None, a: Any, b: Any) -> None:
    """Add a fault; `a` and `b` are recipes or make them."""
    make = [part if callable(part) else (lambda part=part: part) for part in (a, b)]
    FAULTS.append(Fault(name, case, tuple(codes.split()), where, *make))


def resumed(recipe: Recipe, at: int, load: Callable[[State, dict[str, Any]], None], **parts: Any) -> Recipe:
    """The recipe from step `at` on, in a new process that loads what `load` loads."""
    saved = checkpoint(recipe, at)
    return recipe.but(built=lambda state: load(state, saved), resume_at=at, steps=recipe.steps - at, **parts)


def adamw_groups(mistake: str, lr: float = 3e-3, **options: Any) -> Callable[[nn.Module], Any]:
    return lambda net: OwnAdamW(decay_groups(net), lr=lr, mistake=mistake, **options)


def own_sgd(mistake: str, **options: Any) -> Callable[[nn.Module], Any]:
    options = {"momentum": 0.9, "weight_decay": 0.01, **options}
    return lambda net: OwnSGD(two_groups(net), lr=0.05, mistake=mistake, **options)


def torch_sgd(**options: Any) -> Callable[[nn.Module], Any]:
    options = {"momentum": 0.9, "weight_decay": 0.01, **options}
    return lambda net: torch.optim.SGD(two_groups(net), lr=0.05, **options)


PLAIN = REGRESSION.but(schedule=None)


def skip_update(state: State) -> None:
    if state.step != 5:
        state.optimizer.step()


def other_checkpoint(state: State, saved: dict[str, Any]) -> None:
    restore(state, saved)
    with torch.no_grad():
        state.net.outside.weight.add_(0.01)


def adam_of(kind: Any, **options: Any) -> Callable[[nn.Module], Any]:
    return lambda net: kind(net.parameters(), lr=3e-3, **{"eps": 1e-4, **options})


ADAM = DIGITS.but(optimizer=adam_of(torch.optim.Adam, weight_decay=0.01), schedule=None)
