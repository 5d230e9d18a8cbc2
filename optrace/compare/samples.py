"""Compares the samples of rows: by the C kernel where there is one, else by NumPy, to the same bits.

A row names others of its side: itself (`own`), the row that tells its scale (`base`: the parameter of an update, else
itself), the update and the row of the value before the step (`other`); -1 where there is none, and then its sample
counts as NaN.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from optrace.compare.tolerance import Tolerance, element_errors
from optrace.trace.measure import kernel

Floats = NDArray[np.float64]
Place = NDArray[np.int32]

SLOTS = 16
IS_BEFORE, IS_STATE = 1, 2
"""Flags of a row: it tells a value before the step; it is state, whose difference before the step is taken off."""
LIMITS = ("rms", "eps", "tiny", "atol", "rtol", "numel_a", "numel_b", "n_nan_a", "n_nan_b")
"""Columns of the limits of rows, [n, 9] float64."""


class Moments(NamedTuple):
    """Of one side's rows, [n] each."""

    moved: Floats
    """Mean square of own sample less the value before the step, over the finite ones."""
    has_moved: NDArray[np.bool_]
    """Whether there is a finite one."""
    update: Floats
    """Mean square of the update's sample."""
    has_update: NDArray[np.bool_]


class Apart(NamedTuple):
    """How far rows of two sides are apart, [n] each; errors of rows without a valid slot are -1."""

    raw: Floats
    """Largest error in eps of its scale."""
    slot: NDArray[np.int64]
    """Where it is."""
    net: Floats
    """Largest error less atol and rtol and what state differed by before the step."""
    step: Floats
    """Largest error less what state differed by before the step."""
    n_valid: NDArray[np.int64]
    """Slots that hold an element on both sides."""
    gap: Floats
    """Largest difference as it is; 0 where no slot is valid."""
    magnitude: Floats
    """Mean square of the magnitudes of the slots, over the finite ones."""
    a: Floats
    """A's element at the slot."""
    b: Floats


def moments(samples: Floats, places: Place, flags: NDArray[np.uint8]) -> Moments:
    """Mean squares of one side: samples [m, 16]; places [n, 4] (own, base, update, other); flags [n]."""
    if _kernel is None:
        return _moments(samples, places, flags)
    out = np.empty((len(flags), 4))
    _kernel.sample_moments(samples, np.ascontiguousarray(places), flags, out)
    return Moments(out[:, 0], out[:, 1] > 0, out[:, 2], out[:, 3] > 0)


def apart(a: Floats, b: Floats, places: Place, flags: NDArray[np.uint8], limits: Floats) -> Apart:
    """Errors of rows: samples of either side [m, 16]; places [n, 8] (A's four, B's four); flags [n]; limits [n, 9]."""
    if _kernel is None:
        return _apart(a, b, places, flags, limits)
    out = np.empty((len(flags), 9))
    _kernel.samples_apart(a, b, np.ascontiguousarray(places), flags, np.ascontiguousarray(limits), out)
    raw, slot, net, step, n_valid, gap, magnitude, at_a, at_b = out.T
    return Apart(raw, slot.astype(np.int64), net, step, n_valid.astype(np.int64), gap, magnitude, at_a, at_b)


_kernel = kernel if hasattr(kernel, "samples_apart") else None  # None too where it was built before there was one


def _moments(samples: Floats, places: Place, flags: NDArray[np.uint8]) -> Moments:
    own, old, _ = _side(samples, places, flags)
    with np.errstate(invalid="ignore"):
        moved = own - old
    return Moments(*mean_square(moved), *mean_square(_taken(samples, places[:, 2])))


def _apart(a: Floats, b: Floats, places: Place, flags: NDArray[np.uint8], limits: Floats) -> Apart:
    rms, eps, tiny, atol, rtol = limits.T[:5]
    sample_a, old_a, value_a = _side(a, places[:, :4], flags)
    sample_b, old_b, value_b = _side(b, places[:, 4:], flags)
    magnitude = np.fmax(np.fmax(np.abs(value_a), np.abs(old_a)), np.fmax(np.abs(value_b), np.abs(old_b)))
    raw, net = element_errors(sample_a, sample_b, magnitude, rms, eps, tiny, Tolerance(rtol, atol))
    with np.errstate(invalid="ignore"):  # inf on both sides
        brought = np.where((flags & IS_STATE > 0)[:, None], np.abs(old_a - old_b), np.nan)
        gap = np.abs(sample_a - sample_b)
    brought, _ = element_errors(np.zeros_like(brought), brought, magnitude, rms, eps, tiny, Tolerance())
    brought = np.where(np.isfinite(brought), brought, 0.0)
    step, net = np.maximum(raw - brought, 0.0), np.maximum(net - brought, 0.0)
    valid = _valid(sample_a, limits[:, 5], limits[:, 7]) & _valid(sample_b, limits[:, 6], limits[:, 8])
    raw, net, step = (np.where(valid, part, -1.0) for part in (raw, net, step))
    slot, each = np.argmax(raw, axis=1), np.arange(len(flags))
    return Apart(
        raw[each, slot],
        slot,
        net.max(axis=1),
        step.max(axis=1),
        valid.sum(axis=1),
        np.where(valid, gap, 0.0).max(axis=1),
        mean_square(magnitude)[0],
        sample_a[each, slot],
        sample_b[each, slot],
    )


def _side(samples: Floats, places: Place, flags: NDArray[np.uint8]) -> tuple[Floats, Floats, Floats]:
    """Own samples, values before the step, and the values that the scale is taken from, [n, 16] each."""
    own, base, update, other = places.T
    value, change = _taken(samples, base), _taken(samples, update)
    with np.errstate(invalid="ignore"):
        from_update = np.where((flags & IS_BEFORE > 0)[:, None], value + change, value - change)
    return _taken(samples, own), np.where((update >= 0)[:, None], from_update, _taken(samples, other)), value


def _taken(samples: Floats, row: Place) -> Floats:
    if not len(samples):
        return np.full((len(row), SLOTS), np.nan)
    return np.where((row >= 0)[:, None], samples[row], np.nan)


def _valid(sample: Floats, numel: Floats, n_nan: Floats) -> NDArray[np.bool_]:
    """Which slots hold an element: not the padding of a small tensor, nor an index of another shard."""
    inside = np.arange(SLOTS)[None, :] < np.minimum(numel, SLOTS)[:, None]
    return inside & (~np.isnan(sample) | (n_nan > 0)[:, None])


def mean_square(parts: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Mean square of the finite ones of each row of 16, added in pairs, and whether it has any, [n] each."""
    finite = np.isfinite(parts)
    sums = np.where(finite, parts, 0.0) ** 2
    sums = sums[:, :8] + sums[:, 8:]
    for _ in range(3):
        sums = sums[:, 0::2] + sums[:, 1::2]
    count = finite.sum(axis=1)
    return sums[:, 0] / np.maximum(count, 1), count > 0
