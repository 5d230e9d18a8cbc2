"""Gradients that differ though the parameters did not: missing, scaled, clipped, added up, lost in part, not finite."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from optrace.compare.arrow import integers, numbers
from optrace.compare.causes.case import Case, close, factor_words, few, figure
from optrace.compare.causes.cause import Cause
from optrace.compare.causes.clip_places import clipped_between, clipped_in_parts
from optrace.compare.causes.clips import clipped, clipped_apart, clipped_values
from optrace.compare.causes.gradient_rows import Gradients, common_factor, gradients_at, last_gradients
from optrace.compare.causes.micro_batches import partly
from optrace.compare.causes.part_scaled import scaled_in_part, stepped_again
from optrace.compare.causes.penalties import penalised
from optrace.compare.match import Cell
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
            missing = next(cell for _, cell in case.cells() if cell.param_a in names)
            begin = [_begins(case, s, missing) for s in (0, 1)]
            if not zeros and begin[0] != begin[1] and max(begin) <= max(case.steps):
                sides = [
                    f"in {side} up to step {n - 1}" for side, n in zip(("{A}", "{B}"), begin, strict=True) if n > 1
                ]
                evidence.append(f"None {', '.join(sides)}: training of {them} begins earlier in {other}")
                fix = "unfreeze them, or begin to use them, at the same step in both"
            yield Cause(
                "grad-missing",
                f"the gradient of {few(names)} is None in {name} at step {first.step}, and a tensor in {other}",
                fix,
                tuple(evidence),
                steps=(first.step, first.step),
                params=tuple(names),
            )


def _begins(case: Case, side: int, cell: Cell) -> int:
    """The first step (A's number) at which a side has a gradient of a parameter; one past all: never."""
    matched = case.matching.pairs[case.pair]
    table = case.sources[side].trace.arrow(
        "tensors",
        optimizer=matched.b if side else matched.a,
        param=cell.param_b if side else cell.param_a,
        quantity="grad",
        columns=["step", "present"],
    )
    there = integers(table.column("step"))[numbers(table.column("present")).astype(bool)]
    return int(min([max(case.steps) + 1, *(there + (case.offset(case.pair) if side else 0)).tolist()]))


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
        clipped_between,
        clipped_in_parts,
        scaled_in_part,
        _accumulated,
        penalised,
        partly,
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
    losses = [case.column("loss", side).get(step) for side in (0, 1)]
    if losses[0] and losses[1] is not None:
        if abs(losses[1] / losses[0] - c) < 1e-4 * abs(c):
            evidence.append("the loss is so many times as large, too")
            fix = "look in {B} for a factor on the loss: its reduction (sum or mean), a weight, accumulation steps"
        elif losses[0] == losses[1]:
            evidence.append("the loss is the same")
            fix = (
                "look in {B} for what scales gradients behind the loss: a hook, a scaler, a second backward, averaging"
            )
    if c == -1 or abs(c + 1) < 1e-5:
        fix = "look in {B} for a sign: of the loss, of the gradients, or maximize"
    for n, what in _usual(case, step, backwards, scales):
        if any(abs(c - f) < 1e-4 * f for f in (n, 1 / n)):
            evidence.append(f"{figure(n)} is {what}")
            fix = f"in {{B}} {'divide' if c > 1 else 'do not divide'} by {figure(n)}, {what}"
            n_a, n_b = backwards
            if n_a and n_b and n_a != n_b and abs(n_b / n_a - c) < 1e-4 * c:
                often = count_words(int(n_a), "time")
                fix = f"in {{B}} go backward {often} a step as {{A}} does, or {fix.removeprefix('in {B} ')}"
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
    last = last_gradients(case, step, found)
    if last is None:
        return None
    before, past = last
    for side, name in ((1, "{B}"), (0, "{A}")):
        own, theirs, old = found.flat(side), found.flat(1 - side), past.flat(side)
        known = np.isfinite(own) & np.isfinite(theirs) & np.isfinite(old)  # without samples nothing is
        own, theirs, old = own[known], theirs[known], old[known]
        if np.abs(old).max(initial=0.0) and close(theirs + old, own, scale=np.abs(theirs) + np.abs(old), eps=found.eps):
            zeroed = {event.optimizer for event in case.between(side, step) if event.kind == "zero_grad"}
            seen = "a zero_grad" if zeroed else "no zero_grad"
            if zeroed and not zeroed & {-1, case.index(side)}:
                seen = f"only a zero_grad of optimizer {', '.join(map(str, sorted(zeroed)))}"
            return Cause(
                "grad-accumulated",
                f"the gradients of {name} at step {step} still hold those of step {before}",
                f"in {name} call optimizer.zero_grad() once before each first backward",
                (
                    f"gradient of step {step} less that of step {before} is the other side's, at"
                    f" {len(own)} sampled elements; {seen} of {name} was seen between the two steps",
                ),
                steps=(step, max(case.steps)),
            )
    return None
