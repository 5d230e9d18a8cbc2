"""Records an optimizer that DeepSpeed ZeRO steps one group at a time: those calls of `step()` together are one step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import is_not
from typing import Any

import numpy as np

from optrace.recorder.capture import Capture
from optrace.recorder.finished import Finished
from optrace.recorder.micro import MicroGradients
from optrace.recorder.zero import flattened_of, live_zeros, steps_by_parts
from optrace.trace.writer import TensorLayout


class _Part:
    """What the optimizer holds in one of the calls, its group under the number that it has among all groups."""

    def __init__(self, group: int, optimizer: Any) -> None:
        held = [one for one in optimizer.param_groups if one["params"]]
        self.param_groups = [{"params": []} for _ in range(group)] + held
        self.state = optimizer.state


class PartsCapture:
    """As `Capture`, for a step that comes in several calls: each is captured, and the last brings the rows of all."""

    slots = None

    def __init__(self, numbers: dict[int, int], groups: Sequence[int], make: Callable[[], Capture]) -> None:
        """`numbers`: `id` of each flattened parameter to its place in the order of calls; `groups` has their groups."""
        self._numbers = numbers
        self._groups = groups
        self._captures = [make() for _ in groups]
        self._worlds: dict[int, Finished] = {}
        self._finished: dict[int, Finished] = {}
        self._layouts: tuple[list[TensorLayout], TensorLayout] | None = None

    @classmethod
    def of(cls, optimizer: Any, make: Callable[[], Capture]) -> PartsCapture | None:
        """The recording of an optimizer that a live ZeRO optimizer steps in several calls; None for any other."""
        for zero in live_zeros():
            if zero.optimizer is optimizer and steps_by_parts(zero):
                parts = flattened_of(zero)
                if len(parts) > 1:
                    return cls({id(part.param): i for i, part in enumerate(parts)}, [p.group for p in parts], make)
        return None

    @property
    def params_changed(self) -> bool:
        """Whether the table `params` must be written again."""
        return any(capture.params_changed for capture in self._captures)

    @params_changed.setter
    def params_changed(self, changed: bool) -> None:
        for capture in self._captures:
            capture.params_changed = changed

    def release(self) -> None:
        """Give memory back: the optimizer is gone."""
        for capture in self._captures:
            capture.release()

    def ends_step(self, optimizer: Any) -> bool:
        """Whether this call is the last of a step."""
        return self._number(optimizer) == len(self._groups) - 1

    def params_table(self, optimizer_class: str) -> list[dict[str, Any]]:
        """The rows of the table `params`."""
        return [row for capture in self._captures for row in capture.params_table(optimizer_class)]

    def world(self, optimizer: Any) -> Finished:
        """Step 0, as far as the calls have come."""
        number, part = self._part(optimizer)
        self._worlds[number] = self._captures[number].world(part)
        return self._together(self._worlds)

    def before(self, optimizer: Any, step: int, scale: Any = None, micro: Sequence[MicroGradients] = ()) -> None:
        """Measure what the rule is given in this call."""
        number, part = self._part(optimizer)
        self._captures[number].before(part, step, scale, micro)

    def evaluated(self, optimizer: Any) -> None:
        """Measure the gradients anew: a closure has just evaluated them."""
        number, part = self._part(optimizer)
        self._captures[number].evaluated(part)

    def forget(self) -> None:
        """Drop a step that did not come to its end."""
        self._finished.clear()
        for capture in self._captures:
            capture.forget()

    def after(self, optimizer: Any) -> Finished:
        """Measure what the rule made of it; the rows of the calls of this step so far."""
        number, part = self._part(optimizer)
        if number == 0:
            self._finished.clear()
        self._finished[number] = self._captures[number].after(part)
        return self._together(self._finished)

    def _number(self, optimizer: Any) -> int:
        held = (param for group in optimizer.param_groups for param in group["params"])
        return next(self._numbers[id(param)] for param in held)

    def _part(self, optimizer: Any) -> tuple[int, _Part]:
        number = self._number(optimizer)
        return number, _Part(self._groups[number], optimizer)

    def _together(self, parts: dict[int, Finished]) -> Finished:
        """What several calls have brought, as one step."""
        groups: dict[int, dict[str, Any]] = {}
        values: dict[str, Any] = {}
        for number, part in parts.items():
            groups |= {group: options for group, options in part.groups if group == self._groups[number]}
            values |= part.values
        known = [part.tensors for part in parts.values() if part.tensors is not None]
        tensors = None
        if known:
            layout = self._layout([one[0] for one in known])
            tensors = layout, np.concatenate([one[1] for one in known]), np.concatenate([one[2] for one in known])
        return Finished(sorted(groups.items()), tensors, values, [one for part in parts.values() for one in part.keep])

    def _layout(self, layouts: list[TensorLayout]) -> TensorLayout:
        known = self._layouts
        if known is None or len(known[0]) != len(layouts) or any(map(is_not, known[0], layouts)):
            columns = [
                [value for layout in layouts for value in getattr(layout, name)]
                for name in ("group", "param", "quantity", "dtype", "numel")
            ]
            known = self._layouts = layouts, TensorLayout(layouts[0].optimizer, *columns)
        return known[1]
