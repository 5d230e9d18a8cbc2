"""A DiffReport as Markdown, to paste into an issue."""

from __future__ import annotations

from collections.abc import Sequence

from optrace.compare.report import DiffReport
from optrace.compare.words import sentences
from optrace.views.tables import printable
from optrace.views.text import DETAIL_COLUMNS, LANE_COLUMNS, LEGEND, divergence_rows, lane_cells

_FEW = 10


def diff_markdown(report: DiffReport, *, details: bool = False) -> str:
    """The report as Markdown ending in a newline: the first line in bold, a list, and the divergences as a table.

    Without `details` the table has the first ten divergences, with it all that were kept, and both lanes.
    """
    headline, lines = sentences(report)
    text = [f"**{escape(headline)}**", ""]
    last = ""
    for label, content in lines:
        shown = f"`{content}`" if label == "next" else escape(content)
        text.append(f"- {label}: {shown}" if label and label != last else f"  <br>{shown}")
        last = label or last
    if details:
        rows = [lane_cells("exact", report.exact, report), lane_cells("tolerance", report.tolerance, report)]
        text += ["", *_table(LANE_COLUMNS, rows)]
        if report.provenance:
            provenance = [[d.key, str(d.a), str(d.b)] for d in report.provenance]
            text += ["", *_table(("provenance", report.a, report.b), provenance)]
    kept = report.rows if details else report.rows[:_FEW]
    if kept:
        text += ["", f"{len(kept):,} of {report.n_divergences:,} divergences:", ""]
        text += [*_table(DETAIL_COLUMNS, divergence_rows(kept)), "", escape(LEGEND)]
    return "\n".join(text) + "\n"


def escape(text: str) -> str:
    """Text that Markdown shows as it is."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>|#" else c for c in printable(text))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    keep = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    lines = ["| " + " | ".join(escape(columns[i]) for i in keep) + " |", "|" + " --- |" * len(keep)]
    lines += ["| " + " | ".join(escape(row[i]) for i in keep) + " |" for row in rows]
    return lines
