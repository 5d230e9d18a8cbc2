"""Gradients that differ though the parameters did not: missing, scaled, clipped, added up, lost in part, not finite."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optrace.compare.causes.case import Case, Event, Row, close, factor_words, few, figure
from optrace.compare.causes.cause import Cause
from optrace.compare.words import count_words
from optrace.trace.dtypes import eps_of

Floats = NDArray[np.float64]


def missing(case: Case) -> Iterator[Cause]:
    """Gradients that are None on one side."""
    first = case.first
    assert first is not None
    rows = case.at(first.step)
    for side, name in ((1, "{B}"), (0, "{A}")):
        other = ("{B}", "{A}")[side]
        names = []
        for n, cell in case.cells():
            own, theirs = rows[side].get((n, "grad")), rows[1 - side].get((n, "grad"))
            if theirs is not None and theirs.present and (own is None or not own.present):
                names.append(cell.param_a)
        if names:
            yield Cause(
                "grad-missing",
                f"the gradient of {few(names)} is None in {name} at step {first.step}, and a tensor in {other}",
                f"see whether {name} uses {'it' if len(names) == 1 else 'them'} in the loss: detached, under no_grad,"
                " frozen, or an expert or branch that was not taken; a None gradient is skipped, a zero one is not",
                (f"None at {count_words(len(names), 'parameter')} of {len(case.cells())}",),
                steps=(first.step, first.step),
                params=tuple(names),
            )


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


def changed(case: Case) -> Iterator[Cause]:
    """What was done to gradients after they were computed, if one story gives all of them."""
    first = case.first
    assert first is not None
    found = gradients_at(case, first.step)
    if not found.names:
        return
    for explain in (_nonfinite, _clipped_values, _scaled, _accumulated, _partial):
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


def common_factor(a: Floats, b: Floats, eps: float) -> float | None:
    """The c with b = c * a within rounding at all elements; None when there is none, or c = 1."""
    known = np.isfinite(a) & np.isfinite(b)
    a, b = a[known], b[known]
    top = np.abs(a).max(initial=0.0)
    if not top or not np.abs(b).max(initial=0.0) or (np.abs(a) > 1e-6 * top).sum() < 2:
        return None
    c = float((a * b).sum() / (a * a).sum())
    if abs(c - 1) < 256 * eps:
        return None
    rms = float(np.sqrt((a * a).mean()))
    return c if close(c * a, b, scale=abs(c) * rms, eps=eps, n=256) else None


def _scaled(case: Case, step: int, found: Gradients) -> Cause | None:
    a, b = found.flat(0), found.flat(1)
    c = common_factor(a, b, found.eps)
    if c is None:
        return None
    clip = _clip(case, step, found, c)
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


def _clips(case: Case, side: int, step: int) -> list[Event]:
    return [event for event in case.between(side, step) if event.kind == "clip"]


def _coefficient(clips: Sequence[Event]) -> float | None:
    """What clips of the total norm multiplied the gradients by."""
    c = 1.0
    for event in clips:
        largest, total = _number(event, "max_norm"), _number(event, "total_norm")
        if largest is None or total is None:
            return None
        c *= min(1.0, largest / (total + 1e-6))
    return c


def _number(event: Event, name: str) -> float | None:
    value = event.data.get(name)
    return float(value) if isinstance(value, int | float) else None


def _clip(case: Case, step: int, found: Gradients, c: float) -> Cause | None:
    """Whether the common factor is that of a clip, on either side, or of a clip at the wrong place."""
    clips = [_clips(case, side, step) for side in (0, 1)]
    coefficients = [_coefficient(events) for events in clips]
    orders = [_order(case.between(side, step)) for side in (0, 1)]
    evidence = [f"the gradients of {{B}} are {figure(c)} times {{A}}'s at step {step}"]
    for side, name in ((0, "{A}"), (1, "{B}")):
        for event in clips[side]:
            total = figure(_number(event, "total_norm") or 0.0)
            evidence.append(f"{name} clips to {event.data.get('max_norm')} at a total norm of {total}")
    if orders[0] != orders[1] and "clip before unscale" in orders:
        side = orders.index("clip before unscale")
        name, other = ("{A}", "{B}")[side], ("{B}", "{A}")[side]
        return Cause(
            "grad-clip",
            f"{name} clips the gradients before they are unscaled, so that their norm counts the loss scale; {other}"
            " clips after",
            f"in {name} call scaler.unscale_(optimizer) before clip_grad_norm_",
            tuple([*evidence, f"order of events at step {step}: {orders[0]} in {{A}}, {orders[1]} in {{B}}"]),
            steps=(step, max(case.steps)),
        )
    if clips[0] or clips[1]:
        one, other_c = coefficients
        if one is not None and other_c is not None and one and abs(other_c / one - c) < 1e-3 * abs(c):
            return Cause(
                "grad-clip", _clip_words(clips), _clip_fix(clips), tuple(evidence), steps=(step, max(case.steps))
            )
    constant = _constant_norm(case, step)
    if constant is not None:
        side, norm, n = constant
        name, other = ("{A}", "{B}")[side], ("{B}", "{A}")[side]
        return Cause(
            "grad-clip",
            f"{name} clips its gradients to a total norm of {figure(norm)}; {other} does not",
            f"clip in both to max_norm={figure(norm)}, or in neither",
            tuple([*evidence, f"the total norm of {name} is {figure(norm)} at {count_words(n, 'step')}"]),
            steps=(step, max(case.steps)),
        )
    return None


def _order(events: Sequence[Event]) -> str:
    kinds = [event.kind for event in events if event.kind in ("clip", "unscale")]
    if "clip" not in kinds:
        return "no clip"
    if "unscale" not in kinds:
        return "clip alone"
    return "clip before unscale" if kinds.index("clip") < kinds.index("unscale") else "clip after unscale"


def _clip_words(clips: Sequence[Sequence[Event]]) -> str:
    if not clips[0] or not clips[1]:
        has, lacks = ("{B}", "{A}") if clips[1] else ("{A}", "{B}")
        event = (clips[1] or clips[0])[0]
        return (
            f"{has} clips the gradients to a total norm of {event.data.get('max_norm')}; no clip of {lacks} acts here"
        )
    a, b = (events[-1].data.get("max_norm") for events in clips)
    if a != b:
        return f"{{B}} clips the gradients to a total norm of {b}, {{A}} to {a}"
    return "the two clip to the same norm, but count other gradients into the total norm"


def _clip_fix(clips: Sequence[Sequence[Event]]) -> str:
    if not clips[0]:
        return "drop the clip in {B}, or clip in both"
    event = clips[0][-1]
    if not clips[1]:
        return f"in {{B}} call clip_grad_norm_(parameters, {event.data.get('max_norm')}) between backward and step"
    if event.data.get("max_norm") != clips[1][-1].data.get("max_norm"):
        return f"in {{B}} clip to max_norm={event.data.get('max_norm')}"
    return "in {B} clip all parameters at once, as {A} does"


def _constant_norm(case: Case, step: int) -> tuple[int, float, int] | None:
    """A side whose total norm is one constant at three steps or more from `step` on, while the other's is not."""
    later = [s for s in case.steps if s >= step][:8]
    norms = []
    for s in later:
        found = gradients_at(case, s)
        norms.append((found.norm(0), found.norm(1)))
    for side in (1, 0):
        top = max((pair[side] for pair in norms), default=0.0)
        at_top = [pair for pair in norms if top and abs(pair[side] - top) < 1e-4 * top]
        others = [pair[1 - side] for pair in at_top]
        if len(at_top) >= 3 and max(others) - min(others) > 1e-3 * max(others):
            return side, top, len(at_top)
    return None


def _clipped_values(case: Case, step: int, found: Gradients) -> Cause | None:
    """Elementwise clipping: one side is the other's with its elements bounded."""
    for side, name in ((1, "{B}"), (0, "{A}")):
        other = ("{B}", "{A}")[side]
        own, theirs = found.flat(side), found.flat(1 - side)
        bound = max((max(abs(r.low), abs(r.high)) for r in (found.a, found.b)[side]), default=0.0)
        if not bound or not np.isfinite(bound) or np.abs(theirs).max(initial=0.0) <= bound * (1 + 1e-6):
            continue
        at_bound = int((np.abs(own) >= bound * (1 - 1e-6)).sum())
        if at_bound >= 2 and close(np.clip(theirs, -bound, bound), own, eps=found.eps, n=8):
            return Cause(
                "grad-clip",
                f"{name} clips every element of its gradients to {figure(bound)}; {other} does not",
                f"clip by value in both, clip_grad_value_(parameters, {figure(bound)}), or in neither",
                (f"{at_bound} sampled elements are at the bound at step {step}, all others are equal",),
                steps=(step, max(case.steps)),
            )
    return None


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
            zeroed = [e for e in case.between(side, step) if e.kind == "zero_grad"]
            seen = "a zero_grad" if zeroed else "no zero_grad"
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
    backwards = [case.column("n_backward", side).get(step, 0) for side in (0, 1)]
    lost = [_lost(case.between(side, step)) for side in (0, 1)]
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
    alike = [s for s in case.steps if s > step and _lost(case.between(side, s))[0]]
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


def _lost(events: Sequence[Event]) -> tuple[int, int]:
    """Backward passes whose gradients were zeroed before the step, and backward passes in all."""
    lost, seen, run = 0, 0, 0
    for event in events:
        if event.kind == "backward":
            run += 1
            seen += 1
        elif event.kind == "zero_grad":
            lost += run
            run = 0
    return lost, seen
