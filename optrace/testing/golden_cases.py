"""The cases behind the mark `optrace_golden`: of a rule that ships with optrace, or of a project's own folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optrace.errors import GoldenError
from optrace.goldens.library import case_names, check_rule
from optrace.goldens.report import GoldenReport

Case = tuple[str | None, str]
"""A rule and the name of its case; or None and the path of a golden file."""


def cases_of(
    here: Path,
    rule: str | None = None,
    *,
    folder: str | None = None,
    dtype: str | None = None,
    cases: str | Sequence[str] | None = None,
) -> list[Case]:
    """The cases that a mark asks for, by name.

    Args:
        here: where a relative `folder` starts: beside the test.
        rule: torch's class name in lower case, optimizer or scheduler.
        folder: of golden files that `optrace golden make` wrote, instead of a rule.
        dtype: float64 or float32; both, when left out.
        cases: only these, by name or glob.

    Raises:
        GoldenError: there are none.
    """
    from fnmatch import fnmatchcase

    if (rule is None) == (folder is None):
        raise GoldenError('name a rule, optrace_golden("sgd"), or a folder, optrace_golden(folder="goldens")')
    if folder is not None:
        found: list[Case] = [(None, str(path)) for path in sorted((here / folder).glob("*.csv"))]
    else:
        found = [(rule, name) for name in case_names(check_rule(str(rule)))]
    wanted = None if cases is None else [cases] if isinstance(cases, str) else list(cases)
    kept = []
    for origin, name in found:
        stem = Path(name).stem if origin is None else name.partition("/")[2]
        kind = "float32" if stem.endswith("-float32") else "float64"
        short = stem.removesuffix("-float32")
        if dtype in (None, kind) and (wanted is None or any(fnmatchcase(short, pattern) for pattern in wanted)):
            kept.append((origin, name))
    if not kept:
        raise GoldenError(f"there is no golden case in {rule or here / str(folder)} of dtype {dtype}, cases {cases}")
    return kept


def check_case(rule: str | None, name: str, candidate: Any, options: Mapping[str, Any]) -> GoldenReport:
    """Drive a candidate through one case; GoldenError when it cannot be, NothingCovered when it lacks an option."""
    if rule is not None:
        from optrace.goldens.check import check_golden

        kind = "float32" if name.endswith("-float32") else "float64"
        return check_golden(candidate, rule, dtype=kind, options=options, cases=[name])
    from optrace.goldens.adapters import adapt
    from optrace.goldens.candidate import recognise
    from optrace.goldens.check import report_of, run_case
    from optrace.goldens.format import read_golden
    from optrace.goldens.report import CaseResult

    golden = read_golden(Path(name))
    defaults = dict(golden.hyper[0])
    found = recognise(candidate, options)
    run = run_case(golden, adapt(found, golden.rule, defaults, golden.dtype))
    report = report_of(found.name, golden.rule, [run], explain=False)
    first = report.first
    if first is None:
        return report
    by = golden.notes.get("made_with", "the stored golden")
    text = CaseResult(name, first.failure, first.raised, None, first.worst, first.tolerance)
    return GoldenReport(found.name, golden.rule, (text,), (), (f"the numbers are those of {by}",))
