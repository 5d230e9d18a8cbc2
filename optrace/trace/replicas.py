"""Finds where ranks part that should agree: tensors that several hold, hyper-parameters, gradient norms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from optrace.trace.arrays import elements
from optrace.trace.logical import LogicalTrace
from optrace.trace.merge import KEYS, Names, Placing, flags, low_of, step_of
from optrace.trace.own import Own, renamed
from optrace.trace.select import Selection

Ints = npt.NDArray[np.int64]

ROWS_AT_ONCE = 4_000_000
"""Rows of all ranks looked at together, about: 250 MB."""

_FEW_PARAMS = 64
_NONE = -0x5851F42D4C957F2D
"""Stands for the bits of a gradient that was None."""

_HOW = frozenset({"foreach", "fused", "capturable", "differentiable"})
"""Options that say how a rule is carried out."""

_ORDER = ("param_in", "state_in", "group_in", "grad_micro", "grad", "update", "group", "state", "param")
"""What a step takes in before what it makes."""


@dataclass(frozen=True)
class Drift:
    """The first step of an optimizer at which ranks hold different bits of what should be the same tensor.

    Where all tensors agree, and each rank has its own part of the parameters: at which they use different
    hyper-parameters.
    """

    optimizer: int
    step: int
    quantity: str
    """The first in the order in which a step computes; `hyper.<key>` for a hyper-parameter."""
    params: tuple[str, ...]
    """The parameters of which this quantity differs (of a hyper-parameter one that these ranks share)."""
    ranks: tuple[int, ...]
    """Those that differ from most (of two equal camps: from the lowest rank's)."""
    others: tuple[int, ...]
    """Those that agree with most."""
    n_params: int
    """Parameters that the optimizer has."""
    own: Own | None = None
    """Set where these may be parameters of the ranks' own, and are read as such; `params` are the recorded names."""


@dataclass(frozen=True)
class Apart:
    """A number that is not the same on all ranks: a hyper-parameter or a step's gradient norm."""

    optimizer: int
    step: int
    group: int | None
    key: str
    by_rank: Mapping[int, Any]


def rank_words(ranks: Sequence[int], most: int = 8) -> str:
    """Ranks in a sentence: `rank 1`, `ranks 1, 2`, `ranks 0, 1, 2, 3, 4, 5, 6, 7 and 56 more`."""
    more = f" and {len(ranks) - most:,} more" if len(ranks) > most else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks[:most]))}{more}"


def drifts(trace: LogicalTrace) -> list[Drift]:
    """The first drift of each optimizer, by step; empty when all replicas agree to the bit."""
    found = []
    for optimizer in sorted({index for steps in trace.last_by_rank.values() for index in steps}):
        last = max(steps.get(optimizer, -1) for steps in trace.last_by_rank.values())
        step = _first_step(trace, optimizer, last)
        apart = _first_apart(trace, optimizer)
        if apart is not None and (step is None or apart.step < step):
            found.append(apart)
        elif step is not None:
            found.append(_describe(trace, optimizer, step))
    return sorted(found, key=lambda drift: (drift.step, drift.optimizer))


def unlike(trace: LogicalTrace) -> list[Drift]:
    """What is read as parameters of the ranks' own though nothing proves it: they may be replicas that never agreed."""
    found = []
    for own in trace.own:
        if not own.certain:
            others = tuple(rank for camp in own.camps[1:] for rank in camp)
            own_names = {new for rank in others for new in renamed(trace.own, rank).values()}
            total = len({name for index, name in trace.blocks if index == own.optimizer} - own_names)
            found.append(Drift(own.optimizer, 0, "param", own.params, tuple(sorted(others)), own.camps[0], total, own))
    return found


def _first_apart(trace: LogicalTrace, optimizer: int) -> Drift | None:
    """The first hyper-parameter that is not the same on ranks that have parts of the same parameters."""
    names = [name for index, name in trace.blocks if index == optimizer]
    for apart in hyper_apart(trace, optimizer):
        if apart.key in _HOW:
            continue
        words = {rank: str(value) for rank, value in sorted(apart.by_rank.items())}
        camps = Counter(words.values())
        usual = next(word for word in words.values() if camps[word] == max(camps.values()))
        odd = tuple(rank for rank, word in words.items() if word != usual)
        others = tuple(rank for rank, word in words.items() if word == usual)
        for name in names:
            if not trace.blocks.known_on(name).isdisjoint(odd) and not trace.blocks.known_on(name).isdisjoint(others):
                return Drift(optimizer, apart.step, f"hyper.{apart.key}", (name,), odd, others, len(names))
    return None


def hyper_apart(trace: LogicalTrace, optimizer: int) -> list[Apart]:
    """For each group and option the first step at which not all ranks used the same value."""
    columns = ("step", "group", "key", "kind", "number", "text")
    last = min((steps[optimizer] for steps in trace.last_by_rank.values() if optimizer in steps), default=0)
    ranks = [rank for rank, steps in trace.last_by_rank.items() if optimizer in steps]
    selection = Selection.of((1, last), optimizer, None, None)
    seen: dict[tuple[int, int, str], dict[int, Any]] = {}
    alike: dict[int, list[int]] = {}
    tables: dict[int, Any] = {}
    for rank in ranks:
        rows = trace.members[rank].stored("groups", selection, columns)
        same = next((other for other, table in tables.items() if _equal(table, rows)), rank)
        alike.setdefault(same, []).append(rank)
        if same == rank:
            tables[rank] = rows
    for one, rows in tables.items() if len(tables) > 1 else ():
        for step, group, key, kind, number, text in zip(*(rows.column(c).to_pylist() for c in columns), strict=True):
            value = None if kind == "none" else text if kind in ("str", "other") else number
            seen.setdefault((step, group, key), {}).update(dict.fromkeys(alike[one], value))
    found: dict[tuple[int, str], Apart] = {}
    for (step, group, key), values in sorted(seen.items(), key=lambda item: item[0]):
        if len({str(value) for value in values.values()}) > 1:
            found.setdefault((group, key), Apart(optimizer, step, group, key, values))
    return sorted(found.values(), key=lambda apart: (apart.step, apart.group or 0, apart.key))


def _equal(one: Any, other: Any) -> bool:
    """Whether two tables of groups hold the same, NaN like NaN."""
    words = [table.select(["step", "group", "key", "kind", "text"]) for table in (one, other)]
    if not words[0].equals(words[1]):
        return False
    bits = [elements(table.column("number")).view(np.int64) for table in (one, other)]
    return bool((bits[0] == bits[1]).all())


def norms_apart(trace: LogicalTrace, optimizer: int, rounding: float = 0.0) -> Apart | None:
    """The first step at which ranks found different total norms of the gradients when they clipped them.

    Norms count as the same when the smallest is less than the part `rounding` of the largest below it.
    """
    seen: dict[int, dict[int, float]] = {}
    for rank, member in trace.members.items():
        rows = member.stored("steps", Selection.of(None, optimizer, None, None), ("step", "grad_norm"))
        for step, norm in zip(rows.column("step").to_pylist(), rows.column("grad_norm").to_pylist(), strict=True):
            if norm is not None:
                seen.setdefault(step, {})[rank] = norm
    for step, norms in sorted(seen.items()):
        if max(norms.values()) - min(norms.values()) > rounding * max(norms.values()):
            return Apart(optimizer, step, None, "grad_norm", norms)
    return None


def _first_step(trace: LogicalTrace, optimizer: int, last: int) -> int | None:
    """The first step at which two holders of one block differ, looking at a few parameters at a time."""
    params = [name for index, name in trace.blocks if index == optimizer]
    quantities = _shared_quantities(trace, optimizer, params)
    if not quantities:
        return None
    groups: list[list[str] | None] = [None]
    if len(params) > _FEW_PARAMS:
        each = max(1, ROWS_AT_ONCE // max(1, (last + 1) * len(quantities) * len(trace.members)))
        groups = [*(params[i : i + each] for i in range(0, len(params), each)), [""]]
    first = None
    for names in groups:
        here = len(params) if names is None else len(names)
        stretch = max(1, ROWS_AT_ONCE // (max(here, 1) * len(quantities) * len(trace.members)))
        end = last if first is None else first - 1
        for low in range(0, end + 1, stretch):
            step = _first_in(trace, optimizer, names, quantities, (low, min(end, low + stretch - 1)))
            if step is not None:
                first = step
                break
    return first


def _shared_quantities(trace: LogicalTrace, optimizer: int, params: Sequence[str]) -> list[str]:
    """The quantities of which several ranks hold the same block: of shards it is the step counter alone, or nothing."""
    words: set[str] = set()
    for member in trace.members.values():
        selection = Selection.of(None, optimizer, None, None)
        column = member.stored("tensors", selection, ["quantity"], coded=True).column("quantity").unify_dictionaries()
        if column.num_chunks:
            words.update(column.chunk(0).dictionary.to_pylist())

    def shared(word: str) -> bool:
        if _kind(word) == "group":  # of no parameter
            return len(trace.members) > 1
        splits = (trace.blocks.split(optimizer, name, word) for name in params)
        return any(len(ranks) > 1 for split in splits for ranks in split.holders)

    return sorted(word for word in words if shared(word))


def _first_in(
    trace: LogicalTrace, optimizer: int, params: list[str] | None, quantities: list[str], steps: tuple[int, int]
) -> int | None:
    table = _Table(trace, optimizer, params, steps, quantities)
    if not len(table.keys):
        return None
    starts = table.starts
    low, high = (join.reduceat(table.bits, starts) for join in (np.minimum, np.maximum))
    wrong = low != high
    copies = np.diff(np.append(starts, len(table.keys)))
    all_alive = table.steps[starts] <= min(last.get(optimizer, -1) for last in trace.last_by_rank.values())
    wrong |= table.before[starts] & (copies < table.holders[starts]) & all_alive
    return int(table.steps[starts][wrong].min()) if wrong.any() else None


class _Table:
    """Bits of all tensors of which several ranks hold the same block, sorted so that equal ones lie together."""

    def __init__(
        self,
        trace: LogicalTrace,
        optimizer: int,
        params: list[str] | None,
        steps: tuple[int, int],
        quantities: list[str] | None = None,
    ) -> None:
        self.names = Names()
        columns: list[list[npt.NDArray[Any]]] = [[np.empty(0, np.int64)] for _ in range(5)]
        selection = Selection.of(steps, optimizer, params, quantities)
        for rank, member in trace.members.items():
            rows = member.stored("tensors", selection, (*KEYS, "present", "fingerprint"))
            if not rows.num_rows:
                continue
            keys = self.names.keys(rows)
            block, _, _, holders = Placing(trace.blocks, self.names, rank).of(keys)
            shared = np.flatnonzero(holders > 1)
            absent = ~flags(rows.column("present"))
            bits = np.where(absent, _NONE, elements(rows.column("fingerprint")))
            own = (keys[shared], block[shared], bits[shared], holders[shared], np.full(len(shared), rank))
            for column, values in zip(columns, own, strict=True):
                column.append(values.astype(np.int64))
        keys, block, bits, holders, ranks = (np.concatenate(parts) for parts in columns)
        order = np.lexsort((ranks, block, keys))
        self.keys, self.block, self.bits = keys[order], block[order], bits[order]
        self.holders, self.ranks = holders[order], ranks[order]
        before = np.array([_kind(word).endswith("_in") for word in self.names.quantity_words] or [False])
        self.before = before[self.names.quantity_numbers(self.keys)]

    @property
    def steps(self) -> Ints:
        """The step of each row."""
        return step_of(self.keys)

    @property
    def starts(self) -> Ints:
        """Where the rows of each block begin."""
        new = (self.keys[1:] != self.keys[:-1]) | (self.block[1:] != self.block[:-1])
        return np.flatnonzero(np.append(True, new))


def _describe(trace: LogicalTrace, optimizer: int, step: int) -> Drift:
    """What differs at the first step at which something does."""
    table = _Table(trace, optimizer, None, (step, step))
    starts = table.starts
    ends = np.append(starts[1:], len(table.keys))
    apart: dict[str, dict[str, tuple[int, ...]]] = {}
    holders: set[int] = set()
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        bits, ranks = table.bits[start:end], table.ranks[start:end].tolist()
        camps = Counter(bits.tolist())
        odd: tuple[int, ...] = ()
        if len(camps) > 1:
            most = max(camps.values())
            usual = next(one for one in bits.tolist() if camps[one] == most)
            odd = tuple(rank for rank, one in zip(ranks, bits.tolist(), strict=True) if one != usual)
        elif table.before[start] and end - start < table.holders[start]:
            odd = tuple(ranks)
        if odd:
            _, param, quantity = table.names.place(int(low_of(table.keys[start : start + 1])[0]))
            apart.setdefault(quantity, {})[param] = odd
            split = trace.blocks.split(optimizer, param, quantity)
            holders.update(*split.holders)
    quantity = min(apart, key=lambda word: (_ORDER.index(_kind(word)), word))
    odd_ranks = sorted({rank for ranks in apart[quantity].values() for rank in ranks})
    total = sum(index == optimizer for index, _ in trace.blocks)
    others = tuple(sorted(holders - set(odd_ranks)))
    return Drift(optimizer, step, quantity, tuple(apart[quantity]), tuple(odd_ranks), others, total)


def _kind(quantity: str) -> str:
    return quantity.partition(".")[0]
