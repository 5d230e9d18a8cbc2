"""Weight decay that is multiplied by another part of the schedule than the present lr."""

from __future__ import annotations

from collections.abc import Iterator

from optrace.replayer.engine import Groups
from optrace.replayer.known import DECAY_LR, Rule, Variant

_DECOUPLED = ("adamw", "lion")


def decays_by_schedule(rule: Rule, options: Groups) -> Iterator[tuple[Variant, Groups]]:
    """Variants that decay by the first lr, by the schedule's share alone, or by the schedule twice, where lr moves.

    The first lr is what the scheduler keeps as `initial_lr`, or else that of the first recorded step.
    """
    first = first_rates(options)
    rates = {float(own["lr"]) / first[group] for groups in options.values() for group, own in groups.items()}
    if not first or all(abs(rate - 1) < 1e-9 for rate in rates):
        return
    lr0 = "lr0 = " + " or ".join(dict.fromkeys(f"{first[group]:.10g}" for group in sorted(first)))
    decoupled = rule.name in _DECOUPLED or any(
        own.get("decoupled_weight_decay") for groups in options.values() for own in groups.values()
    )
    if decoupled:
        shrinks = "shrinks the parameter by {weight_decay} times the present lr"
        for name, does, powers in (
            ("decay-first-lr", f"multiplies weight decay by the first lr at all steps, {lr0}", (0, 1)),
            (
                "decay-schedule-alone",
                f"multiplies weight decay by the schedule alone, lr/lr0 and not lr, with {lr0}",
                (1, -1),
            ),
            ("decay-schedule-twice", f"multiplies weight decay by the schedule twice, lr*(lr/lr0) with {lr0}", (2, -1)),
        ):
            of_lr, of_first = powers
            changed: Groups = {
                step: {
                    group: {**own, DECAY_LR: float(own["lr"]) ** of_lr * first[group] ** of_first}
                    for group, own in groups.items()
                }
                for step, groups in options.items()
            }
            yield _variant(rule, name, does, shrinks, "multiply weight decay by the present lr, once"), changed
        return
    scaled: Groups = {
        step: {
            group: {**own, "weight_decay": own.get("weight_decay", 0.0) * float(own["lr"]) / first[group]}
            for group, own in groups.items()
        }
        for step, groups in options.items()
    }
    does = f"lets weight decay follow the schedule too, g = g + {{weight_decay}}*(lr/lr0)*p with {lr0}"
    adds = "adds it to the gradient as it is, g = g + {weight_decay}*p"
    yield _variant(rule, "decay-schedule-twice", does, adds, "add weight_decay*p to the gradient"), scaled


def first_rates(options: Groups) -> dict[int, float]:
    """The lr that each group's schedule starts from; empty where one of them is not known or zero."""
    found: dict[int, float] = {}
    for step in sorted(options):
        for group, own in options[step].items():
            found.setdefault(group, float(own.get("initial_lr") or own.get("lr") or 0.0))
    return found if all(found.values()) else {}


def _variant(rule: Rule, name: str, does: str, torch_does: str, mend: str) -> Variant:
    return Variant(rule.name, name, "rule-decay-coupling", does, torch_does, mend, {})
