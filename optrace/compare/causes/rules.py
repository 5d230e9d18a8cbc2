"""Differences of arithmetic: which rule each side follows, and which single mistake turns one into the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from optrace.compare.causes.case import Case, figure
from optrace.compare.causes.cause import Cause
from optrace.compare.causes.counted import shared_counters
from optrace.compare.causes.fitted import fitted_variants
from optrace.compare.causes.muon import WHOLE, muons_apart
from optrace.compare.causes.pairs import pairs
from optrace.compare.causes.replays import Recorded, Trial
from optrace.compare.causes.unlike import not_followed
from optrace.compare.words import count_words
from optrace.replayer.engine import Groups
from optrace.replayer.known import RULES, VARIANTS, Rule, Variant


@dataclass(frozen=True)
class Followed:
    """The rule that a side follows."""

    rule: Rule
    trial: Trial


@dataclass(frozen=True)
class Verdict:
    """What replays say about a pair of optimizers."""

    causes: tuple[Cause, ...]
    same_rule: bool
    """Both sides follow one rule at all judged steps."""
    rule_a: str = ""
    """The rule that A follows; empty where it follows none of ours."""
    n_steps: int = 0
    """Steps of A that were judged by it."""
    unlike: Cause | None = None
    """That one side does not follow the rule of the other, where nothing says what it does instead."""
    known: str = ""
    """What is known beside, of a rule that replays of samples cannot judge."""
    lr_factor: float | None = None
    """What B's lr must be of A's for their rules to make the same updates after all."""


def judge_rules(case: Case, pair: int) -> Verdict:
    """Replay both sides of a pair and explain a difference of rules, if there is one."""
    muon = muons_apart(case, pair)
    if muon is not None:
        return Verdict(muon[0], False, known=muon[1])
    a, b = Recorded(case, 0, pair), Recorded(case, 1, pair)
    names = list(dict.fromkeys([*_guesses(case, 0, pair), *_guesses(case, 1, pair)]))
    follows_a, follows_b = _followed(a, names), _followed(b, names)
    if follows_a is not None and follows_b is not None and follows_a.rule is follows_b.rule:
        return Verdict((), True, follows_a.rule.name, min(follows_a.trial.n_steps, follows_b.trial.n_steps))
    for record, right, mistaken in ((b, follows_a, 1), (a, follows_b, 0)):
        if right is not None:
            found = list(_variants(case, pair, record, right, mistaken))
            if found:
                factor = _made_up(record, right.rule, [variant for variant, _ in found])
                factor = 1 / factor if factor and mistaken == 0 else factor
                return Verdict(tuple(cause for _, cause in found), False, lr_factor=factor)
    if follows_a is not None and follows_b is not None:
        one, other = follows_a.rule.name, follows_b.rule.name
        words = f"{case.subject(1, pair)} follows the rule of {other}, {case.subject(0, pair)} that of {one}"
        evidence = f"replayed from its own inputs each side follows its rule at all {follows_a.trial.n_steps} steps"
        return Verdict((Cause("rule-unknown", words, f"use one rule: {one}, or {other}", (evidence,)),), False)
    unlike = None
    for record, right in ((b, follows_a), (a, follows_b)):
        if right is not None and not _plain_fits(record, right.rule):
            trials = _trials(record, right.rule.name, right.rule.step, right.rule)
            unlike = unlike or not_followed(case, pair, record, right.rule, trials, right.trial.n_steps)
    if follows_a is not None:
        return Verdict((), False, follows_a.rule.name, follows_a.trial.n_steps, unlike)
    return Verdict((), False, unlike=unlike)


def unknown(case: Case, pair: int, verdict: Verdict) -> Cause:
    """What can be said where no variant fits: where, how large, and in which direction."""
    first = case.first
    assert first is not None
    evidence = list(_ratios(case, first.step))
    if verdict.same_rule:
        evidence.append(
            f"the sampled elements of both follow {verdict.rule_a} at all {count_words(verdict.n_steps, 'step')}: what"
            " differs is less than rounding, or lies in elements that were not sampled (record with --values full)"
        )
    elif verdict.known:
        evidence.append(verdict.known)
    elif verdict.unlike is not None:
        evidence.append(verdict.unlike.summary)
    elif verdict.rule_a:
        evidence.append(
            f"{case.subject(0, pair)} follows {verdict.rule_a} at all {count_words(verdict.n_steps, 'step')};"
            f" {case.subject(1, pair)} does not, nor any known variant of it"
        )
    what = first.quantity.partition(".")[2] or first.quantity
    inputs = "inputs that are equal but for rounding" if case.inputs_apart() else "equal inputs"
    fix = "compare the two rules at this step by hand (optrace repro {A} {B} writes the numbers)"
    if verdict.known == WHOLE:
        fix = "record both runs again with --values full, and compare those"
    return Cause(
        "rule-unknown",
        f"from {inputs} {{B}} computes another {what} than {{A}} at step {first.step}, and no known variant"
        " explains it",
        fix,
        tuple(evidence),
        steps=(first.step, first.step),
        params=(first.param,) if first.param else (),
    )


def _ratios(case: Case, step: int) -> Iterator[str]:
    rows_a, rows_b = case.at(step)
    ratios = []
    for number, _ in case.cells():
        a, b = rows_a.get((number, "update")), rows_b.get((number, "update"))
        if a is not None and b is not None:
            with np.errstate(all="ignore"):
                ratio = b.used / a.used
            ratios.append(ratio[np.isfinite(ratio)])
    every = np.concatenate(ratios) if ratios else np.empty(0)
    if len(every):
        low, middle, high = np.quantile(every, [0.0, 0.5, 1.0])
        if high - low <= 1e-4 * abs(middle):
            if abs(middle - 1) > 1e-4:
                yield f"every sampled element moves {figure(float(middle))} times as far in {{B}}"
        else:
            yield (
                f"update of {{B}} over {{A}}'s, element by element: {figure(low)} to {figure(high)},"
                f" median {figure(middle)}"
            )


def _guesses(case: Case, side: int, pair: int) -> Iterator[str]:
    """Names of rules that a side may follow, likeliest first: by class name, then by its options."""
    name = case.class_name(side, pair).lower()
    elementwise = [rule for rule, found in RULES.items() if found.elementwise]
    if name in elementwise:
        yield name
    if case.is_torchs(side, pair):
        return
    inside = sorted((rule for rule in elementwise if rule in name and rule != name), key=len, reverse=True)
    yield from inside
    options: Mapping[str, Any] = next(
        (o for groups in Recorded(case, side, pair).options.values() for o in groups.values()), {}
    )
    rest = ["adamw", "adam"] if "betas" in options else ["rmsprop"] if "alpha" in options else ["sgd"]
    rest += ["adagrad"] if "lr_decay" in options else []
    rest += ["lion"] if "betas" in options and "eps" not in options else []
    yield from (rule for rule in rest if rule not in inside)


def _trials(record: Recorded, name: str, step: Any, rule: Rule) -> list[Trial]:
    """A rule or a variant of it on a record: with the recorded state where there is such, and with state of its own."""
    found = []
    keys = rule.state_keys
    needs = [key for key in keys if key not in ("step",)]
    if not needs or not record.state or record.names_for(keys) is not None:
        found.append(Trial(name, step, keys, carry=False, jumps=rule.jumps))
    if needs and record.from_its_start and not _is_torch(record):
        found.append(Trial(name, step, keys, carry=True, jumps=rule.jumps))
    return found


def _is_torch(record: Recorded) -> bool:
    return record.case.is_torchs(record.side, record.pair)


def _followed(record: Recorded, names: list[str]) -> Followed | None:
    for name in names:
        rule = RULES[name]
        trials = _trials(record, name, rule.step, rule)
        record.judge(trials, {name: record.groups_for(name)})
        fitting = [trial for trial in trials if trial.fits]
        if fitting:
            return Followed(rule, fitting[0])
    return None


def _made_up(record: Recorded, rule: Rule, found: Sequence[Variant]) -> float | None:
    """The factor on lr with which the one variant makes torch's updates: an average from zero is a share of the sum."""
    if [variant.name for variant in found] != ["average"]:
        return None
    given = {float(o["momentum"]) for groups in record.groups_for(rule.name).values() for o in groups.values()}
    return 1 / (1 - given.pop()) if len(given) == 1 else None


def _variants(
    case: Case, pair: int, record: Recorded, right: Followed, mistaken: int
) -> Iterator[tuple[Variant, Cause]]:
    """Variants that give the record of the side that does not follow the other's rule, each with its cause."""
    rule = right.rule
    known = VARIANTS.get(rule.name, ())
    if not known or _plain_fits(record, rule):
        return
    plain = record.groups_for(rule.name)
    fitting = _fitting(record, rule, [(variant, plain) for variant in known])
    if not fitting:
        fitting = _fitting(record, rule, list(fitted_variants(record, rule)))
    if not fitting:
        fitting = _counting(record, rule)
    codes = dict.fromkeys(variant.code for variant, _ in fitting)
    for code in codes:
        variant, trial = next(found for found in fitting if found[0].code == code)
        alike = len(fitting) if len(codes) == 1 else 1
        yield variant, _cause(case, pair, record, right, variant, trial, mistaken, 1.0 / len(codes), alike)
    if not fitting:
        yield from _two_at_once(case, pair, record, right, mistaken)


def _fitting(
    record: Recorded, rule: Rule, candidates: Sequence[tuple[Variant, Groups]], *, both_ways: bool = True
) -> list[tuple[Variant, Trial]]:
    """The variants that give the record, each with its trial; where some do from recorded state, those alone.

    State that is recorded is better evidence than state that is made up; without `both_ways` the latter is tried only
    where none is recorded.
    """
    trials: list[tuple[Variant, Trial]] = []
    groups: dict[str, Groups] = {}
    for variant, options in candidates:
        groups[variant.name] = options
        own = _trials(record, variant.name, variant.step, rule)
        trials += [(variant, trial) for trial in (own if both_ways else own[:1])]
    record.judge([trial for _, trial in trials], groups)
    found: dict[str, tuple[Variant, Trial]] = {}
    for variant, trial in trials:
        if trial.explains:
            found.setdefault(variant.name, (variant, trial))
    recorded = [each for each in found.values() if not each[1].carry]
    return recorded or list(found.values())


def _counting(record: Recorded, rule: Rule) -> list[tuple[Variant, Trial]]:
    """The way of counting parameters or groups instead of steps that gives the record."""
    trials = list(shared_counters(record, rule))
    record.judge([trial for _, trial in trials], {trial.name: record.groups_for(rule.name) for _, trial in trials})
    return [found for found in trials if found[1].explains][:1]


def _two_at_once(
    case: Case, pair: int, record: Recorded, right: Followed, mistaken: int
) -> Iterator[tuple[Variant, Cause]]:
    """Two causes where no single mistake gives the record, and two of one kind each do; nothing where several do."""
    plain = record.groups_for(right.rule.name)
    both = {variant.name: (parts, variant) for parts, variant in pairs(VARIANTS.get(right.rule.name, ()))}
    found = _fitting(record, right.rule, [(variant, plain) for _, variant in both.values()], both_ways=False)
    codes = {frozenset(part.code for part in both[variant.name][0]) for variant, _ in found}
    if len(codes) != 1:
        return
    variant, trial = found[0]
    one, other = both[variant.name][0]
    first = _cause(case, pair, record, right, one, trial, mistaken, 1.0, len(found), beside=other)
    second = _cause(case, pair, record, right, other, trial, mistaken, 1.0, len(found), beside=one)
    yield one, first
    yield other, replace(second, independent_of=(first.code,))


def _plain_fits(record: Recorded, rule: Rule) -> bool:
    """Whether the rule in float64 gives the record after all: then no variant of it may be blamed."""
    plain = Variant(rule.name, "plain", "rule-unknown", "", "", "", {})
    trials = _trials(record, plain.name, plain.step, rule)
    record.judge(trials, {plain.name: record.groups_for(rule.name)})
    return any(trial.fits for trial in trials)


def _cause(
    case: Case,
    pair: int,
    record: Recorded,
    right: Followed,
    variant: Variant,
    trial: Trial,
    mistaken: int,
    score: float,
    alike: int,
    beside: Variant | None = None,
) -> Cause:
    hyper = _example(record, right.rule, variant)
    does, torch_does, mend = variant.words(hyper)
    wrong, other = case.subject(mistaken, pair), case.subject(1 - mistaken, pair)
    side = ("{A}", "{B}")[mistaken]
    n = trial.n_steps
    how = "this one change" if beside is None else "two changes, and with no single one that is known"
    evidence = [
        f"replayed from its own inputs, {other} follows {right.rule.name} at all"
        f" {count_words(right.trial.n_steps, 'step')}; {wrong} does not, and follows it at all"
        f" {count_words(n, 'step')} with {how}",
    ]
    if trial.carry:
        evidence.append("its state was recomputed from its start, for the record holds none of this form")
    if variant.name == "average" and right.rule.name == "sgd":
        mu = hyper.get("momentum", 0.0)
        evidence.append(
            f"as it averages from zero, {wrong} is {right.rule.name} at {1 - mu:.10g} times the lr, and not with"
            f" dampening={mu:.10g}"
        )
    if alike > 1:
        evidence.append(f"{alike} variants of this kind give the same numbers here")
    checked = ""
    if score == 1.0:
        n = min(n, right.trial.n_steps)
        who = "makes" if beside is None else "both changes make"
        checked = f"   (checked: {who} {'all ' if n > 1 else 'the '}{count_words(n, 'step')} equal)"
    start = min(case.steps, default=1)
    return Cause(
        variant.code,
        f"{wrong} {does}; {other} {torch_does}",
        f"in {side} {mend}{checked}",
        tuple(evidence),
        score,
        (start, max(case.steps, default=start)),
    )


def _example(record: Recorded, rule: Rule, variant: Variant) -> Mapping[str, Any]:
    """Options for the words: of a group in which the option that the variant is about is not neutral."""
    groups = record.groups_for(rule.name, {k: v for k, v in variant.switches.items() if k in ("lr",)})
    options = [o for by_group in list(groups.values())[:1] for o in by_group.values()]
    about = "weight_decay" if "decay" in variant.switches else "momentum"
    return next((o for o in options if o.get(about)), options[0] if options else {})
