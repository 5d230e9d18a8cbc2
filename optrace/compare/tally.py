"""What is counted and kept of the rows that differ: one account for each of the two lanes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from optrace.compare import evidence
from optrace.compare.report import Divergence

Order = tuple[float, int, int]
"""Where a divergence stands: time, rank of its quantity in the causal order, cell."""


@dataclass
class Tally:
    """One lane's account."""

    n_different: int = 0
    max_eps: float = 0.0
    would_pass: float = 0.0
    first: tuple[Order, Divergence] | None = None
    first_steps: dict[str, int] = field(default_factory=dict)
    """First step (A's number) at which each quantity was different."""
    rows: list[tuple[Order, Divergence]] = field(default_factory=list)
    n_rows: int = 0
    weakest: int = evidence.BITWISE

    def offer(self, order: Order, make: Callable[[], Divergence]) -> None:
        """Take a candidate for the first divergence."""
        if self.first is None or order < self.first[0]:
            self.first = (order, make())
