"""Clips at another place: after each backward instead of the last, before any, or of one part at a time."""

from __future__ import annotations

from collections.abc import Sequence

from optrace.compare.causes.case import Case, Row, few, figure
from optrace.compare.causes.cause import Cause
from optrace.compare.causes.events import Event
from optrace.compare.causes.gradient_rows import Gradients, common_factor
from optrace.compare.words import count_words

_CLOSE = 1e-4


def clipped_between(case: Case, step: int, found: Gradients) -> Cause | None:
    """Clips that act between the backward passes of one step, where the other side clips after the last."""
    if any(len(dict(source.trace.optimizers)) > 1 for source in case.sources):
        return None  # a clip and a backward are no optimizer's own
    passes = [[e for e in case.between(side, step) if e.kind in ("backward", "clip")] for side in (0, 1)]
    n_backward = [sum(event.kind == "backward" for event in events) for events in passes]
    if n_backward[0] != n_backward[1] or n_backward[0] < 2 or not _like_forward(case, step):
        return None
    early = [[clip for clip in _early(events) if (coefficient(clip) or 1.0) < 1.0] for events in passes]
    late = [bool(events) and events[-1].kind == "clip" and not _early(events) for events in passes]
    for side, name in ((1, "{B}"), (0, "{A}")):
        if not early[side] or not late[1 - side]:
            continue
        other, clips = ("{B}", "{A}")[side], [e for e in passes[side] if e.kind == "clip"]
        totals = ", ".join(figure(number(clip, "total_norm") or 0.0) for clip in clips[:4])
        fix = (
            "in {B} clip once, after the last backward of a step"
            if side
            else "clip once in both, after the last backward of a step"
        )
        return Cause(
            "grad-clip",
            f"{name} clips {count_words(len(clips), 'time')} among the {n_backward[side]} backward passes of step"
            f" {step}, so that what adds up is cut again and again; {other} clips after the last",
            fix,
            (
                f"{name} clips to {clips[0].data.get('max_norm')} at total norms of {totals}"
                + (", ..." if len(clips) > 4 else ""),
                "as many backward passes and the same loss on both sides",
            ),
            steps=(step, max(case.steps)),
        )
    return None


def clipped_in_parts(case: Case, step: int, found: Gradients) -> Cause | None:
    """Gradients of which each part is scaled by a clip of its own, where the other side clips all at once."""
    clips = [[e for e in case.between(side, step) if e.kind == "clip"] for side in (0, 1)]
    for side, name in ((1, "{B}"), (0, "{A}")):
        other = ("{B}", "{A}")[side]
        own = [c for event in clips[side] if (c := coefficient(event)) is not None]
        theirs = [c for event in clips[1 - side] if (c := coefficient(event)) is not None]
        if len(own) < 2 or len(own) != len(clips[side]) or len(theirs) != len(clips[1 - side]) or len(theirs) > 1:
            continue
        whole = theirs[0] if theirs else 1.0
        rows = (found.a, found.b)
        pairs = zip(rows[1 - side], rows[side], strict=True)
        used = [_clip_of(row, mine, found.eps, whole, own) for row, mine in pairs]
        known = [index for index in used if index is not None]
        if len(known) < len(found.names) or len({own[index] for index in known}) < 2:
            continue
        most = figure(number(clips[side][0], "max_norm") or 0.0)
        how = f"clips all at once to {figure(number(clips[1 - side][0], 'max_norm') or 0.0)}" if theirs else "does not"
        parts = [few([n for n, index in zip(found.names, used, strict=True) if index == k], 1) for k in set(known)]
        return Cause(
            "grad-clip",
            f"{name} clips its parameters in {len(own)} parts, each to a norm of {most} by itself; {other} {how}",
            f"in {{B}} {_as_a(clips, side)}",
            (
                f"at step {step} each gradient of {name} is {other}'s times the factor of one of its {len(own)} clips"
                f" (of {'; '.join(parts[:3])}{'; ...' if len(parts) > 3 else ''})",
            ),
            steps=(step, max(case.steps)),
        )
    return None


def nothing_clipped(case: Case, step: int) -> tuple[str, str] | None:
    """Why a side's one clip found a total norm of zero though there are gradients, and what to do."""
    for side, name in ((1, "{B}"), (0, "{A}")):
        events = [e for e in case.between(side, step) if e.kind in ("backward", "clip")]
        clips = [event for event in events if event.kind == "clip"]
        if len(clips) != 1 or number(clips[0], "total_norm") != 0.0 or all(e.kind == "clip" for e in events):
            continue
        most = clips[0].data.get("max_norm")
        if events[0].kind == "clip":
            why = f"{name} clips to {most} before backward, when there are no gradients yet"
            return why, f"in {name} clip after backward and before step"
        why = f"{name} clips to {most} after backward and finds a total norm of 0: it was given no parameters"
        return why, (
            f"in {name} give clip_grad_norm_ the model's parameters anew: an iterator is empty once the optimizer has"
            " gone through it"
        )
    return None


def coefficient(event: Event) -> float | None:
    """What one clip by the total norm multiplied the gradients by; None for a clip of another kind."""
    largest, total = number(event, "max_norm"), number(event, "total_norm")
    return None if largest is None or total is None else min(1.0, largest / (total + 1e-6))


def number(event: Event, name: str) -> float | None:
    """A number of an event's data."""
    value = event.data.get(name)
    return float(value) if isinstance(value, int | float) else None


def _early(events: Sequence[Event]) -> list[Event]:
    """Clips between two backward passes."""
    places = [i for i, event in enumerate(events) if event.kind == "backward"]
    return [e for i, e in enumerate(events) if e.kind == "clip" and places and places[0] < i < places[-1]]


def _like_forward(case: Case, step: int) -> bool:
    """Whether the loss is known to be the same on both sides, and the batches are not known to differ."""
    losses = [case.column("loss", side).get(step) for side in (0, 1)]
    batches = [case.column("batch", side).get(step) for side in (0, 1)]
    return losses[0] is not None and losses[0] == losses[1] and (None in batches or batches[0] == batches[1])


def _clip_of(other: Row, own: Row, eps: float, whole: float, factors: Sequence[float]) -> int | None:
    """Number of the clip whose factor makes a gradient of the other side's, which a clip multiplied by `whole`."""
    factor = 1.0 if own.fingerprint == other.fingerprint else common_factor(other.used, own.used, eps)
    if factor is None:
        return None
    near = [abs(c - factor * whole) for c in factors]
    best = min(range(len(factors)), key=near.__getitem__)
    return best if near[best] <= _CLOSE * factors[best] else None


def _as_a(clips: Sequence[Sequence[Event]], side: int) -> str:
    if not clips[0]:
        return "drop the clips, or clip in both"
    most = figure(number(clips[0][0], "max_norm") or 0.0)
    if side:
        return f"call clip_grad_norm_(parameters, {most}) once for all"
    return f"clip in parts as {{A}} does, each to {most}, or all at once in both"
