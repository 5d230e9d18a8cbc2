"""Trains what is each rank's own under one name, and what only looks so, a run a case."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import optrace

STEPS = 3


def stage(rank, *widths):
    """Layers of a stage: a norm starts from equal values wherever it is."""
    torch.manual_seed(rank)
    return nn.Sequential(nn.Linear(*widths), nn.Tanh(), nn.LayerNorm(widths[-1]))


def model_of(case, rank):
    if case.startswith("stages"):
        return stage(rank, 8, 5 if case == "stages-unlike" and rank else 8)
    seed = 0 if case == "unreduced" else rank
    model = nn.ModuleDict({"router": stage(0 if "experts" in case else seed, 8, 8), "expert": stage(seed, 8, 8)})
    if case == "experts-other" and rank == 1:
        nn.init.constant_(model["expert"][2].weight, 2.0)
    return model


def reduced(case, model):
    """The parameters whose gradients are averaged over the ranks."""
    if "experts" in case:
        return list(model["router"].parameters())
    return list(model.parameters()) if case == "no-broadcast" else []


def train(case, model, out, params=None):
    rank, world = dist.get_rank(), dist.get_world_size()
    optimizer = torch.optim.AdamW(params or model.parameters(), lr=0.01)
    with optrace.record(out):
        for step in range(STEPS):
            optimizer.zero_grad()
            rows = torch.randn(4, 8, generator=torch.Generator().manual_seed(10 * step + rank))
            made = model["expert"](model["router"](rows)) if isinstance(model, nn.ModuleDict) else model(rows)
            (made - rows[:, : made.shape[1]].roll(1, 1)).square().mean().backward()
            for param in reduced(case, model):
                dist.all_reduce(param.grad)
                param.grad /= world
            optimizer.step()
    dist.barrier()


class Chain(nn.Module):
    """Layers one after the other, of which a stage of a pipeline keeps some under their names."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleDict({str(number): nn.Linear(8, 8) for number in range(4)})

    def forward(self, x):
        for layer in self.layers.values():
            x = torch.tanh(layer(x))
        return x


def rows_of(step):
    return torch.randn(8, 8, generator=torch.Generator().manual_seed(step))


def loss_of(made, wanted):
    return (made - wanted).square().mean()


def whole(out):
    """What the pipeline computes, in one process: two micro-batches a step."""
    chain = Chain()
    optimizer = torch.optim.AdamW(chain.parameters(), lr=0.01)
    with optrace.record(out, quiet=True):
        for step in range(STEPS):
            optimizer.zero_grad()
            rows = rows_of(step)
            for part, wanted in zip(rows.chunk(2), rows.roll(1, 1).chunk(2), strict=True):
                (loss_of(chain(part), wanted) / 2).backward()
            optimizer.step()


def pipeline(out):
    """The same by torch's own pipeline of two stages."""
    from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

    rank, chain = dist.get_rank(), Chain()
    for name in list(chain.layers):
        if int(name) // 2 != rank:
            del chain.layers[name]
    schedule = ScheduleGPipe(PipelineStage(chain, rank, 2, torch.device("cpu")), n_microbatches=2, loss_fn=loss_of)
    optimizer = torch.optim.AdamW(chain.parameters(), lr=0.01)
    with optrace.record(out):
        for step in range(STEPS):
            optimizer.zero_grad()
            if rank:
                schedule.step(target=rows_of(step).roll(1, 1), losses=[])
            else:
                schedule.step(rows_of(step))
            optimizer.step()
    dist.barrier()


def main(out: Path, arguments: list[str]) -> None:
    """Write a run into `out` for each case; `-named` gives the optimizer names of the rank's own."""
    dist.init_process_group("gloo")
    for case in arguments:
        if case == "pipeline":
            pipeline(out / case)
            continue
        kind, rank = case.removesuffix("-named"), dist.get_rank()
        number = rank // 2 if kind == "stages-sharded" else rank
        model = model_of(kind, number)
        if kind == "stages-sharded":
            fully_shard(model, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("stage", "dp"))["dp"])
        named = [(f"stage{number}.{name}", param) for name, param in model.named_parameters()]
        train(kind, model, out / case, named if kind != case else None)
    dist.destroy_process_group()
