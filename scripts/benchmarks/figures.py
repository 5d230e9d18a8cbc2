"""Figures of a benchmark: medians with their spread, goals, and their tables in Markdown and JSON."""

from __future__ import annotations

import platform
import statistics
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Spread:
    """A median and its quartiles."""

    median: float
    low: float
    high: float

    def text(self, digits: int = 3) -> str:
        """The median with the quartiles behind it."""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"


def spread(values: list[float]) -> Spread:
    """Median and quartiles of at least one value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(statistics.median(values), low, high)


@dataclass
class Row:
    """One measured thing of one case."""

    case: str
    what: str
    cells: dict[str, str]
    numbers: dict[str, Any]
    goal: str = ""
    met: bool | None = None


@dataclass
class Report:
    """All rows of one subject, with the machine they were taken on."""

    subject: str
    note: str
    rows: list[Row] = field(default_factory=list)

    @property
    def missed(self) -> bool:
        """Whether a figure misses its goal."""
        return any(row.met is False for row in self.rows)

    def markdown(self) -> str:
        """A heading, a sentence and a table."""
        columns = list(dict.fromkeys(key for row in self.rows for key in row.cells))
        head = ["case", "what", *columns, "goal"]
        lines = [f"### {self.subject}", "", self.note, "", _machine(), "", _line(head), _line(["---"] * len(head))]
        for row in self.rows:
            verdict = {True: " met", False: " MISSED", None: ""}[row.met]
            lines.append(
                _line([row.case, row.what, *(row.cells.get(c, "") for c in columns), f"{row.goal}{verdict}".strip()])
            )
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """The numbers with the machine."""
        rows = [{"case": r.case, "what": r.what, **r.numbers, "goal": r.goal, "met": r.met} for r in self.rows]
        return {"subject": self.subject, "machine": _machine(), "rows": rows}


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _machine() -> str:
    import os

    from optrace.trace.measure import kernel_name

    try:
        with open("/proc/cpuinfo") as file:
            model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "")
        load = f", load {os.getloadavg()[0]:.1f} at the end"
    except OSError:
        model, load = platform.processor(), ""
    parts = [f"{os.cpu_count()} cores ({model or platform.machine()})", f"Python {platform.python_version()}"]
    try:
        import torch

        parts.append(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
        if torch.cuda.is_available():
            parts.append(torch.cuda.get_device_name())
    except ImportError:
        pass
    return f"{', '.join(parts)}, kernel {kernel_name()}{load}."
