"""Which Muon made an update: read off in the singular directions of its momentum, where rounding hardly shows.

Muon's iteration applies one polynomial to every singular value of a matrix. In bfloat16 it makes much of rounding, but
only along small singular values: there right implementations part by half of an update's size. Along the large ones the
update is the polynomial's to a few hundredths. So its matrix in the singular vectors of the momentum, without the small
ones, tells direction, coefficients, number of iterations, lr for the shape and weight decay apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Coefficients = tuple[float, float, float]

LEAST = 0.05
"""Singular values below this share of the Frobenius norm are left out: five iterations lift them by up to 485 times."""
MOST = 64
"""Singular directions of a matrix that are looked at."""
LARGEST = 2048
"""Rows or columns (the fewer) of a matrix above which it is not looked at."""
FITS = 0.06
"""Error per singular direction, rms over matrices and steps, that an iteration in bfloat16 may leave (`scripts/bench
muon` measures it)."""
SINGLE = 0.15
"""The same for one matrix at one step."""
TIMES = 2.0
"""By how many times another form must fit worse to be ruled out."""
SCALES_APART = 0.04
"""Relative difference up to which two scales of lr are one."""
SIGMAS = 5.0

DIRECTIONS: Mapping[str, Callable[[Floats, Floats, float], Floats]] = {
    "nesterov": lambda grad, buffer, momentum: grad + momentum * (buffer - grad),
    "plain": lambda grad, buffer, momentum: buffer,
    "added": lambda grad, buffer, momentum: grad + momentum * buffer,
}
"""What is made orthogonal, of the gradient and the momentum buffer after the step."""

SCALES: Mapping[str, Callable[[int, int], float]] = {
    "original": lambda rows, columns: math.sqrt(max(1.0, rows / columns)),
    "match_rms_adamw": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
    "none": lambda rows, columns: 1.0,
    "columns": lambda rows, columns: math.sqrt(max(1.0, columns / rows)),
    "unrooted": lambda rows, columns: max(1.0, rows / columns),
    "largest": lambda rows, columns: math.sqrt(max(rows, columns)),
}
"""Factors on lr by the shape of a matrix; the first two are `adjust_lr_fn` of torch 2.13, torch/optim/_muon.py."""

DECAYS = ("told", "missing", "scaled")
"""Weight decay by the lr of the group, none, and by the lr that is scaled for the shape."""


class Iteration(NamedTuple):
    """A polynomial and how often it is applied."""

    coefficients: Coefficients
    steps: int

    def __call__(self, values: Floats) -> Floats:
        """What singular values become."""
        a, b, c = self.coefficients
        for _ in range(self.steps):
            values = a * values + b * values**3 + c * values**5
        return values


@dataclass(frozen=True)
class Matrix:
    """One matrix at one step of one side."""

    name: str
    lr: float
    weight_decay: float
    momentum: float
    grad: Floats
    buffer_before: Floats
    buffer: Floats
    before: Floats
    after: Floats

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.grad.shape
        return int(rows), int(columns)

    @cached_property
    def momentum_share(self) -> float | None:
        """The x of buffer = momentum * buffer_before + x * grad, within float32's rounding; None where none fits."""
        new = self.buffer - self.momentum * self.buffer_before
        size = float((self.grad**2).sum())
        share = float((new * self.grad).sum()) / size if size else 0.0
        scale = float(np.sqrt((self.buffer**2).sum() + (self.buffer_before**2).sum()))
        left = float(np.sqrt(((new - share * self.grad) ** 2).sum()))
        return share if size and left <= 64 * 2.0**-23 * scale else None


class Projection:
    """A step's movement over lr, in the singular directions of what may have been made orthogonal."""

    def __init__(self, matrix: Matrix, direction: str) -> None:
        made = DIRECTIONS[direction](matrix.grad, matrix.buffer, matrix.momentum)
        turn = made.shape[0] > made.shape[1]
        made, moved, old = (x.T if turn else x for x in (made, matrix.before - matrix.after, matrix.before))
        norm = float(np.sqrt((made**2).sum()))
        squares, left = np.linalg.eigh(made @ made.T)
        values = np.sqrt(np.maximum(squares, 0.0)) / norm if norm else np.zeros(len(squares))
        kept = np.flatnonzero(values >= LEAST)[-MOST:]
        self.values = values[kept]
        """Singular values over the Frobenius norm, [k]."""
        left = left[:, kept]
        right = made.T @ left / (self.values * norm)
        self.moved = left.T @ moved @ right / matrix.lr
        """[k, k]"""
        self.old = left.T @ old @ right
        """The parameter before the step, [k, k]."""
        self.matrix = matrix
        self._made: dict[Iteration, Floats] = {}

    def made(self, iteration: Iteration) -> Floats:
        """What an iteration makes of the singular values."""
        if iteration not in self._made:
            self._made[iteration] = iteration(self.values)
        return self._made[iteration]

    def scale(self, iteration: Iteration, decay: str = "told") -> float:
        """The factor on lr that fits best with a weight decay (one of `DECAYS`)."""
        plain, scaled = self._decayed(decay)
        expected = self.made(iteration)
        moved, own = np.diag(self.moved) - np.diag(plain), expected + np.diag(scaled)
        size = float((own * expected).sum())
        return float((moved * expected).sum()) / size if size else 0.0

    def error(self, iteration: Iteration, scale: float, decay: str = "told") -> float:
        """What is left per singular direction, as a share of the scale."""
        if not scale:
            return math.inf
        plain, scaled = self._decayed(decay)
        left = self.moved - plain - scale * (np.diag(self.made(iteration)) + scaled)
        return float(np.sqrt((left**2).sum() / len(self.values)) / abs(scale))

    def _decayed(self, decay: str) -> tuple[Floats, Floats]:
        """What weight decay adds to the movement over lr, by itself and by the scale."""
        shrunk, nothing = self.matrix.weight_decay * self.old, np.zeros_like(self.old)
        return (shrunk if decay == "told" else nothing), (shrunk if decay == "scaled" else nothing)

    def decay(self, iteration: Iteration) -> tuple[float, float]:
        """The weight decay that the movement shows (a factor on lr times the parameter), and its variance."""
        expected = np.diag(self.made(iteration)).ravel()
        expected = expected / np.sqrt((expected**2).sum())
        moved, old = (x.ravel() - (x.ravel() @ expected) * expected for x in (self.moved, self.old))
        weight = float(old @ old)
        if len(self.values) < 2 or not weight:
            return 0.0, math.inf
        found = float(moved @ old) / weight
        left = moved - found * old
        return found, float(left @ left) / max(len(moved) - 2, 1) / weight


@dataclass(frozen=True)
class Form:
    """The Muon that a side follows, as far as its record tells."""

    ways: frozenset[tuple[str, Iteration]]
    """Directions and iterations that fit; several where the record cannot tell them apart, none where none fits."""
    error: float
    """Of the best of them."""
    scales: Mapping[tuple[int, int], float]
    """Factor on lr by shape."""
    share: str | None
    """`average`, `sum` or None: how the momentum takes in a gradient."""
    decays: frozenset[str]
    """Of `DECAYS`: what the weight decay may be."""
    n_matrices: int

    def meant(self) -> frozenset[tuple[str, Iteration]]:
        """The ways, with what is made orthogonal called alike whether the momentum sums gradients or averages them."""
        if self.share != "sum":
            return self.ways
        alike = {"added": "nesterov", "nesterov": "less"}
        return frozenset((alike.get(direction, direction), iteration) for direction, iteration in self.ways)

    def like_scales(self, other: Form) -> bool:
        """Whether lr is scaled as in another form, for all shapes that both have."""
        return all(
            abs(scale / other.scales[shape] - 1) <= SCALES_APART
            for shape, scale in self.scales.items()
            if shape in other.scales
        )

    def gives(self, matrix: Matrix) -> bool:
        """Whether a matrix moves as this form says, to what an iteration in bfloat16 leaves."""
        for direction, iteration in self.ways:
            projection = Projection(matrix, direction)
            if not len(projection.values):
                return True
            for decay in self.decays:
                scale = self.scales.get(matrix.shape) or projection.scale(iteration, decay)
                if projection.error(iteration, scale, decay) <= SINGLE:
                    return True
        return False

    def named_scales(self) -> list[str]:
        """Names of `SCALES` that give the factor of every shape."""
        return [
            name
            for name, of in SCALES.items()
            if all(abs(scale / of(*shape) - 1) <= SCALES_APART for shape, scale in self.scales.items())
        ]


def form_of(matrices: Sequence[Matrix], iterations: Sequence[Iteration]) -> Form:
    """Find the form of Muon that gives all these matrices.

    Args:
        matrices: of one side, at several steps; the first step alone cannot tell directions apart.
        iterations: those that are tried.
    """
    shares = {_share_name(matrix) for matrix in matrices}
    errors: dict[tuple[str, Iteration], float] = {}
    worst: dict[tuple[str, Iteration], float] = {}
    decays: dict[tuple[str, Iteration], str] = {}
    projections: dict[str, list[Projection]] = {}
    for direction in DIRECTIONS:
        own = [Projection(matrix, direction) for matrix in matrices]
        projections[direction] = own = [projection for projection in own if len(projection.values)]
        for iteration in iterations:
            for decay in DECAYS:
                scales = _scales(own, iteration, decay)
                each = [projection.error(iteration, scales[projection.matrix.shape], decay) for projection in own]
                error = float(np.sqrt(np.mean(np.square(each)))) if each else math.inf
                if error < errors.get((direction, iteration), math.inf):
                    errors[direction, iteration], worst[direction, iteration] = error, max(each)
                    decays[direction, iteration] = decay
    least = min(errors.values(), default=math.inf)
    ways = frozenset(
        way for way, error in errors.items() if error <= FITS and worst[way] <= SINGLE and error <= TIMES * least + 1e-9
    )
    if not ways:
        return Form(frozenset(), least, {}, shares.pop() if len(shares) == 1 else None, frozenset(), len(matrices))
    direction, iteration = min(ways, key=lambda way: (errors[way], way))
    own = projections[direction]
    scales = _scales(own, iteration, decays[direction, iteration])
    return Form(
        ways,
        least,
        scales,
        shares.pop() if len(shares) == 1 else None,
        _decays(own, iteration, scales),
        len(matrices),
    )


def _scales(projections: Sequence[Projection], iteration: Iteration, decay: str) -> dict[tuple[int, int], float]:
    by_shape: dict[tuple[int, int], list[float]] = {}
    for projection in projections:
        by_shape.setdefault(projection.matrix.shape, []).append(projection.scale(iteration, decay))
    return {shape: float(np.median(found)) for shape, found in by_shape.items()}


def _share_name(matrix: Matrix) -> str | None:
    share = matrix.momentum_share
    for name, expected in (("average", 1 - matrix.momentum), ("sum", 1.0)):
        if share is not None and abs(share - expected) <= 1e-4 * expected:
            return name
    return None


def _decays(
    projections: Sequence[Projection], iteration: Iteration, scales: Mapping[tuple[int, int], float]
) -> frozenset[str]:
    """What the weight decay may be, over all matrices."""
    found = [projection.decay(iteration) for projection in projections]
    weights = np.array([1 / variance if variance > 0 else 0.0 for _, variance in found])
    values = np.array([value for value, _ in found])
    told = np.array([projection.matrix.weight_decay for projection in projections])
    scale = np.array([scales[projection.matrix.shape] for projection in projections])
    if not weights.any():
        return frozenset(DECAYS)
    allowed = max(SIGMAS / np.sqrt(weights.sum()), 0.1 * float((weights * told).sum() / weights.sum()))
    misses: dict[str, float] = {}
    for name, meant in zip(DECAYS, (told, np.zeros(len(told)), told * scale), strict=True):
        apart = abs(float((weights * (values - meant)).sum() / weights.sum()))
        if apart <= allowed:
            misses[name] = float((weights * (values - meant) ** 2).sum())
    least = min(misses.values(), default=0.0)
    return frozenset(name for name, miss in misses.items() if miss <= least + SIGMAS**2)
