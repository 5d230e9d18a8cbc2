"""Differences of arithmetic: which rule each side follows, and which single mistake turns one into the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from optrace.compare.causes.case import Case, figure
from optrace.compare.causes.cause import Cause
from optrace.compare.causes.fitted import fitted_variants
from optrace.compare.causes.replays import Recorded, Trial
from optrace.compare.words import count_words
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


def judge_rules(case: Case, pair: int) -> Verdict:
    """Replay both sides of a pair and explain a difference of rules, if there is one."""
    a, b = Recorded(case, 0, pair), Recorded(case, 1, pair)
    names = list(dict.fromkeys([*_guesses(case, 0, pair), *_guesses(case, 1, pair)]))
    follows_a, follows_b = _followed(a, names), _followed(b, names)
    if follows_a is not None and follows_b is not None and follows_a.rule is follows_b.rule:
        return Verdict((), True, follows_a.rule.name, min(follows_a.trial.n_steps, follows_b.trial.n_steps))
    if follows_a is not None:
        found = tuple(_variants(case, pair, b, follows_a, mistaken=1))
        if found:
            return Verdict(found, False)
    if follows_b is not None:
        found = tuple(_variants(case, pair, a, follows_b, mistaken=0))
        if found:
            return Verdict(found, False)
    if follows_a is not None and follows_b is not None:
        one, other = follows_a.rule.name, follows_b.rule.name
        words = f"{case.subject(1, pair)} follows the rule of {other}, {case.subject(0, pair)} that of {one}"
        evidence = f"replayed from its own inputs each side follows its rule at all {follows_a.trial.n_steps} steps"
        return Verdict((Cause("rule-unknown", words, f"use one rule: {one}, or {other}", (evidence,)),), False)
    if follows_a is not None:
        return Verdict((), False, follows_a.rule.name, follows_a.trial.n_steps)
    return Verdict((), False)


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
    elif verdict.rule_a:
        evidence.append(
            f"{case.subject(0, pair)} follows {verdict.rule_a} at all {count_words(verdict.n_steps, 'step')};"
            f" {case.subject(1, pair)} does not, nor any known variant of it"
        )
    what = first.quantity.partition(".")[2] or first.quantity
    return Cause(
        "rule-unknown",
        f"from equal inputs {{B}} computes another {what} than {{A}} at step {first.step}, and no known variant"
        " explains it",
        "compare the two rules at this step by hand (optrace repro {A} {B} writes the numbers)",
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
    yield from (rule for rule in rest if rule not in inside)


def _trials(record: Recorded, name: str, step: Any, keys: tuple[str, ...]) -> list[Trial]:
    """A rule on a record: with the recorded state where there is such, and with state of its own."""
    found = []
    needs = [key for key in keys if key not in ("step",)]
    if not needs or not record.state or record.names_for(keys) is not None:
        found.append(Trial(name, step, keys, carry=False))
    if needs and record.from_its_start and not _is_torch(record):
        found.append(Trial(name, step, keys, carry=True))
    return found


def _is_torch(record: Recorded) -> bool:
    return record.case.is_torchs(record.side, record.pair)


def _followed(record: Recorded, names: list[str]) -> Followed | None:
    for name in names:
        rule = RULES[name]
        trials = _trials(record, name, rule.step, rule.state_keys)
        record.judge(trials, {name: record.groups_for(name)})
        fitting = [trial for trial in trials if trial.fits]
        if fitting:
            return Followed(rule, fitting[0])
    return None


def _variants(case: Case, pair: int, record: Recorded, right: Followed, mistaken: int) -> Iterator[Cause]:
    """Causes for the side that does not follow the other's rule: variants that give its record."""
    rule = right.rule
    known = VARIANTS.get(rule.name, ())
    if not known or _plain_fits(record, rule):
        return
    trials: list[tuple[Variant, Trial]] = []
    groups: dict[str, Any] = {}
    plain = record.groups_for(rule.name)
    for variant in known:
        groups[variant.name] = plain
        trials += [(variant, trial) for trial in _trials(record, variant.name, variant.step, rule.state_keys)]
    record.judge([trial for _, trial in trials], groups)
    fitting: dict[str, tuple[Variant, Trial]] = {}
    for variant, trial in trials:
        if trial.fits:
            fitting.setdefault(variant.name, (variant, trial))
    if not fitting:
        for variant, hyper in fitted_variants(record, rule):
            options = record.groups_for(rule.name, hyper)
            for trial in _trials(record, variant.name, variant.step, rule.state_keys):
                record.judge([trial], {variant.name: options})
                if trial.fits:
                    fitting.setdefault(variant.name, (variant, trial))
    by_record = {name: found for name, found in fitting.items() if not found[1].carry}
    fitting = by_record or fitting  # state that is recorded is better evidence than state that is made up
    codes = dict.fromkeys(variant.code for variant, _ in fitting.values())
    if len(fitting) == 1 or len(codes) == 1:
        variant, trial = next(iter(fitting.values()))
        yield _cause(case, pair, record, right, variant, trial, mistaken, 1.0, len(fitting))
    else:
        for code in codes:
            variant, trial = next(v for v in fitting.values() if v[0].code == code)
            yield _cause(case, pair, record, right, variant, trial, mistaken, 1.0 / len(codes), 1)


def _plain_fits(record: Recorded, rule: Rule) -> bool:
    """Whether the rule in float64 gives the record after all: then no variant of it may be blamed."""
    plain = Variant(rule.name, "plain", "rule-unknown", "", "", "", {})
    trials = _trials(record, plain.name, plain.step, rule.state_keys)
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
) -> Cause:
    hyper = _example(record, right.rule, variant)
    does, torch_does, mend = variant.words(hyper)
    wrong, other = case.subject(mistaken, pair), case.subject(1 - mistaken, pair)
    side = ("{A}", "{B}")[mistaken]
    n = trial.n_steps
    evidence = [
        f"replayed from its own inputs, {other} follows {right.rule.name} at all"
        f" {count_words(right.trial.n_steps, 'step')}; {wrong} does not, and follows it at all"
        f" {count_words(n, 'step')} with this one change",
    ]
    if trial.carry:
        evidence.append("its state was recomputed from its start, for the record holds none of this form")
    if variant.name == "average":
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
        checked = f"   (checked: makes {'all ' if n > 1 else 'the '}{count_words(n, 'step')} equal)"
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
