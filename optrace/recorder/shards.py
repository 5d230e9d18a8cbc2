"""Which elements of a whole tensor this rank holds: pieces of DTensors, and of FSDP1's flattened parameters."""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch


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

    def as_dict(self) -> dict[str, list[int]]:
        """Plain data, as in params.json."""
        found = {"shape": list(self.shape), "offset": list(self.offset), "of": list(self.of)}
        return {**found, "part": list(self.part)} if self.part else found


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


Place = Callable[[torch.dtype, int], Shard]
"""From the dtype and 2 for complex (1 otherwise) to the shard."""

_KNOWN_MOST = 4096
_pieces: dict[tuple[Any, ...], Piece | None] = {}


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
    key = (whole, tuple(mesh.shape), tuple(coordinate), placements, local)
    if key not in _pieces:
        if len(_pieces) >= _KNOWN_MOST:
            _pieces.clear()
        _pieces[key] = _piece(whole, local, tuple(mesh.shape), tuple(coordinate), placements)
    piece = _pieces[key]
    return None if piece is None else placed(piece)


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


# ---- FSDP1 and DeepSpeed ZeRO ----

_ZERO = {
    "deepspeed.runtime.zero.stage_1_and_2": ("DeepSpeedZeroOptimizer", "single_partition_of_fp32_groups"),
    "deepspeed.runtime.zero.stage3": ("DeepSpeedZeroOptimizer_Stage3", "fp32_partitioned_groups_flat"),
}
"""Module -> its optimizer, and where that keeps this rank's partition of each group."""


class FlatPieces:
    """Parameters that are stretches of flattened ones, and which stretches.

    FSDP1 (`use_orig_params=True`) is read from `FlatParameter._params`, `_shapes` and `_shard_param_infos` (torch 2.1
    to 2.13). DeepSpeed ZeRO (0.19) gives the optimizer this rank's equal part of each flattened group; these parts make
    the whole in the order of the ranks. Where they have such attributes no longer, nothing is found and the stretches
    are recorded as if they were whole.
    """

    def __init__(self) -> None:
        self._found: dict[int, Piece] = {}

    def look(self, params: Sequence[torch.Tensor]) -> None:
        """Find the stretches of `params` in the live modules of FSDP1 and optimizers of DeepSpeed."""
        self._found = {}
        wanted = {id(param) for param in params}
        for module, (kind, attribute) in _ZERO.items():
            known = getattr(sys.modules.get(module), kind, None)
            for zero in gc.get_objects() if known is not None else ():
                if type(zero) is known:
                    self._partitions(zero, getattr(zero, attribute, ()), wanted)
        flat = sys.modules.get("torch.distributed.fsdp._flat_param")
        of_fsdp1 = getattr(flat, "FlatParamHandle", None)
        for handle in gc.get_objects() if of_fsdp1 is not None else ():
            if type(handle) is of_fsdp1 and handle.uses_sharded_strategy:
                whole = handle.flat_param
                infos = getattr(whole, "_shard_param_infos", None)
                owned = getattr(whole, "_params", None)
                for param, shape, info in zip(owned or (), whole._shapes, infos or (), strict=False):
                    if id(param) in wanted:
                        start = info.intra_param_start_idx if info.in_shard else 0
                        length = info.numel_in_shard if info.in_shard else 0
                        self._found[id(param)] = Piece((length,), (start,), (math.prod(shape),), whole=tuple(shape))

    def _partitions(self, zero: Any, partitions: Sequence[torch.Tensor], wanted: set[int]) -> None:
        """Place this rank's partition of each group behind those of the ranks before it."""
        by_group = getattr(zero, "real_dp_process_group", None)
        for number, partition in enumerate(partitions):
            if id(partition) in wanted:
                group = by_group[number] if by_group is not None else getattr(zero, "dp_process_group", None)
                rank, world = torch.distributed.get_rank(group), torch.distributed.get_world_size(group)
                size = partition.numel()
                if rank >= 0 and world > 1:
                    self._found[id(partition)] = Piece((size,), (rank * size,), (world * size,), whole=(world * size,))

    def __bool__(self) -> bool:
        return bool(self._found)

    def kind_of(self, param: torch.Tensor, thing: Any, kind: Any, numel: int) -> Any:
        """The kind of something that was located for `param` (itself, its gradient, a state): a Shard if it is one."""
        piece = self._found.get(id(param))
        if piece is None or not isinstance(kind, torch.dtype) or getattr(thing, "ndim", 0) != 1:
            return kind
        factor = 2 if kind.is_complex else 1
        return placed(piece)(kind, factor) if numel == piece.shape[0] * factor else kind
