"""Makes goldens: the inputs of a case, driven through torch, with the outputs it gave."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from optrace.goldens import two_layers
from optrace.goldens.closures import closure_goldens
from optrace.goldens.drive import Inputs, with_outputs
from optrace.goldens.format import Golden, Row
from optrace.goldens.grid import FLOAT64_ONLY, Case, cases, gradient, start_values
from optrace.goldens.grid_options import OPTIONS
from optrace.goldens.object_driver import ObjectDriver, TorchTensors
from optrace.goldens.tolerance import STEP, derive
from optrace.reference.rule import RULES

DTYPES = ("float64", "float32")


def optimizer_goldens(rules: tuple[str, ...] = tuple(OPTIONS)) -> Iterator[Golden]:
    """Make every optimizer golden of these rules with torch: for-loop, one thread."""
    warm_up()
    for rule in rules:
        for dtype in DTYPES:
            for case in cases(rule):
                if dtype == "float64" or case.name not in FLOAT64_ONLY:
                    yield made_by_torch(inputs_of(case, dtype))
            if rule == "sgd":
                yield from (made_by_torch(inputs) for inputs in two_layers.inputs(dtype))


def lbfgs_goldens() -> Iterator[Golden]:
    """Make the goldens of L-BFGS with torch."""
    warm_up()
    optimizer = torch_optimizer("lbfgs")

    def build(params: list[Any], options: Mapping[str, Any]) -> Any:
        return optimizer(params, **options)

    yield from closure_goldens(build, TorchTensors, torch_provenance())


def inputs_of(case: Case, dtype: str) -> Golden:
    """A golden that holds the case's inputs only, rounded to `dtype`, with every option of the rule written out."""
    kind = np.dtype(dtype)
    group_of = {param: group for param, (group, _) in case.params.items()}
    rows = [Row(0, group_of[p], p, "param", values.astype(kind)) for p, values in start_values(case).items()]
    for step in range(1, case.steps + 1):
        for group, options in case.edits.get(step, {}).items():
            rows += [Row(step, group, n, "hyper", np.array(v, dtype=np.float64)) for n, v in options.items()]
        for param, group in group_of.items():
            grad = gradient(case, param, step)
            if grad is not None:
                rows.append(Row(step, group, param, "grad", grad.astype(kind)))
    notes = {"purpose": case.purpose}
    if case.resume is not None:
        notes["resume"] = str(case.resume)
    if case.sparse:
        notes["sparse"] = "gradients are row-sparse: rows that are all zero are not stored in them"
    if case.strided is not None and case.strided in case.params:
        notes["strided"] = case.strided
    hyper = tuple({**RULES[case.rule].defaults, **options} for options in case.groups)
    return Golden(case.rule, case.name, dtype, hyper, 0.0, 0.0, tuple(rows), notes)


def made_by_torch(inputs: Golden) -> Golden:
    """The golden that torch's for-loop makes of a case's inputs, with tolerances and provenance."""
    golden = with_outputs(inputs, torch_driver(inputs))
    free = derive(inputs)
    notes = {**inputs.notes, "tolerance_state": f"{free['state']:g}", **torch_provenance()}
    return replace(golden, tolerance_step=STEP, tolerance_free=free["param"], notes=notes)


def torch_driver(inputs: Golden, dtype: str | None = None, **extra: Any) -> ObjectDriver:
    """Drives torch's optimizer of the case's rule; `extra` are constructor options, foreach=False where it is taken."""
    import inspect

    optimizer = torch_optimizer(inputs.rule)
    if "foreach" in inspect.signature(optimizer).parameters and not extra:
        extra = {"foreach": False}

    def build(groups: list[tuple[list[Any], Mapping[str, Any]]]) -> Any:
        return optimizer([{"params": params, **options} for params, options in groups], **groups[0][1], **extra)

    tensors = TorchTensors(dtype or inputs.dtype, Inputs(inputs).sparse, not extra.get("differentiable"))
    return ObjectDriver(build, tensors, Inputs(inputs).strided)


def torch_optimizer(rule: str) -> Callable[..., Any]:
    """Torch's class of that name in lower case."""
    import torch

    found = {name.lower(): thing for name, thing in vars(torch.optim).items() if isinstance(thing, type)}
    optimizer: Callable[..., Any] = found[rule]
    return optimizer


def torch_provenance() -> dict[str, str]:
    """The header lines that say with what a golden was made."""
    import torch

    fused = torch.backends.cpu.get_cpu_capability() != "DEFAULT"
    return {
        "made_with": f"torch {torch.__version__.split('+')[0]}, for-loop, CPU, one thread",
        "arithmetic": f"{'fused' if fused else 'separate'} multiply-add, {platform.machine()}",
    }


def warm_up() -> None:
    """One thread, and one sqrt before any that counts: MKL's first vector call can be wrong on several threads."""
    import torch

    torch.set_num_threads(1)
    for dtype in (torch.float32, torch.float64):
        torch.ones(4096, dtype=dtype).sqrt_()
