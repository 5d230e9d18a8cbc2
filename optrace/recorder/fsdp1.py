"""FSDP1 without `use_orig_params`: which parameters of the model lie where in the flat ones that the optimizer holds.

Read from `FlatParameter._fqns`, `_shapes` and `_shard_param_infos` (torch 2.1 to 2.13). Where it has such attributes no
longer, or the flat parameter is not sharded, it is recorded as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from optrace.recorder.shards import Piece, Stretch
from optrace.recorder.zero import Flattened, Member


def members_of(params: Sequence[torch.Tensor]) -> dict[int, Flattened]:
    """Those of `params` that are flat parameters, by `id`, with what they are made of."""
    found = {}
    for param in params:
        if getattr(param, "_is_flat_param", False):
            try:
                found[id(param)] = _flattened(param)
            except (AttributeError, TypeError, ValueError):
                continue
    return found


def _flattened(flat: Any) -> Flattened:
    members = []
    for index, (path, shape, info) in enumerate(zip(flat._fqns, flat._shapes, flat._shard_param_infos, strict=True)):
        stretch = None
        if info.in_shard:
            held, size = info.numel_in_shard, math.prod(shape)
            if not 0 <= info.offset_in_shard <= flat.numel() - held:
                raise ValueError("a parameter does not lie in the flat one")
            piece = Piece((held,), (info.intra_param_start_idx,), (size,), whole=tuple(shape))
            stretch = Stretch(info.offset_in_shard, flat.numel(), piece)
        members.append(Member(None, index, stretch, path))
    return Flattened(flat, 0, tuple(members))
