"""Adagrad: the gradient divided by the root of the sum of all its squares so far."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from optrace.reference.arithmetic import (
    Array,
    add,
    add_scalar,
    addcdiv,
    addcmul,
    div,
    mul,
    neg,
    sqrt,
    view_as_complex,
    view_as_real,
)
from optrace.reference.optimizer import Optimizer, check_option
from optrace.reference.parameter import values_of
from optrace.reference.rule import Hyper, Rule, State, counted
from optrace.reference.sparse import SparseGrad, scatter_add


def step(param: Array, grad: Array | SparseGrad | None, state: State, hyper: Hyper) -> tuple[Array, State]:
    r"""One step of Adagrad on one parameter.

    With the parameter theta, its gradient g, and t, how many gradients this parameter has had, this one included:

        g     <- -g                                         if maximize
        g     <- g + weight_decay * theta
        s     <- s + g * g                                  sum, initial_accumulator_value at first
        theta <- theta - lr / (1 + (t - 1) * lr_decay) * g / (sqrt(s) + eps)

    A sparse gradient changes theta and s at its own places only.

    Args:
        param: the parameter, any shape; float or complex (taken as pairs of real numbers).
        grad: its gradient, same shape and dtype, or a SparseGrad, or None: nothing happens.
        state: step (0-d), sum; `{}` before the first step.
        hyper: lr, lr_decay, eps, weight_decay, initial_accumulator_value, maximize.

    Returns:
        The new parameter and state: bit for bit those of torch 2.13 (for-loop, CPU) when torch's own square root is
        substituted, else within 4 eps * (max(|old|, |new|) + rms(change)) of them a step, from the same state.

    Raises:
        RuntimeError: weight decay with a sparse gradient.

    References:
        Duchi, Hazan and Singer, Adaptive Subgradient Methods for Online Learning and Stochastic Optimization (2011).
        torch 2.13, torch/optim/adagrad.py, `_single_tensor_adagrad`.
    """
    if grad is None:
        return param, state
    new = counted(state or start(param, hyper))
    rate = hyper["lr"] / (1 + (float(new["step"]) - 1) * hyper["lr_decay"])
    if isinstance(grad, SparseGrad):
        return _sparse_step(param, grad, new, hyper, rate)

    if hyper["maximize"]:
        grad = neg(grad)
    if hyper["weight_decay"] != 0:
        grad = add(grad, param, alpha=hyper["weight_decay"])

    theta, g = view_as_real(param), view_as_real(grad)
    total = addcmul(view_as_real(new["sum"]), g, g)
    new["sum"] = view_as_complex(total, param)
    theta = addcdiv(theta, g, add_scalar(sqrt(total), hyper["eps"]), value=-rate)
    return view_as_complex(theta, param), new


def _sparse_step(
    param: Array, grad: SparseGrad, new: dict[str, Array], hyper: Hyper, rate: float
) -> tuple[Array, State]:
    if hyper["weight_decay"] != 0:
        raise RuntimeError("Adagrad cannot combine weight_decay with sparse gradients: set weight_decay to 0")
    grad = grad.coalesce()
    g = neg(grad.values) if hyper["maximize"] else grad.values
    total = scatter_add(new["sum"], replace(grad, values=mul(g, g)))
    root = add_scalar(sqrt(total[tuple(grad.indices)]), hyper["eps"])
    update = replace(grad, values=div(g, root), coalesced=False)  # torch builds it anew, and forgets that it is
    return scatter_add(param, update, alpha=-rate), {**new, "sum": total}


def start(param: Array, hyper: Hyper) -> State:
    """The state before the first step: the sum begins at initial_accumulator_value, in both parts of a complex one."""
    value = hyper["initial_accumulator_value"]
    total = np.full_like(param, complex(value, value) if np.iscomplexobj(param) else value)
    return {"step": np.zeros((), np.float32), "sum": total}


RULE = Rule(
    name="adagrad",
    defaults={
        "lr": 1e-2,
        "lr_decay": 0,
        "weight_decay": 0,
        "initial_accumulator_value": 0,
        "eps": 1e-10,
        "maximize": False,
    },
    state_keys=("step", "sum"),
    elementwise=True,
    step=step,
)


class Adagrad(Optimizer):
    """Adagrad over groups of parameters, with the options of `torch.optim.Adagrad`; the maths is in `step` above.

    As in torch, the state of the first groups exists as soon as the optimizer does, and the sum of a group added
    later begins at the constructor's initial_accumulator_value, whatever the group says.

    Raises:
        OptionError: a negative lr, lr_decay, weight_decay, initial_accumulator_value or eps.
    """

    rule = RULE
    takes_sparse = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        check_option("learning rate", lr, lr >= 0, "at least 0")
        check_option("lr_decay", lr_decay, lr_decay >= 0, "at least 0")
        check_option("weight_decay", weight_decay, weight_decay >= 0, "at least 0")
        check_option(
            "initial_accumulator_value",
            initial_accumulator_value,
            initial_accumulator_value >= 0,
            "at least 0",
        )
        check_option("eps", eps, eps >= 0, "at least 0")
        super().__init__(
            params,
            {
                "lr": lr,
                "lr_decay": lr_decay,
                "eps": eps,
                "weight_decay": weight_decay,
                "initial_accumulator_value": initial_accumulator_value,
                "foreach": foreach,
                "maximize": maximize,
                "differentiable": differentiable,
                "fused": fused,
            },
        )
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = dict(start(values_of(parameter), self.defaults))

    def _update(self, parameter: Any, grad: Array | SparseGrad, hyper: Hyper) -> None:
        if parameter not in self.state:
            self.state[parameter] = dict(start(values_of(parameter), self.defaults))
        super()._update(parameter, grad, hyper)
