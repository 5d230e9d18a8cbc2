"""Scalars that a step computes from all of its parameters (Prodigy's d): as exact as the parameters, not as Python."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from optrace.compare import evidence
from optrace.compare.columns import Ints, Numbering
from optrace.compare.grid import Grid
from optrace.trace.dtypes import eps_of


def with_params_dtype(
    grid: Grid, where: tuple[Ints, ...], found: evidence.Errors, numbering: Numbering
) -> evidence.Errors:
    """The errors with those of `group.<key>` in eps of the coarsest parameter of their optimizer.

    Such a number is a Python float or a tensor of its own, but was summed up from the parameters' gradients.
    """
    _, cells, quantities = where
    rows = np.flatnonzero(np.array([name.startswith("group.") for name in grid.names], bool)[quantities])
    if not len(rows):
        return found
    pairs = numbering.matching.pairs
    coarsest = np.zeros(len(pairs))
    for cell in numbering.matching.cells:
        for dtype in (cell.dtype_a, cell.dtype_b):
            coarsest[cell.pair] = max(coarsest[cell.pair], eps_of(dtype) if dtype else 0.0)
    eps = coarsest[np.array([cell.pair for cell in numbering.cells], np.int64)[cells[rows]]]
    eps = np.fmax(eps, found.eps[rows])
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(found.eps[rows] > 0, found.eps[rows] / eps, 1.0)
    changed = {name: getattr(found, name).copy() for name in ("raw", "net", "step", "eps")}
    for name in ("raw", "net", "step"):
        changed[name][rows] *= share
    changed["eps"][rows] = np.where(found.eps[rows] > 0, eps, found.eps[rows])
    return replace(found, **changed)
