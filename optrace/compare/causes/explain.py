"""Decides: from the first divergence to its cause, and from the rest of the record to causes beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from optrace.compare.causes import anew, data, gradients, groups, lr, micro, replicas, start, state, steps, updates
from optrace.compare.causes.case import Case, figure
from optrace.compare.causes.cause import Cause
from optrace.errors import OptraceError

if TYPE_CHECKING:
    from optrace.compare.causes.rules import Verdict
    from optrace.compare.hyper import HyperDifference

MOST = 6
"""Causes that a report holds at most."""


def explain(case: Case, *, same: bool) -> tuple[Cause, ...]:
    """The causes of a comparison, the one of the first divergence first, then independent ones.

    Args:
        case: the comparison.
        same: whether its verdict is that the two are the same.
    """
    found = list(_of_same(case)) if same else list(_of_difference(case))
    return tuple(cause.named(*case.names) for cause in found[:MOST])


def _of_same(case: Case) -> Iterator[Cause]:
    yield from steps.rounding(case) if case.first_steps else steps.logged(case)


class _Rules:
    """Replays of every pair, made at most once."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self._verdicts: dict[int, Verdict] = {}

    def __call__(self, pair: int) -> Verdict:
        if pair not in self._verdicts:
            from optrace.compare.causes.rules import Verdict, judge_rules  # loads every rule

            try:
                self._verdicts[pair] = judge_rules(self.case, pair)
            except OptraceError:
                self._verdicts[pair] = Verdict((), False)
        return self._verdicts[pair]


def _of_difference(case: Case) -> Iterator[Cause]:
    rules = _Rules(case)
    primary = _primary(case, rules)
    if not primary:
        return
    yield from primary
    said = {cause.code for cause in primary}
    for cause in _beside(case, rules):
        if cause.code in said or any(_same_subject(cause, other) for other in primary):
            continue
        yield replace(cause, independent_of=tuple(sorted(said)))
        said.add(cause.code)


def _same_subject(cause: Cause, other: Cause) -> bool:
    """Whether two causes are two names of one thing: a missing option, and the rule that lacks it."""
    families = ({"group-option", "rule-decay-missing", "rule-nesterov", "rule-dampening", "rule-amsgrad"},)
    return any(cause.code in family and other.code in family for family in families) and "no such option" in (
        cause.summary + other.summary
    )


def _primary(case: Case, rules: _Rules) -> list[Cause]:
    """The cause of the first divergence, or the candidates for it."""
    first = case.first
    if first is None:
        return []
    kind, quantity = first.kind, first.quantity
    if kind == "replica":
        return list(replicas.drifted(case))
    if kind == "missing":
        return _of_missing(case, rules)
    if kind == "dtype":
        return [*updates.never_moves(case), *start.dtypes(case)]
    if kind == "shape":
        return list(start.shapes(case))
    if kind == "hyper":
        return _of_hyper(case, rules)
    base = quantity.partition(".")[0]
    at_start = first.step == int(case.timeline.steps[0]) and first.step not in case.steps[:1]
    resumed_start = case.offset(case.pair) and first.step == case.offset(case.pair)
    if base == "grad" and kind in ("none", "missing"):
        return list(start.frozen(case)) or list(gradients.missing(case))
    if base == "param_in":
        return list(start.outside(case))
    if base == "param" and (at_start or resumed_start):
        return list(start.init(case))
    if base == "state_in" or (base == "state" and (at_start or resumed_start)):
        return list(state.state_before(case))
    if base in ("grad", "grad_micro"):
        return _one(
            lambda: steps.skipped(case),
            lambda: replicas.clipped_apart(case),
            lambda: micro.partial(case),
            lambda: micro.scaled(case),
            lambda: gradients.changed(case),
            lambda: _noise(case),
            lambda: data.upstream(case),
        )
    return _of_update(case, rules)


def _one(*families: Callable[[], Iterator[Cause]]) -> list[Cause]:
    """What the first family that knows anything says."""
    for family in families:
        found = list(family())
        if found:
            return found
    return []


def _noise(case: Case) -> Iterator[Cause]:
    """Gradients whose bits differ within tolerance: kernels that do not repeat themselves."""
    if case.within_tolerance:
        yield from steps.rounding(case)


def _of_missing(case: Case, rules: _Rules) -> list[Cause]:
    first = case.first
    assert first is not None
    if first.quantity == "step":
        return list(steps.missing(case))
    if first.quantity == "optimizer" and (found := _one(lambda: anew.made_anew(case), lambda: anew.beside(case))):
        return found
    if first.quantity in ("param", "optimizer") and first.count == 0:
        return list(start.frozen(case)) or list(groups.missing_params(case))
    late = list(groups.late_params(case)) if first.step in case.steps else []
    if late:
        return late
    if first.quantity.startswith("state"):
        return list(state.state_before(case)) if first.step not in case.steps else _late_state(case, rules)
    if first.quantity == "grad":
        return list(start.frozen(case)) or list(gradients.missing(case))
    return list(groups.missing_params(case))


def _late_state(case: Case, rules: _Rules) -> list[Cause]:
    """State that one side lacks after a step: it was lost before it, or the rule keeps none."""
    return list(state.state_before(case)) or _of_update(case, rules)


def _of_hyper(case: Case, rules: _Rules) -> list[Cause]:
    first = case.first
    assert first is not None
    key = first.quantity.partition(".")[2]
    moved = list(groups.membership(case))
    lacking = [found for found in groups.lacking(case) if found.key == key]
    if lacking:
        return _of_lacking(case, rules, lacking[0])
    in_moved = any(
        case.pair == pair and first.group == link[0]
        for pair in range(len(case.matching.pairs))
        for link in groups.moved_links(case, pair)
    )
    found = moved if moved and in_moved else []
    if key in groups.LR_NAMES or groups.cycled(case, key):
        made_up = _made_up(case, rules)
        if made_up:
            return made_up
        skipped = [] if found else list(steps.skipped(case))
        if skipped and lr.shifted_by_skips(case):
            return skipped
        return found or _claimed_first(list(lr.learning_rates(case))) or list(groups.options(case))
    causes = list(groups.options(case))
    named = [cause for cause in causes if key.partition(".")[0] in cause.summary.partition(" is ")[0]]
    return found or named or causes


def _of_lacking(case: Case, rules: _Rules, found: HyperDifference) -> list[Cause]:
    """An option that one side does not have: what the rule does instead, where replays say it; else candidates."""
    verdict = rules(case.pair)
    if verdict.causes:
        return list(verdict.causes)
    option = groups.lacking_option(found)
    if verdict.unlike is not None:
        return [replace(verdict.unlike, evidence=(*verdict.unlike.evidence, option.summary))]
    return [option]


def _made_up(case: Case, rules: _Rules) -> list[Cause]:
    """The one cause of another lr that makes up for another form of momentum."""
    factor = lr.constant_factor(case, case.pair) if _may_differ_in_rule(case, case.pair) else None
    verdict = rules(case.pair) if factor is not None else None
    if factor is None or verdict is None or verdict.lr_factor is None or abs(factor / verdict.lr_factor - 1) > 1e-9:
        return []
    (cause,) = verdict.causes
    updates = "the updates of all steps agree" if "update" not in case.first_steps else "and yet the updates differ"
    return [
        replace(
            cause,
            summary=f"{cause.summary}; the lr of {{B}} is {figure(factor)} times {{A}}'s, which makes up for it",
            fix=cause.fix.replace(
                "(1 - momentum)", f"(1 - momentum) and divide lr by {figure(max(factor, 1 / factor))}"
            ),
            evidence=(*cause.evidence, updates),
        )
    ]


def _claimed_first(causes: Sequence[Cause]) -> list[Cause]:
    return sorted(causes, key=lambda cause: -cause.score)


def _of_update(case: Case, rules: _Rules) -> list[Cause]:
    """Equal inputs, another result: the rule, or an update that was not made."""
    from optrace.compare.causes.rules import unknown

    first = case.first
    assert first is not None
    found = list(updates.unmoved(case))
    if found and found[0].code != "update-skipped":
        return found
    verdict = rules(case.pair)
    if verdict.causes:
        return list(verdict.causes)
    if found:
        return found
    counted = list(state.counter_after(case))
    if counted:
        return counted
    if verdict.same_rule and (
        (not case.exact_decides and case.inputs_apart()) or (case.within_tolerance and not case.same_code)
    ):
        return list(steps.rounding(case, (verdict.rule_a, verdict.n_steps)))
    return [unknown(case, case.pair, verdict)]


def _beside(case: Case, rules: _Rules) -> Iterator[Cause]:
    """Causes that do not follow from the numbers that parted first: settings, groups, dtypes, batches, rules."""
    yield from replicas.drifted(case)
    yield from groups.missing_params(case)
    yield from start.dtypes(case)
    yield from groups.membership(case)
    skips = case.first is not None and any(True for _ in steps.skipped(case))
    yield from () if skips or _made_up(case, rules) else (c for c in lr.learning_rates(case) if c.claimed)
    yield from groups.options(case)
    if case.first is not None and not skips and not case.first.quantity.startswith("grad"):
        yield from (cause for cause in data.batches_apart(case) if cause.claimed)
    for pair in range(len(case.matching.pairs)):
        if _may_differ_in_rule(case, pair):
            verdict = rules(pair)
            yield from (cause for cause in verdict.causes if cause.claimed)
            if not verdict.causes and verdict.unlike is not None:
                yield verdict.unlike


def _may_differ_in_rule(case: Case, pair: int) -> bool:
    """Whether the two optimizers are not of one and the same code."""
    one, other = case.entry(0, pair), case.entry(1, pair)
    return not one or any(one.get(key) != other.get(key) for key in ("module", "class", "source"))
