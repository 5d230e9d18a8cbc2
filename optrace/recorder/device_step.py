"""What is kept of a step whose tensors lie on a device, until its results have arrived."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from optrace.recorder.capture import Options
from optrace.recorder.device_find import as_recorded
from optrace.recorder.device_plans import BeforeDevice, HookPlan
from optrace.recorder.device_table import Longs
from optrace.recorder.edits import Extra
from optrace.recorder.jobs import Rows
from optrace.recorder.plans import Label, Located, make_label
from optrace.recorder.tensors import Kind


@dataclass
class Measured:
    """What a hook measured: the rows, those of the device still empty, and where their values come from."""

    plan: HookPlan
    rows: Rows
    found: torch.Tensor | None
    marks: tuple[Any, Any]
    """When the device began and ended."""

    def fill(self, results: Longs) -> Longs:
        """Fill the rows from the front of `results`; returns the rest."""
        size = self.plan.size
        self.plan.fill(self.rows, results[:size])
        return results[size:]


@dataclass
class Described:
    """Parameters, or tensors of state, whose edits between two steps are told."""

    quantity: str
    names: Sequence[Any]
    """Of parameters: their names; of state: the parameter's name and the key."""
    groups: Sequence[int]
    """Of parameters: theirs."""
    owners: Sequence[int]
    """Of state: the position of its parameter, or -1."""
    located: Located
    kinds: list[Kind]
    """Without the order in memory."""

    def label(self, i: int) -> Label:
        """Of the row that tells of an edit."""
        _, numel, kind = self.located[i]
        if self.quantity == "param_in":
            return make_label(self.groups[i], self.names[i], "param_in", numel, kind)
        name, key = self.names[i]
        owner = self.owners[i]
        return make_label(self.groups[owner] if owner >= 0 else -1, name, f"state_in.{key}", numel, kind)


@dataclass
class Begun:
    """What is known between the hooks before and after a step."""

    params: list[torch.Tensor]
    located: Located
    options: Options
    plan: BeforeDevice
    measured: Measured
    grads: Located
    evaluated: Measured | None
    present: npt.NDArray[np.bool_]
    param_in: Described
    state_in: Described
    micro: Extra
    scale: torch.Tensor | None


def all_as_recorded(located: Located) -> list[Kind]:
    """The kinds without the order in memory, which no recorded value depends on."""
    return [kind if type(kind) is torch.dtype else as_recorded(kind) for kind in located.kinds]


class Nothing:
    """No results: nothing of the step was on the device."""

    def ready(self) -> bool:
        """They are there."""
        return True

    def wait(self) -> Longs:
        """No words."""
        return np.zeros(0, np.int64)
