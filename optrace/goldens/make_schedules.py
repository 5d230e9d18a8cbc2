"""Makes the goldens of schedules with torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from optrace.goldens.format import Golden, Row
from optrace.goldens.schedule_driver import with_schedule_outputs
from optrace.goldens.schedule_grid import MAIN, ScheduleCase, schedule_cases


def schedule_goldens(rules: tuple[str, ...] = tuple(MAIN)) -> Iterator[Golden]:
    """Make every golden of these schedules."""
    import torch

    notes = {"made_with": f"torch {torch.__version__.split('+')[0]}"}
    for rule in rules:
        for case in schedule_cases(rule):
            golden = with_schedule_outputs(schedule_inputs(case), torch_scheduler(rule))
            yield replace(golden, notes={**golden.notes, **notes})


def schedule_inputs(case: ScheduleCase) -> Golden:
    """A golden that holds the case's inputs only; nothing may differ in a schedule, so its tolerances are 0."""
    rows: list[Row] = []
    for step in range(1, case.steps + 1):
        rows += [Row(step, g, "lr", "edit", np.array(lr)) for g, lr in case.edits.get(step, {}).items()]
        if case.metrics:
            rows.append(Row(step, 0, "", "metric", np.array(case.metrics[step - 1])))
        if step in case.epochs:
            rows.append(Row(step, 0, "", "epoch", np.array(float(case.epochs[step]))))
    notes = {"purpose": case.purpose, "options": json.dumps(case.options), "steps": str(case.steps)}
    if case.resume is not None:
        notes["resume"] = str(case.resume)
    return Golden(case.rule, case.name, "float64", case.groups, 0.0, 0.0, tuple(rows), notes)


def torch_scheduler(rule: str) -> Callable[..., Any]:
    """Torch's class of that name in lower case."""
    from torch.optim import lr_scheduler, swa_utils

    found: dict[str, Any] = {name.lower(): thing for name, thing in vars(lr_scheduler).items()}
    scheduler: Callable[..., Any] = {**found, "swalr": swa_utils.SWALR}[rule]
    return scheduler
