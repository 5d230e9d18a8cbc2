"""How far two numbers may lie apart: the one formula, for single elements and for statistics of whole tensors.

Two values of a quantity agree when

    |a - b| <= atol + (rtol + n * eps) * scale,      scale = max(|a|, |b|, |old|) + rms(change)

where `eps` is the spacing at 1 of the coarser of the two dtypes, `n` counts roundings (4 for what one optimizer step
computes), `old` is the value before the step and `rms(change)` the root mean square of what the step changed in that
tensor. The second term of the scale is what makes it fit: an element that ends near zero was computed from parts as
large as its neighbours' changes, and carries their rounding. Below the dtype's smallest normal number rounding is no
longer relative, so the scale never goes under it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STEP_EPS = 4.0
"""Roundings granted to one optimizer step from equal inputs (measured: correct pairs stay below 1.8)."""
GRAD_EPS = 64.0
"""The same for a gradient whose sums were taken in another order: other layout, device, implementation or version."""

_STATISTICS_SLACK = 64 * 2.0**-52  # the sums behind a statistic are float64 and round too


@dataclass(frozen=True)
class Tolerance:
    """What the user asked for; None for `eps`: the defaults, 4, and 4 or 64 for gradients and scalars of a group."""

    rtol: float | Floats = 0.0
    """One number, or one a row, [n]; `atol` likewise."""
    atol: float | Floats = 0.0
    eps: float | None = None

    def roundings(self, quantity: str, upstream_differs: bool) -> float:
        """The n of the formula for a quantity; `upstream_differs`: gradients may come from other kernels."""
        if self.eps is not None:
            return self.eps
        summed = is_grad(quantity) or quantity.startswith("group.")
        return GRAD_EPS if summed and upstream_differs else STEP_EPS

    def of(self, rows: NDArray[np.int64]) -> Tolerance:
        """The tolerance of some rows."""
        rtol, atol = (x if np.ndim(x) == 0 else np.asarray(x)[rows] for x in (self.rtol, self.atol))
        return Tolerance(rtol, atol, self.eps)


def is_grad(quantity: str) -> bool:
    """Whether a quantity is a gradient: of a step, or after one of its backwards (`grad_micro.<k>`)."""
    return quantity == "grad" or quantity.startswith("grad_micro.")


def element_errors(
    a: Floats, b: Floats, magnitude: Floats, rms: Floats, eps: Floats, tiny: Floats, tolerance: Tolerance
) -> tuple[Floats, Floats]:
    """Errors of elements in eps of their scale: as they are, and after atol and rtol have been taken off.

    Args:
        a: one side's values, [n, k] float64.
        b: the other side's.
        magnitude: max(|a|, |b|, |old|), [n, k]; for an update that of its parameter. NaN and inf count as 0.
        rms: rms(change) of each row's tensor, [n]; NaN and inf count as 0.
        eps: of each row's dtype, [n]; 0 (integers) makes every difference infinite.
        tiny: smallest normal number of each row's dtype, [n].
        tolerance: rtol and atol; its eps plays no part here.

    Returns:
        errors [n, k] and the same with the allowance of atol and rtol subtracted; an element agrees when the second is
        at most n. Both NaN, or both the same infinity: 0. One of them not finite: inf.
    """
    with np.errstate(all="ignore"):
        scale = _finite(magnitude) + _finite(rms)[:, None]
        scale = np.maximum(scale, tiny[:, None], out=scale)
        difference = np.abs(a - b)
        if not np.isfinite(difference).all():
            same = (a == b) | (np.isnan(a) & np.isnan(b))
            difference = np.where(same, 0.0, np.where(np.isfinite(difference), difference, np.inf))
        unit = eps[:, None] * scale
        raw = _ratio(difference, unit)
        if not np.any(tolerance.atol) and not np.any(tolerance.rtol):
            return raw, raw
        allowed = np.asarray(tolerance.atol)[..., None] + np.asarray(tolerance.rtol)[..., None] * scale
        return raw, _ratio(np.fmax(difference - allowed, 0.0), unit)


@dataclass(frozen=True)
class Statistics:
    """Statistics of n tensors, one array [n] each, as in the table `tensors`."""

    numel: Floats
    mean: Floats
    l1: Floats
    l2: Floats
    min: Floats
    max: Floats
    n_nan: Floats
    """-1, like `n_inf`, where only samples are known: then the statistics are NaN and prove nothing."""
    n_inf: Floats

    @property
    def absmax(self) -> Floats:
        """Largest finite magnitude, [n]; NaN if there is none."""
        return np.fmax(np.abs(self.min), np.abs(self.max))


def statistics_errors(
    a: Statistics,
    b: Statistics,
    of_a: Statistics,
    of_b: Statistics,
    rms: Floats,
    eps: Floats,
    tiny: Floats,
    tolerance: Tolerance,
) -> tuple[Floats, Floats]:
    """Lower bounds, [n], of the largest element's error, from statistics alone; raw and net as in `element_errors`.

    If every element agreed within t * scale, then |old| <= |a| + |change| bounds the scale's sums by those of |a| and
    rms(change), and no statistic could be further apart than t times that bound. So an error above n proves a
    difference; one below proves nothing. `of_a` and `of_b` give the scale: the rows themselves, for an update those of
    its parameter.
    """
    with np.errstate(all="ignore"):
        count = np.maximum(a.numel, 1.0)
        finite = np.maximum(count - np.maximum(a.n_nan, 0) - np.maximum(a.n_inf, 0), 1.0)
        change = np.where(np.isfinite(rms), rms, 0.0)
        top = np.fmax(of_a.absmax, of_b.absmax)
        sums = np.fmax(of_a.l1, of_b.l1) + count * (2 * change + tiny)
        norms = np.fmax(of_a.l2, of_b.l2) + np.sqrt(count) * (2 * change + tiny)
        tops = np.where(np.isfinite(top), top, 0.0) + (np.sqrt(count) + 1) * change + tiny
        one = np.ones_like(count)
        raw, net = np.zeros_like(count), np.zeros_like(count)
        for left, right, scale, elements in (
            (a.mean, b.mean, sums / finite, one),
            (a.l1, b.l1, sums, finite),
            (a.l2, b.l2, norms, np.sqrt(finite)),
            (a.min, b.min, tops, one),
            (a.max, b.max, tops, one),
        ):
            difference = np.abs(left - right)
            difference = np.where(np.isfinite(difference), difference, 0.0)
            difference = np.maximum(difference - _STATISTICS_SLACK * scale, 0.0)
            allowed = tolerance.atol * elements + tolerance.rtol * scale
            raw = np.maximum(raw, _ratio(difference, eps * scale))
            net = np.maximum(net, _ratio(np.maximum(difference - allowed, 0.0), eps * scale))
        counted = (a.n_nan >= 0) & (b.n_nan >= 0)
        torn = (counted & ((a.n_nan != b.n_nan) | (a.n_inf != b.n_inf))) | (a.numel != b.numel)
    return np.where(torn, np.inf, raw), np.where(torn, np.inf, net)


def _finite(numbers: Floats) -> Floats:
    """The numbers with 0 for NaN and inf."""
    finite = np.isfinite(numbers)
    return numbers if finite.all() else np.where(finite, numbers, 0.0)


def _ratio(difference: Floats, unit: Floats) -> Floats:
    """Quotient; 0 where nothing differs, inf where something does and the unit is 0, or by inf."""
    if (unit > 0).all() and np.isfinite(unit).all():
        return np.asarray(difference / unit)
    quotient = np.full(np.broadcast_shapes(difference.shape, unit.shape), np.inf)
    np.divide(difference, unit, out=quotient, where=(unit > 0) & (difference < np.inf))
    return np.where(difference > 0, quotient, 0.0)
