"""NAdam: Adam with Nesterov's look-ahead, and a momentum that warms up over the steps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from optrace.reference.arithmetic import (
    Array,
    add,
    add_scalar,
    addcdiv,
    addcmul,
    div,
    lerp,
    mul,
    neg,
    sqrt,
    view_as_complex,
    view_as_real,
)
from optrace.reference.optimizer import Optimizer, check_betas, check_option
from optrace.reference.rule import Hyper, Rule, State, counted


def step(param: Array, grad: Array | None, state: State, hyper: Hyper) -> tuple[Array, State]:
    r"""One step of NAdam on one parameter.

    With the parameter theta, its gradient g, and t, how many gradients this parameter has had, this one included:

        g     <- -g                                         if maximize
        theta <- theta * (1 - lr * weight_decay)            if decoupled_weight_decay, else
        g     <- g + weight_decay * theta
        mu_t  =  beta1 * (1 - 0.96^(t * momentum_decay) / 2)
        M     <- M * mu_t                                   mu_product, 1 at first, a float32 scalar in torch
        m     <- m + (1 - beta1) * (g - m)                  exp_avg
        v     <- beta2 * v + (1 - beta2) * g * g            exp_avg_sq
        d     =  sqrt(v / (1 - beta2^t)) + eps
        theta <- theta - lr * (1 - mu_t) / (1 - M) * g / d
        theta <- theta - lr * mu_(t+1) / (1 - M * mu_(t+1)) * m / d

    Args:
        param: the parameter, any shape; float or complex (taken as pairs of real numbers).
        grad: its gradient, same shape and dtype, or None: nothing happens.
        state: step and mu_product (0-d), exp_avg, exp_avg_sq; `{}` before the first step.
        hyper: lr, betas, eps, weight_decay, momentum_decay, decoupled_weight_decay, maximize.

    Returns:
        The new parameter and state: bit for bit those of torch 2.13 (for-loop, CPU) when torch's own square root is
        substituted, else within 4 eps * (max(|old|, |new|) + rms(change)) of them a step, from the same state.

    References:
        Dozat, Incorporating Nesterov Momentum into Adam (2016). torch 2.13, torch/optim/nadam.py,
        `_single_tensor_nadam`; torch's foreach form divides after the root and rounds differently.
    """
    if grad is None:
        return param, state
    lr, (beta1, beta2) = hyper["lr"], hyper["betas"]
    new = counted(state or start(param))
    t = float(new["step"])
    theta, g = view_as_real(param), view_as_real(grad)

    if hyper["maximize"]:
        g = neg(g)
    if hyper["weight_decay"] != 0:
        if hyper["decoupled_weight_decay"]:
            theta = mul(theta, 1 - lr * hyper["weight_decay"])
        else:
            g = add(g, theta, alpha=hyper["weight_decay"])

    mu = beta1 * (1.0 - 0.5 * (0.96 ** (t * hyper["momentum_decay"])))
    mu_next = beta1 * (1.0 - 0.5 * (0.96 ** ((t + 1) * hyper["momentum_decay"])))
    new["mu_product"] = mul(new["mu_product"], mu)
    product = float(new["mu_product"])

    mean = lerp(view_as_real(new["exp_avg"]), g, 1 - beta1)
    square = addcmul(mul(view_as_real(new["exp_avg_sq"]), beta2), g, g, value=1 - beta2)
    new["exp_avg"], new["exp_avg_sq"] = view_as_complex(mean, param), view_as_complex(square, param)

    denominator = add_scalar(sqrt(div(square, 1 - beta2**t)), hyper["eps"])
    theta = addcdiv(theta, g, denominator, value=-lr * (1.0 - mu) / (1.0 - product))
    theta = addcdiv(theta, mean, denominator, value=(-lr * mu_next) / (1.0 - product * mu_next))
    return view_as_complex(theta, param), new


def start(param: Array) -> State:
    """The state before the first step: zeros, and a mu_product of 1."""
    return {
        "step": np.zeros((), np.float32),
        "mu_product": np.ones((), np.float32),
        "exp_avg": np.zeros_like(param),
        "exp_avg_sq": np.zeros_like(param),
    }


RULE = Rule(
    name="nadam",
    defaults={
        "lr": 2e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0,
        "momentum_decay": 4e-3,
        "decoupled_weight_decay": False,
        "maximize": False,
    },
    state_keys=("step", "mu_product", "exp_avg", "exp_avg_sq"),
    elementwise=True,
    step=step,
)


class NAdam(Optimizer):
    """NAdam over groups of parameters, with the options of `torch.optim.NAdam`; the maths is in `step` above.

    Raises:
        OptionError: a negative lr, eps, weight_decay or momentum_decay; a beta outside [0, 1).
    """

    rule = RULE

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        check_option("learning rate", lr, lr >= 0, "at least 0")
        check_option("eps", eps, eps >= 0, "at least 0")
        check_betas(betas)
        check_option("weight_decay", weight_decay, weight_decay >= 0, "at least 0")
        check_option("momentum_decay", momentum_decay, momentum_decay >= 0, "at least 0")
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "momentum_decay": momentum_decay,
                "decoupled_weight_decay": decoupled_weight_decay,
                "maximize": maximize,
                "foreach": foreach,
                "capturable": capturable,
                "differentiable": differentiable,
            },
        )
