"""Adamax: Adam with the largest recent gradient in place of the root of the mean square."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from optrace.reference.arithmetic import (
    Array,
    absolute,
    add,
    add_scalar,
    addcdiv,
    lerp,
    maximum,
    mul,
    neg,
    view_as_complex,
    view_as_real,
)
from optrace.reference.optimizer import Optimizer, check_betas, check_option
from optrace.reference.rule import Hyper, Rule, State, counted


def step(param: Array, grad: Array | None, state: State, hyper: Hyper) -> tuple[Array, State]:
    r"""One step of Adamax on one parameter.

    With the parameter theta, its gradient g, and t, how many gradients this parameter has had, this one included:

        g     <- -g                                         if maximize
        g     <- g + weight_decay * theta
        m     <- m + (1 - beta1) * (g - m)                  exp_avg
        u     <- max(beta2 * u, |g| + eps)                  exp_inf: eps is inside the maximum
        theta <- theta - lr / (1 - beta1^t) * m / u

    Args:
        param: the parameter, any shape; float or complex (taken as pairs of real numbers).
        grad: its gradient, same shape and dtype, or None: nothing happens.
        state: step (0-d), exp_avg, exp_inf; `{}` before the first step.
        hyper: lr, betas, eps, weight_decay, maximize.

    Returns:
        The new parameter and state. Bit for bit those of torch 2.13 (for-loop, CPU).

    References:
        Kingma and Ba, Adam: A Method for Stochastic Optimization (2014), section 7.1.
        torch 2.13, torch/optim/adamax.py, `_single_tensor_adamax`.
    """
    if grad is None:
        return param, state
    beta1, beta2 = hyper["betas"]
    new = counted(state or start(param))

    if hyper["maximize"]:
        grad = neg(grad)
    if hyper["weight_decay"] != 0:
        grad = add(grad, param, alpha=hyper["weight_decay"])

    theta, g = view_as_real(param), view_as_real(grad)
    mean = lerp(view_as_real(new["exp_avg"]), g, 1 - beta1)
    largest = maximum(mul(view_as_real(new["exp_inf"]), beta2), add_scalar(absolute(g), hyper["eps"]))
    new["exp_avg"], new["exp_inf"] = view_as_complex(mean, param), view_as_complex(largest, param)

    step_size = hyper["lr"] / (1 - beta1 ** float(new["step"]))
    theta = addcdiv(theta, mean, largest, value=-step_size)
    return view_as_complex(theta, param), new


def start(param: Array) -> State:
    """The state before the first step: all zeros."""
    return {"step": np.zeros((), np.float32), "exp_avg": np.zeros_like(param), "exp_inf": np.zeros_like(param)}


RULE = Rule(
    name="adamax",
    defaults={"lr": 2e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "maximize": False},
    state_keys=("step", "exp_avg", "exp_inf"),
    elementwise=True,
    step=step,
)


class Adamax(Optimizer):
    """Adamax over groups of parameters, with the options of `torch.optim.Adamax`; the maths is in `step` above.

    Raises:
        OptionError: a negative lr, eps or weight_decay; a beta outside [0, 1).
    """

    rule = RULE

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
    ) -> None:
        check_option("learning rate", lr, lr >= 0, "at least 0")
        check_option("eps", eps, eps >= 0, "at least 0")
        check_betas(betas)
        check_option("weight_decay", weight_decay, weight_decay >= 0, "at least 0")
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "foreach": foreach,
                "maximize": maximize,
                "differentiable": differentiable,
                "capturable": capturable,
            },
        )
