"""How far a correct implementation may be from a golden, and how far a given one is.

Errors are measured in eps of the case's dtype times a scale, element by element: the largest that the number itself has
been so far (an error once made stays in a sum), plus the root mean square of the tensor's largest change so far (what
was added may have cancelled).

**A step.** A correct implementation orders its operations as it likes, and fuses multiply and add or not. Measured
over all of torch's implementations, two such differ by less than 1.8 eps of that scale after one step from the same
numbers (3.2 eps with a square root of one ulp's error). We allow 4, `STEP`.

**Free-running.** Whoever makes the largest permitted error in every step carries it along. So the reference rule
is run through the case several times, each parameter and each state tensor disturbed after every step by STEP eps of
its own size: always upwards, always downwards, and in random directions. The largest distance from the undisturbed
run, and STEP once more for the golden's own error, is what a correct implementation may claim: `tolerance_free` for
parameters, `tolerance_state` for state. Nothing in it was measured on an implementation. An exact zero stays one.
State scalars that torch keeps in float32 (`mu_product` of NAdam, `eta` and `mu` of ASGD) are disturbed in eps of
float32, in float64 cases too: an implementation that keeps them in double is as good as torch's. Muon iterates
in bfloat16 and multiplies small singular values by hundreds on the way: every operation in there is disturbed by up to
one eps of bfloat16, at random.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from optrace.goldens.drive import Array, State, drive, with_outputs
from optrace.goldens.format import Golden
from optrace.goldens.rule_driver import PureStep, RuleDriver
from optrace.goldens.tolerance_muon import astray
from optrace.reference.arithmetic import rounding
from optrace.reference.rule import RULES

STEP = 4.0
"""Eps of the scale that a correct implementation may be off after one step."""
DRAWS = 6


class Scale:
    """The scale of the errors of one tensor, growing from step to step."""

    def __init__(self, start: Array | None = None) -> None:
        """From the value before the first step; None for state, which starts from nothing."""
        self._last = None if start is None else _wide(start)
        self._size: Array | float = 0.0 if start is None else np.abs(_wide(start))
        self._change = 0.0

    def after(self, value: Array) -> Array:
        """Take one more value in and return the scale, of its shape."""
        wide = _wide(value)
        change = wide - (0.0 if self._last is None else self._last)
        change = change[np.isfinite(change)]
        if change.size:
            self._change = max(self._change, float(np.sqrt(np.mean(change**2))))
        self._size = np.maximum(self._size, np.where(np.isfinite(wide), np.abs(wide), 0.0))
        self._last = wide
        return np.asarray(self._size + self._change)


def _wide(values: Array) -> Array:
    return np.asarray(values, dtype=np.float64)


def errors(got: Array, expected: Array, scale: Array, eps: float) -> Array:
    """Distance of each element in eps of its scale; inf where only one side is a number, or the sign of inf differs."""
    got, expected = _wide(got), _wide(expected)
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    with np.errstate(all="ignore"):
        distance = np.abs(got - expected) / (eps * scale)
    return np.where(same, 0.0, np.where(np.isfinite(distance), distance, np.inf))


def outputs(golden: Golden) -> Iterator[tuple[int, str, str, Array, Array]]:
    """(step, param, quantity, expected, scale) of every output of an optimizer case, in causal order."""
    scales: dict[tuple[str, str], Scale] = {
        (row.param, "param"): Scale(row.values) for row in golden.rows_at(0, "param")
    }
    quantities = list(dict.fromkeys(row.quantity for row in golden.rows if row.quantity.startswith("state.")))
    for step in range(1, golden.steps + 1):
        for quantity in ("param", *quantities):
            for row in golden.rows_at(step, quantity):
                scale = scales.setdefault((row.param, quantity), Scale())
                yield step, row.param, quantity, row.values, scale.after(row.values)


def distances(golden: Golden, got: Mapping[int, tuple[Mapping[str, Array], State]]) -> dict[str, float]:
    """The largest error of params and of state, `{"param": ..., "state": ...}`, in eps; state that is absent is not."""
    eps = float(np.finfo(golden.dtype).eps)
    worst = {"param": 0.0, "state": 0.0}
    for step, param, quantity, expected, scale in outputs(golden):
        params, state = got[step]
        kind = "param" if quantity == "param" else "state"
        values = params[param] if kind == "param" else state.get(param, {}).get(quantity.removeprefix("state."))
        if values is not None:
            worst[kind] = max(worst[kind], float(np.max(errors(values, expected, scale, eps), initial=0.0)))
    return worst


def derive(golden: Golden) -> dict[str, float]:
    """The free-running tolerances `{"param": ..., "state": ...}` of an optimizer case, from its inputs alone."""
    rule = RULES[golden.rule]
    sparse = "sparse" in golden.notes
    with rounding(fma=False):
        clean = with_outputs(golden, RuleDriver(rule.step, sparse))
        worst = {"param": STEP, "state": STEP}
        for draw in range(DRAWS):
            disturbed = _disturbed(rule.step, golden.rule, draw)
            got = {step: (params, state) for step, params, state in drive(golden, RuleDriver(disturbed, sparse))}
            found = distances(clean, got)
            worst = {kind: max(worst[kind], found[kind]) for kind in worst}
    return {kind: two_digits(value + STEP) for kind, value in worst.items()}


def _disturbed(step: PureStep, rule: str, draw: int) -> PureStep:
    rng = np.random.default_rng(draw)

    def direction(shape: tuple[int, ...]) -> Array:
        if draw < 2:
            return np.full(shape, 1.0 if draw else -1.0)
        return rng.uniform(-1.0, 1.0, shape)

    def shaken(old: Any, new: Array) -> Array:
        eps = float(np.finfo(new.dtype).eps)
        size = np.where(new == 0, 0.0, np.maximum(np.abs(_wide(new)), np.abs(_wide(old))))
        return np.asarray(_wide(new) + direction(new.shape) * STEP * eps * size).astype(new.dtype)

    def run(param: Array, grad: Any, state: Mapping[str, Any], hyper: Mapping[str, Any]) -> tuple[Any, Any]:
        new, entries = step(param, grad, state, hyper)
        if grad is None:
            return new, entries
        if rule == "muon":
            new = np.asarray(new - astray(grad, entries, hyper, rng)).astype(param.dtype)
        kept = {
            key: value if key == "step" else shaken(state.get(key, 0.0), np.asarray(value))
            for key, value in entries.items()
        }
        return shaken(param, np.asarray(new)), kept

    return run


def two_digits(value: float) -> float:
    """Rounded up to two significant digits, whole below 100."""
    if value <= 99:
        return float(math.ceil(value))
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(math.ceil(value / unit) * unit)
