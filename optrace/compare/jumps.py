"""Updates that go the other way because the argument of a sign is zero but for rounding.

Lion moves an element by lr along the sign of an average. Where the terms of that average cancel, two right
implementations may go two ways from equal inputs. This is no difference of rules where the record shows it: both sides
then give what the rule gives from inputs that are moved by a few roundings, and elsewhere what it gives from the inputs
themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from optrace.compare.columns import BODY, Numbering, Side
from optrace.compare.names import in_torchs_words
from optrace.replayer.cubes import SLOTS, Cube, Member
from optrace.replayer.engine import residuals
from optrace.replayer.options import options_by_step, unlike

STEP_EPS = 4.0
"""Error that one step may have, in eps."""


def either_way(
    sides: tuple[Side, Side], numbering: Numbering, step: int, before: int | None, cells: Sequence[int]
) -> list[bool]:
    """Whether both sides' sampled updates of some parameters are outcomes of one rule that jumps.

    Args:
        sides: A and B.
        numbering: of cells and quantities.
        step: A's number.
        before: the recorded step before it; None where there is none.
        cells: numbers of the parameters.
    """
    fits = [_outcomes_of_a_jump(side, numbering, step, before, cells) for side in sides]
    return [cell in fits[0] and cell in fits[1] for cell in cells]


def _outcomes_of_a_jump(
    side: Side, numbering: Numbering, step: int, before: int | None, cells: Sequence[int]
) -> set[int]:
    """The parameters whose update at a step a rule that jumps gives, one way or the other."""
    from optrace.replayer.known import RULES  # loads every rule, and few comparisons come here

    cube = _cube(side, numbering, step, before, cells)
    found: set[int] = set()
    for pair in {numbering.cells[cell].pair for cell in cells}:
        groups = _options(side, numbering, step, pair)
        inside = np.array([numbering.cells[cell].pair == pair for cell in cells])
        for rule in RULES.values():
            if not rule.jumps or not any(f"state.{key}" in cube.values for key in rule.state_keys):
                continue
            if any(unlike(own, rule.defaults) for own in groups.values()):
                continue
            options = {step: {group: {**rule.defaults, **own} for group, own in groups.items()}}
            worst = residuals(rule.step, rule.state_keys, cube, options, jumps=True).worst[0]
            found |= {cells[i] for i in np.flatnonzero(inside & (worst <= STEP_EPS)).tolist()}
    return found


def _options(side: Side, numbering: Numbering, step: int, pair: int) -> Mapping[int, Mapping[str, Any]]:
    """Options of a side's groups at a step, in torch's words."""
    matched, own = numbering.matching.pairs[pair], step - side.offsets[pair]
    index = matched.a if side.is_a else matched.b
    found = options_by_step(side.source.trace, index, own, own).get(own, {})  # type: ignore[arg-type]
    return {group: in_torchs_words(options) for group, options in found.items()}


def _cube(side: Side, numbering: Numbering, step: int, before: int | None, cells: Sequence[int]) -> Cube:
    """Samples of some parameters at one step, under A's names of quantities and this side's groups."""
    place = {cell: m for m, cell in enumerate(cells)}
    names = numbering.quantities
    words = [numbering.cells[cell] for cell in cells]
    members = [
        Member(
            word.param_a,
            word.group_a if side.is_a else word.group_b,
            str(word.dtype_a if side.is_a else word.dtype_b),
            int(np.prod((word.shape_a if side.is_a else word.shape_b) or (), dtype=np.int64)),
        )
        for word in words
    ]
    cube = Cube(np.array([step]), members)
    shape = (1, len(cells))
    for past in (True, False):
        if past and before is None:
            continue
        at = before if past and before is not None else step
        rows = side.load(at, at, BODY)
        present = rows.columns["present"]
        for i, (cell, quantity) in enumerate(zip(rows.cell.tolist(), rows.quantity.tolist(), strict=True)):
            if cell not in place:
                continue
            name, m = names[quantity], place[cell]
            kind, dot, key = name.partition(".")
            told = kind in ("param", "state") if past else kind.endswith("_in")
            if told:
                own = kind.removesuffix("_in") + dot + key
                _table(cube.before, own, shape)[0, m] = rows.columns["sample"][i]
                _flags(cube.known_before, own, shape)[0, m] = present[i]
            if not past:
                _table(cube.values, name, shape)[0, m] = rows.columns["sample"][i]
                _flags(cube.rows, name, shape)[0, m] = True
                _flags(cube.there, name, shape)[0, m] = present[i]
    for name in cube.values:  # nothing of it was there before
        if name == "param" or name.startswith("state."):
            _table(cube.before, name, shape)
            _flags(cube.known_before, name, shape)
    return cube


def _table(tables: dict[str, Any], name: str, shape: tuple[int, int]) -> Any:
    return tables.setdefault(name, np.full((*shape, SLOTS), np.nan))


def _flags(tables: dict[str, Any], name: str, shape: tuple[int, int]) -> Any:
    return tables.setdefault(name, np.zeros(shape, bool))
