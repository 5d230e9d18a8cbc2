"""Goes through two traces stretch by stretch, in bounded memory, and gathers what differs, how far, what was first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from optrace.compare import cancelled, evidence, reductions
from optrace.compare.bodies import Kept
from optrace.compare.columns import KEYS, Ints, Numbering, Side
from optrace.compare.counts import Counts
from optrace.compare.grid import LastRows, lay_out
from optrace.compare.hyper import HyperComparison
from optrace.compare.judgement import Asked, Judgement
from optrace.compare.noise import FACTOR, NoiseFloor
from optrace.compare.order import Carry, group_mask, trace_inputs
from optrace.compare.orthogonal import Orthogonal
from optrace.compare.patterns import Limits
from optrace.compare.presence import Presence
from optrace.compare.tally import Tally
from optrace.compare.timeline import Timeline

CELLS_AT_ONCE = 130_000
"""Rows laid out at once, counting empty places: about 100 MB when every one of them differs."""
_IN_SEGMENTS = 3
"""So many times as many where that spares reading a sealed segment (some 250,000 rows) twice."""
_PEEK = 4
"""Steps looked at for the quantities that there are."""


class Walk:
    """Compares all stretches; afterwards `exact`, `tolerance` and `presence` hold what was found."""

    def __init__(
        self,
        sides: tuple[Side, Side],
        numbering: Numbering,
        timeline: Timeline,
        hyper: HyperComparison,
        presence: Presence,
        limits: Limits,
        noise: NoiseFloor | None,
        *,
        exact_decides: bool,
        limit: int,
    ) -> None:
        self.side_a, self.side_b = sides
        self.numbering = numbering
        self.timeline = timeline
        self.hyper = hyper
        self.presence = presence
        self.limits = limits
        self.noise = noise
        self.exact_decides = exact_decides
        self.limit = limit
        self.exact, self.tolerance = Tally(), Tally()
        self.n_rows = 0
        self.n_unproven = 0
        self.n_noise = 0
        """Rows beyond the rounding of their inputs and within the noise of A."""
        self.sees: tuple[float, float, str, int] | None = None
        """Of the updates that differ in bits the least error, as a share of the update, that would have been found: at
        the best and at the worst of them, and which that is (parameter, step)."""
        self.n_amplified = 0
        """Rows that the rule made of inputs which differ by much of their own size."""
        self.counts = Counts(sides, numbering)
        """Updates of optimizers of which one counts in float32."""
        self.orthogonal = Orthogonal(sides, numbering, timeline.steps.tolist())
        """What both sides of a Muon do, as far as whole tensors tell it."""
        self.n_orthogonal = 0
        """Updates of Muon that differ by what its iteration makes of rounding."""
        self.n_jumps = 0
        """Updates that go another way because the argument of a sign is zero but for rounding."""
        self.drifted = False
        """Whether numbers drifted beyond the tolerance while every step stayed within it."""
        self._carry = Carry()
        self._kept = Kept()
        self._last = LastRows()

    def run(self, progress: Callable[[int, int], Any] | None = None) -> None:
        """Compare everything; `progress` is told steps done and all after each stretch."""
        steps = self.timeline.steps
        for side in (self.side_a, self.side_b):
            side.load(int(steps[0]), int(steps[:_PEEK][-1]), KEYS)  # tells which quantities there are
        ends = self._segment_ends()
        room = CELLS_AT_ONCE * (_IN_SEGMENTS if len(ends) > 1 else 1)
        done, previous = 0, None
        while done < len(steps):
            size = max(len(self.numbering.cells), 1) * max(len(self.numbering.quantities), 1)
            count = self.timeline.within(done, max(room // size, 1))
            part = steps[done : done + count]
            fitting = ends[(ends >= part[0]) & (ends < part[-1])]
            if len(fitting):
                part = part[part <= fitting[-1]]
            self._stretch(int(part[0]), int(part[-1]), previous)
            previous = int(part[-1])
            done += len(part)
            if progress is not None:
                progress(done, len(steps))

    def _segment_ends(self) -> Ints:
        """Steps of A at which a sealed segment of its tensors ends: stretches that end there read no segment twice."""
        find = getattr(self.side_a.source.trace, "segment_ends", None)
        return np.array(find("tensors") if find is not None else [], np.int64)

    def _stretch(self, low: int, high: int, previous: int | None) -> None:
        unequal = self.hyper.stretch(low, high)
        grid = lay_out(self.side_a, self.side_b, self.numbering, low, high, previous, self._last)
        if not len(grid.steps):
            return
        cells = self.numbering.cells
        pair_of = np.array([cell.pair for cell in cells], np.int64)
        groups = np.array([(cell.pair, cell.group_a, cell.group_b) for cell in cells], np.int64).reshape(-1, 3)
        first_new = grid.overlap
        common = self.timeline.common(grid.steps)
        self.presence.add(grid, common, pair_of)
        differs = grid.differs.copy()
        differs &= common[:, pair_of][:, :, None]
        differs[:first_new] = False
        rules = self.limits.numbers(cells, grid.names)
        ignored = self.limits.ignored(cells, grid.names)
        compared = grid.both[first_new:] & common[first_new:, pair_of][:, :, None] & ~ignored
        self.n_rows += int(compared.sum())
        where = np.nonzero(differs)
        time = self.timeline.times(grid.steps)
        hyper = group_mask(unequal, grid.steps, groups)
        n_params = len(self.numbering.matching.cells)
        found = None
        errors = np.zeros(differs.shape)
        floor = self.noise.floors(grid, cells, self.numbering.matching) if self.noise is not None else None
        if len(where[0]):
            allowed = self.limits.tolerance(rules[where[1:]])
            found = evidence.judge(grid, self.side_a, self.side_b, self.numbering, where, allowed, self._kept)
            found = reductions.with_params_dtype(grid, where, found, self.numbering)
            errors[where] = np.where(found.alike, 0.0, np.maximum(found.raw, 1.0))
        elif not self._carry.errors and not self._carry.noise:
            return
        felt = None
        if found is not None:
            felt = cancelled.felt(grid, where, found, pair_of)
            found = cancelled.with_large_terms(grid, where, found, pair_of)
        inputs = trace_inputs(grid, errors, pair_of, n_params, hyper, time, self._carry, felt)
        if found is not None:
            counts = np.bincount(rules[where[1:]] + 1, minlength=1)
            self.limits.rules.applied.update({n: int(count) for n, count in enumerate(counts[1:])})
            floors = np.zeros(len(where[0])) if floor is None else FACTOR * floor[where]
            own = Asked(rules[where[1:]], floors, ~ignored[where[1:]] & ~found.alike)
            Judgement(self, grid, where, found, inputs, time, pair_of, own).take()
