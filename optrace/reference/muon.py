"""Muon: momentum whose every step is made nearly orthogonal, for the weight matrices of hidden layers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from optrace.errors import OptionError
from optrace.reference.arithmetic import Array, add, bfloat16_matmul, div, lerp, mul, norm, to_bfloat16
from optrace.reference.optimizer import Optimizer, check_option
from optrace.reference.parameter import values_of
from optrace.reference.rule import Hyper, Rule, State


def step(param: Array, grad: Array | None, state: State, hyper: Hyper) -> tuple[Array, State]:
    r"""One step of Muon on one matrix.

    With the matrix theta (A rows, B columns), its gradient g, and the momentum buffer m:

        m     <- m + (1 - momentum) * (g - m)               an average, unlike SGD's sum
        u     =  g + momentum * (m - g) if nesterov, else m
        O     =  orthogonal(u)                              all singular values moved near 1, see below
        theta <- theta * (1 - lr * weight_decay)            decoupled, with lr as it is
        theta <- theta - lr' * O                            lr' = lr * sqrt(max(1, A/B)), or for "match_rms_adamw"
                                                            lr' = 0.2 * lr * sqrt(max(A, B))

    Args:
        param: the parameter, two-dimensional; float32 or float64.
        grad: its gradient, same shape and dtype, or None: nothing happens.
        state: momentum_buffer; `{}` before the first step.
        hyper: lr, weight_decay, momentum, nesterov, ns_coefficients, eps, ns_steps, adjust_lr_fn.

    Returns:
        The new parameter and state. The buffer is bit for bit that of torch 2.13 (CPU), and so is the parameter when
        torch's bfloat16 products are substituted. These are rounded once here; torch's come out the same unless the
        exact sum lies nearer to the middle between two bfloat16 numbers than float32 summation can tell (of 10,000
        sums of 300 terms, one). One such entry moves O by up to 2^-7 of the entry times 4 for each iteration left
        (the slope of the polynomial for singular values up to 1.2), so the parameter is within
        lr' * 2^-7 * 4^(ns_steps - 1) * (number of such entries). Measured up to 300 x 100: lr' * 2^-6, and bit for
        bit in 78 of 100 steps.

    References:
        Jordan et al., Muon: An optimizer for hidden layers in neural networks (2024); Liu et al., Muon is Scalable
        for LLM Training (2025), for "match_rms_adamw". torch 2.13, torch/optim/_muon.py, `_single_tensor_muon`.
    """
    if grad is None:
        return param, state
    lr, momentum = hyper["lr"], hyper["momentum"]

    buffer = lerp(state.get("momentum_buffer", np.zeros_like(param)), grad, 1 - momentum)
    update = lerp(grad, buffer, momentum) if hyper["nesterov"] else buffer
    update = orthogonal(update, hyper["ns_coefficients"], hyper["ns_steps"], hyper["eps"])

    param = mul(param, 1 - lr * hyper["weight_decay"])
    rate = adjusted_lr(lr, hyper["adjust_lr_fn"], param.shape)
    return add(param, update.astype(param.dtype), alpha=-rate), {"momentum_buffer": buffer}


def orthogonal(matrix: Array, coefficients: tuple[float, float, float], steps: int, eps: float) -> Array:
    r"""The matrix with its singular values moved towards 1, by Newton-Schulz iteration in bfloat16.

    X is the matrix, transposed if it has more rows than columns, divided by its Frobenius norm; each iteration is

        X <- a*X + (b*G + c*G@G) @ X        with G = X @ X^T

    which applies the odd polynomial a*x + b*x^3 + c*x^5 to every singular value. With the default coefficients it
    does not converge to 1 but throws every value into about [0.7, 1.2].

    Args:
        matrix: shape (A, B).
        coefficients: (a, b, c).
        steps: the number of iterations, below 100.
        eps: the smallest norm to divide by.

    Returns:
        float32 of shape (A, B), every entry a bfloat16 number.

    Raises:
        OptionError: not a matrix, not three coefficients, or 100 steps and more.
    """
    check_option("ns_steps", steps, steps < 100, "below 100")
    check_option("ns_coefficients", coefficients, len(coefficients) == 3, "three numbers")
    if matrix.ndim != 2:
        raise OptionError(f"Muon needs a matrix for a gradient, not an array of shape {matrix.shape}")
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]

    x = to_bfloat16(matrix.T if tall else matrix)
    x = to_bfloat16(div(x, np.maximum(to_bfloat16(norm(x)), to_bfloat16(eps))))
    for _ in range(steps):
        gram = bfloat16_matmul(x, x.T)
        polynomial = bfloat16_matmul(gram, gram, gram, beta=b, alpha=c)
        x = bfloat16_matmul(polynomial, x, x, beta=a)
    return x.T if tall else x


def adjusted_lr(lr: float, adjust_lr_fn: str | None, shape: tuple[int, ...]) -> float:
    """The learning rate for a matrix of this shape: scaled so that updates of all shapes have about the same size."""
    rows, columns = shape
    if adjust_lr_fn == "match_rms_adamw":
        return lr * (0.2 * math.sqrt(max(rows, columns)))
    return lr * math.sqrt(max(1, rows / columns))


RULE = Rule(
    name="muon",
    defaults={
        "lr": 1e-3,
        "weight_decay": 0.1,
        "momentum": 0.95,
        "nesterov": True,
        "ns_coefficients": (3.4445, -4.775, 2.0315),
        "eps": 1e-7,
        "ns_steps": 5,
        "adjust_lr_fn": None,
    },
    state_keys=("momentum_buffer",),
    elementwise=False,
    step=step,
)


class Muon(Optimizer):
    """Muon over groups of matrices, with the options of `torch.optim.Muon`; the maths is in `step` above.

    Raises:
        OptionError: a negative lr, momentum or weight_decay; an unknown adjust_lr_fn; a parameter that is no matrix.
    """

    rule = RULE
    takes_complex = False

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
    ) -> None:
        check_option("learning rate", lr, lr >= 0, "at least 0")
        check_option("momentum", momentum, momentum >= 0, "at least 0")
        check_option("weight_decay", weight_decay, weight_decay >= 0, "at least 0")
        known = (None, "original", "match_rms_adamw")
        check_option("adjust_lr_fn", adjust_lr_fn, adjust_lr_fn in known, "'original', 'match_rms_adamw' or None")
        super().__init__(
            params,
            {
                "lr": lr,
                "weight_decay": weight_decay,
                "momentum": momentum,
                "nesterov": nesterov,
                "ns_coefficients": ns_coefficients,
                "eps": eps,
                "ns_steps": ns_steps,
                "adjust_lr_fn": adjust_lr_fn,
            },
        )
        for group in self.param_groups:
            for parameter in group["params"]:
                shape = values_of(parameter).shape
                if len(shape) != 2:
                    raise OptionError(f"Muon updates matrices only, but a parameter has the shape {shape}")
