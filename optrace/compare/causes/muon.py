"""Differences between two Muons: momentum, direction, iteration, lr for a shape, weight decay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from optrace.compare.causes.case import Case, figure
from optrace.compare.causes.cause import Cause
from optrace.compare.orthogonal import differences
from optrace.replayer.spectral import FITS, Form, Iteration

WHOLE = (
    "Muon's iteration in bfloat16 makes much of rounding, which samples cannot tell from another rule: record both with"
    " --values full"
)
_WAYS = {
    "nesterov": "looks ahead (nesterov)",
    "plain": "makes the momentum itself orthogonal (no nesterov)",
    "added": "adds the gradient to momentum times an average",
    "less": "averages the gradient with a momentum that is a sum",
}
_SCALES = {
    "original": "sqrt(max(1, rows/columns))",
    "match_rms_adamw": "0.2*sqrt(max(rows, columns))",
    "none": "1, whatever the shape",
    "columns": "sqrt(max(1, columns/rows))",
    "unrooted": "max(1, rows/columns)",
    "largest": "sqrt(max(rows, columns))",
}


def muons_apart(case: Case, pair: int) -> tuple[tuple[Cause, ...], str] | None:
    """What the two sides of a pair do differently, and what is known where that is nothing; None for no Muon."""
    if not case.orthogonal.concerns(pair):
        return None
    forms = case.orthogonal.forms(pair)
    if forms is None:
        settings = [source.trace.info.get("settings") or {} for source in case.sources]
        return ((), WHOLE) if any(own.get("values") != "full" for own in settings) else None
    mistaken = 0 if case.is_torchs(1, pair) and not case.is_torchs(0, pair) else 1
    wrong, right = forms[mistaken], forms[1 - mistaken]
    if not right.ways or not wrong.ways:
        who = case.subject(1 - mistaken if not right.ways else mistaken, pair)
        error = figure(round(min(form.error for form in forms if not form.ways), 3))
        return (), (
            f"{who} is no Muon that is known: in the singular directions of its momentum the nearest form is off by"
            f" {error}, where bfloat16 leaves {FITS:g}"
        )
    causes = [
        replace(cause, evidence=(*cause.evidence, _evidence(case, pair, mistaken, wrong, right)))
        for cause in _causes(case, pair, mistaken, wrong, right)
    ]
    first = tuple(causes[:1])
    return first + tuple(replace(cause, independent_of=(first[0].code,)) for cause in causes[1:]), ""


def _causes(case: Case, pair: int, mistaken: int, wrong: Form, right: Form) -> Iterator[Cause]:
    side = ("{A}", "{B}")[mistaken]
    name, other = case.subject(mistaken, pair), case.subject(1 - mistaken, pair)
    apart = differences(right, wrong)
    if "share" in apart:
        form = {"average": "averages the gradients, buf = mu*buf + (1 - mu)*g", "sum": "sums them, buf = mu*buf + g"}
        alike = (
            "; the updates are alike all the same, for only the direction of the sum counts" if len(apart) == 1 else ""
        )
        yield Cause(
            "rule-momentum-form",
            f"{name} {form[wrong.share or 'sum']}; {other} {form[right.share or 'average']}{alike}",
            f"in {side} keep the momentum as {other} does",
        )
    if "way" in apart:
        yield from _of_way(side, name, other, wrong, right)
    if "scale" in apart:
        yield _of_scale(side, name, other, wrong, right)
    if "decay" in apart:
        yield _of_decay(side, name, other, wrong)


def _of_way(side: str, name: str, other: str, wrong: Form, right: Form) -> Iterator[Cause]:
    (does, makes), (does_right, makes_right) = (min(form.meant()) for form in (wrong, right))
    directions, iterations = ({way[i] for way in wrong.meant()} for i in (0, 1))
    if not directions & {direction for direction, _ in right.meant()}:
        yield Cause(
            "rule-nesterov",
            f"{name} {_WAYS[does]}; {other} {_WAYS[does_right]}",
            f"in {side} make orthogonal what {other} does: {_formula(does_right)}",
        )
    if not iterations & {iteration for _, iteration in right.meant()}:
        yield Cause(
            "group-option",
            f"{name} iterates with {_words(makes)}; {other} with {_words(makes_right)}",
            f"in {side} iterate with {_words(makes_right)}",
        )


def _formula(direction: str) -> str:
    return {"nesterov": "g + mu*(buf - g)", "plain": "buf"}.get(direction, "g + mu*buf")


def _words(iteration: Iteration) -> str:
    a, b, c = iteration.coefficients
    return f"ns_steps={iteration.steps} and coefficients ({a:g}, {b:g}, {c:g})"


def _of_scale(side: str, name: str, other: str, wrong: Form, right: Form) -> Cause:
    ratios = [wrong.scales[shape] / right.scales[shape] for shape in wrong.scales if shape in right.scales]
    words = []
    for form in (wrong, right):
        named = form.named_scales()
        shown = ", ".join(f"{figure(round(x, 3))} for {r}x{c}" for (r, c), x in list(form.scales.items())[:3])
        words.append(_SCALES[named[0]] if len(named) == 1 else shown)
    if max(ratios) - min(ratios) <= 0.04 * max(ratios) and len(ratios) > 1:
        times = f" ({figure(round(ratios[0], 3))} times at every shape)"
    else:
        times = ""
    return Cause(
        "lr-value",
        f"{name} multiplies lr by {words[0]}; {other} by {words[1]}{times}",
        f"in {side} multiply lr by {words[1]} (adjust_lr_fn)",
    )


def _of_decay(side: str, name: str, other: str, wrong: Form) -> Cause:
    if wrong.decays <= {"missing"}:
        return Cause(
            "rule-decay-missing",
            f"{name} leaves out weight decay; {other} shrinks the parameter, p = p*(1 - lr*weight_decay)",
            f"in {side} multiply the parameter by 1 - lr*weight_decay before the update",
        )
    does = "by the lr that is adjusted to the shape" if "scaled" in wrong.decays else "by another factor"
    return Cause(
        "rule-decay-coupling",
        f"{name} decays weights {does}; {other} by the lr as it is, p = p*(1 - lr*weight_decay)",
        f"in {side} multiply the parameter by 1 - lr*weight_decay, with the lr of the group",
    )


def _evidence(case: Case, pair: int, mistaken: int, wrong: Form, right: Form) -> str:
    return (
        "in the singular directions of the momentum that rounding hardly moves, the updates of"
        f" {case.subject(mistaken, pair)} are so to {figure(round(wrong.error, 3))}, those of"
        f" {case.subject(1 - mistaken, pair)} to {figure(round(right.error, 3))}"
        f" ({wrong.n_matrices} matrices were looked at; up to {FITS:g} is bfloat16's)"
    )
