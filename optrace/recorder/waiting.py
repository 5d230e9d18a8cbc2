"""Events that wait to be written with the next step, in their order."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

from optrace.recorder.events_data import PLAIN, json_of
from optrace.recorder.later import Slots
from optrace.trace.schema import Event

STRANGERS = 128
"""So many events of optimizers that have not stepped go on waiting when others are taken."""

event_of: Callable[[tuple[int, int, str, int, dict[str, Any]]], Event] = partial(tuple.__new__, Event)
"""An Event of a tuple, without a Python call: there are several a step."""


class WaitingEvents:
    """The events of a recording that are not written yet; whoever calls holds the recording's lock."""

    def __init__(self, index_of: Callable[[Any], int | None]) -> None:
        """`index_of` an optimizer is None as long as it has not stepped."""
        self._index_of = index_of
        self.numbers = count(1)
        self._spare: int | None = None
        self.events: list[Event] = []
        """Those that wait; always the same list, since the kernel appends to it."""
        self.strangers: dict[int, weakref.ref[Any]] = {}
        """By seq: the optimizer that an event is about, whose index is not known yet."""

    def __len__(self) -> int:
        return len(self.events)

    def next_seq(self) -> int:
        """The number of the next event, for one that does not wait."""
        seq, self._spare = self._spare, None
        return next(self.numbers) if seq is None else seq

    def spare_seq(self, seq: int) -> None:
        """Take back the number that was given last: nothing was written under it."""
        self._spare = seq

    def put(
        self, step: int, kind: str, optimizer: int, data: dict[str, Any], stranger: weakref.ref[Any] | None = None
    ) -> None:
        """Have an event wait; `stranger`: the optimizer that it is about, which has no index yet."""
        seq = next(self.numbers)
        self.events.append(event_of((seq, step, kind, optimizer, data)))
        if stranger is not None:
            self.strangers[seq] = stranger

    def drop(self, number: int) -> None:
        """Forget the `number` oldest."""
        for event in self.events[:number]:
            self.strangers.pop(event.seq, None)
        del self.events[:number]

    def carry(self, slots: Slots) -> None:
        """Have the numbers on a device that they tell of come with a step's results.

        Not those of optimizers that have not stepped: their events may be written before the step's.
        """
        for place, event in enumerate(self.events):
            if event.seq not in self.strangers and not PLAIN.issuperset(map(type, event.data.values())):
                carried = {key: slots.put(value) for key, value in event.data.items()}
                self.events[place] = event._replace(data=carried)

    def take(self, last: bool = False, clean: bool = True) -> list[Event]:
        """All, ready to be written; those of optimizers that have not stepped yet go on waiting, but for the `last`
        time.

        `clean` as False leaves their data as it is, with numbers that have not arrived.
        """
        count = len(self.events)  # not `clear`: another thread may be adding one
        events = self.events[:count]
        del self.events[:count]
        if self.strangers:
            events = self._known_by_now(events, last)
        if clean:
            for place, event in enumerate(events):
                data = event[4]
                if data and not PLAIN.issuperset(map(type, data.values())):
                    events[place] = event._replace(data=json_of(data))
        return events

    def _known_by_now(self, events: list[Event], last: bool) -> list[Event]:
        """Those that can be written, with the index of an optimizer that has stepped since; others wait on."""
        known = []
        for event in events:
            reference = self.strangers.get(event.seq)
            if reference is not None:
                optimizer = reference()
                index = None if optimizer is None else self._index_of(optimizer)
                if index is not None:
                    event = event._replace(optimizer=index)
                elif not last and optimizer is not None and len(self.events) < STRANGERS:
                    self.events.append(event)
                    continue
                del self.strangers[event.seq]
            known.append(event)
        return known
