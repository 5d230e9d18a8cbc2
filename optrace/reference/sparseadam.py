"""SparseAdam: Adam for embeddings, where only the rows that had a gradient move or age."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from optrace.errors import OptionError
from optrace.reference.arithmetic import Array, add, add_scalar, div, mul, neg, sqrt
from optrace.reference.optimizer import Optimizer, check_betas, check_option
from optrace.reference.parameter import values_of
from optrace.reference.rule import Hyper, Rule, State
from optrace.reference.sparse import SparseGrad


def step(param: Array, grad: Array | SparseGrad | None, state: State, hyper: Hyper) -> tuple[Array, State]:
    r"""One step of SparseAdam on one parameter.

    At the places where the gradient g was computed, and nowhere else, with t the number of gradients so far:

        g     <- -g                                         if maximize
        m     <- m + (1 - beta1) * (g - m)                  exp_avg
        v     <- v + (1 - beta2) * (g * g - v)              exp_avg_sq
        theta <- theta - lr * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + eps)

    This is not Adam restricted to some rows: eps is added before the bias correction, which thereby divides it too;
    and t counts the steps of the whole parameter, so that a row touched for the first time late is under-corrected.
    There is no weight decay.

    Args:
        param: the parameter, any shape; float.
        grad: a SparseGrad; or an array, in which a zero means not computed; or None: nothing happens.
        state: step (0-d, int64: a Python int in torch), exp_avg, exp_avg_sq; `{}` before the first step.
        hyper: lr, betas, eps, maximize.

    Returns:
        The new parameter and state: bit for bit those of torch 2.13 (for-loop, CPU) when torch's own square root is
        substituted, else within 4 eps * (max(|old|, |new|) + rms(change)) of them a step, from the same state.

    References:
        torch 2.13, torch/optim/_functional.py, `sparse_adam`.
    """
    if grad is None:
        return param, state
    beta1, beta2 = hyper["betas"]
    new = dict(state or start(param))
    new["step"] = np.asarray(new["step"] + 1)
    t = int(new["step"])

    if isinstance(grad, SparseGrad):
        grad = grad.coalesce()
        places, g = tuple(grad.indices), grad.values
    else:
        places = np.nonzero(grad) if grad.ndim else (np.asarray(grad != 0),)
        g = grad[places]
    if g.size == 0:
        return param, new
    if hyper["maximize"]:
        g = neg(g)

    mean, square, theta = new["exp_avg"].copy(), new["exp_avg_sq"].copy(), param.copy()
    mean[places] = add(mul(add(g, mean[places], alpha=-1), 1 - beta1), mean[places])
    square[places] = add(mul(add(mul(g, g), square[places], alpha=-1), 1 - beta2), square[places])
    step_size = hyper["lr"] * math.sqrt(1 - beta2**t) / (1 - beta1**t)
    update = mul(div(mean[places], add_scalar(sqrt(square[places]), hyper["eps"])), -step_size)
    theta[places] = add(theta[places], update)
    new["exp_avg"], new["exp_avg_sq"] = mean, square
    return theta, new


def start(param: Array) -> State:
    """The state before the first step: all zeros."""
    return {"step": np.zeros((), np.int64), "exp_avg": np.zeros_like(param), "exp_avg_sq": np.zeros_like(param)}


RULE = Rule(
    name="sparseadam",
    defaults={"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "maximize": False},
    state_keys=("step", "exp_avg", "exp_avg_sq"),
    elementwise=True,
    step=step,
)


class SparseAdam(Optimizer):
    """SparseAdam over groups of parameters, with the options of `torch.optim.SparseAdam`; the maths is in `step` above.

    Raises:
        OptionError: an lr or eps that is not positive; a beta outside [0, 1); a complex parameter.
    """

    rule = RULE
    takes_sparse = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        maximize: bool = False,
    ) -> None:
        check_option("learning rate", lr, lr > 0, "above 0")
        check_option("eps", eps, eps > 0, "above 0")
        check_betas(betas)
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "maximize": maximize})
        for number, group in enumerate(self.param_groups):
            for index, parameter in enumerate(group["params"]):
                if values_of(parameter).dtype.kind == "c":
                    raise OptionError(f"SparseAdam does not support complex parameters: group {number}, index {index}")

    def _update(self, parameter: Any, grad: Array | SparseGrad, hyper: Hyper) -> None:
        if not isinstance(grad, SparseGrad):
            raise RuntimeError("SparseAdam does not support dense gradients; use Adam, or hand over a SparseGrad")
        super()._update(parameter, grad, hyper)

    def _unpack(self, parameter: Any, key: str, value: Any) -> Any:
        return np.array(value, np.int64) if key == "step" else super()._unpack(parameter, key, value)
