"""Trains the transformer in one process: makes the runs `single` and `single-full`."""

from pathlib import Path

import torch
from transformer import loss_of, make

import optrace


def main(out: Path, arguments: list[str]) -> None:
    """Write the runs into `out`; the argument is the number of steps."""
    for name, values in (("single", "sample"), ("single-full", "full")):
        model = make()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
        with optrace.record(out / name, values=values):
            for step in range(1, int(arguments[0]) + 1):
                optimizer.zero_grad()
                loss_of(model, step).backward()
                optimizer.step()
