"""Which story fits two tables of learning rates: a stretched, a shifted or a multiplied one, exactly and everywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optrace.compare.causes.case import Case
from optrace.compare.causes.groups import LR_NAMES

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SAME = 1e-12
"""Relative difference up to which two learning rates are one (closed form against recursion)."""
DISTINCT = 3
"""Values that a schedule must show before a stretched or shifted one is recognised."""
FASTEST = 64


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


def lr_table(case: Case, pair: int) -> list[Series]:
    """The learning rates of every link of groups of a pair of optimizers."""
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


class Tables:
    """The learning rates of one pair of optimizers, and what fits all of them."""

    def __init__(self, case: Case, pair: int, table: list[Series]) -> None:
        self.case, self.pair, self.table = case, pair, table
        self.changed = [series for series in table if len(series.unequal)]
        self.start = min(int(series.unequal[0]) for series in self.changed)
        recorded = [np.flatnonzero(np.isfinite(series.b)) for series in table]
        self.first_b = min(int(steps[0]) for steps in recorded if len(steps))
        self.first_a = min(int(np.flatnonzero(np.isfinite(s.a))[0]) for s in table if np.isfinite(s.a).any())
        self.last = max(int(series.both[-1]) for series in self.changed)
        self.events = [self._scheduler(side) for side in (0, 1)]

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

    def rate(self) -> Fit | None:
        """B's table as A's so many times as fast, or as slow (a negative factor)."""
        return _best(self._rates())

    def shift(self) -> Fit | None:
        """B's table as A's so many steps early, or late (a negative factor)."""
        return _best(self._shifts())

    def told(self) -> str | None:
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

    def _scheduler(self, side: int) -> tuple[float, dict[int, int]]:
        """Scheduler steps an optimizer step, and last_epoch by step; (0, {}) where none was seen."""
        matched = self.case.matching.pairs[self.pair]
        index = matched.a if side == 0 else matched.b
        events = self.case.events[side]
        steps = int(events.of("step", optimizer=(index, -1)).sum())
        seen, classes, epochs = 0, set(), {}
        for event in events.read(events.of("scheduler_step", optimizer=(index, -1))):
            seen += 1
            classes.add(event.data.get("class"))
            if isinstance(event.data.get("last_epoch"), int):
                epochs[event.step] = int(event.data["last_epoch"])
        return (seen / max(len(classes), 1) / steps if steps else 0.0), epochs

    def _fit(self, index: Callable[[Ints], Ints], factor: int, since: int = 0) -> Fit | None:
        """Whether B's table from step `since` on is A's at steps `index(t)`; None where too little can be compared."""
        compared, distinct, met = 0, 0, 0
        for series in self.table:
            own, other = series.b, series.a
            steps = np.flatnonzero(np.isfinite(own))
            steps = steps[steps >= since]
            at = index(steps)
            inside = (at >= self.first_a) & (at < len(other))
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

    def _moved(self, shift: int, waits: bool) -> Callable[[Ints], Ints]:
        """Steps of A for those of B; a late schedule waits at A's first, or begins with values that A never had."""
        return lambda steps: np.maximum(steps + shift, self.first_a) if waits else steps + shift

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
                for shift, waits in ((k, True), (-k, True), (-k, False)):
                    fit = self._fit(self._moved(shift, waits), shift, since)
                    if fit is not None and 2 * fit.met >= unequal and (waits or 3 * k <= fit.compared):
                        found = True
                        yield fit
                        break
            if found:
                return


def _best(fits: Iterator[Fit]) -> Fit | None:
    """The fit that meets most values; None when several meet as many."""
    found = sorted(fits, key=lambda fit: (-fit.distinct, -fit.compared))
    return found[0] if found else None
