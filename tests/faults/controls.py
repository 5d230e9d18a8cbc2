"""Pairs of programs between which nothing may be blamed on the optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils import checkpoint as _checkpoint

from tests.faults.optimizers import OwnAdam
from tests.faults.parts import adam_of, adamw_groups, fault, own_sgd, resumed
from tests.faults.programs import (
    DIGITS,
    REGRESSION,
    TRANSFORMER,
    Digits,
    State,
    decay_groups,
    restore,
    shuffled,
)


def reordered(examples: int, count: int) -> list[list[int]]:
    batches = shuffled(examples, count)
    return batches[::2] + batches[1::2]


def draws_once_more(state: State) -> None:
    torch.rand(3)


def foreach(flag: str) -> Callable[[nn.Module], Any]:
    return lambda net: torch.optim.AdamW(decay_groups(net), lr=3e-3, **({flag: True} if flag else {}))


def with_threads(count: int) -> Callable[[State], None]:
    return lambda state: torch.set_num_threads(count)


class Rematerialised(Digits):
    """Digits whose activations are computed again in backward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = _checkpoint.checkpoint(lambda v: torch.relu(self.norm(self.inside(v))), x, use_reentrant=False)
        return self.outside(self.dropout(hidden))


class LoRA(nn.Module):
    """A frozen layer with a low-rank one beside it whose second factor begins at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(64, 10).requires_grad_(False)
        self.down = nn.Linear(64, 4, bias=False)
        self.up = nn.Linear(4, 10, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.down(x))


class Experts(nn.Module):
    """Two experts of which the first examples choose one."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(64, 10) for _ in range(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.experts[int(x[0, 0] > 0.5)](x)


fault("data-order", "control", "", (2, "grad"), DIGITS, DIGITS.but(order=reordered))
fault("dropout-seed", "control", "", (1, "grad"), DIGITS, DIGITS.but(built=draws_once_more))
fault("threads", "control", "", None, DIGITS, DIGITS.but(built=with_threads(2)))
fault("foreach", "control", "", None, DIGITS.but(optimizer=foreach("")), DIGITS.but(optimizer=foreach("foreach")))
fault("fused", "control", "", None, DIGITS.but(optimizer=foreach("")), DIGITS.but(optimizer=foreach("fused")))
fault("recomputation", "control", "", None, DIGITS, DIGITS.but(net=Rematerialised))
fault("twice", "control", "", None, TRANSFORMER, TRANSFORMER)
fault("resumed-rightly", "control", "", None, TRANSFORMER, lambda: resumed(TRANSFORMER, 6, restore))
fault(
    "lora",
    "control",
    "",
    None,
    DIGITS.but(net=LoRA, optimizer=adam_of(torch.optim.Adam)),
    DIGITS.but(net=LoRA, optimizer=adam_of(OwnAdam)),
)
fault(
    "experts",
    "control",
    "",
    None,
    DIGITS.but(net=Experts, optimizer=adam_of(torch.optim.Adam)),
    DIGITS.but(net=Experts, optimizer=adam_of(OwnAdam)),
)
fault(
    "own-implementation",
    "control",
    "",
    None,
    TRANSFORMER,
    TRANSFORMER.but(optimizer=adamw_groups("", 2e-3, betas=(0.9, 0.95))),
)
fault("own-sgd", "control", "", None, REGRESSION, REGRESSION.but(optimizer=own_sgd("")))
