"""What stood before a step on a rank that has no row of it, because nothing was edited there: the last row before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from optrace.trace.arrays import elements, numbers, strings
from optrace.trace.blocks import base_quantity
from optrace.trace.select import Selection

if TYPE_CHECKING:
    from optrace.trace.merge import Row
    from optrace.trace.reader import Trace

_NEAR = 64
"""So many steps back are read at first; all, where a row before is older."""


def rows_before(member: Trace, wanted: Sequence[Row], columns: Sequence[str]) -> Any:
    """For each wanted row (`param_in` of step 7) the last that was recorded before it (`param` of step 6), as that row.

    Args:
        member: the trace of one rank.
        wanted: rows that it does not have.
        columns: of `tensors`, among them step, optimizer, param and quantity.

    Returns:
        A `pyarrow.Table` of `columns`; a wanted row without any before it is left out.
    """
    import pyarrow as pa

    parts = []
    for optimizer in sorted({row[1] for row in wanted}):
        own = [row for row in wanted if row[1] == optimizer]
        parts.append(_of_one(member, optimizer, own, columns, max(0, min(row[0] for row in own) - _NEAR)))
    return pa.concat_tables(parts)


def _of_one(member: Trace, optimizer: int, wanted: Sequence[Row], columns: Sequence[str], first: int) -> Any:
    params = sorted({param for _, _, param, _ in wanted})
    quantities = sorted({base_quantity(quantity) for *_, quantity in wanted})
    last = max(row[0] for row in wanted) - 1
    rows = member.stored("tensors", Selection.of((first, last), optimizer, params, quantities), columns)
    places: dict[tuple[str, str], list[tuple[int, int]]] = {}
    words = (rows.column(name).to_pylist() for name in ("param", "quantity"))
    for at, (step, *key) in enumerate(zip(elements(rows.column("step")).tolist(), *words, strict=True)):
        places.setdefault((key[0], key[1]), []).append((step, at))
    found: list[tuple[int, int, str]] = []
    for step, _, param, quantity in wanted:
        earlier = [one for one in places.get((param, base_quantity(quantity)), ()) if one[0] < step]
        if earlier:
            found.append((max(earlier)[1], step, quantity))
        elif first:
            return _of_one(member, optimizer, wanted, columns, 0)
    taken = rows.take(numbers(np.array([at for at, _, _ in found], np.int64)))
    for name, column in (
        ("step", numbers(np.array([step for _, step, _ in found], np.int64))),
        ("quantity", strings([quantity for *_, quantity in found])),
    ):
        place = taken.schema.get_field_index(name)
        taken = taken.set_column(place, taken.schema.field(name), column.cast(taken.schema.field(name).type))
    return taken
