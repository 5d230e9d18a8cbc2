"""Adam: momentum, divided by the root of a running mean of squared gradients, both corrected for starting at zero."""

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
    maximum,
    mul,
    neg,
    sqrt,
    view_as_complex,
    view_as_real,
)
from optrace.reference.optimizer import Optimizer, check_betas, check_option
from optrace.reference.rule import Hyper, Rule, State, counted


def step(param: Array, grad: Array | None, state: State, hyper: Hyper) -> tuple[Array, State]:
    r"""One step of Adam on one parameter.

    With the parameter theta, its gradient g, and t, how many gradients this parameter has had, this one included:

        g     <- -g                                         if maximize
        g     <- g + weight_decay * theta                   or, if decoupled_weight_decay (AdamW):
        theta <- theta * (1 - lr * weight_decay)
        m     <- m + (1 - beta1) * (g - m)                  exp_avg
        v     <- beta2 * v + (1 - beta2) * g * g            exp_avg_sq
        w     <- max(w, v) if amsgrad, else v               max_exp_avg_sq: of v as it is, not bias-corrected
        theta <- theta - lr / (1 - beta1^t) * m / (sqrt(w) / sqrt(1 - beta2^t) + eps)

    eps stands outside the root and after the bias correction. t counts a parameter's own gradients: one whose
    gradient was None did not step. Complex parameters count as pairs of real ones.

    Args:
        param: the parameter, any shape; float or complex.
        grad: its gradient, same shape and dtype, or None: nothing happens.
        state: step (0-d), exp_avg, exp_avg_sq, and with amsgrad max_exp_avg_sq; `{}` before the first step.
        hyper: lr, betas, eps, weight_decay, amsgrad, maximize, decoupled_weight_decay.

    Returns:
        The new parameter and state: bit for bit those of torch 2.13 (for-loop, CPU) when torch's own square root is
        substituted, else within 4 eps * (max(|old|, |new|) + rms(change)) of them a step, from the same state.

    Raises:
        KeyError: amsgrad was switched on after the first step.

    Example:
        >>> import numpy as np
        >>> theta, state = np.array([1.0, 1.0]), {}
        >>> for g in ([1e-3, 10.0], [1e-3, 10.0]):
        ...     theta, state = step(theta, np.array(g), state, RULE.defaults | {"lr": 0.1})
        ...     print(theta.round(6))
        [0.900001 0.9     ]
        [0.800002 0.8     ]

    References:
        Kingma and Ba, Adam: A Method for Stochastic Optimization (2014). Reddi et al., On the Convergence of Adam
        and Beyond (2018), for amsgrad. torch 2.13, torch/optim/adam.py, `_single_tensor_adam`.
    """
    if grad is None:
        return param, state
    lr, (beta1, beta2) = hyper["lr"], hyper["betas"]
    new = counted(state or start(param, hyper))
    t = float(new["step"])

    if hyper["maximize"]:
        grad = neg(grad)
    if hyper["weight_decay"] != 0:
        if hyper["decoupled_weight_decay"]:
            param = mul(param, 1 - lr * hyper["weight_decay"])
        else:
            grad = add(grad, param, alpha=hyper["weight_decay"])

    theta, g = view_as_real(param), view_as_real(grad)
    mean = lerp(view_as_real(new["exp_avg"]), g, 1 - beta1)
    square = addcmul(mul(view_as_real(new["exp_avg_sq"]), beta2), g, g, value=1 - beta2)
    new["exp_avg"], new["exp_avg_sq"] = view_as_complex(mean, param), view_as_complex(square, param)
    if hyper["amsgrad"]:
        square = maximum(view_as_real(new["max_exp_avg_sq"]), square)
        new["max_exp_avg_sq"] = view_as_complex(square, param)

    step_size = lr / (1 - beta1**t)
    denominator = add_scalar(div(sqrt(square), (1 - beta2**t) ** 0.5), hyper["eps"])
    theta = addcdiv(theta, mean, denominator, value=-step_size)
    return view_as_complex(theta, param), new


def start(param: Array, hyper: Hyper) -> State:
    """The state before the first step: all zeros."""
    keys = ["exp_avg", "exp_avg_sq"] + (["max_exp_avg_sq"] if hyper["amsgrad"] else [])
    return {"step": np.zeros((), np.float32)} | {key: np.zeros_like(param) for key in keys}


RULE = Rule(
    name="adam",
    defaults={
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0,
        "amsgrad": False,
        "maximize": False,
        "decoupled_weight_decay": False,
    },
    state_keys=("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    elementwise=True,
    step=step,
)


class Adam(Optimizer):
    """Adam over groups of parameters, with the options of `torch.optim.Adam`; the maths is in `step` above.

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
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
    ) -> None:
        check_option("learning rate", lr, lr >= 0, "at least 0")
        check_option("eps", eps, eps >= 0, "at least 0")
        check_betas(betas)
        check_option("weight_decay", weight_decay, weight_decay >= 0, "at least 0")
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": tuple(betas),
                "eps": eps,
                "weight_decay": weight_decay,
                "amsgrad": amsgrad,
                "maximize": maximize,
                "foreach": foreach,
                "capturable": capturable,
                "differentiable": differentiable,
                "fused": fused,
                "decoupled_weight_decay": decoupled_weight_decay,
            },
        )
