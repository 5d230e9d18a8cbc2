"""Faults of our own in what a rule is given: learning rates, groups, data, gradients, state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tests.faults.optimizers import OwnAdamW
from tests.faults.parts import ADAM, PLAIN, adam_of, adamw_groups, fault, lr_scheduler, resumed, torch_sgd
from tests.faults.programs import (
    DIGITS,
    REGRESSION,
    SCALED,
    TRANSFORMER,
    Digits,
    State,
    clip_norm,
    decay_groups,
    restore,
    two_groups,
)


def zero_each(state: State) -> None:
    if state.i_micro < state.recipe.micro - 1:
        state.optimizer.zero_grad()


def other_data() -> tuple[torch.Tensor, torch.Tensor]:
    x, y = DIGITS.data()
    return x * 1.01, y


def scale_gradients(factor: float, since: int = 1) -> Callable[[State], None]:
    def change(state: State) -> None:
        if state.step >= since:
            for p in state.net.parameters():
                p.grad.mul_(factor)

    return change


def unscaled_sum(state: State, loss: torch.Tensor) -> torch.Tensor:
    return loss


def clip_values(state: State) -> None:
    nn.utils.clip_grad_value_(state.net.parameters(), 1e-2)


def own_clip(state: State) -> None:
    """A clip that no library function makes."""
    norm = torch.stack([p.grad.norm() for p in state.net.parameters()]).norm()
    for p in state.net.parameters():
        p.grad.mul_(min(1.0, 0.05 / norm.item()))


def drop_grad(state: State) -> None:
    if state.step >= 3:
        state.net.inside.bias.grad = None


def poison(state: State) -> None:
    if state.step == 4:
        state.net.outside.weight.grad[0, 0] = float("nan")


def nudge(state: State) -> None:
    if state.step == 4:
        with torch.no_grad():
            state.net.outside.weight.mul_(0.99)


def nudge_after(state: State) -> None:
    state.scheduler.step()
    nudge(state)


def freeze_first(state: State) -> None:
    state.net.inside.weight.requires_grad_(False)


def scaled_state(state: State, saved: dict[str, Any]) -> None:
    restore(state, saved)
    for entry in state.optimizer.state.values():
        entry["exp_avg_sq"].mul_(0.5)


NO_CLIP = TRANSFORMER.but(before_step=lambda state: None)


def cosine(optimizer: Any, total: int = 40) -> Any:
    return lr_scheduler.CosineAnnealingLR(optimizer, total)


fault(
    "schedule-early",
    "own",
    "lr-shift",
    (1, "hyper.lr"),
    REGRESSION,
    REGRESSION.but(built=lambda s: (s.optimizer.step(), s.scheduler.step(), s.scheduler.step())),
)
fault(
    "schedule-half-speed",
    "own",
    "lr-rate",
    (2, "hyper.lr"),
    REGRESSION,
    REGRESSION.but(after_step=lambda s: s.scheduler.step() if s.step % 2 == 0 else None),
)
fault(
    "schedule-never-steps", "own", "lr-frozen", (2, "hyper.lr"), REGRESSION, REGRESSION.but(after_step=lambda s: None)
)
fault(
    "schedule-of-another-length",
    "own",
    "lr-value",
    (2, "hyper.lr"),
    DIGITS,
    DIGITS.but(schedule=lambda o: cosine(o, 25)),
)
fault(
    "lr-ten-times",
    "own",
    "lr-value",
    (1, "hyper.lr"),
    PLAIN,
    PLAIN.but(optimizer=lambda n: torch.optim.SGD(two_groups(n, lr=0.5), lr=0.5, momentum=0.9, weight_decay=0.01)),
)
fault(
    "other-momentum", "own", "group-option", (1, "hyper.momentum"), PLAIN, PLAIN.but(optimizer=torch_sgd(momentum=0.8))
)
fault(
    "other-beta2",
    "own",
    "group-option",
    (1, "hyper.betas"),
    ADAM,
    ADAM.but(optimizer=adam_of(torch.optim.Adam, weight_decay=0.01, betas=(0.9, 0.99))),
)
fault(
    "other-weight-decay",
    "own",
    "group-option",
    (1, "hyper.weight_decay"),
    DIGITS,
    DIGITS.but(optimizer=lambda n: torch.optim.AdamW(decay_groups(n, 0.01), lr=3e-3)),
)
fault("loss-not-divided", "own", "grad-scale", (1, "grad"), NO_CLIP, NO_CLIP.but(weigh=unscaled_sum))
fault(
    "gradients-scaled-later",
    "own",
    "grad-scale",
    (5, "grad"),
    DIGITS,
    DIGITS.but(before_step=scale_gradients(0.125, 5)),
)
fault(
    "not-unscaled",
    "own",
    "grad-scale",
    (1, "grad"),
    SCALED.but(before_step=lambda s: None),
    SCALED.but(before_step=lambda s: None, step=lambda s: s.optimizer.step()),
)
fault("clip-missing", "own", "grad-clip", (1, "grad"), TRANSFORMER, NO_CLIP)
fault(
    "clip-other-norm",
    "own",
    "grad-clip",
    (1, "grad"),
    TRANSFORMER,
    TRANSFORMER.but(before_step=lambda s: clip_norm(s, 0.25)),
)
fault("clip-by-value", "own", "grad-clip", (1, "grad"), DIGITS, DIGITS.but(before_step=clip_values))
fault("own-clip", "own", "grad-clip", (1, "grad"), DIGITS, DIGITS.but(before_step=own_clip))
fault("zero-grad-each-micro-batch", "own", "grad-partial", (1, "grad"), NO_CLIP, NO_CLIP.but(after_micro=zero_each))
fault("grad-becomes-none", "own", "grad-missing", (3, "grad"), DIGITS, DIGITS.but(before_step=drop_grad))
fault("grad-nan", "own", "grad-nonfinite", (4, "grad"), DIGITS, DIGITS.but(before_step=poison))
fault("frozen", "own", "param-frozen", (1, "grad"), DIGITS, DIGITS.but(built=freeze_first))
fault("other-seed", "own", "init", (0, "param"), DIGITS, DIGITS.but(seed=7))
fault("weights-edited", "own", "param-outside", (5, "param_in"), DIGITS, DIGITS.but(after_step=nudge_after))
fault("state-scaled", "own", "state-value", (6, "state"), DIGITS, lambda: resumed(DIGITS, 6, scaled_state))
fault("other-batches", "own", "data-content", (1, "grad"), DIGITS, DIGITS.but(data=other_data))


class Wider(Digits):
    """Digits with one more hidden unit."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.norm, self.outside = nn.Linear(64, 25), nn.LayerNorm(25), nn.Linear(25, 10)


class HalfState(OwnAdamW):
    """AdamW that keeps its moments in bfloat16."""

    def step(self, closure: Any = None) -> None:
        for entry in self.state.values():
            entry.update({k: v.float() for k, v in entry.items()})
        super().step(closure)
        for entry in self.state.values():
            entry.update({k: v.bfloat16() for k, v in entry.items() if k != "step"})


def overflow(state: State) -> None:
    """A gradient that overflows at the fourth attempt, as with a loss scale that is too large."""
    if state.step == 4:
        state.net.outside.bias.grad[0] = float("inf")


fault(
    "one-hidden-unit-more",
    "own",
    "param-shape init",
    (0, "param"),
    DIGITS,
    DIGITS.but(net=Wider),
)
fault(
    "moments-in-bf16",
    "own",
    "state-dtype",
    (1, "state.exp_avg"),
    DIGITS.but(optimizer=adamw_groups("")),
    DIGITS.but(optimizer=lambda net: HalfState(decay_groups(net), lr=3e-3)),
)
fault(
    "scaler-skips",
    "own",
    "steps-missing",
    (4, "hyper.lr"),
    SCALED.but(before_step=lambda state: None),
    SCALED.but(before_step=overflow),
)
fault(
    "scaler-skips-at-constant-lr",
    "own",
    "steps-missing",
    (4, "grad"),
    SCALED.but(before_step=lambda state: None, schedule=None),
    SCALED.but(before_step=overflow, schedule=None),
)
fault(
    "schedule-slips-midway",
    "own",
    "lr-shift",
    (6, "hyper.lr"),
    REGRESSION,
    REGRESSION.but(after_step=lambda s: [s.scheduler.step() for _ in range(2 if s.step == 5 else 1)]),
)
