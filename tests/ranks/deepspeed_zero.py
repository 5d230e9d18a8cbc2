"""Trains the transformer under DeepSpeed ZeRO; DeepSpeed is imported in the ranks alone."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from transformer import BATCH, loss_of, make

import optrace


def main(out: Path, arguments: list[str]) -> None:
    """Write the run `zero0` ... `zero3` into `out`; arguments are the number of steps and the stage."""
    import deepspeed

    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
    rank, world = dist.get_rank(), dist.get_world_size()
    steps, stage = map(int, arguments)
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    config = {
        "train_micro_batch_size_per_gpu": BATCH // world,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
    }
    with optrace.record(out / f"zero{stage}"):
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        for step in range(1, steps + 1):
            engine.backward(loss_of(engine, step, rank, world))
            engine.step()
    dist.barrier()
    dist.destroy_process_group()
