"""Lion: the sign of an average of the gradient and its momentum, with decoupled weight decay; torch has none."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from optrace.reference.arithmetic import Array, add, mul, sign
from optrace.reference.optimizer import Optimizer, check_betas, check_option
from optrace.reference.rule import Hyper, Rule, State


def step(param: Array, grad: Array | None, state: State, hyper: Hyper) -> tuple[Array, State]:
    r"""One step of Lion on one parameter, element by element.

    With the parameter theta and its gradient g:

        theta <- theta * (1 - lr * weight_decay)
        theta <- theta - lr * sign(beta1 * m + (1 - beta1) * g)     sign(0) = 0
        m     <- beta2 * m + (1 - beta2) * g                        exp_avg, zero at first

    Every element moves by lr, whatever the size of its gradient, so that lr is usually a tenth of AdamW's and the decay
    ten times as large. Where beta1 * m and (1 - beta1) * g cancel, the last bit decides which way an element goes.

    Args:
        param: the parameter, any shape; float.
        grad: its gradient, same shape and dtype, or None: nothing happens, no decay either.
        state: exp_avg; `{}` before the first step.
        hyper: lr, betas, weight_decay.

    Returns:
        The new parameter and state. Bit for bit those of lion-pytorch 0.2 (CPU); pytorch_optimizer 4.1 averages with
        `lerp`, whose last bit may differ.

    References:
        Chen et al., Symbolic Discovery of Optimization Algorithms (2023), algorithm 2.
    """
    if grad is None:
        return param, state
    beta1, beta2 = hyper["betas"]
    lr, decay = hyper["lr"], hyper["weight_decay"]
    average = state["exp_avg"] if state else np.zeros_like(param)

    theta = mul(param, 1 - lr * decay) if decay else param
    direction = sign(add(mul(average, beta1), grad, alpha=1 - beta1))
    theta = add(theta, direction, alpha=-lr)
    return theta, {"exp_avg": add(mul(average, beta2), grad, alpha=1 - beta2)}


RULE = Rule(
    name="lion",
    defaults={"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0},
    state_keys=("exp_avg",),
    elementwise=True,
    step=step,
    jumps=True,
)


class Lion(Optimizer):
    """Lion over groups of parameters, with the options of the paper; the maths is in `step` above.

    Raises:
        OptionError: a negative lr or weight_decay; a beta outside [0, 1).
    """

    rule = RULE
    takes_complex = False

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0,
    ) -> None:
        check_option("learning rate", lr, lr >= 0, "at least 0")
        check_betas(betas)
        check_option("weight_decay", weight_decay, weight_decay >= 0, "at least 0")
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})
