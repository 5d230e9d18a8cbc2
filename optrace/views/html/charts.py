"""What the charts of the page show, as plain data: the map, the norms, the hyper-parameters, losses and events."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from optrace.compare.arrow import integers, known, numbers
from optrace.compare.source import Source
from optrace.trace.reader import Trace
from optrace.views.html.pack import packed
from optrace.views.html.series import Floats, Grid, divergence, read_grid

MOST_PARAMS = 400
MOST_STEPS = 1500
MOST_NUMBERS = 400_000
"""Norms that a page holds; beyond that most parameters are drawn from every n-th step."""
FULL_PARAMS = 4
"""Parameters that are drawn from every step whatever the size: where the two part first."""
MOST_EVENTS = 2000
REGULAR = ("step", "zero_grad", "backward", "scheduler_step", "unscale")
"""Events that come at each step; they are counted, not drawn."""


@dataclass(frozen=True)
class Row:
    """One row of the map: a parameter of one optimizer; `b` and `offset` are the other side's name and step shift."""

    optimizer: int
    param: str
    optimizer_b: int | None = None
    param_b: str | None = None
    offset: int = 0


@dataclass(frozen=True)
class Table:
    """All rows of the page as dense arrays over the same steps (A's numbers)."""

    rows: tuple[Row, ...]
    labels: tuple[str, ...]
    steps: npt.NDArray[np.int64]
    grids: tuple[Grid, ...]
    """A's, and B's where there are two."""
    n_params: int
    """Of the run; more than `rows` where some were left out."""
    n_steps: int
    """Recorded by either side; more than `steps` where some were left out."""


def read_table(sources: Sequence[Source], rows: Sequence[Row], first: tuple[str, int] | None) -> Table:
    """Read the norms of both sides; `first` (parameter, step of A) is always among what is read."""
    kept = list(rows[:MOST_PARAMS])
    if first is not None:
        kept += [row for row in rows[MOST_PARAMS:] if row.param == first[0]]
    recorded = _recorded(sources, kept)
    low, high = sources[0].steps
    recorded = recorded[(recorded >= max(low or 1, 1)) & (recorded <= (high or recorded.max(initial=0)))]
    every = max(1, math.ceil(len(recorded) / MOST_STEPS))
    wanted = {*recorded[::every].tolist(), *recorded[-1:].tolist()}
    if first is not None and first[1] in recorded:
        wanted.add(first[1])
    steps = np.array(sorted(wanted), np.int64)
    several = len({row.optimizer for row in rows}) > 1
    names = [row.param for row in kept]
    labels = [
        f"{row.param} (optimizer {row.optimizer})" if several and names.count(row.param) > 1 else row.param
        for row in kept
    ]
    compare = len(sources) == 2
    grids = [_stack(_trace(source), kept, steps, side, compare) for side, source in enumerate(sources)]
    return Table(tuple(kept), tuple(labels), steps, tuple(grids), len(rows), len(recorded))


def _recorded(sources: Sequence[Source], rows: Sequence[Row]) -> npt.NDArray[np.int64]:
    """The steps that either side recorded of the optimizers of `rows`, in A's numbers, in order."""
    found = [np.empty(0, np.int64)]
    for side, source in enumerate(sources):
        for optimizer, offset in dict.fromkeys(((r.optimizer, r.optimizer_b)[side], r.offset * side) for r in rows):
            table = _trace(source).arrow("steps", optimizer=optimizer, columns=["step"])
            found.append(table.column("step").to_numpy().astype(np.int64) + offset)
    return np.unique(np.concatenate(found))


def _stack(trace: Trace, rows: Sequence[Row], steps: npt.NDArray[np.int64], side: int, compare: bool) -> Grid:
    """One side's grid of all rows, put together from its optimizers'."""
    parts: list[tuple[list[int], Grid]] = []
    keys = [(row.optimizer if side == 0 else row.optimizer_b, row.offset if side else 0) for row in rows]
    for optimizer, offset in dict.fromkeys(keys):
        at = [i for i, key in enumerate(keys) if key == (optimizer, offset)]
        names = [rows[i].param if side == 0 else str(rows[i].param_b) for i in at]
        parts.append((at, read_grid(trace, int(optimizer or 0), names, steps - offset, compare=compare)))
    shape = (len(rows), len(steps))
    quantities = list(dict.fromkeys(q for _, grid in parts for q in grid.l2))
    merged = Grid(
        tuple(row.param for row in rows),
        steps,
        {q: np.full(shape, np.nan) for q in quantities},
        np.full(shape, np.nan),
        np.zeros(shape),
        np.zeros(shape, np.bool_),
        np.zeros(len(rows), np.int64),
        {q: np.zeros(shape, np.int64) for _, grid in parts for q in grid.fingerprint},
        {q: np.full((*shape, 16), np.nan) for _, grid in parts for q in grid.sample},
        {q: np.full(shape, np.nan) for _, grid in parts for q in grid.not_finite},
    )
    for at, grid in parts:
        for target, source in (
            (merged.l2, grid.l2),
            (merged.fingerprint, grid.fingerprint),
            (merged.sample, grid.sample),
            (merged.not_finite, grid.not_finite),
        ):
            for quantity, values in source.items():
                target[quantity][at] = values
        merged.n_zero[at], merged.n_bad[at], merged.absent[at], merged.numel[at] = (
            grid.n_zero,
            grid.n_bad,
            grid.absent,
            grid.numel,
        )
    return merged


def chart_data(table: Table, names: Sequence[str], first: tuple[str, int] | None) -> dict[str, Any]:
    """The map and the norms, for the page's script."""
    grids = table.grids
    maps = (
        {q: divergence(grids[0], grids[1], q) for q in ("update", "param")}
        if len(grids) == 2
        else {"ratio": ratio(grids[0])}
    )
    quantities = sorted({q for grid in grids for q in grid.l2}, key=_order)
    numbers = sum(len(table.rows) * len(table.steps) for grid in grids for q in grid.l2 if q in quantities)
    every = max(1, math.ceil(numbers / MOST_NUMBERS))
    thin = np.arange(len(table.steps))[::every]
    data: dict[str, Any] = {
        "names": list(names),
        "labels": list(table.labels),
        "steps": table.steps.tolist(),
        "n_steps": table.n_steps,
        "maps": {q: packed(_logs(values)) for q, values in maps.items()},
        "thin": table.steps[thin].tolist(),
        "norms": {q: [_norms(grid, q, thin) for grid in grids] for q in quantities},
        "full": {},
        "first": None,
    }
    row = next((i for i, r in enumerate(table.rows) if first is not None and r.param == first[0]), None)
    if first is not None and row is not None:
        data["first"] = [row, first[1]]
    if every > 1 and len(table.rows):
        chosen = [*([row] if row is not None else []), *range(len(table.rows))][:FULL_PARAMS]
        for at in dict.fromkeys(chosen):
            data["full"][str(at)] = {
                q: [packed(grid.l2[q][at]) if q in grid.l2 else None for grid in grids] for q in quantities
            }
    return data


def ratio(grid: Grid) -> Floats:
    """Norm of the update over the norm of the parameter, by parameter and step."""
    nothing = np.full((len(grid.params), len(grid.steps)), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = grid.l2.get("update", nothing) / grid.l2.get("param", nothing)
    return found


def _norms(grid: Grid, quantity: str, thin: npt.NDArray[np.int64]) -> dict[str, Any] | None:
    return packed(grid.l2[quantity][:, thin]) if quantity in grid.l2 else None


def _logs(values: Floats) -> Floats:
    """Decadic logarithms in steps of 1/50 of a decade; 0 is -99, NaN stays."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs: Floats = np.round(np.log10(values) * 50)
    return np.where(values == 0, -99 * 50, logs)


def _order(quantity: str) -> tuple[int, str]:
    return (("update", "grad", "param").index(quantity) if quantity in ("update", "grad", "param") else 3, quantity)


def hyper_data(sources: Sequence[Source], rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The lr and every number of a group that changes, or differs between the two: one chart each."""
    pairs = list(dict.fromkeys((row.optimizer, row.optimizer_b, row.offset) for row in rows))
    charts: list[dict[str, Any]] = []
    for optimizer, optimizer_b, offset in pairs:
        frames = [_trace(sources[0]).table("groups", optimizer=optimizer)]
        if len(sources) == 2:
            frames.append(_trace(sources[1]).table("groups", optimizer=optimizer_b))
        keys = [key for key in dict.fromkeys(k for frame in frames for k in frame.columns[3:])]
        for group in sorted({int(g) for frame in frames for g in frame["group"]}):
            for key in keys:
                lines = []
                for side, frame in enumerate(frames):
                    own = frame[frame["group"] == group]
                    if key not in own:
                        continue
                    values = [_number(value) for value in own[key]]
                    steps = (own["step"] + (offset if side else 0)).tolist()
                    lines.append((side, *_corners(steps, values)))
                seen = {value for _, _, values in lines for value in values if value is not None}
                if seen and (len(seen) > 1 or key == "lr"):
                    title = f"{key}, group {group}" + (f", optimizer {optimizer}" if len(pairs) > 1 else "")
                    charts.append({"title": title, "lines": [list(line) for line in lines]})
    return charts[:60]


def _corners(steps: list[int], values: list[float | None]) -> tuple[list[int], list[float | None]]:
    """The points at which a line of steps turns, and both ends."""
    keep = [
        i
        for i in range(len(steps))
        if i in (0, len(steps) - 1) or values[i] != values[i - 1] or values[i] != values[i + 1]
    ]
    return [steps[i] for i in keep], [values[i] for i in keep]


def loss_data(sources: Sequence[Source], rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Losses (and gradient norms before clipping) by step, one line a side and optimizer."""
    lines = []
    for side, source in enumerate(sources):
        pairs = dict.fromkeys(((r.optimizer, r.optimizer_b)[side], r.offset if side else 0) for r in rows)
        classes: dict[int | None, str] = {**dict(_trace(source).optimizers)}
        for optimizer, offset in pairs:
            frame = _trace(source).table("steps", optimizer=optimizer)
            for key in ("loss", "grad_norm"):
                values = [_number(value) for value in frame[key]]
                if any(value is not None for value in values):
                    steps = (frame["step"] + offset).tolist()
                    every = max(1, math.ceil(len(steps) / 4000))
                    line = {"side": side, "optimizer": optimizer, "label": f"{classes.get(optimizer, '')}@{optimizer}"}
                    lines.append({**line, "key": key, "x": steps[::every], "y": values[::every]})
    return lines


def event_data(sources: Sequence[Source], rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Events that do not come at each step, by side and kind: steps (A's numbers) and what they said.

    Losses that are NaN or inf stand among them, for their line has a gap there.
    """
    drawn: list[dict[str, Any]] = []
    for side, source in enumerate(sources):
        offsets = {row.optimizer_b: row.offset for row in rows} if side else {}
        whole = next(iter(offsets.values()), 0)
        lost = _losses_that_are_not_finite(_trace(source), offsets)
        if lost:
            drawn.append(
                {"side": side, "kind": "loss not finite", "x": [step for step, _ in lost], "text": [t for _, t in lost]}
            )
        frame = _trace(source).events.sort_values("seq")
        made = frame["step"].where(frame["kind"] == "step").cummax().ffill().fillna(0).astype(np.int64)
        frame["step"] = frame["step"].where(frame["optimizer"] >= 0, made)  # those of no optimizer: after the last step
        begins = [isinstance(data, dict) and data.get("what") == "begin" for data in frame["data"]]
        frame = frame[~frame["kind"].isin(REGULAR) & ~np.array(begins, np.bool_)]
        for kind, found in frame.groupby("kind", sort=False):
            found = found.iloc[:: max(1, math.ceil(len(found) / MOST_EVENTS))]
            texts = [json.dumps(data, ensure_ascii=False)[:160] for data in found["data"]]
            shifts = [offsets.get(optimizer, whole) for optimizer in found["optimizer"]]
            steps = [int(step) + shift for step, shift in zip(found["step"], shifts, strict=True)]
            drawn.append({"side": side, "kind": str(kind), "x": steps, "text": texts})
    return drawn


def _losses_that_are_not_finite(trace: Trace, offsets: Mapping[int | None, int]) -> list[tuple[int, str]]:
    """Steps, and `nan`, `inf` or `-inf`; every n-th where there are too many."""
    table = trace.arrow("steps", columns=["step", "optimizer", "loss"])
    losses = numbers(table.column("loss"))
    at = np.flatnonzero(known(table.column("loss")) & ~np.isfinite(losses))
    at = at[:: max(1, math.ceil(len(at) / MOST_EVENTS))]
    steps, optimizers = integers(table.column("step"))[at], integers(table.column("optimizer"))[at]
    return [
        (int(step) + offsets.get(int(optimizer), 0), str(float(loss)))
        for step, optimizer, loss in zip(steps, optimizers, losses[at], strict=True)
    ]


def _number(value: Any) -> float | None:
    if isinstance(value, bool | np.bool_):
        return float(value)
    if isinstance(value, int | float | np.number) and math.isfinite(value):
        return float(value)
    return None


def _trace(source: Source) -> Trace:
    assert isinstance(source.trace, Trace)
    return source.trace
