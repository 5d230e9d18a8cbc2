"""Trains the transformer in one process: `single.py OUT STEPS` makes the runs `single` and `single-full`."""

import sys
from pathlib import Path

import torch
from transformer import loss_of, make

import optrace

torch.set_num_threads(1)
for name, values in (("single", "sample"), ("single-full", "full")):
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    with optrace.record(Path(sys.argv[1]) / name, values=values):
        for step in range(1, int(sys.argv[2]) + 1):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            optimizer.step()
