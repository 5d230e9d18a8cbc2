"""What the table `steps` says beside the numbers: since when batches, random states and losses differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optrace.compare.arrow import known, numbers
from optrace.compare.match import Matching
from optrace.compare.random_states import Generators
from optrace.compare.report import Divergence
from optrace.compare.source import Source

_WORDS = {
    "batch": "the batches differ since step {step}",
    "rng": "the random state differs since step {step} ({which})",
    "n_backward": "the number of backward passes differs since step {step}: {a:g} in {{A}}, {b:g} in {{B}}",
    "n_skipped": "the number of skipped steps differs since step {step}: {a:g} in {{A}}, {b:g} in {{B}}",
    "loss": "the loss differs since step {step}: {a!r} in {{A}}, {b!r} in {{B}}",
}


def note_steps(
    a: Source, b: Source, matching: Matching, offsets: Sequence[int], first: Divergence | None
) -> Iterator[str]:
    """A note for each column of `steps` that differs, with the first step; nulls are unknown and left alone.

    A loss that differs only after the first divergence follows from it. Random states differ between any two programs
    that set no seed: they are worth a note only where something random may come first, in start values and gradients.
    """
    upstream = first is not None and (first.quantity == "grad" or (first.quantity == "param" and first.step == 0))
    columns = ["step", "optimizer", *_WORDS]
    table_a, table_b = a.trace.arrow("steps", columns=columns), b.trace.arrow("steps", columns=columns)
    if not table_a.num_rows or not table_b.num_rows:
        return
    for name, words in _WORDS.items():
        firsts = []
        for pair, offset in zip(matching.pairs, offsets, strict=True):
            step_a, value_a = _known(table_a, name, pair.a)
            step_b, value_b = _known(table_b, name, pair.b)
            steps, at_a, at_b = np.intersect1d(step_a, step_b + offset, return_indices=True)
            one, other = value_a[at_a], value_b[at_b]
            unequal = np.flatnonzero((one != other) & ~((one != one) & (other != other)))
            if len(unequal):
                at = unequal[0]
                firsts.append((int(steps[at]), one[at].item(), other[at].item()))
        if firsts:
            step, value_a, value_b = min(firsts)
            if (name == "loss" and (first is None or step > first.step)) or (name == "rng" and not upstream):
                continue
            which = ""
            if name == "rng":
                states = Generators(({step: value_a}, {step: value_b})).at(step)
                which = "" if states is None else states.words
            yield words.format(step=step, a=value_a, b=value_b, which=which)


def _known(table: Any, name: str, optimizer: int) -> tuple[NDArray[np.int64], NDArray[Any]]:
    column = table.column(name)
    there = known(column) & (numbers(table.column("optimizer")) == optimizer)
    return numbers(table.column("step"))[there], numbers(column)[there]
