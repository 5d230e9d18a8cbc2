"""Trains the transformer in the layouts that are named, a run a layout."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from transformer import Block, loss_of, make

import optrace

OPTIONS = dict(lr=3e-3, weight_decay=0.1)


def tensor_parallel(model, mesh):
    plan = {f"attention.{name}": ColwiseParallel() for name in ("wq", "wk", "wv")}
    plan |= {
        "attention.wo": RowwiseParallel(),
        "feed_forward.w1": ColwiseParallel(),
        "feed_forward.w2": RowwiseParallel(),
    }
    for block in model.blocks:
        parallelize_module(block, mesh, plan)


def sharded(model, mesh):
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def build(layout):
    """The model, its optimizer, and which share of the data this rank gets."""
    model, rank, world = make(), dist.get_rank(), dist.get_world_size()
    share = rank, world
    if layout.startswith("ddp") or layout == "zero":
        model = DistributedDataParallel(model)
    elif layout.startswith("fsdp2"):
        sharded(model, init_device_mesh("cpu", (world,)))
    elif layout.startswith("tp"):
        tensor_parallel(model, init_device_mesh("cpu", (world,)))
        share = 0, 1
    elif layout == "both":
        mesh = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("dp", "tp"))
        tensor_parallel(model, mesh["tp"])
        sharded(model, mesh["dp"])
        share = mesh["dp"].get_local_rank(), world // 2
    elif layout == "hsdp":
        sharded(model, init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("replicate", "shard")))
    elif layout.startswith("fsdp1"):
        every = {"auto_wrap_policy": ModuleWrapPolicy({Block}), "device_id": torch.device("cpu")}
        model = FullyShardedDataParallel(model, use_orig_params=layout == "fsdp1", **every)
    if layout == "zero":
        return model, ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, **OPTIONS), share
    return model, torch.optim.AdamW(model.parameters(), **OPTIONS), share


def main(out: Path, arguments: list[str]) -> None:
    """Write the runs into `out`; arguments are the number of steps and the layouts."""
    steps, layouts = int(arguments[0]), arguments[1:]
    dist.init_process_group("gloo")
    for layout in layouts:
        model, optimizer, share = build(layout)
        values = "full" if layout.endswith("-full") else "sample"
        with optrace.record(out / f"{layout}-{dist.get_world_size()}", values=values):
            for step in range(1, steps + 1):
                optimizer.zero_grad()
                loss_of(model, step, *share).backward()
                optimizer.step()
        dist.barrier()
    dist.destroy_process_group()
