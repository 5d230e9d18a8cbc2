"""Both lanes' verdicts on the differing rows of one stretch of steps: how far, granted what, which was first."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from optrace.compare import amplified, cancelled, evidence, jumps
from optrace.compare.columns import Floats, Ints, Side
from optrace.compare.grid import Bools, Grid
from optrace.compare.order import PARAM_IN_RANK, PARAM_RANK, STATE_IN_RANK, STATE_RANK, Inputs, rank_of
from optrace.compare.report import Divergence
from optrace.compare.tally import Tally
from optrace.compare.tolerance import Tolerance
from optrace.compare.whole import Scale, WholeErrors, judge_whole

if TYPE_CHECKING:
    from optrace.compare.walk import Walk


@dataclass(frozen=True)
class Asked:
    """What is asked of each differing row, [n]."""

    rule: Ints
    """Number of its rule, -1 without one."""
    floor: Floats
    """Error that the noise of A explains."""
    asked: Bools
    """Whether it is to be looked at."""


class Judgement:
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
        rows: Asked,
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
        self.whole: dict[int, WholeErrors] = {}
        """Rows of which whole tensors were compared."""

    def take(self) -> None:
        """Count, look closer where it matters, and remember what was first."""
        walk = self.walk
        fails = self._fails()
        if _has_values(walk.side_a) and _has_values(walk.side_b):
            self._look_closer(fails)
            fails = self._fails()
        if walk.tolerance.first is None and fails.any():
            self._grant_explained(fails)
            fails = self._fails()
        if walk.orthogonal.matters and walk.tolerance.first is None:
            self._doubt_orthogonal(fails)
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
        known = np.where(self.found.rms_told, self.found.rms, np.nan)
        allowed = walk.limits.tolerance(self.rows.rule)
        rtol, atol = np.asarray(allowed.rtol), np.asarray(allowed.atol)
        for row in doubtful:
            whole = judge_whole(
                walk.side_a,
                walk.side_b,
                walk.numbering,
                grid,
                (self.s[row], self.c[row], self.q[row]),
                Scale(
                    eps=float(self.found.eps[row]),
                    tiny=float(self.found.tiny[row]),
                    rms=float(known[row]),
                    least_rms=float(least[row]),
                ),
                Tolerance(float(rtol[row]), float(atol[row])),
            )
            if whole is not None:
                self.raw[row], self.net[row], self.step[row] = whole.found.raw, whole.found.net, whole.found.step
                self.evidence[row] = evidence.VALUES
                self.whole[int(row)] = whole

    def _grant_explained(self, fails: Bools) -> None:
        """Grant updates and state what their inputs explain, or a jump, step by step until one is unexplained."""
        grid = self.grid
        computed = np.array([name == "update" or name.startswith("state.") for name in grid.names], bool)
        for s in np.unique(self.s[fails]):
            rows = np.flatnonzero(fails & (self.s == s))
            self._grant_counted(int(s), rows)
            rows = rows[self._fails()[rows]]
            amplified_ones = computed[self.q[rows]] & (self.inputs[rows] > 0)
            jumping = self.found.is_update[rows] & (self.evidence[rows] != evidence.STATISTICS)
            if not (np.isfinite(self.inputs[rows]) & (amplified_ones | jumping)).all():
                return
            self._grant_amplified(int(s), rows[amplified_ones])
            self._grant_jumps(int(s), rows[jumping & self._fails()[rows]])
            self._grant_orthogonal(int(s), rows[jumping & self._fails()[rows]])
            if (self._fails() & (self.s == s)).any():
                return

    def _grant_counted(self, s: int, rows: Ints) -> None:
        """Grant updates and averages what counting in float32 explains."""
        counts, names = self.walk.counts, self.grid.names
        own = [row for row in rows.tolist() if counts.concerns(int(self.c[row]), names[int(self.q[row])])]
        own = [row for row in own if np.isfinite(self.inputs[row])]
        if not own:
            return
        places = [(int(self.c[row]), names[int(self.q[row])]) for row in own]
        extras = counts.explained(
            int(self.grid.steps[s]), places, self.found.rms[own], [row in self.whole for row in own]
        )
        for row, extra in zip(own, extras.tolist(), strict=True):
            if self.net[row] <= self.granted[row] + extra * self.widened[row]:
                counts.n_granted += 1
                self._grant(row, self.granted[row] + extra * self.widened[row])

    def _grant_amplified(self, s: int, rows: Ints) -> None:
        """Grant updates and state from unequal inputs what these explain."""
        walk, grid = self.walk, self.grid
        places = [(int(self.c[row]), grid.names[int(self.q[row])]) for row in rows]
        sides = walk.side_a, walk.side_b
        parts = amplified.explained(sides, walk.numbering, int(grid.steps[s]), places) if places else []
        for row, (allowed, size) in zip(rows, parts, strict=True):
            with np.errstate(invalid="ignore", divide="ignore"):
                errors = allowed / (self.found.eps[row] * (size + self.found.rms[row]))
            extra = float(errors[np.isfinite(errors)].max(initial=0.0))
            if self.net[row] <= self.granted[row] + extra:
                walk.n_amplified += 1
                self._grant(row, self.granted[row] + extra)

    def _grant_jumps(self, s: int, rows: Ints) -> None:
        """Grant updates that go the other way where rounding decides which way a rule goes."""
        if not len(rows):
            return
        walk, step = self.walk, int(self.grid.steps[s])
        past = walk.timeline.steps[walk.timeline.steps < step]
        before = int(past[-1]) if len(past) else None
        cells = [int(cell) for cell in self.c[rows]]
        found = jumps.either_way((walk.side_a, walk.side_b), walk.numbering, step, before, cells)
        for row in rows[np.array(found, bool)]:
            walk.n_jumps += 1
            self._grant(row, float(self.net[row]))

    def _grant_orthogonal(self, s: int, rows: Ints) -> None:
        """Grant updates of Muon that are one in the singular directions that rounding hardly moves."""
        walk = self.walk
        if not walk.orthogonal.matters:
            return
        for row in rows.tolist():
            if walk.orthogonal.fits(int(self.grid.steps[s]), int(self.c[row])):
                walk.n_orthogonal += 1
                self._grant(row, float(self.net[row]))

    def _doubt_orthogonal(self, fails: Bools) -> None:
        """Take from updates of Muon what unequal inputs grant them, where their singular directions show a mistake."""
        walk = self.walk
        rows = np.flatnonzero(self.found.is_update & self.rows.asked & ~fails & (self.net > self.plain))
        for row in rows.tolist():
            if walk.orthogonal.misses(int(self.grid.steps[self.s[row]]), int(self.c[row])):
                self._grant(row, float(self.plain[row]))

    def _grant(self, row: int, granted: float) -> None:
        self.granted[row] = granted
        self.widened[row] = granted / self.plain[row] if self.plain[row] else np.inf

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
        for part in (*order, self.q):  # time, rank, cell, quantity
            rows = rows[part[rows] == part[rows].min()]
        row = int(rows[0])
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
        elif row in self.whole:
            a, b = self.whole[row].a, self.whole[row].b
            index = _unravelled(self.whole[row].found.worst, int(found.numel[row]), cell.shape_a)
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

    return _unravelled(int(sample_indices(numel)[slot]), numel, shape)


def _unravelled(flat: int, numel: int, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """A row-major index as an index into the shape, where that has so many elements."""
    if shape is not None and int(np.prod(shape, dtype=np.int64)) == numel:
        return tuple(int(i) for i in np.unravel_index(flat, shape)) if shape else ()
    return (flat,)


def _has_values(side: Side) -> bool:
    settings = side.source.trace.info.get("settings") or {}
    return settings.get("values") in ("full", "grad")
