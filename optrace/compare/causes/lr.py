"""How two tables of learning rates differ: late, early, faster, frozen, back at the start, or simply other values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optrace.compare.causes.case import Case, factor_words, figure
from optrace.compare.causes.cause import Cause
from optrace.compare.causes.groups import LR_NAMES, moved_links
from optrace.compare.hyper import MISSING
from optrace.compare.words import count_words

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SAME = 1e-12
"""Relative difference up to which two learning rates are one (closed form against recursion)."""
DISTINCT = 3
"""Values that a schedule must show before a stretched or shifted one is recognised."""
FASTEST = 64
_OPTIONS = "the schedulers step equally often: give that of {B} the options of {A}'s (start, lengths, patience, mode)"


@dataclass(frozen=True)
class Series:
    """lr of one group on both sides."""

    groups: tuple[int, int]
    a: Floats
    """By A's step number, from 0; NaN where there is none."""
    b: Floats

    @property
    def both(self) -> Ints:
        """Steps with a value on both sides."""
        return np.flatnonzero(np.isfinite(self.a) & np.isfinite(self.b))

    @property
    def unequal(self) -> Ints:
        """Steps at which the two differ."""
        both = self.both
        return both[~same(self.a[both], self.b[both])]


@dataclass(frozen=True)
class Fit:
    """How well B's table is A's at other steps."""

    exact: bool
    compared: int
    distinct: int
    """Values of A's schedule that were met, in the group that shows most."""
    met: int
    """Places at which the two tables differ that it explains."""
    factor: int = 0
    since: int = 0
    """First step of it; 0: all."""


def same(a: Floats, b: Floats) -> NDArray[np.bool_]:
    """Where two arrays of lr are equal but for the last digits."""
    with np.errstate(invalid="ignore"):
        equal: NDArray[np.bool_] = (a == b) | (np.abs(a - b) <= SAME * np.maximum(np.abs(a), np.abs(b)))
    return equal


def learning_rates(case: Case) -> Iterator[Cause]:
    """The causes of unequal learning rates, one or several ranked candidates for each pair of optimizers."""
    for pair in range(len(case.matching.pairs)):
        differing = [
            found
            for found in case.hyper.differences.values()
            if found.pair == pair and found.decides and found.key in LR_NAMES and MISSING not in (found.a, found.b)
        ]
        moved = moved_links(case, pair)
        table = [series for series in _table(case, pair) if series.groups not in moved]
        if differing and any(len(series.unequal) for series in table):
            yield from _Tables(case, pair, table).decide()


def constant_factor(case: Case, pair: int) -> float | None:
    """B's lr over A's where it is one number other than 1 in all groups and at all steps."""
    table = [series for series in _table(case, pair) if len(series.both)]
    if not table or not all(len(series.unequal) == len(series.both) for series in table):
        return None
    return _Tables(case, pair, table).constant_factor()


def shifted_by_skips(case: Case) -> bool:
    """Whether lr at the first divergent step is the other side's some steps on, as after skipped optimizer steps."""
    first = case.first
    assert first is not None
    n = int(case.column("n_skipped", 1).get(first.step, 0) - case.column("n_skipped", 0).get(first.step, 0))
    early, late = first.step, first.step + abs(n)
    for series in _table(case, case.pair):
        own, other = (series.b, series.a) if n > 0 else (series.a, series.b)
        if late >= len(other) or not same(own[early : early + 1], other[late : late + 1]).all():
            return False
    return n != 0


def _table(case: Case, pair: int) -> list[Series]:
    options = case.options(0, pair), case.options(1, pair)
    size = max(max(steps, default=0) for steps in options) + 1
    found = []
    for groups in case.matching.groups(pair):
        lanes = []
        for side, group in enumerate(groups):
            lane = np.full(size, np.nan)
            for step, by_group in options[side].items():
                value = _lr(by_group.get(group, {}))
                if value is not None and step >= 0:
                    lane[step] = value
            lanes.append(lane)
        found.append(Series(groups, lanes[0], lanes[1]))
    return found


def _lr(options: Mapping[str, object]) -> float | None:
    value = next((options[name] for name in LR_NAMES if name in options), None)
    return float(value) if isinstance(value, int | float) else None


class _Tables:
    """The learning rates of one pair of optimizers, and which story fits all of them."""

    def __init__(self, case: Case, pair: int, table: list[Series]) -> None:
        self.case, self.pair, self.table = case, pair, table
        self.changed = [series for series in table if len(series.unequal)]
        self.start = min(int(series.unequal[0]) for series in self.changed)
        recorded = [np.flatnonzero(np.isfinite(series.b)) for series in table]
        self.first_b = min(int(steps[0]) for steps in recorded if len(steps))
        self.first_a = min(int(np.flatnonzero(np.isfinite(s.a))[0]) for s in table if np.isfinite(s.a).any())
        self.last = max(int(series.both[-1]) for series in self.changed)
        self.events = [self._scheduler(side) for side in (0, 1)]

    def decide(self) -> list[Cause]:
        """The one story that fits, or the several that do."""
        reset = self._reset()
        if reset is not None:
            return [reset]
        frozen = self._frozen()
        if frozen is not None:
            return [frozen]
        rate, shift = self._best(self._rates()), self._best(self._shifts())
        constant = self.constant_factor()
        told = self._told()
        if rate is not None and rate.distinct >= DISTINCT and (shift is None or shift.distinct < rate.distinct):
            return [self._rate(rate)]
        if shift is not None and shift.distinct >= DISTINCT and constant is None and rate is None:
            return [self._shift(shift)]
        stories = [("lr-rate", rate), ("lr-shift", shift)]
        fitting = {code: fit for code, fit in stories if fit is not None}
        if not fitting:
            return [self._value()]
        if told is not None:
            if told == "lr-rate" and rate is not None:
                return [self._rate(rate)]
            if told == "lr-shift" and shift is not None:
                return [self._shift(shift)]
            if told == "lr-value":
                return [self._value()]
        ranked = [self._rate(fit) if code == "lr-rate" else self._shift(fit) for code, fit in fitting.items()]
        ranked.append(self._value())
        return [_ranked(cause, len(ranked)) for cause in ranked]

    def _scheduler(self, side: int) -> tuple[float, dict[int, int]]:
        """Scheduler steps an optimizer step, and last_epoch by step; (0, {}) where none was seen."""
        matched = self.case.matching.pairs[self.pair]
        index = matched.a if side == 0 else matched.b
        own = [e for e in self.case.events[side] if e.optimizer in (index, -1)]
        steps = sum(e.kind == "step" for e in own)
        seen = [e for e in own if e.kind == "scheduler_step"]
        classes = {e.data.get("class") for e in seen}
        epochs = {e.step: int(e.data["last_epoch"]) for e in seen if isinstance(e.data.get("last_epoch"), int)}
        return (len(seen) / max(len(classes), 1) / steps if steps else 0.0), epochs

    def _told(self) -> str | None:
        """What the scheduler events say about a tie: which code; None when they say nothing."""
        (often_a, epochs_a), (often_b, epochs_b) = self.events
        if not often_a or not often_b:
            return None
        ratio = often_b / often_a
        if ratio > 1.5 or ratio < 1 / 1.5:
            return "lr-rate"
        both = sorted(set(epochs_a) & set(epochs_b))
        lags = {epochs_b[step] - epochs_a[step] for step in both}
        if len(lags) == 1 and lags != {0}:
            return "lr-shift"
        return "lr-value" if lags == {0} else None

    def _fit(self, index: Callable[[Ints], Ints], factor: int, since: int = 0) -> Fit | None:
        """Whether B's table from step `since` on is A's at steps `index(t)`; None where too little can be compared."""
        compared, distinct, met = 0, 0, 0
        for series in self.table:
            own, other = series.b, series.a
            steps = np.flatnonzero(np.isfinite(own))
            steps = steps[steps >= since]
            at = index(steps)
            inside = (at >= 1) & (at < len(other))
            steps, at = steps[inside], at[inside]
            there = np.isfinite(other[at])
            steps, at = steps[there], at[there]
            if not same(own[steps], other[at]).all():
                return None
            compared += len(steps)
            distinct = max(distinct, len(np.unique(own[steps])))
            met += int(np.isin(steps, series.unequal).sum())
        return (
            Fit(True, compared, distinct, met, factor, since)
            if compared >= DISTINCT and met >= 1 and distinct >= 2
            else None
        )

    def _moved(self, shift: int) -> Callable[[Ints], Ints]:
        """Steps of A for those of B; a late schedule waits at A's first."""
        return lambda steps: np.maximum(steps + shift, self.first_a)

    def _rates(self) -> Iterator[Fit]:
        start = self.first_b
        for k in range(2, FASTEST + 1):
            fits = [
                fit
                for c in range(k + 1)
                if (fit := self._fit(lambda t, k=k, c=c: start + k * (t - start) + c, k))  # type: ignore[misc]
            ]
            yield from fits[:1]
            slow = [
                fit
                for c in range(k)
                if (fit := self._fit(lambda t, k=k, c=c: start + (t - start + c) // k, -k))  # type: ignore[misc]
            ]
            yield from slow[:1]

    def _shifts(self) -> Iterator[Fit]:
        unequal = sum(len(series.unequal) for series in self.changed)
        for since in (0, self.start) if self.start > self.first_b else (0,):
            found = False
            for k in range(1, max(self.last, 2)):
                for shift in (k, -k):
                    fit = self._fit(self._moved(shift), shift, since)
                    if fit is not None and 2 * fit.met >= unequal:
                        found = True
                        yield fit
            if found:
                return

    @staticmethod
    def _best(fits: Iterator[Fit]) -> Fit | None:
        """The fit that meets most values; None when several meet as many."""
        found = sorted(fits, key=lambda fit: (-fit.distinct, -fit.compared))
        return found[0] if found else None

    def constant_factor(self) -> float | None:
        """B's lr over A's, where it is one number other than 1 at all steps that differ, from the first on."""
        ratios = []
        for series in self.changed:
            both = series.both[series.both >= series.unequal[0]]
            with np.errstate(all="ignore"):
                ratios.append(series.b[both] / series.a[both])
        ratio = np.concatenate(ratios)
        ratio = ratio[np.isfinite(ratio)]
        if len(ratio) and np.ptp(ratio) <= 1e-9 * abs(ratio[0]) and ratio[0] != 1:
            return float(ratio[0])
        return None

    def _reset(self) -> Cause | None:
        s, start = self.start, self.first_a
        resumed = self.first_b > start and s == self.first_b
        if not (s > self.first_b or resumed):
            return None
        if not resumed and any(same(series.b[s], series.b[s - 1]) for series in self.changed):
            return None  # it did not jump, it stayed
        follows, again = True, False
        for series in self.changed:
            here = int(series.unequal[0])
            if here != s or not same(series.b[s], series.a[start]) or same(series.a[s], series.a[start]):
                return None
            left = np.flatnonzero(~same(series.a, series.a[start]) & np.isfinite(series.a))
            later = np.arange(len(series.a)) > (left[0] if len(left) else len(series.a))
            again |= bool((same(series.a, series.a[start]) & later & np.isfinite(series.a)).any())
            steps = np.arange(s, len(series.b))
            steps = steps[np.isfinite(series.b[steps]) & (steps - s + start < len(series.a))]
            follows &= bool(same(series.b[steps], series.a[steps - s + start]).all())
        loaded = resumed or any(e.kind == "load_state_dict" for e in self.case.events[1])
        if again and not loaded:
            return None
        values = ", ".join(
            f"{figure(series.b[s])} where {{A}} has {figure(series.a[s])}" for series in self.changed[:2]
        )
        then = "and the schedule starts anew" if follows else "and goes on from there"
        aligned = f"step 1 of {{B}} is step {s} of {{A}}; " if resumed else ""
        return Cause(
            "lr-reset",
            f"lr jumps back to its start at step {s} of {{A}}: {values}",
            "in {B} build the scheduler first, then load the states of both the optimizer and the scheduler; a"
            f" scheduler that is built later needs last_epoch={s - start - 1}",
            (f"{aligned}lr of {{B}} is {{A}}'s of step {start} again, {then}",),
            steps=(s, self.last),
        )

    def _frozen(self) -> Cause | None:
        for series in self.changed:
            both = series.both
            if len(both) < DISTINCT or len(np.unique(series.b[both])) > 1 or len(np.unique(series.a[both])) < 2:
                return None
        moves = [series for series in self.table if len(np.unique(series.a[series.both])) > 1]
        if any(len(np.unique(series.b[series.both])) > 1 for series in moves):
            return None
        series = self.changed[0]
        both = series.both
        events = self.events[1][0]
        seen = "no scheduler step was seen in {B}" if not events else "schedulers step in {B}, but not its groups' lr"
        return Cause(
            "lr-frozen",
            f"lr stays {figure(series.b[both[0]])} in {{B}}; in {{A}} it goes from {figure(series.a[both[0]])} to"
            f" {figure(series.a[both[-1]])}",
            "in {B} call scheduler.step() after each optimizer.step(), on a scheduler built for this optimizer",
            (f"one value at all {count_words(len(both), 'step')} of {{B}}; {seen}",),
            steps=(self.start, self.last),
        )

    def _rate(self, fit: Fit) -> Cause:
        k = fit.factor
        fast = f"{k} times as fast as in {{A}}" if k > 0 else f"{-k} times as slow as in {{A}}"
        fix = (
            f"in {{B}} step the scheduler once an optimizer step, not {k} times (as when it is stepped for every"
            " micro-batch)"
            if k > 0
            else f"in {{B}} step the scheduler at every optimizer step, not once in {-k}"
        )
        if self._told() == "lr-value":
            fix = f"{_OPTIONS}: its lengths are {factor_words(1 / k if k > 0 else -k)} {{A}}'s"
        evidence = [f"lr of {{B}} is {{A}}'s at steps {abs(k)} times as far apart: {_met(fit)}"]
        often = self.events[1][0]
        if often and self.events[0][0]:
            evidence.append(
                f"scheduler steps an optimizer step: {figure(self.events[0][0])} in {{A}}, {figure(often)} in {{B}}"
            )
        micro = [np.mean(list(self.case.column("n_backward", side, self.pair).values()) or [0]) for side in (0, 1)]
        if micro[1] > 1:
            evidence.append(f"backward passes an optimizer step in {{B}}: {figure(float(micro[1]))}")
        return Cause(
            "lr-rate",
            f"the lr schedule of {{B}} runs {fast}",
            fix,
            tuple(evidence),
            steps=(self.start, self.last),
        )

    def _shift(self, fit: Fit) -> Cause:
        k = abs(fit.factor)
        when, other = ("early", "later") if fit.factor > 0 else ("late", "earlier")
        since = f" since step {fit.since}" if fit.since else ""
        fix = f"in {{B}} start the schedule {count_words(k, 'step')} {other}: compare where scheduler.step() is called"
        fix += ", and last_epoch"
        if self._told() == "lr-value":
            fix = _OPTIONS
        return Cause(
            "lr-shift",
            f"the lr schedule of {{B}} is the one of {{A}}, {count_words(k, 'step')} {when}{since}",
            f"{fix}   (checked: makes lr equal at all {count_words(fit.compared, 'place')} compared)",
            (f"lr of {{B}} at step t is {{A}}'s at step t {'+' if fit.factor > 0 else '-'} {k}: {_met(fit)}",),
            steps=(self.start, self.last),
        )

    def _value(self) -> Cause:
        lines, fixes = [], []
        for series in self.changed[:3]:
            s = int(series.unequal[0])
            a, b = float(series.a[s]), float(series.b[s])
            with np.errstate(all="ignore"):
                ratio = series.b[series.unequal] / series.a[series.unequal]
            one = bool(np.isfinite(ratio).all() and np.ptp(ratio) <= 1e-9 * np.abs(ratio).max())
            group = f" of group {series.groups[0]}" if len(self.table) > 1 else ""
            times = f" ({factor_words(float(ratio[0])).removesuffix(' of')} of it)" if one else ""
            at = "" if s <= max(self.first_a, self.first_b) else f" at step {s}"
            lines.append(f"lr{group} is {b!r} in {{B}}, {a!r} in {{A}}{at}{times.replace(' times of it', ' times')}")
            constant = len(np.unique(series.a[series.both])) == 1
            fixes.append(f"set lr={a!r}{group}" if constant else "")
        n = sum(len(series.unequal) for series in self.changed)
        evidence = [f"differs at {count_words(n, 'place')} of the table; no shift, stretch or restart of it fits"]
        evidence += self._other_group()
        if all(fixes):
            fix = f"in {{B}} {' and '.join(fixes)}"
        else:
            fix = "give the schedule of {B} the base lr and the options that it has in {A}"
        return Cause("lr-value", "; ".join(lines), fix, tuple(evidence), steps=(self.start, self.last))

    def _other_group(self) -> Iterator[str]:
        """Whether a group has lost what set its lr apart from another group's."""
        for series in self.changed:
            s = int(series.unequal[0])
            for other in self.table:
                if other is not series and not same(other.a[s], series.a[s]) and same(other.b[s], series.b[s]):
                    factor = figure(float(series.a[s] / other.a[s]))
                    yield (
                        f"in {{A}} group {series.groups[0]} has {factor} times the lr of group {other.groups[0]}, in"
                        " {B} the same: its own factor is lost"
                    )
                    return


def _met(fit: Fit) -> str:
    return f"exact at {count_words(fit.compared, 'place')} of the table with {fit.distinct} values of lr"


def _ranked(cause: Cause, among: int) -> Cause:
    return Cause(cause.code, cause.summary, cause.fix, cause.evidence, 1.0 / among, cause.steps, cause.params)
