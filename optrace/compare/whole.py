"""Whole tensors of one row, where both sides stored them: every element compared instead of a sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from optrace.compare.arrow import texts
from optrace.compare.columns import Floats, Numbering, Side
from optrace.compare.grid import Grid, after_name
from optrace.compare.tolerance import Tolerance, element_errors, is_grad
from optrace.errors import TraceError
from optrace.trace.dtypes import eps_of, tiny_of


@dataclass(frozen=True)
class WholeErrors:
    """The worst element of a tensor."""

    raw: float
    net: float
    step: float
    flat: int
    """Its row-major index."""
    a: float
    b: float


def judge_whole(
    side_a: Side,
    side_b: Side,
    numbering: Numbering,
    grid: Grid,
    s: Any,
    c: Any,
    q: Any,
    tolerance: Tolerance,
    least_rms: float = 0.0,
) -> WholeErrors | None:
    """Errors of a row's whole tensors as in `tolerance.element_errors`; None where either side did not store them.

    What the scale needs beside them (the parameter, the update, the value before the step) is used where it is stored;
    `least_rms` is what rms(change) counts as at least.
    """
    name = grid.names[int(q)]
    cell = numbering.cells[int(c)]
    pair = numbering.matching.pairs[cell.pair]
    number = int(grid.steps[int(s)])
    loads = []
    for side, optimizer, param in ((side_a, pair.a, cell.param_a), (side_b, pair.b, cell.param_b)):
        own_step = number - side.offsets[cell.pair]
        loads.append(_Loader(side, optimizer, param, own_step, numbering))
    one, other = (load.tensor(name) for load in loads)
    if one is None or other is None or one.shape != other.shape or not one.size:
        return None
    scales = [load.scale(name) for load in loads]
    magnitude = np.fmax(scales[0][0], scales[1][0])
    rms = max(scales[0][1], scales[1][1], least_rms)
    word_a, word_b = cell.dtype_a, cell.dtype_b
    if not name.startswith("param") and name != "update":
        word_a, word_b = (str(load.dtype(name)) for load in loads)
    eps, tiny = max(eps_of(word_a), eps_of(word_b)), max(tiny_of(word_a), tiny_of(word_b))
    raw, net = element_errors(
        one[None], other[None], magnitude[None], np.array([rms]), np.array([eps]), np.array([tiny]), tolerance
    )
    step = raw
    olds = [load.before(name) if name.startswith("state.") else None for load in loads]
    if olds[0] is not None and olds[1] is not None and olds[0].shape == olds[1].shape == one.shape:
        limits = magnitude[None], np.array([rms]), np.array([eps]), np.array([tiny]), tolerance
        brought, _ = element_errors(olds[0][None], olds[1][None], *limits)
        brought = np.where(np.isfinite(brought), brought, 0.0)
        step, net = np.maximum(raw - brought, 0.0), np.maximum(net - brought, 0.0)
    worst = int(np.argmax(raw[0]))
    return WholeErrors(
        float(raw[0, worst]), float(net[0].max()), float(step[0].max()), worst, float(one[worst]), float(other[worst])
    )


class _Loader:
    """Whole tensors of one parameter around one step."""

    def __init__(self, side: Side, optimizer: int, param: str, step: int, numbering: Numbering) -> None:
        self.side, self.optimizer, self.param, self.step = side, optimizer, param, step
        self.numbering = numbering

    def tensor(self, name: str, step: int | None = None) -> Floats | None:
        """Elements as float64 in row-major order, complex ones as pairs; None where they are not stored."""
        array = self._stored(name, step)
        if array is None:
            return None
        flat = np.ascontiguousarray(array).reshape(-1)
        if np.iscomplexobj(flat):
            flat = flat.view(flat.real.dtype)
        return flat.astype(np.float64)

    def dtype(self, name: str) -> str:
        """Torch's name of a stored tensor's dtype."""
        rows = self.side.source.trace.arrow(
            "tensors",
            step=self.step,
            optimizer=self.optimizer,
            param=self.param,
            quantity=self._own(name),
            columns=["dtype"],
        )
        return str(texts(rows.column("dtype"))[0]) if rows.num_rows else ""

    def scale(self, name: str) -> tuple[Floats, float]:
        """Greatest magnitude of each element over the step, and the root mean square of what the step changed."""
        own = self.tensor(name)
        assert own is not None
        if is_grad(name):
            return np.abs(own), _rms(own)
        base = "param" if name == "update" else after_name(name)
        after = self.tensor(base)
        update = self.tensor("update") if base == "param" else None
        if update is None and name == "update":
            update = own
        if after is None:
            return np.abs(own), _rms(own if update is None else update)
        before = after - update if update is not None else self.before(base)
        if before is None:
            return np.fmax(np.abs(after), np.abs(own) if name != "update" else 0.0), _rms(update)
        change = update if update is not None else after - before
        return np.fmax(np.abs(after), np.abs(before)), _rms(change)

    def before(self, base: str) -> Floats | None:
        """A quantity's elements before the step; None where they are not stored."""
        told = self.tensor(_before(base))
        return told if told is not None else self.tensor(base, self.step - 1)

    def _own(self, name: str) -> str:
        if self.side.is_a or name not in self.numbering.quantities:
            return name
        return self.numbering.name_in_b(self.numbering.quantities.index(name))

    def _stored(self, name: str, step: int | None) -> Any:
        if step is not None and step < 0:
            return None
        try:
            return self.side.source.trace.value(
                self.step if step is None else step, self.param, self._own(name), self.optimizer
            )
        except TraceError:
            return None


def _before(base: str) -> str:
    kind, dot, key = base.partition(".")
    return f"{kind}_in{dot}{key}"


def _rms(change: Floats | None) -> float:
    if change is None or not change.size:
        return 0.0
    finite = change[np.isfinite(change)]
    return float(np.sqrt((finite**2).mean())) if finite.size else 0.0
