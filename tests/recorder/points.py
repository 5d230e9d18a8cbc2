"""What the tests of single points of the recorder look up in a trace."""

from __future__ import annotations

from typing import Any

import torch


def param(*values: float, **options: Any) -> torch.Tensor:
    return torch.tensor(values, requires_grad=True, **options)


def row(trace: Any, step: int, quantity: str, name: str = "w", optimizer: int = 0) -> Any:
    frame = trace.tensors
    chosen = frame[
        (frame.step == step) & (frame.quantity == quantity) & (frame.param == name) & (frame.optimizer == optimizer)
    ]
    assert len(chosen) == 1, (step, quantity, name, len(chosen))
    return chosen.iloc[0]


def sample(trace: Any, step: int, quantity: str, name: str = "w", optimizer: int = 0) -> list[float]:
    found = row(trace, step, quantity, name, optimizer)
    return list(found["sample"][: found["numel"]])


def quantities(trace: Any, step: int, name: str = "w") -> set[str]:
    frame = trace.tensors
    return set(frame[(frame.step == step) & (frame.param == name)].quantity)


def kinds(trace: Any) -> list[str]:
    return list(trace.events.kind)
