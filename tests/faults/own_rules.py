"""Faults of our own in update rules: arithmetic, counters, updates that are not made."""

from __future__ import annotations

from typing import Any

import torch

from tests.faults.optimizers import OwnAdam, OwnSGD
from tests.faults.parts import ADAM, PLAIN, adam_of, fault, own_sgd, resumed, torch_sgd
from tests.faults.programs import DIGITS, REGRESSION, State, restore, two_groups


class Lazy(torch.optim.SGD):
    """SGD that does nothing at its fifth step."""

    count = 0

    def step(self, closure: Any = None) -> Any:
        self.count += 1
        return None if self.count == 5 else super().step(closure)


class Masked(torch.optim.SGD):
    """SGD that leaves the second half of the largest parameter alone."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        p = self.param_groups[0]["params"][0]
        old = p.clone()
        super().step(closure)
        p[len(p) // 2 :] = old[len(p) // 2 :]


def counted_on(state: State, saved: dict[str, Any]) -> None:
    restore(state, saved)
    for entry in state.optimizer.state.values():
        entry["step"] += 1


AMSGRAD = DIGITS.but(optimizer=adam_of(torch.optim.Adam, amsgrad=True), schedule=None, steps=16)
fault("ema-momentum", "pytorch#94615", "rule-momentum-form", (1, "update"), PLAIN, PLAIN.but(optimizer=own_sgd("ema")))
fault(
    "lr-inside-momentum",
    "own",
    "rule-momentum-form",
    (1, "state.momentum_buffer"),
    REGRESSION.but(steps=14),
    REGRESSION.but(steps=14, optimizer=own_sgd("lr-inside")),
)
fault(
    "first-step-dampened",
    "own",
    "rule-dampening",
    (1, "update"),
    PLAIN.but(optimizer=torch_sgd(dampening=0.3)),
    PLAIN.but(optimizer=own_sgd("dampened-first", dampening=0.3)),
)
fault(
    "no-dampening",
    "own",
    "rule-dampening",
    (2, "update"),
    PLAIN.but(optimizer=torch_sgd(dampening=0.3)),
    PLAIN.but(optimizer=own_sgd("no-dampening", dampening=0.3)),
)
fault(
    "no-nesterov",
    "own",
    "rule-nesterov",
    (1, "update"),
    PLAIN.but(optimizer=torch_sgd(nesterov=True)),
    PLAIN.but(optimizer=own_sgd("no-nesterov", nesterov=True)),
)
fault(
    "sgd-decay-decoupled",
    "own",
    "rule-decay-coupling",
    (1, "state.momentum_buffer"),
    PLAIN,
    PLAIN.but(optimizer=own_sgd("decay-decoupled")),
)
fault("sgd-no-decay", "own", "rule-decay-missing", (1, "update"), PLAIN, PLAIN.but(optimizer=own_sgd("decay-missing")))
fault("sgd-decay-sign", "own", "rule-sign", (1, "update"), PLAIN, PLAIN.but(optimizer=own_sgd("decay-sign")))
fault(
    "no-bias-correction",
    "own",
    "rule-bias-correction",
    (1, "update"),
    ADAM,
    ADAM.but(optimizer=adam_of(OwnAdam, weight_decay=0.01, mistake="no-correction")),
)
fault(
    "first-moment-corrected",
    "own",
    "rule-bias-correction",
    (1, "update"),
    ADAM,
    ADAM.but(optimizer=adam_of(OwnAdam, weight_decay=0.01, mistake="first-corrected")),
)
fault(
    "betas-swapped",
    "own",
    "rule-betas",
    (1, ""),
    ADAM,
    ADAM.but(optimizer=adam_of(OwnAdam, weight_decay=0.01, mistake="betas-swapped")),
)
fault(
    "hard-coded-beta2",
    "own",
    "rule-betas",
    (1, "state.exp_avg_sq"),
    ADAM,
    ADAM.but(optimizer=adam_of(OwnAdam, weight_decay=0.01, mistake="other-beta2")),
)
fault(
    "no-amsgrad",
    "own",
    "rule-amsgrad",
    (1, "state.max_exp_avg_sq"),
    AMSGRAD,
    AMSGRAD.but(optimizer=adam_of(OwnAdam, amsgrad=True, mistake="no-amsgrad")),
)
fault(
    "eps-missing",
    "own",
    "rule-eps",
    (1, "update"),
    ADAM,
    ADAM.but(optimizer=adam_of(OwnAdam, weight_decay=0.01, mistake="eps-missing")),
)
fault(
    "something-else",
    "own",
    "rule-unknown",
    (1, "update"),
    ADAM,
    ADAM.but(optimizer=adam_of(OwnAdam, weight_decay=0.01, mistake="unheard")),
)
fault(
    "adam-for-adamw",
    "own",
    "rule-decay-coupling",
    (1, "update"),
    ADAM.but(optimizer=adam_of(torch.optim.AdamW, weight_decay=0.01)),
    ADAM,
)
fault(
    "step-does-nothing",
    "own",
    "update-skipped",
    (5, "update"),
    PLAIN,
    PLAIN.but(optimizer=lambda n: Lazy(two_groups(n), lr=0.05, momentum=0.9, weight_decay=0.01)),
)
fault(
    "half-a-parameter",
    "own",
    "update-partial",
    (1, "update"),
    PLAIN,
    PLAIN.but(optimizer=lambda n: Masked(two_groups(n), lr=0.05, momentum=0.9, weight_decay=0.01)),
)
fault("counter-loaded-ahead", "own", "step-counter", (6, "state"), DIGITS, lambda: resumed(DIGITS, 6, counted_on))
fault(
    "both-at-once",
    "own",
    "lr-value rule-decay-missing",
    (1, "hyper.lr"),
    PLAIN,
    PLAIN.but(
        optimizer=lambda n: OwnSGD(
            two_groups(n, lr=0.1), lr=0.1, momentum=0.9, weight_decay=0.01, mistake="decay-missing"
        )
    ),
)
