"""Adafactor: Adam's second moment kept as one number a row and one a column, and steps in proportion to the weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from optrace.reference.arithmetic import Array, add, div, lerp, maximum, mean, mul, neg, norm, scalar_div
from optrace.reference.optimizer import Optimizer, check_option, hyper_of
from optrace.reference.parameter import grad_of, values_of
from optrace.reference.rule import Hyper, Rule, State, counted


def step(param: Array, grad: Array | None, state: State, hyper: Hyper) -> tuple[Array, State]:
    r"""One step of Adafactor on one parameter.

    With the parameter theta of n elements, its gradient g, t the number of its gradients so far, this one included,
    and rms(x) = norm(x) / sqrt(n):

        g     <- -g                                         if maximize
        w     =  t^beta2_decay                              the weight of the newest square: 1 at first, then falling
        alpha =  max(eps2, rms(theta)) * min(lr, 1 / sqrt(t))
        theta <- theta * (1 - lr * weight_decay)            after alpha was taken
        for matrices (and stacks of matrices, over their last two dimensions):
            R <- R + w * (mean of g*g over each row - R)    row_var, shape (..., rows, 1)
            C <- C + w * (mean of g*g over each column - C) col_var, shape (..., 1, columns)
            V =  R @ C / max(eps1, mean of R)
        for vectors and scalars:
            V <- V + w * (g*g - V)                          variance
        u     =  g / sqrt(max(V, eps1^2))
        theta <- theta - alpha / max(1, rms(u) / d) * u

    eps1 None stands for the machine epsilon of the parameter's dtype.

    Args:
        param: the parameter, any shape; real.
        grad: its gradient, same shape and dtype, or None: nothing happens.
        state: step (0-d), and row_var and col_var, or variance; `{}` before the first step.
        hyper: lr, beta2_decay, eps (eps1, eps2), d, weight_decay, maximize.

    Returns:
        The new parameter and state: bit for bit those of torch 2.13 (for-loop, CPU) when torch's own norms and means
        are substituted, and for parameters of one element. Those are sums of n terms of one sign, which torch adds
        in an order of its own with a relative error of at most n/2 eps, and which are rounded once here. Hence, from
        the same state, with N the number of elements and m the longer of rows and columns: variance bit for bit;
        row_var and col_var within (m/2 + 7) eps of themselves; the parameter within (N/2 + 2*m + 32) eps of its
        change, and 1 eps of itself. Measured: 4 eps of max(|old|, |new|) + rms(change) up to 2,000
        elements, 20 eps at 300 x 500.

    References:
        Shazeer and Stern, Adafactor: Adaptive Learning Rates with Sublinear Memory Cost (2018).
        torch 2.13, torch/optim/_adafactor.py, `_single_tensor_adafactor`.
    """
    if grad is None:
        return param, state
    lr, (eps1, eps2) = hyper["lr"], hyper["eps"]
    if eps1 is None:
        eps1 = float(np.finfo(param.dtype).eps)
    new = counted(state or start(param))
    t = float(new["step"])

    if hyper["maximize"]:
        grad = neg(grad)
    weight = t ** hyper["beta2_decay"]
    alpha = max(eps2, float(norm(param)) / (param.size**0.5)) * min(lr, 1 / (t**0.5))
    if hyper["weight_decay"] != 0:
        param = mul(param, 1 - lr * hyper["weight_decay"])

    if grad.ndim > 1:
        new["row_var"] = lerp(new["row_var"], _mean_square(grad, -1), weight)
        new["col_var"] = lerp(new["col_var"], _mean_square(grad, -2), weight)
        overall = maximum(mean(new["row_var"], -2), np.asarray(eps1, param.dtype))
        variance = div(mul(new["row_var"], new["col_var"]), overall)
    else:
        variance = new["variance"] = lerp(new["variance"], mul(grad, grad), weight)

    variance = maximum(variance, np.asarray(eps1 * eps1, param.dtype))
    update = mul(scalar_div(np.asarray(np.sqrt(variance)), 1), grad)
    clip = max(1.0, float(norm(update)) / ((update.size**0.5) * hyper["d"]))
    return add(param, update, alpha=-alpha / clip), new


def start(param: Array) -> State:
    """The state before the first step: all zeros."""
    state = {"step": np.zeros((), np.float32)}
    if param.ndim > 1:
        rows, columns = param.shape[-2:]
        state["row_var"] = np.zeros((*param.shape[:-2], rows, 1), param.dtype)
        state["col_var"] = np.zeros((*param.shape[:-2], 1, columns), param.dtype)
    else:
        state["variance"] = np.zeros_like(param)
    return state


def _mean_square(a: Array, axis: int) -> Array:
    size = norm(a, axis)
    return div(mul(size, size), a.shape[axis])


RULE = Rule(
    name="adafactor",
    defaults={
        "lr": 1e-2,
        "beta2_decay": -0.8,
        "eps": (None, 1e-3),
        "d": 1.0,
        "weight_decay": 0.0,
        "maximize": False,
    },
    state_keys=("step", "row_var", "col_var", "variance"),
    elementwise=False,
    step=step,
)


class Adafactor(Optimizer):
    """Adafactor over groups of parameters, with the options of `torch.optim.Adafactor`; the maths is in `step` above.

    As in torch's for-loop, an eps1 of None becomes the machine epsilon of the first parameter of a group that has a
    gradient, and stays so for the rest of that group, whatever their dtypes.

    Raises:
        OptionError: a negative lr, eps or weight_decay; a positive beta2_decay; d below 1.
    """

    rule = RULE
    takes_complex = False

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
    ) -> None:
        check_option("learning rate", lr, lr >= 0, "at least 0")
        check_option("beta2_decay", beta2_decay, beta2_decay <= 0, "at most 0")
        check_option("eps at index 0", eps[0], eps[0] is None or eps[0] >= 0, "at least 0, or None")
        check_option("eps at index 1", eps[1], eps[1] >= 0, "at least 0")
        check_option("d", d, d >= 1, "at least 1")
        check_option("weight_decay", weight_decay, weight_decay >= 0, "at least 0")
        super().__init__(
            params,
            {
                "lr": lr,
                "beta2_decay": beta2_decay,
                "eps": eps,
                "d": d,
                "weight_decay": weight_decay,
                "foreach": foreach,
                "maximize": maximize,
            },
        )

    def _hyper(self, group: dict[str, Any]) -> dict[str, Any]:
        hyper = hyper_of(group)
        eps1, eps2 = hyper["eps"]
        with_grad = [values_of(parameter) for parameter in group["params"] if grad_of(parameter) is not None]
        if eps1 is None and with_grad:
            eps1 = float(np.finfo(with_grad[0].dtype).eps)
        return hyper | {"eps": (eps1, eps2)}
