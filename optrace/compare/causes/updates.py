"""Updates that did not happen: skipped, lost to a low precision, or made for some elements only."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from optrace.compare.causes.case import Case, close, few
from optrace.compare.causes.cause import Cause
from optrace.compare.causes.start import rounded_share
from optrace.compare.words import count_words
from optrace.trace.dtypes import eps_of


def unmoved(case: Case) -> Iterator[Cause]:
    """Updates of the first divergent step that are zero on one side and not on the other, where all else agrees."""
    first = case.first
    assert first is not None
    rows = case.at(first.step)
    for side, name in ((1, "{B}"), (0, "{A}")):
        other = ("{B}", "{A}")[side]
        still, part, moved, lost = [], [], 0, []
        below, agrees = True, True
        for n, cell in case.cells():
            own, theirs = rows[side].get((n, "update")), rows[1 - side].get((n, "update"))
            grad = rows[side].get((n, "grad"))
            if own is None or theirs is None or theirs.l2 == 0 or grad is None or not grad.present:
                continue
            moved += 1
            param = rows[side].get((n, "param"))
            zero = (own.used == 0) & (theirs.used != 0)
            if own.n_zero > theirs.n_zero and param is not None:
                eps = eps_of(param.dtype)
                half = np.abs(theirs.used) <= 0.5 * eps * np.abs(param.used)
                below &= bool(half[zero].all())
                lost.append(cell.param_a)
            if own.l2 == 0:
                still.append(cell.param_a)
            elif zero.any() and close(own.used[~zero], theirs.used[~zero], eps=2.0**-23, n=1024):
                part.append(cell.param_a)
            else:
                agrees &= close(own.used, theirs.used, eps=2.0**-23, n=1024)
        if lost and below and (still or part):
            yield _rounded(case, name, other, lost, first.step)
        elif not agrees:
            continue  # what moves does so by other numbers: a rule that stands still here is no more than that
        elif still and not part:
            who = "no parameter" if len(still) == moved else few(still)
            verb = "moves" if len(still) in (1, moved) and len(still) == moved else "do not move"
            verb = "does not move" if len(still) == 1 and len(still) != moved else verb
            yield Cause(
                "update-skipped",
                f"{who} {verb} at step {first.step} in {name}; in {other} {'they do' if moved > 1 else 'it does'}",
                f"find in {name} why the step does nothing: a skipped or guarded step, parameters that the optimizer"
                " holds but the model no longer uses, lr 0 where it counts",
                (
                    f"update is zero at {len(still)} of {count_words(moved, 'parameter')} with gradients, and too large"
                    " to be lost to rounding",
                ),
                steps=(first.step, first.step),
                params=tuple(still) if len(still) < moved else (),
            )
        elif part:
            yield Cause(
                "update-partial",
                f"only some elements of {few(part)} move at step {first.step} in {name}; in {other} all do",
                f"look in {name} for a mask, a slice or a shard that leaves elements out of the update",
                ("the elements that move do so as far as on the other side",),
                steps=(first.step, first.step),
                params=tuple(part),
            )
        else:
            continue
        return


def never_moves(case: Case) -> Iterator[Cause]:
    """A side of lower precision whose parameters hardly move at all."""
    share = rounded_share(case)
    if share is None:
        return
    share_a, share_b, step = share
    if share_b >= 0.9 and share_a < 0.5:
        names = [cell.param_a for _, cell in case.cells()]
        yield _rounded(case, "{B}", "{A}", names, step, share_b)


def _rounded(case: Case, name: str, other: str, lost: list[str], step: int, share: float | None = None) -> Cause:
    side = 1 if name == "{B}" else 0
    rows = case.at(step)[side]
    dtype = next((row.dtype for (_, quantity), row in rows.items() if quantity == "param"), "")
    evidence = [
        f"the updates of {other} are less than half the spacing of {dtype} numbers at these parameters",
    ]
    if share is not None:
        evidence = [f"{share:.0%} of the elements of {name} do not move in step {step}"]
    moves = "hardly move" if share else "do not move"
    return Cause(
        "update-rounded",
        f"updates of {few(lost)} are lost to {dtype} in {name}: the parameters {moves}",
        f"in {name} keep the parameters that the optimizer steps in float32 (master weights), or round stochastically",
        tuple(evidence),
        steps=(step, max(case.steps, default=step)),
        params=tuple(lost),
    )
