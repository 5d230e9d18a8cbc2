"""How two tables of learning rates differ: late, early, faster, frozen, back at the start, or simply other values."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from optrace.compare.causes.case import Case, factor_words, figure
from optrace.compare.causes.cause import Cause
from optrace.compare.causes.groups import LR_NAMES, moved_links
from optrace.compare.causes.lr_events import Hint, around_step, loaded, more_often
from optrace.compare.causes.lr_fits import DISTINCT, Fit, Floats, Tables, lr_table, same
from optrace.compare.hyper import MISSING
from optrace.compare.words import count_words

_OPTIONS = "the schedulers step equally often: give that of {B} the options of {A}'s (start, lengths, patience, mode)"


def learning_rates(case: Case) -> Iterator[Cause]:
    """The causes of unequal learning rates, one or several ranked candidates for each pair of optimizers."""
    for pair in range(len(case.matching.pairs)):
        differing = [
            found
            for found in case.hyper.differences.values()
            if found.pair == pair and found.decides and found.key in LR_NAMES and MISSING not in (found.a, found.b)
        ]
        moved = moved_links(case, pair)
        table = [series for series in lr_table(case, pair) if series.groups not in moved]
        if differing and any(len(series.unequal) for series in table):
            yield from _Stories(Tables(case, pair, table)).decide()


def constant_factor(case: Case, pair: int) -> float | None:
    """B's lr over A's where it is one number other than 1 in all groups and at all steps."""
    table = [series for series in lr_table(case, pair) if len(series.both)]
    if not table or not all(len(series.unequal) == len(series.both) for series in table):
        return None
    return Tables(case, pair, table).constant_factor()


def shifted_by_skips(case: Case) -> bool:
    """Whether lr at the first divergent step is the other side's some steps on, as after skipped optimizer steps."""
    first = case.first
    assert first is not None
    n = int(case.column("n_skipped", 1).get(first.step, 0) - case.column("n_skipped", 0).get(first.step, 0))
    early, late = first.step, first.step + abs(n)
    for series in lr_table(case, case.pair):
        own, other = (series.b, series.a) if n > 0 else (series.a, series.b)
        if late >= len(other) or not same(own[early : early + 1], other[late : late + 1]).all():
            return False
    return n != 0


class _Stories:
    """What can be told of the learning rates of one pair of optimizers."""

    def __init__(self, tables: Tables) -> None:
        self.tables, self.case, self.pair = tables, tables.case, tables.pair
        self.table, self.changed, self.events = tables.table, tables.changed, tables.events
        self.start, self.first_a, self.first_b, self.last = tables.start, tables.first_a, tables.first_b, tables.last

    def decide(self) -> list[Cause]:
        """The one story that fits, or the several that do."""
        reset = self._reset()
        if reset is not None:
            return [reset]
        frozen = self._frozen()
        if frozen is not None:
            return [frozen]
        rate, shift = self.tables.rate(), self.tables.shift()
        constant = self.tables.constant_factor()
        told = self.tables.told()
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
        loaded_before = resumed or bool(self.case.events[1].of("load_state_dict").any())
        if again and not loaded_before:
            return None
        values = ", ".join(
            f"{figure(series.b[s])} where {{A}} has {figure(series.a[s])}" for series in self.changed[:2]
        )
        then = "and the schedule starts anew" if follows else "and goes on from there"
        fix = "in {B} build the scheduler first, then load the states of both the optimizer and the scheduler"
        if not loaded_before:
            fix = "in {B} build the scheduler once, and not again in the loop over epochs or phases"
        aligned = f"step 1 of {{B}} is step {s} of {{A}}; " if resumed else ""
        return Cause(
            "lr-reset",
            f"lr of {{B}} jumps back to its start at step {s}{' of {A}' if resumed else ''}: {values}",
            f"{fix}; a scheduler that is built later needs last_epoch={s - start - 1}",
            (f"{aligned}lr of {{B}} is {{A}}'s of step {start} again, {then}",),
            steps=(s, self.last),
        )

    def _frozen(self) -> Cause | None:
        for series in self.changed:
            both = series.both
            if len(both) < DISTINCT or len(np.unique(series.b[both])) > 1 or len(np.unique(series.a[both])) < 2:
                return None
        series = self.changed[0]
        both = series.both
        if any(_moves(other.b[other.both]) for other in self.table):
            return self._stuck()
        events = self.events[1][0]
        seen = "no scheduler step was seen in {B}" if not events else "schedulers step in {B}, but not its groups' lr"
        evidence = [f"one value at all {count_words(len(both), 'step')} of {{B}}; {seen}"]
        fix = "call scheduler.step() after each optimizer.step(), on a scheduler built for this optimizer"
        hint = self._loaded()
        if hint is not None:
            evidence.append(hint.evidence)
            fix = hint.fix
        return Cause(
            "lr-frozen",
            f"lr stays {figure(series.b[both[0]])} in {{B}}; in {{A}} it goes from {figure(series.a[both[0]])} to"
            f" {figure(series.a[both[-1]])}",
            f"in {{B}} {fix}",
            tuple(evidence),
            steps=(self.start, self.last),
        )

    def _loaded(self) -> Hint | None:
        return loaded(self.case, self.start) if self.pair == self.case.pair else None

    def _stuck(self) -> Cause | None:
        """Groups whose lr stays, beside others whose lr moves as in A."""
        if not all(_moves(other.b[other.both]) for other in self.table if not len(other.unequal)):
            return None
        series = self.changed[0]
        s, groups = int(series.unequal[0]), [str(series.groups[1]) for series in self.changed]
        which = f"group{'s' if len(groups) > 1 else ''} {', '.join(groups)}"
        return Cause(
            "lr-frozen",
            f"lr of {which} stays {figure(series.b[s])} in {{B}}, where {{A}} has {figure(series.a[s])} from step {s}"
            " on; lr of the other groups moves alike in both",
            f"in {{B}} change lr in every one of param_groups, {which} too",
            (f"one value at all {count_words(len(series.both), 'step')} of {{B}}",),
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
        if self.tables.told() == "lr-value":
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
        if self.tables.told() == "lr-value":
            fix = _OPTIONS
        evidence = [f"lr of {{B}} at step t is {{A}}'s at step t {'+' if fit.factor > 0 else '-'} {k}: {_met(fit)}"]
        hint = None
        if self.pair == self.case.pair:
            hint = more_often(self.case, fit.since) if fit.since else around_step(self.case) if k == 1 else None
        if hint is not None:
            evidence.append(hint.evidence)
            fix = hint.fix
        return Cause(
            "lr-shift",
            f"the lr schedule of {{B}} is the one of {{A}}, {count_words(k, 'step')} {when}{since}",
            f"{fix}   (checked: makes lr equal at all {count_words(fit.compared, 'place')} compared)",
            tuple(evidence),
            steps=(self.start, self.last),
        )

    def _value(self) -> Cause:
        lines, fixes, constant = [], [], True
        for series in self.changed[:3]:
            s = int(series.unequal[0])
            a, b = float(series.a[s]), float(series.b[s])
            with np.errstate(all="ignore"):
                ratio = series.b[series.unequal] / series.a[series.unequal]
            one = bool(np.isfinite(ratio).all() and ratio[0] and np.ptp(ratio) <= 1e-9 * np.abs(ratio).max())
            group = f" of group {series.groups[0]}" if len(self.table) > 1 else ""
            times = f" ({factor_words(float(ratio[0])).removesuffix(' of')} of it)" if one else ""
            at = "" if s <= max(self.first_a, self.first_b) else f" at step {s}"
            lines.append(f"lr{group} is {b!r} in {{B}}, {a!r} in {{A}}{at}{times.replace(' times of it', ' times')}")
            constant &= not _moves(series.a[series.both])
            rest = series.a[series.both[series.both >= s]]
            since = f" from step {s} on" if at else ""
            fixes.append("" if _moves(rest) else f"set lr={a!r}{group}{since}")
        n = sum(len(series.unequal) for series in self.changed)
        evidence = [f"differs at {count_words(n, 'place')} of the table; no shift, stretch or restart of it fits"]
        evidence += self._other_group()
        evidence += self._courses()
        if self._rounded():
            evidence.append("one is the other rounded to float32, as an lr in a Tensor is")
            fix = "give both lr in a Tensor, of dtype float64 to lose nothing, or neither"
        elif constant and any(_moves(series.b[series.both]) for series in self.changed):
            stays = _lr(self.changed[0].a)
            fix = f"leave out what moves lr in {{B}}, or move it in {{A}} alike: in {{A}} it stays {stays}"
        elif all(fixes):
            fix = f"in {{B}} {' and '.join(fixes)}"
        else:
            fix = "give the schedule of {B} the base lr and the options that it has in {A}"
        exchanged = self._exchanged()
        if exchanged:
            evidence.append(
                f"lr of groups {exchanged[0]} and {exchanged[1]} is exchanged: each has the other's of {{A}}"
            )
            fix = f"in {{B}} exchange what groups {exchanged[0]} and {exchanged[1]} are given, or their parameters"
        hint = self._loaded()
        if hint is not None:
            evidence.append(hint.evidence)
            fix += f": {hint.fix}" if all(fixes) else f"; {hint.fix}"
        return Cause("lr-value", "; ".join(lines), fix, tuple(evidence), steps=(self.start, self.last))

    def _exchanged(self) -> tuple[int, int] | None:
        """Two groups that have each other's lr of A at all steps; None where no two have."""
        for one, other in itertools.combinations(self.changed, 2):
            both = np.intersect1d(one.both, other.both)
            if same(one.b[both], other.a[both]).all() and same(other.b[both], one.a[both]).all():
                return one.groups[1], other.groups[1]
        return None

    def _rounded(self) -> bool:
        """Whether every lr of one side is the other's as float32 has it."""
        a = np.concatenate([series.a[series.unequal] for series in self.changed])
        b = np.concatenate([series.b[series.unequal] for series in self.changed])
        return any(bool((one.astype(np.float32).astype(np.float64) == other).all()) for one, other in ((a, b), (b, a)))

    def _courses(self) -> Iterator[str]:
        """How lr goes where it moves on both sides: first, largest and last, of the first group that differs."""
        series = self.changed[0]
        courses = [side[series.both] for side in (series.a, series.b)]
        if any(len(np.unique(course)) < DISTINCT for course in courses):
            return
        words = []
        for name, course in zip(("{A}", "{B}"), courses, strict=True):
            top, end = int(np.argmax(course)), len(course) - 1
            peak = f", {figure(float(course[top]))} at most (step {series.both[top]})" if 0 < top < end else ""
            words.append(f"{name}'s goes from {figure(float(course[0]))}{peak} to {figure(float(course[end]))}")
        yield "; ".join(words)

    def _other_group(self) -> Iterator[str]:
        """Whether a group has lost what set its lr apart from another group's."""
        for series in self.changed:
            s = int(series.unequal[0])
            for other in self.table:
                apart = series.a[series.both] / other.a[series.both]
                if len(apart) and not same(apart, apart[:1]).all():
                    continue  # its lr in A is no multiple of the other's
                if other is not series and not same(other.a[s], series.a[s]) and same(other.b[s], series.b[s]):
                    factor = figure(float(series.a[s] / other.a[s]))
                    yield (
                        f"in {{A}} group {series.groups[0]} has {factor} times the lr of group {other.groups[0]}, in"
                        " {B} the same: its own factor is lost"
                    )
                    return


def _moves(course: Floats) -> bool:
    """Whether an lr has several values."""
    return len(np.unique(course)) > 1


def _lr(course: Floats) -> str:
    return figure(float(course[np.isfinite(course)][0]))


def _met(fit: Fit) -> str:
    return f"exact at {count_words(fit.compared, 'place')} of the table with {fit.distinct} values of lr"


def _ranked(cause: Cause, among: int) -> Cause:
    return Cause(cause.code, cause.summary, cause.fix, cause.evidence, 1.0 / among, cause.steps, cause.params)
