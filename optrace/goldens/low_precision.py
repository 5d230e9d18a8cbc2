"""The golden check in bfloat16 and float16: each step judged from the candidate's own rounded numbers.

After one step in low precision a run goes its own way, so nothing can be compared free-running. Each step is judged by
itself instead: the reference rule, in float64, takes the parameter and the state that the candidate held before the
step, and what the candidate has after it may differ by

    1.5 eps of the larger of old and new value      three roundings of the result, half a unit each
  + 4 eps of the change and of its root mean square     what the operations on the way may round
  + 2 of the smallest number that the dtype holds

element by element, eps being the distance from 1 to the next number of the dtype. This needs the state under torch's
names, in `optimizer.state[param]`; without it the case is not covered.

Inputs are the float32 case's, with what low precision cannot hold taken out: gradients have their size brought to 0.5
to 1.5 (4 times that at step 4), since squares of small ones vanish in float16; and there eps is at least 0.001.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from optrace.errors import GoldenError
from optrace.goldens.adapters import DriverOf
from optrace.goldens.closures import ClosureDriver
from optrace.goldens.drive import Array, Driver, Group, Inputs, NotCovered
from optrace.goldens.format import Golden, Row
from optrace.goldens.report import CaseResult, Failure
from optrace.goldens.rule_driver import sparse_grad
from optrace.goldens.tolerance import STEP
from optrace.goldens.tolerance_muon import astray
from optrace.reference.rule import RULES

EPS = {"bfloat16": 2.0**-7, "float16": 2.0**-10}
SMALLEST = {"bfloat16": 2.0**-133, "float16": 2.0**-24}
RESULT = 1.5
"""Eps of the result itself: a decay and two moves, as in NAdam, round it three times."""
LEAST_EPS = 1e-3
"""Of the option `eps` in float16."""
SPIKE = 4


def moderate(golden: Golden, dtype: str) -> Golden:
    """The case with inputs that a dtype of low precision holds exactly; `dtype` is bfloat16 or float16."""
    if dtype not in EPS:
        raise GoldenError(f"goldens are checked in float64, float32, bfloat16 and float16, not in {dtype!r}")
    rows: list[Row] = []
    for row in golden.rows:
        if row.quantity == "hyper":
            rows.append(replace(row, values=_option(row.param, row.values, dtype)))
        elif row.quantity == "grad":
            largest = float(np.max(np.abs(row.values), initial=0.0)) or 1.0
            sized = np.sign(row.values) * (0.5 + np.abs(row.values) / largest) * (SPIKE if row.step == SPIKE else 1)
            rows.append(replace(row, values=rounded(sized, dtype)))
        elif row.step == 0:
            rows.append(replace(row, values=rounded(row.values, dtype)))
    hyper = tuple({k: _option(k, v, dtype) for k, v in group.items()} for group in golden.hyper)
    return replace(golden, rows=tuple(rows), hyper=hyper)


def _option(name: str, value: Any, dtype: str) -> Any:
    if name != "eps":
        return value
    if isinstance(value, (list, tuple)):  # Adafactor's, whose None is the eps of the parameters' dtype
        return [EPS[dtype] if value[0] is None else value[0], value[1]]
    return np.maximum(value, LEAST_EPS) if dtype == "float16" else value


def rounded(values: Array, dtype: str) -> Array:
    """float32 values that the dtype holds."""
    if dtype == "float16":
        return values.astype(np.float16).astype(np.float32)
    bits = np.asarray(values, dtype=np.float32).view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) & np.uint64(0xFFFF0000)
    return bits.astype(np.uint32).view(np.float32).reshape(np.shape(values))


def check_case(golden: Golden, dtype: str, driver_of: DriverOf) -> CaseResult:
    """Drive a float32 case in low precision and judge every step."""
    inputs = moderate(golden, dtype)
    name = f"{golden.rule}/{golden.case}-{dtype}"
    try:
        driver = driver_of(inputs)
        assert not isinstance(driver, ClosureDriver)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return _driven(inputs, dtype, driver, name)
    except NotCovered as lacking:
        return CaseResult(name, lacks=str(lacking))
    except GoldenError:
        raise
    except Exception as error:
        return CaseResult(name, raised=f"raised {type(error).__name__}: {' '.join(str(error).split())[:200]}")


def _driven(golden: Golden, dtype: str, driver: Driver, name: str) -> CaseResult:
    inputs = Inputs(golden)
    driver.start(inputs.params, inputs.groups)
    options = [dict(group.options) for group in inputs.groups]
    group_of = _group_of(inputs.groups)
    worst = 0.0
    last = max(row.step for row in golden.rows)
    for step in range(1, last + 1):
        for group, option, value in inputs.edits(step):
            driver.write_option(group, option, value)
            options[group][option] = value
        before, state_before = driver.params(), driver.state()
        grads = inputs.grads(step)
        driver.step(grads)
        after, state_after = driver.params(), driver.state()
        for param, grad in grads.items():
            judge = _Judge(golden, dtype, step, param, options[group_of[param]])
            found = judge(before[param], state_before.get(param, {}), grad, after[param], state_after.get(param, {}))
            if isinstance(found, Failure):
                return CaseResult(name, failure=found, worst=worst, tolerance=1.0)
            worst = max(worst, found)
        if step == inputs.resume:
            driver.save_and_load()
    return CaseResult(name, worst=worst, tolerance=1.0)


def _group_of(groups: tuple[Group, ...]) -> dict[str, int]:
    return {name: number for number, group in enumerate(groups) for name in group.params}


class _Judge:
    """One parameter in one step."""

    def __init__(self, golden: Golden, dtype: str, step: int, param: str, hyper: Mapping[str, Any]) -> None:
        self.golden, self.dtype, self.step, self.param, self.hyper = golden, dtype, step, param, hyper

    def __call__(
        self,
        old: Array,
        state: Mapping[str, Array],
        grad: Array | None,
        new: Array,
        new_state: Mapping[str, Array],
    ) -> float | Failure:
        """The largest error as a share of what is allowed, or the first failure."""
        rule = RULES[self.golden.rule]
        wide = {key: value if value.ndim == 0 else value.astype(np.float64) for key, value in state.items()}
        wide = {key: value for key, value in wide.items() if key in rule.state_keys}
        given: Any = None if grad is None else grad.astype(np.float64)
        if given is not None and "sparse" in self.golden.notes:
            given = sparse_grad(given)
        expected, expected_state = rule.step(old.astype(np.float64), given, wide, self.hyper)
        lacking = [key for key in expected_state if key not in new_state]
        if lacking and grad is not None:
            raise NotCovered(f"state under torch's names ({', '.join(lacking)}), which {self.dtype} needs")
        slack: Array | float = 0.0
        if self.golden.rule == "muon" and grad is not None:
            rng = np.random.default_rng(self.step)
            draws = [np.abs(astray(given, expected_state, self.hyper, rng)) for _ in range(8)]
            slack = STEP * np.max(draws, axis=0)
        worst = 0.0
        for quantity, before, got, wanted in (
            ("param", old, new, expected),
            *(
                (f"state.{key}", state.get(key, np.zeros(())), new_state[key], value)
                for key, value in expected_state.items()
                if key in new_state
            ),
        ):
            extra = slack if quantity == "param" else 0.0
            found = self._compared(quantity, before, got, np.asarray(wanted, dtype=np.float64), extra)
            if isinstance(found, Failure):
                return found
            worst = max(worst, found)
        return worst

    def _compared(
        self, quantity: str, before: Array, got: Array, wanted: Array, slack: Array | float
    ) -> float | Failure:
        old = np.asarray(before, dtype=np.float64)
        change = wanted - old
        eps = EPS[self.dtype]
        if got.ndim == 0 and quantity != "param":
            eps = max(eps, float(np.finfo(np.float32).eps))
        allowed = RESULT * eps * np.maximum(np.abs(old), np.abs(wanted)) + slack + 2 * SMALLEST[self.dtype]
        allowed = allowed + STEP * eps * (np.abs(change) + np.sqrt(np.mean(change**2)))
        with np.errstate(all="ignore"):
            share = np.abs(got - wanted) / allowed
        share = np.where(got == wanted, 0.0, np.where(np.isfinite(share), share, np.inf))
        if (share <= 1).all():
            return float(np.max(share, initial=0.0))
        index = tuple(int(i) for i in np.unravel_index(int(np.argmax(share)), share.shape))
        error = float(share[index])
        return Failure(self.step, self.param, quantity, index, float(got[index]), float(wanted[index]), error, 1.0)
