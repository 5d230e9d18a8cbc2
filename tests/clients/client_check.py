"""Compares the recorded tables of one optimizer with what the independent capture saw."""

from __future__ import annotations

import math
from typing import Any

from client_measure import row_errors

from optrace.trace.reader import Trace

Key = tuple[int, int, str, str]
"""step, group, param, quantity."""


def recorded_rows(trace: Trace, optimizer: int) -> dict[Key, dict[str, Any]]:
    frame = trace.table("tensors", optimizer=optimizer)
    rows = {(r["step"], r["group"], r["param"], r["quantity"]): r for r in frame.to_dict("records")}
    assert len(rows) == len(frame), "a row comes twice"
    return rows


def check_optimizer(trace: Trace, optimizer: int, captured: dict[str, Any]) -> None:
    """The recorded tables hold the captured rows to the bit, all of them and no other; so do the groups."""
    found = recorded_rows(trace, optimizer)
    expected: dict[Key, dict[str, Any]] = {}
    lost = set()
    for step, group, param, quantity, row in captured["rows"]:
        if group == -2:  # state that was thrown away between two steps: which group it is in is not known
            lost.add((step, param, quantity))
        else:
            expected[step, group, param, quantity] = row
    lost_rows = {key for key in found if (key[0], key[2], key[3]) in lost}
    assert {(step, param, quantity) for step, _, param, quantity in lost_rows} == lost
    assert not any(found[key]["present"] for key in lost_rows)
    missing, extra = set(expected) - set(found), set(found) - set(expected) - lost_rows
    assert not missing, f"not recorded: {sorted(missing)[:10]}"
    assert not extra, f"recorded, but not there: {sorted(extra)[:10]}"
    wrong = {key: errors for key, row in expected.items() if (errors := row_errors(found[key], row))}
    assert not wrong, f"{len(wrong)} of {len(expected)} rows are wrong: {dict(list(wrong.items())[:5])}"
    check_groups(trace, optimizer, captured)


def check_groups(trace: Trace, optimizer: int, captured: dict[str, Any]) -> None:
    frame = trace.table("groups", optimizer=optimizer)
    recorded = {(row["step"], row["group"]): row for row in frame.to_dict("records")}
    assert set(recorded) == {(step, group) for step, group, _ in captured["groups"]}
    for step, group, options in captured["groups"]:
        row = recorded[step, group]
        for key, value in options.items():
            column = f"group.{key}" if key in ("step", "optimizer", "group") else key
            assert same_option(row[column], value), f"step {step}, group {group}: {key} is {row[key]!r}, not {value!r}"


def same_option(found: Any, expected: Any) -> bool:
    if expected is None:
        return found is None
    if isinstance(expected, float) and math.isnan(expected):
        return isinstance(found, float) and math.isnan(found)
    return bool(found == expected) and isinstance(found, bool) == isinstance(expected, bool)
