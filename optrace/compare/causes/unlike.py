"""A rule that one side follows and the other does not, whatever its options: told beside options that differ too."""

from __future__ import annotations

from collections.abc import Sequence

from optrace.compare.causes.case import Case, figure
from optrace.compare.causes.cause import Cause
from optrace.compare.causes.replays import STEP_EPS, Recorded, Trial
from optrace.compare.words import count_words
from optrace.replayer.known import Rule
from optrace.replayer.options import unlike

BEYOND = 4 * STEP_EPS
"""Eps from which on a miss is none of another rounding."""
SHARE = 1e-3
"""Share of the rule's own movement by which a parameter must miss it."""


def not_followed(
    case: Case, pair: int, record: Recorded, rule: Rule, trials: Sequence[Trial], right_steps: int
) -> Cause | None:
    """The cause that `record`'s side does not follow `rule`, which the other side follows at `right_steps` steps.

    Args:
        case: the comparison.
        pair: number of the matched pair of optimizers.
        record: of the side that does not follow the rule.
        rule: the rule.
        trials: of the rule on that record, all of which failed.
        right_steps: steps of the other side that the rule gives.

    Returns:
        None where the miss may be rounding, or is seen in the state alone, which may be kept in another form.
    """
    wrong, other = case.subject(record.side, pair), case.subject(1 - record.side, pair)
    kind = case.class_name(record.side, pair)
    named = f"{wrong}'s {kind}" if wrong.startswith("{") else wrong
    options = [own for groups in record.groups_for(rule.name).values() for own in groups.values()]
    for own in options:
        for name in unlike(own, rule.defaults):
            return Cause(
                "rule-unknown",
                f"{named} follows another rule than {rule.name}, which {other} follows: it has {name}={own[name]!r}",
                "use one rule; equal options alone do not make the two agree",
                (f"{rule.name} takes {name} like {rule.defaults[name]!r}",),
            )
    for trial in sorted(trials, key=lambda trial: not trial.carry):
        missed = record.worst_miss(trial, rule, record.groups_for(rule.name))
        if missed is None or missed.eps <= BEYOND:
            continue
        made, meant = missed.recorded - missed.before, missed.expected - missed.before
        if abs(made - meant) <= SHARE * abs(meant):
            continue
        shift = case.offset(pair) if record.side else 0
        step = missed.step + shift
        return Cause(
            "rule-unknown",
            f"{named} does not follow {rule.name} even with its own options, as {other} does: at step {step} an element"
            f" of {missed.param} moves by {figure(made)}, where {rule.name} moves it by {figure(meant)}",
            "use one rule; equal options alone do not make the two agree",
            (
                f"replayed from its own inputs and with its own options {other} follows {rule.name} at all"
                f" {count_words(right_steps, 'step')}, and {named} leaves it at step {step}; no known variant of"
                f" {rule.name} gives it either",
            ),
            steps=(step, max(case.steps, default=step)),
        )
    return None
