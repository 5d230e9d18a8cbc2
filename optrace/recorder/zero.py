"""DeepSpeed ZeRO: where the model's parameters lie in the flattened ones that its optimizer is given.

Read from the live optimizers of `deepspeed.runtime.zero` (0.19). Stages 1 and 2 lay the parameters of a group out in
one buffer, of which the parameters are views, and give the optimizer a float32 copy of this rank's equal part of it.
Stage 3 cuts each parameter into equal parts, and gives the optimizer those of this rank one after the other. Stage 1
in bfloat16 with gradients in float32 (`BF16_Optimizer`) does as stages 1 and 2 do; stage 0 in 16 bits copies each
parameter (`FP16_UnfusedOptimizer`). What is found is held against the sizes of the buffers; where it does not fit,
flattened parameters are recorded as they are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from optrace.recorder.living import living
from optrace.recorder.shards import Piece, Stretch


@dataclass(frozen=True)
class Member:
    """A parameter of the model that is stepped within a flattened one, on this rank or another."""

    param: torch.Tensor | None
    """None where only its path is known."""
    index: int
    """Its place in the flattened one; where a group has several that are stepped apart, in its group."""
    stretch: Stretch | None
    """What this rank holds of it; None: nothing."""
    path: str = ""
    """Its name within the module that holds the flattened one."""


@dataclass(frozen=True)
class Flattened:
    """A flattened parameter of this rank and what it is made of."""

    param: torch.Tensor
    group: int
    members: tuple[Member, ...]


def flattened_of(zero: Any) -> list[Flattened]:
    """The flattened parameters of a ZeRO optimizer in the order of its steps; empty where they make no sense."""
    find = next(find for kind, find in _kinds() if type(zero) is kind)
    try:
        return list(find(zero))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return []


def members_of(params: Sequence[torch.Tensor]) -> dict[int, Flattened]:
    """Those of `params` that are flattened ones of a live ZeRO optimizer, by `id`."""
    wanted = set(map(id, params))
    found = (one for zero in live_zeros() for one in flattened_of(zero))
    return {id(one.param): one for one in found if id(one.param) in wanted}


def steps_by_parts(zero: Any) -> bool:
    """Whether it calls its optimizer once for each flattened parameter instead of once for all."""
    return type(zero).__module__.startswith("deepspeed.runtime.zero.")


def live_zeros() -> Iterator[Any]:
    """The ZeRO optimizers of this process."""
    for kind, _ in _kinds():
        yield from (thing for thing in living(kind) if type(thing) is kind)


def _kinds() -> list[tuple[type, Callable[[Any], Iterator[Flattened]]]]:
    names = (
        ("deepspeed.runtime.zero.stage_1_and_2", "DeepSpeedZeroOptimizer", _stages_1_and_2),
        ("deepspeed.runtime.zero.stage3", "DeepSpeedZeroOptimizer_Stage3", _stage_3),
        ("deepspeed.runtime.bf16_optimizer", "BF16_Optimizer", _bf16),
        ("deepspeed.runtime.fp16.unfused_optimizer", "FP16_UnfusedOptimizer", _fp16_each),
    )
    known = ((getattr(sys.modules.get(module), name, None), find) for module, name, find in names)
    return [(kind, find) for kind, find in known if kind is not None]


def _stages_1_and_2(zero: Any) -> Iterator[Flattened]:
    flat = zero.single_partition_of_fp32_groups
    return _in_one_buffer(flat, zero.bit16_groups_flat, zero.bit16_groups, zero.real_dp_process_group)


def _bf16(zero: Any) -> Iterator[Flattened]:
    flat = zero.fp32_groups_flat_partition
    return _in_one_buffer(flat, zero.bf16_groups_flat, zero.bf16_groups, zero.real_dp_process_group)


def _fp16_each(zero: Any) -> Iterator[Flattened]:
    """A float32 copy of each parameter is stepped, all of it."""
    for group, (copies, params) in enumerate(zip(zero.fp32_groups, zero.fp16_groups, strict=True)):
        for index, (copy, param) in enumerate(zip(copies, params, strict=True)):
            size = param.numel()
            piece = Piece((size,), (0,), (size,), whole=tuple(param.shape))
            yield Flattened(copy, group, (Member(param, index, Stretch(0, size, piece)),))


def _in_one_buffer(
    flats: Sequence[Any], wholes: Sequence[Any], groups: Sequence[Any], process_groups: Sequence[Any]
) -> Iterator[Flattened]:
    """Each group's parameters are views of one buffer, of which this rank's equal part is stepped."""
    for group, (flat, whole, params) in enumerate(zip(flats, wholes, groups, strict=True)):
        first = torch.distributed.get_rank(process_groups[group]) * flat.numel()
        if flat.numel() * torch.distributed.get_world_size(process_groups[group]) != whole.numel():
            raise ValueError("the parts do not make the whole")
        members = []
        for index, param in enumerate(params):
            start, rest = divmod(param.data_ptr() - whole.data_ptr(), whole.element_size())
            size = param.numel()
            if size and (rest or not 0 <= start <= whole.numel() - size):
                raise ValueError("a parameter does not lie in the flattened ones of its group")
            begin, end = max(start, first), min(start + size, first + flat.numel())
            piece = Piece((end - begin,), (begin - start,), (size,), whole=tuple(param.shape))
            members.append(Member(param, index, Stretch(begin - first, flat.numel(), piece) if begin < end else None))
        yield Flattened(flat, group, tuple(members))


def _stage_3(zero: Any) -> Iterator[Flattened]:
    in_group: dict[int, int] = {}
    for number, (flat, params) in enumerate(zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True)):
        group = zero.sub_group_to_group_id[number]
        at = 0
        members = []
        for param in params:
            part, size = param.ds_tensor.ds_numel, param.ds_numel
            offset = part * torch.distributed.get_rank(param.ds_process_group)
            held = min(part, size - offset)
            piece = Piece((held,), (offset,), (size,), whole=tuple(param.ds_shape))
            index = in_group[group] = in_group.get(group, -1) + 1
            members.append(Member(param, index, Stretch(at, flat.numel(), piece) if held > 0 else None))
            at += part
        if at != flat.numel():
            raise ValueError("the parts do not make the flattened parameter")
        yield Flattened(flat, group, tuple(members))
