"""`check_golden`: drive a candidate through every golden case of a rule and say where it leaves torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from optrace.errors import GoldenError, NothingCovered
from optrace.goldens.adapters import DriverOf, adapt
from optrace.goldens.candidate import load, recognise
from optrace.goldens.closure_grid import CASES as CLOSURE_CASES
from optrace.goldens.closures import ClosureDriver
from optrace.goldens.drive import Array, NotCovered, State, as_option, drive
from optrace.goldens.format import Golden
from optrace.goldens.library import case_names, check_rule
from optrace.goldens.library import load as load_golden
from optrace.goldens.looks import looks_like
from optrace.goldens.low_precision import EPS as LOW
from optrace.goldens.low_precision import check_case
from optrace.goldens.report import CaseResult, Failure, GoldenReport
from optrace.goldens.tolerance import errors, outputs
from optrace.reference.rule import RULES

Outputs = dict[int, tuple[Mapping[str, Array], State]]
"""step -> (params, state)."""


@dataclass(frozen=True)
class Run:
    """One case, driven: what the candidate made of it, and how that was judged."""

    golden: Golden
    result: CaseResult
    outputs: Outputs


def check_golden(
    candidate: Any,
    rule: str,
    dtype: str | None = None,
    options: Mapping[str, Any] | None = None,
    cases: str | Sequence[str] | None = None,
    explain: bool = True,
) -> GoldenReport:
    """Compare an optimizer or scheduler of any make with what torch computed from the same inputs.

    Args:
        candidate: a class like torch's, `C(params, lr=..., ...)` with `step()`; a NumPy class with
            `update(params, grads)`; a function `f(w, dw, config) -> (w, config)`; a pure rule
            `(param, grad, state, hyper) -> (param, state)`; for a schedule a class `C(optimizer, ...)` with `step()`;
            or `"module:Name"` of one.
        rule: torch's class name in lower case, `"sgd"`, `"adamw"`, `"steplr"`.
        dtype: of the parameters: "float64", "float32" (both, when left out), "bfloat16" or "float16" (each step judged
            by itself, see `optrace.goldens.low_precision`; needs a torch-like class with state under torch's names).
        options: given to the candidate's constructor each time (`{"fused": True}`). An option of the rule itself
            restricts the check to the cases that have this value.
        cases: only these, by name or glob (`"groups*"`).
        explain: whether to look for the known mistake behind a difference.

    Returns:
        A report with `.same`, every case's result, and the known mistake that it looks like. What the candidate has no
        option for is listed as not covered and does not count.

    Raises:
        GoldenError: no such rule or case; the candidate is none, cannot be built, or lacks what every case asks for.
    """
    rule = check_rule(rule)
    thing = load(candidate) if isinstance(candidate, str) else candidate
    if rule not in RULES:
        from optrace.goldens.check_schedule import check_schedule

        return check_schedule(thing, rule, options or {}, cases, explain)
    dtype = None if dtype is None else str(dtype).removeprefix("torch.")
    if dtype is not None and dtype not in ("float64", "float32", *LOW):
        raise GoldenError(f"goldens are checked in float64, float32, {' and '.join(LOW)}, not in {dtype!r}")
    defaults = RULES[rule].defaults
    fixed = {name: as_option(value) for name, value in (options or {}).items() if name in defaults}
    extra = {name: value for name, value in (options or {}).items() if name not in defaults}
    recognised = recognise(thing, extra)
    runs: list[Run] = []
    for kind in [dtype] if dtype is not None else ["float64", "float32"]:
        driver_of = adapt(recognised, rule, defaults, kind)
        goldens = [load_golden(name) for name in chosen_cases(rule, kind, cases)]
        for golden in goldens:
            if _has(golden, fixed):
                low = kind not in ("float64", "float32")
                runs.append(
                    Run(golden, check_case(golden, kind, driver_of), {}) if low else run_case(golden, driver_of)
                )
    if not runs:
        raise GoldenError(f"no case of {rule} has {', '.join(f'{k}={v!r}' for k, v in fixed.items())}")
    return report_of(recognised.name, rule, runs, explain)


def report_of(name: str, rule: str, runs: Sequence[Run], explain: bool) -> GoldenReport:
    """The report of driven cases; GoldenError when none could be judged."""
    results = tuple(run.result for run in runs)
    if all(result.lacks is not None for result in results):
        lacking = "; ".join(dict.fromkeys(str(result.lacks) for result in results))
        raise NothingCovered(f"nothing of {name} could be checked against {rule}: it lacks {lacking}")
    return GoldenReport(name, rule, results, looks_like(name, rule, runs) if explain else ())


def chosen_cases(rule: str, dtype: str, patterns: str | Sequence[str] | None) -> list[str]:
    """Names of the rule's cases of a dtype that match; low precision uses the float32 cases."""
    names = case_names(rule)
    chosen = [name for name in names if name.endswith("-float32") != (dtype == "float64")]
    order = {name: number for number, name in enumerate(_grid_order(rule))}
    chosen.sort(key=lambda name: order.get(name.removesuffix("-float32"), len(order)))
    return matching(rule, chosen, patterns)


def matching(rule: str, chosen: list[str], patterns: str | Sequence[str] | None) -> list[str]:
    """Those of the names that match one of the patterns; GoldenError if a rule has no such case at all."""
    if patterns is None:
        return chosen
    names = case_names(rule)
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    kept = [
        name
        for name in chosen
        for short in [name.partition("/")[2].removesuffix("-float32")]
        if any(fnmatchcase(short, p.removeprefix(f"{rule}/")) or name == p.removeprefix("golden:") for p in wanted)
    ]
    if not kept and not any(fnmatchcase(name.partition("/")[2], p) or name == p for name in names for p in wanted):
        raise GoldenError(f"no case of {rule} is called {', '.join(wanted)}; see optrace golden list {rule}")
    return kept


def _grid_order(rule: str) -> list[str]:
    from optrace.goldens.grid import cases

    if rule == "lbfgs":
        return [f"{rule}/{case.name}" for case in CLOSURE_CASES]
    return [f"{rule}/{case.name}" for case in cases(rule)]


def _has(golden: Golden, fixed: Mapping[str, Any]) -> bool:
    return all(as_option(group.get(name)) == value for group in golden.hyper for name, value in fixed.items())


def run_case(golden: Golden, driver_of: DriverOf) -> Run:
    """Drive and judge one case; what the candidate raises is part of the result."""
    done: Outputs = {}
    try:
        driver = driver_of(golden)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            steps = driver.run() if isinstance(driver, ClosureDriver) else drive(golden, driver)
            for step, params, state in steps:
                done[step] = (params, state)
        unread: Callable[[], list[str]] = getattr(driver, "unread", list)
        if unread():
            raise NotCovered(", ".join(unread()))
    except NotCovered as lacking:
        return Run(golden, CaseResult(golden.name, lacks=str(lacking)), done)
    except GoldenError:
        raise
    except Exception as error:
        raised = f"step {len(done) + 1} raised {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return Run(golden, CaseResult(golden.name, raised=raised), done)
    return Run(golden, judge(golden, done), done)


def judge(golden: Golden, got: Outputs) -> CaseResult:
    """Find the first number that is further off than allowed. State counts where it bears torch's names."""
    eps = float(np.finfo(golden.dtype).eps)
    state_tolerance = float(golden.notes.get("tolerance_state", golden.tolerance_free))
    worst = 0.0
    for step, param, quantity, expected, scale in outputs(golden):
        params, state = got[step]
        if quantity == "param":
            values, tolerance = params.get(param), golden.tolerance_free
        else:
            kept, key = state.get(param, {}), quantity.removeprefix("state.")
            values, tolerance = kept.get(key), state_tolerance
            if values is None and not _keeps_others(kept, key):
                continue
        failure = _failure(step, param, quantity, values, expected, scale, eps, tolerance)
        if failure is not None:
            return CaseResult(golden.name, failure=failure, worst=worst, tolerance=golden.tolerance_free)
        if quantity == "param":
            worst = max(worst, float(np.max(errors(np.asarray(values), expected, scale, eps), initial=0.0)))
    return CaseResult(golden.name, worst=worst, tolerance=golden.tolerance_free)


def _keeps_others(kept: Mapping[str, Array], key: str) -> bool:
    """Whether an entry of a list (`old_dirs.3`) is missing while there are others of it."""
    name, _, number = key.rpartition(".")
    return number.isdigit() and any(other.startswith(f"{name}.") for other in kept)


def _failure(
    step: int, param: str, quantity: str, values: Any, expected: Array, scale: Array, eps: float, tolerance: float
) -> Failure | None:
    if values is None or np.shape(values) != expected.shape:
        nan = float("nan")
        return Failure(step, param, f"{quantity} (shape {np.shape(values)})", (), nan, nan, float("inf"), tolerance)
    found = errors(values, expected, scale, eps)
    if not (found > tolerance).any():
        return None
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(found)), found.shape))
    got, wanted = float(np.asarray(values)[index]), float(expected[index])
    return Failure(step, param, quantity, index, got, wanted, float(found[index]), tolerance)
