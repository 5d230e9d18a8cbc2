"""Compares two whole tensors element by element: by the C kernel where there is one, else by NumPy, to the same bits.

The kernel takes one pass over both, in threads of its own; what is equal to the bit is read and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from optrace.compare.threads import cores
from optrace.compare.tolerance import Floats, Tolerance, element_errors
from optrace.trace.fingerprint import BLOCK, is_narrow, widen
from optrace.trace.jobs import DTYPES
from optrace.trace.measure import kernel

TENSORS = np.dtype(
    [
        ("at", "u8", (2, 4)),
        ("dtype", "u4", (2, 4)),
        ("numel", "i8"),
        ("is_state", "i8"),
        ("limits", "f8", 5),
    ]
)
"""What the kernel takes: addresses and dtype codes of (elements, value, update, other) of either side; 0 for none."""

DIFFERENCE = np.dtype(
    [
        ("n_different", "i8"),
        ("first", "i8"),
        ("worst", "i8"),
        ("raw", "f8"),
        ("net", "f8"),
        ("step", "f8"),
        ("gap", "f8"),
    ]
)
"""What the kernel gives."""

MOST_THREADS = 8
"""Threads at most: memory gives no more to more of them."""


class Flat(NamedTuple):
    """A tensor's elements in row-major order, dense and in one dimension, with torch's name of their dtype.

    bf16 and float8 come as unsigned integers of their bits; complex as their real view, of real dtype.
    """

    elements: NDArray[Any]
    dtype: str


@dataclass(frozen=True)
class Tensors:
    """One side: a tensor, and what tells the scale of its elements, all of as many elements.

    `value` counts in the scale (the parameter, for an update; None: `own`), and so does what it was before the step:
    value - update where that is there, else `other`, else nothing.
    """

    own: Flat
    value: Flat | None = None
    update: Flat | None = None
    other: Flat | None = None

    @property
    def places(self) -> tuple[Flat | None, ...]:
        """In the order of the kernel."""
        return self.own, self.value, self.update, self.other


class Difference(NamedTuple):
    """How far two tensors are apart. Errors are in eps of the scale of each element, as in `compare.tolerance`."""

    n_different: int
    """Elements that differ in bits (in value and sign where the dtypes differ)."""
    first: int
    """The first of them, row-major; -1 without any."""
    worst: int
    """The first element of largest error; 0 where none has any."""
    raw: float
    """The largest error."""
    net: float
    """The largest, less atol and rtol and what state differed by before the step."""
    step: float
    """The largest, less what state differed by before the step."""
    gap: float
    """The largest |a - b|; inf where one is not finite and the other is something else."""


def difference(
    a: Tensors,
    b: Tensors,
    *,
    rms: float = 0.0,
    eps: float,
    tiny: float,
    tolerance: Tolerance | None = None,
    is_state: bool = False,
    threads: int | None = None,
) -> Difference:
    """Compare two tensors of as many elements.

    Args:
        a: one side; 0 elements and more.
        b: the other side.
        rms: rms(change) of the tensor; NaN and inf count as 0.
        eps: of the coarser dtype; 0 (integers) makes every difference infinite.
        tiny: its smallest normal number.
        tolerance: rtol and atol, one number each; its eps plays no part here.
        is_state: take off what the values before the step differed by, where both sides know them.
        threads: at most so many; None: as many as there are cores, 8 at most. Results do not depend on it.

    Raises:
        ValueError: the tensors have other numbers of elements, or are strided.
    """
    n = a.own.elements.size
    for flat in (*a.places, *b.places):
        if flat is not None and flat.elements.size != n:
            raise ValueError(f"{n} elements cannot be compared with {flat.elements.size}")
        if flat is not None and not (flat.elements.flags.c_contiguous and flat.elements.ndim == 1):
            raise ValueError(f"the elements of a {flat.dtype} tensor are not dense in one dimension")
    tolerance = Tolerance() if tolerance is None else tolerance
    rms = rms if np.isfinite(rms) else 0.0
    is_state = is_state and all(side.update is not None or side.other is not None for side in (a, b))
    limits = (rms, eps, tiny, float(tolerance.atol), float(tolerance.rtol))
    if _kernel is None:
        return _difference(a, b, limits, is_state)
    tensors, out = np.zeros((), TENSORS), np.zeros((), DIFFERENCE)
    for number, side in enumerate((a, b)):
        for place, flat in enumerate(side.places):
            if flat is not None and n:
                tensors["at"][number, place] = flat.elements.ctypes.data
                tensors["dtype"][number, place] = DTYPES[flat.dtype]
    tensors["numel"], tensors["is_state"], tensors["limits"] = n, is_state, limits
    _kernel.elements_apart(tensors, out, min(cores(), MOST_THREADS) if threads is None else threads)
    return Difference(*out.item())


_kernel = kernel if hasattr(kernel, "elements_apart") else None  # None too where it was built before there was one


def _difference(a: Tensors, b: Tensors, limits: tuple[float, ...], is_state: bool) -> Difference:
    """The same in NumPy, a block at a time."""
    n_different, first, worst = 0, -1, 0
    raw = net = step = gap = 0.0
    for start in range(0, a.own.elements.size, BLOCK):
        part = slice(start, start + BLOCK)
        differs = np.flatnonzero(_differ(a.own, b.own, part))
        if not len(differs):
            continue
        n_different += len(differs)
        first = start + int(differs[0]) if first < 0 else first
        errors = _errors(a, b, part, limits, is_state)
        if errors[0].max() > raw:
            raw, worst = float(errors[0].max()), start + int(np.argmax(errors[0]))
        net, step, gap = (
            max(so_far, float(part.max())) for so_far, part in zip((net, step, gap), errors[1:], strict=True)
        )
    return Difference(n_different, first, worst, raw, net, step, gap)


def _differ(a: Flat, b: Flat, part: slice) -> NDArray[np.bool_]:
    """Which elements differ in bits."""
    if a.dtype == b.dtype:
        word = f"u{a.elements.itemsize}"
        return np.asarray(a.elements[part].view(word) != b.elements[part].view(word))
    return np.asarray(widened(a, part).view("u8") != widened(b, part).view("u8"))


def _errors(
    a: Tensors, b: Tensors, part: slice, limits: tuple[float, ...], is_state: bool
) -> tuple[Floats, Floats, Floats, Floats]:
    """Errors raw, net and step of some elements, and |a - b|."""
    rms, eps, tiny, atol, rtol = limits
    x, y = widened(a.own, part), widened(b.own, part)
    olds = [_old(side, part) for side in (a, b)]
    values = [widened(side.value or side.own, part) for side in (a, b)]
    with np.errstate(invalid="ignore", over="ignore"):
        magnitude = np.fmax.reduce([np.abs(one) for one in (*values, *olds) if one is not None])
        gap = np.abs(x - y)
        same = (x == y) | (np.isnan(x) & np.isnan(y))
        gap = np.where(np.isfinite(gap), gap, np.where(same, 0.0, np.inf))
        row = magnitude[None], np.array([rms]), np.array([eps]), np.array([tiny])
        raw, net = (one[0] for one in element_errors(x[None], y[None], *row, Tolerance(rtol, atol)))
        step = raw
        if is_state and olds[0] is not None and olds[1] is not None:
            was = np.abs(olds[0] - olds[1])
            brought = element_errors(np.zeros_like(was)[None], was[None], *row, Tolerance())[0][0]
            brought = np.where(np.isfinite(brought), brought, 0.0)
            step, net = np.maximum(raw - brought, 0.0), np.maximum(net - brought, 0.0)
    return raw, net, step, gap


def _old(side: Tensors, part: slice) -> Floats | None:
    """Values before the step."""
    if side.update is not None:
        with np.errstate(invalid="ignore", over="ignore"):
            return np.asarray(widened(side.value or side.own, part) - widened(side.update, part))
    return None if side.other is None else widened(side.other, part)


def widened(flat: Flat, part: slice) -> Floats:
    """Some elements as float64: floats exactly, integers beyond 2**53 rounded."""
    elements = flat.elements[part]
    if is_narrow(flat.dtype):
        elements = widen(elements.view(f"u{elements.itemsize}"), flat.dtype).view(np.float32)
    with np.errstate(invalid="ignore"):
        return elements.astype(np.float64)
