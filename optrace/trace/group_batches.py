"""Batches of hyper-parameters: the options of an optimizer's groups, long."""

from __future__ import annotations

import marshal
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from optrace.trace.arrays import record_batch
from optrace.trace.batches import TEMPLATES, Part, clean
from optrace.trace.measure import kernel
from optrace.trace.stream import BatchTemplate

_FIXED = frozenset({float, int, bool, str, type(None)})
_fill_groups: Any = None if kernel is None else kernel.fill_groups
"""Puts floats that have changed into a batch that has been laid out before; None without the C kernel."""


class GroupBatches:
    """Hyper-parameters of a step, long: one row a group and scalar.

    Unchanged options cost one comparison of bytes, changed floats (a schedule) one copy each; only what changes the
    rows themselves (another key, kind or text) is taken apart anew.
    """

    def __init__(self) -> None:
        self._templates: dict[Any, BatchTemplate] = {}
        self._last: dict[int, _LastGroups] = {}

    def fill(self, step: int, optimizer: int, groups: Sequence[tuple[int, Mapping[str, Any]]]) -> bytearray | None:
        """The batch of one step; None when the groups hold no option at all. The last list given again is not read."""
        last = self._last.get(optimizer)
        if last is not None and groups is last.groups:
            last.steps.fill(step)
            return last.message
        if last is not None and self.refill(optimizer, groups):
            last.steps.fill(step)
            return last.message
        rows = [(group, *scalar) for group, options in groups for scalar in flatten(options)]
        if not rows:
            self._last.pop(optimizer, None)
            return None
        key = (optimizer, tuple((group, name, kind, text) for group, name, kind, _, text in rows))
        template = self._templates.get(key)
        if template is None:
            if len(self._templates) >= TEMPLATES:
                self._templates.clear()
            template = self._templates[key] = self._build(optimizer, rows)
        last = self._last[optimizer] = _LastGroups(_signature(groups), template, groups)
        last.numbers[:] = [row[3] for row in rows]
        last.steps.fill(step)
        return template.bytes

    def refill(self, optimizer: int, groups: Sequence[tuple[int, Mapping[str, Any]]]) -> bool:
        """Put the options into the optimizer's last batch, if nothing but floats has changed; whether so."""
        last = self._last.get(optimizer)
        if last is None:
            return False
        if _fill_groups is not None and last.known is not None and _fill_groups(last.message, last.known, groups):
            last.signature = None
        else:
            signature = _signature(groups)
            if (signature is None or last.signature != signature) and not last.take_floats(groups):
                return False
            last.signature = signature
        last.groups = groups
        return True

    def part(self, optimizer: int) -> Part | None:
        """For a standing order, after `fill`."""
        last = self._last.get(optimizer)
        return None if last is None else (last.message, last.steps_at, len(last.steps))

    @staticmethod
    def _build(optimizer: int, rows: list[tuple[int, str, str, float, str]]) -> BatchTemplate:
        columns = {
            "optimizer": [optimizer] * len(rows),
            "group": [row[0] for row in rows],
            "key": [row[1] for row in rows],
            "kind": [row[2] for row in rows],
            "text": [row[4] for row in rows],
        }
        return BatchTemplate(record_batch("groups", len(rows), columns))


class _LastGroups:
    """The groups of an optimizer's last step, taken apart into floats, which may change, and all else."""

    def __init__(
        self, signature: bytes | None, template: BatchTemplate, groups: Sequence[tuple[int, Mapping[str, Any]]]
    ) -> None:
        self.signature = signature
        self.groups = groups
        self.message = template.bytes
        self.steps = template.view("step", "i8")
        self.steps_at = template.place("step")[0]
        self.numbers = template.view("number", "f8")
        self._shape = self._shape_of(groups)
        self._floats = [[key for key, value in options.items() if type(value) is float] for _, options in groups]
        self._others = [[key for key, value in options.items() if type(value) is not float] for _, options in groups]
        self._rest = self._rest_of(groups)
        floats = [type(value) is float for _, options in groups for value in _members(options)]
        self._where = np.flatnonzero(floats)
        places = iter((template.place("number")[0] + 8 * self._where).tolist())
        self.known: tuple[Any, ...] | None = None
        """For the kernel: of each option its key, its value and the place of a float, or -1; None where a value that is
        no float could change and stay the same object."""
        if all(type(value) in _FIXED for _, options in groups for value in options.values()):
            self.known = tuple(
                (group, tuple(part for item in options.items() for part in (*item, _place(item[1], places))))
                for group, options in groups
            )

    def take_floats(self, groups: Sequence[tuple[int, Mapping[str, Any]]]) -> bool:
        """Take over the floats if nothing else has changed; else False, and nothing is taken."""
        if self._rest is None or self._shape_of(groups) != self._shape or self._rest_of(groups) != self._rest:
            return False
        pairs = zip(groups, self._floats, strict=True)
        self.numbers[self._where] = [options[key] for (_, options), keys in pairs for key in keys]
        return True

    @staticmethod
    def _shape_of(groups: Sequence[tuple[int, Mapping[str, Any]]]) -> list[Any]:
        return [(group, tuple(options), tuple(map(type, options.values()))) for group, options in groups]

    def _rest_of(self, groups: Sequence[tuple[int, Mapping[str, Any]]]) -> bytes | None:
        pairs = zip(groups, self._others, strict=True)
        return _signature([options[key] for (_, options), keys in pairs for key in keys])


def _place(value: Any, places: Iterator[int]) -> int:
    """Where a float goes; -1 for a value that must stay the same object."""
    return next(places) if type(value) is float else -1


def _signature(values: Any) -> bytes | None:
    """Bytes that are equal only for equal values; None, which says nothing, when marshal cannot write them.

    They tell 1 from 1.0 and True, 0.0 from -0.0, and a NaN is equal to itself: == does none of it. They are never read
    back. Version 2 of marshal depends on the values alone, not on who else holds them.
    """
    try:
        return marshal.dumps(values, 2)
    except ValueError:
        return None


def _members(options: Mapping[Any, Any]) -> Iterator[Any]:
    """One entry for each row that `flatten` makes of the options: floats as they are, members of others as None."""
    for value in options.values():
        if type(value) is float:
            yield value
        else:
            yield from (None for _ in flatten({"": value}))


def flatten(options: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, str, float, str]]:
    """The scalars of a group as (key, kind, number, text); members of tuples, lists and dicts as `<key>.<i>`."""
    for name, value in options.items():
        key = prefix + clean(str(name))
        if isinstance(value, list | tuple) and value:
            yield from flatten(dict(enumerate(value)), key + ".")
        elif isinstance(value, Mapping) and value:
            yield from flatten(value, key + ".")
        else:
            yield key, *_scalar(value)


def _scalar(value: Any) -> tuple[str, float, str]:
    if isinstance(value, bool | np.bool_):
        return "bool", float(value), ""
    if isinstance(value, int | np.integer):
        number = int(value)
        small = -(2**53) <= number <= 2**53
        return "int", float(number) if small else math.copysign(math.inf, number), "" if small else f"{number:#x}"
    if isinstance(value, float | np.floating):
        return "float", float(value), ""
    if isinstance(value, str):
        return "str", math.nan, clean(value)
    if value is None:
        return "none", math.nan, ""
    kind = type(value)
    return "other", math.nan, f"{kind.__module__}.{kind.__qualname__}"
