"""What an iteration in bfloat16 leaves of Muon's form, and how far mistakes are from it: the margins of `spectral`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.figures import Report, Row

USUAL = (3.4445, -4.775, 2.0315)
SHAPES = ((16, 16, 2), (12, 48, 12), (48, 16, 16), (48, 48, 24), (64, 256, 16), (128, 64, 16), (128, 128, 8))
"""Rows, columns and rank of the gradient that returns at each step."""
RIGHT: dict[str, dict[str, Any]] = {
    "bfloat16, addmm": {"fused": True},
    "bfloat16, operation by operation": {},
    "bfloat16, tall ones as they are": {"turn": False},
    "float16": {"dtype": "float16"},
    "float32": {"dtype": "float32"},
}
WRONG: dict[str, dict[str, Any]] = {
    "no nesterov": {"direction": "plain"},
    "nesterov of an average as of a sum": {"direction": "added"},
    "4 iterations": {"steps": 4},
    "6 iterations": {"steps": 6},
    "7 iterations": {"steps": 7},
    "coefficients (2, -1.5, 0.5)": {"coefficients": (2.0, -1.5, 0.5)},
}


def cases() -> tuple[str, ...]:
    """What `--only` may name: ways to write Muon, right and wrong."""
    return (*RIGHT, *WRONG)


def run(quick: bool, rounds: int | None, only: tuple[str, ...]) -> Report:
    """Measure every way over all shapes and some seeds; quick: one seed."""
    from optrace.replayer.spectral import FITS, SINGLE, TIMES

    report = Report(
        "muon",
        f"Errors per singular direction of updates against torch's form. Up to {FITS:g} over all matrices and"
        f" {SINGLE:g} at one are taken for rounding; a form that fits {TIMES:g} times worse than another is ruled out.",
    )
    seeds = range(1 if quick else rounds or 5)
    for name, way in (RIGHT | WRONG).items():
        if only and name not in only:
            continue
        pooled, largest = zip(*(_errors(seed, way) for seed in seeds), strict=True)
        right = name in RIGHT
        each = max(pooled) if right else min(pooled)
        cells = {
            "over all": f"{each:.3f}",
            "at one": f"{max(largest) if right else min(largest):.3f}",
            "margin": f"{FITS / each if right else each / FITS:.2g} times" if each > 1e-4 else "-",
        }
        met = each <= FITS and max(largest) <= SINGLE if right else None
        goal = "within both" if right else ""
        report.rows.append(Row(name, "largest" if right else "smallest", cells, {"pooled": pooled}, goal, met))
    return report


def _errors(seed: int, way: dict[str, Any]) -> tuple[float, float]:
    """Error over all matrices, and the largest of one."""
    from optrace.replayer.spectral import Iteration, Projection

    usual = Iteration(USUAL, 5)
    own = [Projection(matrix, "nesterov") for matrix in _matrices(seed, way)]
    errors = [p.error(usual, math.sqrt(max(1.0, p.matrix.shape[0] / p.matrix.shape[1]))) for p in own if len(p.values)]
    return float(np.sqrt(np.mean(np.square(errors)))), max(errors)


def _matrices(seed: int, way: dict[str, Any]) -> Iterator[Any]:
    """Steps 2 to 6 of matrices of every shape, whose gradients are partly the same at each step."""
    import torch

    from optrace.replayer.spectral import DIRECTIONS, Matrix

    generator = torch.Generator().manual_seed(seed)
    lr, decay, momentum = 0.02, 0.1, 0.95
    for rows, columns, rank in SHAPES:

        def low_rank(rows: int = rows, columns: int = columns, rank: int = rank) -> torch.Tensor:
            halves = torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator)
            return halves[0] @ halves[1]

        always, buffer = low_rank(), torch.zeros(rows, columns)
        before = torch.randn(rows, columns, generator=generator) / columns**0.5
        for step in range(6):
            grad = 0.5 * always + low_rank()
            old, buffer = buffer, buffer.lerp(grad, 1 - momentum)
            made: Any = DIRECTIONS[way.get("direction", "nesterov")](grad, buffer, momentum)  # type: ignore[arg-type]
            update = _orthogonal(made, **{key: value for key, value in way.items() if key != "direction"})
            scale = math.sqrt(max(1.0, rows / columns))
            after = (before * (1 - lr * decay)).add_(update, alpha=-lr * scale)
            if step:
                values = (tensor.double().numpy() for tensor in (grad, old, buffer, before, after))
                yield Matrix(f"{rows}x{columns}", lr, decay, momentum, *values)
            before = after


def _orthogonal(
    matrix: Any,
    *,
    dtype: str = "bfloat16",
    steps: int = 5,
    coefficients: tuple[float, float, float] = USUAL,
    fused: bool = False,
    turn: bool = True,
) -> Any:
    """Newton-Schulz with torch, by `addmm` or operation by operation."""
    import torch

    a, b, c = coefficients
    turned = turn and matrix.shape[0] > matrix.shape[1]
    x = (matrix.mT if turned else matrix).to(getattr(torch, dtype))
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        if fused:
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        else:
            x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if turned else x).float()
