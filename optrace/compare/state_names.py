"""State that bears another name on the other side: found by its values at the first step that has both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from optrace.compare.columns import BODY, KEYS, Floats, Numbering, Rows, Side
from optrace.trace.dtypes import eps_of

_STEPS = 3
"""Steps looked at after the first common one."""
_ROUNDINGS = 64.0


@dataclass(frozen=True)
class StateNames:
    """What was found: renamings have been told to the numbering; notes say them in words."""

    notes: tuple[str, ...]


def match_state(side_a: Side, side_b: Side, numbering: Numbering, steps: Sequence[int]) -> StateNames:
    """Give state that only one side has under its name the name of the other's state with the same values.

    A key of A and a key of B belong together when at the first step where both have rows every shared parameter has
    equal values (or values within 64 roundings), some of them not zero, and no other key fits. A constant factor
    between two keys is only noted.
    """
    notes: list[str] = []
    first = list(steps[: _STEPS + 1])
    if not first:
        return StateNames(())
    keys_a, keys_b = (
        {int(code) for code in np.unique(side.load(first[0], first[-1], KEYS, quantity="state.*").quantity)}
        for side in (side_a, side_b)
    )
    free_a, free_b = sorted(keys_a - keys_b), sorted(keys_b - keys_a)
    if not (free_a and free_b):
        return StateNames(())
    rows_a, rows_b = (side.load(first[0], first[-1], BODY, quantity="state.*") for side in (side_a, side_b))
    factors = {(i, j): _factor(rows_a, rows_b, i, j) for i in free_a for j in free_b}
    equal = [pair for pair, factor in factors.items() if factor == 1.0]
    names = numbering.quantities
    done: set[int] = set()
    for i, j in equal:
        if sum(pair[0] == i for pair in equal) > 1 or sum(pair[1] == j for pair in equal) > 1:
            notes.append(
                f"{names[i]} of {{A}} may be {names[j]} of {{B}}, among others: say which with --state OLD=NEW"
            )
            continue
        numbering.rename(names[i], names[j])
        done |= {i, j}
        notes.append(
            f"{names[j].removeprefix('state.')} of {{B}} is {names[i].removeprefix('state.')} of {{A}}: equal values"
        )
    for (i, j), factor in factors.items():
        if factor is not None and factor != 1.0 and not {i, j} & done:
            ours, theirs = names[j].removeprefix("state."), names[i].removeprefix("state.")
            notes.append(f"{ours} of {{B}} is {_times(theirs, factor)} of {{A}} at the first step")
    return StateNames(tuple(dict.fromkeys(notes)))


def _times(name: str, factor: float) -> str:
    inverse = 1 / factor
    if abs(inverse - round(inverse)) < 1e-6 * abs(inverse):
        return f"{name}/{round(inverse)}"
    return f"{name}*{factor:.6g}"


def _factor(rows_a: Rows, rows_b: Rows, i: int, j: int) -> float | None:
    """B's values over A's, 1.0 when equal up to rounding; None when no one factor fits or nothing can be said."""
    own_a, own_b = np.flatnonzero(rows_a.quantity == i), np.flatnonzero(rows_b.quantity == j)
    steps = np.intersect1d(rows_a.step[own_a], rows_b.step[own_b])
    if not len(steps):
        return None
    own_a, own_b = own_a[rows_a.step[own_a] == steps[0]], own_b[rows_b.step[own_b] == steps[0]]
    cells, place_a, place_b = np.intersect1d(rows_a.cell[own_a], rows_b.cell[own_b], return_indices=True)
    if not len(cells):
        return None
    at_a, at_b = own_a[place_a], own_b[place_b]
    a, b = rows_a.columns["sample"][at_a], rows_b.columns["sample"][at_b]
    if (rows_a.columns["numel"][at_a] != rows_b.columns["numel"][at_b]).any():
        return None
    if (rows_a.columns["fingerprint"][at_a] == rows_b.columns["fingerprint"][at_b]).all():
        return 1.0 if (rows_a.columns["l2"][at_a] > 0).any() else None
    eps = max(max(map(eps_of, rows_a.columns["dtype"][1])), max(map(eps_of, rows_b.columns["dtype"][1])))
    known = np.isfinite(a) & np.isfinite(b)
    if not known.any() or not (np.abs(a[known]) > 0).any():
        return None
    spread = _spread(a, known)
    factor = float((a[known] * b[known]).sum() / (a[known] ** 2).sum())
    for candidate in (1.0, factor):
        scale = np.maximum(np.abs(b), np.abs(a) * abs(candidate)) + spread[:, None] * abs(candidate)
        if candidate and (np.abs(b - candidate * a)[known] <= (_ROUNDINGS * eps * scale)[known]).all():
            return candidate
    return None


def _spread(a: Floats, known: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Floats:
    """Root mean square of each row's known elements, [n]."""
    squares = np.where(known, a, 0.0) ** 2
    rms: Floats = np.sqrt(squares.sum(axis=1) / np.maximum(known.sum(axis=1), 1))
    return rms
