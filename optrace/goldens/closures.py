"""The cases of L-BFGS, which asks for loss and gradient at points of its own choice: a case holds the function.

A case's header `loss` names the function and its rows of step 0 with quantity `input` hold its numbers:

    least-squares   0.5 * sum(u**2)                      gradient A.T @ u                          u = A @ x - y
    wells           sum(u**2 / 20 - 1 / (1 + u**2))      gradient A.T @ (u / 10 + 2 * u / (1 + u**2)**2)
    rosenbrock      sum(100 * (x[i+1] - x[i]**2)**2 + (1 - x[i])**2)

x is all parameters in order, flattened and joined. Each step calls `step(closure)`; the closure writes the gradients
and returns the loss. State is that of the first parameter, which stands for all; entry i of a list is
`state.<key>.<i>`. `al`, in which torch keeps numbers of one iteration only, is left out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from optrace.goldens.closure_grid import CASES, closure_inputs
from optrace.goldens.drive import Array, NotCovered, State, as_option
from optrace.goldens.format import Golden, Row
from optrace.goldens.object_driver import NumpyTensors, Tensors, entries_of
from optrace.goldens.tolerance import STEP, distances, two_digits
from optrace.reference.lbfgs import LBFGS

Build = Callable[[list[Any], Mapping[str, Any]], Any]
DRAWS = 24


def evaluate(golden: Golden, x: Array) -> tuple[Any, Array]:
    """Loss and gradient at x, in x's dtype; silent where they overflow."""
    with np.errstate(all="ignore"):
        return _evaluate(golden, x)


def _evaluate(golden: Golden, x: Array) -> tuple[Any, Array]:
    if golden.notes["loss"] == "least-squares":
        inputs = golden.at(0, "input")
        rest = inputs["A"] @ x - inputs["y"]
        return x.dtype.type(0.5) * (rest * rest).sum(), inputs["A"].T @ rest
    one, two, ten = x.dtype.type(1), x.dtype.type(2), x.dtype.type(10)
    if golden.notes["loss"] == "wells":
        inputs = golden.at(0, "input")
        u = inputs["A"] @ x - inputs["y"]
        square = u * u
        slopes = u / ten + two * u / ((one + square) * (one + square))
        return (square / (two * ten) - one / (one + square)).sum(), inputs["A"].T @ slopes
    hundred = ten * ten
    gap, away = x[1:] - x[:-1] ** 2, one - x[:-1]
    grad = np.zeros_like(x)
    grad[:-1] += -two * away - two * two * hundred * gap * x[:-1]
    grad[1:] += two * hundred * gap
    return (hundred * gap * gap + away * away).sum(), grad


class ClosureDriver:
    """An optimizer with `step(closure)` over all parameters of a case in one group."""

    def __init__(
        self, golden: Golden, build: Build, tensors: Tensors, noise: np.random.Generator | None = None
    ) -> None:
        """`noise` disturbs every gradient and loss by STEP eps."""
        self._golden, self._build, self._tensors, self._noise = golden, build, tensors, noise
        self._options = {k: as_option(v) for k, v in golden.hyper[0].items()}
        start = golden.at(0, "param")
        self.parameters = {name: tensors.parameter(values, False) for name, values in start.items()}
        self.optimizer = build(list(self.parameters.values()), self._options)
        self.evaluations = 0

    def read(self) -> dict[str, Array]:
        """Copies of the parameters."""
        return {name: self._tensors.read(parameter) for name, parameter in self.parameters.items()}

    def state(self) -> State:
        """What the optimizer keeps with a parameter, lists by entry; empty where it cannot be seen."""
        kept = getattr(self.optimizer, "state", None)
        found: State = {}
        if not isinstance(kept, Mapping):
            return found
        for name, parameter in self.parameters.items():
            entries = kept.get(parameter)
            if isinstance(entries, Mapping):
                found[name] = entries_of(self._tensors, _flat(entries))
        return found

    def closure(self) -> Any:
        """Write the gradients and return the loss, as the tensors' library has it."""
        values = self.read()
        x = np.concatenate([v.reshape(-1) for v in values.values()])
        loss, grad = evaluate(self._golden, x)
        if self._noise is not None:
            eps = STEP * float(np.finfo(x.dtype).eps)
            grad = (grad * (1 + eps * self._noise.uniform(-1, 1, grad.shape))).astype(x.dtype)
            loss = x.dtype.type(loss * (1 + eps * self._noise.uniform(-1, 1)))
        self.evaluations += 1
        offset = 0
        for name, parameter in self.parameters.items():
            size = values[name].size
            self._tensors.give(parameter, grad[offset : offset + size].reshape(values[name].shape), 1)
            offset += size
        return self._tensors.scalar(loss)

    def run(self) -> Iterator[tuple[int, dict[str, Array], State]]:
        """Yield (step, params, state) after each step."""
        resume = self._golden.notes.get("resume")
        for step in range(1, int(self._golden.notes["steps"]) + 1):
            for row in self._golden.rows_at(step, "hyper"):
                groups = getattr(self.optimizer, "param_groups", None)
                if not isinstance(groups, list):
                    raise NotCovered(f"changing {row.param} between steps")
                groups[0][row.param] = row.values.tolist()
            self.optimizer.step(self.closure)
            yield step, self.read(), self.state()
            if resume is not None and step == int(resume):
                self._save_and_load()

    def _save_and_load(self) -> None:
        for method in ("state_dict", "load_state_dict"):
            if not callable(getattr(self.optimizer, method, None)):
                raise NotCovered(method)
        saved = copy.deepcopy(self.optimizer.state_dict())
        self.parameters = {name: self._tensors.copy(parameter) for name, parameter in self.parameters.items()}
        self.optimizer = self._build(list(self.parameters.values()), self._options)
        self.optimizer.load_state_dict(saved)


def _flat(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Lists taken apart: key.0, key.1, ...; without what is None."""
    flat: dict[str, Any] = {}
    for key, value in entries.items():
        if isinstance(value, list | tuple):
            flat |= {f"{key}.{i}": entry for i, entry in enumerate(value)}
        else:
            flat[str(key)] = value
    return {key: value for key, value in flat.items() if value is not None}


def closure_goldens(build: Build, tensors_of: Callable[[str], Tensors], notes: Mapping[str, str]) -> Iterator[Golden]:
    """Every case as an optimizer computes it, with tolerances."""
    for dtype in ("float64", "float32"):
        for case in CASES:
            golden = closure_outputs(closure_inputs(case, dtype), build, tensors_of(dtype))
            free = closure_tolerances(golden)
            golden = replace(golden, tolerance_step=free["param"], tolerance_free=free["param"])
            yield replace(golden, notes={**golden.notes, "tolerance_state": f"{free['state']:g}", **notes})


def closure_outputs(inputs: Golden, build: Build, tensors: Tensors) -> Golden:
    """The golden that an optimizer makes of the inputs of a case."""
    rows = [*inputs.rows_at(0, "param"), *inputs.rows_at(0, "input")]
    for step, params, state in ClosureDriver(inputs, build, tensors).run():
        rows += inputs.rows_at(step, "hyper")
        rows += [Row(step, 0, name, "param", values) for name, values in params.items()]
        for name, entries in state.items():
            kept = {key: value for key, value in entries.items() if not key.startswith("al.")}
            rows += [Row(step, 0, name, f"state.{k}", np.asarray(v, dtype=inputs.dtype)) for k, v in kept.items()]
    return replace(inputs, rows=tuple(rows))


def closure_tolerances(inputs: Golden) -> dict[str, float]:
    """How far params and state of L-BFGS may come when every gradient and loss it gets is off by STEP eps, at random.

    `{"param": ..., "state": ...}`, in eps; infinite where such noise changes how often it evaluates or what it keeps.
    """

    def build(params: list[Any], options: Mapping[str, Any]) -> Any:
        return LBFGS(params, **options)

    clean = closure_outputs(inputs, build, NumpyTensors())
    worst = {"param": STEP, "state": STEP}
    for draw in range(DRAWS):
        noisy = ClosureDriver(inputs, build, NumpyTensors(), np.random.default_rng(draw))
        got = {step: (params, state) for step, params, state in noisy.run()}
        for step, (_, state) in got.items():
            kept = {row.quantity.removeprefix("state.") for row in clean.rows if row.step == step} - {"param", "hyper"}
            if kept != {key for entries in state.values() for key in entries if not key.startswith("al.")}:
                return {"param": float("inf"), "state": float("inf")}
        found = distances(clean, got)
        worst = {kind: max(worst[kind], found[kind]) for kind in worst}
    return {kind: two_digits(value + STEP) for kind, value in worst.items()}
