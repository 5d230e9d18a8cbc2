"""The cases of L-BFGS: functions, options and start values that part the mistakes people make in it (see `closures`).

Every case ends before it has converged: there the differences of gradients cancel, and no tolerance would be left that
tells anything apart. The odd lengths and options were searched for by machine, to reject each mistake of
`tests/mutation/lbfgs_mutants.py` that the plainer cases let pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from optrace.goldens.format import Golden, Row
from optrace.goldens.grid import numbers
from optrace.reference.rule import RULES


@dataclass(frozen=True)
class ClosureCase:
    """One case: the function, the options that are not torch's defaults, and what happens on the way."""

    name: str
    loss: str
    options: Mapping[str, Any]
    purpose: str
    steps: int = 6
    edits: Mapping[int, float] = field(default_factory=dict)
    """Step -> lr written before it."""
    resume: int | None = None
    start: float = 1.0
    """Times the usual start values."""
    scale: float = 1.0
    """Times the usual A and y."""


WOLFE = {"line_search_fn": "strong_wolfe"}
CASES = (
    ClosureCase("plain", "least-squares", {"max_iter": 4}, "lr 1, four iterations a step", 2),
    ClosureCase("lr", "least-squares", {"lr": 0.5, "max_iter": 3}, "half steps"),
    ClosureCase("one-iteration", "least-squares", {"lr": 0.7, "max_iter": 1}, "memory goes on from step to step", 10),
    ClosureCase("history", "least-squares", {"max_iter": 5, "history_size": 2}, "a memory of two", 2),
    ClosureCase("max-eval", "least-squares", {"max_iter": 9, "max_eval": 3}, "evaluations run out first", 4),
    ClosureCase(
        "tolerance-grad", "least-squares", {"max_iter": 20, "tolerance_grad": 0.6}, "stops at a small gradient", 3
    ),
    ClosureCase(
        "tolerance-change", "least-squares", {"lr": 0.3, "max_iter": 20, "tolerance_change": 0.02}, "small changes", 3
    ),
    ClosureCase(
        "small-moves",
        "wells",
        {"lr": 0.01, "max_iter": 1, "tolerance_change": 0.1},
        "every move is below tolerance_change",
        3,
        start=2.0,
    ),
    ClosureCase(
        "negative-curvature", "wells", {"lr": 0.05, "max_iter": 2}, "pairs that must not be remembered", 4, start=3.0
    ),
    ClosureCase(
        "lr-change", "least-squares", {"lr": 0.5, "max_iter": 2}, "lr is written between", edits={3: 0.2, 5: 1}
    ),
    ClosureCase("resume", "least-squares", {"lr": 0.7, "max_iter": 2}, "saved after step 3 and loaded", resume=3),
    ClosureCase("strong-wolfe", "rosenbrock", {**WOLFE, "max_iter": 3}, "with a line search"),
    ClosureCase(
        "strong-wolfe-quadratic",
        "least-squares",
        {**WOLFE, "lr": 0.1, "max_iter": 3, "history_size": 3},
        "with a line search that must lengthen its steps",
        2,
    ),
    ClosureCase(
        "first-length",
        "least-squares",
        {**WOLFE, "lr": 0.11, "max_iter": 1, "max_eval": 25},
        "the sum of the gradient's sizes is below 1",
        2,
        start=0.25,
        scale=0.5,
    ),
    ClosureCase(
        "memory-of-one",
        "wells",
        {**WOLFE, "lr": 1.5, "max_iter": 6, "history_size": 1},
        "lines with many minima; evaluations run out within a search",
        2,
    ),
    ClosureCase(
        "far-start",
        "rosenbrock",
        {**WOLFE, "max_iter": 6, "max_eval": 25, "history_size": 3},
        "steep at first; lengths near an end of the interval",
        2,
        start=3.0,
    ),
    ClosureCase(
        "search-change",
        "wells",
        {**WOLFE, "lr": 0.7, "max_iter": 4, "max_eval": 25, "tolerance_change": 0.1},
        "stops at a small change after a line search",
        2,
    ),
    ClosureCase(
        "too-long",
        "wells",
        {**WOLFE, "lr": 20, "max_iter": 3, "max_eval": 40},
        "a first length that is far too long, over many minima",
        2,
        start=3.0,
    ),
    ClosureCase(
        "shrinks-often",
        "rosenbrock",
        {**WOLFE, "lr": 180, "max_iter": 1, "max_eval": 15},
        "more than four lengths in one search",
        2,
        start=3.0,
    ),
    ClosureCase(
        "stalls",
        "wells",
        {**WOLFE, "lr": 180, "max_iter": 3, "max_eval": 15},
        "shrinks slowly, then not, then slowly again",
        3,
    ),
    ClosureCase(
        "rises-while-growing",
        "wells",
        {**WOLFE, "lr": 0.2, "max_iter": 1, "max_eval": 25},
        "the second length is worse than the first, and good enough",
        2,
        start=6.0,
        scale=0.5,
    ),
    ClosureCase(
        "hardly-decreased",
        "rosenbrock",
        {**WOLFE, "lr": 1.17952, "max_iter": 1, "max_eval": 25},
        "the first length decreases the loss by less than c1 asks",
        2,
        start=0.25,
    ),
    ClosureCase(
        "just-decreased",
        "rosenbrock",
        {**WOLFE, "lr": 1.17888, "max_iter": 1, "max_eval": 25},
        "the first length decreases the loss by a little more than c1 asks",
        2,
        start=0.25,
    ),
)
SHAPES = {"w": (2, 2), "b": (2,)}


def closure_inputs(case: ClosureCase, dtype: str) -> Golden:
    """A golden that holds the inputs of a case only."""
    kind = np.dtype(dtype)
    rows = [
        Row(0, 0, p, "param", (numbers("start", p, 0, shape) * case.start).astype(kind)) for p, shape in SHAPES.items()
    ]
    if case.loss != "rosenbrock":
        matrix = (numbers("lbfgs", "A", 0, (8, 6)) + 1.5 * np.eye(8, 6)) * case.scale
        rows.append(Row(0, 0, "A", "input", matrix.astype(kind)))
        rows.append(Row(0, 0, "y", "input", (numbers("lbfgs", "y", 0, (8,)) * case.scale).astype(kind)))
    rows += [Row(step, 0, "lr", "hyper", np.array(lr, np.float64)) for step, lr in case.edits.items()]
    notes = {"purpose": case.purpose, "loss": case.loss, "steps": str(case.steps)}
    if case.resume is not None:
        notes["resume"] = str(case.resume)
    hyper = ({**RULES["lbfgs"].defaults, **case.options},)
    return Golden("lbfgs", case.name, dtype, hyper, 0.0, 0.0, tuple(rows), notes)
