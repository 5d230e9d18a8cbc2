"""What a recording costs the program, told once: rows, bytes, share of time, memory."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import NamedTuple

STEPS = 3
"""Steps after the first over which the price is taken ..."""
QUICK_STEPS, QUICK = 64, 0.25
"""... or so many, unless they take longer than this together (seconds): the first steps make plans and layouts."""
EACH = 4
"""At one of so many of these steps it is looked what observing a call costs: that step and the next are not typical."""
CACHES = 1e-4
"""Seconds that a step loses at most to caches that the recorder has used: 1 MB read anew at 10 GB/s."""


class Mark(NamedTuple):
    """How far a recording had come when the first optimizer completed a step."""

    now: float
    """Seconds."""
    hooks: float
    """Seconds spent in the hooks of optimizers."""
    aside: float
    """Seconds spent in taking the price."""
    rows: int
    written: int
    """Bytes."""
    events: int
    backwards: int


class ObservedCall(NamedTuple):
    """Seconds that it costs to observe one call that makes no backward, and one that does."""

    plain: float
    backward: float

    def of(self, former: Mark, later: Mark) -> float:
        """What observing took between two steps.

        Each event is a call, also the step: what torch needs to call the hooks is outside the time that they take.
        """
        backwards = later.backwards - former.backwards
        return backwards * self.backward + max(later.events - former.events - backwards, 0) * self.plain


class Price:
    """Adds up what recording takes, until the first optimizer has made enough steps to tell."""

    def __init__(self) -> None:
        self.rows = 0
        self.hooks = 0.0
        self.events = 0
        """Number of the last step's event."""
        self.told = False
        self.share: float | None = None
        """What recording takes, over the rest of a step; None until the price is told."""
        self._marks: list[Mark] = []
        self._observed: list[tuple[ObservedCall, ObservedCall]] = []

    @property
    def wants_observed(self) -> bool:
        """Whether `observed` is to be called with the step that is about to be marked."""
        return len(self._marks) % EACH == 0

    def observed(self, cold: ObservedCall, warm: ObservedCall) -> None:
        """Take the cost of observing a call when training has used the caches, and right after that again."""
        self._observed.append((cold, warm))

    def step_ended(self, mark: Mark, soon: bool = False) -> bool:
        """The first optimizer has completed a step; whether the price can be told.

        `soon`: after `STEPS` steps even if they were quick.
        """
        if self.told:
            return False
        self._marks.append(mark)
        count = len(self._marks) - 1
        return count >= STEPS and (soon or count >= QUICK_STEPS or mark.now - self._marks[0].now >= QUICK)

    def line(self, held: int) -> str | None:
        """The price in words; None when no step has been recorded."""
        self.told = True
        marks = self._marks
        if not marks:
            return None
        if len(marks) == 1:
            return f"step 1 wrote {marks[0].rows} rows, {size(marks[0].written)}; {size(held)} of memory are held"
        pairs = list(pairwise(marks))
        rows = round(median(later.rows - former.rows for former, later in pairs))
        written = round(median(later.written - former.written for former, later in pairs))
        taken = self._taken(pairs)
        period = median(later.now - former.now - later.aside + former.aside for former, later in pairs)
        self.share = taken / max(period - taken, 1e-9)
        percent = 100 * self.share
        more = f"{percent:.2g}" if percent < 99.5 else f"{percent:,.0f}" if percent < 1000 else "over 1,000"
        return (
            f"a step costs {rows} rows, {size(written)} on disk and {more} % more time"
            f" ({1000 * taken:.3g} ms); {size(held)} of memory are held"
        )

    def _taken(self, pairs: Sequence[tuple[Mark, Mark]]) -> float:
        """Seconds that recording takes of a step: hooks, observed calls, and what training then finds in no cache.

        The last cannot be timed. What the recorder loses to caches that training has used is known of the observed
        calls (their first time against their second); training is taken to lose the same part, up to `CACHES`.
        """
        hooks = median(later.hooks - former.hooks for former, later in pairs)
        if not self._observed:
            return hooks
        cold = ObservedCall(*(median(times) for times in zip(*(first for first, _ in self._observed), strict=True)))
        warm = ObservedCall(*(median(times) for times in zip(*(second for _, second in self._observed), strict=True)))
        taken = hooks + median(cold.of(*pair) for pair in pairs)
        lost = max(1 - (warm.plain + warm.backward) / max(cold.plain + cold.backward, 1e-9), 0.0)
        return taken + min(lost * taken, CACHES)


def size(count: int) -> str:
    """A number of bytes for people: 512 bytes, 1.5 kB, 20 MB.

    >>> size(1530), size(20_000_000)
    ('1.5 kB', '20 MB')
    """
    if count < 1000:
        return f"{count} bytes"
    power = 1
    while count >= 999.5 * 1000**power and power < 4:
        power += 1
    number, unit = count / 1000**power, ("kB", "MB", "GB", "TB")[power - 1]
    return f"{number:.2g} {unit}" if number < 100 else f"{number:.0f} {unit}"
