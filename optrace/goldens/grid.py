"""The cases of every optimizer rule: which options, groups, shapes, gradients and edits a golden holds, and why.

Inputs are decimals of few digits, made by a fixed integer recurrence, so that they are the same in every dtype after
rounding and short to write. A golden stores them; nobody who reads one needs this file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optrace.goldens.grid_options import EDITS, OPTIONS, RICH, SECOND_GROUP

Array = NDArray[Any]
Shape = tuple[int, ...]

SCALES = ((1, 0), (3, -1), (1, -2), (1, 1), (1, -3), (1, -4), (1, -6), (2, -1), (1, 0), (1, -5), (3, 0), (1, -1))
"""Size of the gradients of step 1, 2, ... as (digit, power of ten): ordinary, a spike, then small ones, which part
eps placements and amsgrad."""

STEPS = len(SCALES)
FLOAT64_ONLY = ("groups", "resume")
"""Cases that float32 has as `groups-resume` alone."""


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
    strided: str | None = None
    """A parameter that is held in memory column by column."""
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
    digit, power = SCALES[(step - 1) % len(SCALES)]
    ten_thousandths = np.rint(numbers("grad", param, step, shape) * 10000).reshape(-1)
    grad = np.array([float(f"{int(n) * digit}e{power - 4}") for n in ten_thousandths]).reshape(shape)
    if case.sparse:
        absent = [row for row in range(shape[0]) if row not in sparse_rows(case, param, step)]
        grad[absent] = 0.0
    return grad


def sparse_rows(case: Case, param: str, step: int) -> tuple[int, ...]:
    """The rows that a sparse gradient holds at a step: never all, sometimes none that the last one held."""
    rows = case.params[param][1][0]
    return tuple(row for row in range(rows) if (row * 7 + step * 3) % 5 < 2)


ONE: dict[str, tuple[int, Shape]] = {"w": (0, (2, 3)), "b": (0, (5,))}
TWO: dict[str, tuple[int, Shape]] = {
    "first.w": (0, (2, 3)),
    "first.b": (0, (4,)),
    "second.w": (1, (4,)),
    "second.b": (1, (4,)),
}
SHAPES: dict[str, tuple[int, Shape]] = {
    "scalar": (0, ()),
    "one": (0, (1,)),
    "seven": (0, (7,)),
    "sixteen": (0, (16,)),
    "thirtythree": (0, (33,)),
    "matrix": (0, (3, 4)),
    "long": (0, (67,)),
    "strided": (0, (3, 5)),
}
MATRICES: dict[str, tuple[int, Shape]] = {"w": (0, (3, 4)), "tall": (0, (6, 2)), "row": (0, (1, 5))}
TWO_MATRICES: dict[str, tuple[int, Shape]] = {name: (group, (4, 3)) for name, (group, _) in TWO.items()}
MATRIX_SHAPES: dict[str, tuple[int, Shape]] = {
    "one": (0, (1, 1)),
    "row": (0, (1, 7)),
    "column": (0, (9, 1)),
    "square": (0, (8, 8)),
    "strided": (0, (6, 5)),
}
ABSENT = frozenset(
    {(6, "first.w"), (9, "second.w"), (1, "second.b"), (2, "second.b")} | {(s, "first.b") for s in range(1, 9)}
)
ZERO = frozenset({(8, "second.b"), (10, "second.w"), (11, "first.b")})
LATE = frozenset({(1, "w"), (2, "w"), (6, "w"), (7, "w")})


def _rich(rule: str) -> dict[str, Any]:
    return RICH.get(rule, {"lr": OPTIONS[rule]["plain"].get("lr", 0.5), "weight_decay": 0.05})


def cases(rule: str) -> Iterator[Case]:
    """All cases of an optimizer rule, simple ones first."""
    sparse, matrices = rule == "sparseadam", rule in ("muon", "sparseadam")
    one, two, shapes = (MATRICES, TWO_MATRICES, MATRIX_SHAPES) if matrices else (ONE, TWO, SHAPES)
    rich, second = _rich(rule), SECOND_GROUP[rule]
    first_lr, second_lr = rich.get("lr", 0.01), second["lr"]
    simple = {option: value for option, value in rich.items() if option != "weight_decay"}
    plain = Case(rule, "", (simple,), one, "", sparse=sparse)
    for name, options in OPTIONS[rule].items():
        yield replace(plain, name=name, groups=(options,), purpose=f"one group, every gradient there: {name}")
    yield replace(
        plain,
        name="lr-change",
        purpose="lr is lowered before step 5 and raised before 9",
        edits={5: {0: {"lr": first_lr / 8}}, 9: {0: {"lr": first_lr / 2}}},
    )
    yield replace(
        plain,
        name="option-change",
        groups=(rich,),
        purpose="other options are changed before steps 4 and 9",
        edits={step: {0: options} for step, options in EDITS[rule].items()},
    )
    yield replace(plain, name="resume", purpose="saved after step 6 and loaded into a new optimizer", resume=6)
    yield replace(
        plain,
        name="shapes",
        params=shapes,
        purpose="0-d to long tensors, across vector widths",
        strided="strided",
        steps=6,
    )
    yield replace(
        plain,
        name="none-grad",
        purpose="w has no gradient at first and again later, b one of zeros",
        absent=LATE,
        zero=frozenset() if matrices else frozenset({(1, "b"), (8, "b"), (9, "w")}),
    )
    groups = replace(
        plain,
        name="groups",
        groups=(rich, second),
        params=two,
        purpose="two groups with options of their own; None and zero gradients; lr edits",
        absent=ABSENT,
        zero=frozenset() if matrices else ZERO,
        edits={4: {1: {"lr": second_lr * 3}}, 10: {0: {"lr": first_lr / 4}}},
    )
    yield groups
    yield replace(groups, name="groups-resume", purpose=f"{groups.purpose}; saved and loaded after step 8", resume=8)
