"""Drives an optimizer that a factory makes over stored gradients, without a model, and collects what it does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from optrace.errors import GoldenError
from optrace.goldens.drive import Array
from optrace.goldens.format import Golden, Row
from optrace.goldens.grid import Case, gradient, start_values
from optrace.goldens.tolerance import STEP, Scale, errors

Factory = Callable[[list[Any]], Any]
"""From a list of torch parameters to an optimizer over them."""

SHAPES: Mapping[str, tuple[int, ...]] = {"w": (2, 3), "b": (2,)}
STEPS = 12
DRAWS = 4
IMPLEMENTATION = frozenset({"foreach", "fused", "capturable", "differentiable"})
"""Options that choose among implementations of the same rule."""


@dataclass(frozen=True)
class Plan:
    """The inputs that an optimizer is driven over: parameters, steps, dtype. The gradients follow from them."""

    shapes: Mapping[str, tuple[int, ...]]
    steps: int = STEPS
    dtype: str = "float32"

    def inputs(self) -> Golden:
        """Start values and gradients: 1e-6 to 10, a spike and small ones after it, None once for the last parameter.

        Raises:
            GoldenError: the dtype is neither float32 nor float64, or there are no shapes or steps.
        """
        if self.dtype not in ("float32", "float64"):
            raise GoldenError(f"a baseline is float32 or float64, not {self.dtype!r}")
        if not self.shapes or self.steps < 1:
            raise GoldenError(f"nothing to drive: shapes {dict(self.shapes)!r}, {self.steps} steps")
        absent = frozenset({(3, list(self.shapes)[-1])}) if len(self.shapes) > 1 else frozenset[tuple[int, str]]()
        params = {name: (0, tuple(shape)) for name, shape in self.shapes.items()}
        case = Case("own", "own", ({},), params, "", absent=absent, steps=self.steps)
        kind = np.dtype(self.dtype)
        rows = [Row(0, 0, name, "param", values.astype(kind)) for name, values in start_values(case).items()]
        for step in range(1, self.steps + 1):
            for name in params:
                grad = gradient(case, name, step)
                if grad is not None:
                    rows.append(Row(step, 0, name, "grad", grad.astype(kind)))
        return Golden("own", "own", self.dtype, ({},), STEP, STEP, tuple(rows))


class Subject:
    """One optimizer over parameters with the names and start values of a golden."""

    def __init__(self, factory: Factory, inputs: Golden) -> None:
        import torch

        self.inputs = inputs
        self.model = torch.nn.Module()
        self.params: dict[str, Any] = {}
        for name, values in inputs.at(0, "param").items():
            self.params[name] = torch.nn.Parameter(torch.from_numpy(np.array(values)))
            self.model.register_parameter(name.replace(".", "_"), self.params[name])
        self.optimizer = factory(list(self.params.values()))
        if not callable(getattr(self.optimizer, "step", None)):
            raise GoldenError(f"the factory made a {type(self.optimizer).__name__}, which has no step()")
        self.group_of = self._group_of()
        self._groups = [self._scalars(group) for group in self._param_groups()]

    def _param_groups(self) -> list[Any]:
        groups = getattr(self.optimizer, "param_groups", None)
        return groups if isinstance(groups, list) else []

    def _group_of(self) -> dict[str, int]:
        found = dict.fromkeys(self.params, 0)
        for number, group in enumerate(self._param_groups()):
            members = {id(p) for p in group["params"]}
            found |= {name: number for name, p in self.params.items() if id(p) in members}
        return found

    def hyper(self) -> tuple[dict[str, Any], ...]:
        """Options of each group that are plain data, before step 1."""
        groups = self._param_groups()
        return tuple(
            {k: v for k, v in ((str(k), plain(v)) for k, v in g.items()) if v is not plain} for g in groups
        ) or ({},)

    def _scalars(self, group: Mapping[str, Any]) -> dict[str, float]:
        found = {}
        for key, value in group.items():
            number = value.item() if hasattr(value, "item") and getattr(value, "numel", lambda: 1)() == 1 else value
            if isinstance(number, int | float):
                found[str(key)] = float(number)
        return found

    def step(self, number: int) -> None:
        """Set the gradients of a step and make it."""
        import torch

        grads = self.inputs.at(number, "grad")
        for name, parameter in self.params.items():
            grad = grads.get(name)
            parameter.grad = None if grad is None else torch.from_numpy(np.array(grad))
        self.optimizer.step()

    def read(self, number: int) -> Iterator[Row]:
        """Parameters, state, and group scalars that `step()` itself wrote, as they are now."""
        kind = np.dtype(self.inputs.dtype)
        for name, parameter in self.params.items():
            group = self.group_of[name]
            yield Row(number, group, name, "param", _array(parameter).astype(kind))
            for key, value in self._state(name).items():
                yield Row(number, group, name, f"state.{key}", _array(value).astype(kind))
        for index, group in enumerate(self._param_groups()):
            before = self._groups[index] if index < len(self._groups) else {}
            for key, scalar in self._scalars(group).items():
                if not np.array_equal(before.get(key, math.inf), scalar, equal_nan=True):
                    yield Row(number, index, "", f"group.{key}", np.array(scalar, dtype=kind))

    def _state(self, name: str) -> dict[str, Any]:
        state = getattr(self.optimizer, "state", None)
        entries = state.get(self.params[name]) if isinstance(state, Mapping) else None
        if not isinstance(entries, Mapping):
            return {}
        return {str(k): v for k, v in entries.items() if hasattr(v, "detach") or isinstance(v, int | float)}

    def write(self, stored: Golden, number: int) -> None:
        """Put what a golden has after a step in place of the own numbers, so that the next step starts from there."""
        import torch

        with torch.no_grad():
            for name, parameter in self.params.items():
                parameter.copy_(torch.from_numpy(np.array(stored.at(number, "param")[name])))
                entries = self.optimizer.state[self.params[name]] if self._state(name) else {}
                for key, own in self._state(name).items():
                    value = stored.at(number, f"state.{key}").get(name)
                    if value is None or np.shape(value) != np.shape(_array(own)):
                        continue
                    where = next(k for k in entries if str(k) == key)
                    if hasattr(own, "detach"):
                        own.copy_(torch.from_numpy(np.array(value)))
                    else:
                        entries[where] = type(own)(value)
        for index, group in enumerate(self._param_groups()):
            for row in (r for q in {f"group.{k}" for k in group} for r in stored.rows_at(number, q)):
                key = row.quantity.partition(".")[2]
                if row.group == index and isinstance(group.get(key), int | float):
                    group[key] = type(group[key])(row.values)

    def disturb(self, rng: np.random.Generator) -> None:
        """Move every element of parameters and floating state by up to STEP eps of its own size."""
        import torch

        eps = float(np.finfo(self.inputs.dtype).eps)
        tensors = [p for p in self.params.values()] + [
            value
            for name in self.params
            for value in self._state(name).values()
            if hasattr(value, "detach") and value.is_floating_point() and value.dim()
        ]
        with torch.no_grad():
            for tensor in tensors:
                noise = torch.from_numpy(rng.uniform(-STEP, STEP, tuple(tensor.shape)) * eps)
                tensor.mul_((1 + noise).to(tensor.dtype))


def plain(value: Any) -> Any:
    """A value as JSON gives it back; the function itself for what JSON cannot hold."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else plain
    if isinstance(value, list | tuple):
        items = [plain(item) for item in value]
        return plain if any(item is plain for item in items) else items
    if hasattr(value, "item") and getattr(value, "numel", lambda: 2)() == 1:
        return plain(value.item())
    return plain


def _array(value: Any) -> Array:
    if not hasattr(value, "detach"):
        return np.array(value)
    tensor = value.detach().to("cpu")
    if tensor.is_sparse or tensor.is_quantized:
        tensor = tensor.to_dense() if tensor.is_sparse else tensor.dequantize()
    return np.array(tensor.double().numpy() if tensor.dtype.is_floating_point else tensor.numpy())


def drive(factory: Factory, inputs: Golden, restore: Golden | None = None, rng: Any = None) -> Golden:
    """What an optimizer makes of a golden's inputs.

    Args:
        factory: makes it.
        inputs: start values and gradients.
        restore: each step starts from what this golden has after the step before; None: from the optimizer's own.
        rng: disturbs every number after each step.

    Raises:
        GoldenError: it cannot be made, or a step raises.
    """
    steps = 0
    try:
        subject = Subject(factory, inputs)
        hyper = subject.hyper()
        rows = [replace(row, group=subject.group_of[row.param]) for row in inputs.rows_at(0, "param")]
        for number in range(1, inputs.steps + 1):
            subject.step(number)
            rows += [replace(row, group=subject.group_of[row.param]) for row in inputs.rows_at(number, "grad")]
            rows += subject.read(number)
            if rng is not None:
                subject.disturb(rng)
            if restore is not None:
                subject.write(restore, number)
            steps = number
    except GoldenError:
        raise
    except Exception as error:
        words = " ".join(str(error).split())[:300]
        raise GoldenError(
            f"the optimizer cannot be driven over stored gradients: step {steps + 1} raised {type(error).__name__}:"
            f" {words}; give a factory of its parameters and shapes that suit it, or record a training run"
        ) from error
    notes = {
        "optimizer_class": type(subject.optimizer).__name__,
        "optimizer_module": type(subject.optimizer).__module__,
    }
    return replace(inputs, hyper=hyper, rows=tuple(rows), notes={**inputs.notes, **notes})


def free_tolerance(factory: Factory, clean: Golden) -> float:
    """How far a correct implementation may drift over the golden's steps, in eps: measured on disturbed runs.

    As for the goldens of optrace: a rounding of STEP eps after every step, in random directions, is carried along, and
    the largest distance from the undisturbed run counts, with STEP once more for the stored numbers' own error.
    """
    worst = STEP
    for draw in range(DRAWS):
        got = drive(factory, clean, rng=np.random.default_rng(draw))
        found = [error for _, error in distances(clean, got) if math.isfinite(error)]
        worst = max(worst, *found, STEP)
    return float(f"{worst + STEP:.2g}")


def distances(expected: Golden, got: Golden, per_step: bool = False) -> Iterator[tuple[Row, float]]:
    """(row, worst error in eps of its scale) of every output row of `expected` that `got` has in the same shape.

    The scale grows with the run where numbers are carried on; `per_step`, where each step started from the stored
    numbers, it is that step's own: the larger of the number before and after, plus the root mean square of the change.
    """
    eps = float(np.finfo(expected.dtype).eps)
    scales: dict[tuple[int, str, str], Scale] = {}
    before: dict[tuple[int, str, str], Array] = {}
    own = {(row.step, row.group, row.param, row.quantity): row.values for row in got.rows}
    for row in expected.rows:
        key = (row.group, row.param, row.quantity)
        start = before.get(key)
        before[key] = row.values
        if row.quantity == "grad":
            continue
        scale = (Scale(start) if per_step else scales.setdefault(key, Scale(start))).after(row.values)
        values = own.get((row.step, *key))
        if values is not None and values.shape == row.values.shape:
            yield row, float(np.max(errors(values, row.values, scale, eps), initial=0.0))


def shapes_of(golden: Golden) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters, in order."""
    return {row.param: row.values.shape for row in golden.rows_at(0, "param")}


def names(rows: Sequence[Row]) -> set[tuple[int, int, str, str]]:
    """Which tensors there are: step, group, param, quantity."""
    return {(row.step, row.group, row.param, row.quantity) for row in rows}
