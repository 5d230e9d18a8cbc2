"""Steps that one side lacks, and differences that are none: rounding, and numbers that were only logged."""

from __future__ import annotations

from collections.abc import Iterator

from optrace.compare.causes.case import Case
from optrace.compare.causes.cause import Cause
from optrace.compare.words import count_words


def missing(case: Case) -> Iterator[Cause]:
    """Gaps in one side's record."""
    for gap in case.timeline.gaps:
        has, lacks = ("{A}", "{B}") if gap.only_in_a else ("{B}", "{A}")
        low, high = int(gap.steps[0]), int(gap.steps[-1])
        span = f"step {low}" if low == high else f"{count_words(len(gap.steps), 'step')} between {low} and {high}"
        yield Cause(
            "steps-missing",
            f"{lacks} lacks {span}, which {has} has",
            f"record {lacks} again with the steps that {has} recorded",
            ("the steps were not left out by --every or --steps",),
            steps=(low, high),
        )


def skipped(case: Case) -> Iterator[Cause]:
    """A step that one side skipped just before the gradients part, so that the next batch came under its number."""
    first = case.first
    assert first is not None
    step = first.step
    counts = [case.column("n_skipped", side) for side in (0, 1)]
    now = [side.get(step, 0) for side in counts]
    before = [sum(n for s, n in side.items() if s < step) for side in counts]
    if now[0] == now[1] or before[0] != before[1]:
        return
    side = 1 if now[1] > now[0] else 0
    name, other = ("{A}", "{B}")[side], ("{B}", "{A}")[side]
    n = int(abs(now[1] - now[0]))
    evidence = [f"skipped steps before step {step}: {int(now[0])} in {{A}}, {int(now[1])} in {{B}}"]
    batches = [case.column("batch", s) for s in (0, 1)]
    if batches[side].get(step) is not None and batches[side].get(step) == batches[1 - side].get(step + n):
        evidence.append(f"step {step} of {name} has the batch of step {step + n} of {other}")
    scales = [e.data.get("scale") for e in case.between(side, step) if e.kind in ("unscale", "step_skipped")]
    if any(scale is not None for scale in scales):
        evidence.append(f"loss scale there: {next(s for s in scales if s is not None)}")
    yield Cause(
        "steps-missing",
        f"{name} skips {count_words(n, 'step')} before step {step}, which {other} takes",
        "give both the same initial loss scale (GradScaler(init_scale=...)), or look for what makes the gradients of"
        f" {name} infinite there",
        tuple(evidence),
        steps=(step, step),
    )


def rounding(case: Case, follows: tuple[str, int] | None = None) -> Iterator[Cause]:
    """Differences that floating-point arithmetic makes; `follows`: the rule that both follow, and at how many steps."""
    first = case.first
    since = f" since step {first.step}" if first is not None else ""
    evidence = "no step goes beyond tolerance when it is judged from its own inputs"
    if follows is not None and not case.within_tolerance:
        evidence = (
            f"both follow {follows[0]} at all {count_words(follows[1], 'step')} when each is replayed from its own"
            " inputs, which differ by rounding; here the rule makes much of little"
        )
    fix = "compare with --noise A2, a second recording of {A}, or let both repeat themselves to the bit"
    yield Cause(
        "noise",
        f"the bits differ{since}, and every step is within the rounding of its inputs",
        fix if case.exact_decides else "",
        (evidence,),
    )


def logged(case: Case) -> Iterator[Cause]:
    """Losses that differ while nothing that was trained does."""
    for pair in range(len(case.matching.pairs)):
        losses = [case.column("loss", side, pair) for side in (0, 1)]
        both = sorted(set(losses[0]) & set(losses[1]))
        unequal = [s for s in both if losses[0][s] != losses[1][s] and not (losses[0][s] != losses[0][s])]
        if unequal:
            step = unequal[0]
            a, b = losses[0][step], losses[1][step]
            with_factor = {round(losses[1][s] / losses[0][s], 9) for s in unequal if losses[0][s]}
            evidence = [f"loss at step {step}: {a!r} in {{A}}, {b!r} in {{B}}"]
            if len(with_factor) == 1 and len(unequal) == len(both):
                evidence.append(f"one factor at all steps: {next(iter(with_factor)):g}")
            yield Cause(
                "logged-only",
                f"the losses differ since step {step}, and nothing that was trained does",
                "compare how the two report the loss (mean or sum, before or after scaling, over which tokens)",
                tuple(evidence),
                steps=(step, both[-1]),
            )
            return
