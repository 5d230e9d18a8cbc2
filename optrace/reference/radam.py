"""RAdam: Adam that stays plain momentum until its second moment is worth trusting, then phases it in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from optrace.reference.arithmetic import (
    Array,
    add,
    add_scalar,
    addcmul,
    div,
    lerp,
    mul,
    neg,
    scalar_div,
    sqrt,
    view_as_complex,
    view_as_real,
)
from optrace.reference.optimizer import Optimizer, check_betas, check_option
from optrace.reference.rule import Hyper, Rule, State, counted


def step(param: Array, grad: Array | None, state: State, hyper: Hyper) -> tuple[Array, State]:
    r"""One step of RAdam on one parameter.

    With the parameter theta, its gradient g, and t, how many gradients this parameter has had, this one included:

        g       <- -g                                         if maximize
        theta   <- theta * (1 - lr * weight_decay)            if decoupled_weight_decay, else
        g       <- g + weight_decay * theta
        m       <- m + (1 - beta1) * (g - m)                  exp_avg
        v       <- beta2 * v + (1 - beta2) * g * g            exp_avg_sq
        m_hat   =  m / (1 - beta1^t)
        rho_inf =  2 / (1 - beta2) - 1
        rho     =  rho_inf - 2 * t * beta2^t / (1 - beta2^t)  how many gradients v effectively averages
        theta   <- theta - lr * m_hat                         while rho <= 5, then
        r       =  sqrt((rho - 4) (rho - 2) rho_inf / ((rho_inf - 4) (rho_inf - 2) rho))
        theta   <- theta - lr * m_hat * sqrt(1 - beta2^t) / (sqrt(v) + eps) * r

    With beta2 = 0.999 the second form begins at t = 6. eps is added before the bias correction, unlike Adam's.

    Args:
        param: the parameter, any shape; float or complex (taken as pairs of real numbers).
        grad: its gradient, same shape and dtype, or None: nothing happens.
        state: step (0-d), exp_avg, exp_avg_sq; `{}` before the first step.
        hyper: lr, betas, eps, weight_decay, decoupled_weight_decay, maximize.

    Returns:
        The new parameter and state: bit for bit those of torch 2.13 (for-loop, CPU) when torch's own square root is
        substituted, else within 4 eps * (max(|old|, |new|) + rms(change)) of them a step, from the same state.

    References:
        Liu et al., On the Variance of the Adaptive Learning Rate and Beyond (2019).
        torch 2.13, torch/optim/radam.py, `_single_tensor_radam`.
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

    mean = lerp(view_as_real(new["exp_avg"]), g, 1 - beta1)
    square = addcmul(mul(view_as_real(new["exp_avg_sq"]), beta2), g, g, value=1 - beta2)
    new["exp_avg"], new["exp_avg_sq"] = view_as_complex(mean, param), view_as_complex(square, param)

    bias_correction2 = 1 - beta2**t
    update = mul(div(mean, 1 - beta1**t), lr)
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * t * (beta2**t) / bias_correction2
    if rho > 5.0:
        rectifier = ((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)) ** 0.5
        update = mul(update, scalar_div(add_scalar(sqrt(square), hyper["eps"]), bias_correction2**0.5))
        update = mul(update, rectifier)
    return view_as_complex(add(theta, update, alpha=-1), param), new


def start(param: Array) -> State:
    """The state before the first step: all zeros."""
    return {"step": np.zeros((), np.float32), "exp_avg": np.zeros_like(param), "exp_avg_sq": np.zeros_like(param)}


RULE = Rule(
    name="radam",
    defaults={
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0,
        "decoupled_weight_decay": False,
        "maximize": False,
    },
    state_keys=("step", "exp_avg", "exp_avg_sq"),
    elementwise=True,
    step=step,
)


class RAdam(Optimizer):
    """RAdam over groups of parameters, with the options of `torch.optim.RAdam`; the maths is in `step` above.

    Raises:
        OptionError: a negative lr, eps or weight_decay; a beta outside [0, 1).
    """

    rule = RULE

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
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
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "maximize": maximize,
                "foreach": foreach,
                "capturable": capturable,
                "decoupled_weight_decay": decoupled_weight_decay,
                "differentiable": differentiable,
            },
        )
