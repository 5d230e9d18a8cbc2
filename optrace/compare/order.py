"""Causal order: what each row was computed from, and so which differences are new and which only follow from others.

Within a step the order is param_in, hyper-parameters, grad, state_in, update, state, param. A row that differs while
everything that it was computed from matched is where two runs part. In the tolerance lane the inputs may match without
being equal: inputs that are off by k eps widen what is granted from n to n * (1 + k) eps, so that rounding which grows
from step to step is not mistaken for a new difference, while a wrong rule at equal inputs gets n and no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from optrace.compare.columns import Floats, Ints
from optrace.compare.grid import Bools, Grid

MISSING_RANK, PARAM_IN_RANK, HYPER_RANK, MICRO_RANK, GRAD_RANK, STATE_IN_RANK, UPDATE_RANK, STATE_RANK, PARAM_RANK = (
    range(9)
)


def rank_of(quantity: str) -> int:
    """Place of a quantity in the causal order of a step."""
    kind = quantity.partition(".")[0]
    ranks = {
        "param_in": PARAM_IN_RANK,
        "grad": GRAD_RANK,
        "grad_micro": MICRO_RANK,
        "state_in": STATE_IN_RANK,
        "group_in": STATE_IN_RANK,
        "update": UPDATE_RANK,
        "param": PARAM_RANK,
    }
    return ranks.get(kind, STATE_RANK)


@dataclass
class Carry:
    """What the stretches compared so far leave to the next one."""

    errors: dict[tuple[int, str], float] = field(default_factory=dict)
    """Error in eps of the last row of (cell, quantity), of those that differed."""
    noise: float = 0.0
    """Largest error of any parameter so far."""


@dataclass(frozen=True)
class Inputs:
    """For every row of a grid the largest error among what it was computed from, [steps, cells, quantities]."""

    errors: Floats
    """0 where all inputs are bitwise equal; inf where a hyper-parameter differs."""
    gap: Ints
    """Steps that went unrecorded before each step, [steps, cells]; 1 where none did."""


def trace_inputs(
    grid: Grid,
    errors: Floats,
    pair_of: Ints,
    n_params: int,
    hyper: Bools,
    time: Floats,
    carry: Carry,
    felt: Bools | None = None,
) -> Inputs:
    """Find what each row depends on and how far that is off.

    Args:
        grid: rows of the stretch.
        errors: net error of each row, [steps, cells, quantities]; at least 1 where bits differ, else 0. Rows of the
            overlap are filled in here from `carry`.
        pair_of: pair of each cell, [cells].
        n_params: cells below this are parameters, the others belong to a whole optimizer.
        hyper: where a deciding hyper-parameter of the cell's group differs, [steps, cells].
        time: when each pair took each step, comparable between pairs, [steps, pairs]; NaN where it did not.
        carry: from the stretch before; updated.
        felt: where the loss depends on a parameter, [steps, cells]; how far it is off elsewhere tells nothing.
    """
    shape = errors.shape
    felt = np.ones(shape[:2], bool) if felt is None else felt
    if grid.overlap:  # its first step is where the last stretch ended
        for (cell, name), error in carry.errors.items():
            number = grid.number(name)
            if number is not None and cell < shape[1] and grid.at_a[0, cell, number] >= 0:
                errors[0, cell, number] = error
    both = grid.both
    before: dict[int, Floats] = {}
    for base, base_in in grid.bases:
        last = _carried(errors[:, :, base], both[:, :, base])
        if base_in is not None:
            last = np.where(both[:, :, base_in], errors[:, :, base_in], last)
        before[base] = last
    param = grid.number("param")
    param_before = before[param] if param is not None else np.zeros(shape[:2])
    grad, update = grid.number("grad"), grid.number("update")
    element = param_before.copy()
    if grad is not None:
        element = np.maximum(element, errors[:, :, grad])
    for base, last in before.items():
        if base != param:
            element = np.maximum(element, last)
    element = np.where(hyper, np.inf, element)
    for pair in np.unique(pair_of[n_params:]):
        own = np.flatnonzero(pair_of == pair)
        whole = own[own >= n_params]
        element[:, whole] = np.maximum(element[:, whole], element[:, own].max(axis=1, keepdims=True))
    result = np.zeros(shape)
    for number, name in enumerate(grid.names):
        rank = rank_of(name)
        if rank == UPDATE_RANK or (rank in (STATE_RANK, PARAM_RANK) and update is None):
            result[:, :, number] = element
        elif rank == STATE_RANK:  # a few rules keep averages of what they have just changed
            result[:, :, number] = np.maximum(element, errors[:, :, update])
        elif rank == PARAM_RANK:  # it is what it was before and the update, which is judged by itself
            result[:, :, number] = np.where(both[:, :, update], np.inf, element)
        elif rank in (MICRO_RANK, GRAD_RANK):
            result[:, :, number] = _upstream(
                grid, errors, np.where(felt, param_before, 0.0), pair_of, time, carry, felt
            )
        else:
            for base, base_in in grid.bases:
                if base_in == number:
                    result[:, :, number] = _carried(errors[:, :, base], both[:, :, base])
    if param is not None:
        carry.noise = max(
            carry.noise, float(errors[grid.overlap :, :, param].max(initial=0.0, where=felt[grid.overlap :]))
        )
    _keep_last(grid, errors, both, carry)
    return Inputs(result, _gaps(grid, both))


def _carried(errors: Floats, there: Bools) -> Floats:
    """Error of the last earlier row of each cell, [steps, cells]; 0 where there is none."""
    result = np.zeros_like(errors)
    if len(errors) > 1:
        latest = np.maximum.accumulate(np.where(there, np.arange(len(errors))[:, None], -1), axis=0)[:-1]
        found = np.take_along_axis(errors, np.maximum(latest, 0), axis=0)
        result[1:] = np.where(latest >= 0, found, 0.0)
    return result


def _upstream(
    grid: Grid, errors: Floats, param_before: Floats, pair_of: Ints, time: Floats, carry: Carry, felt: Bools
) -> Floats:
    """Largest error that any parameter had before each step, [steps, cells]: gradients depend on all of them."""
    own = np.full(time.shape, 0.0)
    left = np.full(time.shape, 0.0)
    param = grid.number("param")
    for pair in range(time.shape[1]):
        cells = np.flatnonzero(pair_of == pair)
        if len(cells):
            own[:, pair] = param_before[:, cells].max(axis=1)
            if param is not None:
                left[:, pair] = errors[:, cells, param].max(axis=1, initial=0.0, where=felt[:, cells])
    order = np.argsort(np.where(np.isnan(time), np.inf, time), axis=None, kind="stable")
    so_far = np.maximum.accumulate(np.concatenate([[carry.noise], left.ravel()[order]]))[:-1]
    upstream = np.empty(time.size)
    upstream[order] = so_far
    widest: Floats = np.maximum(upstream.reshape(time.shape), own)
    return widest[:, pair_of]


def _gaps(grid: Grid, both: Bools) -> Ints:
    """Steps since the last one that the cell has a row of, [steps, cells]; at least 1."""
    there: Bools = np.asarray(both.any(axis=2))
    gaps = np.ones(there.shape, np.int64)
    if len(there) > 1:
        latest = np.maximum.accumulate(np.where(there, np.arange(len(there))[:, None], -1), axis=0)[:-1]
        since = grid.steps[1:, None] - grid.steps[np.maximum(latest, 0)]
        gaps[1:] = np.where(latest >= 0, np.maximum(since, 1), 1)
    return gaps


def _keep_last(grid: Grid, errors: Floats, both: Bools, carry: Carry) -> None:
    """Remember each cell's last error, and forget those of cells that agree again."""
    for base, _ in grid.bases:
        there = both[:, :, base]
        cells = np.flatnonzero(there.any(axis=0))
        last = len(there) - 1 - np.argmax(there[::-1], axis=0)
        for cell in cells:
            error = float(errors[last[cell], cell, base])
            if error > 0:
                carry.errors[int(cell), grid.names[base]] = error
            else:
                carry.errors.pop((int(cell), grid.names[base]), None)


def group_mask(unequal: Mapping[tuple[int, int, int], Ints], steps: Ints, groups: NDArray[np.int64]) -> Bools:
    """Where options of a cell's group differ, [steps, cells]; `groups`: (pair, groups of A and B), [cells, 3]."""
    mask = np.zeros((len(steps), len(groups)), bool)
    for (pair, group_a, group_b), when in unequal.items():
        cells = (groups[:, 0] == pair) & (groups[:, 1] == group_a) & (groups[:, 2] == group_b)
        mask[np.ix_(np.isin(steps, when), cells)] = True
    return mask
