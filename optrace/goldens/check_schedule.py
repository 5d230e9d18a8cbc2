"""The golden check of learning-rate schedules: every lr and momentum after every step, bit for bit."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optrace.errors import GoldenError, NothingCovered
from optrace.goldens.candidate import name_of
from optrace.goldens.drive import NotCovered
from optrace.goldens.format import Golden, Row
from optrace.goldens.library import case_names, load
from optrace.goldens.report import CaseResult, Failure, GoldenReport, Look
from optrace.goldens.schedule_driver import drive_schedule
from optrace.reference.schedulers import SCHEDULES

EPS = float(np.finfo(np.float64).eps)
ROUNDING = 64.0
"""Up to so many eps a difference is the rounding of another formula for the same lr."""
MOST_SHIFT = 3


@dataclass(frozen=True)
class ScheduleRun:
    """One case, driven."""

    golden: Golden
    result: CaseResult
    got: Mapping[tuple[int, int, str], Any]
    """(step, group, option) -> value."""

    def series(self, group: int, name: str = "lr") -> tuple[list[float], list[float]]:
        """The candidate's and torch's values of one option from step 0 on."""
        steps = [step for step in range(self.golden.steps + 1) if (step, group, name) in self.got]
        wanted = {(r.step, r.group, r.param): r.values for r in self.golden.rows if r.quantity == "hyper"}
        return [float(self.got[s, group, name]) for s in steps], [float(wanted[s, group, name]) for s in steps]


def check_schedule(
    thing: Any, rule: str, options: Mapping[str, Any], cases: str | Sequence[str] | None, explain: bool = True
) -> GoldenReport:
    """See `optrace.goldens.check.check_golden`; `thing` is a class over an optimizer with `param_groups`."""
    from functools import partial

    from optrace.goldens.check import matching

    if not callable(thing):
        raise GoldenError(
            f"{name_of(thing)} is no class over an optimizer; a schedule is C(optimizer, ...) with step()"
        )
    make = partial(thing, **options) if options else thing
    names = matching(rule, [n for n in _in_order(rule, case_names(rule))], cases)
    runs = [run_schedule(load(name), make) for name in names]
    results = tuple(run.result for run in runs)
    name = name_of(thing)
    if all(result.lacks is not None for result in results):
        lacking = ", ".join(dict.fromkeys(str(result.lacks) for result in results))
        raise NothingCovered(f"nothing of {name} could be checked against {rule}: it lacks {lacking}")
    return GoldenReport(name, rule, results, schedule_looks(name, rule, runs) if explain else ())


def _in_order(rule: str, names: Sequence[str]) -> list[str]:
    from optrace.goldens.schedule_grid import schedule_cases

    order = {f"{rule}/{case.name}": number for number, case in enumerate(schedule_cases(rule))}
    return sorted(names, key=lambda name: order.get(name, len(order)))


def run_schedule(golden: Golden, make: Callable[..., Any]) -> ScheduleRun:
    """Drive and judge one case."""
    got: dict[tuple[int, int, str], Any] = {}
    try:
        with np.errstate(all="ignore"):
            for _, rows in drive_schedule(golden, make):
                got |= {(row.step, row.group, row.param): row.values for row in rows}
    except NotCovered as lacking:
        return ScheduleRun(golden, CaseResult(golden.name, lacks=str(lacking)), got)
    except Exception as error:
        where = f"step {max(step for step, _, _ in got) + 1}" if got else "construction"
        raised = f"{where} raised {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return ScheduleRun(golden, CaseResult(golden.name, raised=raised), got)
    return ScheduleRun(golden, _judged(golden, got), got)


def _judged(golden: Golden, got: Mapping[tuple[int, int, str], Any]) -> CaseResult:
    for row in golden.rows:
        if row.quantity == "hyper":
            failure = _failure(row, got.get((row.step, row.group, row.param)))
            if failure is not None:
                return CaseResult(golden.name, failure=failure)
    return CaseResult(golden.name)


def _failure(row: Row, value: Any) -> Failure | None:
    nan = float("nan")
    if value is None or np.shape(value) != row.values.shape:
        return Failure(row.step, f"group {row.group}", row.param, (), nan, nan, float("inf"), 0.0)
    got, wanted = np.asarray(value, dtype=np.float64), row.values
    different = (got != wanted) & ~(np.isnan(got) & np.isnan(wanted))
    if not different.any():
        return None
    index = tuple(int(i) for i in np.argwhere(different)[0])
    a, b = float(got[index]), float(wanted[index])
    size = max(abs(a), abs(b))
    error = abs(a - b) / (EPS * size) if np.isfinite(a) and np.isfinite(b) else float("inf")
    return Failure(row.step, f"group {row.group}", row.param, index, a, b, error, 0.0)


def schedule_looks(name: str, rule: str, runs: Sequence[ScheduleRun]) -> tuple[Look, ...]:
    """What the sequences of lr look like, decided as in a diff: rounding, frozen, rate, shift, value."""
    differing = [run for run in runs if run.result.failure is not None]
    if not differing:
        return ()
    cases = tuple(run.result.case for run in differing)

    def look(code: str, variant: str, summary: str, fix: str) -> tuple[Look, ...]:
        return (Look(code, variant, f"{name} {summary}", f"in {name} {fix}", cases, len(differing)),)

    if _is_closed(rule, differing):
        return look(
            "lr-value",
            "closed-form",
            f"computes lr from the initial lr each time; torch's {rule} multiplies the current lr, so that edits of lr "
            "and other schedulers live on",
            "multiply group['lr'] by the factor of this step",
        )
    if all(_is_rounding(run) for run in differing):
        worst = max(run.result.failure.error for run in differing if run.result.failure is not None)
        return look(
            "noise",
            "rounding",
            f"rounds differently, by {worst:.2g} eps: it computes the same lr by another formula; torch's {rule} "
            "is to be met bit for bit",
            "write the formula as optrace.reference.schedulers has it",
        )
    plain = [run for run in differing if "resume" not in run.golden.notes]
    if not plain:
        return look(
            "lr-reset",
            "resume",
            f"goes on elsewhere after it was saved and loaded; torch's {rule} goes on where it was",
            "save and load last_epoch and all that counts",
        )
    if all(_is_frozen(run) for run in plain):
        return look("lr-frozen", "frozen", "never changes lr; torch's does", "write group['lr'] in step()")
    for factor in (2, 3):
        if all(_is_rate(run, factor) for run in plain):
            return look(
                "lr-rate", f"times-{factor}", f"runs {factor} times as fast as torch's {rule}", "count once a step"
            )
    for shift in (*range(1, MOST_SHIFT + 1), *range(-1, -MOST_SHIFT - 1, -1)):
        if all(_is_shift(run, shift) for run in plain):
            when = f"{abs(shift)} step{'s' * (abs(shift) > 1)} {'early' if shift > 0 else 'late'}"
            return look(
                "lr-shift", f"shift{shift:+d}", f"is torch's {rule}, {when}", "let last_epoch be 0 at construction"
            )
    ratios = {_ratio(run) for run in plain}
    if len(ratios) == 1 and (ratio := ratios.pop()) is not None:
        return look("lr-value", "factor", f"has {ratio:.6g} times the lr of torch's {rule}", "look for that factor")
    return ()


def _is_closed(rule: str, runs: Sequence[ScheduleRun]) -> bool:
    """Whether the reference, asked for each epoch by its closed form, gives the candidate's numbers."""
    base = SCHEDULES[rule]
    if not hasattr(base, "_get_closed_form_lr"):
        return False

    class Closed(base):  # type: ignore[misc, valid-type]
        def step(self, epoch: float | None = None) -> None:
            super().step(self.last_epoch + 1 if epoch is None else epoch)

    for run in runs:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for _, rows in drive_schedule(run.golden, Closed):
                    for row in rows:
                        if not np.array_equal(run.got[row.step, row.group, row.param], row.values, equal_nan=True):
                            return False
        except (KeyError, ArithmeticError, TypeError):
            return False
    return True


def _pairs(run: ScheduleRun) -> list[tuple[list[float], list[float]]]:
    return [run.series(group) for group in range(len(run.golden.hyper))]


def _is_rounding(run: ScheduleRun) -> bool:
    return all(
        abs(a - b) <= ROUNDING * EPS * max(abs(a), abs(b)) or (a != a and b != b)
        for got, wanted in _pairs(run)
        for a, b in zip(got, wanted, strict=True)
    )


def _is_frozen(run: ScheduleRun) -> bool:
    return all(len(set(got)) == 1 for got, _ in _pairs(run)) and not any(
        row.quantity == "edit" for row in run.golden.rows
    )


def _is_rate(run: ScheduleRun, factor: int) -> bool:
    return all(
        len(set(got)) >= 3 and _close(got[: len(wanted[::factor])], wanted[::factor]) for got, wanted in _pairs(run)
    )


def _is_shift(run: ScheduleRun, shift: int) -> bool:
    for got, wanted in _pairs(run):
        early, late = (got, wanted) if shift > 0 else (wanted, got)
        count = len(got) - abs(shift)
        if len(set(wanted)) < 3 or not _close(early[:count], late[abs(shift) :]):
            return False
    return True


def _close(a: Sequence[float], b: Sequence[float]) -> bool:
    return bool(np.allclose(a, b, rtol=ROUNDING * EPS, atol=0, equal_nan=True))


def _ratio(run: ScheduleRun) -> float | None:
    found = {f"{a / b:.10g}" for got, wanted in _pairs(run) for a, b in zip(got, wanted, strict=True) if b}
    return float(found.pop()) if len(found) == 1 else None
