"""Resumed runs show what they loaded, and every recorded step can be recomputed from what is recorded."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import optrace
from optrace.replayer.run import replay

STEPS = 10


def make() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    return model, torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)


def train(model: nn.Module, optimizer: Any, steps: int, load_at: int | None = None) -> None:
    generator = torch.Generator().manual_seed(2)
    x, y = torch.randn(20, 4, generator=generator), torch.randn(20, 2, generator=generator)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    saved = None
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
        scheduler.step()
        if step == 2:
            saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        if step == load_at:
            model.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])


RECORDINGS = [
    ({}, None, STEPS),
    ({"every": 3}, None, 4),
    ({"steps": "4:8"}, None, 5),
    ({}, 6, STEPS),
    ({"every": 4}, 6, 3),
    ({"steps": "7:"}, 6, 4),
]


@pytest.mark.parametrize(("settings", "load_at", "recorded"), RECORDINGS, ids=str)
def test_every_recorded_step_can_be_recomputed(tmp_path, settings, load_at, recorded):
    model, optimizer = make()
    with optrace.record(tmp_path / "run", quiet=True, **settings):
        train(model, optimizer, STEPS, load_at)
    report = replay(tmp_path / "run")
    assert report.same, str(report)
    assert report.n_steps == recorded


def test_a_resumed_run_shows_in_step_0_what_it_loaded(tmp_path):
    model, optimizer = make()
    with optrace.record(tmp_path / "first", quiet=True):
        train(model, optimizer, 4)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    model, optimizer = make()
    with optrace.record(tmp_path / "second", quiet=True):
        model.load_state_dict(saved[0])
        optimizer.load_state_dict(saved[1])
        train(model, optimizer, 3)
    first, second = optrace.open(tmp_path / "first"), optrace.open(tmp_path / "second")
    end, begin = first.table("tensors", step=4), second.table("tensors", step=0)
    kept = end[end["quantity"].str.startswith(("param", "state."))]
    columns = ["param", "quantity", "dtype", "fingerprint"]
    assert begin[columns].values.tolist() == kept[columns].values.tolist()
    loads = [event for event in second.events.to_dict("records") if event["kind"] == "load_state_dict"]
    assert [(event["optimizer"], event["step"]) for event in loads] == [(0, 0)]
    report = replay(second)
    assert report.same and report.n_steps == 3, str(report)
