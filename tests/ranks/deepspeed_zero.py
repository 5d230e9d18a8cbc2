"""Trains the transformer under DeepSpeed ZeRO."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from transformer import BATCH, loss_of, make

import optrace


def groups_of(model):
    """Weight decay for matrices alone, as trainers set it up."""
    params = list(model.parameters())
    return [
        {"params": [param for param in params if param.ndim > 1], "weight_decay": 0.1},
        {"params": [param for param in params if param.ndim == 1], "weight_decay": 0.0},
    ]


def prepare() -> None:
    """Import DeepSpeed: the longest part, done once for all ranks."""
    import deepspeed
    import deepspeed.runtime.zero.muon.muon_optimizer  # which stages 1 to 3 import, and with it torch's compiler

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # which would be compiled; gloo does


def main(out: Path, arguments: list[str]) -> None:
    """Write a run such as `zero1` or `zero3-groups` into `out`; arguments are the number of steps and this name."""
    prepare()
    import deepspeed

    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
    rank, world = dist.get_rank(), dist.get_world_size()
    steps, name = int(arguments[0]), arguments[1]
    kind, *options = name.split("-")
    model = make()
    params = groups_of(model) if "groups" in options else model.parameters()
    optimizer = torch.optim.AdamW(params, lr=3e-3, weight_decay=0.1)
    stage = {"stage": int(kind[-1]), "round_robin_gradients": "robin" in options}
    if "small" in options:
        stage["sub_group_size"] = 2000
    config = {
        "train_micro_batch_size_per_gpu": BATCH // world,
        "zero_optimization": stage,
        "zero_allow_untested_optimizer": True,
    }
    if "bf16" in options or "fp16" in options:
        config |= {"bf16": {"enabled": "bf16" in options}, "fp16": {"enabled": "fp16" in options}}
        config |= {"data_types": {"grad_accum_dtype": "fp32"}} if "accum" in options else {}
    with optrace.record(out / name, values="full" if "full" in options else "sample"):
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        for step in range(1, steps + 1):
            engine.backward(loss_of(engine, step, rank, world))
            engine.step()
    dist.barrier()
    dist.destroy_process_group()
