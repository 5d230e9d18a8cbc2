"""ASGD: plain gradient descent with a decaying rate, and an average of the points that it passes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from optrace.reference.arithmetic import Array, add, mul, neg, view_as_complex, view_as_real
from optrace.reference.optimizer import Optimizer, check_option
from optrace.reference.rule import Hyper, Rule, State, counted


def step(param: Array, grad: Array | None, state: State, hyper: Hyper) -> tuple[Array, State]:
    r"""One step of averaged SGD on one parameter.

    With the parameter theta, its gradient g, and t, how many gradients this parameter has had, this one included:

        g     <- -g                                         if maximize
        g     <- g + weight_decay * theta
        theta <- theta * (1 - lambd * eta)
        theta <- theta - eta * g
        ax    <- theta if mu = 1, else ax + mu * (theta - ax)
        eta   <- lr / (1 + lambd * lr * t)^alpha            eta is lr at first
        mu    <- 1 / max(1, t - t0)                         mu is 1 at first

    eta is computed after its use: a new lr acts one step late. eta and mu are float32 scalars in torch, and rounded
    to that. The result of averaging is ax, which `step` never copies into the parameter.

    Args:
        param: the parameter, any shape; float or complex (taken as pairs of real numbers).
        grad: its gradient, same shape and dtype, or None: nothing happens.
        state: step, eta, mu (0-d), ax; `{}` before the first step.
        hyper: lr, lambd, alpha, t0, weight_decay, maximize.

    Returns:
        The new parameter and state. Bit for bit those of torch 2.13 (for-loop, CPU); torch's foreach form decays and
        subtracts in one step and rounds differently.

    References:
        Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging (1992); Bottou, Stochastic Gradient
        Descent Tricks (2012), for lambd, alpha and t0. torch 2.13, torch/optim/asgd.py, `_single_tensor_asgd`.
    """
    if grad is None:
        return param, state
    lr, lambd = hyper["lr"], hyper["lambd"]
    new = counted(state or start(param, hyper))
    t, eta = float(new["step"]), float(new["eta"])
    theta, g = view_as_real(param), view_as_real(grad)

    if hyper["maximize"]:
        g = neg(g)
    if hyper["weight_decay"] != 0:
        g = add(g, theta, alpha=hyper["weight_decay"])

    theta = add(mul(theta, 1 - lambd * eta), g, alpha=-eta)
    if new["mu"] == 1:
        average = np.array(theta)
    else:
        average = view_as_real(new["ax"])
        average = add(average, mul(add(theta, average, alpha=-1), float(new["mu"])))
    new["ax"] = view_as_complex(average, param)

    rounded = new["step"].dtype.type  # torch's default dtype when the state was made
    new["eta"] = np.asarray(rounded(lr / ((1 + lambd * lr * t) ** hyper["alpha"])), new["eta"].dtype)
    new["mu"] = np.asarray(rounded(1 / max(1, t - hyper["t0"])), new["mu"].dtype)
    return view_as_complex(theta, param), new


def start(param: Array, hyper: Hyper) -> State:
    """The state before the first step: eta is lr, mu is 1, the average is zero."""
    return {
        "step": np.zeros((), np.float32),
        "eta": np.asarray(hyper["lr"], np.float32),
        "mu": np.ones((), np.float32),
        "ax": np.zeros_like(param),
    }


RULE = Rule(
    name="asgd",
    defaults={"lr": 1e-2, "lambd": 1e-4, "alpha": 0.75, "t0": 1e6, "weight_decay": 0, "maximize": False},
    state_keys=("step", "eta", "mu", "ax"),
    elementwise=True,
    step=step,
)


class ASGD(Optimizer):
    """ASGD over groups of parameters, with the options of `torch.optim.ASGD`; the maths is in `step` above.

    Raises:
        OptionError: a negative lr or weight_decay.
    """

    rule = RULE

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        lambd: float = 1e-4,
        alpha: float = 0.75,
        t0: float = 1e6,
        weight_decay: float = 0,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
    ) -> None:
        check_option("learning rate", lr, lr >= 0, "at least 0")
        check_option("weight_decay", weight_decay, weight_decay >= 0, "at least 0")
        super().__init__(
            params,
            {
                "lr": lr,
                "lambd": lambd,
                "alpha": alpha,
                "t0": t0,
                "weight_decay": weight_decay,
                "foreach": foreach,
                "maximize": maximize,
                "differentiable": differentiable,
                "capturable": capturable,
            },
        )
