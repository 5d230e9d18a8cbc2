"""Trains on two ranks with one fault injected at a time, a run a fault."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch
import torch.distributed as dist
from layouts import sharded
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from transformer import loss_of, make

import optrace

STEPS = 4
OPTIONS = dict(lr=3e-3, weight_decay=0.1)


def reduce_all(model, left_out=()):
    """All-reduce gradients by hand."""
    for name, param in model.named_parameters():
        if name not in left_out:
            dist.all_reduce(param.grad)
            param.grad /= dist.get_world_size()


def flip_bit(param, index):
    bits = getattr(param, "_local_tensor", param.data).detach().view(torch.int32).view(-1)
    bits[index] ^= 1 << 3


def clip(params, fault):
    """Clip to 0.05 by the norm of the whole gradient, or of what this rank holds."""
    if fault == "fsdp2-clip-local":
        norm = torch.stack([param.grad.to_local().norm() for param in params]).norm()
        torch.nn.utils.clip_grads_with_norm_(params, 0.05, norm)
    else:
        torch.nn.utils.clip_grad_norm_(params, 0.05)


def prepare(fault):
    rank, world = dist.get_rank(), dist.get_world_size()
    model = make()
    by_hand = fault in ("by-hand", "missed-all-reduce", "layer-not-reduced", "averaged")
    if fault.startswith("fsdp2"):
        sharded(model, init_device_mesh("cpu", (world,)))
    wrapped = model if by_hand or fault.startswith("fsdp2") else DistributedDataParallel(model)
    lr = OPTIONS["lr"] * (2 if "other-lr" in fault and rank == 1 else 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1)
    if fault in ("resumed", "older-step"):
        for step in range(1, 3 if fault == "older-step" and rank == 1 else 4):  # what a checkpoint would bring
            optimizer.zero_grad()
            loss_of(model, step).backward()
            optimizer.step()
    return model, wrapped, optimizer, by_hand


def run(fault, model, wrapped, optimizer, by_hand):
    rank, world = dist.get_rank(), dist.get_world_size()
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        loss_of(wrapped, step, rank, world).backward()
        if by_hand and (fault != "averaged" or step == 1):
            alone = fault == "missed-all-reduce" and step == 3
            mine = [param.grad.clone() for param in model.parameters()] if alone and rank == 1 else []
            reduce_all(model, ("blocks.1.feed_forward.w1.weight",) if fault == "layer-not-reduced" else ())
            for param, grad in zip(model.parameters(), mine, strict=False):
                param.grad.copy_(grad)
        if "clip" in fault:
            clip(list(model.parameters()), fault)
        if "bit-flip" in fault and step == 3 and rank == 1:
            flip_bit(model.blocks[0].attention.wq.weight, 7)
        if fault == "killed" and step == 3 and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        optimizer.step()
        if fault == "averaged" and step == 3:
            for param in model.parameters():
                dist.all_reduce(param.data)
                param.data /= world
        if fault == "killed" and step == 3:
            time.sleep(60)  # until this rank is ended, too


def main(out: Path, arguments: list[str]) -> None:
    """Write a run into `out` for each fault that is named."""
    dist.init_process_group("gloo")
    for fault in arguments:
        prepared = prepare(fault)
        with optrace.record(out / fault):
            run(fault, *prepared)
        dist.barrier()
    dist.destroy_process_group()
