"""Gradients that differ though the parameters did not: missing, scaled, clipped, added up, lost in part, not finite."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from optrace.compare.causes.case import Case, close, factor_words, few, figure
from optrace.compare.causes.cause import Cause
from optrace.compare.causes.clips import clipped, clipped_apart, clipped_values
from optrace.compare.causes.gradient_rows import Gradients, common_factor, gradients_at
from optrace.compare.causes.part_scaled import scaled_in_part, stepped_again
from optrace.compare.causes.penalties import penalised
from optrace.compare.words import count_words

Floats = NDArray[np.float64]


def missing(case: Case) -> Iterator[Cause]:
    """Gradients that are None on one side."""
    first = case.first
    assert first is not None
    rows = case.at(first.step)
    for side, name in ((1, "{B}"), (0, "{A}")):
        other = ("{B}", "{A}")[side]
        names, zeros = [], True
        for n, cell in case.cells():
            own, theirs = rows[side].get((n, "grad")), rows[1 - side].get((n, "grad"))
            if theirs is not None and theirs.present and (own is None or not own.present):
                names.append(cell.param_a)
                zeros &= theirs.n_zero == theirs.numel
        if names:
            them = "it" if len(names) == 1 else "them"
            fix = (
                f"see whether {name} uses {them} in the loss: detached, under no_grad, frozen, or an expert or branch"
                " that was not taken; a None gradient is skipped, a zero one is not"
            )
            if zeros:
                fix = (
                    f"let both clear gradients alike: zero_grad(set_to_none=False) leaves zeros in {other}, with which"
                    " momentum and decay go on; None is skipped"
                )
            evidence = [f"None at {count_words(len(names), 'parameter')} of {len(case.cells())}"]
            kinds = [kind for kind in case.kinds_between(side, first.step) if kind in ("backward", "zero_grad")]
            if len(names) == len(case.cells()) and kinds[-2:] == ["backward", "zero_grad"]:
                evidence.append(f"in {name} zero_grad comes after the last backward of step {first.step}")
                fix = f"in {name} call zero_grad before backward, or after step, and not between the two"
            evidence += [f"the gradient in {other} is all zeros"] if zeros else []
            yield Cause(
                "grad-missing",
                f"the gradient of {few(names)} is None in {name} at step {first.step}, and a tensor in {other}",
                fix,
                tuple(evidence),
                steps=(first.step, first.step),
                params=tuple(names),
            )


def changed(case: Case) -> Iterator[Cause]:
    """What was done to gradients after they were computed, if one story gives all of them."""
    first = case.first
    assert first is not None
    found = gradients_at(case, first.step)
    if not found.names:
        return
    for explain in (
        _nonfinite,
        stepped_again,
        clipped_values,
        clipped_apart,
        _scaled,
        scaled_in_part,
        _accumulated,
        penalised,
        _partial,
    ):
        cause = explain(case, first.step, found)
        if cause is not None:
            yield cause
            return


def _nonfinite(case: Case, step: int, found: Gradients) -> Cause | None:
    for side, name in ((1, "{B}"), (0, "{A}")):
        own, theirs = ((found.a, found.b)[s] for s in (side, 1 - side))
        bad = [
            (p, o)
            for p, o, t in zip(found.names, own, theirs, strict=True)
            if o.n_nan + o.n_inf > 0 and t.n_nan + t.n_inf == 0
        ]
        if bad:
            nan, inf = sum(o.n_nan for _, o in bad), sum(o.n_inf for _, o in bad)
            what = " and ".join(text for n, text in ((nan, f"{nan:,} nan"), (inf, f"{inf:,} inf")) if n)
            return Cause(
                "grad-nonfinite",
                f"the gradient of {few([p for p, _ in bad])} is not finite in {name} at step {step}",
                f"find the operation that overflows or divides by zero in {name} (torch.autograd.set_detect_anomaly),"
                " or skip such steps as GradScaler does",
                (f"{what} among the elements of {count_words(len(bad), 'parameter')}",),
                steps=(step, step),
                params=tuple(p for p, _ in bad),
            )
    return None


def _scaled(case: Case, step: int, found: Gradients) -> Cause | None:
    a, b = found.flat(0), found.flat(1)
    c = common_factor(a, b, found.eps)
    if c is None:
        return None
    clip = clipped(case, step, found, c)
    if clip is not None:
        return clip
    evidence = [
        f"every sampled element of {count_words(len(found.names), 'gradient')} is {figure(c)} times {{A}}'s at step"
        f" {step}"
    ]
    scales = {
        e.data["scale"] for side in (0, 1) for e in case.between(side, step) if isinstance(e.data.get("scale"), float)
    }
    backwards = [case.column("n_backward", side).get(step) for side in (0, 1)]
    fix = "look in {B} for a factor on the loss or the gradients"
    if c == -1 or abs(c + 1) < 1e-5:
        fix = "look in {B} for a sign: of the loss, of the gradients, or maximize"
    for n, what in _usual(case, step, backwards, scales):
        if any(abs(c - f) < 1e-4 * f for f in (n, 1 / n)):
            evidence.append(f"{figure(n)} is {what}")
            fix = f"in {{B}} {'divide' if c > 1 else 'do not divide'} by {figure(n)}, {what}"
            break
    else:
        power = np.log2(abs(c))
        if abs(power - round(power)) < 1e-6 and round(power) >= 8:
            evidence.append("a power of two as loss scalers use: the gradients may not have been unscaled")
            fix = "in {B} call scaler.unscale_(optimizer) or scaler.step(optimizer), which divides by the loss scale"
    return Cause(
        "grad-scale",
        f"the gradients of {{B}} are {factor_words(c)} {{A}}'s",
        fix,
        tuple(evidence),
        steps=(step, max(case.steps)),
    )


def _usual(case: Case, step: int, backwards: Sequence[float | None], scales: set[float]) -> Iterator[tuple[float, str]]:
    """Numbers by which people scale gradients, and what they are."""
    for scale in scales:
        yield scale, "the loss scale"
    for side, name in ((0, "{A}"), (1, "{B}")):
        n = backwards[side]
        if n is not None and n > 1:
            yield float(n), f"the number of backward passes a step in {name}"
        world = (case.sources[side].trace.rank_info.get("distributed") or {}).get("world_size")
        if isinstance(world, int) and world > 1:
            yield float(world), f"the number of ranks of {name}"


def _accumulated(case: Case, step: int, found: Gradients) -> Cause | None:
    """Gradients that still hold those of the step before."""
    earlier = [s for s in case.steps if s < step]
    if not earlier:
        return None
    past = gradients_at(case, earlier[-1])
    if past.names != found.names:
        return None
    for side, name in ((1, "{B}"), (0, "{A}")):
        own, theirs, old = found.flat(side), found.flat(1 - side), past.flat(side)
        known = np.isfinite(own) & np.isfinite(theirs) & np.isfinite(old)  # without samples nothing is
        own, theirs, old = own[known], theirs[known], old[known]
        if np.abs(old).max(initial=0.0) and close(theirs + old, own, scale=np.abs(theirs) + np.abs(old), eps=found.eps):
            seen = "a zero_grad" if "zero_grad" in case.kinds_between(side, step) else "no zero_grad"
            return Cause(
                "grad-accumulated",
                f"the gradients of {name} at step {step} still hold those of step {earlier[-1]}",
                f"in {name} call optimizer.zero_grad() once before each first backward",
                (
                    f"gradient of step {step} less that of step {earlier[-1]} is the other side's, at"
                    f" {len(own)} sampled elements; {seen} of {name} was seen between the two steps",
                ),
                steps=(step, max(case.steps)),
            )
    return None


def _partial(case: Case, step: int, found: Gradients) -> Cause | None:
    """Micro-batches whose gradients did not reach the step, where backwards and zero_grads tell it."""
    if any(len(dict(source.trace.optimizers)) > 1 for source in case.sources):
        return None  # a backward is no optimizer's own: a generator's goes through its discriminator
    backwards = [case.column("n_backward", side).get(step, 0) for side in (0, 1)]
    lost = [_lost(case.kinds_between(side, step)) for side in (0, 1)]
    for side, name in ((1, "{B}"), (0, "{A}")):
        other = ("{B}", "{A}")[side]
        n, most = lost[side]
        passed = _passed_over(case, side, step, lost)
        if passed is not None:
            return passed
        if n and not lost[1 - side][0] and most > 1:
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
                return Cause(
                    "grad-partial",
                    f"{name} runs {backwards[side]:g} backward passes for step {step}, {other} {backwards[1 - side]:g}"
                    " on the same batches",
                    f"in {name} step only after all micro-batches have gone backward",
                    ("the same batches were loaded on both sides",),
                    steps=(step, max(case.steps)),
                )
    return None


def _passed_over(case: Case, side: int, step: int, lost: Sequence[tuple[int, int]]) -> Cause | None:
    """Rounds of backward passes that went without a step, at this step as at few others."""
    (n, most), (none, usual) = lost[side], lost[1 - side]
    if none or not usual or not n or n % usual or most != n + usual:
        return None
    alike = [s for s in case.steps if s > step and _lost(case.kinds_between(side, s))[0]]
    if 2 * len(alike) > len([s for s in case.steps if s > step]):
        return None
    name, other = ("{A}", "{B}")[side], ("{B}", "{A}")[side]
    return Cause(
        "steps-missing",
        f"{name} zeroes the gradients and goes backward {n // usual + 1} times for step {step}, and steps once: it"
        f" passes over {count_words(n // usual, 'step')} that {other} takes",
        f"look in {name} for a condition under which optimizer.step() is not called there",
        (
            f"backward passes since the last step: {most} in {name}, {usual} in {other};"
            f" {count_words(n, 'gradient')} of {name} {'was' if n == 1 else 'were'} zeroed unused",
        ),
        steps=(step, step),
    )


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
