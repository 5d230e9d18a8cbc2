"""The parameters that a reference optimizer updates: NumPy arrays with a gradient, or a torch model's own tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from optrace.reference.arithmetic import Array
from optrace.reference.sparse import SparseGrad


class Parameter:
    """An ndarray and its gradient, for optimizers that are used without torch.

    Args:
        data: the values, any shape; float16, float32, float64, complex64 or complex128. Steps write into this array.
        grad: the gradient, of the same shape and dtype, or None: not computed, and then `step()` leaves `data` alone.
    """

    def __init__(self, data: Array, grad: Array | SparseGrad | None = None) -> None:
        self.data = data if isinstance(data, np.ndarray) else np.asarray(data)
        self.grad = grad
        if self.data.dtype.kind not in "fc":
            raise TypeError(f"a parameter holds floating-point or complex values, not {self.data.dtype}")

    def __repr__(self) -> str:
        return f"Parameter(shape={self.data.shape}, dtype={self.data.dtype})"


def is_parameter(thing: object) -> bool:
    """Whether an optimizer can update this: a `Parameter`, anything like it, or a torch tensor."""
    if hasattr(thing, "detach"):
        return True
    return hasattr(thing, "grad") and isinstance(getattr(thing, "data", None), np.ndarray)


def values_of(parameter: Any) -> Array:
    """The parameter's values as an ndarray that shares their memory: writing into it moves the parameter.

    Raises:
        TypeError: a torch tensor that NumPy cannot see (bfloat16, or not in CPU memory).
    """
    if not hasattr(parameter, "detach"):
        array: Array = parameter.data
        return array
    return as_array(parameter)


def grad_of(parameter: Any) -> Array | SparseGrad | None:
    """The parameter's gradient as the rules take it; sparse torch gradients become a `SparseGrad`."""
    grad = parameter.grad
    if grad is None or isinstance(grad, (np.ndarray, SparseGrad)):
        return grad
    if getattr(grad, "is_sparse", False):
        grad = grad.detach()
        indices, values = as_array(grad._indices()), as_array(grad._values())
        return SparseGrad(indices, values, tuple(grad.shape), coalesced=grad.is_coalesced())
    return as_array(grad)


def as_array(thing: Any) -> Array:
    """An ndarray of a torch tensor (sharing its memory) or of anything that NumPy understands; nothing is copied."""
    if not hasattr(thing, "detach"):
        return np.asarray(thing)
    try:
        return np.asarray(thing.detach().resolve_conj().resolve_neg().numpy())
    except TypeError as error:
        raise TypeError(
            f"a reference optimizer works in NumPy, which cannot see a {thing.dtype} tensor on {thing.device}; "
            "move it to the CPU as float16, float32 or float64"
        ) from error
