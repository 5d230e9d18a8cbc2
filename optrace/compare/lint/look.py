"""One optimizer of a run as the rules of the linter look at it: its tables, read once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from optrace.trace.reader import Trace

if TYPE_CHECKING:
    import pandas as pd


class Event(NamedTuple):
    """One event of the run."""

    seq: int
    step: int
    kind: str
    optimizer: int
    data: dict[str, Any]


class Run:
    """What the rules share: the trace and its events."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.optimizers = trace.optimizers
        self.looks = [Look(self, index, name) for index, name in self.optimizers]

    @cached_property
    def events(self) -> list[Event]:
        """All events in order."""
        frame = self.trace.events
        columns = [frame[name].tolist() for name in ("seq", "step", "kind", "optimizer", "data")]
        return [Event(*row) for row in zip(*columns, strict=True)]


class Look:
    """One optimizer of a run."""

    def __init__(self, run: Run, index: int, name: str) -> None:
        self.run, self.index, self.name = run, index, name
        self.n_steps = run.trace.last_step(index)

    @property
    def title(self) -> str:
        """The optimizer in a sentence: its class, and its index where there are several."""
        return self.name if len(self.run.optimizers) == 1 else f"{self.name} (optimizer {self.index})"

    @cached_property
    def events(self) -> list[Event]:
        """Events of this optimizer alone."""
        return [event for event in self.run.events if event.optimizer == self.index]

    @cached_property
    def params(self) -> pd.DataFrame:
        """The table params of this optimizer."""
        return self.run.trace.table("params", optimizer=self.index)

    @cached_property
    def groups(self) -> pd.DataFrame:
        """The table groups of this optimizer, with only the options that its groups have."""
        frame = self.run.trace.table("groups", optimizer=self.index)
        return frame.dropna(axis="columns", how="all") if len(frame) else frame

    def tensors(self, columns: Sequence[str], **selection: Any) -> pd.DataFrame:
        """Rows of the table tensors of this optimizer."""
        return self.run.trace.table("tensors", optimizer=self.index, columns=list(columns), **selection)


_NORM_NAME = re.compile(r"(^|[._])(bias|weight|scale|gamma|beta|g|b)(_\w+)?$", re.I)


def is_norm_or_bias(name: str, shape: Any) -> bool:
    """Whether a parameter is a bias or belongs to a normalisation: at most one dimension, and named like it."""
    return isinstance(shape, tuple) and len(shape) <= 1 and _NORM_NAME.search(name) is not None


def few(names: Sequence[str], most: int = 3) -> str:
    """Some names in a sentence, and how many more there are."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most:,} more" if len(names) > most else shown


def stretch(first: int, last: int) -> str:
    """Steps in a sentence."""
    return f"step {first:,}" if first == last else f"steps {first:,} to {last:,}"
