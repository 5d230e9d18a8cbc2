"""Faults in other programs than those with which the causes were written: other nets, optimizers, schedules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tests.faults.other_nets import AUTOENCODER, CONVOLUTION, RECURRENT
from tests.faults.other_optimizers import Lion, Own, Tutorial
from tests.faults.parts import fault, lr_scheduler
from tests.faults.programs import Recipe, State, decay_groups

optim = torch.optim


def of_torch(kind: Any, **options: Any) -> Callable[[nn.Module], Any]:
    return lambda net: kind(net.parameters(), **options)


def own(rule: str, mistakes: str = "", **options: Any) -> Callable[[nn.Module], Any]:
    return lambda net: Own(net.parameters(), rule, mistakes, **options)


def own_adam(mistakes: str) -> Callable[[nn.Module], Any]:
    return lambda net: Own(decay_groups(net), "adam", mistakes)


# --- rules --------------------------------------------------------------------------------------------------------

RMSPROP = AUTOENCODER.but(optimizer=of_torch(optim.RMSprop, lr=1e-2, eps=1e-3, momentum=0.8))
ADAGRAD = RECURRENT.but(optimizer=of_torch(optim.Adagrad, lr=1e-2, eps=1e-3, lr_decay=0.1))
ADAMAX = RECURRENT.but(optimizer=of_torch(optim.Adamax, lr=1e-2, eps=1e-3))
NADAM = CONVOLUTION.but(optimizer=of_torch(optim.NAdam, lr=1e-2, eps=1e-3))
DECAYING = CONVOLUTION.but(schedule=lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.8))
SGD = AUTOENCODER.but(optimizer=lambda net: optim.SGD(decay_groups(net, 0.05), lr=0.05, momentum=0.9))


def rule(name: str, codes: str, where: tuple[int, str], right: Recipe, wrong: Callable[[nn.Module], Any]) -> None:
    fault(name, "own", codes, where, right, right.but(optimizer=wrong))


rule("rmsprop-eps-inside", "rule-eps", (1, "update"), RMSPROP, own("rmsprop", "eps-inside", momentum=0.8))
rule("rmsprop-starts-at-one", "state-value", (1, "update"), RMSPROP, own("rmsprop", "starts-at-one", momentum=0.8))
rule("adagrad-eps-inside", "rule-eps", (1, "update"), ADAGRAD, own("adagrad", "eps-inside", lr_decay=0.1))
rule("adagrad-forgets", "rule-unknown", (2, "update"), ADAGRAD, own("adagrad", "forgets", lr_decay=0.1))
rule("adamax-uncorrected", "rule-bias-correction", (1, "update"), ADAMAX, own("adamax", "first-uncorrected"))
rule("nadam-eps-inside", "rule-eps", (1, "update"), NADAM, own("nadam", "eps-inside"))
rule(
    "lion-betas-exchanged",
    "rule-betas",
    (1, "state.exp_avg"),
    RECURRENT.but(optimizer=of_torch(Lion)),
    of_torch(Lion, exchanged=True),
)
rule("lr-read-once", "lr-frozen", (2, "update"), DECAYING, own_adam("lr-read-once"))
rule("lr-halved-inside", "lr-value", (1, "update"), DECAYING, own_adam("half-lr"))
rule("decay-in-the-code", "group-option", (1, "update"), DECAYING, own_adam("own-decay"))
rule("eps-in-the-code", "rule-eps", (1, "update"), DECAYING, own_adam("own-eps"))
rule(
    "eps-inside-and-no-decay",
    "rule-eps rule-decay-missing",
    (1, "update"),
    CONVOLUTION,
    own_adam("eps-inside no-decay"),
)
rule(
    "uncorrected-and-no-decay",
    "rule-bias-correction rule-decay-missing",
    (1, "update"),
    CONVOLUTION,
    own_adam("first-uncorrected no-decay"),
)
rule(
    "average-and-no-decay",
    "rule-momentum-form rule-decay-missing",
    (1, "update"),
    SGD,
    lambda net: Own(decay_groups(net, 0.05), "sgd", "average no-decay", lr=0.05),
)
fault(
    "tutorial-at-ten-times-the-lr",
    "pytorch#94615",
    "rule-momentum-form",
    (1, "hyper.lr"),
    AUTOENCODER,
    AUTOENCODER.but(watched=True, optimizer=lambda net: Tutorial(net.parameters(), lr=0.5, average=True)),
)

# --- schedules ----------------------------------------------------------------------------------------------------


def schedule(name: str, codes: str, step: int, right: Callable[[Any], Any], wrong: Callable[[Any], Any]) -> None:
    a = RECURRENT.but(schedule=right, steps=16)
    fault(name, "own", codes, (step, "hyper."), a, a.but(schedule=wrong))


schedule(
    "restarts-do-not-lengthen",
    "lr-value",
    7,
    lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 5, 2),
    lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 5),
)
schedule(
    "one-cycle-of-another-length",
    "lr-value",
    2,
    lambda o: lr_scheduler.OneCycleLR(o, 0.01, 20),
    lambda o: lr_scheduler.OneCycleLR(o, 0.01, 40),
)
schedule(
    "cyclic-momentum",
    "group-option",
    2,
    lambda o: lr_scheduler.CyclicLR(o, 0.001, 0.01, 4, cycle_momentum=False),
    lambda o: lr_scheduler.CyclicLR(o, 0.001, 0.01, 4),
)
schedule(
    "epochs-counted-from-one",
    "lr-shift",
    1,
    lambda o: lr_scheduler.LambdaLR(o, lambda e: (e + 1) ** -0.5),
    lambda o: lr_scheduler.LambdaLR(o, lambda e: (e + 2) ** -0.5),
)


def plateau(patience: int) -> Recipe:
    return AUTOENCODER.but(
        steps=24,
        schedule=lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=patience, threshold=0.5),
        after_step=lambda state: state.scheduler.step(1.0),
    )


fault("plateau-patience", "own", "lr-rate", (4, "hyper.lr"), plateau(1), plateau(3))

# --- gradients and state ------------------------------------------------------------------------------------------

MICRO = RECURRENT.but(micro=3, settings={"micro": True})


def evaluates(state: State) -> None:
    """Validation that forgets to go back to training."""
    if state.step == 6:
        state.net.eval()


def keep_first(state: State) -> None:
    if state.i_micro == 0:
        state.kept = [p.grad.clone() for p in state.net.parameters()]
    elif state.i_micro == state.recipe.micro - 1:
        for p, g in zip(state.net.parameters(), state.kept, strict=True):
            p.grad.copy_(g)


def guarded(state: State) -> None:
    """A step that is left out, as when a loss looks odd."""
    if state.step != 5:
        state.optimizer.step()


def forget(state: State) -> None:
    if state.step == 6:
        state.optimizer.state.clear()


def forget_one(state: State) -> None:
    if state.step == 6:
        state.optimizer.state.pop(state.net.out.weight)


def clip_largest(state: State) -> None:
    nn.utils.clip_grad_norm_(state.net.parameters(), 0.05, norm_type=float("inf"))


def clip(state: State) -> None:
    nn.utils.clip_grad_norm_(state.net.parameters(), 0.05)


CLIPPED = RECURRENT.but(before_step=clip)
fault("evaluation-mode-left-on", "own", "grad-upstream", (7, "grad"), NADAM, NADAM.but(after_step=evaluates))
fault(
    "evaluation-mode-amid-noise",
    "own",
    "grad-upstream",
    (7, "grad"),
    NADAM,
    NADAM.but(after_step=evaluates, optimizer=of_torch(optim.NAdam, lr=1e-2, eps=1e-3, foreach=True)),
)
fault("first-kept-with-micro", "DeepSpeed#7967", "grad-partial", (1, "grad"), MICRO, MICRO.but(after_micro=keep_first))
fault(
    "last-micro-batch-not-divided",
    "own",
    "grad-scale",
    (1, "grad_micro.3"),
    MICRO,
    MICRO.but(weigh=lambda state, loss: loss if state.i_micro == 2 else loss / 3),
)
fault("step-passed-over", "own", "steps-missing", (5, "grad"), RMSPROP, RMSPROP.but(step=guarded))
fault(
    "clip-of-another-norm-type",
    "own",
    "grad-clip",
    (1, "grad"),
    RECURRENT.but(before_step=clip),
    RECURRENT.but(before_step=clip_largest),
)
fault("state-cleared", "own", "state-reset", (6, "state_in"), ADAMAX, ADAMAX.but(before_step=forget))
fault("state-of-one-cleared", "own", "state-reset", (6, "state_in"), ADAMAX, ADAMAX.but(before_step=forget_one))
