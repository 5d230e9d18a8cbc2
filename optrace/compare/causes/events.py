"""The events of one side under A's numbers of steps: what they are at once, what they hold when it is asked for."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from optrace.compare.arrow import coded, integers, texts

Mask = NDArray[np.bool_]


class Event(NamedTuple):
    """One event, with A's number of its step."""

    seq: int
    step: int
    kind: str
    optimizer: int
    data: Mapping[str, Any]


class Events:
    """All events of a side, some twenty bytes each; their data stays on disk."""

    def __init__(self, trace: Any, shift: int) -> None:
        """`shift`: what is added to the trace's numbers of steps to give A's."""
        self._trace, self._shift = trace, shift
        table = trace.arrow("events", columns=["seq", "step", "kind", "optimizer"])
        seq = integers(table.column("seq"))
        order = np.argsort(seq, kind="stable")
        codes, self._kinds = coded(table.column("kind")) if len(seq) else (np.empty(0, np.int64), [])
        self.seq = seq[order]
        self.step = (integers(table.column("step")) + shift)[order]
        self._kind = codes[order].astype(np.int8)
        self.optimizer = integers(table.column("optimizer"))[order].astype(np.int32)
        self._ends: dict[int, NDArray[np.int64]] = {}

    def of(self, *kinds: str, optimizer: Collection[int] | None = None) -> Mask:
        """Which events are of some kinds, and of some optimizers."""
        mask: Mask = np.isin(self._kind, [code for code, kind in enumerate(self._kinds) if kind in kinds])
        return mask if optimizer is None else mask & np.isin(self.optimizer, list(optimizer))

    def read(self, mask: Mask) -> Iterator[Event]:
        """Those events in their order, one after the other."""
        chosen = np.flatnonzero(mask)
        if not len(chosen):
            return
        ends = int(self.step[chosen].min()) - self._shift, int(self.step[chosen].max()) - self._shift
        table = self._trace.arrow("events", step=ends, columns=["seq", "data"])
        stored = integers(table.column("seq"))
        order = np.argsort(stored, kind="stable")
        places = order[np.searchsorted(stored[order], self.seq[chosen])]
        words = texts(table.column("data").take(places))
        for i, text in zip(chosen.tolist(), words, strict=True):
            kind = self._kinds[self._kind[i]]
            yield Event(int(self.seq[i]), int(self.step[i]), kind, int(self.optimizer[i]), _data(text))

    def before_step(self, optimizer: int, step: int) -> Mask:
        """What happened since an optimizer's step before `step`, up to that step's own event."""
        if optimizer not in self._ends:
            self._ends[optimizer] = np.flatnonzero(self.of("step", optimizer=(optimizer,)))
        ends = self._ends[optimizer]
        mask: Mask = np.zeros(len(self.seq), bool)
        own = np.flatnonzero(self.step[ends] == step)
        if len(own):
            mask[ends[own[0] - 1] + 1 if own[0] else 0 : ends[own[0]]] = True
        return mask

    def kinds(self, mask: Mask) -> list[str]:
        """Their kinds alone, in order."""
        return [self._kinds[code] for code in self._kind[mask]]


def _data(text: str) -> Mapping[str, Any]:
    try:
        data = json.loads(text or "{}")
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}
