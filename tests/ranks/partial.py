"""Trains a DTensor whose gradients are partial sums, which the optimizer reduces as it uses them."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, distribute_tensor

import optrace

STEPS = 3


def local_gradient(step: int, rank: int) -> torch.Tensor:
    return torch.arange(18.0).view(6, 3).mul(rank + 1).add(step).sin()


def train(path: Path, param: nn.Parameter, gradient) -> None:
    optimizer = torch.optim.SGD([("w", param)], lr=0.1, foreach=False)
    with optrace.record(path):
        for step in range(1, STEPS + 1):
            param.grad = gradient(step)
            optimizer.step()


def main(out: Path, arguments: list[str]) -> None:
    """Write the runs `partial-1` (one process, gradients summed by hand) and `partial-2` into `out`."""
    dist.init_process_group("gloo")
    rank, mesh = dist.get_rank(), init_device_mesh("cpu", (2,))
    start = torch.linspace(-1, 1, 18).view(6, 3)
    param = nn.Parameter(distribute_tensor(start.clone(), mesh, [Replicate()]))
    train(out / "partial-2", param, lambda step: DTensor.from_local(local_gradient(step, rank), mesh, [Partial()]))
    dist.destroy_process_group()
    if rank == 0:
        summed = nn.Parameter(start.clone())
        train(out / "partial-1", summed, lambda step: local_gradient(step, 0) + local_gradient(step, 1))
