"""What a recording costs the program, told once: rows, bytes, share of time, memory."""

from __future__ import annotations

from itertools import pairwise
from statistics import median

STEPS = 3
"""Steps after the first over which the price is taken."""


class Price:
    """Adds up what the hooks take, until the first optimizer has made enough steps to tell."""

    def __init__(self) -> None:
        self.rows = 0
        self.hooks = 0.0
        self._marks: list[tuple[float, float, int, int]] = []
        self.told = False
        self.share: float | None = None
        """What the hooks take, over the rest of a step; None until the price is told."""

    def step_ended(self, now: float, written: int) -> bool:
        """The first optimizer has completed a step at `now` (seconds); whether the price can be told."""
        if self.told:
            return False
        self._marks.append((now, self.hooks, self.rows, written))
        return len(self._marks) > STEPS

    def line(self, held: int) -> str | None:
        """The price in words; None when no step has been recorded."""
        self.told = True
        marks = self._marks
        if not marks:
            return None
        if len(marks) == 1:
            return f"step 1 wrote {marks[0][2]} rows, {size(marks[0][3])}; {size(held)} of memory are held"
        pairs = list(pairwise(marks))
        rows = round(median(later[2] - former[2] for former, later in pairs))
        written = round(median(later[3] - former[3] for former, later in pairs))
        hooks = median(later[1] - former[1] for former, later in pairs)
        period = median(later[0] - former[0] for former, later in pairs)
        self.share = hooks / max(period - hooks, 1e-9)
        return (
            f"a step costs {rows} rows, {size(written)} on disk and {100 * self.share:.2g} % more time"
            f" ({1000 * hooks:.3g} ms); {size(held)} of memory are held"
        )


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
