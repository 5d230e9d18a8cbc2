"""The sentences of a report: who differs since when in what, where first, what is the same, what to do next."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from optrace.compare.missing import MISSING

if TYPE_CHECKING:
    from optrace.compare.report import Difference, DiffReport, Divergence

Lines = list[tuple[str, str]]
_COMPUTING = re.compile(
    r"(torch|pytorch|nvidia|triton|cuda|cupy|mkl|intel|onednn|openblas|numpy$|scipy$|jax|flax|optax|mlx|tensorflow|keras"
    r"|accelerate|deepspeed|lightning|transformers|diffusers|peft|trl|timm|flash|xformers|apex|bitsandbytes|liger|unsloth"
    r"|megatron|transformer-engine|fairscale|colossalai|ray$|horovod|fla$|mamba|causal-conv1d|.*optimizer|.*optim$|.*opt$|.*-pytorch$)"
)
"""Packages that may change a training's numbers by being there: they patch, choose kernels or compute."""
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def sentences(report: DiffReport) -> tuple[str, Lines]:
    """The report's first line, and the lines under it as (label, text); a continued label is empty."""
    return _headline(report), _lines(report)


def quantity_words(quantity: str, step: int) -> str:
    """A quantity in words, as it follows `in`: `the gradients`, `the state momentum_buffer`."""
    kind, _, key = quantity.partition(".")
    words = {
        "param": "the start values" if step == 0 else "the parameters",
        "param_in": "the parameters before the step",
        "grad": "the gradients",
        "update": "the update",
        "state": f"the state {key}",
        "state_in": f"the state {key} before the step",
        "group": f"the group's {key}",
        "group_in": f"the group's {key} before the step",
    }
    return words.get(kind, quantity)


def value_words(value: Any, dtype: str = "") -> str:
    """A value in its shortest form that reads back: as float32 where the dtype has no more digits."""
    if value is None or value is MISSING:
        return "none"
    if isinstance(value, float) and dtype in ("float32", "bfloat16", "float16", "complex64"):
        return repr(float(str(np.float32(value))))
    return repr(value)


def count_words(count: int, noun: str) -> str:
    """`1 step`, `1,000 steps`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _headline(report: DiffReport) -> str:
    aligned = f" ({report.alignment})" if report.alignment else ""
    if report.same:
        extent = report.extent
        how = "to the bit" if report.exact.same else "within tolerance"
        what = (
            f"{count_words(extent.steps, 'step')} of {', '.join(dict.fromkeys(name for _, name in extent.optimizers))}"
        )
        return f"{report.b} is the same as {report.a} - {how}: {what}, {count_words(extent.params, 'param')}{aligned}"
    if report.first is None:
        return f"{report.b} differs from {report.a}{aligned}"
    return f"{report.b} differs from {report.a} - since step {report.first.step}, in {_what(report)}{aligned}"


def _what(report: DiffReport) -> str:
    first = report.first
    assert first is not None
    name = first.quantity.partition(".")[2]
    a, b = value_words(first.a, first.dtype), value_words(first.b, first.dtype)
    sides = f"{a} in {report.a}, {b} in {report.b}"
    if first.kind == "hyper":
        group = f" of group {first.group}" if first.group is not None else ""
        return f"the hyper-parameter {name}{group}: {sides}"
    if first.kind == "dtype":
        return f"the dtype of {_of(first)}: {first.a} in {report.a}, {first.b} in {report.b}"
    if first.kind == "shape":
        return f"the shape of {_of(first)}: {first.a} in {report.a}, {first.b} in {report.b}"
    if first.kind == "none":
        where = report.b if first.b is None else report.a
        if first.quantity == "grad":
            return f"the gradient of {first.param}: None in {where}"
        return f"{quantity_words(first.quantity, first.step)}: that of {first.param} is gone in {where}"
    claimed = report.causes[0] if report.causes and report.causes[0].claimed else None
    anew = first.quantity == "optimizer" and claimed is not None and claimed.code == "state-reset"
    if first.kind == "missing" and not anew and (claimed is None or not first.quantity.startswith("state.")):
        where = report.a if first.b is None else report.b
        if first.quantity == "param" and {f"param {first.param}"} <= set(report.only_in_a) & set(report.only_in_b):
            return f"the groups: {first.param} is in another optimizer"
        return f"what was recorded: {_missing(first)} is only in {where}"
    if claimed is not None:
        return claimed.cls
    return quantity_words(first.quantity, min(first.step, first.step_b))


def _missing(first: Divergence) -> str:
    if first.quantity == "step":
        return f"step {first.step}"
    if first.quantity == "optimizer":
        return f"optimizer {first.optimizer}"
    if first.quantity == "param" and first.count == 0:
        return f"the parameter {first.param}"
    return f"{first.quantity} of {_whose(first)}"


def _of(first: Divergence) -> str:
    return str(first.param) if first.quantity == "param" else f"{first.quantity} of {_whose(first)}"


def _whose(first: Divergence) -> str:
    return first.param or f"group {first.group}"


def _lines(report: DiffReport) -> Lines:
    lines: Lines = list(_causes(report))
    if report.first is not None:
        lines.append(("first", _first(report, report.first)))
    lines += _listed("only", list(_only(report)))
    if report.same and not report.exact.same:
        lines.append(("noise", _noise(report)))
    if report.matched:
        lines.append(("same", ", ".join(report.matched)))
    lines += _listed("resume", list(report.resume))
    lines += _listed("notes", list(report.notes))
    lines += _listed("differs", list(_provenance(report)))
    if report.next:
        lines.append(("next", report.next))
    return lines


def _causes(report: DiffReport) -> Iterator[tuple[str, str]]:
    """The cause, its fix and its evidence; candidates where it is not decided; independent causes under `also`."""
    for number, cause in enumerate(report.causes):
        if report.same and cause.code == "noise":
            continue
        label = ("also" if cause.independent_of else "cause") if cause.claimed else "maybe"
        yield label, f"{cause.code}: {cause.summary}"
        if cause.fix:
            yield "fix", cause.fix
        if number == 0:
            yield from _listed("because", list(cause.evidence))


def _listed(label: str, texts: list[str]) -> Lines:
    return [(label if number == 0 else "", text) for number, text in enumerate(texts)]


def _only(report: DiffReport) -> Iterator[str]:
    """What one side alone has; not what the other has in another optimizer."""
    both = set(report.only_in_a) & set(report.only_in_b)
    for name, words in ((report.a, report.only_in_a), (report.b, report.only_in_b)):
        alone = [what for what in words if what not in both]
        yield from (f"in {name}: {what}" for what in alone[:5])
        if len(alone) > 5:
            yield f"in {name}: {len(alone) - 5:,} more"


def _provenance(report: DiffReport) -> Iterator[str]:
    """What differs in how the sides came to be; packages that one of them merely imported stand together, last."""
    beside = [d for d in report.provenance if _merely_imported(d)]
    telling = [d for d in report.provenance if not _merely_imported(d)]
    for d in telling[:8]:
        yield _difference(d.key, d.a, d.b)
    if len(telling) > 8:
        yield f"{len(telling) - 8} more, see --details"
    for name, own in ((report.a, [d for d in beside if d.b is None]), (report.b, [d for d in beside if d.a is None])):
        packages = [d.key.partition(".")[2] for d in own]
        if packages:
            more = f" and {len(packages) - 5} more" if len(packages) > 5 else ""
            yield f"imported by {name} alone: {', '.join(packages[:5])}{more}"


def _merely_imported(difference: Difference) -> bool:
    """Whether a package is imported on one side only and none of those that compute parts of a training."""
    kind, _, name = difference.key.partition(".")
    here = difference.a is None or difference.b is None
    return kind == "distributions" and here and not _COMPUTING.match(name.lower().replace("_", "-"))


def _difference(key: str, a: Any, b: Any) -> str:
    return f"{key}: {_short(a)} -> {_short(b)}"


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    if _DIGEST.fullmatch(text):
        return text[:12]
    return text if len(text) <= 40 else text[:37] + "..."


def _first(report: DiffReport, first: Divergence) -> str:
    where = f"step {first.step}"
    if first.step_b != first.step:
        where += f" ({first.step_b} of {report.b})"
    if first.optimizer is not None:
        classes = dict(report.extent.optimizers)
        where += f", optimizer {first.optimizer}"
        if first.optimizer in classes:
            where += f" ({classes[first.optimizer]})"
    if first.group is not None:
        where += f", group {first.group}"
    if first.kind == "hyper":
        return f"{where}, {first.quantity.partition('.')[2]}; differs at {count_words(first.count, 'step')}"
    if first.quantity in ("step", "optimizer"):
        return where
    hyper = first.kind == "replica" and first.quantity.startswith("hyper.")
    where += f", {first.quantity.partition('.')[2] if hyper else first.quantity}"
    where += f" of {first.param}" if first.param and not hyper else ""
    if first.kind == "replica":
        side, odd = (report.b, first.b) if first.b != "agree" else (report.a, first.a)
        where += f": {str(odd).removeprefix('apart: ')} in {side}"
        return where + (f"; the same at {first.count - 1} other params" if first.count > 1 else "")
    if first.index is not None and first.a is not None:
        element = f"[{', '.join(str(i) for i in first.index)}]" if first.index else ""
        a, b = value_words(first.a, first.dtype), value_words(first.b, first.dtype)
        where += f"{element}: {a} in {report.a}, {b} in {report.b}"
    if first.kind == "value":
        where += f" ({_size(first)})"
        if first.count > 1:
            where += f"; the same at {first.count - 1} other params"
    return where


def _size(first: Divergence) -> str:
    """How large an error is, in words: as a multiple of what rounding may do."""
    if first.eps is None or first.granted is None:
        return "bits differ"
    seen = {"statistics": ", seen in its statistics", "samples": ", of the sampled elements"}.get(first.evidence, "")
    if first.eps == float("inf"):
        return "not a matter of rounding" + seen
    ratio = first.eps / first.granted if first.granted else float("inf")
    if ratio <= 1:
        return f"bits differ; {_figure(ratio)} of what rounding may do{seen}"
    return f"{_figure(ratio)} times what rounding may do{seen}"


def _figure(ratio: float) -> str:
    if ratio >= 1000:
        return f"{ratio:,.0f}" if ratio < 1e9 else f"{ratio:.0e}".replace("e+", "e")
    return f"{ratio:.2g}"


def _noise(report: DiffReport) -> str:
    exact = report.exact
    since = f", since step {exact.first.step}" if exact.first else ""
    words = f"{exact.n_different:,} of {count_words(report.extent.rows, 'row')} differ by rounding{since}"
    return words + "; every step is within tolerance of its inputs"
