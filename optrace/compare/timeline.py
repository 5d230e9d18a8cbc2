"""Which steps each side recorded, which of them can be compared, and when they were taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from optrace.compare.arrow import coded, integers, numbers
from optrace.compare.columns import Floats, Ints
from optrace.compare.grid import Bools
from optrace.compare.match import Matching
from optrace.compare.source import Source
from optrace.compare.words import count_words
from optrace.errors import CompareError


@dataclass(frozen=True)
class Gap:
    """Steps within both recorded ranges that one side lacks though nobody told it to skip them."""

    pair: int
    only_in_a: bool
    steps: Ints
    """A's numbers."""


class Timeline:
    """Recorded steps of the matched optimizers under A's numbers."""

    def __init__(self, a: Source, b: Source, matching: Matching, offsets: Sequence[int]) -> None:
        """CompareError when no optimizer has a step in common."""
        self.offsets = tuple(offsets)
        self._steps_a, self._steps_b, self._common = [], [], []
        self.gaps: list[Gap] = []
        self.notes: list[str] = []
        recorded_a, recorded_b = _recorded(a), _recorded(b)
        for number, pair in enumerate(matching.pairs):
            steps_a = recorded_a.get(pair.a, np.empty(0, np.int64))
            steps_b = recorded_b.get(pair.b, np.empty(0, np.int64)) + offsets[number]
            self._steps_a.append(steps_a)
            self._steps_b.append(steps_b)
            common = np.intersect1d(steps_a, steps_b)
            self._common.append(common)
            if len(common):
                self._one_sided(a, b, number, steps_a, steps_b)
        if not any(len(common) for common in self._common):
            raise CompareError(_nothing_common(a, b, self._steps_a, self._steps_b, self.offsets))
        self.steps: Ints = np.unique(np.concatenate(self._common))
        """All steps that can be compared."""
        self._recorded: Ints = np.unique(np.concatenate([*self._steps_a, *self._steps_b]))
        self.n_steps = max(int((common > 0).sum()) for common in self._common)
        self._pairs = len(matching.pairs)
        self._times = self._when(a, matching) if self._pairs > 1 else None

    def within(self, start: int, count: int) -> int:
        """How many of `steps`, from position `start` on, span at most `count` recorded steps; 1 at least."""
        low = np.searchsorted(self._recorded, self.steps[start])
        last = self._recorded[min(int(low) + count, len(self._recorded)) - 1]
        return max(int(np.searchsorted(self.steps, last, side="right")) - start, 1)

    def common(self, steps: Ints) -> Bools:
        """Which steps both sides recorded, [steps, pairs]."""
        return np.stack([np.isin(steps, common) for common in self._common], axis=1)

    def times(self, steps: Ints) -> Floats:
        """When A took each step, comparable between optimizers, [steps, pairs]."""
        if self._times is None:
            return np.asarray(steps, np.float64)[:, None].repeat(self._pairs, axis=1)
        times = np.empty((len(steps), self._pairs))
        for pair, (known, seqs) in enumerate(self._times):
            place = np.minimum(np.searchsorted(known, steps), max(len(known) - 1, 0))
            found = len(known) > 0 and known[place] == steps
            times[:, pair] = np.where(found, seqs[place] if len(known) else 0.0, np.asarray(steps, np.float64))
            times[np.asarray(steps) == 0, pair] = 0.0
        return times

    @staticmethod
    def _when(a: Source, matching: Matching) -> list[tuple[Ints, Floats]]:
        events = a.trace.arrow("events", columns=["seq", "step", "kind", "optimizer"])
        codes, words = coded(events.column("kind"))
        ends = codes == (words.index("step") if "step" in words else -1)
        step = numbers(events.column("step"))[ends].astype(np.int64)
        seq = numbers(events.column("seq"))[ends].astype(np.float64)
        optimizer = numbers(events.column("optimizer"))[ends]
        result = []
        for pair in matching.pairs:
            own = optimizer == pair.a
            order = np.argsort(step[own], kind="stable")
            result.append((step[own][order], seq[own][order]))
        return result

    def _one_sided(self, a: Source, b: Source, pair: int, steps_a: Ints, steps_b: Ints) -> None:
        low, high = max(steps_a[0], steps_b[0]), min(steps_a[-1], steps_b[-1])
        for only_in_a, own, other, skipper in ((True, steps_a, steps_b, b), (False, steps_b, steps_a, a)):
            here, there = ("{A}", "{B}") if only_in_a else ("{B}", "{A}")
            alone = np.setdiff1d(own, other)
            later = alone[alone > high]
            if len(later):
                self._say(f"{here} has {count_words(len(later), 'later step')} ({_span(later)}); {there} has not")
            early = alone[(alone < low) & (alone > 0)]
            if len(early):
                self._say(
                    f"{here} has {count_words(len(early), 'earlier step')} ({_span(early)}), which {there} has not"
                )
            inside = alone[(alone >= low) & (alone <= high) & (alone > 0)]
            if not len(inside):
                continue
            if _told_to_skip_steps(skipper):
                self._say(f"{count_words(len(inside), 'step')} not compared: {there} was told not to record them")
            else:
                self.gaps.append(Gap(pair, only_in_a, inside))

    def _say(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)


def _recorded(source: Source) -> dict[int, Ints]:
    """Steps of each optimizer that take part, ascending, with 0 where the world before step 1 was recorded."""
    found: dict[int, list[Ints]] = {}
    for table, step in (("steps", None), ("tensors", 0)):
        rows = source.trace.arrow(table, step=step, columns=["step", "optimizer"])
        if table == "steps" and not rows.num_rows:
            rows = source.trace.arrow("tensors", columns=["step", "optimizer"])
        steps = integers(rows.column("step"))
        optimizers = numbers(rows.column("optimizer"))
        for index in source.optimizers:
            own = np.unique(steps[optimizers == index])
            found.setdefault(index, []).append(own[[source.covers(int(step)) for step in own]] if len(own) else own)
    return {index: np.unique(np.concatenate(parts)) for index, parts in found.items()}


def _told_to_skip_steps(source: Source) -> bool:
    settings = source.trace.info.get("settings") or {}
    return (settings.get("every") or 1) > 1 or settings.get("steps") is not None


def _span(steps: Ints) -> str:
    return f"{steps[0]}-{steps[-1]}" if len(steps) > 1 else f"{steps[0]}"


def _nothing_common(
    a: Source, b: Source, steps_a: Sequence[Ints], steps_b: Sequence[Ints], offsets: Sequence[int]
) -> str:
    words, firsts = [], []
    for source, all_steps, back in ((a, steps_a, [0] * len(offsets)), (b, steps_b, offsets)):
        spans = [steps - offset for steps, offset in zip(all_steps, back, strict=True) if len(steps)]
        words.append(f"{source.name} has {_span(spans[0])}" if spans else f"{source.name} has none")
        firsts.append(int(spans[0][0]) if spans else None)
    advice = f"; to say which belong together use --align {firsts[0]}:{firsts[1]}" if None not in firsts else ""
    return f"the two have no step in common: {words[0]}, {words[1]}{advice}"
