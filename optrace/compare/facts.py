"""Differences that no tolerance applies to: hyper-parameters, missing data, dtypes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from optrace.compare.columns import KEYS, Numbering, Side
from optrace.compare.hyper import HyperComparison
from optrace.compare.match import Matching
from optrace.compare.order import HYPER_RANK, MISSING_RANK, rank_of
from optrace.compare.presence import Absence
from optrace.compare.report import Divergence
from optrace.compare.source import Source
from optrace.compare.successors import Successor
from optrace.compare.tally import Order
from optrace.compare.timeline import Timeline
from optrace.trace.logical import LogicalTrace
from optrace.trace.own import Own, own_words, renamed
from optrace.trace.replicas import Drift, rank_words

Fact = tuple[Order, Divergence]
DTYPE_RANK = MISSING_RANK
"""A dtype is there before anything is computed."""
REPLICA_RANK = MISSING_RANK - 1
"""Where ranks disagree, what the run as a whole did at that step means nothing."""


class Facts:
    """Turns what was found beside the numbers into divergences with their place in the causal order."""

    def __init__(self, matching: Matching, numbering: Numbering, timeline: Timeline) -> None:
        self.matching, self.numbering, self.timeline = matching, numbering, timeline
        self._taken = set(timeline.steps[1:].tolist()) | set(timeline.steps[timeline.steps == 1].tolist())

    def of_hyper(self, hyper: HyperComparison) -> Iterator[Fact]:
        """Hyper-parameters that decide, one for each group and option, at the first step at which they differ."""
        for found in hyper.differences.values():
            if found.decides:
                yield self._fact(
                    found.pair,
                    found.step,
                    HYPER_RANK,
                    found.group_a,
                    Divergence(
                        step=found.step,
                        step_b=found.step - self.timeline.offsets[found.pair],
                        optimizer=self.matching.pairs[found.pair].a,
                        group=found.group_a,
                        param=None,
                        quantity=f"hyper.{found.key}",
                        kind="hyper",
                        evidence="values",
                        a=found.a,
                        b=found.b,
                        index=None,
                        eps=None,
                        granted=None,
                        follows=False,
                        count=found.count,
                    ),
                )

    def of_missing(self, absences: Sequence[Absence], later: Sequence[Successor] = ()) -> Iterator[Fact]:
        """What one side lacks: optimizers and parameters, steps, single rows.

        `later`: optimizers that go on where another has ended, and so are missing from then on.
        """
        start = int(self.timeline.steps[0])
        since = {(one.side, one.index): one for one in reversed(later)}
        for words, only_in_a in ((self.matching.only_in_a, True), (self.matching.only_in_b, False)):
            for number, word in enumerate(words):
                kind, _, name = word.partition(" ")
                param = name if kind == "param" else None
                optimizer = int(name.split(" ")[0]) if kind == "optimizer" else None
                one = since.get((0 if only_in_a else 1, optimizer)) if optimizer is not None else None
                pair = 0 if one is None else one.pair
                step = start if one is None else one.after + 1 + (0 if only_in_a else self.timeline.offsets[pair])
                fact = self._missing(step, pair, kind, only_in_a, optimizer=optimizer, group=None, param=param, count=0)
                yield self._fact(pair, step, MISSING_RANK, number, fact)
        for gap in self.timeline.gaps:
            optimizer = self.matching.pairs[gap.pair].a
            step, count = int(gap.steps[0]), len(gap.steps)
            fact = self._missing(
                step, gap.pair, "step", gap.only_in_a, optimizer=optimizer, group=None, param=None, count=count
            )
            yield self._fact(gap.pair, step, MISSING_RANK, 0, fact)
        for absence in absences:
            cell = self.numbering.cells[absence.cell]
            fact = self._missing(
                absence.step,
                cell.pair,
                absence.quantity,
                absence.only_in_a,
                optimizer=self.matching.pairs[cell.pair].a,
                group=cell.group_a,
                param=cell.param_a,
                count=absence.count,
            )
            rank = rank_of(absence.quantity) if absence.step in self._taken else MISSING_RANK
            yield self._fact(cell.pair, absence.step, rank, absence.cell, fact)

    def of_replicas(self, a: Source, b: Source) -> Iterator[Fact]:
        """Ranks of one side that part where they should agree, unless the other side's do so in the same way."""
        found: list[list[Drift]] = [
            [*source.trace.drifts, *source.trace.unlike] if isinstance(source.trace, LogicalTrace) else []
            for source in (a, b)
        ]
        for side, other in ((0, 1), (1, 0)):
            source = (a, b)[side]
            for drift in found[side]:
                index = (p.a if side == 0 else p.b for p in self.matching.pairs)
                pair = next((number for number, own in enumerate(index) if own == drift.optimizer), None)
                if pair is None or not source.covers(drift.step) or _like(drift, found[other]):
                    continue
                if drift.own is not None and not self._one_there(drift.own, side):
                    continue
                step = drift.step + (self.timeline.offsets[pair] if side else 0)
                apart = f"{rank_words(drift.ranks)} apart from {rank_words(drift.others)}"
                divergence = Divergence(
                    step=step,
                    step_b=step - self.timeline.offsets[pair],
                    optimizer=self.matching.pairs[pair].a,
                    group=None,
                    param=drift.params[0],
                    quantity=drift.quantity,
                    kind="replica",
                    evidence="bitwise",
                    a=f"apart: {apart}" if side == 0 else "agree",
                    b=f"apart: {apart}" if side == 1 else "agree",
                    index=None,
                    eps=None,
                    granted=None,
                    follows=False,
                    count=len(drift.params),
                )
                yield self._fact(pair, step, REPLICA_RANK, 0, divergence)

    def _one_there(self, own: Own, side: int) -> bool:
        """Whether the other side has one parameter for what ranks of this side may have as their own."""
        cells = [(cell, self.matching.pairs[cell.pair]) for cell in self.matching.cells]
        matched = {(pair.b, cell.param_b) if side else (pair.a, cell.param_a) for cell, pair in cells}
        names = (pair for camp in own.camps for pair in renamed([own], camp[0]).items())
        return any(key in matched and (key[0], new) not in matched for key, new in names)

    def rank_notes(self, a: Source, b: Source) -> Iterator[str]:
        """Which ranks stop before others, or left nothing; what is read as their own."""
        for side, source in (("{A}", a), ("{B}", b)):
            yield from (f"{side}: {own_words(one)}" for one in getattr(source.trace, "own", ()))
            gone = list(getattr(source.trace, "gone", ()))
            yield from (f"{side}: {words}" for words in gone[:4])
            if len(gone) > 4:
                yield f"{side}: {len(gone) - 4} more ranks stop early"

    def of_dtypes(self, a: Source, b: Source, side_a: Side, side_b: Side) -> Iterator[Fact]:
        """Parameters and state of another dtype than the other side's; between recorded runs only."""
        if not (a.recorded and b.recorded):
            return
        start = int(self.timeline.steps[0])
        for number, cell in enumerate(self.matching.cells):
            if cell.dtype_a and cell.dtype_b and cell.dtype_a != cell.dtype_b:
                yield self._dtype(start, number, "param", cell.dtype_a, cell.dtype_b)
        later = self.timeline.steps[self.timeline.steps > 0][:1]
        for step in later:
            found = []
            for side in (side_a, side_b):
                rows = side.load(int(step), int(step), [*KEYS, "dtype", "numel"])
                texts, sizes = rows.texts("dtype"), rows.columns["numel"]
                found.append(
                    {
                        (int(c), int(q)): text
                        for c, q, text, size in zip(rows.cell, rows.quantity, texts, sizes, strict=True)
                        if size > 1 or not text.startswith(("int", "uint"))  # counts lose no precision
                    }
                )
            for (cell_number, quantity), dtype in found[0].items():
                name, other = self.numbering.quantities[quantity], found[1].get((cell_number, quantity))
                if name.startswith("state.") and other is not None and other != dtype:
                    yield self._dtype(int(step), cell_number, name, dtype, other)

    def words(self, absences: Sequence[Absence], *, only_in_a: bool) -> list[str]:
        """Missing rows and steps in words, those that only one side has."""
        words = [f"steps {_spans(gap.steps)}" for gap in self.timeline.gaps if gap.only_in_a == only_in_a]
        for absence in absences:
            if absence.only_in_a == only_in_a:
                cell = self.numbering.cells[absence.cell]
                times = f"at step {absence.step}" if absence.count == 1 else f"at {absence.count} steps"
                param, group = (cell.param_a, cell.group_a) if only_in_a else (cell.param_b, cell.group_b)
                words.append(f"{absence.quantity} of {param or f'group {group}'} {times}")
        return words

    def _fact(self, pair: int, step: int, rank: int, place: int, divergence: Divergence) -> Fact:
        time = float(self.timeline.times(np.array([step]))[0, pair])
        return (time, rank, place), divergence

    def _missing(
        self,
        step: int,
        pair: int,
        quantity: str,
        only_in_a: bool,
        *,
        optimizer: int | None,
        group: int | None,
        param: str | None,
        count: int,
    ) -> Divergence:
        return Divergence(
            step=step,
            step_b=step - self.timeline.offsets[pair],
            optimizer=optimizer,
            group=group,
            param=param,
            quantity=quantity,
            kind="missing",
            evidence="values",
            a="recorded" if only_in_a else None,
            b=None if only_in_a else "recorded",
            index=None,
            eps=None,
            granted=None,
            follows=False,
            count=count,
        )

    def _dtype(self, step: int, cell_number: int, quantity: str, a: str, b: str) -> Fact:
        cell = self.numbering.cells[cell_number]
        divergence = Divergence(
            step=step,
            step_b=step - self.timeline.offsets[cell.pair],
            optimizer=self.matching.pairs[cell.pair].a,
            group=cell.group_a,
            param=cell.param_a,
            quantity=quantity,
            kind="dtype",
            evidence="values",
            a=a,
            b=b,
            index=None,
            eps=None,
            granted=None,
            follows=False,
        )
        return self._fact(cell.pair, step, DTYPE_RANK, cell_number, divergence)


def _like(drift: Drift, others: Sequence[Drift]) -> bool:
    """Whether the other side's ranks part at the same step in the same quantity."""
    return any((one.step, one.quantity, one.ranks) == (drift.step, drift.quantity, drift.ranks) for one in others)


def _spans(steps: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> str:
    """`3, 5-7`, cut after a few."""
    parts: list[list[int]] = []
    for step in steps.tolist():
        if parts and step == parts[-1][1] + 1:
            parts[-1][1] = step
        else:
            parts.append([step, step])
    words = [f"{low}-{high}" if high > low else f"{low}" for low, high in parts]
    return ", ".join(words[:5]) + (", ..." if len(words) > 5 else "")
