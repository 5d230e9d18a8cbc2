"""The sampled elements of one optimizer's tensors as dense arrays, a stretch of recorded steps at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optrace.trace.dtypes import eps_of, tiny_of
from optrace.trace.reader import Trace

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

SLOTS = 16
_ROWS = 400_000
"""Rows of `tensors` that are held at once, about."""


@dataclass(frozen=True)
class Member:
    """One parameter as the table `params` has it."""

    name: str
    group: int
    dtype: str
    numel: int
    """Elements; twice that for complex."""

    @property
    def used(self) -> int:
        """Slots of the sample that hold an element."""
        return min(self.numel, SLOTS)


@dataclass
class Cube:
    """Samples of a stretch of steps; axis 0 its steps, axis 1 the members, axis 2 the sample's 16 slots (NaN: none)."""

    steps: NDArray[np.int64]
    members: Sequence[Member]
    values: dict[str, Floats] = field(default_factory=dict)
    """quantity -> samples; where no row is stored, NaN."""
    there: dict[str, Flags] = field(default_factory=dict)
    """quantity -> [steps, members]: a row is stored and present."""
    rows: dict[str, Flags] = field(default_factory=dict)
    """quantity -> [steps, members]: a row is stored, present or not."""
    before: dict[str, Floats] = field(default_factory=dict)
    """`param` and `state.<key>` -> samples as they were before each step."""
    known_before: dict[str, Flags] = field(default_factory=dict)
    """Whether such a value existed before the step."""
    dtypes: dict[str, str] = field(default_factory=dict)
    """quantity -> dtype of its rows (of the first one here)."""

    @cached_property
    def eps(self) -> Floats:
        """Spacing at 1 of each member's dtype, [members]."""
        return np.array([eps_of(member.dtype) for member in self.members])

    @cached_property
    def tiny(self) -> Floats:
        """Smallest normal number of each member's dtype, [members]."""
        return np.array([tiny_of(member.dtype) for member in self.members])

    @cached_property
    def used(self) -> Flags:
        """Which slots of a sample hold an element, [members, 16]."""
        counts = np.array([member.used for member in self.members], dtype=np.int64)
        used: Flags = np.arange(SLOTS)[None, :] < counts[:, None]
        return used


def members_of(trace: Trace, optimizer: int) -> list[Member]:
    """The parameters of an optimizer, in order of group and index."""
    frame = trace.params
    frame = frame[frame["optimizer"] == optimizer]
    found = []
    for row in frame.to_dict("records"):
        doubled = 2 if str(row["dtype"]).startswith("complex") else 1
        found.append(Member(str(row["param"]), int(row["group"]), str(row["dtype"]), int(row["numel"]) * doubled))
    return found


def cubes(
    trace: Trace, optimizer: int, members: Sequence[Member], first: int | None = None, last: int | None = None
) -> Iterator[Cube]:
    """Cubes of the recorded steps `first` to `last` (both included; None: all), in order.

    The values before a step are those after the last recorded one, replaced by `param_in` and `state_in` rows; so the
    table is read from step 0 even where `first` is later.
    """
    index = {member.name: i for i, member in enumerate(members)}
    steps = np.unique(
        trace.arrow("groups", optimizer=optimizer, columns=["step"]).column("step").to_numpy()
    )  # group rows exist for every recorded step
    stretch = max(1, _ROWS // max(1, 6 * len(members)))
    last_values: dict[str, Floats] = {}
    last_there: dict[str, Flags] = {}
    low = 0
    for start in range(0, max(len(steps), 1), stretch):
        part = steps[start : start + stretch]
        high = int(part[-1]) if len(part) else 0
        cube = _load(trace, optimizer, members, index, part, low, high)
        _carry(cube, last_values, last_there, with_zero=start == 0)
        low = high + 1
        keep = (cube.steps >= (1 if first is None else first)) & (cube.steps <= (high if last is None else last))
        if keep.any():
            yield cut(cube, keep)
        if last is not None and high >= last:
            return


def _load(
    trace: Trace,
    optimizer: int,
    members: Sequence[Member],
    index: Mapping[str, int],
    steps: NDArray[np.int64],
    low: int,
    high: int,
) -> Cube:
    """Rows of steps `low` to `high`; step 0 is put in front of the first stretch."""
    axis = np.concatenate([[0], steps]) if low == 0 else steps
    rows = trace.arrow(
        "tensors",
        step=(low, high),
        optimizer=optimizer,
        columns=["step", "param", "quantity", "dtype", "present", "sample"],
    )
    cube = Cube(axis, members)
    if not rows.num_rows:
        return cube
    where = np.searchsorted(axis, rows.column("step").to_numpy())
    params = rows.column("param").dictionary_encode().combine_chunks()
    quantities = rows.column("quantity").dictionary_encode().combine_chunks()
    param_codes = np.array([index.get(name, -1) for name in params.dictionary.to_pylist()])[params.indices.to_numpy()]
    quantity_codes = quantities.indices.to_numpy()
    present = rows.column("present").to_numpy(zero_copy_only=False).astype(bool)
    sample = rows.column("sample").combine_chunks()
    sample = sample.chunk(0) if hasattr(sample, "chunks") else sample
    flat = sample.values.to_numpy(zero_copy_only=False)[sample.offset * SLOTS :].reshape(-1, SLOTS)[: rows.num_rows]
    shape = (len(axis), len(members))
    for code, quantity in enumerate(quantities.dictionary.to_pylist()):
        chosen = (quantity_codes == code) & (param_codes >= 0)
        values = np.full((*shape, SLOTS), np.nan)
        stored, there = np.zeros(shape, bool), np.zeros(shape, bool)
        at = where[chosen], param_codes[chosen]
        values[at], stored[at], there[at] = flat[chosen], True, present[chosen]
        if chosen.any():
            cube.dtypes[quantity] = str(rows.column("dtype")[int(np.argmax(chosen))])
        cube.values[quantity], cube.rows[quantity], cube.there[quantity] = values, stored, there
    return cube


def _carry(cube: Cube, last_values: dict[str, Floats], last_there: dict[str, Flags], with_zero: bool) -> None:
    """Fill `before` and `known_before`, going on from the stretch before, and note where this one ends."""
    kept = [q for q in cube.values if q == "param" or q.startswith("state.")]
    lasting = set(kept) | set(last_values)
    shape = len(cube.steps), len(cube.members)
    for quantity in sorted(lasting):
        now = cube.values.get(quantity, np.full((*shape, SLOTS), np.nan))
        there = cube.there.get(quantity, np.zeros(shape, bool))
        edited = "param_in" if quantity == "param" else "state_in." + quantity.removeprefix("state.")
        before, known = np.empty_like(now), np.empty_like(there)
        value = last_values.get(quantity, np.full((shape[1], SLOTS), np.nan))
        exists = last_there.get(quantity, np.zeros(shape[1], bool))
        for i in range(shape[0]):
            if edited in cube.rows:
                new = cube.rows[edited][i]
                value = np.where(new[:, None], cube.values[edited][i], value)
                exists = np.where(new, cube.there[edited][i], exists)
            before[i], known[i] = value, exists
            value = np.where(there[i][:, None], now[i], value)
            exists = exists | there[i]
        cube.before[quantity], cube.known_before[quantity] = before, known
        last_values[quantity], last_there[quantity] = value, exists


def cut(cube: Cube, keep: Flags) -> Cube:
    """The steps of a cube that `keep` marks, [steps]."""

    def part(arrays: Mapping[str, Any]) -> dict[str, Any]:
        return {name: array[keep] for name, array in arrays.items()}

    return Cube(
        cube.steps[keep],
        cube.members,
        part(cube.values),
        part(cube.there),
        part(cube.rows),
        part(cube.before),
        part(cube.known_before),
        cube.dtypes,
    )


def renamed(cube: Cube, names: Mapping[str, str]) -> Cube:
    """The cube with quantities under other names (`state.velocity` -> `state.momentum_buffer`), sharing its arrays."""

    def of(arrays: Mapping[str, Any]) -> dict[str, Any]:
        return {names.get(name, name): array for name, array in arrays.items()}

    return Cube(
        cube.steps,
        cube.members,
        of(cube.values),
        of(cube.there),
        of(cube.rows),
        of(cube.before),
        of(cube.known_before),
        of(cube.dtypes),
    )
