"""What `optrace golden list`, `show` and `check --format json` print."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

from optrace.errors import GoldenError
from optrace.goldens.format import read_golden, write_csv
from optrace.goldens.library import case_names, check_rule, golden_folder, load, path_of, rules, wrong_names
from optrace.goldens.report import GoldenReport


def list_text(rule: str | None) -> str:
    """Rules with the number of their cases, or a rule's cases with their purpose; `wrong` lists the wrong outputs."""
    if rule is None:
        width = max(len(name) for name in rules())
        lines = [f"{name:<{width}}  {len(case_names(name))} cases" for name in rules()]
        return "\n".join([*lines, f"{'wrong':<{width}}  {len(wrong_names())} outputs of wrong implementations"])
    if rule == "wrong":
        found = [read_golden(golden_folder() / f"{name}.csv") for name in wrong_names()]
        return "\n".join(f"wrong/{golden.notes['file']}  {golden.notes['wrong']}" for golden in found)
    names = case_names(check_rule(rule))
    width = max(len(name) for name in names)
    return "\n".join(f"{name:<{width}}  {load(name).notes.get('purpose', '')}" for name in names)


def show_text(case: str, step: int | None = None) -> str:
    """The case's file, or its header and the rows of one step."""
    golden = read_golden(golden_folder() / f"{case}.csv") if case in wrong_names() else load(case)
    if step is None:
        return write_csv(golden).rstrip("\n")
    if step > golden.steps:
        raise GoldenError(f"{case} has steps 0 to {golden.steps}, not {step}")
    rows = tuple(row for row in golden.rows if row.step == step)
    text = write_csv(dataclasses.replace(golden, rows=rows)).splitlines()
    whole = path_of(case) if case not in wrong_names() else golden_folder() / f"{case}.csv"
    shapes = next(line for line in whole.read_text(encoding="utf-8").splitlines() if line.startswith("# shapes: "))
    return "\n".join(shapes if line.startswith("# shapes: ") else line for line in text)


def report_json(report: GoldenReport) -> str:
    """A report as strict JSON: numbers that are not finite are the strings `nan`, `inf`, `-inf`."""
    fields = dataclasses.asdict(report)
    for case, result in zip(fields["cases"], report.cases, strict=True):
        case["verdict"] = result.verdict
    verdict = "same" if report.same else "differ"
    return json.dumps(_strict({"format": 1, "verdict": verdict, **fields}), indent=1, allow_nan=False)


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
