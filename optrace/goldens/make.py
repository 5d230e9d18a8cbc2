"""Makes goldens: the inputs of a case, driven through an implementation, with the outputs it gave."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from optrace.goldens.drive import drive, output_rows
from optrace.goldens.format import Golden, Row
from optrace.goldens.grid import Case, gradient, start_values
from optrace.goldens.torch_driver import TorchDriver


def inputs_of(case: Case, defaults: Mapping[str, Any], dtype: str) -> Golden:
    """A golden that holds the case's inputs only, rounded to `dtype`; `defaults` fills in every option."""
    kind = np.dtype(dtype)
    group_of = {param: group for param, (group, _) in case.params.items()}
    rows = [Row(0, group_of[p], p, "param", values.astype(kind)) for p, values in start_values(case).items()]
    for step in range(1, case.steps + 1):
        for group, options in case.edits.get(step, {}).items():
            rows += [Row(step, group, name, "hyper", np.array(value, dtype=kind)) for name, value in options.items()]
        for param, group in group_of.items():
            grad = gradient(case, param, step)
            if grad is not None:
                rows.append(Row(step, group, param, "grad", grad.astype(kind)))
    notes = {"purpose": case.purpose}
    if case.resume is not None:
        notes["resume"] = str(case.resume)
    if case.sparse:
        notes["sparse"] = "gradients are row-sparse: rows that are all zero are not stored in them"
    hyper = tuple({**defaults, **options} for options in case.groups)
    return Golden(case.rule, case.name, dtype, hyper, 0.0, 0.0, tuple(rows), notes)


def torch_provenance() -> dict[str, str]:
    """The header lines that say with what a golden was made."""
    import torch

    return {
        "made_with": f"torch {torch.__version__.split('+')[0]}, for-loop, CPU, one thread",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "architecture": platform.machine(),
    }


def warm_up() -> None:
    """One thread, and one sqrt before any that counts: MKL's first vector call can be wrong on several threads."""
    import torch

    torch.set_num_threads(1)
    for dtype in (torch.float32, torch.float64):
        torch.ones(4096, dtype=dtype).sqrt_()


def make_golden(inputs: Golden, make: Callable[..., Any], tolerance_step: float, tolerance_free: float) -> Golden:
    """Drive the torch-like `make(param_groups)` through the inputs and keep parameters and state of every step."""
    driver = TorchDriver(make, inputs.dtype, sparse="sparse" in inputs.notes)
    group_of = {row.param: row.group for row in inputs.rows if row.quantity == "param"}
    by_step: dict[int, list[Row]] = {}
    for row in inputs.rows:
        by_step.setdefault(row.step, []).append(row)
    rows = by_step.pop(0)
    for step, params, state in drive(inputs, driver):
        rows += by_step.pop(step, [])
        rows += output_rows(step, group_of, params, state)
    return replace(inputs, rows=tuple(rows), tolerance_step=tolerance_step, tolerance_free=tolerance_free)
