"""Replays of either side's steps with a rule or a variant of one, each step from its own recorded inputs."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from optrace.compare.causes.case import Case
from optrace.compare.names import in_torchs_words
from optrace.compare.source import param_rows
from optrace.replayer.cubes import Cube, Member, cubes, cut, renamed
from optrace.replayer.engine import SCALARS, Carried, Groups, Residuals, Step, residuals, spot
from optrace.replayer.known import RULES, Rule
from optrace.replayer.report import Miss

STEP_EPS = 4.0
"""Error that one step may have, in eps."""
CARRIED_EPS = 8.0
"""The same where the rule had to carry its own state from step to step, whose roundings add up."""
TYPICAL_EPS = 1.5
"""Error that a mistake may leave on the average to be claimed, in eps: more is a small difference at every step. (The
right variants of the fault bench leave at most 0.8.)"""
MOST_STEPS = 2000
"""Steps that are replayed at most."""


@dataclass
class Trial:
    """One rule under trial on one side's record."""

    name: str
    step: Step
    keys: tuple[str, ...]
    carry: bool
    """Keep the state itself, for records whose state does not belong to the rule."""
    jumps: bool = False
    """Whether the rule jumps where an argument is zero (`Rule.jumps`)."""
    hyper: Mapping[str, Any] = field(default_factory=dict)
    """Options that replace the recorded ones."""
    worst: float = 0.0
    total: float = 0.0
    """Sum over parameters and steps of the worst element's error."""
    n_steps: int = 0
    n_numbers: int = 0
    failed: int | None = None
    """First step (this side's number) that the rule does not give."""
    miss: tuple[str, str] | None = None
    """Parameter and quantity of that miss."""
    carried: Carried = field(default_factory=Carried)

    @property
    def fits(self) -> bool:
        """Whether every judged number was given, and some were judged."""
        return self.failed is None and self.n_steps > 0

    @property
    def explains(self) -> bool:
        """Whether, beyond that, no more is left than what rounding leaves on the average."""
        return self.fits and self.total <= TYPICAL_EPS * self.n_numbers


class Recorded:
    """One side's optimizer, ready to be replayed."""

    def __init__(self, case: Case, side: int, pair: int) -> None:
        self.case, self.side, self.pair = case, side, pair
        source = case.sources[side]
        matched = case.matching.pairs[pair]
        self.index = matched.a if side == 0 else matched.b
        self.trace: Any = source.trace
        self.source = source
        self.members = [_member(row) for row in param_rows(source) if row["optimizer"] == self.index]
        self.options = self._filled_options()
        self.state = self._state_keys()

    def _filled_options(self) -> dict[int, dict[int, dict[str, Any]]]:
        """Options by this side's step and group, in torch's words; what this side lacks is the other side's."""
        case = self.case
        shift = 0 if self.side == 0 else case.offset(self.pair)
        own, other = case.options(self.side, self.pair), case.options(1 - self.side, self.pair)
        links = case.matching.groups(self.pair)
        partner = {pair[self.side]: pair[1 - self.side] for pair in reversed(links)}
        found: dict[int, dict[int, dict[str, Any]]] = {}
        cache: dict[tuple[int, int], dict[str, Any]] = {}
        for step, groups in own.items():
            for group, options in groups.items():
                theirs = other.get(step, {}).get(partner.get(group, group), {})
                key = id(options), id(theirs)
                if key not in cache:
                    cache[key] = {**in_torchs_words(theirs), **in_torchs_words(options)}
                found.setdefault(step - shift, {})[group] = cache[key]
        return found

    def _state_keys(self) -> dict[str, int]:
        """Recorded state keys and the largest number of elements of each."""
        table = self.trace.arrow("tensors", step=None, optimizer=self.index, quantity="state.*", columns=["quantity"])
        from optrace.compare.arrow import coded

        codes, names = coded(table.column("quantity"))
        return {names[int(code)].removeprefix("state."): 0 for code in np.unique(codes)}

    def groups_for(self, rule: str, hyper: Mapping[str, Any] | None = None) -> Groups:
        """The options with a rule's defaults where neither side has any."""
        defaults = RULES[rule].defaults
        hyper = {**_decoupled(rule, self.case.class_name(self.side, self.pair)), **(hyper or {})}
        return {
            step: {group: {**defaults, **options, **hyper} for group, options in groups.items()}
            for step, groups in self.options.items()
        }

    def names_for(self, keys: Sequence[str]) -> dict[str, str] | None:
        """Recorded state names and the rule's, as quantities; None when the record cannot hold the rule's state."""
        names = {key: key for key in keys if key in self.state}
        if self.side == 1:
            for number, name in enumerate(self.case.numbering.quantities):
                theirs = self.case.numbering.name_in_b(number)
                if name.startswith("state.") and name[6:] in keys and theirs != name and theirs[6:] in self.state:
                    names[theirs[6:]] = name[6:]
        wanted = [key for key in keys if key not in SCALARS and key not in names.values()]
        free = [key for key in self.state if key not in names and key not in SCALARS and "." not in key]
        if len(wanted) == 1 and len(free) == 1 and not any(k not in SCALARS for k in names):
            names[free[0]] = wanted[0]
        if not any(key not in SCALARS for key in names):
            return None
        return {f"state.{own}": f"state.{name}" for own, name in names.items()}

    def stretches(self, looks: tuple[int, ...] = (2, 6)) -> Iterator[Cube]:
        """Samples of the recorded steps, a few first, up to `looks`, so that what does not fit is given up soon."""
        low, high = self.source.steps
        seen = 0
        for cube in cubes(self.trace, self.index, self.members, low, high):
            number = np.arange(len(cube.steps))
            for start, end in itertools.pairwise((0, *looks, len(number))):
                keep = (number >= start) & (number < end)
                if keep.any():
                    part = cut(cube, keep)
                    yield part
                    seen += len(part.steps)
            if seen >= MOST_STEPS:
                return

    @cached_property
    def from_its_start(self) -> bool:
        """Whether the record begins where the optimizer did: without state, or with zeros, and leaves out no step."""
        steps = sorted(self.options)
        if not steps or steps != list(range(1, len(steps) + 1)):
            return False
        table = self.trace.arrow("tensors", step=0, optimizer=self.index, quantity="state.*", columns=["l2"])
        from optrace.compare.arrow import numbers

        return not (numbers(table.column("l2")) > 0).any()

    def _counters(self, trial: Trial, names: Mapping[str, str]) -> Carried | None:
        """Counts that the record lacks beside state that it has, as the rule makes them from the start."""
        held = {name.removeprefix("state.") for name in names.values()}
        lacking = frozenset(key for key in trial.keys if key in SCALARS and key not in held)
        if not lacking or not self.from_its_start:
            return None
        if trial.carried.keys is None:
            trial.carried.keys = lacking
        return trial.carried

    def worst_miss(self, trial: Trial, rule: Rule, groups: Groups) -> Miss | None:
        """The parameter that a failed trial misses most at the first steps; None where its rule could not be run."""
        names = None if trial.carry else self.names_for(trial.keys)
        again, worst = replace(trial, carried=Carried()), None
        for cube in itertools.islice(self.stretches(), 2):
            looked = renamed(cube, names) if names else cube
            carried = again.carried if again.carry else self._counters(again, names or {})
            start = copy.deepcopy(carried)
            try:
                errors = residuals(trial.step, trial.keys, looked, groups, carried, jumps=trial.jumps).param
            except (KeyError, TypeError, ValueError):
                return None
            if np.isnan(errors).all() or (worst is not None and np.nanmax(errors) <= worst.eps):
                continue
            i, m = np.unravel_index(int(np.nanargmax(errors)), errors.shape)
            found = spot(trial.step, trial.keys, looked, groups, int(i), int(m), "param", start, jumps=trial.jumps)
            member = looked.members[int(m)]
            worst = Miss(int(looked.steps[i]), member.group, member.name, "param", *found, float(errors[i, m]))
        return worst

    def judge(self, trials: Sequence[Trial], groups: Mapping[str, Groups], first_only: bool = False) -> None:
        """Run every trial over the record, each until it fails."""
        left = list(trials)
        for cube in self.stretches():
            for trial in tuple(left):
                names = None if trial.carry else self.names_for(trial.keys)
                looked = renamed(cube, names) if names else cube
                own = trial.carry or trial.carried.keys is not None
                carried = trial.carried if own else self._counters(trial, names or {})
                try:
                    found = residuals(trial.step, trial.keys, looked, groups[trial.name], carried, jumps=trial.jumps)
                except (KeyError, TypeError, ValueError):  # the record lacks state or options that the rule needs
                    trial.failed = int(cube.steps[0])
                else:
                    _account(trial, found)
                if trial.failed is not None:
                    left.remove(trial)
            if not left or first_only:
                return


def _account(trial: Trial, found: Residuals) -> None:
    limit = CARRIED_EPS if trial.carry else STEP_EPS
    worst = found.worst
    judged = ~np.isnan(worst)
    trial.n_steps += int(judged.any(axis=1).sum())
    trial.n_numbers += int(judged.sum())
    beyond = judged & (worst > limit)
    if judged.any():
        finite = worst[judged]
        trial.worst = max(trial.worst, float(finite.max()))
        trial.total += float(finite.sum())
    if beyond.any():
        i = int(np.argmax(beyond.any(axis=1)))
        m = int(np.argmax(beyond[i]))
        trial.failed = int(found.steps[i])
        errors = {"param": found.param[i, m]} | {f"state.{k}": t[i, m] for k, t in found.state.items()}
        quantity = next((q for q, error in errors.items() if error > limit), "param")
        trial.miss = found.members[m].name, quantity


def _decoupled(rule: str, class_name: str) -> dict[str, Any]:
    """What keeps Adam and AdamW apart, whose option `decoupled_weight_decay` would make each the other."""
    if rule == "adamw":
        return {"decoupled_weight_decay": True}
    return {"decoupled_weight_decay": False} if rule == "adam" and class_name == "AdamW" else {}


def _member(row: Mapping[str, Any]) -> Member:
    doubled = 2 if str(row["dtype"]).startswith("complex") else 1
    return Member(str(row["param"]), int(row["group"]), str(row["dtype"]), int(row["numel"]) * doubled)
