"""Whole tensors of one row, where both sides stored them: every element compared instead of a sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from optrace.compare.columns import Numbering, Side
from optrace.compare.elements import Difference, Flat, Tensors, difference, widened
from optrace.compare.grid import Grid, after_name
from optrace.compare.threads import cores
from optrace.compare.tolerance import Tolerance, is_grad
from optrace.trace.jobs import DTYPES, JOB, ROW, STAT, UPDATE
from optrace.trace.measure import measure


@dataclass(frozen=True)
class WholeErrors:
    """How far two tensors are apart, and their worst elements."""

    found: Difference
    a: float
    b: float


@dataclass(frozen=True)
class Scale:
    """What is known of a row's scale before its tensors are looked at."""

    eps: float
    """Of the coarser dtype."""
    tiny: float
    """Its smallest normal number."""
    rms: float
    """rms(change) by statistics, of the side where it is larger; NaN where only the tensors tell."""
    least_rms: float = 0.0
    """What rms(change) counts as at least."""


def judge_whole(
    side_a: Side,
    side_b: Side,
    numbering: Numbering,
    grid: Grid,
    place: tuple[Any, Any, Any],
    scale: Scale,
    asked: Tolerance,
) -> WholeErrors | None:
    """Errors of a row's whole tensors as in `tolerance.element_errors`; None where either side did not store them.

    `place`: step, cell and quantity in the grid. What the scale needs beside the tensors (the parameter, the update,
    the value before the step) is used where it is stored.
    """
    s, c, q = (int(part) for part in place)
    name, cell = grid.names[q], numbering.cells[c]
    pair = numbering.matching.pairs[cell.pair]
    loads = []
    for side, optimizer, param in ((side_a, pair.a, cell.param_a), (side_b, pair.b, cell.param_b)):
        loads.append(_Loader(side, optimizer, param, int(grid.steps[s]) - side.offsets[cell.pair], numbering))
    own = [load.flat(name) for load in loads]
    if own[0] is None or own[1] is None or own[0].elements.size != own[1].elements.size or not own[0].elements.size:
        return None
    sides = [load.tensors(name, flat) for load, flat in zip(loads, own, strict=True) if flat is not None]
    rms = max(_rms(name, side) for side in sides) if np.isnan(scale.rms) else scale.rms
    found = difference(
        *sides,
        rms=max(rms, scale.least_rms),
        eps=scale.eps,
        tiny=scale.tiny,
        tolerance=asked,
        is_state=name.startswith("state."),
    )
    a, b = (float(widened(flat, slice(found.worst, found.worst + 1))[0]) for flat in own if flat is not None)
    return WholeErrors(found, a, b)


class _Loader:
    """Whole tensors of one parameter around one step."""

    def __init__(self, side: Side, optimizer: int, param: str, step: int, numbering: Numbering) -> None:
        self.side, self.optimizer, self.param, self.step = side, optimizer, param, step
        self.numbering = numbering

    def flat(self, name: str, step: int | None = None) -> Flat | None:
        """A tensor as it was stored, complex ones as pairs; None where it is in no values file."""
        step = self.step if step is None else step
        stored: Any = getattr(self.side.source.trace, "bits_in_files", None)
        found = stored(step, self.param, self._own(name), self.optimizer) if stored is not None and step >= 0 else None
        return None if found is None else _flat(*found)

    def tensors(self, name: str, own: Flat) -> Tensors:
        """A tensor with what tells its scale."""
        if is_grad(name):
            return Tensors(own)
        base = "param" if name == "update" else after_name(name)
        value = own if base == name else self._like(own, base)
        if value is None:
            return Tensors(own)
        update = own if name == "update" else self._like(own, "update") if base == "param" else None
        return Tensors(own, value, update, None if update is not None else self._before(own, base))

    def _before(self, own: Flat, base: str) -> Flat | None:
        """A quantity's elements before the step."""
        kind, dot, key = base.partition(".")
        told = self._like(own, f"{kind}_in{dot}{key}")
        return told if told is not None else self._like(own, base, self.step - 1)

    def _like(self, own: Flat, name: str, step: int | None = None) -> Flat | None:
        found = self.flat(name, step)
        return found if found is not None and found.elements.size == own.elements.size else None

    def _own(self, name: str) -> str:
        if self.side.is_a or name not in self.numbering.quantities:
            return name
        return self.numbering.name_in_b(self.numbering.quantities.index(name))


def _flat(dtype: str, array: Any) -> Flat | None:
    """Elements in row-major order; None for a dtype that is no number's."""
    array = np.ascontiguousarray(array)
    if dtype.startswith("complex"):
        dtype = {"complex128": "float64", "complex32": "float16"}.get(dtype, "float32")
        array = array.view(dtype)
    return Flat(array.reshape(-1), dtype) if dtype in DTYPES else None


def _rms(name: str, side: Tensors) -> float:
    """Root mean square of what the step changed, over finite elements; 0 where that is not stored."""
    if is_grad(name) or side.value is None:
        return _rms_of(side.own)
    if side.update is not None:
        return _rms_of(side.update)
    if side.other is None:
        return 0.0
    if side.value.dtype == side.other.dtype:
        return _rms_of(side.value, side.other)
    every = slice(None)
    return _rms_of(*(Flat(widened(flat, every), "float64") for flat in (side.value, side.other)))


def _rms_of(flat: Flat, less: Flat | None = None) -> float:
    """Root mean square of the finite elements of a tensor, or of its difference to another of its dtype."""
    job, rows = np.zeros(1, JOB), np.zeros(2, ROW)
    job["op"], job["dtype"] = STAT if less is None else UPDATE, DTYPES[flat.dtype]
    job["a"], job["numel"], job["row2"] = flat.elements.ctypes.data, flat.elements.size, 1
    job["b"] = 0 if less is None else less.elements.ctypes.data
    measure(job, rows, cores())
    count = flat.elements.size - int(rows["n_nan"][0]) - int(rows["n_inf"][0])
    return float(rows["l2"][0] / np.sqrt(count)) if count else 0.0
