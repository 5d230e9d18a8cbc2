"""`optrace.replay`: every recorded step of a run recomputed from its own inputs."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from optrace.errors import OptraceError, TraceError
from optrace.reference.rule import RULES, Rule
from optrace.reference.rule import rule as find_rule
from optrace.reference.variants import VARIANTS
from optrace.replayer.classes import rule_of_class
from optrace.replayer.cubes import Cube, cubes, members_of
from optrace.replayer.engine import SCALARS, Carried, Groups, Residuals, arithmetic_dtype, residuals, spot
from optrace.replayer.options import options_by_step, unlike
from optrace.replayer.report import Look, Miss, ReplayReport
from optrace.replayer.single import entry_of, explains
from optrace.trace.reader import Trace, open_trace

STEP_EPS = 4.0
"""What a step may be off, in eps: the reference bounds of `reference` and other implementations of torch."""


def replay(
    run: str | os.PathLike[str] | Trace,
    *,
    rule: str | None = None,
    as_class: Callable[..., Any] | None = None,
    optimizer: int = 0,
    steps: tuple[int | None, int | None] = (None, None),
    tolerance: float = STEP_EPS,
) -> ReplayReport:
    """Recompute each recorded step from its own recorded inputs and compare what came out.

    Args:
        run: a run folder or an open trace.
        rule: torch's class name in any case (`sgd`, `AdamW`), or `lion`; None takes the recorded class name.
        as_class: a class in torch's manner to recompute the steps with, instead of a reference rule.
        optimizer: index of the optimizer.
        steps: first and last step, both included; None leaves a side open.
        tolerance: how far a number may be off, in eps of its dtype and scale.

    Raises:
        TraceError: the run cannot be read, or holds neither samples nor the inputs of the rule.
        OptraceError: there is no such rule, the rule needs whole tensors, or the tolerance is no number from 0.
    """
    if not (isinstance(tolerance, int | float) and tolerance >= 0):
        raise OptraceError(f"tolerance is {tolerance!r}; it is a number of eps from 0")
    if not isinstance(rule, str | None):
        raise OptraceError(f"rule is {rule!r}; give its name, like 'sgd', or a class as as_class")
    trace = run if isinstance(run, Trace) else open_trace(run)
    names = dict(trace.optimizers)
    if optimizer not in names:
        known = ", ".join(f"{i} ({name})" for i, name in names.items()) or "none"
        raise TraceError(f"{trace.path} has no optimizer {optimizer}; it has {known}")
    if as_class is None:
        chosen = _choose(rule, names[optimizer])
    elif rule is None:
        chosen = rule_of_class(as_class, _state_keys(trace, optimizer))
    else:
        raise TraceError(f"replay follows one rule: {rule} or the given class, not both")
    members = members_of(trace, optimizer)
    groups = _filled(options_by_step(trace, optimizer, *steps), chosen)
    _refuse_unlike(groups, chosen, names[optimizer])

    def gathered(lacking: frozenset[str]) -> _Gatherer:
        gatherer = _Gatherer(chosen, groups, tolerance, _carried(lacking))
        for cube in cubes(trace, optimizer, members, *steps):
            gatherer.add(cube)
        return gatherer

    lacking = _lacking(chosen, _state_keys(trace, optimizer))
    try:
        gatherer = gathered(lacking)
    except KeyError:  # what is recorded under names of the rule's is some other rule's state
        lacking = frozenset(chosen.state_keys)
        gatherer = gathered(lacking)
    looks: tuple[Look, ...] = ()
    if gatherer.first is not None:
        looks = _looks_like(trace, optimizer, chosen, groups, steps, tolerance, lacking)
    return gatherer.report(trace, optimizer, names[optimizer], chosen.name, looks)


def _state_keys(trace: Trace, optimizer: int) -> list[str]:
    """The keys of all recorded state of an optimizer."""
    rows = trace.arrow("tensors", optimizer=optimizer, quantity="state.*", columns=["quantity"])
    return sorted({name.removeprefix("state.") for name in rows.column("quantity").unique().to_pylist()})


def _lacking(rule: Rule, recorded: Sequence[str]) -> frozenset[str]:
    """The rule's state that must be computed from the first step on: all of it, or counts beside recorded state."""
    keys = set(rule.state_keys)
    return frozenset((keys & SCALARS) - set(recorded) if keys & set(recorded) else keys)


def _carried(lacking: frozenset[str]) -> Carried | None:
    return Carried(lacking) if lacking else None


def _choose(rule: str | None, class_name: str) -> Rule:
    if rule is not None:
        chosen = find_rule(rule)
    elif class_name.lower() in RULES:
        chosen = RULES[class_name.lower()]
    else:
        raise TraceError(
            f"the recorded optimizer is called {class_name}, which is no optimizer of torch; name the rule that it"
            f" should follow with --rule ({', '.join(sorted(RULES))})"
        )
    if not chosen.elementwise:
        raise TraceError(
            f"{chosen.name} mixes the elements of a tensor, so it cannot be replayed from samples; the class itself is"
            f" checked by: optrace golden check MODULE:CLASS --rule {chosen.name}"
        )
    return chosen


def _refuse_unlike(groups: Groups, rule: Rule, class_name: str) -> None:
    """TraceError where the rule cannot read an option that is recorded under its name."""
    for options in (options for by_group in groups.values() for options in by_group.values()):
        for name in unlike(options, rule.defaults):
            raise TraceError(
                f"{rule.name} takes {name} like {rule.defaults[name]!r}, and {class_name} has {options[name]!r}: its"
                " rule is another; name one with --rule that takes such options, or the class itself with --as"
            )


def _filled(groups: dict[int, dict[int, dict[str, Any]]], rule: Rule) -> Groups:
    """Options that the record lacks take the rule's defaults."""
    full: dict[int, dict[str, Any]] = {}
    return {
        step: {g: full.setdefault(id(options), {**rule.defaults, **options}) for g, options in by_group.items()}
        for step, by_group in groups.items()
    }


class _Gatherer:
    """Adds up the residuals of stretch after stretch."""

    def __init__(self, rule: Rule, groups: Groups, tolerance: float, carried: Carried | None) -> None:
        self.carried = carried
        self.rule, self.groups, self.tolerance = rule, groups, tolerance
        self.first: Miss | None = None
        self.worst = 0.0
        self.judged: list[int] = []
        self.n_numbers = 0
        self.n_differing = 0
        self.whole = True

    def add(self, cube: Cube) -> None:
        """Judge one stretch."""
        start = copy.deepcopy(self.carried)
        rule = self.rule
        found = residuals(rule.step, rule.state_keys, cube, self.groups, self.carried, jumps=rule.jumps)
        last = self.judged[-1] if self.judged else 0
        if (
            self.carried is not None
            and self.carried.values
            and (cube.steps != last + 1 + np.arange(len(cube.steps))).any()
        ):
            raise TraceError(
                "the record holds no state of this rule, and not every step from the first one on, from which the state"
                " could be computed; record with the state (--quantities) or every step"
            )
        worst = found.worst
        judged = ~np.isnan(worst)
        self.judged += found.steps[judged.any(axis=1)].tolist()
        used = np.array([member.used for member in cube.members])
        self.n_numbers += int(sum((~np.isnan(t) * used).sum() for t in (found.param, *found.state.values())))
        beyond = judged & (worst > self.tolerance)
        self.n_differing += int(beyond.any(axis=1).sum())
        if judged.any():
            self.worst = max(self.worst, float(np.nanmax(worst)))
        self.whole &= all(member.numel <= 16 for member in cube.members)
        if self.first is None and beyond.any():
            self.first = self._miss(cube, found, beyond, start)

    def _miss(self, cube: Cube, found: Residuals, beyond: Any, start: Carried | None) -> Miss:
        i = int(np.argmax(beyond.any(axis=1)))
        m = int(np.argmax(beyond[i]))
        errors = {"param": found.param[i, m]} | {f"state.{k}": t[i, m] for k, t in found.state.items()}
        quantity = next(q for q, error in errors.items() if error > self.tolerance)
        rule = self.rule
        recorded, expected, before = spot(
            rule.step, rule.state_keys, cube, self.groups, i, m, quantity, start, jumps=rule.jumps
        )
        member = cube.members[m]
        return Miss(
            int(cube.steps[i]), member.group, member.name, quantity, recorded, expected, before, float(errors[quantity])
        )

    def report(self, trace: Trace, optimizer: int, class_name: str, rule: str, looks: tuple[Look, ...]) -> ReplayReport:
        """The frozen result."""
        notes = list(trace.problems)
        if self.carried is not None and self.carried.values:
            kept = (
                ", ".join(sorted(self.carried.values))
                if self.carried.keys and self.carried.keys <= SCALARS
                else "state"
            )
            notes.append(f"the rule's {kept} is not in the record; it was computed from the first step on")
        why = explains(entry_of(trace, optimizer), self.worst) if self.first is not None and not looks else ""
        if why:
            notes.append(f"{why}: --eps {_rounded_up(self.worst):g} would have passed")
        if not self.judged and not self.groups:
            notes.append(f"no step of optimizer {optimizer} was recorded in what was asked for")
        elif not self.judged:
            notes.append(
                "no step has samples of param and grad; record with --values sample (the default) or more, and with"
                " these quantities"
            )
        ends = (self.judged[0], self.judged[-1]) if self.judged else (0, 0)
        return ReplayReport(
            trace.path.name,
            optimizer,
            class_name,
            rule,
            ends,
            len(self.judged),
            self.n_numbers,
            self.n_differing,
            self.tolerance,
            self.worst,
            bool(self.judged) and self.first is None,
            self.first,
            looks,
            self.whole,
            tuple(notes),
        )


def _rounded_up(number: float) -> float:
    """The number with two digits, rounded up."""
    unit = 10.0 ** (math.floor(math.log10(number)) - 1)
    return float(f"{math.ceil(number / unit) * unit:.2g}")


def _looks_like(
    trace: Trace,
    optimizer: int,
    rule: Rule,
    groups: Groups,
    steps: tuple[int | None, int | None],
    tolerance: float,
    lacking: frozenset[str],
) -> tuple[Look, ...]:
    """Variants of the rule that give every recorded number; those that agree with each other are all listed."""
    left = list(VARIANTS.get(rule.name, ()))
    own = {variant.name: _carried(lacking) for variant in left}
    hyper = next((options for by_group in groups.values() for options in by_group.values()), {})
    for cube in cubes(trace, optimizer, members_of(trace, optimizer), *steps):
        for variant in tuple(left):
            kept = own[variant.name]
            worst = residuals(variant.step, rule.state_keys, cube, groups, kept, jumps=rule.jumps).worst
            if (np.nan_to_num(worst, nan=0.0) > tolerance).any():
                left.remove(variant)
        if not left:
            break
    return tuple(Look(v.name, v.code, *v.words(hyper)) for v in left)


__all__ = ["STEP_EPS", "arithmetic_dtype", "replay"]
