"""What a comparison found, as one frozen value: verdict, first divergence, both lanes, and everything beside them."""

from __future__ import annotations

import html
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optrace.compare.causes.cause import Cause
from optrace.compare.words import sentences

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1


@dataclass(frozen=True)
class Place:
    """Where something is; parts that do not apply are None."""

    step: int
    optimizer: int | None = None
    group: int | None = None
    param: str | None = None
    quantity: str | None = None


@dataclass(frozen=True)
class Divergence:
    """One place where two traces differ; names and numbers of steps are A's, `step_b` is B's."""

    step: int
    step_b: int
    optimizer: int | None
    group: int | None
    param: str | None
    quantity: str
    """As in the trace, or `hyper.<key>` for a hyper-parameter."""
    kind: str
    """value; none (a gradient that was None on one side); shape; dtype; hyper; missing (on one side only);
    replica (ranks of one side differ from each other)."""
    evidence: str
    """values, samples or statistics; bitwise where nothing else is known."""
    a: Any
    """A's value at the worst element, or of the hyper-parameter; None where it is not known."""
    b: Any
    index: tuple[int, ...] | None
    """The worst element; None where it is not known."""
    eps: float | None
    """Error in eps of its scale; a lower bound unless the evidence is values."""
    granted: float | None
    """Eps that the tolerance grants at this place."""
    follows: bool
    """Whether something that this was computed from differs too."""
    dtype: str = ""
    """The coarser dtype of the two, for showing numbers in their shortest form; of the parameter for an update."""
    count: int = 1
    """Parameters of which the same quantity differs at this step; steps, for hyper-parameters and missing rows."""

    @property
    def place(self) -> Place:
        """The place alone."""
        return Place(self.step, self.optimizer, self.group, self.param, self.quantity)


@dataclass(frozen=True)
class Lane:
    """One way of judging: `exact` (bits) or `tolerance`."""

    same: bool
    first: Place | None
    n_different: int
    """exact: rows whose bits differ; tolerance: rows beyond tolerance while their inputs were within it."""
    max_eps: float
    """Largest error; exact: of the numbers as they drifted; tolerance: of single steps, judged from their inputs."""
    would_pass_at: float | None
    """The least `--eps` at which this lane would find nothing; None where none would do."""


@dataclass(frozen=True)
class Difference:
    """Something about how the two sides came to be that is not the same."""

    key: str
    a: Any
    b: Any


@dataclass(frozen=True)
class Extent:
    """How much was compared."""

    steps: int
    params: int
    rows: int
    hyper: int
    optimizers: tuple[tuple[int, str], ...]
    """A's index and class name of each."""


@dataclass(frozen=True)
class DiffReport:
    """The result of `optrace.diff`."""

    a: str
    """Short names of the two sides."""
    b: str
    verdict: str
    """same or differ."""
    lane: str
    """The lane that decided: exact or tolerance."""
    exact: Lane
    tolerance: Lane
    evidence: str
    """What the verdict rests on: bitwise, values, samples or statistics."""
    first: Divergence | None
    causes: tuple[Cause, ...]
    """Explanations: of the first divergence, then independent ones."""
    rows: tuple[Divergence, ...]
    """The divergences in causal order, cut at the limit."""
    n_divergences: int
    n_unproven: int
    """Rows whose bits differ while all that was recorded of them agrees within tolerance."""
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    provenance: tuple[Difference, ...]
    notes: tuple[str, ...]
    matched: tuple[str, ...]
    """What is the same, in words."""
    alignment: str | None
    """How steps were aligned, when not one to one."""
    next: str
    """A command that shows more."""
    extent: Extent
    resume: tuple[str, ...] = ()
    """Where B continues A: what it took over and what it lost, in words; in JSON among the notes."""

    @property
    def same(self) -> bool:
        """Whether the two sides are the same."""
        return self.verdict == "same"

    @property
    def divergences(self) -> pd.DataFrame:
        """The divergences as a frame, one row each, in causal order, cut at the limit; `n_divergences` counts all."""
        import pandas as pd

        names = list(Divergence.__dataclass_fields__)
        return pd.DataFrame({name: [getattr(row, name) for row in self.rows] for name in names}, columns=names)

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data, as in its JSON but with numbers as they are."""
        return {
            "format": FORMAT,
            "verdict": self.verdict,
            "lane": self.lane,
            "exact": _lane(self.exact),
            "tolerance": _lane(self.tolerance),
            "evidence": self.evidence,
            "first": _place(self.first.place) if self.first else None,
            "causes": [cause.as_dict() for cause in self.causes],
            "divergences": [_divergence(row) for row in self.rows],
            "n_divergences": self.n_divergences,
            "n_unproven": self.n_unproven,
            "only_in_a": list(self.only_in_a),
            "only_in_b": list(self.only_in_b),
            "provenance": [{"key": d.key, "a": d.a, "b": d.b} for d in self.provenance],
            "notes": [*self.notes, *(f"resume: {line}" for line in self.resume)],
        }

    def to_json(self, indent: int | None = None) -> str:
        """The report as strict JSON: numbers that are not finite are the strings "nan", "inf" and "-inf"."""
        return json.dumps(strict(self.as_dict()), allow_nan=False, indent=indent, ensure_ascii=False)

    def __str__(self) -> str:
        headline, lines = sentences(self)
        return "\n".join([headline, *(f"  {label:<7} {text}" for label, text in lines)])

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """In IPython as `print` shows it."""
        printer.text(str(self))

    def _repr_html_(self) -> str:
        headline, lines = sentences(self)
        rows = "".join(
            f"<tr><td style='text-align:left'><b>{html.escape(label)}</b></td>"
            f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
            for label, text in lines
        )
        return f"<div><p>{html.escape(headline)}</p><table>{rows}</table></div>"


def strict(data: Any) -> Any:
    """Data that strict JSON can hold: NaN and infinities as strings, anything unknown as text."""
    if isinstance(data, dict):
        return {str(key): strict(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [strict(value) for value in data]
    if isinstance(data, float):
        if math.isfinite(data):
            return data
        return "nan" if math.isnan(data) else "inf" if data > 0 else "-inf"
    if data is None or isinstance(data, str | bool | int):
        return data
    return str(data)


def _place(place: Place | None) -> dict[str, Any] | None:
    if place is None:
        return None
    return {name: getattr(place, name) for name in Place.__dataclass_fields__}


def _lane(lane: Lane) -> dict[str, Any]:
    return {
        "same": lane.same,
        "first": _place(lane.first),
        "n_different": lane.n_different,
        "max_eps": lane.max_eps,
        "would_pass_at": lane.would_pass_at,
    }


def _divergence(row: Divergence) -> dict[str, Any]:
    return {
        name: list(row.index) if name == "index" and row.index is not None else getattr(row, name)
        for name in Divergence.__dataclass_fields__
    }
