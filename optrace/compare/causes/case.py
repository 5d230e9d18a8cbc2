"""What the families of causes look at: both sides of one comparison under A's numbers of steps, read when asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from optrace.compare.arrow import integers, known, numbers
from optrace.compare.causes.events import Event, Events
from optrace.compare.columns import BODY, Numbering, Rows, Side
from optrace.compare.hyper import HyperComparison
from optrace.compare.match import Cell, Matching
from optrace.compare.orthogonal import Orthogonal
from optrace.compare.report import Divergence
from optrace.compare.source import Source
from optrace.compare.timeline import Timeline
from optrace.replayer.options import options_by_step

Floats = NDArray[np.float64]
Options = Mapping[int, Mapping[int, Mapping[str, Any]]]


class Row(NamedTuple):
    """One measured tensor."""

    sample: Floats
    """16 elements, NaN where there are fewer."""
    numel: int
    l2: float
    low: float
    high: float
    n_nan: int
    n_inf: int
    n_zero: int
    fingerprint: int
    present: bool
    dtype: str

    @property
    def used(self) -> Floats:
        """The slots of the sample that hold an element."""
        return self.sample[: min(self.numel, len(self.sample))]


Snapshot = Mapping[tuple[int, str], Row]
"""Rows of one side at one step by (cell, quantity), under A's names."""


@dataclass
class Case:
    """One comparison that found something, and access to its evidence."""

    sources: tuple[Source, Source]
    sides: tuple[Side, Side]
    names: tuple[str, str]
    matching: Matching
    numbering: Numbering
    timeline: Timeline
    hyper: HyperComparison
    first: Divergence | None
    first_steps: Mapping[str, int]
    """First step at which each quantity differs, in the lane that decides."""
    certain: Sequence[Divergence]
    """Hyper-parameters, missing data and dtypes that differ, in causal order."""
    exact_decides: bool
    within_tolerance: bool
    """Whether the tolerance lane found nothing."""
    orthogonal: Orthogonal
    """What the sides of a Muon do."""
    _snapshots: dict[int, tuple[Snapshot, Snapshot]] = field(default_factory=dict)

    @property
    def pair(self) -> int:
        """Number of the matched pair of optimizers in which the first divergence lies."""
        index = None if self.first is None else self.first.optimizer
        return next((i for i, pair in enumerate(self.matching.pairs) if pair.a == index), 0)

    def offset(self, pair: int) -> int:
        """What is added to B's numbers of steps to give A's."""
        return self.timeline.offsets[pair]

    @property
    def steps(self) -> list[int]:
        """A's numbers of the steps, from 1, that both sides recorded of the pair in question."""
        here = self.timeline.common(self.timeline.steps)[:, self.pair] & (self.timeline.steps > 0)
        return [int(step) for step in self.timeline.steps[here]]

    def cells(self, pair: int | None = None) -> list[tuple[int, Cell]]:
        """The parameters of a pair (default: of the first divergence) with their numbers."""
        wanted = self.pair if pair is None else pair
        return [(n, cell) for n, cell in enumerate(self.matching.cells) if cell.pair == wanted]

    @property
    def first_cell(self) -> int | None:
        """Number of the cell in which the first divergence lies."""
        if self.first is None or self.first.param is None:
            return None
        return next((n for n, cell in self.cells() if cell.param_a == self.first.param), None)

    def at(self, step: int) -> tuple[Snapshot, Snapshot]:
        """Rows of both sides at a step (A's number)."""
        if step not in self._snapshots:
            if len(self._snapshots) > 12:
                self._snapshots.pop(next(iter(self._snapshots)))
            self._snapshots[step] = (self._rows(0, step), self._rows(1, step))
        return self._snapshots[step]

    def before(self, step: int, side: int) -> Snapshot:
        """Parameters and state of a side as they were before a step, by their names after it."""
        past = [s for s in self.timeline.steps.tolist() if s < step]
        found = dict(self.at(past[-1])[side]) if past else {}
        for (cell, quantity), row in self.at(step)[side].items():
            kind, dot, key = quantity.partition(".")
            if kind.endswith("_in"):
                found[cell, kind.removesuffix("_in") + dot + key] = row
        return {key: row for key, row in found.items() if key[1] == "param" or key[1].startswith("state.")}

    def inputs_apart(self) -> bool:
        """Whether the bits of what the first divergent row was computed from differ."""
        if self.first is None or (cell := self.first_cell) is None:
            return False
        a, b = self.at(self.first.step)
        before = self.before(self.first.step, 0), self.before(self.first.step, 1)
        pairs = [(a.get((cell, "grad")), b.get((cell, "grad")))]
        pairs += [(row, before[1].get(key)) for key, row in before[0].items() if key[0] == cell]
        return any(x is not None and y is not None and x.fingerprint != y.fingerprint for x, y in pairs)

    def _rows(self, side: int, step: int) -> Snapshot:
        rows: Rows = self.sides[side].load(step, step, BODY)
        columns = rows.columns
        dtypes = rows.texts("dtype")
        result = {}
        for i, (cell, quantity) in enumerate(zip(rows.cell.tolist(), rows.quantity.tolist(), strict=True)):
            result[cell, self.numbering.quantities[quantity]] = Row(
                columns["sample"][i],
                int(columns["numel"][i]),
                float(columns["l2"][i]),
                float(columns["min"][i]),
                float(columns["max"][i]),
                int(columns["n_nan"][i]),
                int(columns["n_inf"][i]),
                int(columns["n_zero"][i]),
                int(columns["fingerprint"][i]),
                bool(columns["present"][i]),
                str(dtypes[i]),
            )
        return result

    @cached_property
    def _options(self) -> dict[tuple[int, int], Options]:
        return {}

    def options(self, side: int, pair: int) -> Options:
        """A side's hyper-parameters by step (A's number) and its own group."""
        key = side, pair
        if key not in self._options:
            source = self.sources[side]
            index = self.matching.pairs[pair].a if side == 0 else self.matching.pairs[pair].b
            shift = 0 if side == 0 else self.offset(pair)
            found = options_by_step(source.trace, index)  # type: ignore[arg-type]
            self._options[key] = {step + shift: groups for step, groups in found.items() if source.covers(step)}
        return self._options[key]

    def column(self, name: str, side: int, pair: int | None = None) -> dict[int, Any]:
        """A column of the table `steps` by A's number of the step; what is null is left out."""
        pair = self.pair if pair is None else pair
        index = self.matching.pairs[pair].a if side == 0 else self.matching.pairs[pair].b
        table = self.sources[side].trace.arrow("steps", columns=["step", "optimizer", name])
        if not table.num_rows:
            return {}
        there = known(table.column(name)) & (numbers(table.column("optimizer")) == index)
        shift = 0 if side == 0 else self.offset(pair)
        steps = (integers(table.column("step"))[there] + shift).tolist()
        return dict(zip(steps, numbers(table.column(name))[there].tolist(), strict=True))

    @cached_property
    def events(self) -> tuple[Events, Events]:
        """Events of both sides."""
        shifts = 0, self.offset(self.pair)
        a, b = (Events(source.trace, shift) for source, shift in zip(self.sources, shifts, strict=True))
        return a, b

    def between(self, side: int, step: int) -> list[Event]:
        """Events of a side since the step before `step` was completed, up to that step's own."""
        events = self.events[side]
        return list(events.read(events.before_step(self.index(side), step)))

    def kinds_between(self, side: int, step: int) -> list[str]:
        """The kinds of those events, in order."""
        events = self.events[side]
        return events.kinds(events.before_step(self.index(side), step))

    def index(self, side: int) -> int:
        """Number of a side's optimizer of the pair in question."""
        matched = self.matching.pairs[self.pair]
        return matched.a if side == 0 else matched.b

    def entry(self, side: int, pair: int) -> Mapping[str, Any]:
        """What rank.json says about a side's optimizer."""
        index = self.matching.pairs[pair].a if side == 0 else self.matching.pairs[pair].b
        listed = self.sources[side].trace.rank_info.get("optimizers") or ()
        return next((e for e in listed if isinstance(e, Mapping) and e.get("index") == index), {})

    def is_torchs(self, side: int, pair: int) -> bool:
        """Whether a side's optimizer is torch's own class."""
        return str(self.entry(side, pair).get("module", "")).startswith("torch.optim")

    def class_name(self, side: int, pair: int) -> str:
        """The class name of a side's optimizer."""
        matched = self.matching.pairs[pair]
        return matched.class_a if side == 0 else matched.class_b

    def subject(self, side: int, pair: int) -> str:
        """How to call a side's implementation: `torch.optim.SGD`, or the side's name."""
        if self.is_torchs(side, pair) and not self.is_torchs(1 - side, pair):
            return f"torch.optim.{self.class_name(side, pair)}"
        return ("{A}", "{B}")[side]

    @property
    def same_code(self) -> bool:
        """Whether both optimizers are known to be of the same code."""
        one, other = (self.entry(side, self.pair) for side in (0, 1))
        return bool(one.get("module")) and all(one.get(k) == other.get(k) for k in ("module", "class", "source"))


def close(a: Any, b: Any, scale: float | Floats = 0.0, eps: float = 2.0**-23, n: float = 64.0) -> bool:
    """Whether two arrays agree within n roundings of the larger of each pair and of `scale`; NaN and inf in place."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        return False
    with np.errstate(all="ignore"):
        size = np.fmax(np.fmax(np.abs(a), np.abs(b)), scale)
        fits = (a == b) | (np.isnan(a) & np.isnan(b)) | (np.abs(a - b) <= n * eps * size)
    return bool(fits.all())


def few(names: Sequence[str], limit: int = 3) -> str:
    """Some names and how many more there are: `a, b, c and 4 more`."""
    names = list(dict.fromkeys(names))
    if len(names) <= limit + 1:
        return ", ".join(names)
    return f"{', '.join(names[:limit])} and {len(names) - limit:,} more"


def figure(number: float) -> str:
    """A number with as many digits as one needs to recognise it, and to tell it from 1."""
    return f"{number:.6g}" if number == 1 or abs(number - 1) > 1e-5 else f"{number:.9g}"


def factor_words(ratio: float) -> str:
    """A factor, as its inverse where that is a whole number: `4 times`, `1/8 of`."""
    if ratio and abs(1 / ratio - round(1 / ratio)) < 1e-5 * abs(1 / ratio) and abs(ratio) < 0.9:
        return f"1/{round(1 / ratio)} of"
    if abs(ratio - round(ratio)) < 1e-5 * abs(ratio) and round(ratio) != 1:
        return f"{round(ratio)} times"
    return f"{figure(ratio)} times"
