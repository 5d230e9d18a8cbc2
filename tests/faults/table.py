"""Runs the fault bench, prints what was located, named, wrongly named: `python -m tests.faults.table [NAME...]`."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import optrace
from optrace.compare.report import DiffReport
from tests.faults.cases import FAULTS, Fault
from tests.faults.programs import Recipe, run

_FOLDER = tempfile.TemporaryDirectory(prefix="optrace-faults-")
_RIGHT: dict[int, tuple[Recipe, Path]] = {}
"""By the identity of a recipe (which is kept, so that no other gets it): where it was recorded."""

UNBLAMED = ("data-", "rng", "grad-upstream", "noise", "logged-only", "init")
"""Beginnings of codes that blame no optimizer."""


@dataclass(frozen=True)
class Result:
    """What a diff said about one fault."""

    fault: Fault
    report: DiffReport
    seconds: float

    @property
    def located(self) -> bool:
        """The first divergence is where the fault acts first."""
        first, where = self.report.first, self.fault.where
        if where is None or first is None:
            return (where is None) == (first is None) or not self.fault.codes
        return first.step == where[0] and first.quantity.startswith(where[1])

    @property
    def said(self) -> list[str]:
        """Codes in the report, those that are only candidates in brackets."""
        return [cause.code if cause.claimed else f"({cause.code})" for cause in self.report.causes]

    @property
    def named(self) -> bool:
        """The cause is claimed, and first; of a control, that the optimizer is not blamed."""
        if not self.fault.codes:
            return all(code.strip("()").startswith(UNBLAMED) for code in self.said)
        return bool(self.report.causes) and self.said[0] in self.fault.codes

    @property
    def wrong(self) -> bool:
        """Some other cause is claimed."""
        if not self.fault.codes:
            return not self.named
        return any(
            code not in self.fault.codes and code not in ("rule-unknown", "grad-upstream") and "(" not in code
            for code in self.said
        )


def try_fault(fault: Fault, folder: Path) -> Result:
    """Run both sides of a fault and compare them; a program that is right is run once for all its faults."""
    start = time.perf_counter()
    recipe = fault.a()
    if id(recipe) not in _RIGHT:
        _RIGHT[id(recipe)] = recipe, run(Path(_FOLDER.name) / str(len(_RIGHT)) / "right", recipe)
    a, b = folder / "right", run(folder / "wrong", fault.b())
    a.symlink_to(_RIGHT[id(recipe)][1])
    return Result(fault, optrace.diff(a, b), time.perf_counter() - start)


def table(results: Iterable[Result]) -> list[str]:
    """The results as lines of Markdown."""
    results = list(results)
    lines = ["| fault | case | first | expected | said | located | named | wrong |", "| --- " * 8 + "|"]
    for r in results:
        first = r.report.first
        where = f"{first.step} {first.quantity}" if first else r.report.verdict
        marks = [("yes" if flag else "NO") for flag in (r.located, r.named)] + ["YES" if r.wrong else "no"]
        row = (r.fault.name, r.fault.case, where, " ".join(r.fault.codes) or "-", " ".join(r.said) or "-", *marks)
        lines.append("| " + " | ".join(row) + " |")
    n = max(len(results), 1)
    located, named, wrong = (
        sum(f(r) for r in results) for f in (lambda r: r.located, lambda r: r.named, lambda r: r.wrong)
    )
    lines += [
        "",
        f"{len(results)} faults: located {located}, named {named} ({named / n:.0%}), wrongly named {wrong};"
        f" {sum(r.seconds for r in results):.0f} s",
    ]
    return lines


def main(names: Sequence[str]) -> int:
    """Print the table, and the whole report of each fault that was named on the command line."""
    results = []
    for fault in FAULTS:
        if names and fault.name not in names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            result = try_fault(fault, Path(folder))
        results.append(result)
        if names:
            print(result.report)
    print("\n".join(table(results)))
    return 0 if all(r.located and r.named and not r.wrong for r in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
