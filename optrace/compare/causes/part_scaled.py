"""Gradients of which some are scaled and the others equal, and gradients that are used for two steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optrace.compare.causes.case import Case, Row, factor_words, few
from optrace.compare.causes.cause import Cause
from optrace.compare.causes.gradient_rows import Floats, Gradients, common_factor, last_gradients
from optrace.compare.words import count_words


def scaled_in_part(case: Case, step: int, found: Gradients) -> Cause | None:
    """Whether the gradients of some parameters are the other side's times a factor, and all others equal bit by bit."""
    every = list(zip(found.names, found.a, found.b, strict=True))
    changed = [(name, a, b) for name, a, b in every if a.fingerprint != b.fingerprint]
    equal = [a for _, a, b in every if a.fingerprint == b.fingerprint and a.l2 > 0]
    if not changed or not equal:
        return None
    factor = common_factor(_flat([a for _, a, _ in changed]), _flat([b for _, _, b in changed]), found.eps)
    if factor is None:
        return None
    names = [name for name, _, _ in changed]
    times = factor_words(factor)
    is_sign = abs(factor + 1) < 1e-5
    if is_sign:
        times = "the negative of"
    hint = "a gradient reversal" if is_sign else "a hook, the weight of a branch in the loss"
    return Cause(
        "grad-scale",
        f"the gradients of {few(names)} in {{B}} are {times} {{A}}'s, and {count_words(len(equal), 'gradient')}"
        f" {'is' if len(equal) == 1 else 'are'} equal to the bit",
        f"look in {{B}} for what scales the gradients of just these parameters: {hint}",
        (f"one factor at all sampled elements of {count_words(len(names), 'gradient')} at step {step}",),
        steps=(step, max(case.steps)),
        params=tuple(names),
    )


def stepped_again(case: Case, step: int, found: Gradients) -> Cause | None:
    """Whether a side steps again with the gradients of its last step, without a backward between."""
    last = last_gradients(case, step, found)
    if last is None:
        return None
    before, past = last
    for side, name in ((1, "{B}"), (0, "{A}")):
        own, theirs = ((found.a, found.b)[s] for s in (side, 1 - side))
        old = (past.a, past.b)[side]
        again = all(x.fingerprint == y.fingerprint for x, y in zip(own, old, strict=True))
        if not again or not any(row.l2 > 0 for row in own) or case.column("n_backward", side).get(step, 0):
            continue
        if any(x.fingerprint == y.fingerprint and x.l2 > 0 for x, y in zip(own, theirs, strict=True)):
            continue
        fix = "call optimizer.step() once a backward pass, in the loop or in a callback, not in both"
        return Cause(
            "grad-upstream",
            f"{name} makes step {step} with the gradients of step {before} again: no backward pass lies between",
            f"in {{B}} {fix}" if side else f"{fix}, in both",
            (f"all {count_words(len(own), 'gradient')} of step {step} equal those of the step before to the bit",),
            steps=(step, max(case.steps)),
        )
    return None


def _flat(rows: Sequence[Row]) -> Floats:
    return np.concatenate([row.used for row in rows])
