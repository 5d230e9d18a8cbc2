"""Takes an optimizer through the stored inputs of a case, step by step, and collects what it makes of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from optrace.goldens.format import Golden, Row

Array = NDArray[Any]
State = dict[str, dict[str, Array]]
"""Param -> key -> tensor."""


class NotCovered(Exception):
    """A case asks for something that the candidate does not have; the message names it."""


@dataclass(frozen=True)
class Group:
    """The options of one group and the names of its parameters."""

    options: Mapping[str, Any]
    params: tuple[str, ...]


class Driver(Protocol):
    """One optimizer over named parameters, whatever its own interface is. Any method may raise NotCovered."""

    def start(self, params: Mapping[str, Array], groups: tuple[Group, ...]) -> None:
        """Build it over copies of these start values."""

    def write_option(self, group: int, name: str, value: Any) -> None:
        """Change an option of a group between two steps."""

    def save_and_load(self) -> None:
        """Save the state, make a new optimizer over copies of the parameters, load the state into it."""

    def step(self, grads: Mapping[str, Array | None]) -> None:
        """One step with these gradients."""

    def params(self) -> dict[str, Array]:
        """The parameters as they are now (copies)."""

    def state(self) -> State:
        """State by param and key (copies); empty where it cannot be seen."""


@dataclass(frozen=True)
class Inputs:
    """What a case feeds to an optimizer: everything in it that is not an output."""

    golden: Golden

    @property
    def params(self) -> Mapping[str, Array]:
        """Start values."""
        return self.golden.at(0, "param")

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups, with lists among their options as tuples."""
        members: list[list[str]] = [[] for _ in self.golden.hyper]
        for row in self.golden.rows_at(0, "param"):
            members[row.group].append(row.param)
        options = [{name: as_option(value) for name, value in group.items()} for group in self.golden.hyper]
        return tuple(Group(*pair) for pair in zip(options, map(tuple, members), strict=True))

    @property
    def resume(self) -> int | None:
        """The step after which state is saved and loaded."""
        text = self.golden.notes.get("resume")
        return int(text) if text else None

    @property
    def sparse(self) -> bool:
        """Rows of a gradient that are all zero are not stored in it."""
        return "sparse" in self.golden.notes

    @property
    def strided(self) -> frozenset[str]:
        """Parameters held in memory column by column."""
        return frozenset(self.golden.notes.get("strided", "").split())

    def grads(self, step: int) -> dict[str, Array | None]:
        """Gradients of one step; None where there is none."""
        there = self.golden.at(step, "grad")
        return {param: there.get(param) for param in self.params}

    def edits(self, step: int) -> Iterator[tuple[int, str, Any]]:
        """(group, option, value) written before a step."""
        for row in self.golden.rows_at(step, "hyper"):
            yield row.group, row.param, as_option(row.values.tolist())


def as_option(value: Any) -> Any:
    """An option as optimizers take it: JSON's lists are tuples."""
    return tuple(value) if isinstance(value, list) else value


def drive(golden: Golden, driver: Driver) -> Iterator[tuple[int, dict[str, Array], State]]:
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


def output_rows(step: int, group_of: Mapping[str, int], params: Mapping[str, Array], state: State) -> Iterator[Row]:
    """The rows of what `drive` yields."""
    for param, values in params.items():
        yield Row(step, group_of[param], param, "param", values)
        for key, tensor in state.get(param, {}).items():
            yield Row(step, group_of[param], param, f"state.{key}", np.asarray(tensor).astype(values.dtype))


def with_outputs(inputs: Golden, driver: Driver) -> Golden:
    """The golden that a driver makes of the inputs of another one."""
    group_of = {row.param: row.group for row in inputs.rows_at(0, "param")}
    rows = list(inputs.rows_at(0, "param"))
    for step, params, state in drive(inputs, driver):
        rows += [*inputs.rows_at(step, "hyper"), *inputs.rows_at(step, "grad")]
        rows += output_rows(step, group_of, params, state)
    return replace(inputs, rows=tuple(rows))
