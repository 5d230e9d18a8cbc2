"""Runs a program and notes by its own means what every optimizer step was given and made: `client_capture.py OUT MODELS
PROGRAM [ARGS]`.

The rule itself is wrapped, inside all hooks, by wrapping torch's decorator of `step` before any optimizer is made;
optrace is not used.
"""

from __future__ import annotations

import functools
import json
import os
import runpy
import sys
from collections import deque
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from client_measure import dense, dtype_of, measured_number, measured_tensor, measured_update
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook


class Captured:
    """One optimizer: its options, and rows as (step, group, parameter's number, quantity, row), from step 0 on."""

    def __init__(self, class_name: str) -> None:
        self.class_name = class_name
        self.completed = 0
        self.params: list[torch.Tensor] = []
        self.groups: list[tuple[int, int, dict[str, Any]]] = []
        self.rows: list[tuple[int, int, int, str, dict[str, Any]]] = []
        self.losses: list[list[float]] = []
        self._last: dict[tuple[int, str], dict[str, Any]] = {}
        self._written: list[tuple[int, str]] = []

    def number(self, param: torch.Tensor) -> int:
        for i, known in enumerate(self.params):
            if known is param:
                return i
        self.params.append(param)
        return len(self.params) - 1

    def before(self, optimizer: Any, losses: list[float]) -> None:
        """Note what the rule is given."""
        step = self.completed + 1
        self._given_losses = losses
        self._options = [options_of(group) for group in optimizer.param_groups]
        self._groups = [(step, number, options) for number, options in enumerate(self._options)]
        found = dict(self._world(optimizer))
        given: list[tuple[int, int, int, str, dict[str, Any]]] = []
        for (number, quantity), (group, row) in found.items():
            if step == 1:
                given.append((0, group, number, quantity, row))
            elif not same_row(self._last.get((number, quantity)), row):
                given.append((step, group, number, inside(quantity), row))
        held = {-1, *(self.number(p) for p in params_of(optimizer))}
        for (number, quantity), row in self._last.items():
            if (number, quantity) not in found and row["present"] and number in held:
                given.append((step, -2, number, inside(quantity), {"present": False}))
        self._given = given
        self._values = {self.number(p): dense(p) for p in params_of(optimizer)}
        self.evaluated(optimizer)

    def evaluated(self, optimizer: Any) -> None:
        """Note the gradients, at the step's beginning and after each evaluation of a closure."""
        self._grads = {self.number(p): measured_tensor(p.grad) for p in params_of(optimizer)}

    def after(self, optimizer: Any) -> None:
        """Note what the rule made of it."""
        if scaled_in_kernel(optimizer):  # it has put the unscaled gradients where the scaled ones were
            self.evaluated(optimizer)
        self.completed += 1
        step = self.completed
        self.groups += self._groups
        self.losses.append(self._given_losses)
        self.rows += self._given
        world = dict(self._world(optimizer))
        self._last = {key: row for key, (_, row) in world.items()}
        self.rows += [(step, group, number, quantity, row) for (number, quantity), (group, row) in world.items()]
        for group, param in grouped(optimizer):
            number = self.number(param)
            self.rows.append((step, group, number, "grad", self._grads[number]))
            change = measured_update(dense(param), self._values[number], dtype_of(param))
            self.rows.append((step, group, number, "update", change))
        for group, options in enumerate(map(options_of, optimizer.param_groups)):
            old = self._options[group] if group < len(self._options) else {}
            for key, value in options.items():
                if isinstance(value, int | float) and not same_number(old.get(key), value):
                    if (group, key) not in self._written:
                        self._written.append((group, key))
                if (group, key) in self._written and isinstance(value, int | float):
                    self.rows.append((step, group, -1, f"group.{key}", measured_number(value)))

    def _world(self, optimizer: Any) -> Iterator[tuple[tuple[int, str], tuple[int, dict[str, Any]]]]:
        """Parameters and state as they are now, by (parameter's number, quantity): its group and its row."""
        for group, param in grouped(optimizer):
            number = self.number(param)
            yield (number, "param"), (group, measured_tensor(param))
            if param in optimizer.state:
                for quantity, row in state_rows("state", optimizer.state[param]):
                    yield (number, quantity), (group, row)
        for quantity, row in state_rows("state", {k: v for k, v in optimizer.state.items() if isinstance(k, str)}):
            yield (-1, quantity), (-1, row)

    def as_json(self, names: dict[int, str]) -> dict[str, Any]:
        """All of it, parameters by name."""
        called = {i: names.get(id(param), f"unnamed {i}") for i, param in enumerate(self.params)} | {-1: ""}
        return {
            "class": self.class_name,
            "steps": self.completed,
            "groups": self.groups,
            "losses": self.losses,
            "rows": [(step, group, called[number], quantity, row) for step, group, number, quantity, row in self.rows],
        }


def grouped(optimizer: Any) -> Iterator[tuple[int, torch.Tensor]]:
    """Each parameter once, with its group's number."""
    seen: set[int] = set()
    for number, group in enumerate(optimizer.param_groups):
        for param in group["params"]:
            if id(param) not in seen:
                seen.add(id(param))
                yield number, param


def params_of(optimizer: Any) -> list[torch.Tensor]:
    return [param for _, param in grouped(optimizer)]


def inside(quantity: str) -> str:
    """The name that a value from before the step has: param_in, state_in.step."""
    kind, dot, key = quantity.partition(".")
    return f"{kind}_in{dot}{key}"


def same_row(one: dict[str, Any] | None, other: dict[str, Any]) -> bool:
    keys = ("present", "dtype", "numel", "fingerprint")
    return one is not None and all(one.get(key) == other.get(key) for key in keys)


def same_number(one: Any, other: Any) -> bool:
    return one == other or (one != one and other != other)


def state_rows(name: str, value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """State as rows: tensors and numbers, dicts and lists taken apart."""
    if isinstance(value, torch.Tensor):
        yield name, measured_tensor(value)
    elif isinstance(value, bool | int | float):
        yield name, measured_number(value)
    elif isinstance(value, dict):
        for key, item in value.items():
            if isinstance(key, str | int | float):
                yield from state_rows(f"{name}.{key}", item)
    elif isinstance(value, list | tuple | deque):
        for i, item in enumerate(value):
            yield from state_rows(f"{name}.{i}", item)


def options_of(group: dict[str, Any]) -> dict[str, Any]:
    """The numbers, words, flags and Nones of a group, tuples taken apart."""
    found: dict[str, Any] = {}
    for key, value in group.items():
        if key in ("params", "param_names"):
            continue
        for name, item in (
            [(f"{key}.{i}", v) for i, v in enumerate(value)] if isinstance(value, tuple) else [(key, value)]
        ):
            if isinstance(item, torch.Tensor) and item.numel() == 1:
                found[name] = item.item()
            elif isinstance(item, Enum):
                found[name] = item.name
            elif item is None or isinstance(item, bool | int | float | str):
                found[name] = item
    return found


def scaled_in_kernel(optimizer: Any) -> bool:
    return isinstance(getattr(optimizer, "grad_scale", None), torch.Tensor)


class Everything:
    """All optimizers of the process."""

    def __init__(self) -> None:
        self.optimizers: dict[int, tuple[Any, Captured]] = {}
        self.roots: list[float] = []
        self.seen_roots: dict[int, int] = {}
        self.running: list[int] = []

    def wrap(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """The rule `step` with our eyes around it."""

        @functools.wraps(step)
        def captured_step(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            found_inf = getattr(optimizer, "found_inf", None)
            skips = isinstance(found_inf, torch.Tensor) and bool(found_inf.item())
            if id(optimizer) in self.running or skips or only_makes_state():
                return step(optimizer, *args, **kwargs)
            _, captured = self.optimizers.setdefault(id(optimizer), (optimizer, Captured(type(optimizer).__name__)))
            captured.before(optimizer, self.roots[self.seen_roots.get(id(optimizer), 0) :])
            with torch.no_grad():
                args = tuple(self.closure(a, optimizer, captured) if callable(a) else a for a in args)
            if callable(kwargs.get("closure")):
                kwargs["closure"] = self.closure(kwargs["closure"], optimizer, captured)
            self.running.append(id(optimizer))
            try:
                result = step(optimizer, *args, **kwargs)
            finally:
                self.running.remove(id(optimizer))
            if args or kwargs:  # a closure has made backwards
                captured._given_losses = self.roots[self.seen_roots.get(id(optimizer), 0) :]
            self.seen_roots[id(optimizer)] = len(self.roots)
            captured.after(optimizer)
            return result

        return captured_step

    def closure(self, closure: Callable[..., Any], optimizer: Any, captured: Captured) -> Callable[..., Any]:
        def evaluate(*args: Any, **kwargs: Any) -> Any:
            result = closure(*args, **kwargs)
            captured.evaluated(optimizer)
            return result

        return evaluate

    def install(self) -> None:
        if "CAPTURE_BY_HOOKS" in os.environ:
            self.install_hooks()
        else:
            hook = torch.optim.Optimizer.profile_hook_step
            torch.optim.Optimizer.profile_hook_step = staticmethod(lambda step: hook(self.wrap(step)))
        backward = torch.Tensor.backward

        @functools.wraps(backward)
        def noted_backward(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.roots.append(float(tensor.detach()) if tensor.numel() == 1 else float("nan"))
            return backward(tensor, *args, **kwargs)

        torch.Tensor.backward = noted_backward

    def install_hooks(self) -> None:
        """Look from torch's global hooks instead, which stay outside of a compiled rule."""

        def before(optimizer: Any, *_: Any) -> None:
            _, captured = self.optimizers.setdefault(id(optimizer), (optimizer, Captured(type(optimizer).__name__)))
            captured.before(optimizer, self.roots[self.seen_roots.get(id(optimizer), 0) :])

        def after(optimizer: Any, *_: Any) -> None:
            self.seen_roots[id(optimizer)] = len(self.roots)
            self.optimizers[id(optimizer)][1].after(optimizer)

        register_optimizer_step_pre_hook(torch._disable_dynamo(before, recursive=True))
        register_optimizer_step_post_hook(torch._disable_dynamo(after, recursive=True))


def only_makes_state() -> bool:
    """Whether torch.distributed.checkpoint calls `step()` to have the optimizer create its state."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != "_init_optim_state":
        frame = frame.f_back
    return frame is not None


def names_in(variables: dict[str, Any], models: str) -> dict[int, str]:
    """Qualified names by id, in the models that these variables (comma-separated) hold."""
    return {id(param): name for model in models.split(",") for name, param in variables[model].named_parameters()}


def main() -> None:
    """Run the program in argv and write what was captured."""
    out, models, program, *args = sys.argv[1:]
    everything = Everything()
    everything.install()
    sys.argv = [program, *args]
    sys.path[0] = str(Path(program).parent)
    variables = runpy.run_path(program, run_name="__main__")
    names = names_in(variables, models)
    found = [captured.as_json(names) for _, captured in everything.optimizers.values()]
    Path(out).write_text(json.dumps({"optimizers": found, "roots": everything.roots}))


if __name__ == "__main__":
    main()
