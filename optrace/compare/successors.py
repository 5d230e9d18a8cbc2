"""Optimizers that take over the parameters of one that makes no further step: made anew, as in a loop over epochs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from optrace.compare.arrow import integers, numbers, texts
from optrace.compare.match import Matching
from optrace.compare.source import Source, param_rows


@dataclass(frozen=True)
class Successor:
    """One optimizer of a side that goes on where a compared one has ended."""

    side: int
    """0: A, 1: B."""
    pair: int
    """Number of the matched pair whose optimizer it follows."""
    index: int
    cls: str
    after: int
    """Last step of that optimizer, in its own numbers."""
    state: bool
    """Whether it has state, other than zeros, before its first step."""


def successors(sources: tuple[Source, Source], matching: Matching) -> list[Successor]:
    """Unmatched optimizers that hold parameters of a matched one of their side and begin after its end, in order."""
    found = []
    for side, source in enumerate(sources):
        words = (matching.only_in_a, matching.only_in_b)[side]
        left = {int(word.split()[1]) for word in words if word.startswith("optimizer ")}
        if not left or not source.recorded:
            continue
        table = source.trace.arrow("events", columns=["seq", "step", "optimizer", "kind"])
        steps = np.array(texts(table.column("kind")), dtype=object) == "step"
        seq, step, owner = (integers(table.column(name))[steps] for name in ("seq", "step", "optimizer"))
        held: dict[int, set[str]] = {}
        for row in param_rows(source):
            held.setdefault(row["optimizer"], set()).add(row["param"])
        for number, pair in enumerate(matching.pairs):
            own = pair.b if side else pair.a
            mine = np.flatnonzero(owner == own)
            if not len(mine):
                continue
            end = mine[np.argmax(seq[mine])]
            for index in sorted(left, key=lambda index: int(seq[owner == index].min(initial=2**62))):
                its = seq[owner == index]
                if len(its) and its.min() > seq[end] and held[index] & held[own]:
                    cls = dict(source.trace.optimizers).get(index, "")
                    found.append(Successor(side, number, index, cls, int(step[end]), _has_state(source, index)))
    return found


def _has_state(source: Source, index: int) -> bool:
    table = source.trace.arrow("tensors", step=0, optimizer=index, quantity="state.*", columns=["l2"])
    return bool((numbers(table.column("l2")) > 0).any())
