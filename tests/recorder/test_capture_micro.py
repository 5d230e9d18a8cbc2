"""`--micro`: the gradients after each backward between two steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import optrace


def rows(trace: Any, step: int) -> dict[str, list[float] | None]:
    frame = trace.tensors
    chosen = frame[(frame.step == step) & frame.quantity.str.startswith("grad")]
    return {
        f"{row.param} {row.quantity}": list(row.sample[: row.numel]) if row.present else None
        for row in chosen.itertuples()
    }


def test_gradients_after_each_backward_of_an_accumulated_step(tmp_path: Path) -> None:
    w = torch.ones(1, requires_grad=True)
    v = torch.ones(1, requires_grad=True)
    optimizer = torch.optim.SGD([w, v], lr=0.1)
    with optrace.record(tmp_path / "run", micro=True, quiet=True, strict=True):
        for factors in ((1.0, 2.0, 3.0), (4.0,)):
            optimizer.zero_grad()
            for number, factor in enumerate(factors):
                (w * factor + (v if number else 0)).sum().backward()
            optimizer.step()
    trace = optrace.open(tmp_path / "run")
    assert rows(trace, 1) == {
        "w grad": [6.0],
        "w grad_micro.1": [1.0],
        "w grad_micro.2": [3.0],
        "w grad_micro.3": [6.0],
        "v grad": [2.0],
        "v grad_micro.1": None,
        "v grad_micro.2": [1.0],
        "v grad_micro.3": [2.0],
    }
    assert rows(trace, 2) == {"w grad": [4.0], "w grad_micro.1": [4.0], "v grad": None, "v grad_micro.1": None}
    assert list(trace.steps.n_backward) == [3, 1]


def test_each_optimizer_keeps_its_own_backwards(tmp_path: Path) -> None:
    w, v = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    one, two = torch.optim.SGD([w], lr=0.1), torch.optim.SGD([v], lr=0.1)
    with optrace.record(tmp_path / "run", micro=True, quiet=True, strict=True):
        for step in range(2):
            w.sum().backward()
            w.sum().backward()
            (2 * v).sum().backward()
            if step == 0:  # made before the recording began, they are known from their first step on
                one.zero_grad()
                two.zero_grad()
                w.grad, v.grad = torch.ones(1), torch.ones(1)
            one.step()
            two.step()
            one.zero_grad()
            two.zero_grad()
    trace = optrace.open(tmp_path / "run")
    assert rows(trace, 2) == {
        "w grad": [2.0],
        "w grad_micro.1": [1.0],
        "w grad_micro.2": [2.0],
        "v grad": [2.0],
        "v grad_micro.1": [2.0],
    }


def test_without_micro_there_are_no_such_rows(tmp_path: Path) -> None:
    w = torch.ones(1, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.1)
    with optrace.record(tmp_path / "run", quiet=True, strict=True):
        w.sum().backward()
        optimizer.step()
    assert rows(optrace.open(tmp_path / "run"), 1) == {"w grad": [1.0]}
