"""Compares what an optimizer did with what is stored of it: structure, hyper-parameters, and every number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from optrace.goldens.drive import Array
from optrace.goldens.format import Golden, Row, write_number
from optrace.testing.driving import IMPLEMENTATION, distances, names

Place = tuple[int, int, str, str]


def differences(stored: Golden, got: Golden, eps: float, per_step: bool, states: bool = True) -> list[str]:
    """Sentences on what differs, in causal order by step; none if nothing does.

    Args:
        stored: the reference.
        got: what was made of its inputs.
        eps: what a number may be off, in eps of its dtype and scale.
        per_step: whether each step of `got` started from the stored numbers.
        states: whether state and the group's own scalars count, or parameters only.
    """
    found = [*_hyper(stored.hyper, got.hyper)] if states else []
    found += _structure(stored, got, states)
    found += [
        words
        for row, error in distances(stored, got, per_step)
        if error > eps and (states or row.quantity == "param")
        for words in [_number(row, got, error, eps)]
    ]
    return found


def _hyper(stored: tuple[Mapping[str, Any], ...], got: tuple[Mapping[str, Any], ...]) -> Iterator[str]:
    if len(stored) != len(got):
        yield f"there are {len(got)} groups, stored are {len(stored)}"
        return
    for number, (old, new) in enumerate(zip(stored, got, strict=True)):
        for key in [*old, *(key for key in new if key not in old)]:
            words = hyper_words(key, key in old, old.get(key), key in new, new.get(key))
            if words:
                yield f"the hyper-parameter {key} of group {number} {words}"


def hyper_words(key: str, was: bool, old: Any, is_: bool, new: Any) -> str | None:
    """What differs about an option; None for equal ones, other implementations, and new or lost ones that are off.

    Versions of torch add options that are off by default (`maximize`, `decoupled_weight_decay`): those decide nothing.
    """
    if key.partition(".")[0] in IMPLEMENTATION or (was and is_ and (_same(old, new))):
        return None
    if was and is_:
        return f"is {new!r}, stored is {old!r}"
    if (old if was else new) in (None, False):
        return None
    return f"is gone, stored is {old!r}" if was else f"is new: {new!r}"


def _same(old: Any, new: Any) -> bool:
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_same, old, new))
    return bool(old == new or (old != old and new != new))


def _structure(stored: Golden, got: Golden, states: bool) -> Iterator[str]:
    def counted(golden: Golden) -> set[Place]:
        return {place for place in names(golden.rows) if states or place[3] == "param"}

    old, new = counted(stored), counted(got)
    for missing, where in ((old - new, "is stored and gone now"), (new - old, "is new and not stored")):
        by_quantity: dict[tuple[int, str, str], list[int]] = {}
        for step, group, param, quantity in missing:
            by_quantity.setdefault((group, param, quantity), []).append(step)
        for (group, param, quantity), steps in sorted(by_quantity.items()):
            of = f" of {param}" if param else ""
            yield f"{quantity}{of} (group {group}) at {_steps(steps)} {where}"
    shapes = {(r.step, r.group, r.param, r.quantity): r.values.shape for r in got.rows}
    for row in stored.rows:
        shape = shapes.get((row.step, row.group, row.param, row.quantity), row.values.shape)
        if shape != row.values.shape:
            yield f"{row.quantity} of {row.param} has shape {shape} at step {row.step}, stored is {row.values.shape}"


def _steps(steps: list[int]) -> str:
    ordered = sorted(steps)
    return f"step {ordered[0]}" if len(ordered) == 1 else f"{len(ordered)} steps from {ordered[0]} to {ordered[-1]}"


def _number(row: Row, got: Golden, error: float, eps: float) -> str:
    values = next(r.values for r in got.rows_at(row.step, row.quantity) if (r.group, r.param) == (row.group, row.param))
    apart = np.abs(_wide(values) - _wide(row.values))
    index = np.unravel_index(int(np.argmax(np.where(np.isnan(apart), np.inf, apart))), row.values.shape)
    place = f"[{', '.join(map(str, index))}]" if index else ""
    size = "one of them not finite" if error == float("inf") else f"{error:.3g} eps apart"
    who = f"{row.quantity} of {row.param}" if row.param else f"{row.quantity} of group {row.group}"
    return (
        f"step {row.step}, {who}{place}: {write_number(values[index])}, stored is {write_number(row.values[index])}"
        f" ({size}, {eps:g} allowed)"
    )


def _wide(values: Array) -> Array:
    return np.asarray(values, dtype=np.float64)


def listing(found: list[str], limit: int = 8) -> str:
    """The sentences as lines, the first ones."""
    lines = [f"  {words}" for words in found[:limit]]
    return "\n".join([*lines, f"  and {len(found) - limit:,} more"] if len(found) > limit else lines)
