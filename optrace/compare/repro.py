"""`optrace.repro`: the one step at which two runs part, as a script that anybody can run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optrace.compare.report import Divergence
from optrace.compare.run import diff
from optrace.compare.source import Source, TraceLike, open_source
from optrace.errors import CompareError
from optrace.replayer.options import options_by_step
from optrace.trace.reader import Trace

Floats = NDArray[np.float64]

ELEMENTS = 4
"""Elements that a script shows."""
_TORCH = (
    "SGD Adam AdamW Adamax NAdam RAdam RMSprop Adagrad Adadelta ASGD Rprop"  # the elementwise optimizers of torch
).split()
_SCALARS = ("step", "mu_product", "eta", "mu")
_LEFT_OUT = ("foreach", "fused", "capturable", "differentiable", "initial_lr")
_DEFAULTS_ONLY = {"AdamW": ("decoupled_weight_decay",)}
"""Options in a group that the class sets itself and does not take."""
_WIDTH = 100


def repro(a: str | Path | TraceLike, b: str | Path | TraceLike) -> str:
    """A Python script that shows the first divergence of two runs and needs neither of them.

    Where the optimizer of `a` is one of torch's elementwise ones, the script gives the inputs of the step (a few
    elements of the parameter, its gradient and state, the options) to it and asserts that what `b` recorded comes out.
    Else it holds what the two recorded and asserts that they are equal. Either way the assertion fails when run: that
    is the point.

    Raises:
        TraceError, CompareError: as `optrace.diff`; CompareError too when the runs are the same, or when what differs
            first is no number of a parameter or hyper-parameter.
    """
    report = diff(a, b)
    first = report.first
    if first is None:
        raise CompareError(f"{report.a} and {report.b} are the same; there is nothing to reproduce")
    if first.param is None and first.kind != "hyper":
        raise CompareError(
            f"the runs part in {first.quantity} at step {first.step}, which is no number to compute; see optrace diff"
        )
    sides = _Step.of(open_source(a), first.step, first), _Step.of(open_source(b), first.step_b, first)
    if first.kind == "hyper":
        body = _hyper_body(sides, first)
    elif sides[0].computes(first.quantity):
        body = _rule_body(sides, first)
    else:
        body = _values_body(sides, first)
    where = f"{first.quantity.removeprefix('hyper.')} of {first.param or f'group {first.group}'}"
    head = (
        f'"""{report.b} leaves {report.a} at step {first.step}: {where}. Made by optrace repro from two records."""\n'
    )
    return head + "\n" + body


@dataclass(frozen=True)
class _Step:
    """One side's record of the step: elements of the parameter that differs."""

    class_name: str
    param: str
    dtype: str
    before: Floats | None
    grad: Floats | None
    state: Mapping[str, Floats]
    after: Mapping[str, Floats]
    """By quantity, after the step."""
    options: Mapping[str, Any]

    @classmethod
    def of(cls, source: Source, step: int, first: Divergence) -> _Step:
        trace = source.trace
        if not isinstance(trace, Trace):
            raise CompareError(f"{source.spec} is no recorded run; a script is made of two runs")
        optimizer = first.optimizer if first.optimizer in source.optimizers else source.optimizers[0]
        options = options_by_step(trace, int(optimizer or 0), step, step).get(step, {}).get(int(first.group or 0), {})
        name = first.param or _some_param(trace, int(optimizer or 0), int(first.group or 0))
        frame = trace.table("tensors", step=(0, step), optimizer=optimizer, param=name)
        now = frame[frame["step"] == step].set_index("quantity")
        earlier = frame[frame["step"] < step]
        before = {q: rows.iloc[-1] for q, rows in earlier.groupby("quantity", sort=False)}
        state = {}
        for quantity, row in before.items():
            if str(quantity).startswith("state."):
                state[str(quantity).removeprefix("state.")] = np.array(row["sample"])
        for quantity, row in now.iterrows():
            if str(quantity).startswith("state_in."):
                state[str(quantity).removeprefix("state_in.")] = np.array(row["sample"])
        start = np.array(before["param"]["sample"]) if "param" in before else None
        if "param_in" in now.index:
            start = np.array(now.loc["param_in", "sample"])
        grad = None
        if "grad" in now.index and bool(now.loc["grad", "present"]):
            grad = np.array(now.loc["grad", "sample"])
        after = {str(q): np.array(row["sample"]) for q, row in now.iterrows()}
        params = trace.params
        own = params[(params["optimizer"] == optimizer) & (params["param"] == name)]
        dtype = str(own["dtype"].iloc[0]) if len(own) else "float32"
        return cls(dict(trace.optimizers).get(int(optimizer or 0), ""), name, dtype, start, grad, state, after, options)

    def computes(self, quantity: str) -> bool:
        """Whether the step of this side can be run again in torch, for a quantity that it computes."""
        made = quantity in ("update", "param") or quantity.startswith("state.")
        inputs = self.before is not None and self.grad is not None
        return made and inputs and self.class_name in _TORCH and not self.dtype.startswith("complex")


def _some_param(trace: Trace, optimizer: int, group: int) -> str:
    params = trace.params
    own = params[(params["optimizer"] == optimizer) & (params["group"] == group)]
    if not len(own):
        raise CompareError(f"group {group} holds no recorded parameter")
    return str(own["param"].iloc[0])


def _chosen(a: Floats, b: Floats) -> list[int]:
    """Slots of the sample that the script shows: those that differ most, in their order."""
    there = ~(np.isnan(a) & np.isnan(b))
    apart = np.where(there, np.nan_to_num(np.abs(a - b), nan=np.inf, posinf=np.inf), -1.0)
    best = np.argsort(-apart, kind="stable")[:ELEMENTS]
    return sorted(int(i) for i in best if there[i])


def _rule_body(sides: tuple[_Step, _Step], first: Divergence) -> str:
    a, b = sides
    quantity = "param" if first.quantity == "update" else first.quantity
    slots = _chosen(a.after.get(quantity, a.after["param"]), b.after.get(quantity, b.after["param"]))
    lines = _setup(a, slots, "optimizer", a.options)
    target = "p.detach()" if quantity == "param" else f"optimizer.state[p][{quantity.removeprefix('state.')!r}]"
    recorded = b.after.get(quantity, b.after["param"])
    picked = recorded[:1] if quantity.removeprefix("state.") in _SCALARS else recorded[slots]
    lines += [
        f"# what {b.class_name} made of the same inputs in the other run",
        f"other = {_tensor(picked, _dtype(a.dtype))}",
        f"got = {target}.reshape(-1)",
        f'print("torch.optim.{a.class_name}:", got.tolist())',
        f'print("{b.class_name}, recorded:", other.tolist())',
        "assert torch.equal(got, other.to(got.dtype)), (got - other).tolist()",
    ]
    return "\n".join(["import torch", "", *lines]) + "\n"


def _hyper_body(sides: tuple[_Step, _Step], first: Divergence) -> str:
    a, b = sides
    key = first.quantity.removeprefix("hyper.")
    if not a.computes("param"):
        return f"a = {a.options.get(key)!r}\nb = {b.options.get(key)!r}\nassert a == b, (a, b)\n"
    slots = _chosen(a.after["param"], a.after["param"])
    made = []
    for name, options in (("a", a.options), ("b", _like(b.options, a.options))):
        made += [*_setup(a, slots, "optimizer", options), f"{name} = p.detach()", ""]
    made += [
        f'print("{key}:", {a.options.get(key)!r}, "against", {b.options.get(key)!r})',
        "assert torch.equal(a, b), (a, b)",
    ]
    return "\n".join(["import torch", "", *made]) + "\n"


def _like(options: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    return {key: options.get(key, value) for key, value in known.items()}


def _values_body(sides: tuple[_Step, _Step], first: Divergence) -> str:
    a, b = (side.after.get(first.quantity) for side in sides)
    if a is None or b is None:
        raise CompareError(
            f"{first.quantity} of {first.param} at step {first.step} is recorded on one side only; nothing to assert"
        )
    slots = _chosen(a, b)
    return (
        "import numpy as np\n\n"
        f"# {first.quantity} of {first.param} at step {first.step}, as the two runs recorded it\n"
        f"a = np.array({_list(a[slots])})\nb = np.array({_list(b[slots])})\n"
        "np.testing.assert_array_equal(b, a)\n"
    )


def _setup(side: _Step, slots: Sequence[int], name: str, options: Mapping[str, Any]) -> list[str]:
    """Lines that make the parameter, its gradient, the optimizer and its state, and step."""
    assert side.before is not None and side.grad is not None
    dtype = _dtype(side.dtype)
    arguments = ", ".join(
        f"{key}={value!r}"
        for key, value in options.items()
        if key not in (*_LEFT_OUT, *_DEFAULTS_ONLY.get(side.class_name, ())) and value is not None
    )
    lines = [
        f"p = {_tensor(side.before[slots], dtype)}.requires_grad_()",
        f"p.grad = {_tensor(side.grad[slots], dtype)}",
        *_wrapped(f"{name} = torch.optim.{side.class_name}([p], ", arguments, ")"),
    ]
    state = {}
    for key, values in side.state.items():
        scalar = key in _SCALARS
        state[key] = f"torch.tensor({float(values[0])!r})" if scalar else _tensor(values[slots], dtype)
    if state:
        lines.append(f"{name}.state[p] = {{")
        lines += [f"    {key!r}: {text}," for key, text in state.items()]
        lines.append("}")
    lines.append(f"{name}.step()")
    return lines


def _wrapped(start: str, arguments: str, end: str) -> list[str]:
    if len(start + arguments + end) <= _WIDTH:
        return [start + arguments + end]
    return [start.rstrip(), *(f"    {part}," for part in _split(arguments)), end]


def _split(arguments: str) -> list[str]:
    """Arguments apart, commas within parentheses kept."""
    parts, depth, part = [], 0, ""
    for letter in arguments:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            parts.append(part.strip())
            part = ""
        else:
            part += letter
    return [*parts, part.strip()] if part.strip() else parts


def _dtype(name: str) -> str:
    return f"torch.{name}"


def _tensor(values: Floats, dtype: str) -> str:
    return f"torch.tensor({_list(values)}, dtype={dtype})"


def _list(values: Floats) -> str:
    words = [repr(float(value)) for value in values]
    text = ", ".join(f'float("{word}")' if word in ("nan", "inf", "-inf") else word for word in words)
    return f"[{text}]"
