"""Goes through two traces stretch by stretch, in bounded memory, and gathers what differs, how far, what was first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from optrace.compare import amplified, cancelled, evidence, reductions
from optrace.compare.bodies import Kept
from optrace.compare.columns import KEYS, Floats, Ints, Numbering, Side
from optrace.compare.grid import Bools, Grid, lay_out
from optrace.compare.hyper import HyperComparison
from optrace.compare.noise import FACTOR, NoiseFloor
from optrace.compare.order import (
    PARAM_IN_RANK,
    PARAM_RANK,
    STATE_IN_RANK,
    STATE_RANK,
    Carry,
    Inputs,
    group_mask,
    rank_of,
    trace_inputs,
)
from optrace.compare.patterns import Limits
from optrace.compare.presence import Presence
from optrace.compare.report import Divergence
from optrace.compare.timeline import Timeline
from optrace.compare.whole import judge_whole

CELLS_AT_ONCE = 130_000
"""Rows laid out at once, counting empty places: about 100 MB when every one of them differs."""
_IN_SEGMENTS = 3
"""So many times as many where that spares reading a sealed segment (some 250,000 rows) twice."""
_PEEK = 4
"""Steps looked at for the quantities that there are."""

Order = tuple[float, int, int]


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
        self.drifted = False
        """Whether numbers drifted beyond the tolerance while every step stayed within it."""
        self._carry = Carry()
        self._kept = Kept()

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
        grid = lay_out(self.side_a, self.side_b, self.numbering, low, high, previous)
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
            own = _Rows(rules[where[1:]], floors, ~ignored[where[1:]] & ~found.alike)
            _Judgement(self, grid, where, found, inputs, time, pair_of, own).take()


@dataclass(frozen=True)
class _Rows:
    """What is asked of each differing row, [n]."""

    rule: Ints
    """Number of its rule, -1 without one."""
    floor: Floats
    """Error that the noise of A explains."""
    asked: Bools
    """Whether it is to be looked at."""


class _Judgement:
    """Both lanes' verdicts on the differing rows of one stretch."""

    def __init__(
        self,
        walk: Walk,
        grid: Grid,
        where: tuple[Ints, ...],
        found: evidence.Errors,
        inputs: Inputs,
        time: Floats,
        pair_of: Ints,
        rows: _Rows,
    ) -> None:
        self.walk, self.grid, self.found, self.time, self.pair_of = walk, grid, found, time, pair_of
        self.rows = rows
        self.s, self.c, self.q = where
        self.inputs = inputs.errors[where]
        ranks = np.array([rank_of(name) for name in grid.names])
        self.rank = ranks[self.q]
        before = np.isin(self.rank, (PARAM_IN_RANK, STATE_IN_RANK))
        starts = self._starts()
        self.rank = np.where(starts & (self.rank == PARAM_RANK), PARAM_IN_RANK, self.rank)
        self.rank = np.where(starts & (self.rank == STATE_RANK), STATE_IN_RANK, self.rank)
        gap = np.where(before, inputs.gap[self.s, self.c], 1)
        self.plain = walk.limits.roundings(rows.rule, grid.names, self.q)
        with np.errstate(invalid="ignore"):
            self.widened = (1 + self.inputs) * gap
            self.granted = np.where(np.isinf(self.widened), np.inf, self.plain * self.widened)
        self.net, self.raw, self.step = found.net.copy(), found.raw.copy(), found.step.copy()
        self.evidence = found.evidence.copy()

    def take(self) -> None:
        """Count, look closer where it matters, and remember what was first."""
        walk = self.walk
        fails = self._fails()
        if _has_values(walk.side_a) and _has_values(walk.side_b):
            self._look_closer(fails)
            fails = self._fails()
        if not walk.exact_decides and walk.tolerance.first is None and fails.any():
            self._grant_amplified(fails)
            fails = self._fails()
        self.follows = self.inputs > 0 if walk.exact_decides else ~fails
        order = self._orders()
        self._exact(order)
        self._tolerance(order, fails)

    def _starts(self) -> Bools:
        """Which rows are of a world before step 1, where nothing has been computed yet."""
        steps = self.grid.steps[self.s]
        offsets = np.array(self.walk.timeline.offsets, np.int64)[self.pair_of[self.c]]
        return np.asarray((steps == 0) | (steps == offsets))

    def _fails(self) -> Bools:
        return np.asarray((self.net > np.maximum(self.granted, self.rows.floor)) & self.rows.asked)

    def _look_closer(self, fails: Bools) -> None:
        """Compare whole values where they are stored: of unproven rows, as long as nothing has failed before them."""
        walk, grid = self.walk, self.grid
        last = self.s[fails].min() if fails.any() else len(grid.steps)
        if walk.tolerance.first is not None:
            return
        doubtful = np.flatnonzero(self.rows.asked & (self.evidence > evidence.VALUES) & ~fails & (self.s <= last))
        least = cancelled.least_rms(grid, (self.s, self.c, self.q), self.found, self.pair_of)
        for row in doubtful:
            number = self.rows.rule[row : row + 1]
            allowed = walk.limits.tolerance(number)
            whole = judge_whole(
                walk.side_a,
                walk.side_b,
                walk.numbering,
                grid,
                self.s[row],
                self.c[row],
                self.q[row],
                allowed,
                float(least[row]),
            )
            if whole is not None:
                self.raw[row], self.net[row], self.step[row] = whole.raw, whole.net, whole.step
                self.evidence[row] = evidence.VALUES

    def _grant_amplified(self, fails: Bools) -> None:
        """Grant updates and state from unequal inputs what these explain, step by step until one is unexplained."""
        walk, grid = self.walk, self.grid
        computed = np.array([name == "update" or name.startswith("state.") for name in grid.names], bool)
        for s in np.unique(self.s[fails]):
            rows = np.flatnonzero(fails & (self.s == s))
            doubtful = rows[computed[self.q[rows]] & (self.inputs[rows] > 0) & np.isfinite(self.inputs[rows])]
            if len(doubtful) < len(rows):
                return
            places = [(int(self.c[row]), grid.names[int(self.q[row])]) for row in doubtful]
            sides = walk.side_a, walk.side_b
            parts = amplified.explained(sides, walk.numbering, int(grid.steps[s]), places)
            for row, (allowed, size) in zip(doubtful, parts, strict=True):
                with np.errstate(invalid="ignore", divide="ignore"):
                    errors = allowed / (self.found.eps[row] * (size + self.found.rms[row]))
                extra = float(errors[np.isfinite(errors)].max(initial=0.0))
                if self.net[row] <= self.granted[row] + extra:
                    walk.n_amplified += 1
                    self.granted[row] += extra
                    self.widened[row] = self.granted[row] / self.plain[row] if self.plain[row] else np.inf
            if (self._fails() & (self.s == s)).any():
                return

    def _orders(self) -> tuple[Floats, Ints, Ints]:
        return self.time[self.s, self.pair_of[self.c]], self.rank, self.c

    def _exact(self, order: tuple[Floats, Ints, Ints]) -> None:
        tally, asked = self.walk.exact, self.rows.asked
        tally.n_different += int(asked.sum())
        tally.max_eps = max(tally.max_eps, float(self.raw[asked].max(initial=0.0)))
        tally.would_pass = max(tally.would_pass, float(self.net[asked].max(initial=0.0)))
        self._first(tally, asked, order)
        if self.walk.exact_decides:
            self._keep(tally, asked, order)

    def _tolerance(self, order: tuple[Floats, Ints, Ints], fails: Bools) -> None:
        walk, tally = self.walk, self.walk.tolerance
        noise = ~fails & self.rows.asked & (self.net > self.granted)
        walk.n_noise += int(noise.sum())
        judged = np.isfinite(self.inputs) & self.rows.asked
        with np.errstate(invalid="ignore", divide="ignore"):
            single = np.where(judged, self.step / self.widened, 0.0)
            single_net = np.where(judged & ~noise, self.net / self.widened, 0.0)
        ruled = walk.limits.with_eps(self.rows.rule)  # those rows do not ask for --eps
        single_net = np.where(ruled, np.where(fails, np.inf, 0.0), single_net)
        tally.max_eps = max(tally.max_eps, float(single.max(initial=0.0)))
        tally.would_pass = max(tally.would_pass, float(single_net.max(initial=0.0)))
        tally.n_different += int(fails.sum())
        unproven = ~fails & self.rows.asked & (self.evidence > evidence.VALUES) & (self.net <= self.plain)
        walk.n_unproven += int(unproven.sum())
        tally.weakest = max(tally.weakest, int(self.evidence.max(initial=0)))
        self._first(tally, fails, order)
        self._sees()
        beyond = self.rows.asked & (self.net > np.maximum(self.plain, self.rows.floor))
        walk.drifted |= bool((beyond & ~fails & judged).any())
        if tally.first is not None and not walk.exact_decides:
            start = tally.first[0][:2]
            times, ranks, _ = order
            after = (times > start[0]) | ((times == start[0]) & (ranks >= start[1]))
            self._keep(tally, beyond & after, order)

    def _sees(self) -> None:
        """What an error of an update would have to be, to be found."""
        with np.errstate(invalid="ignore"):
            least = np.maximum(self.granted, self.rows.floor) * self.found.unit
        rows = np.flatnonzero(self.found.is_update & self.rows.asked & np.isfinite(least))
        if len(rows):
            worst = int(rows[np.argmax(least[rows])])
            best, known = float(least[rows].min()), self.walk.sees
            new = (
                float(least[worst]),
                self.walk.numbering.cells[int(self.c[worst])].param_a,
                int(self.grid.steps[self.s[worst]]),
            )
            if known is not None:
                best, new = min(best, known[0]), max(new, known[1:])
            self.walk.sees = (best, *new)

    def _first(self, tally: Tally, which: Bools, order: tuple[Floats, Ints, Ints]) -> None:
        if not which.any():
            return
        rows = np.flatnonzero(which)
        times, ranks, cells = (part[rows] for part in order)
        row = int(rows[np.lexsort((self.q[rows], cells, ranks, times))[0]])
        alike = int((which & (self.s == self.s[row]) & (self.q == self.q[row])).sum())
        key = (float(order[0][row]), int(order[1][row]), int(order[2][row]))
        tally.offer(key, lambda: replace(self.divergence(row), count=alike))
        for number, name in enumerate(self.grid.names):
            own = which & (self.q == number)
            if own.any() and name not in tally.first_steps:
                tally.first_steps[name] = int(self.grid.steps[self.s[own].min()])

    def _keep(self, tally: Tally, which: Bools, order: tuple[Floats, Ints, Ints]) -> None:
        rows = np.flatnonzero(which)
        tally.n_rows += len(rows)
        room = self.walk.limit - len(tally.rows)
        if room > 0 and len(rows):
            times, ranks, cells = (part[rows] for part in order)
            for row in rows[np.lexsort((cells, ranks, times))[:room]]:
                key = (float(order[0][row]), int(order[1][row]), int(order[2][row]))
                tally.rows.append((key, self.divergence(int(row))))

    def divergence(self, row: int) -> Divergence:
        """One differing row as a report has it."""
        walk, found = self.walk, self.found
        numbering = walk.numbering
        cell = numbering.cells[int(self.c[row])]
        pair = numbering.matching.pairs[cell.pair]
        step = int(self.grid.steps[self.s[row]])
        name = self.grid.names[int(self.q[row])]
        kind = evidence.KIND_WORDS[found.kind[row]]
        a: Any = None
        b: Any = None
        index = None
        if kind == "none":
            a, b = (
                bool(rows.columns["present"][at[self.s[row], self.c[row], self.q[row]]])
                for rows, at in ((self.grid.rows_a, self.grid.at_a), (self.grid.rows_b, self.grid.at_b))
            )
            a, b = ("a tensor" if a else None), ("a tensor" if b else None)
        elif kind == "shape":
            a, b = list(cell.shape_a or ()), list(cell.shape_b or ())
        elif found.slot[row] >= 0:
            a, b = float(found.a[row]), float(found.b[row])
            index = _index(int(found.slot[row]), int(found.numel[row]), cell.shape_a)
        granted = float(self.plain[row])
        return Divergence(
            step=step,
            step_b=step - self.timeline_offset(cell.pair),
            optimizer=pair.a,
            group=cell.group_a,
            param=cell.param_a,
            quantity=name,
            kind=kind,
            evidence=evidence.WORDS[self.evidence[row]],
            a=a,
            b=b,
            index=index,
            eps=float(self.raw[row]),
            granted=granted,
            follows=bool(self.follows[row]),
            dtype=found.dtype_of(row, cell),
        )

    def timeline_offset(self, pair: int) -> int:
        """What is added to B's step numbers of a pair."""
        return self.walk.timeline.offsets[pair]


def _index(slot: int, numel: int, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """Where in a tensor a slot of its sample lies."""
    from optrace.trace.fingerprint import sample_indices

    flat = int(sample_indices(numel)[slot])
    if shape is not None and int(np.prod(shape, dtype=np.int64)) == numel:
        return tuple(int(i) for i in np.unravel_index(flat, shape)) if shape else ()
    return (flat,)


def _has_values(side: Side) -> bool:
    settings = side.source.trace.info.get("settings") or {}
    return settings.get("values") in ("full", "grad")


def rows_in_order(rows: Sequence[tuple[Order, Divergence]]) -> list[Divergence]:
    """Divergences by their order."""
    return [divergence for _, divergence in sorted(rows, key=lambda pair: pair[0])]
