"""Stochastic gradient descent: a step against the gradient, with or without momentum."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from optrace.reference.arithmetic import Array, add, mul, neg
from optrace.reference.optimizer import Optimizer, check_option
from optrace.reference.parameter import values_of
from optrace.reference.rule import Hyper, Rule, State
from optrace.reference.sparse import SparseGrad, scatter_add


def step(param: Array, grad: Array | None, state: State, hyper: Hyper) -> tuple[Array, State]:
    r"""One step of SGD on one parameter.

    With the parameter theta, its gradient g, the learning rate lr, and what is remembered between steps, the momentum
    buffer b:

        g     <- -g                            if maximize: climb instead of descend
        g     <- g + weight_decay * theta      pull the weights towards zero
        b     <- g                             at the parameter's first step, else
        b     <- momentum * b + (1 - dampening) * g
        d     <- g + momentum * b              if nesterov: look ahead, else
        d     <- b
        theta <- theta - lr * d

    Without momentum there is no buffer and d = g. Three things that other programs do differently: the first gradient
    enters the buffer whole, not dampened; the buffer is a sum of gradients, not an average; lr stands outside the
    buffer, so that a new lr acts at once on all the momentum gathered so far.

    Args:
        param: the parameter, any shape; float or complex.
        grad: its gradient, same shape and dtype. None: nothing happens, which differs from a gradient of zeros.
        state: `{"momentum_buffer": b}`, shape and dtype of param; `{}` before the first step and without momentum.
        hyper: lr, momentum, dampening, weight_decay, nesterov, maximize.

    Returns:
        The new parameter and the new state. Bit for bit those of torch 2.13's `torch.optim.SGD` (for-loop, CPU).

    Example:
        >>> import numpy as np
        >>> hyper = RULE.defaults | {"lr": 0.1, "momentum": 0.9}
        >>> theta, g, state = np.array([1.0, -2.0]), np.array([0.5, 0.5]), {}
        >>> for _ in range(3):
        ...     theta, state = step(theta, g, state, hyper)
        ...     print(theta, state["momentum_buffer"])
        [ 0.95 -2.05] [0.5 0.5]
        [ 0.855 -2.145] [0.95 0.95]
        [ 0.7195 -2.2805] [1.355 1.355]

    References:
        Sutskever et al., On the importance of initialization and momentum in deep learning (2013).
        torch 2.13, torch/optim/sgd.py, `_single_tensor_sgd`.
    """
    if grad is None:
        return param, state
    lr, momentum = hyper["lr"], hyper["momentum"]

    if hyper["maximize"]:
        grad = neg(grad)
    if hyper["weight_decay"] != 0:
        grad = add(grad, param, alpha=hyper["weight_decay"])

    direction = grad
    if momentum != 0:
        buffer = state.get("momentum_buffer")
        if buffer is None:
            buffer = np.array(grad)
        else:
            buffer = add(mul(buffer, momentum), grad, alpha=1 - hyper["dampening"])
        state = {"momentum_buffer": buffer}
        direction = add(grad, buffer, alpha=momentum) if hyper["nesterov"] else buffer

    return add(param, direction, alpha=-lr), state


RULE = Rule(
    name="sgd",
    defaults={
        "lr": 1e-3,
        "momentum": 0,
        "dampening": 0,
        "weight_decay": 0,
        "nesterov": False,
        "maximize": False,
    },
    state_keys=("momentum_buffer",),
    elementwise=True,
    step=step,
)


class SGD(Optimizer):
    """SGD over groups of parameters, with the options of `torch.optim.SGD`; the maths is in `step` above.

    Raises:
        OptionError: a negative lr, momentum or weight_decay; Nesterov without momentum or with dampening.
    """

    rule = RULE
    takes_sparse = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        check_option("learning rate", lr, lr >= 0, "at least 0")
        check_option("momentum", momentum, momentum >= 0, "at least 0")
        check_option("weight_decay", weight_decay, weight_decay >= 0, "at least 0")
        check_option(
            "nesterov",
            nesterov,
            not nesterov or (momentum > 0 and dampening == 0),
            f"used with a momentum above 0 and no dampening (momentum={momentum!r}, dampening={dampening!r})",
        )
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "dampening": dampening,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
                "maximize": maximize,
                "foreach": foreach,
                "differentiable": differentiable,
                "fused": fused,
            },
        )

    def _update(self, parameter: Any, grad: Array | SparseGrad, hyper: Hyper) -> None:
        if not isinstance(grad, SparseGrad):
            super()._update(parameter, grad, hyper)
            return
        if hyper["momentum"] != 0 or hyper["weight_decay"] != 0:
            raise RuntimeError("sparse gradients go without momentum and weight_decay: set both to 0")
        theta = values_of(parameter)
        theta[...] = scatter_add(theta, grad, alpha=hyper["lr"] if hyper["maximize"] else -hyper["lr"])
