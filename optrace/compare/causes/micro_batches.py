"""Micro-batches that went into one step on one side and not on the other, as backwards and zero_grads tell it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from optrace.compare.causes.case import Case
from optrace.compare.causes.cause import Cause
from optrace.compare.causes.gradient_rows import Gradients
from optrace.compare.words import count_words


def partly(case: Case, step: int, found: Gradients) -> Cause | None:
    """Micro-batches whose gradients did not reach the step, where backwards and zero_grads tell it."""
    if any(len(dict(source.trace.optimizers)) > 1 for source in case.sources):
        return None  # a backward is no optimizer's own: a generator's goes through its discriminator
    backwards = [case.column("n_backward", side).get(step, 0) for side in (0, 1)]
    lost = [_lost(case.kinds_between(side, step)) for side in (0, 1)]
    closure = _in_closures(case, step, lost)
    if closure is not None:
        return closure
    for side, name in ((1, "{B}"), (0, "{A}")):
        n, most = lost[side]
        passed = _passed_over(case, side, step, lost)
        if passed is not None:
            return passed
        if n and not lost[1 - side][0] and most > 1:
            left = _left_over(case, side, step, lost)
            if left is not None:
                return left
            return Cause(
                "grad-partial",
                f"{name} loses {n} of {most} micro-batches at step {step}: gradients are zeroed between the backward"
                " passes of one step",
                f"in {name} call zero_grad() once before the first micro-batch of a step, not before each",
                (f"backward passes at step {step}: {backwards[0]:g} in {{A}}, {backwards[1]:g} in {{B}}",),
                steps=(step, max(case.steps)),
            )
        if 0 < backwards[side] < backwards[1 - side] and backwards[1 - side] > 1:
            batches = [case.column("batch", s).get(step) for s in (0, 1)]
            if batches[0] is not None and batches[0] == batches[1]:
                return _on_the_same(case, side, step, backwards)
    return None


def _in_closures(case: Case, step: int, lost: Sequence[tuple[int, int]]) -> Cause | None:
    """A closure that does not zero the gradients between its evaluations, where the other side's does."""
    if not all("closure" in case.kinds_between(side, step) for side in (0, 1)):
        return None
    zeroes = [n > 0 for n, _ in lost]
    if zeroes[0] == zeroes[1]:
        return None
    name, other = ("{B}", "{A}") if zeroes[0] else ("{A}", "{B}")
    fix = "call optimizer.zero_grad() at the start of the closure"
    return Cause(
        "grad-accumulated",
        f"the closure of {name} adds up the gradients of its {lost[zeroes[0]][1]} evaluations at step {step}; that of"
        f" {other} zeroes them before each",
        f"in {{B}} {fix}" if zeroes[0] else f"{fix}, in both",
        (f"no zero_grad between the backward passes of step {step} in {name}, one before each in {other}",),
        steps=(step, max(case.steps)),
    )


def _on_the_same(case: Case, side: int, step: int, backwards: Sequence[float]) -> Cause:
    """A side that goes backward less often than the other for a step on the same batches."""
    name, other = ("{A}", "{B}")[side], ("{B}", "{A}")[side]
    less, more = (f"{n:g} backward {'pass' if n == 1 else 'passes'}" for n in (backwards[side], backwards[1 - side]))
    evidence = ["the same batches were loaded on both sides"]
    others = Counter(_used(case, s) for s in case.steps if s != step).most_common(1)
    if side == 1:
        words, code = (
            f"{name} runs {less} for step {step}, {other} {backwards[0]:g} on the same batches",
            "grad-partial",
        )
        fix = "in {B} step only after all micro-batches have gone backward"
    else:
        words, code = f"{other} runs {more} for step {step}, {name} {less} on the same batches", "grad-accumulated"
        fix = (
            "look in {B} for a second backward before the step, of another loss or of one again, and zero_grad after it"
        )
    if others and others[0][0] == (backwards[side],) * 2:
        evidence.append(f"at most other steps both run {less}")
    return Cause(code, words, fix, tuple(evidence), steps=(step, max(case.steps)))


def _passed_over(case: Case, side: int, step: int, lost: Sequence[tuple[int, int]]) -> Cause | None:
    """Backward passes that went without a step and were zeroed, at this step as at few others."""
    (n, most), (none, _) = lost[side], lost[1 - side]
    taken = _steps_of(case, 1 - side, step, n, most)
    if none or not n or not taken:
        return None
    alike = [s for s in case.steps if s > step and _lost(case.kinds_between(side, s))[0]]
    if 2 * len(alike) > len([s for s in case.steps if s > step]):
        return None
    name, other = ("{A}", "{B}")[side], ("{B}", "{A}")[side]
    return Cause(
        "steps-missing",
        f"{name} zeroes the gradients of {n} backward {'pass' if n == 1 else 'passes'} unused before step {step}: it"
        f" passes over {count_words(taken, 'step')} that {other} takes with them",
        f"look in {name} for a condition under which optimizer.step() is not called there (what is left of"
        " accumulation at the end of an epoch, a skipped batch)",
        (
            f"backward passes since the last step: {most} in {name}, {most - n} of them used; {lost[1 - side][1]} in"
            f" {other}",
        ),
        steps=(step, step),
    )


def _steps_of(case: Case, side: int, step: int, n: int, most: int) -> int:
    """How many steps of a side, from `step` on, take `n` backward passes, if its next takes the rest; 0: no number."""
    following = [s for s in case.steps if s >= step]
    taken = 0
    for number, s in enumerate(following):
        own = _lost(case.kinds_between(side, s))[1]
        if taken == n:
            return number if own == most - n else 0
        taken += own
        if taken > n or not own:
            return 0
    return len(following) if taken == n else 0


def _left_over(case: Case, side: int, step: int, lost: Sequence[tuple[int, int]]) -> Cause | None:
    """Backward passes that a side zeroed so as to step with as many as always, while the other steps with them too."""
    (n, most), (_, held) = lost[side], lost[1 - side]
    others = Counter(_used(case, s) for s in case.steps if s != step)
    usual = others.most_common(1)[0][0] if others else None
    if usual != (most - n, most - n) or held != most:
        return None
    name, other = ("{B}", "{A}")[side], ("{A}", "{B}")[side]
    fix = "zero the gradients at the start of an epoch, or step with what is left of accumulation at its end"
    return Cause(
        "grad-accumulated",
        f"the gradients of {name} at step {step} hold {held} micro-batches, {n} of them left over from before; {other}"
        f" zeroes those, and both have {most - n} at other steps",
        f"in {{B}} {fix}" if side == 0 else f"{fix}, in both alike",
        (f"backward passes since the last step: {held} on both sides, a zero_grad after {n} of them in {other} alone",),
        steps=(step, max(case.steps)),
    )


def _used(case: Case, step: int) -> tuple[int, int]:
    """Backward passes that each side's step had the gradients of."""
    a, b = (_lost(case.kinds_between(side, step)) for side in (0, 1))
    return a[1] - a[0], b[1] - b[0]


def _lost(kinds: Sequence[str]) -> tuple[int, int]:
    """Backward passes whose gradients were zeroed before the step, and backward passes in all."""
    lost, seen, run = 0, 0, 0
    for kind in kinds:
        if kind == "backward":
            run += 1
            seen += 1
        elif kind == "zero_grad":
            lost += run
            run = 0
    return lost, seen
