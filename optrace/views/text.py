"""A DiffReport as text for a terminal: the report, and with details both lanes, eps and the table of divergences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optrace.compare.report import DiffReport, Divergence, Lane, Place
from optrace.compare.words import sentences, value_words
from optrace.views.style import Style
from optrace.views.tables import Table, render

DETAIL_COLUMNS = ("step", "opt", "group", "param", "quantity", "seen in", "at", "A", "B", "eps/granted")
LEGEND = "* new here: all that it was computed from matched"


def diff_text(report: DiffReport, *, details: bool = False, color: bool = False) -> str:
    """The report as lines of text, ending in a newline.

    With `details` follow what each lane found (errors in eps) and the divergences, one row each. Tables fit 100
    columns. `color` adds ANSI escapes and nothing else.
    """
    style = Style(color)
    headline, lines = sentences(report)
    paint = style.good if report.same else style.bad
    text = [paint(headline), *(f"  {style.label(f'{label:<7}')} {content}" for label, content in lines)]
    if details:
        text += ["", *_lanes(report, style)]
        if report.provenance:
            rows = [[d.key, _plain(d.a), _plain(d.b)] for d in report.provenance]
            text += ["", *render(Table(("provenance", report.a, report.b), rows), style)]
        if report.rows:
            cut = f"first {len(report.rows):,} of " if report.n_divergences > len(report.rows) else ""
            text += ["", f"{cut}{report.n_divergences:,} divergences", *divergence_table(report, style)]
    return "\n".join(text) + "\n"


def divergence_table(report: DiffReport, style: Style) -> list[str]:
    """The kept divergences as lines of a table and its legend."""
    lines = render(Table(DETAIL_COLUMNS, divergence_rows(report.rows)), style)
    return [*lines, LEGEND] if any(_is_new(row) for row in report.rows) else lines


def divergence_rows(divergences: Sequence[Divergence]) -> list[list[str]]:
    """Divergences as the cells of DETAIL_COLUMNS; an optimizer or group that all share is left out."""
    several_optimizers = len({row.optimizer for row in divergences}) > 1
    several_groups = len({row.group for row in divergences}) > 1
    rows = []
    for row in divergences:
        step = str(row.step) if row.step == row.step_b else f"{row.step} ({row.step_b})"
        known = row.kind != "value" or row.index is not None
        size = "" if row.eps is None or row.granted is None else f"{row.eps:.3g}/{row.granted:g}"
        rows.append(
            [
                f"{step} *" if _is_new(row) else step,
                str(row.optimizer) if several_optimizers and row.optimizer is not None else "",
                str(row.group) if several_groups and row.group is not None else "",
                row.param or "",
                row.quantity,
                row.evidence if row.kind == "value" else row.kind,
                "" if row.index is None else ",".join(str(i) for i in row.index),
                _cell(row, row.a) if known else "",
                _cell(row, row.b) if known else "",
                size,
            ]
        )
    return rows


def _is_new(row: Divergence) -> bool:
    return row.kind == "value" and not row.follows


def _cell(row: Divergence, value: Any) -> str:
    return str(value) if isinstance(value, str) else value_words(value, row.dtype)


def place_words(place: Place | None) -> str:
    """A place in one phrase; `-` for none."""
    if place is None:
        return "-"
    words = [f"step {place.step}"]
    if place.optimizer is not None:
        words.append(f"optimizer {place.optimizer}")
    if place.group is not None:
        words.append(f"group {place.group}")
    what = " of ".join(part for part in (place.quantity, place.param) if part)
    return ", ".join([*words, what] if what else words)


def lane_cells(name: str, lane: Lane, report: DiffReport) -> list[str]:
    """One lane as cells: lane, verdict, different rows, largest error in eps, what would have passed, first place."""
    return [
        name + (" *" if report.lane == name else ""),
        "same" if lane.same else "differ",
        f"{lane.n_different:,}",
        f"{lane.max_eps:.3g}",
        "-" if lane.would_pass_at is None else f"{lane.would_pass_at:g}",
        place_words(lane.first),
    ]


LANE_COLUMNS = ("lane (* decides)", "verdict", "different", "max eps", "passes at", "first")


def _lanes(report: DiffReport, style: Style) -> list[str]:
    rows = [lane_cells("exact", report.exact, report), lane_cells("tolerance", report.tolerance, report)]
    lines = render(Table(LANE_COLUMNS, rows), style)
    lines.append(
        f"evidence: {report.evidence}; {report.n_unproven:,} rows unproven; {report.extent.rows:,} rows compared"
    )
    return lines


def _plain(value: Any) -> str:
    return "none" if value is None else str(value)
