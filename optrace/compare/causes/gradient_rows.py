"""The gradients that both sides have at one step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optrace.compare.causes.case import Case, Row, close
from optrace.trace.dtypes import eps_of

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Gradients:
    """Gradients of both sides at one step."""

    names: list[str]
    a: list[Row]
    b: list[Row]

    @property
    def eps(self) -> float:
        """Of the coarsest dtype."""
        return max((eps_of(row.dtype) for row in (*self.a, *self.b)), default=2.0**-23)

    def norm(self, side: int) -> float:
        """Total norm over the parameters."""
        return float(np.sqrt(sum(row.l2**2 for row in (self.a, self.b)[side])))

    def flat(self, side: int) -> Floats:
        """The sampled elements of all parameters."""
        rows = (self.a, self.b)[side]
        return np.concatenate([row.used for row in rows]) if rows else np.empty(0)


def gradients_at(case: Case, step: int) -> Gradients:
    """Present gradients of both sides at a step."""
    rows_a, rows_b = case.at(step)
    names, a, b = [], [], []
    for n, cell in case.cells():
        one, other = rows_a.get((n, "grad")), rows_b.get((n, "grad"))
        if one is not None and other is not None and one.present and other.present and one.numel == other.numel:
            names.append(cell.param_a)
            a.append(one)
            b.append(other)
    return Gradients(names, a, b)


def last_gradients(case: Case, step: int, found: Gradients) -> tuple[int, Gradients] | None:
    """The step before `step` and its gradients; None where there is none with gradients of the same parameters."""
    earlier = [s for s in case.steps if s < step]
    past = gradients_at(case, earlier[-1]) if earlier else None
    return None if past is None or past.names != found.names else (earlier[-1], past)


def common_factor(a: Floats, b: Floats, eps: float) -> float | None:
    """The c with b = c * a within rounding at all elements; None when there is none, or c = 1."""
    known = np.isfinite(a) & np.isfinite(b)
    a, b = a[known], b[known]
    top = np.abs(a).max(initial=0.0)
    if not top or not np.abs(b).max(initial=0.0) or (np.abs(a) > 1e-6 * top).sum() < 2:
        return None
    c = float((a * b).sum() / (a * a).sum())
    rms = float(np.sqrt((a * a).mean()))
    # a factor near 1 has to stand out from the rounding that it is found in
    n = min(256.0, abs(c - 1) / eps / 8)
    return c if n >= (1 if len(a) >= 8 else 32) and close(c * a, b, scale=abs(c) * rms, eps=eps, n=n) else None
