"""Formulas that are nearly right: decay by another part of the schedule, averages that sum, counts of other things."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_optimizer import AdaBelief, Lamb
from torch import nn

from tests.faults.parts import PLAIN, fault, lr_scheduler
from tests.faults.programs import Recipe, decay_groups

optim = torch.optim
LR = 0.02


class Nearly(torch.optim.Optimizer):
    """AdamW, SGD or RMSprop by hand, with one mistake in its formula."""

    def __init__(self, params: Any, rule: str, mistake: str, **options: Any) -> None:
        super().__init__(params, {"lr": LR, **OPTIONS[rule], **options})
        self.rule, self.mistake, self.count = rule, mistake, 0
        self.first = [group["lr"] for group in self.param_groups]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One step."""
        for group, first in zip(self.param_groups, self.first, strict=True):
            self.count += self.mistake == "counts-groups"
            for p in group["params"]:
                self.count += self.mistake == "counts-parameters"
                getattr(self, "_" + self.rule)(p, p.grad, self.state[p], group, first)

    def _adamw(self, p: Any, g: Any, state: dict[str, Any], group: dict[str, Any], first: float) -> None:
        wrong, lr, decay = self.mistake, group["lr"], group["weight_decay"]
        one, two = group["betas"]
        shrinks = {"first-lr": first, "schedule-alone": lr / first, "schedule-twice": lr * lr / first, "grows": -lr}
        p.mul_(1 - shrinks.get(wrong, lr) * decay)
        if not state:
            state.update(step=torch.tensor(0.0), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        state["step"] += 1
        t = self.count or state["step"].item()
        if wrong == "counter-stuck":
            t = 1
        m = state["exp_avg"].mul_(one).add_(g, alpha=1.0 if wrong == "first-summed" else 1 - one)
        x = {"square-of-average": m, "deviation": g - m}.get(wrong, g)
        v = state["exp_avg_sq"].mul_(two).addcmul_(x, x, value=1.0 if wrong == "second-summed" else 1 - two)
        if wrong == "starts-whole" and t == 1:
            m, v = state["exp_avg"].copy_(g), state["exp_avg_sq"].copy_(g * g)
        along = one * m + (1 - one) * g if wrong == "looks-ahead" else m
        mean, square = along / (1 - one**t), v / (1 - two**t)
        if wrong == "corrected-kept":
            state["exp_avg"], state["exp_avg_sq"] = mean, square
        p.sub_(lr * mean / (square.sqrt() + group["eps"]))

    def _sgd(self, p: Any, g: Any, state: dict[str, Any], group: dict[str, Any], first: float) -> None:
        lr = group["lr"]
        of_p = {"absolute": p.sign(), "by-lr": lr * p, "schedule-twice": lr / first * p}[self.mistake]
        g = g + group["weight_decay"] * of_p
        state["momentum_buffer"] = g + group["momentum"] * state.get("momentum_buffer", 0.0)
        p.sub_(lr * state["momentum_buffer"])

    def _rmsprop(self, p: Any, g: Any, state: dict[str, Any], group: dict[str, Any], first: float) -> None:
        wrong, mu = self.mistake, group["momentum"]
        g = g + group["weight_decay"] * p
        old = state.get("square_avg", torch.zeros_like(p))
        v = state["square_avg"] = group["alpha"] * old + (1.0 if wrong == "summed" else 1 - group["alpha"]) * g * g
        d = g / ((v if wrong == "no-root" else v.sqrt()) + group["eps"])
        share = 1 - mu if wrong == "average" else 1.0
        state["momentum_buffer"] = mu * state.get("momentum_buffer", torch.zeros_like(p)) + share * d
        p.sub_(group["lr"] * state["momentum_buffer"])


OPTIONS: dict[str, dict[str, Any]] = {
    "adamw": {"betas": (0.9, 0.99), "eps": 1e-4, "weight_decay": 0.0},
    "sgd": {"momentum": 0.9, "weight_decay": 0.0},
    "rmsprop": {"alpha": 0.9, "eps": 1e-3, "momentum": 0.5},
}
CLASSES = {"adamw": optim.AdamW, "sgd": optim.SGD, "rmsprop": optim.RMSprop}


def right(rule: str) -> Recipe:
    """A regression whose lr falls at every step, by torch's own optimizer."""
    return PLAIN.but(
        optimizer=lambda net: CLASSES[rule](decay_groups(net, 0.3), lr=LR, **OPTIONS[rule]),
        schedule=lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda e: 1 / (1 + 0.3 * e)),
    )


RIGHT = {rule: right(rule) for rule in CLASSES}

for rule, mistake, code, where in (
    ("adamw", "first-lr", "rule-decay-coupling", (2, "update")),
    ("adamw", "schedule-alone", "rule-decay-coupling", (1, "update")),
    ("adamw", "schedule-twice", "rule-decay-coupling", (2, "update")),
    ("adamw", "grows", "rule-sign", (1, "update")),
    ("adamw", "corrected-kept", "rule-bias-correction", (1, "state.exp_avg")),
    ("adamw", "starts-whole", "rule-bias-correction", (1, "update")),
    ("adamw", "counter-stuck", "step-counter", (2, "update")),
    ("adamw", "counts-parameters", "step-counter", (1, "update")),
    ("adamw", "counts-groups", "step-counter", (1, "update")),
    ("adamw", "first-summed", "rule-betas", (1, "update")),
    ("adamw", "second-summed", "rule-betas", (1, "update")),
    ("adamw", "looks-ahead", "rule-nesterov", (1, "update")),
    ("adamw", "square-of-average", "rule-unknown", (1, "update")),
    ("adamw", "deviation", "rule-unknown", (1, "update")),
    ("sgd", "absolute", "rule-decay-coupling", (1, "update")),
    ("sgd", "by-lr", "rule-decay-coupling", (1, "update")),
    ("sgd", "schedule-twice", "rule-decay-coupling", (2, "state.momentum_buffer")),
    ("rmsprop", "summed", "rule-betas", (1, "update")),
    ("rmsprop", "average", "rule-momentum-form", (1, "update")),
    ("rmsprop", "no-root", "rule-unknown", (1, "update")),
):

    def wrong(net: nn.Module, rule: str = rule, mistake: str = mistake) -> Nearly:
        return Nearly(decay_groups(net, 0.3), rule, mistake)

    fault(f"{rule}-{mistake}", "own", code, where, RIGHT[rule], RIGHT[rule].but(optimizer=wrong))

# --- another rule and other options at once -----------------------------------------------------------------------

fault(
    "lamb-for-adamw",
    "own",
    "group-option lr-value rule-unknown",
    (1, "hyper."),
    RIGHT["adamw"],
    RIGHT["adamw"].but(optimizer=lambda net: Lamb(decay_groups(net, 0.3), lr=0.01)),
)
fault(
    "adabelief-for-adam",
    "own",
    "group-option lr-value rule-unknown",
    (1, "hyper."),
    PLAIN.but(optimizer=lambda net: optim.Adam(net.parameters(), lr=0.02)),
    PLAIN.but(optimizer=lambda net: AdaBelief(net.parameters(), lr=0.01)),
)
