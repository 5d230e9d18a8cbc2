"""Gradients that are zero but for rounding: what cancelled in them was as large as the gradients of other parameters.

The gradient of a bias before a normalisation, or of a key's bias in attention, is a sum whose terms cancel. What is
left of it is the rounding of these terms, no two orders of summation leave the same, and an adaptive rule makes whole
steps of it. Its own size tells nothing of its rounding; other gradients show how large the terms were.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from optrace.compare import evidence
from optrace.compare.columns import Floats, Ints
from optrace.compare.grid import Bools, Grid
from optrace.compare.tolerance import GRAD_EPS, is_grad

SHARE = 1 / 2
"""The scale of a gradient is at least this share of the largest rms of a gradient at its step: 64 roundings of its own
scale are then at least 32 of the largest. Measured by `scripts/bench margins` over nine programs on other threads, in
another order of examples and strides, and without oneDNN: such gradients need a share of 0.37 at most (the bias of a
convolution before a batch normalisation, without oneDNN; 0.15 otherwise)."""


def with_large_terms(grid: Grid, where: tuple[Ints, ...], found: evidence.Errors, pair_of: Ints) -> evidence.Errors:
    """The errors with those of small gradients judged at the scale of the largest of their step; `raw` is kept."""
    least = least_rms(grid, where, found, pair_of)
    weak = np.flatnonzero(least > found.rms)
    if not len(weak):
        return found
    least, rms = least[weak], found.rms[weak]
    with np.errstate(divide="ignore", invalid="ignore"):
        by_elements = found.gap[weak] / (found.eps[weak] * least)
    by_statistics = 2 * rms / (2 * rms + least)  # every statistic's scale holds 2 * rms at least
    net, step = found.net.copy(), found.step.copy()
    for errors in (net, step):
        with np.errstate(invalid="ignore"):  # inf of a gradient that is None on one side
            scaled = errors[weak] * by_statistics
        seen = np.where(found.evidence[weak] == evidence.STATISTICS, scaled, np.fmin(errors[weak], by_elements))
        errors[weak] = np.where(np.isfinite(errors[weak]) & (found.eps[weak] > 0), seen, errors[weak])
    return replace(found, net=net, step=step)


def felt(grid: Grid, where: tuple[Ints, ...], found: evidence.Errors, pair_of: Ints) -> Bools:
    """Where the loss depends on a parameter, [steps, cells]: not where its differing gradient is rounding alone."""
    number = grid.number("grad")
    grads = np.flatnonzero(where[2] == (-1 if number is None else number))
    least = least_rms(grid, where, found, pair_of)[grads]
    alone = grads[found.rms[grads] <= GRAD_EPS * found.eps[grads] * least]
    result = np.ones(grid.at_a.shape[:2], bool)
    result[where[0][alone], where[1][alone]] = False
    return result


def least_rms(grid: Grid, where: tuple[Ints, ...], found: evidence.Errors, pair_of: Ints) -> Floats:
    """A share of the largest rms among the differing gradients of each row's optimizer, step and backward, [n]."""
    s, c, q = where
    least = np.zeros(len(s))
    rows = np.flatnonzero(np.array([is_grad(name) for name in grid.names], bool)[q])
    if len(rows):
        pairs, names = int(pair_of.max()) + 1, len(grid.names)
        which: NDArray[np.int64] = (s[rows] * pairs + pair_of[c[rows]]) * names + q[rows]
        largest = np.zeros(int(which.max()) + 1)
        np.fmax.at(largest, which, np.where(np.isfinite(found.rms[rows]), found.rms[rows], 0.0))
        least[rows] = SHARE * largest[which]
    return least
