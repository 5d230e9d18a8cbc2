"""Adadelta: steps in the unit of past steps, so that no learning rate is needed."""

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
    mul,
    neg,
    sqrt,
    view_as_complex,
    view_as_real,
)
from optrace.reference.optimizer import Optimizer, check_option
from optrace.reference.rule import Hyper, Rule, State, counted


def step(param: Array, grad: Array | None, state: State, hyper: Hyper) -> tuple[Array, State]:
    r"""One step of Adadelta on one parameter.

    With the parameter theta and its gradient g:

        g     <- -g                                         if maximize
        g     <- g + weight_decay * theta
        v     <- rho * v + (1 - rho) * g * g                square_avg
        d     =  sqrt(u + eps) / sqrt(v + eps) * g          eps inside both roots; u from the step before
        u     <- rho * u + (1 - rho) * d * d                acc_delta
        theta <- theta - lr * d

    Args:
        param: the parameter, any shape; float or complex (taken as pairs of real numbers).
        grad: its gradient, same shape and dtype, or None: nothing happens.
        state: step (0-d), square_avg, acc_delta; `{}` before the first step.
        hyper: lr, rho, eps, weight_decay, maximize.

    Returns:
        The new parameter and state: bit for bit those of torch 2.13 (for-loop, CPU) when torch's own square root is
        substituted, else within 4 eps * (max(|old|, |new|) + rms(change)) of them a step, from the same state.

    References:
        Zeiler, ADADELTA: An Adaptive Learning Rate Method (2012).
        torch 2.13, torch/optim/adadelta.py, `_single_tensor_adadelta`.
    """
    if grad is None:
        return param, state
    rho, eps = hyper["rho"], hyper["eps"]
    new = counted(state or start(param))

    if hyper["maximize"]:
        grad = neg(grad)
    if hyper["weight_decay"] != 0:
        grad = add(grad, param, alpha=hyper["weight_decay"])

    g, past = view_as_real(grad), view_as_real(new["acc_delta"])
    square = addcmul(mul(view_as_real(new["square_avg"]), rho), g, g, value=1 - rho)
    delta = mul(div(sqrt(add_scalar(past, eps)), sqrt(add_scalar(square, eps))), g)
    past = addcmul(mul(past, rho), delta, delta, value=1 - rho)
    new["square_avg"], new["acc_delta"] = view_as_complex(square, param), view_as_complex(past, param)
    return add(param, view_as_complex(delta, param), alpha=-hyper["lr"]), new


def start(param: Array) -> State:
    """The state before the first step: all zeros."""
    return {"step": np.zeros((), np.float32), "square_avg": np.zeros_like(param), "acc_delta": np.zeros_like(param)}


RULE = Rule(
    name="adadelta",
    defaults={"lr": 1.0, "rho": 0.9, "eps": 1e-6, "weight_decay": 0, "maximize": False},
    state_keys=("step", "square_avg", "acc_delta"),
    elementwise=True,
    step=step,
)


class Adadelta(Optimizer):
    """Adadelta over groups of parameters, with the options of `torch.optim.Adadelta`; the maths is in `step` above.

    Raises:
        OptionError: a negative lr, eps or weight_decay; rho outside [0, 1].
    """

    rule = RULE

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        capturable: bool = False,
        maximize: bool = False,
        differentiable: bool = False,
    ) -> None:
        check_option("learning rate", lr, lr >= 0, "at least 0")
        check_option("rho", rho, 0 <= rho <= 1, "from 0 to 1")
        check_option("eps", eps, eps >= 0, "at least 0")
        check_option("weight_decay", weight_decay, weight_decay >= 0, "at least 0")
        super().__init__(
            params,
            {
                "lr": lr,
                "rho": rho,
                "eps": eps,
                "weight_decay": weight_decay,
                "maximize": maximize,
                "capturable": capturable,
                "foreach": foreach,
                "differentiable": differentiable,
            },
        )
