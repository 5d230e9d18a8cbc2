"""Comparing two runs: the public `optrace.diff`, which puts the parts of this room together."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optrace.compare import evidence
from optrace.compare.align import Alignment, align_steps
from optrace.compare.causes.case import Case
from optrace.compare.causes.cause import Cause
from optrace.compare.causes.explain import explain
from optrace.compare.columns import Numbering, Side
from optrace.compare.engine import on_engine
from optrace.compare.facts import Facts
from optrace.compare.hyper import HyperComparison
from optrace.compare.match import Matching, match_sources
from optrace.compare.names import Renaming
from optrace.compare.noise import FACTOR, NoiseFloor
from optrace.compare.origin import compare_origins
from optrace.compare.patterns import Limits, PatternRule, PatternRules
from optrace.compare.presence import Absence, Presence
from optrace.compare.report import DiffReport, Divergence, Extent, Lane
from optrace.compare.resume import resume_table, resume_words
from optrace.compare.sameness import what_is_same
from optrace.compare.source import Source, TraceLike, distinct_names, open_source
from optrace.compare.state_names import match_state
from optrace.compare.step_notes import note_steps
from optrace.compare.successors import successors
from optrace.compare.tally import Order, Tally
from optrace.compare.timeline import Timeline
from optrace.compare.tolerance import Tolerance
from optrace.compare.walk import CELLS_AT_ONCE, Walk
from optrace.compare.words import count_words, value_words
from optrace.errors import CompareError
from optrace.trace.logical import LogicalTrace


def diff(
    a: str | Path | TraceLike,
    b: str | Path | TraceLike = "latest",
    *,
    align: str | tuple[int, int] | None = None,
    map: Sequence[str] = (),
    state: Sequence[str] = (),
    rtol: float = 0.0,
    atol: float = 0.0,
    eps: float | None = None,
    exact: bool = False,
    noise: str | Path | TraceLike | None = None,
    rules: Sequence[Mapping[str, Any] | PatternRule] | PatternRules = (),
    limit: int = 100,
    engine: str | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> DiffReport:
    """Compare two traces: where do they part, since when, in what.

    Args:
        a: the reference: a run folder, `RUN@1`, `RUN@SGD` (an optimizer), `RUN@rank=3`, `RUN@500:600` (steps),
            `golden:NAME`, a file in golden format, or an open Trace.
        b: the candidate, likewise.
        align: `I:J`: step I of A is step J of B. Default: equal numbers, or where a resumed run picked up.
        map: `OLD=NEW` rules; OLD is a regular expression on A's names of parameters, quantities and hyper-parameters.
        state: `OLD=NEW` rules; A's state OLD is B's NEW.
        rtol: relative tolerance beside the eps of the dtype.
        atol: absolute tolerance.
        eps: roundings granted to one step, in eps of the coarser dtype; default 4, and 64 for gradients that come from
            other kernels.
        exact: judge by bits, whatever the runs were made with.
        noise: a second recording of A, in the forms that A may have. Where the two are not equal to the bit, rounding
            is forgiven whatever the runs were made with, and a row of B differs when it is further from A than the
            rounding of its inputs allows and 3 times further than A's second recording (`optrace.compare.noise`).
        rules: tolerances for some rows, each like `{"param": "*.bias", "quantity": "grad", "rtol": 1e-3}`: globs on A's
            names; then rtol, atol or eps, or `"ignore": True`. The first that fits a row counts. (The command reads
            them from the nearest pyproject.toml: `optrace.compare.patterns.nearest_rules`.)
        limit: divergences kept one by one; all are counted.
        engine: `dask` reads the ranks' tensors on a Dask cluster (`optrace.compare.engine`); None: here.
        progress: told (steps done, steps in all) after each stretch.

    Returns:
        DiffReport: `.same`, `.first`, `.causes`, `.divergences`, `str(report)`.

    Raises:
        TraceError: a side is missing or unreadable.
        CompareError: the two have no parameter or no step in common, or an argument is malformed.
    """
    for name, number in (("rtol", rtol), ("atol", atol), ("eps", eps), ("limit", limit)):
        if number is not None and not number >= 0:
            raise CompareError(f"{name} is {number}; it is a number from 0")
    if exact and noise is not None:
        raise CompareError("exact judges by bits and noise forgives some; ask for one of the two")
    patterns = rules if isinstance(rules, PatternRules) else PatternRules.parse(rules)
    source_a, source_b = open_source(a), open_source(b)
    if engine is not None:
        source_a, source_b = on_engine(source_a, engine), on_engine(source_b, engine)
    renaming = Renaming.parse(tuple(map), tuple(state))
    matching = match_sources(source_a, source_b, renaming)
    alignment = align_steps(source_a, source_b, matching, align)
    floor = None if noise is None else NoiseFloor(source_a, open_source(noise))
    asked = Tolerance(rtol, atol, eps)
    comparison = _Comparison(source_a, source_b, matching, alignment, renaming, asked, patterns, floor)
    return comparison.report(exact, limit, progress)


class _Comparison:
    """One comparison from matching to report."""

    def __init__(
        self,
        a: Source,
        b: Source,
        matching: Matching,
        alignment: Alignment,
        renaming: Renaming,
        tolerance: Tolerance,
        rules: PatternRules,
        noise: NoiseFloor | None,
    ) -> None:
        self.a, self.b = a, b
        self.rules, self.noise = rules, noise
        self.names = distinct_names(a, b)
        self.matching, self.alignment, self.renaming, self.tolerance = matching, alignment, renaming, tolerance
        self.numbering = Numbering(matching, renaming)
        self.timeline = Timeline(a, b, matching, alignment.offsets)
        self.side_a = Side(a, self.numbering, [0] * len(matching.pairs), is_a=True)
        self.side_b = Side(b, self.numbering, alignment.offsets, is_a=False)
        self.hyper = HyperComparison(a, b, matching, alignment.offsets, renaming, self._ignores_hyper)
        self.presence = Presence(self.side_a, self.side_b, self.numbering, alignment.offsets)
        self.origin = compare_origins(a, b, matching)

    def report(self, exact: bool, limit: int, progress: Callable[[int, int], Any] | None) -> DiffReport:
        """Compare and write up."""
        noisy = self.noise is not None and self.noise.any(CELLS_AT_ONCE)
        decides = exact or (self.origin.equal and not noisy)
        limits = Limits(self.tolerance, self.rules, upstream_differs=not self.origin.equal)
        state_notes = match_state(self.side_a, self.side_b, self.numbering, [int(s) for s in self.timeline.steps[:8]])
        walk = Walk(
            (self.side_a, self.side_b),
            self.numbering,
            self.timeline,
            self.hyper,
            self.presence,
            limits,
            self.noise if noisy else None,
            exact_decides=decides,
            limit=limit,
        )
        walk.run(progress)
        self._refuse_unused_rules()
        presence = self.presence.judge()
        missing = tuple(absence for absence in presence.missing if not self._ignores_absence(absence))
        facts = Facts(self.matching, self.numbering, self.timeline)
        certain = [
            *facts.of_hyper(self.hyper),
            *facts.of_missing(missing, successors((self.a, self.b), self.matching)),
            *facts.of_replicas(self.a, self.b),
            *facts.of_dtypes(self.a, self.b, self.side_a, self.side_b),
        ]
        certain = [fact for fact in certain if fact[1].kind == "hyper" or not self._ignored(fact[1])]
        deciding = walk.exact if decides else walk.tolerance
        lanes = _lane(walk.exact, certain), _lane(walk.tolerance, certain)
        verdict = "same" if lanes[0 if decides else 1].same else "differ"
        candidates = certain + ([_telling(deciding, walk.tolerance)] if deciding.first else [])
        first = min(candidates, key=lambda item: item[0])[1] if candidates else None
        rows = sorted(certain + deciding.rows, key=lambda item: (item[1].kind != "missing", item[0]))
        notes = [
            *self.matching.notes,
            *state_notes.notes,
            *presence.notes,
            *self.timeline.notes,
            *facts.rank_notes(self.a, self.b),
            *self.hyper.notes(),
            *note_steps(self.a, self.b, self.matching, self.alignment.offsets, first),
            *_other_hyper(certain, first),
            *_lane_notes(walk, lanes, decides),
            *_noise_notes(walk, self.noise, noisy),
            *self.rules.notes(),
            *self._origin_notes(noisy),
        ]
        return DiffReport(
            a=self.names[0],
            b=self.names[1],
            verdict=verdict,
            lane="exact" if decides else "tolerance",
            exact=lanes[0],
            tolerance=lanes[1],
            evidence=_evidence(walk, decides, first),
            first=first,
            causes=self._causes(walk, deciding, certain, first, decides, verdict),
            rows=tuple(divergence for _, divergence in rows[:limit]),
            n_divergences=len(certain) + deciding.n_rows,
            n_unproven=walk.n_unproven,
            only_in_a=(*self.matching.only_in_a, *facts.words(missing, only_in_a=True)),
            only_in_b=(*self.matching.only_in_b, *facts.words(missing, only_in_a=False)),
            provenance=self.origin.differences,
            notes=tuple(dict.fromkeys(self._named(note) for note in notes)),
            matched=tuple(what_is_same(first, deciding, self.hyper, self.timeline, self.presence.on_both)),
            alignment=self._named(self.alignment.note) if self.alignment.note else None,
            next=self._next(first),
            extent=Extent(
                steps=self.timeline.n_steps,
                params=len(self.matching.cells),
                rows=walk.n_rows,
                hyper=self.hyper.compared,
                optimizers=tuple((pair.a, pair.class_a) for pair in self.matching.pairs),
            ),
            resume=tuple(self._named(line) for line in self._resume(verdict == "same")),
        )

    def _causes(
        self,
        walk: Walk,
        deciding: Tally,
        certain: Sequence[tuple[Order, Divergence]],
        first: Divergence | None,
        decides: bool,
        verdict: str,
    ) -> tuple[Cause, ...]:
        """Why the two differ, as far as the record tells."""
        same = verdict == "same"
        case = Case(
            sources=(self.a, self.b),
            sides=(self.side_a, self.side_b),
            names=self.names,
            matching=self.matching,
            numbering=self.numbering,
            timeline=self.timeline,
            hyper=self.hyper,
            first=first,
            first_steps=(walk.exact if same else deciding).first_steps,
            certain=[divergence for _, divergence in sorted(certain, key=lambda item: item[0])],
            exact_decides=decides,
            within_tolerance=walk.tolerance.first is None,
            orthogonal=walk.orthogonal,
        )
        return explain(case, same=same)

    def _resume(self, same: bool) -> list[str]:
        """What B took over where it continues A; where the runs are the `same`, what differs in it is rounding."""
        if not (self.a.recorded and self.b.recorded):
            return []
        return resume_words(resume_table(self.a, self.b, self.matching, tuple(self.alignment.offsets)), same)

    def _ignores_hyper(self, key: str) -> bool:
        return bool(self.rules.rules) and self.rules.ignores(None, f"hyper.{key}")

    def _ignores_absence(self, absence: Absence) -> bool:
        return self.rules.ignores(self.numbering.cells[absence.cell].param_a, absence.quantity)

    def _ignored(self, divergence: Divergence) -> bool:
        return bool(divergence.param) and self.rules.ignores(divergence.param, divergence.quantity)

    def _origin_notes(self, noisy: bool) -> list[str]:
        """How the lane was chosen; with a noise floor it is that which chose."""
        notes = list(self.origin.notes)
        if noisy and self.origin.equal and notes:
            notes[0] = "judged within tolerance: {A} does not repeat itself to the bit"
        return notes

    def _refuse_unused_rules(self) -> None:
        names_a = {cell.param_a for cell in self.matching.cells} | self.hyper.names_a | self.numbering.names_a
        names_b = {cell.param_b for cell in self.matching.cells} | self.hyper.names_b
        self.renaming.refuse_unused(names_a, names_b)

    def _named(self, note: str) -> str:
        return note.replace("{A}", self.names[0]).replace("{B}", self.names[1])

    def _next(self, first: Divergence | None) -> str:
        """The command that shows the first divergence in B, or in A where B has nothing there."""
        if first is None:
            return ""
        if first.kind == "replica":
            return self._next_of_ranks(self.b if first.a == "agree" else self.a, first)
        here = self.a if first.kind == "missing" and first.b is None else self.b
        step = first.step if here is self.a else first.step_b
        words = ["optrace", "show", here.spec]
        if first.kind == "hyper":
            words += ["groups", "--step", str(step)]
        elif first.param is None:
            words += ["steps"]
        else:
            cells = self.matching.cells
            name = first.param
            if here is self.b:
                name = next((cell.param_b for cell in cells if cell.param_a == first.param), first.param)
            words += ["tensors", "--step", str(step), "--param", name]
        return " ".join(shlex.quote(word) for word in words)

    def _next_of_ranks(self, here: Source, first: Divergence) -> str:
        """The command that compares a rank that differs with one that does not."""
        step = first.step if here is self.a else first.step_b
        assert isinstance(here.trace, LogicalTrace)
        found = (*here.trace.drifts, *here.trace.unlike)
        drift = next(d for d in found if (d.step, d.params[0]) == (step, first.param))
        base = f"{here.spec}@rank="
        ranks = f"{base}{(drift.others or drift.ranks)[0]}", f"{base}{drift.ranks[-1 if not drift.others else 0]}"
        return " ".join(shlex.quote(word) for word in ("optrace", "diff", *ranks))


def _lane(tally: Tally, certain: Sequence[tuple[Order, Divergence]]) -> Lane:
    candidates = [*certain, *([tally.first] if tally.first else [])]
    first = min(candidates, key=lambda item: item[0])[1].place if candidates else None
    passes = None if certain or not np.isfinite(tally.would_pass) else _rounded_up(tally.would_pass)
    return Lane(not candidates, first, tally.n_different + len(certain), tally.max_eps, passes)


def _telling(deciding: Tally, tolerance: Tally) -> tuple[Order, Divergence]:
    """The first divergence; of several at its step one that is beyond tolerance, before one of a few bits."""
    assert deciding.first is not None
    if tolerance.first is not None and tolerance.first[0][0] <= deciding.first[0][0]:
        return tolerance.first
    return deciding.first


def _rounded_up(number: float) -> float:
    """The number with three digits, rounded up, so that it still passes as a tolerance."""
    if number <= 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(number)) - 2)
    return float(f"{math.ceil(number / unit * (1 - 1e-12)) * unit:.3g}") if unit else number


def _evidence(walk: Walk, decides: bool, first: Divergence | None) -> str:
    if first is not None:
        return "bitwise" if decides and first.kind == "value" else first.evidence
    return "bitwise" if decides or not walk.exact.n_different else evidence.WORDS[walk.tolerance.weakest]


def _other_hyper(certain: Sequence[tuple[Order, Divergence]], first: Divergence | None) -> list[str]:
    """Notes on the hyper-parameters that differ beside the first."""
    others = [row for _, row in certain if row.kind == "hyper" and row is not first]
    notes = [
        f"{row.quantity.partition('.')[2]} of group {row.group} is {value_words(row.a)} in {{A}}, {value_words(row.b)}"
        f" in {{B}} since step {row.step}"
        for row in others[:4]
    ]
    return [*notes, f"{len(others) - 4} more hyper-parameters differ"] if len(others) > 4 else notes


def _noise_notes(walk: Walk, noise: NoiseFloor | None, noisy: bool) -> list[str]:
    if noise is None:
        return []
    if not noisy:
        return [f"no noise: {noise.name} repeats {{A}} to the bit at all steps that both have"]
    notes = []
    if noise.largest is not None:
        error, step, quantity, param = noise.largest
        notes.append(
            f"noise of {{A}} by {noise.name}: up to {error:.3g} eps ({quantity} of {param}, step {step});"
            f" {FACTOR:g} times that of each row is allowed, which {count_words(walk.n_noise, 'row')} needed"
        )
    if walk.timeline.steps[-1] > noise.last_step:
        notes.append(f"{noise.name} ends at step {noise.last_step}; after it the largest noise until there is used")
    return notes


def _lane_notes(walk: Walk, lanes: tuple[Lane, Lane], decides: bool) -> list[str]:
    exact, tolerance = lanes
    notes = []
    if decides and not exact.same and tolerance.same:
        notes.append("within tolerance the two are the same; it is the bits that differ")
    if not decides and not tolerance.same and tolerance.would_pass_at is not None:
        notes.append(f"a tolerance of --eps {tolerance.would_pass_at:g} would have passed")
    if tolerance.same and not decides and walk.n_unproven:
        notes.append(
            f"{count_words(walk.n_unproven, 'row')} {'differs' if walk.n_unproven == 1 else 'differ'} in bits while all"
            f" that was recorded of {'it' if walk.n_unproven == 1 else 'them'} agrees;"
            " to be sure record both with --values full"
        )
    if walk.n_amplified and not decides:
        notes.append(
            f"{count_words(walk.n_amplified, 'row')} {'differs' if walk.n_amplified == 1 else 'differ'} by more than"
            " rounding, and by no more than what the rule makes of inputs that differ by rounding"
        )
    if not decides:
        notes.extend(walk.counts.notes())
    if walk.n_orthogonal and not decides:
        notes.append(
            f"{count_words(walk.n_orthogonal, 'update')} of Muon {'differs' if walk.n_orthogonal == 1 else 'differ'} by"
            " what its iteration makes of rounding along small singular values, and by no more along the large ones"
        )
    if walk.n_jumps and not decides:
        notes.append(
            f"{count_words(walk.n_jumps, 'update')} {'goes' if walk.n_jumps == 1 else 'go'} the other way in some"
            " element, where the argument of a sign is zero but for rounding"
        )
    if walk.sees is not None and tolerance.same and not decides:
        best, worst, param, step = walk.sees
        notes.append(
            f"in updates that differ in bits, errors from {best:.2g} of an update's size on would have been found at"
            f" best, from {worst:.2g} on at worst ({param}, step {step})"
        )
    if walk.drifted and tolerance.same and not decides:
        notes.append("the numbers drifted further apart than one step's rounding, by rounding that adds up")
    return notes
