"""Rprop: each element has a step size of its own, and only the sign of its gradient counts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from optrace.reference.arithmetic import Array, addcmul, mul, neg, view_as_complex, view_as_real
from optrace.reference.optimizer import Optimizer, check_option
from optrace.reference.rule import Hyper, Rule, State, counted


def step(param: Array, grad: Array | None, state: State, hyper: Hyper) -> tuple[Array, State]:
    r"""One step of Rprop on one parameter, element by element.

    With the parameter theta, its gradient g, and etaminus < 1 < etaplus:

        g     <- -g                                         if maximize
        c     =  g * prev
        s     <- s * etaplus  where c > 0: same direction as last time
        s     <- s * etaminus where c < 0: jumped over a minimum; and there g <- 0
        s     <- clamp(s, step_size_min, step_size_max)     step_size, lr at first
        theta <- theta - s * sign(g)
        prev  <- g

    After the first step lr is never read again: a learning-rate schedule has no effect. After a change of sign the
    element rests for one step, and since prev is then 0, its step size stays as it is in the next.

    Args:
        param: the parameter, any shape; float or complex (taken as pairs of real numbers).
        grad: its gradient, same shape and dtype, or None: nothing happens.
        state: step (0-d), prev, step_size; `{}` before the first step.
        hyper: lr, etas, step_sizes, maximize.

    Returns:
        The new parameter and state. Bit for bit those of torch 2.13 (for-loop, CPU).

    References:
        Riedmiller and Braun, A direct adaptive method for faster backpropagation learning: the RPROP algorithm (1993).
        torch 2.13, torch/optim/rprop.py, `_single_tensor_rprop`.
    """
    if grad is None:
        return param, state
    etaminus, etaplus = hyper["etas"]
    smallest, largest = hyper["step_sizes"]
    new = counted(state or start(param, hyper))
    theta, g = view_as_real(param), view_as_real(grad)
    number = theta.dtype.type

    if hyper["maximize"]:
        g = neg(g)
    agreement = mul(g, view_as_real(new["prev"]))
    factor = np.where(agreement > 0, number(etaplus), np.where(agreement < 0, number(etaminus), number(1)))
    size = np.asarray(np.clip(mul(view_as_real(new["step_size"]), factor), number(smallest), number(largest)))
    g = np.where(agreement < 0, number(0), g)
    direction = np.where(g > 0, number(1), np.where(g < 0, number(-1), number(0)))

    theta = addcmul(theta, direction, size, value=-1)
    new["prev"], new["step_size"] = view_as_complex(g, param), view_as_complex(size, param)
    return view_as_complex(theta, param), new


def start(param: Array, hyper: Hyper) -> State:
    """The state before the first step: no previous gradient, and lr as every step size."""
    lr = complex(hyper["lr"], hyper["lr"]) if np.iscomplexobj(param) else hyper["lr"]
    return {"step": np.zeros((), np.float32), "prev": np.zeros_like(param), "step_size": np.full_like(param, lr)}


RULE = Rule(
    name="rprop",
    defaults={"lr": 1e-2, "etas": (0.5, 1.2), "step_sizes": (1e-6, 50), "maximize": False},
    state_keys=("step", "prev", "step_size"),
    elementwise=True,
    step=step,
)


class Rprop(Optimizer):
    """Rprop over groups of parameters, with the options of `torch.optim.Rprop`; the maths is in `step` above.

    Raises:
        OptionError: a negative lr; etas that do not satisfy 0 < etas[0] < 1 < etas[1].
    """

    rule = RULE

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50),
        *,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
    ) -> None:
        check_option("learning rate", lr, lr >= 0, "at least 0")
        check_option("etas", etas, 0 < etas[0] < 1 < etas[1], "one between 0 and 1, then one above 1")
        super().__init__(
            params,
            {
                "lr": lr,
                "etas": etas,
                "step_sizes": step_sizes,
                "foreach": foreach,
                "maximize": maximize,
                "differentiable": differentiable,
                "capturable": capturable,
            },
        )
