"""Takes an optimizer through the stored inputs of a case, step by step, and collects what it makes of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from optrace.goldens.format import Golden, Row

Array = NDArray[Any]


class Driver(Protocol):
    """One optimizer over named parameters, whatever its own interface is."""

    def start(self, params: Mapping[str, Array], groups: list[tuple[Mapping[str, Any], list[str]]]) -> None:
        """Build it: start values, and for each group its options and the names of its parameters."""

    def write_option(self, group: int, name: str, value: Any) -> None:
        """Change an option of a group between two steps."""

    def save_and_load(self) -> None:
        """Save the state, make a new optimizer over copies of the parameters, load the state into it."""

    def step(self, grads: Mapping[str, Array | None]) -> None:
        """One step with these gradients."""

    def params(self) -> dict[str, Array]:
        """The parameters as they are now (copies)."""

    def state(self) -> dict[str, dict[str, Array]]:
        """State by param and key (copies); empty where it cannot be seen."""


@dataclass(frozen=True)
class Inputs:
    """What a case feeds to an optimizer: everything in it that is not an output."""

    golden: Golden

    @property
    def params(self) -> dict[str, Array]:
        """Start values."""
        return self.golden.at(0, "param")

    @property
    def groups(self) -> list[tuple[Mapping[str, Any], list[str]]]:
        """Options and parameter names of each group."""
        members: list[list[str]] = [[] for _ in self.golden.hyper]
        for row in self.golden.rows:
            if row.step == 0 and row.quantity == "param":
                members[row.group].append(row.param)
        return list(zip(self.golden.hyper, members, strict=True))

    @property
    def resume(self) -> int | None:
        """The step after which state is saved and loaded."""
        text = self.golden.notes.get("resume")
        return int(text) if text else None

    def grads(self, step: int) -> dict[str, Array | None]:
        """Gradients of one step; None where there is none."""
        there = self.golden.at(step, "grad")
        return {param: there.get(param) for param in self.params}

    def edits(self, step: int) -> Iterator[tuple[int, str, Any]]:
        """(group, option, value) written before a step."""
        for row in self.golden.rows:
            if row.step == step and row.quantity == "hyper":
                yield row.group, row.param, row.values.astype(np.float64).item()


def drive(golden: Golden, driver: Driver) -> Iterator[tuple[int, dict[str, Array], dict[str, dict[str, Array]]]]:
    """Yield (step, params, state) after each step of the case."""
    inputs = Inputs(golden)
    driver.start(inputs.params, inputs.groups)
    for step in range(1, golden.steps + 1):
        for group, name, value in inputs.edits(step):
            driver.write_option(group, name, value)
        driver.step(inputs.grads(step))
        yield step, driver.params(), driver.state()
        if step == inputs.resume:
            driver.save_and_load()


def output_rows(step: int, group_of: Mapping[str, int], params: Mapping[str, Array], state: Any) -> Iterator[Row]:
    """The rows of what `drive` yields."""
    for param, values in params.items():
        yield Row(step, group_of[param], param, "param", values)
        for key, tensor in state.get(param, {}).items():
            yield Row(step, group_of[param], param, f"state.{key}", np.asarray(tensor).astype(values.dtype))
