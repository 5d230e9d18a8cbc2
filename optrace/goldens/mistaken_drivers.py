"""Right rules, driven wrongly: stale options, lost state, shared groups and counters, gradients that are None."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from optrace.goldens.drive import Array, Group
from optrace.goldens.rule_driver import RuleDriver


class Frozen(RuleDriver):
    """Never sees that an option was changed."""

    def write_option(self, group: int, name: str, value: Any) -> None:
        """Nothing."""


class Late(RuleDriver):
    """Sees a changed option one step late."""

    def start(self, params: Mapping[str, Array], groups: tuple[Group, ...]) -> None:
        """Nothing is waiting."""
        super().start(params, groups)
        self._waiting: list[tuple[int, str, Any]] = []

    def write_option(self, group: int, name: str, value: Any) -> None:
        """Wait."""
        self._waiting.append((group, name, value))

    def step(self, grads: Mapping[str, Array | None]) -> None:
        """Step, then see the changes."""
        super().step(grads)
        for group, name, value in self._waiting:
            super().write_option(group, name, value)
        self._waiting = []


class Forgetful(RuleDriver):
    """Loses its state when it is saved and loaded."""

    def save_and_load(self) -> None:
        """All states are empty again."""
        self._state = {name: {} for name in self._state}


class ForgetsCounter(RuleDriver):
    """Loses its step counters when it is saved and loaded."""

    def save_and_load(self) -> None:
        """Counters are 0 again."""
        for state in self._state.values():
            if "step" in state:
                state["step"] = np.zeros_like(state["step"])


class ForgetsOptions(RuleDriver):
    """Is saved and loaded without the options of its groups: edits are lost."""

    def start(self, params: Mapping[str, Array], groups: tuple[Group, ...]) -> None:
        """Remember what the constructor was given."""
        super().start(params, groups)
        self._built = [dict(group.options) for group in groups]

    def save_and_load(self) -> None:
        """The options are those of the constructor."""
        self._options = [dict(options) for options in self._built]


class OneGroup(RuleDriver):
    """Uses the options of one group for all parameters."""

    group = 0

    def start(self, params: Mapping[str, Array], groups: tuple[Group, ...]) -> None:
        """Every parameter belongs to that group."""
        super().start(params, groups)
        number = self.group % len(groups)
        self._group_of = dict.fromkeys(self._group_of, number)


class LastGroup(OneGroup):
    """The same with the last one."""

    group = -1


class OnlyFirstGroup(RuleDriver):
    """Updates the parameters of the first group alone."""

    def step(self, grads: Mapping[str, Array | None]) -> None:
        """The others have no gradient."""
        super().step({name: grad if self._group_of[name] == 0 else None for name, grad in grads.items()})


class SharedLr(RuleDriver):
    """Uses the first group's lr in all groups."""

    def step(self, grads: Mapping[str, Array | None]) -> None:
        """Step with the lr of group 0."""
        kept = [options["lr"] for options in self._options]
        for options in self._options:
            options["lr"] = self._options[0]["lr"]
        super().step(grads)
        for options, lr in zip(self._options, kept, strict=True):
            options["lr"] = lr


class AllWait(RuleDriver):
    """Updates nothing in a step in which some gradient is None."""

    def step(self, grads: Mapping[str, Array | None]) -> None:
        """All or none."""
        if any(grad is None for grad in grads.values()):
            grads = dict.fromkeys(grads)
        super().step(grads)


class StopsAtNone(RuleDriver):
    """Leaves the loop over the parameters at the first gradient that is None."""

    def step(self, grads: Mapping[str, Array | None]) -> None:
        """What comes after it in its group is not updated."""
        stopped: set[int] = set()
        given: dict[str, Array | None] = {}
        for name, grad in grads.items():
            if grad is None:
                stopped.add(self._group_of[name])
            given[name] = None if self._group_of[name] in stopped else grad
        super().step(given)


class OneCounter(RuleDriver):
    """Counts the optimizer's steps for all parameters together."""

    per_param = False

    def start(self, params: Mapping[str, Array], groups: tuple[Group, ...]) -> None:
        """No steps yet."""
        super().start(params, groups)
        self._count = 0

    def step(self, grads: Mapping[str, Array | None]) -> None:
        """Count once a step."""
        if not self.per_param:
            self._count += 1
        super().step(grads)

    def _call(self, param: Array, grad: Any, state: Mapping[str, Any], hyper: Mapping[str, Any]) -> tuple[Any, Any]:
        if grad is None:
            return param, state
        if self.per_param:
            self._count += 1
        return super()._call(param, grad, {**state, "step": np.float64(self._count - 1)}, hyper)


class CountsParams(OneCounter):
    """Counts up once a parameter."""

    per_param = True
