"""What a rule makes of inputs that agree within tolerance and yet differ by much of their own size.

An element of a gradient may be small beside its tensor's others and consist of rounding: a key's bias in attention, a
dead unit. An adaptive rule divides by just this size, so that its update there may point anywhere. Each update is then
granted what the relative error of its own inputs explains, and of scalars that the step computes from all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from optrace.compare.columns import BODY, Floats, Numbering, Side

FACTOR = 2.0
"""An update may differ by so many times its size times the relative error of its inputs. At a relative error of 1, the
most that is counted, it may turn from +u to -u, and this is what `scripts/bench margins` finds: up to 2.0 times under
Adam, AdamW, NAdam and Adagrad."""


def explained(
    sides: tuple[Side, Side], numbering: Numbering, step: int, rows: Sequence[tuple[int, str]]
) -> list[Floats]:
    """What the elements of some updates and state tensors may differ by, and the size that they are measured by.

    An update holds the errors of its gradient, of the state after the step, and of scalars of its group; state those of
    its gradient and of the scalars.

    Args:
        sides: A and B.
        numbering: of cells and quantities.
        step: A's number.
        rows: (cell, quantity) of each, `update` or `state.<key>`.

    Returns:
        arrays [2, 16] in the order of `rows`; the size is the parameter's for an update. NaN for no element.
    """
    samples = [_samples(side, numbering, step) for side in sides]
    scalars = _scalars(numbering, samples)
    found = []
    for cell, quantity in rows:
        own = [side.get(cell, {}) for side in samples]
        values = [side.get(quantity) for side in own]
        if values[0] is None or values[1] is None:
            found.append(np.full((2, 16), np.nan))
            continue
        relative = np.full(16, scalars.get(numbering.cells[cell].pair, 0.0))
        for name in own[0].keys() & own[1].keys():
            if name == "grad" or (name.startswith("state.") and quantity == "update"):
                relative = np.fmax(relative, _relative(own[0][name], own[1][name]))
        size = np.fmax(np.abs(values[0]), np.abs(values[1]))
        nothing = np.full(16, np.nan)
        param = np.fmax(*(np.abs(side.get("param", nothing)) for side in own))
        found.append(np.stack([FACTOR * size * relative, param if quantity == "update" else size]))
    return found


def _scalars(numbering: Numbering, samples: list[Mapping[int, dict[str, Floats]]]) -> dict[int, float]:
    """By pair of optimizers: the largest relative error of a scalar that the step wrote, which any update may hold."""
    found: dict[int, float] = {}
    for number in samples[0].keys() & samples[1].keys():
        pair = numbering.cells[number].pair
        for name in samples[0][number].keys() & samples[1][number].keys():
            if name.startswith("group."):
                error = float(_relative(samples[0][number][name], samples[1][number][name])[0])
                found[pair] = max(found.get(pair, 0.0), error)
    return found


def _relative(a: Floats, b: Floats) -> Floats:
    """|a - b| over the smaller of the two, at most 1; 0 where they are equal or not finite."""
    with np.errstate(all="ignore"):
        ratio = np.abs(a - b) / np.fmin(np.abs(a), np.abs(b))
    return np.where((a != b) & np.isfinite(a) & np.isfinite(b), np.fmin(ratio, 1.0), 0.0)


def _samples(side: Side, numbering: Numbering, step: int) -> Mapping[int, dict[str, Floats]]:
    rows = side.load(step, step, BODY)
    found: dict[int, dict[str, Floats]] = {}
    for i, (cell, quantity) in enumerate(zip(rows.cell.tolist(), rows.quantity.tolist(), strict=True)):
        found.setdefault(cell, {})[numbering.quantities[quantity]] = rows.columns["sample"][i]
    return found
