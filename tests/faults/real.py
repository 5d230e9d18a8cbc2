"""Faults that somebody really had, each with the issue that tells of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tests.faults.parts import adamw_groups, fault, lr_scheduler, own_sgd, resumed, torch_sgd
from tests.faults.programs import (
    DIGITS,
    REGRESSION,
    SCALED,
    TRANSFORMER,
    Digits,
    Recipe,
    State,
    decay_groups,
    restore,
    shuffled,
    warm_up,
)


def sequential(optimizer: Any, milestone: int = 4, late: int = 0) -> Any:
    parts = [
        lr_scheduler.LinearLR(optimizer, 0.1, 1.0, milestone),
        lr_scheduler.CosineAnnealingLR(optimizer, 30),
    ]
    return lr_scheduler.SequentialLR(optimizer, parts, milestones=[milestone + late])


def per_micro(recipe: Recipe) -> Recipe:
    def after(state: State) -> None:
        state.scheduler.step()

    return recipe.but(after_micro=after, after_step=lambda state: None)


def stretched(recipe: Recipe) -> Recipe:
    """Enough steps and a schedule that shows in them."""
    return recipe.but(schedule=lambda optimizer: warm_up(optimizer, 3, 40), steps=16)


def rebuilt_scheduler(state: State, saved: dict[str, Any]) -> None:
    restore(state, saved, scheduler=False)
    for group in state.optimizer.param_groups:
        group["lr"] = group["initial_lr"]
    state.scheduler = state.recipe.schedule(state.optimizer)


def base_after_load(state: State, saved: dict[str, Any]) -> None:
    restore(state, saved, scheduler=False)
    for group in state.optimizer.param_groups:
        del group["initial_lr"]
    state.scheduler = state.recipe.schedule(state.optimizer)
    state.scheduler.load_state_dict({**saved["scheduler"], "base_lrs": state.scheduler.base_lrs})


def step_lr(optimizer: Any) -> Any:
    return lr_scheduler.StepLR(optimizer, 3, 0.5)


fault(
    "sequential-milestone",
    "pytorch#185872",
    "lr-value lr-shift",
    (5, "hyper.lr"),
    REGRESSION.but(schedule=sequential, steps=14),
    REGRESSION.but(schedule=lambda o: sequential(o, late=1), steps=14),
)
fault(
    "scheduler-without-optimizer",
    "pytorch#29697",
    "lr-reset state-reset",
    (6, "state"),
    DIGITS.but(schedule=step_lr),
    lambda: resumed(DIGITS.but(schedule=step_lr), 6, lambda s, c: restore(s, c, optimizer=False)),
)
fault(
    "scheduler-after-load",
    "yolov5#292",
    "lr-reset",
    (7, "hyper.lr"),
    DIGITS.but(schedule=step_lr),
    lambda: resumed(DIGITS.but(schedule=step_lr), 6, rebuilt_scheduler),
)
fault(
    "scheduler-per-micro-batch",
    "Lightning#1476",
    "lr-rate",
    (1, "hyper.lr"),
    stretched(TRANSFORMER),
    lambda: per_micro(stretched(TRANSFORMER)),
)
fault(
    "base-lr-after-load",
    "nanotron#256",
    "lr-value",
    (8, "hyper.lr"),
    REGRESSION,
    lambda: resumed(REGRESSION, 6, base_after_load),
)
fault(
    "one-cycle-betas",
    "DeepSpeed#8495",
    "group-option",
    (1, "hyper.betas"),
    DIGITS.but(schedule=lambda o: lr_scheduler.OneCycleLR(o, 3e-3, 40, cycle_momentum=False)),
    DIGITS.but(schedule=lambda o: lr_scheduler.OneCycleLR(o, 3e-3, 40)),
)
fault(
    "lost-multiplier",
    "Megatron-LM#882",
    "lr-value",
    (1, "hyper.lr"),
    REGRESSION,
    REGRESSION.but(
        optimizer=lambda n: torch.optim.SGD(
            [{"params": n.first.parameters()}, {"params": n.second.parameters()}],
            lr=0.05,
            momentum=0.9,
            weight_decay=0.01,
        )
    ),
)
BIG_DECAY = DIGITS.but(optimizer=lambda n: torch.optim.AdamW(decay_groups(n), lr=3e-2))
BIG_EPS = DIGITS.but(optimizer=lambda n: torch.optim.AdamW(decay_groups(n), lr=3e-3, eps=1e-4))
fault(
    "decay-after-update",
    "transformers#14539",
    "rule-decay-order",
    (1, "update"),
    BIG_DECAY,
    BIG_DECAY.but(optimizer=adamw_groups("decay-after", 3e-2)),
)
fault(
    "adam-in-adamw",
    "FlagGems#4988",
    "rule-decay-coupling",
    (1, "update"),
    DIGITS,
    DIGITS.but(optimizer=adamw_groups("coupling")),
)
fault(
    "eps-before-correction",
    "nanochat#353",
    "rule-eps",
    (1, "update"),
    BIG_EPS,
    BIG_EPS.but(optimizer=adamw_groups("eps-early", eps=1e-4)),
)
fault(
    "nesterov-sign",
    "Paddle#12231",
    "rule-nesterov",
    (1, "update"),
    REGRESSION.but(optimizer=torch_sgd(nesterov=True)),
    REGRESSION.but(optimizer=own_sgd("nesterov-sign", nesterov=True)),
)
fault(
    "eps-inside-root",
    "Paddle#42234",
    "rule-eps",
    (1, "update"),
    DIGITS,
    DIGITS.but(optimizer=adamw_groups("eps-inside")),
)


def none_grads(state: State) -> None:
    if state.step in (1, 4):
        state.net.outside.weight.grad = None


WITH_NONE = BIG_DECAY.but(before_step=none_grads)
fault(
    "decay-where-grad-is-none",
    "Muon#54",
    "rule-none-grad",
    (1, "update"),
    WITH_NONE,
    WITH_NONE.but(optimizer=adamw_groups("none-grad", 3e-2)),
)
fault(
    "counter-ahead",
    "Megatron-LM#5974",
    "step-counter",
    (1, "update"),
    DIGITS,
    DIGITS.but(optimizer=adamw_groups("counter")),
)


def norms_decayed(net: nn.Module) -> Any:
    decayed = [p for n, p in net.named_parameters() if p.ndim > 1 or "norm" in n]
    rest = [p for n, p in net.named_parameters() if not (p.ndim > 1 or "norm" in n)]
    return torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=3e-3)


def without_head(net: nn.Module) -> Any:
    groups = decay_groups(net)
    groups[0]["params"] = [p for p in groups[0]["params"] if p is not net.outside.weight]
    return torch.optim.AdamW(groups, lr=3e-3)


fault(
    "norms-decayed",
    "transformers#35927",
    "group-membership",
    (1, "hyper.weight_decay"),
    DIGITS,
    DIGITS.but(optimizer=norms_decayed),
)
fault(
    "not-in-the-optimizer", "accelerate#2665", "param-missing", (0, "param"), DIGITS, DIGITS.but(optimizer=without_head)
)


def clip_too_early(state: State) -> None:
    nn.utils.clip_grad_norm_(state.net.parameters(), 0.5)


def token_weights(state: State, loss: torch.Tensor) -> torch.Tensor:
    """Sums over tokens divided by all tokens of the step: not the mean of the micro-batches' means."""
    return loss * (0.8 if state.i_micro == 0 else 1.2) / state.recipe.micro


def keep_first(state: State) -> None:
    if state.i_micro == 0:
        state.kept = [p.grad.clone() for p in state.net.parameters()]
    elif state.i_micro == state.recipe.micro - 1:
        for p, g in zip(state.net.parameters(), state.kept, strict=True):
            p.grad.copy_(g)


def not_zeroed(state: State) -> None:
    pass


fault("clip-before-unscale", "Lightning#9330", "grad-clip", (1, "grad"), SCALED, SCALED.but(before_step=clip_too_early))
fault(
    "mean-of-means",
    "transformers#34191",
    "grad-upstream",
    (1, "grad"),
    TRANSFORMER.but(weigh=token_weights, before_step=lambda s: None),
    TRANSFORMER.but(before_step=lambda s: None),
)
fault(
    "first-micro-batch-kept",
    "DeepSpeed#7967",
    "grad-upstream grad-partial",
    (1, "grad"),
    TRANSFORMER.but(before_step=lambda s: None),
    TRANSFORMER.but(before_step=lambda s: None, after_micro=keep_first),
)
fault("zero-grad-missing", "real", "grad-accumulated", (2, "grad"), DIGITS, DIGITS.but(zero=not_zeroed))


def swapped(state: State, saved: dict[str, Any]) -> None:
    restore(state, saved)
    a, b = state.net.blocks[0].qkv.weight, state.net.blocks[1].qkv.weight
    state.optimizer.state[a], state.optimizer.state[b] = state.optimizer.state[b], state.optimizer.state[a]


def in_bf16(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: make().to(torch.bfloat16)


TINY_LR = DIGITS.but(optimizer=lambda n: torch.optim.AdamW(decay_groups(n), lr=1e-6), schedule=None)
fault(
    "moments-lost",
    "KempnerForge#115",
    "state-reset",
    (6, "state"),
    DIGITS,
    lambda: resumed(DIGITS, 6, lambda s, c: (restore(s, c, optimizer=False), relive_lr(s, c))),
)
fault(
    "moments-exchanged",
    "pytorch#1489",
    "state-swapped",
    (6, "state"),
    TRANSFORMER,
    lambda: resumed(TRANSFORMER, 6, swapped),
)
fault(
    "bf16-never-moves",
    "speculators#765",
    "update-rounded param-dtype",
    (0, "param"),
    TINY_LR,
    TINY_LR.but(net=in_bf16(Digits)),
)
fault("all-bf16", "trl#3910", "param-dtype", (0, "param"), DIGITS, DIGITS.but(net=in_bf16(Digits)))


def relive_lr(state: State, saved: dict[str, Any]) -> None:
    for group, old in zip(state.optimizer.param_groups, saved["optimizer"]["param_groups"], strict=True):
        group["lr"] = old["lr"]


def repeated(recipe: Recipe, at: int) -> Recipe:
    part = resumed(recipe, at, restore)
    return part.but(
        order=lambda examples, count: [[]] * (at * recipe.micro) + shuffled(examples, count - at * recipe.micro)
    )


fault("batches-repeated", "accelerate#4071", "data-order", (7, "grad"), DIGITS, lambda: repeated(DIGITS, 6))
