"""Gradients that were clipped on one side, or otherwise: by norm, by value, before they were unscaled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from optrace.compare.causes.case import Case, close, figure
from optrace.compare.causes.cause import Cause
from optrace.compare.causes.clip_places import coefficient, nothing_clipped, number
from optrace.compare.causes.events import Event
from optrace.compare.causes.gradient_rows import Floats, Gradients, gradients_at
from optrace.compare.words import count_words


def clipped(case: Case, step: int, found: Gradients, c: float) -> Cause | None:
    """Whether the common factor is that of a clip, on either side, or of a clip at the wrong place."""
    clips = [_clips(case, side, step) for side in (0, 1)]
    coefficients = [_coefficient(events) for events in clips]
    orders = [_order(case.kinds_between(side, step)) for side in (0, 1)]
    evidence = [f"the gradients of {{B}} are {figure(c)} times {{A}}'s at step {step}"]
    for side, name in ((0, "{A}"), (1, "{B}")):
        for event in clips[side]:
            total = figure(number(event, "total_norm") or 0.0)
            evidence.append(f"{name} clips to {event.data.get('max_norm')} at a total norm of {total}")
    least = _without_1e_6(clips, c)
    if least is not None:
        name, other = ("{A}", "{B}")[least], ("{B}", "{A}")[least]
        return Cause(
            "grad-clip",
            f"{other} clips as {name} does, and does not add 1e-6 to the total norm as clip_grad_norm_ does",
            "use clip_grad_norm_ in both, or coefficient = max_norm / (total_norm + 1e-6)",
            tuple(evidence),
            steps=(step, max(case.steps)),
        )
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
            nothing = nothing_clipped(case, step)
            counted = _counted_otherwise(clips, found) if _like_norms(clips) and nothing is None else None
            words, fix = counted or nothing or (_clip_words(clips), _clip_fix(clips))
            return Cause("grad-clip", words, fix, tuple(evidence), steps=(step, max(case.steps)))
    constant = _constant_norm(case, step)
    if constant is not None:
        side, norm, n = constant
        name, other = ("{A}", "{B}")[side], ("{B}", "{A}")[side]
        return Cause(
            "grad-clip",
            f"{name} clips its gradients to a total norm of {figure(norm)}; {other} does not, or otherwise",
            f"clip in both to max_norm={figure(norm)}, or in neither",
            tuple(
                [
                    *evidence,
                    f"the total norm of {name} is {figure(norm)} at {count_words(n, 'step')}, that of {other} varies",
                ]
            ),
            steps=(step, max(case.steps)),
        )
    return None


def clipped_apart(case: Case, step: int, found: Gradients) -> Cause | None:
    """Gradients that are one before the clips of both sides, and not behind them: by norm, by value, one by one."""
    events = [_clips(case, side, step) for side in (0, 1)]
    for side, name in ((1, "{B}"), (0, "{A}")):
        own, other = (found.a, found.b)[side], ("{B}", "{A}")[side]
        coefficient = _coefficient(events[1 - side])
        if not coefficient or not events[side]:
            continue
        whole = [row.used / coefficient for row in (found.a, found.b)[1 - side]]
        norms = [row.l2 / coefficient for row in (found.a, found.b)[1 - side]]
        for how, fix, made in _other_clips(events[side], whole, norms):
            pairs = zip(made, own, strict=True)
            if all(close(x, row.used, scale=row.l2 / row.numel**0.5, eps=found.eps) for x, row in pairs):
                return Cause(
                    "grad-clip",
                    f"{name} clips {how}; {other} clips {_kind_words(events[1 - side])}",
                    f"in {{B}} {fix if side == 0 else _as_other(events[0])}",
                    (
                        f"{count_words(len(own), 'gradient')} of {other} at step {step}, divided by its clip's"
                        f" {figure(coefficient)} and clipped as {name} does, are those of {name}",
                    ),
                    steps=(step, max(case.steps)),
                )
    return None


def _other_clips(
    events: Sequence[Event], whole: Sequence[Floats], norms: Sequence[float]
) -> Iterator[tuple[str, str, list[Floats]]]:
    """What gradients become under a side's clips: in words, how to do so, and the numbers."""
    last = events[-1]
    bound, most = number(last, "clip_value"), number(last, "max_norm")
    if bound is not None:
        clipped = [np.clip(x, -bound, bound) for x in whole]
        yield f"every element to {figure(bound)}", f"call clip_grad_value_(parameters, {figure(bound)})", clipped
    if most is not None and len(events) > 1:
        each = [x * min(1.0, most / (norm + 1e-6)) for x, norm in zip(whole, norms, strict=True)]
        yield f"each gradient by itself to a norm of {figure(most)}", "clip each parameter by itself", each


def _kind_words(events: Sequence[Event]) -> str:
    most = number(events[-1], "max_norm") if events else None
    return f"all at once to a total norm of {figure(most)}" if most is not None else "nothing"


def _as_other(events: Sequence[Event]) -> str:
    most = number(events[-1], "max_norm") if events else None
    return f"call clip_grad_norm_(parameters, {figure(most)}) once for all" if most is not None else "drop the clip"


def clipped_values(case: Case, step: int, found: Gradients) -> Cause | None:
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


def _clips(case: Case, side: int, step: int) -> list[Event]:
    return [event for event in case.between(side, step) if event.kind == "clip"]


def _coefficient(clips: Sequence[Event]) -> float | None:
    """What clips of the total norm multiplied the gradients by."""
    c = 1.0
    for event in clips:
        own = coefficient(event)
        if own is None:
            return None
        c *= own
    return c


def _like_norms(clips: Sequence[Sequence[Event]]) -> bool:
    """Whether both sides clip once and to one norm."""
    return [len(events) for events in clips] == [1, 1] and number(clips[0][0], "max_norm") == number(
        clips[1][0], "max_norm"
    )


def _counted_otherwise(clips: Sequence[Sequence[Event]], found: Gradients) -> tuple[str, str] | None:
    """What a side counts into the total norm that is not the 2-norm of all gradients: cause and fix in words."""
    for side, name in ((1, "{B}"), (0, "{A}")):
        total, coefficient = number(clips[side][0], "total_norm"), _coefficient(clips[side])
        if not total or not coefficient:
            continue
        rows = dict(zip(found.names, (found.a, found.b)[side], strict=True))
        largest = max(max(abs(row.low), abs(row.high)) for row in rows.values()) / coefficient
        most, other = figure(number(clips[side][0], "max_norm") or 0.0), ("{B}", "{A}")[side]
        as_other = "use the 2-norm, as {A} does" if side else "use norm_type=inf, as {A} does"
        if abs(total - largest) < 1e-5 * largest:
            return (
                f"{name} takes the largest element for the total norm (norm_type=inf), {other} the 2-norm of all; both"
                f" clip to {most}",
                f"in {{B}} {as_other}",
            )
        for part in dict.fromkeys(name.partition(".")[0] for name in rows):
            own = [name for name in rows if name.partition(".")[0] == part]
            norm = sum(rows[name].l2 ** 2 for name in own) ** 0.5
            if len(own) < len(rows) and min(abs(total - norm), abs(total - norm / coefficient)) < 1e-5 * total:
                fix = "clip all parameters at once" if side else f"clip the parameters of {part} alone"
                return (
                    f"{name} counts the gradients of {part} alone into the total norm, {other} counts others too; both"
                    f" clip to {most}",
                    f"in {{B}} {fix}, as {{A}} does",
                )
    return None


def _without_1e_6(clips: Sequence[Sequence[Event]], c: float) -> int | None:
    """The side whose clip divided by total norm + 1e-6 where the other's divided by the total norm alone."""
    for side, factor in ((0, c), (1, 1 / c)):
        total = number(clips[side][0], "total_norm") if len(clips[side]) == 1 else None
        if total and _coefficient(clips[side]) != 1.0 and abs((factor - 1) - 1e-6 / total) < 0.1 * 1e-6 / total:
            return side
    return None


def _order(kinds: Sequence[str]) -> str:
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
