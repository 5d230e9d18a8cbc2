"""A standing order to write: what is known of the batches of a step that is laid out as the one before it.

Where an optimizer's rows stay the same memory and its options change in floats at most, a step changes numbers only.
Then one call of the C kernel fills its batches and writes them, one write(2) a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optrace.trace.batches import Part
from optrace.trace.group_batches import GroupBatches
from optrace.trace.measure import kernel
from optrace.trace.stream import TableStream

_write_order: Any = None if kernel is None else kernel.write_order


WRITTEN, FULL = 1, 2
_LOOK_AHEAD = 4
"""Shifted by the number of a table: its next batch had better find a (new) window."""


class StandingOrder:
    """How the steps of one optimizer are written as long as they are laid out alike."""

    def __init__(
        self,
        optimizer: int,
        groups: Sequence[tuple[int, Mapping[str, Any]]],
        tensors: tuple[Any, Any, Any],
        batches: GroupBatches,
        parts: Sequence[tuple[TableStream, Part | None]],
    ) -> None:
        """The members of `tensors` are known again by identity; `parts`: one a table, in order.

        `groups` have been filled by `batches`, which knows where their floats go.
        """
        self._optimizer = optimizer
        self._groups = groups
        self._tensors = tensors
        self._batches = batches
        self._streams = [stream for stream, _ in parts]
        self.parts = tuple([None if part is None else (stream.place, *part) for stream, part in parts])
        """For the kernel; one a table, in order."""

    def write(
        self, step: int, groups: Any, tensors: Any, values: Mapping[str, Any], events: list[Any], limit: int
    ) -> int:
        """Write a step; 0, and nothing is written, where it is laid out otherwise.

        Else WRITTEN, with FULL where a segment has grown beyond `limit` bytes. OSError: part may have been written.
        """
        layout, rows, present = self._tensors
        if tensors is None:
            if layout is not None:
                return 0
        elif tensors[1] is not rows or tensors[0] is not layout or tensors[2] is not present:
            return 0
        if groups is not self._groups and not self.regroup(groups):
            return 0
        done: int = _write_order(self.parts, step, self._optimizer, values, events, limit)
        if done >= _LOOK_AHEAD:
            self.look_ahead(done)
        return done

    def regroup(self, groups: Any) -> bool:
        """Take other options of the groups; False where they are laid out otherwise."""
        if self.parts[0] is None or not self._batches.refill(self._optimizer, groups):
            return False
        self._groups = groups
        return True

    def look_ahead(self, done: int) -> None:
        """Find windows for the next batches of the tables that a write has `done` up to the end of theirs."""
        for table, part in enumerate(self.parts):
            if part is not None and done & _LOOK_AHEAD << table:
                self._streams[table].look_ahead(len(part[1]))


def can_stand() -> bool:
    """Whether there is a kernel that takes standing orders."""
    return _write_order is not None
