"""RMSprop: the gradient divided by the root of a running mean of its squares."""

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
    lerp,
    mul,
    neg,
    sqrt,
    view_as_complex,
    view_as_real,
)
from optrace.reference.optimizer import Optimizer, check_option
from optrace.reference.rule import Hyper, Rule, State, counted


def step(param: Array, grad: Array | None, state: State, hyper: Hyper) -> tuple[Array, State]:
    r"""One step of RMSprop on one parameter.

    With the parameter theta and its gradient g:

        g     <- -g                                         if maximize
        g     <- g + weight_decay * theta
        v     <- alpha * v + (1 - alpha) * g * g            square_avg
        a     <- a + (1 - alpha) * (g - a)                  grad_avg, if centered
        d     =  sqrt(v - a * a) + eps if centered, else sqrt(v) + eps
        theta <- theta - lr * g / d                         without momentum; with it
        b     <- momentum * b + g / d                       momentum_buffer
        theta <- theta - lr * b

    There is no bias correction, and eps stands outside the root (TensorFlow's stands inside). Rounding can make
    v - a * a negative; the result is then NaN, as in torch.

    Args:
        param: the parameter, any shape; float or complex (taken as pairs of real numbers).
        grad: its gradient, same shape and dtype, or None: nothing happens.
        state: step (0-d), square_avg, with momentum momentum_buffer, if centered grad_avg; `{}` before the first step.
        hyper: lr, alpha, eps, weight_decay, momentum, centered, maximize.

    Returns:
        The new parameter and state: bit for bit those of torch 2.13 (for-loop, CPU) when torch's own square root is
        substituted, else within 4 eps * (max(|old|, |new|) + rms(change)) of them a step, from the same state.

    Raises:
        KeyError: momentum or centered was switched on after the first step.

    References:
        Tieleman and Hinton, Lecture 6.5 of Neural Networks for Machine Learning (2012); Graves, Generating Sequences
        With Recurrent Neural Networks (2013), for the centered form.
        torch 2.13, torch/optim/rmsprop.py, `_single_tensor_rmsprop`.
    """
    if grad is None:
        return param, state
    lr, alpha, momentum = hyper["lr"], hyper["alpha"], hyper["momentum"]
    new = counted(state or start(param, hyper))

    if hyper["maximize"]:
        grad = neg(grad)
    if hyper["weight_decay"] != 0:
        grad = add(grad, param, alpha=hyper["weight_decay"])

    theta, g = view_as_real(param), view_as_real(grad)
    square = addcmul(mul(view_as_real(new["square_avg"]), alpha), g, g, value=1 - alpha)
    new["square_avg"] = view_as_complex(square, param)
    if hyper["centered"]:
        mean = lerp(view_as_real(new["grad_avg"]), g, 1 - alpha)
        new["grad_avg"] = view_as_complex(mean, param)
        square = addcmul(square, mean, mean, value=-1)
    denominator = add_scalar(sqrt(square), hyper["eps"])

    if momentum > 0:
        buffer = addcdiv(mul(view_as_real(new["momentum_buffer"]), momentum), g, denominator)
        new["momentum_buffer"] = view_as_complex(buffer, param)
        theta = add(theta, buffer, alpha=-lr)
    else:
        theta = addcdiv(theta, g, denominator, value=-lr)
    return view_as_complex(theta, param), new


def start(param: Array, hyper: Hyper) -> State:
    """The state before the first step: all zeros."""
    keys = ["square_avg"]
    keys += ["momentum_buffer"] if hyper["momentum"] > 0 else []
    keys += ["grad_avg"] if hyper["centered"] else []
    return {"step": np.zeros((), np.float32)} | {key: np.zeros_like(param) for key in keys}


RULE = Rule(
    name="rmsprop",
    defaults={
        "lr": 1e-2,
        "alpha": 0.99,
        "eps": 1e-8,
        "weight_decay": 0,
        "momentum": 0,
        "centered": False,
        "maximize": False,
    },
    state_keys=("step", "square_avg", "momentum_buffer", "grad_avg"),
    elementwise=True,
    step=step,
)


class RMSprop(Optimizer):
    """RMSprop over groups of parameters, with the options of `torch.optim.RMSprop`; the maths is in `step` above.

    Raises:
        OptionError: a negative lr, eps, momentum, weight_decay or alpha.
    """

    rule = RULE

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
    ) -> None:
        check_option("learning rate", lr, lr >= 0, "at least 0")
        check_option("eps", eps, eps >= 0, "at least 0")
        check_option("momentum", momentum, momentum >= 0, "at least 0")
        check_option("weight_decay", weight_decay, weight_decay >= 0, "at least 0")
        check_option("alpha", alpha, alpha >= 0, "at least 0")
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "alpha": alpha,
                "eps": eps,
                "centered": centered,
                "weight_decay": weight_decay,
                "capturable": capturable,
                "foreach": foreach,
                "maximize": maximize,
                "differentiable": differentiable,
            },
        )
