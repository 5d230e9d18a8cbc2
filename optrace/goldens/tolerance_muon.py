"""How far Newton-Schulz in bfloat16 may stray: the same iteration in float64, each operation rounded at random."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from optrace.goldens.drive import Array
from optrace.reference.muon import adjusted_lr, orthogonal

BFLOAT16_EPS = 2.0**-7


def astray(grad: Array, state: Mapping[str, Any], hyper: Mapping[str, Any], rng: np.random.Generator) -> Array:
    """What a step of Muon may be off: the lr of the shape times the difference that rounding makes.

    Every product, sum and quotient is moved by up to one eps of bfloat16, uniformly at random: an implementation may do
    each operation by itself in bfloat16, and round down where another rounds up.

    Args:
        grad: shape (A, B).
        state: after the step, with its `momentum_buffer`.
        hyper: the options of the group.
        rng: for the directions.

    Returns:
        float64 of shape (A, B).
    """
    buffer, momentum = state["momentum_buffer"], hyper["momentum"]
    direction = grad + momentum * (buffer - grad) if hyper["nesterov"] else buffer
    right = orthogonal(direction, hyper["ns_coefficients"], hyper["ns_steps"], hyper["eps"])
    moved = _rounded_iteration(direction, hyper, rng)
    return np.asarray(adjusted_lr(hyper["lr"], hyper["adjust_lr_fn"], grad.shape) * (moved - right))


def _rounded_iteration(direction: Array, hyper: Mapping[str, Any], rng: np.random.Generator) -> Array:
    def rounded(values: Array) -> Array:
        return np.asarray(values * (1 + BFLOAT16_EPS * rng.uniform(-1.0, 1.0, np.shape(values))))

    a, b, c = hyper["ns_coefficients"]
    tall = direction.shape[0] > direction.shape[1]
    x = rounded((direction.T if tall else direction).astype(np.float64))
    x = rounded(x / np.maximum(rounded(np.asarray(np.linalg.norm(x))), hyper["eps"]))
    for _ in range(hyper["ns_steps"]):
        gram = rounded(x @ x.T)
        polynomial = rounded(rounded(b * gram) + rounded(rounded(c * gram) @ gram))
        x = rounded(rounded(a * x) + rounded(polynomial @ x))
    return x.T if tall else x
