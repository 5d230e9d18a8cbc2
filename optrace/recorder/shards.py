"""Which elements of a whole tensor this rank holds: pieces of DTensors, and of FSDP1's flattened parameters."""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from optrace.recorder.living import living


@dataclass(frozen=True)
class Piece:
    """A block of a whole tensor; shapes in elements (complex counts once)."""

    shape: tuple[int, ...]
    offset: tuple[int, ...]
    of: tuple[int, ...]
    """Shape of the whole; one number for a stretch of the flattened whole."""
    part: tuple[int, ...] = ()
    """Of a tensor whose true values are a sum over ranks: which of the summands this is."""
    whole: tuple[int, ...] | None = None
    """The whole's own shape where `of` is that of its flattened form."""
    among: int | None = None
    """The lowest of the ranks that hold the blocks of the whole, where these are not all ranks of the job."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as in params.json."""
        found: dict[str, Any] = {"shape": list(self.shape), "offset": list(self.offset), "of": list(self.of)}
        if self.part:
            found["part"] = list(self.part)
        return found if self.among is None else {**found, "among": self.among}


@dataclass(frozen=True)
class Shard:
    """A piece of a larger tensor as it is measured: its dtype and which elements of the whole it holds."""

    dtype: torch.dtype
    index_base: int
    global_numel: int
    sizes: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    layout: Any = field(default=None, compare=False, repr=False)
    """int64 array [ndim, sizes.., strides..] for the measuring jobs; None where the elements follow each other."""
    piece: Piece | None = None


class CannotPlace(Exception):
    """A rank's elements are no block of the whole."""


Found = tuple[int, int, Any]
"""Address, number of elements, kind: as `optrace.recorder.tensors` locates."""

Place = Callable[[torch.dtype, int], Shard]
"""From the dtype and 2 for complex (1 otherwise) to the shard."""

_KNOWN_MOST = 4096
_pieces: dict[tuple[Any, ...], Piece | None] = {}
_lowest: weakref.WeakKeyDictionary[Any, int | None] = weakref.WeakKeyDictionary()
"""What `_lowest_of` found, by mesh."""


def place_of(tensor: Any) -> Place | None:
    """Which elements of the whole DTensor the local piece holds; None where every rank holds all of them.

    Raises:
        CannotPlace: they are no block of it, or the local tensor has another shape than its placement says.
    """
    whole, local = tuple(tensor.shape), tuple(tensor._local_tensor.shape)
    mesh, placements = tensor.device_mesh, tuple(tensor.placements)
    coordinate = mesh.get_coordinate()
    if coordinate is None:  # this rank holds nothing of it
        return placed(Piece(local, (0,) * len(local), whole if len(local) == len(whole) else (math.prod(whole),)))
    among = _lowest_of(mesh)
    key = (whole, tuple(mesh.shape), tuple(coordinate), placements, local, among)
    if key not in _pieces:
        if len(_pieces) >= _KNOWN_MOST:
            _pieces.clear()
        found = _piece(whole, local, tuple(mesh.shape), tuple(coordinate), placements)
        _pieces[key] = None if found is None else replace(found, among=among)
    piece = _pieces[key]
    return None if piece is None else placed(piece)


def _lowest_of(mesh: Any) -> int | None:
    """The lowest rank of a mesh that does not hold all ranks of the job; None of one that does."""
    if mesh not in _lowest:
        ranks = mesh.mesh.flatten().tolist()
        _lowest[mesh] = min(ranks) if len(ranks) < torch.distributed.get_world_size() else None
    return _lowest[mesh]


def placed(piece: Piece) -> Place:
    """The shard of a piece, once its dtype is known."""
    strides = [1] * len(piece.of)
    for dim in range(len(piece.of) - 2, -1, -1):
        strides[dim] = strides[dim + 1] * piece.of[dim + 1]
    base = sum(offset * stride for offset, stride in zip(piece.offset, strides, strict=True))
    total = math.prod(piece.of)

    def place(dtype: torch.dtype, factor: int) -> Shard:
        real_sizes, real_strides = list(piece.shape), [stride * factor for stride in strides]
        if factor == 2:
            real_sizes.append(2)
            real_strides.append(1)
        layout = np.array([len(real_sizes), *real_sizes, *real_strides], dtype=np.int64)
        return Shard(dtype, base * factor, total * factor, tuple(real_sizes), tuple(real_strides), layout, piece)

    return place


def _piece(
    whole: tuple[int, ...],
    local: tuple[int, ...],
    mesh: tuple[int, ...],
    coordinate: tuple[int, ...],
    placements: tuple[Any, ...],
) -> Piece | None:
    """The block of a DTensor at a coordinate of its mesh; None where every rank holds the whole."""
    held = [list(range(size)) for size in whole]
    part: list[int] = []
    divided = False
    for size, at, placement in zip(mesh, coordinate, placements, strict=True):
        if placement.is_partial():
            part.append(at)
        elif not placement.is_replicate():
            divided = divided or size > 1  # even where this rank holds all: the others then hold nothing
            dim = placement.dim
            chunks = getattr(placement, "split_factor", 1)
            held[dim] = [index for chunk in _split(held[dim], chunks) for index in _split(chunk, size)[at]]
    shape = tuple(len(indices) for indices in held)
    if shape != local:
        raise CannotPlace(f"its local shape is {local}, where its placement {placements} gives {shape}")
    if any(indices and indices[-1] - indices[0] + 1 != len(indices) for indices in held):
        raise CannotPlace(f"its placement {placements} gives this rank elements that are not next to each other")
    if shape == whole and not part and not divided:
        return None
    return Piece(shape, tuple(indices[0] if indices else 0 for indices in held), whole, tuple(part))


def _split(indices: list[int], count: int) -> list[list[int]]:
    """As torch.chunk splits, with empty pieces at the end so that there are `count`."""
    size = -(-len(indices) // count) if indices else 0
    return [indices[i * size : (i + 1) * size] for i in range(count)]


# ---- parameters in flattened ones: FSDP1 and DeepSpeed ZeRO ----


@dataclass(frozen=True)
class Stretch:
    """A part of a parameter that lies in a flattened one of `of` elements, from element `start` on."""

    start: int
    of: int
    piece: Piece

    def within(self, thing: Any, found: Found) -> Found:
        """Where the stretch lies in what was located for the flattened parameter: itself, its gradient, a state.

        What is not of its size (a step counter) stays as it is.
        """
        address, numel, kind = found
        if not isinstance(kind, torch.dtype) or getattr(thing, "ndim", 0) != 1:
            return found
        factor = 2 if kind.is_complex else 1
        if numel != self.of * factor:
            return found
        size = self.piece.shape[0] * factor
        return type(address)(address + self.start * kind.itemsize), size, placed(self.piece)(kind, factor)


def _handles_of_fsdp1() -> list[Any]:
    """What holds FSDP1's flat parameters, which torch's compiler imports too; none is made without a process group."""
    kind = getattr(sys.modules.get("torch.distributed.fsdp._flat_param"), "FlatParamHandle", None)
    return living(kind) if kind is not None and torch.distributed.is_initialized() else []


class FlatPieces:
    """Recorded parameters that are, or lie in, flattened ones, and which stretches of them this rank holds.

    FSDP1 (`use_orig_params=True`) is read from `FlatParameter._params`, `_shapes` and `_shard_param_infos` (torch 2.1
    to 2.13); its parameters are the stretches themselves. Where it has such attributes no longer, nothing is found and
    the stretches are recorded as if they were whole. Those within the flattened parameters of DeepSpeed and of FSDP1
    without that option (`optrace.recorder.zero`, `.fsdp1`) are told by the caller.
    """

    def __init__(self) -> None:
        self._found: dict[int, Stretch] = {}
        """By position among the recorded parameters."""

    def look(self, params: Sequence[torch.Tensor], stretches: Sequence[Stretch | None]) -> None:
        """Find the stretches of `params` in the live modules of FSDP1; `stretches` are those that are known."""
        self._found = {i: stretch for i, stretch in enumerate(stretches) if stretch is not None}
        places = {id(param): i for i, param in enumerate(params)}
        for handle in _handles_of_fsdp1():
            if handle.uses_sharded_strategy:
                whole = handle.flat_param
                infos = getattr(whole, "_shard_param_infos", None)
                owned = getattr(whole, "_params", None)
                for param, shape, info in zip(owned or (), whole._shapes, infos or (), strict=False):
                    if id(param) in places:
                        start = info.intra_param_start_idx if info.in_shard else 0
                        length = info.numel_in_shard if info.in_shard else 0
                        piece = Piece((length,), (start,), (math.prod(shape),), whole=tuple(shape))
                        self._found[places[id(param)]] = Stretch(0, length, piece)

    def __bool__(self) -> bool:
        return bool(self._found)

    def within(self, index: int, thing: Any, found: Found) -> Found:
        """What was located for the parameter at that position (itself, its gradient, a state), as its stretch."""
        stretch = self._found.get(index)
        return found if stretch is None else stretch.within(thing, found)
