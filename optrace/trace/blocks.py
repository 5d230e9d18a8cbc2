"""Which rank holds which block of which tensor: what is needed to read the folders of many ranks as one run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from optrace.errors import TraceError

Key = tuple[int, str, str]
"""Optimizer, param, quantity."""

NOWHERE = -1
"""The number of an empty block: it has no part in the whole."""


@dataclass(frozen=True)
class Block:
    """A block of a whole tensor: a row of `pieces` in params.json."""

    shape: tuple[int, ...]
    offset: tuple[int, ...]
    of: tuple[int, ...]
    part: tuple[int, ...] = ()
    """Which summand it is of a tensor that is the sum over ranks; empty for plain elements."""

    @property
    def numel(self) -> int:
        """Number of elements."""
        return int(math.prod(self.shape))


@dataclass(frozen=True)
class Split:
    """How one tensor is spread over the ranks."""

    blocks: tuple[Block, ...]
    """The different blocks that ranks hold; none for a tensor that every holder has whole."""
    holders: tuple[tuple[int, ...], ...]
    """The ranks that hold each block (of a whole tensor: the one entry lists all)."""
    number_of: Mapping[int, int]
    """Rank -> number of its block; NOWHERE for an empty one."""

    @cached_property
    def count(self) -> int:
        """Blocks that make the whole; 0 where those that ranks hold do not hold every element of it."""
        if not self.blocks:
            return 1
        whole: int = math.prod(self.blocks[0].of)
        covers = self.summed or sum(block.numel for block in self.blocks) == whole
        return len(self.blocks) if covers else 0

    @property
    def summed(self) -> bool:
        """Whether the true values are sums over the blocks."""
        return bool(self.blocks) and bool(self.blocks[0].part)


class Blocks:
    """The blocks of all ranks' tensors, from their params.json."""

    def __init__(self, params: Mapping[int, Sequence[Mapping[str, Any]]]) -> None:
        """`params`: rank to the rows of its params.json."""
        self._holders: dict[tuple[int, str], list[int]] = {}
        self._pieces: dict[Key, dict[int, Block]] = {}
        self._splits: dict[Key, Split] = {}
        for rank, rows in sorted(params.items()):
            for row in rows:
                name, optimizer = row.get("param"), row.get("optimizer")
                if not isinstance(name, str) or type(optimizer) is not int:
                    continue
                self._holders.setdefault((optimizer, name), []).append(rank)
                for quantity, (block, _) in pieces_of(row).items():
                    self._pieces.setdefault((optimizer, name, quantity), {})[rank] = block
        self._all = sorted(params)

    def __iter__(self) -> Iterator[tuple[int, str]]:
        """Optimizer and name of every parameter."""
        return iter(self._holders)

    def known_on(self, param: str) -> set[int]:
        """The ranks on which some optimizer has a parameter of this name, or a part of it."""
        return {rank for (_, name), ranks in self._holders.items() if name == param for rank in ranks}

    def split(self, optimizer: int, param: str, quantity: str) -> Split:
        """How a tensor is spread; `param_in`, `state_in.x` and `grad_micro.k` lie as `param`, `state.x` and `grad`."""
        key = (optimizer, param, base_quantity(quantity))
        found = self._splits.get(key)
        if found is None:
            found = self._splits[key] = self._split(key)
        return found

    def _split(self, key: Key) -> Split:
        ranks = self._holders.get(key[:2], self._all)
        pieces = self._pieces.get(key, {})
        number_of: dict[int, int] = {}
        blocks: dict[Block, int] = {}
        holders: list[list[int]] = []
        if not pieces:
            return Split((), (tuple(ranks),), dict.fromkeys(ranks, 0))
        for rank in ranks:
            block = pieces.get(rank)
            if block is None:
                number_of[rank] = NOWHERE  # it has not got so far as to record this tensor
            elif not block.numel and block.shape != block.of:
                number_of[rank] = NOWHERE
            elif block in blocks:
                number_of[rank] = blocks[block]
                holders[number_of[rank]].append(rank)
            else:
                number_of[rank] = blocks[block] = len(blocks)
                holders.append([rank])
        return Split(tuple(blocks), tuple(tuple(ranks) for ranks in holders), number_of)


def base_quantity(quantity: str) -> str:
    """The quantity that lies on the ranks as this one does: `param` for `param_in`, `grad` for `grad_micro.1`."""
    kind, dot, key = quantity.partition(".")
    if kind == "grad_micro":
        return "grad"
    return kind.removesuffix("_in") + dot + key


def _sizes(values: Sequence[Any]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def pieces_of(row: Mapping[str, Any]) -> dict[str, tuple[Block, int]]:
    """Quantity to the block of it that a rank holds, and the lowest of the ranks that hold the blocks of the whole.

    `row` is one of params.json. Where it does not say, all ranks of the job do: the lowest is -1.

    Raises:
        TraceError: the pieces make no sense.
    """
    found: dict[str, tuple[Block, int]] = {}
    try:
        for piece in row.get("pieces") or ():
            among = int(piece.get("among", -1))
            shape, offset, of = (_sizes(piece[name]) for name in ("shape", "offset", "of"))
            part = _sizes(piece.get("part", ()))
            if not len(shape) == len(offset) == len(of) or any(n < 0 for n in (*shape, *offset, *of)):
                raise ValueError
            for quantity in piece["quantities"]:
                found[str(quantity)] = Block(shape, offset, of, part), among
    except (KeyError, TypeError, ValueError, AttributeError):
        raise TraceError(f"params.json is damaged: the pieces of {row.get('param')!r} make no sense") from None
    return found
