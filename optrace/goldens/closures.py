"""The cases of L-BFGS, which asks for loss and gradient at points of its own choice: a case holds the function.

A case's header `loss` names the function and its rows of step 0 with quantity `input` hold its numbers:

    least-squares   0.5 * sum((A @ x - y)**2)            gradient A.T @ (A @ x - y)
    rosenbrock      sum(100 * (x[i+1] - x[i]**2)**2 + (1 - x[i])**2)

x is all parameters in order, flattened and joined. Each step calls `step(closure)`; the closure writes the gradients
and returns the loss.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from optrace.goldens.drive import Array, NotCovered, State, as_option
from optrace.goldens.format import Golden, Row
from optrace.goldens.grid import numbers
from optrace.goldens.object_driver import NumpyTensors, Tensors
from optrace.goldens.tolerance import STEP, Scale, errors, two_digits
from optrace.reference.lbfgs import LBFGS
from optrace.reference.rule import RULES

Build = Callable[[list[Any], Mapping[str, Any]], Any]
DRAWS = 8


@dataclass(frozen=True)
class ClosureCase:
    """One case: the function, the options that are not torch's defaults, and what happens on the way."""

    name: str
    loss: str
    options: Mapping[str, Any]
    purpose: str
    steps: int = 6
    edits: Mapping[int, float] = field(default_factory=dict)
    """Step -> lr written before it."""
    resume: int | None = None


CASES = (
    ClosureCase("plain", "least-squares", {"max_iter": 4}, "lr 1, four iterations a step"),
    ClosureCase("lr", "least-squares", {"lr": 0.5, "max_iter": 3}, "half steps"),
    ClosureCase("one-iteration", "least-squares", {"lr": 0.7, "max_iter": 1}, "memory goes on from step to step", 12),
    ClosureCase("history", "least-squares", {"max_iter": 5, "history_size": 2}, "a memory of two"),
    ClosureCase("max-eval", "least-squares", {"max_iter": 9, "max_eval": 3}, "evaluations run out first"),
    ClosureCase(
        "tolerance-grad", "least-squares", {"max_iter": 20, "tolerance_grad": 0.6}, "stops at a small gradient"
    ),
    ClosureCase(
        "tolerance-change",
        "rosenbrock",
        {"lr": 0.3, "max_iter": 20, "tolerance_change": 0.005},
        "small change of loss",
        3,
    ),
    ClosureCase("strong-wolfe", "rosenbrock", {"max_iter": 3, "line_search_fn": "strong_wolfe"}, "with a line search"),
    ClosureCase(
        "strong-wolfe-quadratic",
        "least-squares",
        {"lr": 0.1, "max_iter": 3, "history_size": 3, "line_search_fn": "strong_wolfe"},
        "with a line search that must lengthen its steps",
    ),
    ClosureCase(
        "lr-change", "least-squares", {"lr": 0.5, "max_iter": 2}, "lr is written between", edits={3: 0.2, 5: 1.0}
    ),
    ClosureCase("resume", "least-squares", {"lr": 0.7, "max_iter": 2}, "saved after step 3 and loaded", resume=3),
)
SHAPES = {"w": (2, 2), "b": (2,)}


def evaluate(golden: Golden, x: Array) -> tuple[Any, Array]:
    """Loss and gradient at x, in x's dtype; silent where they overflow."""
    with np.errstate(all="ignore"):
        return _evaluate(golden, x)


def _evaluate(golden: Golden, x: Array) -> tuple[Any, Array]:
    if golden.notes["loss"] == "least-squares":
        inputs = golden.at(0, "input")
        rest = inputs["A"] @ x - inputs["y"]
        return x.dtype.type(0.5) * (rest * rest).sum(), inputs["A"].T @ rest
    two, hundred, one = x.dtype.type(2), x.dtype.type(100), x.dtype.type(1)
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

    def run(self) -> Iterator[tuple[int, dict[str, Array]]]:
        """Yield (step, params) after each step."""
        resume = self._golden.notes.get("resume")
        for step in range(1, int(self._golden.notes["steps"]) + 1):
            for row in self._golden.rows_at(step, "hyper"):
                groups = getattr(self.optimizer, "param_groups", None)
                if not isinstance(groups, list):
                    raise NotCovered(f"changing {row.param} between steps")
                groups[0][row.param] = row.values.tolist()
            self.optimizer.step(self.closure)
            yield step, self.read()
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


def closure_inputs(case: ClosureCase, dtype: str) -> Golden:
    """A golden that holds the inputs of a case only."""
    kind = np.dtype(dtype)
    rows = [Row(0, 0, p, "param", numbers("start", p, 0, shape).astype(kind)) for p, shape in SHAPES.items()]
    if case.loss == "least-squares":
        matrix = numbers("lbfgs", "A", 0, (8, 6)) + 1.5 * np.eye(8, 6)
        rows.append(Row(0, 0, "A", "input", matrix.astype(kind)))
        rows.append(Row(0, 0, "y", "input", numbers("lbfgs", "y", 0, (8,)).astype(kind)))
    rows += [Row(step, 0, "lr", "hyper", np.array(lr)) for step, lr in case.edits.items()]
    notes = {"purpose": case.purpose, "loss": case.loss, "steps": str(case.steps)}
    if case.resume is not None:
        notes["resume"] = str(case.resume)
    hyper = ({**RULES["lbfgs"].defaults, **case.options},)
    return Golden("lbfgs", case.name, dtype, hyper, 0.0, 0.0, tuple(rows), notes)


def closure_goldens(build: Build, tensors_of: Callable[[str], Tensors], notes: Mapping[str, str]) -> Iterator[Golden]:
    """Every case as an optimizer computes it, with tolerances."""
    for dtype in ("float64", "float32"):
        for case in CASES:
            inputs = closure_inputs(case, dtype)
            rows = list(inputs.rows_at(0, "param")) + list(inputs.rows_at(0, "input"))
            for step, params in ClosureDriver(inputs, build, tensors_of(dtype)).run():
                rows += inputs.rows_at(step, "hyper")
                rows += [Row(step, 0, name, "param", values) for name, values in params.items()]
            free = closure_tolerance(inputs)
            golden = replace(inputs, rows=tuple(rows), tolerance_step=free, tolerance_free=free)
            yield replace(golden, notes={**inputs.notes, **notes})


def closure_tolerance(inputs: Golden) -> float:
    """How far L-BFGS may come when every gradient and loss it gets is off by STEP eps, at random."""

    def build(params: list[Any], options: Mapping[str, Any]) -> Any:
        return LBFGS(params, **options)

    clean = dict(ClosureDriver(inputs, build, NumpyTensors()).run())
    eps, worst = float(np.finfo(inputs.dtype).eps), STEP
    for draw in range(DRAWS):
        noisy = ClosureDriver(inputs, build, NumpyTensors(), np.random.default_rng(draw))
        scales = {name: Scale(values) for name, values in inputs.at(0, "param").items()}
        for step, params in noisy.run():
            for name, values in params.items():
                scale = scales[name].after(clean[step][name])
                worst = max(worst, float(np.max(errors(values, clean[step][name], scale, eps))))
    return two_digits(worst + STEP)


def drive_closures(golden: Golden, build: Build, tensors: Tensors) -> Iterator[tuple[int, dict[str, Array], State]]:
    """As `drive` for a case with a closure; state is not compared."""
    for step, params in ClosureDriver(golden, build, tensors).run():
        yield step, params, {}
