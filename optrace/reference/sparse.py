"""Gradients of which only some places were computed, and how ATen adds them to a dense tensor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from optrace.reference.arithmetic import Array, Scalar, add, current, rounding


@dataclass(frozen=True)
class SparseGrad:
    """A gradient of which only some rows were computed, as `nn.Embedding(sparse=True)` makes them.

    Attributes:
        indices: int64 of shape (sparse_dims, nnz): where each value lies along the first sparse_dims dimensions, at
            least one. A place may occur more than once: its values are to be added.
        values: shape (nnz, *shape[sparse_dims:]).
        shape: the parameter's shape.
        coalesced: every place occurs once, in row-major order.
    """

    indices: Array
    values: Array
    shape: tuple[int, ...]
    coalesced: bool = False

    def coalesce(self) -> SparseGrad:
        """The same gradient with every place once, in row-major order; values of one place are added in their order.

        torch (2.13, CPU) adds three or more values of one place in the order of an unstable sort: then the sums can
        differ in the last bits. Coalesced gradients, and places that occur at most twice, are the same bit for bit.
        """
        if self.coalesced:
            return self
        dims = self.shape[: len(self.indices)]
        flat, inverse = np.unique(np.ravel_multi_index(tuple(self.indices), dims), return_inverse=True)
        values = np.zeros((len(flat), *self.values.shape[1:]), self.values.dtype)
        np.add.at(values, inverse, self.values)
        return SparseGrad(np.array(np.unravel_index(flat, dims), np.int64), values, self.shape, coalesced=True)

    def dense(self) -> Array:
        """The gradient as an ordinary array, zero where nothing was computed."""
        array = np.zeros(self.shape, self.values.dtype)
        np.add.at(array, tuple(self.indices), self.values)
        return array


def scatter_add(a: Array, grad: SparseGrad, alpha: Scalar = 1) -> Array:
    """`a + alpha*grad`: torch's `a.add_(grad, alpha=alpha)` for a sparse grad; a new array.

    ATen takes the values in their order. It fuses multiply and add as everywhere, except for a coalesced gradient all
    of whose dimensions are sparse (a single value counts as coalesced).
    """
    scalars = grad.values.ndim == 1
    fused = current().fma and not (scalars and (grad.coalesced or len(grad.values) < 2))
    flat = np.ravel_multi_index(tuple(grad.indices), grad.shape[: len(grad.indices)])
    by_place = np.argsort(flat, kind="stable")
    first = np.searchsorted(flat[by_place], flat[by_place])
    occurrence = np.empty(len(flat), np.int64)
    occurrence[by_place] = np.arange(len(flat)) - first  # 0 for a place's first value, 1 for its second

    result = a.copy()
    with rounding(fma=fused):
        for turn in range(occurrence.max(initial=-1) + 1):
            chosen = occurrence == turn
            places = tuple(grad.indices[:, chosen])
            result[places] = add(result[places], grad.values[chosen], alpha=alpha)
    return result
