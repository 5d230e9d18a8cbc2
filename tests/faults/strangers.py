"""Faults that were tried on the causes when these were thought to be done, and that showed what they lacked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from prodigyopt import Prodigy
from torch import nn

from tests.faults.other_nets import ATTENTION, AUTOENCODER, CONVOLUTION, RECURRENT, HalfFrozen
from tests.faults.other_optimizers import Own
from tests.faults.other_programs import of_torch
from tests.faults.parts import fault, lr_scheduler
from tests.faults.programs import Recipe, State, decay_groups

optim = torch.optim

# --- gradients that are clipped otherwise -------------------------------------------------------------------------


def by_norm(state: State) -> None:
    nn.utils.clip_grad_norm_(state.net.parameters(), 0.05)


def by_value(state: State) -> None:
    nn.utils.clip_grad_value_(state.net.parameters(), 0.05)


def one_by_one(state: State) -> None:
    for p in state.net.parameters():
        nn.utils.clip_grad_norm_([p], 0.05)


def by_hand(state: State) -> None:
    """Clipping to a total norm without the 1e-6 that torch adds to it."""
    total = torch.stack([p.grad.norm() for p in state.net.parameters()]).norm().item()
    for p in state.net.parameters():
        p.grad.mul_(min(1.0, 0.05 / total))


CLIPPED = RECURRENT.but(before_step=by_norm)
for name, clip in (("by-value", by_value), ("one-by-one", one_by_one), ("by-hand", by_hand)):
    fault(f"clipped-{name}", "own", "grad-clip", (1, "grad"), CLIPPED, CLIPPED.but(before_step=clip))
fault("clipped-after-the-step", "own", "grad-clip", (1, "grad"), CLIPPED, RECURRENT.but(after_step=by_norm))

# --- other gradients ----------------------------------------------------------------------------------------------

fault("loss-negated", "own", "grad-scale", (1, "grad"), AUTOENCODER, AUTOENCODER.but(weigh=lambda state, loss: -loss))


class Sometimes(nn.Module):
    """An expert beside a layer, taken in every third batch."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.expert = nn.Linear(12, 12), nn.Linear(12, 12)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        hidden = self.always(x)
        return self.expert(hidden) if self.calls % 3 == 1 else hidden


SOMETIMES = AUTOENCODER.but(net=Sometimes, optimizer=of_torch(optim.AdamW))
fault(
    "zeros-for-none",
    "own",
    "grad-missing",
    (2, "grad"),
    SOMETIMES,
    SOMETIMES.but(zero=lambda state: state.optimizer.zero_grad(set_to_none=False)),
)
fault(
    "encoder-never-frozen",
    "own",
    "param-frozen",
    (1, "grad"),
    AUTOENCODER.but(net=HalfFrozen),
    AUTOENCODER,
)

# --- groups and schedules -----------------------------------------------------------------------------------------


def decoder_first(net: nn.Module) -> Any:
    return optim.Adam(net.decode.parameters(), lr=1e-2)


def encoder_added(after: int) -> Callable[[State], None]:
    def add(state: State) -> None:
        if state.step == after:
            state.optimizer.add_param_group({"params": list(state.net.encode.parameters())})

    return add


GROWING = AUTOENCODER.but(optimizer=decoder_first, after_step=encoder_added(4))
fault("group-added-late", "own", "param-missing", (5, ""), GROWING, GROWING.but(after_step=encoder_added(6)))


def warm(offset: int) -> Recipe:
    return RECURRENT.but(schedule=lambda o: lr_scheduler.LambdaLR(o, lambda e: min(1.0, (e + offset) / 6)))


fault("warm-up-from-zero", "own", "lr-shift", (1, "hyper.lr"), warm(1), warm(0))
fault(
    "prodigy-d0",
    "own",
    "group-option",
    (1, "hyper."),
    CONVOLUTION.but(optimizer=of_torch(Prodigy, lr=1.0)),
    CONVOLUTION.but(optimizer=of_torch(Prodigy, lr=1.0, d0=1e-4)),
)

# --- rules --------------------------------------------------------------------------------------------------------

LARGE_EPS = ATTENTION.but(optimizer=lambda net: optim.Adam(decay_groups(net), lr=1e-2, eps=1e-3))
for name, code in (
    ("eps-squared", "rule-eps"),
    ("eps-least", "rule-eps"),
    ("unrooted", "rule-bias-correction"),
    ("second-for-both", "rule-bias-correction"),
):
    fault(
        f"adam-{name}",
        "own",
        code,
        (1, "update"),
        LARGE_EPS,
        LARGE_EPS.but(optimizer=lambda net, name=name: Own(decay_groups(net), "adam", name)),
    )
fault(
    "decay-by-lr-twice",  # which comes close to no decay: 3 eps a step
    "own",
    "rule-decay-coupling",
    (1, "update"),
    LARGE_EPS.but(optimizer=lambda net: optim.AdamW(decay_groups(net), lr=2e-3, eps=1e-3)),
    LARGE_EPS.but(optimizer=lambda net: Own(decay_groups(net), "adam", "decay-by-lr-twice", lr=2e-3)),
)
