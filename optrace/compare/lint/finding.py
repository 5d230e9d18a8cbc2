"""What the linter found in a run, as frozen values, and as text, JSON and HTML."""

from __future__ import annotations

import html
import json
from dataclasses import dataclass
from typing import Any

from optrace.compare.report import strict

FORMAT = 1
PAGE = "docs/lint.md"


@dataclass(frozen=True)
class Finding:
    """One thing in a run that is rarely meant."""

    code: str
    """Stable; `docs/lint.md` has a section of this name."""
    summary: str
    """What is the case, in one sentence."""
    fix: str
    """What to do, in one sentence."""
    evidence: tuple[str, ...]
    """What in the record shows it."""
    optimizer: int | None = None
    """Index of the optimizer that it is about."""
    params: tuple[str, ...] = ()
    """The parameters that it is about; empty: all, or none in particular."""
    steps: tuple[int, int] | None = None
    """First and last step at which it was seen."""

    def as_dict(self) -> dict[str, Any]:
        """The finding as plain data."""
        return {name: _plain(getattr(self, name)) for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class LintReport:
    """The result of `optrace.lint`."""

    run: str
    """Short name of the run."""
    findings: tuple[Finding, ...]
    """In the order of the rules, then of the optimizers."""
    optimizers: tuple[tuple[int, str, int], ...]
    """Index, class name and finished steps of each optimizer that was looked at."""

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    @property
    def codes(self) -> tuple[str, ...]:
        """The codes found, each once."""
        return tuple(dict.fromkeys(finding.code for finding in self.findings))

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "format": FORMAT,
            "run": self.run,
            "clean": self.clean,
            "optimizers": [list(entry) for entry in self.optimizers],
            "findings": [finding.as_dict() for finding in self.findings],
        }

    def to_json(self, indent: int | None = None) -> str:
        """The report as strict JSON."""
        return json.dumps(strict(self.as_dict()), allow_nan=False, indent=indent, ensure_ascii=False)

    @property
    def headline(self) -> str:
        """The result in one line."""
        seen = ", ".join(f"{name} ({steps:,} steps)" for _, name, steps in self.optimizers) or "no optimizer"
        count = len(self.findings)
        return (
            f"{self.run}: {'nothing' if not count else 'one thing' if count == 1 else f'{count} things'} found; {seen}"
        )

    def __str__(self) -> str:
        lines = [self.headline]
        for finding in self.findings:
            lines += ["", f"  {finding.code}: {finding.summary}", f"    fix   {finding.fix}"]
            lines += [f"    {'seen' if place == 0 else '    '}  {text}" for place, text in enumerate(finding.evidence)]
            lines.append(f"    page  {PAGE}#{finding.code}")
        return "\n".join(lines)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """In IPython as `print` shows it."""
        printer.text(str(self))

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td style='text-align:left'><b>{html.escape(f.code)}</b></td>"
            f"<td style='text-align:left'>{html.escape(f.summary)}<br><i>{html.escape(f.fix)}</i></td></tr>"
            for f in self.findings
        )
        return f"<div><p>{html.escape(self.headline)}</p><table>{rows}</table></div>"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
