"""Gradients that differ by a multiple of the parameters: a penalty in the loss, or weight decay added by hand."""

from __future__ import annotations

import numpy as np

from optrace.compare.causes.case import Case, close, few, figure
from optrace.compare.causes.cause import Cause
from optrace.compare.causes.gradient_rows import Floats, Gradients
from optrace.compare.words import count_words

_LEAST = 4
"""Elements in which a penalty must show."""
_SEEN = 256.0
"""Roundings of the gradient that a penalty must exceed in an element to be seen there."""


def penalised(case: Case, step: int, found: Gradients) -> Cause | None:
    """Whether the gradients of one side are the other's plus a constant times each parameter, or times its sign."""
    numbers = {cell.param_a: n for n, cell in case.cells()}
    before = case.before(step, 0)
    params = [before.get((numbers[name], "param")) for name in found.names]
    if any(row is None or row.numel != a.numel for row, a in zip(params, found.a, strict=True)):
        return None
    values = [row.used for row in params if row is not None]
    for kind, terms in (("L2", values), ("L1", [np.sign(p) for p in values])):
        each = [_factor(term, a.used, b.used, found.eps) for term, a, b in zip(terms, found.a, found.b, strict=True)]
        fitting = {name: one for name, one in zip(found.names, each, strict=True) if one is not None}
        factors = {name: k for name, (k, shown) in fitting.items() if shown}
        seen = sum(shown for _, shown in fitting.values())
        if len(fitting) < len(each) or seen < _LEAST:
            continue
        middle = float(np.median(list(factors.values())))
        if max(abs(k - middle) for k in factors.values()) <= 1e-3 * abs(middle):
            return _cause(kind, middle, step, case, list(factors), len(factors) < len(fitting), seen)
    return None


def _factor(term: Floats, a: Floats, b: Floats, eps: float) -> tuple[float, int] | None:
    """The k of b = a + k*term, and in how many elements it shows (0: a and b agree); None where none fits."""
    if not len(a):
        return 0.0, 0
    difference = b - a
    if not (np.isfinite(difference).all() and np.isfinite(term).all()):
        return None
    size = np.maximum(np.abs(a), np.abs(b))
    shows = np.abs(difference) > _SEEN * eps * (size + np.sqrt(np.mean(size**2)))
    if not shows.any() or not term.any():
        return (0.0, 0) if close(a, b, eps=eps) else None
    k = float(difference @ term / (term @ term))
    fits = close(a + k * term, b, scale=float(np.sqrt(np.mean(size**2))), eps=eps)
    return (k, int(shows.sum())) if fits else None


def _cause(kind: str, k: float, step: int, case: Case, names: list[str], some: bool, seen: int) -> Cause:
    has, lacks = ("{B}", "{A}") if k > 0 else ("{A}", "{B}")
    amount = figure(float(f"{abs(k):.4g}"))
    where = f" at {few(names)}" if some else ""
    form = f"{amount} times the parameter" if kind == "L2" else f"{amount} times the parameter's sign"
    penalty = f"{figure(float(f'{abs(k) / 2:.4g}'))}*sum(p**2)" if kind == "L2" else f"{amount}*sum(|p|)"
    fix = f"in {{B}} drop the penalty {penalty} from the loss" if k > 0 else f"in {{B}} add {penalty} to the loss"
    if kind == "L2":
        fix += f" (an optimizer's coupled weight_decay={amount} does the same behind the gradient)"
    return Cause(
        "grad-upstream",
        f"the gradients of {has} are {lacks}'s plus {form}{where}: an {kind} penalty in the loss, or weight decay"
        " that is added to the gradients by hand",
        fix,
        (f"one factor at {count_words(seen, 'element')} of {count_words(len(names), 'gradient')} at step {step}",),
        steps=(step, max(case.steps)),
        params=tuple(names) if some else (),
    )
