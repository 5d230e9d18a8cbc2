"""The cases of every optimizer rule: which options, groups, shapes, gradients and edits a golden holds, and why.

Inputs are decimals of few digits, made by a fixed integer recurrence, so that they are the same in every dtype after
rounding and short to write. A golden stores them; nobody who reads one needs this file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Shape = tuple[int, ...]

SCALES = (1.0, 0.3, 0.01, 10.0, 1e-3, 1e-4, 1e-6, 0.2, 1.0, 1e-5, 3.0, 0.1, 1e-3, 0.5)
"""Size of the gradients of step 1, 2, ...: ordinary, a spike, then small ones (they part eps placements, amsgrad)."""

STEPS = len(SCALES)


@dataclass(frozen=True)
class Case:
    """What is trained in one golden, apart from its numbers."""

    rule: str
    name: str
    groups: tuple[Mapping[str, Any], ...]
    """Options of each group that are not torch's defaults."""
    params: Mapping[str, tuple[int, Shape]]
    """Group and shape of each parameter, in order."""
    purpose: str
    absent: frozenset[tuple[int, str]] = frozenset()
    """(step, param) whose gradient is None."""
    zero: frozenset[tuple[int, str]] = frozenset()
    """(step, param) whose gradient is all zeros."""
    edits: Mapping[int, Mapping[int, Mapping[str, Any]]] = field(default_factory=dict)
    """Options written into a group before a step: step -> group -> option -> value."""
    resume: int | None = None
    """After this step, state is saved and loaded into a new optimizer over copies of the parameters."""
    sparse: bool = False
    """Gradients hold some rows only."""
    steps: int = STEPS


def numbers(case: str, param: str, step: int, shape: Shape) -> Array:
    """Decimals in (-1, 1) with four digits, never 0, that depend on all four arguments; float64."""
    state = 2166136261
    for byte in f"{case}/{param}/{step}".encode():
        state = (state ^ byte) * 16777619 % 2**32
    values = np.empty(int(np.prod(shape, dtype=int)))
    for i in range(values.size):
        state = (state * 1664525 + 1013904223) % 2**32
        magnitude = (state >> 12) % 9999 + 1
        values[i] = (magnitude if state & 2**31 else -magnitude) / 10000
    return values.reshape(shape)


def start_values(case: Case) -> dict[str, Array]:
    """The parameters before step 1, float64."""
    return {param: numbers("start", param, 0, shape) for param, (_, shape) in case.params.items()}


def gradient(case: Case, param: str, step: int) -> Array | None:
    """The gradient that step `step` (from 1) gives a parameter, float64; None where it has none."""
    if (step, param) in case.absent:
        return None
    _, shape = case.params[param]
    if (step, param) in case.zero:
        return np.zeros(shape)
    scale = SCALES[(step - 1) % len(SCALES)]
    values = numbers("grad", param, step, shape)
    return np.array([float(f"{v:.4f}e{_exponent(scale)}") * _mantissa(scale) for v in values.reshape(-1)]).reshape(
        shape
    )


def _exponent(scale: float) -> int:
    return int(np.floor(np.log10(scale)))


def _mantissa(scale: float) -> float:
    return round(scale / 10 ** _exponent(scale))


def sparse_rows(case: Case, param: str, step: int) -> tuple[int, ...]:
    """The rows that a sparse gradient holds at a step: never all, sometimes none that the last one held."""
    rows = case.params[param][1][0]
    return tuple(row for row in range(rows) if (row * 7 + step * 3) % 5 < 2)


ONE: dict[str, tuple[int, Shape]] = {"w": (0, (3, 4)), "b": (0, (7,))}
TWO: dict[str, tuple[int, Shape]] = {"first.w": (0, (3, 4)), "first.b": (0, (4,)), "second.w": (1, (5,))}
SHAPES: dict[str, tuple[int, Shape]] = {
    "scalar": (0, ()),
    "one": (0, (1,)),
    "seven": (0, (7,)),
    "sixteen": (0, (16,)),
    "thirtythree": (0, (33,)),
    "matrix": (0, (3, 4)),
    "long": (0, (67,)),
}
MATRICES: dict[str, tuple[int, Shape]] = {"w": (0, (3, 4)), "tall": (0, (6, 2)), "row": (0, (1, 5))}
ABSENT = frozenset({(1, "first.b"), (2, "first.b"), (6, "first.w"), (7, "first.w"), (9, "second.w")})
ZERO = frozenset({(8, "first.b"), (10, "second.w"), (11, "second.w")})

OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "sgd": {
        "plain": {"lr": 0.1},
        "momentum": {"lr": 0.1, "momentum": 0.9},
        "dampening": {"lr": 0.1, "momentum": 0.9, "dampening": 0.5},
        "nesterov": {"lr": 0.1, "momentum": 0.9, "nesterov": True},
        "weight-decay": {"lr": 0.1, "weight_decay": 0.05},
        "momentum-decay": {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.05},
        "dampening-decay": {"lr": 0.1, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.05},
        "nesterov-decay": {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.05, "nesterov": True},
        "maximize": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05, "maximize": True},
    },
    "adam": {
        "plain": {"lr": 0.01},
        "betas": {"lr": 0.01, "betas": (0.7, 0.95)},
        "eps": {"lr": 0.01, "eps": 1e-2},
        "weight-decay": {"lr": 0.01, "weight_decay": 0.1},
        "amsgrad": {"lr": 0.01, "betas": (0.8, 0.9), "amsgrad": True},
        "amsgrad-decay-eps": {"lr": 0.01, "betas": (0.8, 0.9), "amsgrad": True, "weight_decay": 0.1, "eps": 1e-3},
        "decoupled": {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True},
        "maximize": {"lr": 0.01, "weight_decay": 0.1, "maximize": True},
    },
    "adamw": {
        "plain": {"lr": 0.01},
        "no-decay": {"lr": 0.01, "weight_decay": 0.0},
        "weight-decay": {"lr": 0.01, "weight_decay": 0.5},
        "betas": {"lr": 0.01, "betas": (0.7, 0.95)},
        "eps": {"lr": 0.01, "eps": 1e-2, "weight_decay": 0.1},
        "amsgrad": {"lr": 0.01, "betas": (0.8, 0.9), "amsgrad": True, "weight_decay": 0.1},
        "maximize": {"lr": 0.01, "weight_decay": 0.5, "maximize": True},
    },
    "adamax": {
        "plain": {"lr": 0.01},
        "betas": {"lr": 0.01, "betas": (0.7, 0.9)},
        "eps": {"lr": 0.01, "eps": 1e-2, "betas": (0.9, 0.9)},
        "weight-decay": {"lr": 0.01, "weight_decay": 0.1},
        "maximize": {"lr": 0.01, "weight_decay": 0.1, "maximize": True},
    },
    "nadam": {
        "plain": {"lr": 0.01},
        "betas": {"lr": 0.01, "betas": (0.7, 0.95)},
        "eps": {"lr": 0.01, "eps": 1e-2},
        "momentum-decay": {"lr": 0.01, "momentum_decay": 0.1},
        "weight-decay": {"lr": 0.01, "weight_decay": 0.1},
        "decoupled": {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True},
        "maximize": {"lr": 0.01, "weight_decay": 0.1, "maximize": True},
    },
    "radam": {
        "plain": {"lr": 0.01},
        "betas": {"lr": 0.01, "betas": (0.7, 0.95)},
        "eps": {"lr": 0.01, "eps": 1e-2},
        "weight-decay": {"lr": 0.01, "weight_decay": 0.1},
        "decoupled": {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True},
        "maximize": {"lr": 0.01, "weight_decay": 0.1, "maximize": True},
    },
    "rmsprop": {
        "plain": {"lr": 0.01},
        "alpha": {"lr": 0.01, "alpha": 0.8},
        "eps": {"lr": 0.01, "eps": 1e-2},
        "momentum": {"lr": 0.01, "momentum": 0.9},
        "centered": {"lr": 0.01, "centered": True, "alpha": 0.9, "eps": 1e-3},
        "centered-momentum-decay": {
            "lr": 0.01,
            "centered": True,
            "alpha": 0.9,
            "eps": 1e-3,
            "momentum": 0.8,
            "weight_decay": 0.1,
        },
        "weight-decay": {"lr": 0.01, "weight_decay": 0.1},
        "maximize": {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1, "maximize": True},
    },
    "adagrad": {
        "plain": {"lr": 0.1},
        "lr-decay": {"lr": 0.1, "lr_decay": 0.1},
        "accumulator": {"lr": 0.1, "initial_accumulator_value": 0.5},
        "eps": {"lr": 0.1, "eps": 1e-2},
        "weight-decay": {"lr": 0.1, "weight_decay": 0.1},
        "maximize": {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.1, "maximize": True},
    },
    "adadelta": {
        "plain": {},
        "lr": {"lr": 0.3},
        "rho": {"lr": 0.5, "rho": 0.6},
        "eps": {"lr": 0.5, "eps": 1e-2},
        "weight-decay": {"lr": 0.5, "weight_decay": 0.1},
        "maximize": {"lr": 0.5, "weight_decay": 0.1, "maximize": True},
    },
    "asgd": {
        "plain": {"lr": 0.05},
        "lambd": {"lr": 0.05, "lambd": 0.1},
        "alpha": {"lr": 0.05, "lambd": 0.1, "alpha": 0.5},
        "averaging": {"lr": 0.05, "lambd": 0.1, "t0": 4},
        "weight-decay": {"lr": 0.05, "weight_decay": 0.1, "t0": 4},
        "maximize": {"lr": 0.05, "weight_decay": 0.1, "t0": 4, "maximize": True},
    },
    "rprop": {
        "plain": {"lr": 0.01},
        "etas": {"lr": 0.01, "etas": (0.3, 1.5)},
        "step-sizes": {"lr": 0.01, "step_sizes": (0.008, 0.015)},
        "maximize": {"lr": 0.01, "maximize": True},
    },
    "sparseadam": {
        "plain": {"lr": 0.01},
        "betas": {"lr": 0.01, "betas": (0.7, 0.95)},
        "eps": {"lr": 0.01, "eps": 1e-2},
        "maximize": {"lr": 0.01, "maximize": True},
    },
    "adafactor": {
        "plain": {},
        "beta2-decay": {"lr": 0.05, "beta2_decay": -0.5},
        "eps": {"lr": 0.05, "eps": (1e-4, 1e-2)},
        "clipping": {"lr": 0.05, "d": 0.3},
        "weight-decay": {"lr": 0.05, "weight_decay": 0.1},
        "maximize": {"lr": 0.05, "weight_decay": 0.1, "maximize": True},
    },
    "muon": {
        "plain": {"lr": 0.02},
        "no-nesterov": {"lr": 0.02, "nesterov": False, "weight_decay": 0.0},
        "momentum": {"lr": 0.02, "momentum": 0.5, "weight_decay": 0.5},
        "match-rms-adamw": {"lr": 0.02, "adjust_lr_fn": "match_rms_adamw"},
        "ns-steps": {"lr": 0.02, "ns_steps": 3},
    },
}
"""rule -> case -> options that are not torch's defaults; the least that parts the mistakes people make."""

SECOND_GROUP: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.02, "momentum": 0.5, "weight_decay": 0.1, "nesterov": True},
    "adam": {"lr": 0.002, "betas": (0.8, 0.99), "weight_decay": 0.1},
    "adamw": {"lr": 0.002, "betas": (0.8, 0.99), "weight_decay": 0.3},
    "adamax": {"lr": 0.002, "betas": (0.8, 0.99), "weight_decay": 0.1},
    "nadam": {"lr": 0.002, "betas": (0.8, 0.99), "weight_decay": 0.1},
    "radam": {"lr": 0.002, "betas": (0.8, 0.9), "weight_decay": 0.1},
    "rmsprop": {"lr": 0.002, "alpha": 0.9, "momentum": 0.5},
    "adagrad": {"lr": 0.02, "lr_decay": 0.05, "weight_decay": 0.1},
    "adadelta": {"lr": 0.2, "rho": 0.8, "weight_decay": 0.1},
    "asgd": {"lr": 0.01, "lambd": 0.05, "weight_decay": 0.1},
    "rprop": {"lr": 0.003, "etas": (0.4, 1.3)},
    "sparseadam": {"lr": 0.002, "betas": (0.8, 0.99)},
    "adafactor": {"lr": 0.02, "beta2_decay": -0.6, "weight_decay": 0.1},
    "muon": {"lr": 0.005, "momentum": 0.8, "weight_decay": 0.3},
}
RICH: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.02},
    "rmsprop": {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.05},
    "adamw": {"lr": 0.01, "weight_decay": 0.2},
    "asgd": {"lr": 0.05, "lambd": 0.1, "t0": 4},
    "rprop": {"lr": 0.01},
    "sparseadam": {"lr": 0.01},
    "muon": {"lr": 0.02},
}
"""Options of the cases about shapes, groups, resume and edits, where the plain ones would hide a mistake."""


def _rich(rule: str) -> dict[str, Any]:
    return RICH.get(rule, {"lr": OPTIONS[rule]["plain"].get("lr", 0.5), "weight_decay": 0.05})


def cases(rule: str) -> Iterator[Case]:
    """All cases of an optimizer rule, simple ones first."""
    flat_only = rule not in ("muon", "sparseadam")
    one = ONE if flat_only else MATRICES
    two = TWO if flat_only else {name: (group, (3, 4 + group)) for name, (group, _) in TWO.items()}
    sparse = rule == "sparseadam"
    for name, options in OPTIONS[rule].items():
        yield Case(rule, name, (options,), one, f"one group, every gradient there: {name}", sparse=sparse)
    rich, second = _rich(rule), SECOND_GROUP[rule]
    edited = {5: {0: {"lr": rich["lr"] / 10}}, 9: {0: {"lr": rich["lr"] * 0.7}}}
    yield Case(
        rule, "lr-change", (rich,), one, "lr is lowered before step 5 and raised before 9", edits=edited, sparse=sparse
    )
    yield Case(
        rule, "resume", (rich,), one, "saved after step 6 and loaded into a new optimizer", resume=6, sparse=sparse
    )
    if flat_only:
        yield Case(rule, "shapes", (rich,), SHAPES, "0-d to long tensors, across vector widths")
        yield Case(
            rule,
            "none-grad",
            (rich,),
            {"w": (0, (3, 4)), "late": (0, (7,))},
            "a parameter without gradient at its first steps, one without later, one with zeros",
            absent=frozenset({(1, "late"), (2, "late"), (5, "w"), (9, "late")}),
            zero=frozenset({(7, "w"), (8, "late")}),
        )
        absent, zero = ABSENT, ZERO
    else:
        absent, zero = frozenset({(1, "first.b"), (6, "first.w")}), frozenset[tuple[int, str]]()
    yield Case(
        rule,
        "groups",
        (rich, second),
        two,
        "two groups with options of their own; None and zero gradients; lr edits; saved and loaded after step 8",
        absent=absent,
        zero=zero,
        edits={4: {1: {"lr": second["lr"] * 3}}, 10: {0: {"lr": rich["lr"] / 4}}},
        resume=8,
        sparse=sparse,
    )
