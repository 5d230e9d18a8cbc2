"""A recording that only remembers what it is told, for tests of the observers; and small models to train."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from optrace.recorder import wrappers
from optrace.recorder.context import StepContext
from optrace.recorder.events_data import clean_json
from optrace.recorder.uncompiled import leave_uncompiled


class Listening:
    """Stands for a Session: keeps the events and takes the context at each completed step."""

    def __init__(self) -> None:
        self.context = StepContext(wrappers.sight)
        self.events: list[tuple[str, Any, dict[str, Any]]] = []
        self.steps: list[tuple[Any, dict[str, Any]]] = []
        self.errors: list[Exception] = []

    def emit(self, kind: str, optimizer: Any, data: dict[str, Any]) -> None:
        self.events.append((kind, optimizer, clean_json(data)))

    def fail(self, error: Exception) -> None:
        self.errors.append(error)

    def kinds(self) -> list[str]:
        return [kind for kind, _, _ in self.events]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [data for name, _, data in self.events if name == kind]

    def losses(self, optimizer: Any) -> list[float | None]:
        return [taken["loss"] for owner, taken in self.steps if owner is optimizer]

    def taken(self, optimizer: Any = None) -> list[dict[str, Any]]:
        return [taken for owner, taken in self.steps if optimizer is None or owner is optimizer]


@contextmanager
def listening() -> Iterator[Listening]:
    """Install the observers for the length of a `with` block; what went wrong in them fails the test."""
    listener = Listening()

    def stepped(optimizer: Any, args: Any, kwargs: Any) -> None:
        if getattr(optimizer, "found_inf", None) is None or not optimizer.found_inf.item():
            listener.steps.append((optimizer, listener.context.take(optimizer)))
            listener.emit("step", optimizer, {})

    leave_uncompiled(stepped, calls_too=True)
    handle = register_optimizer_step_post_hook(stepped)
    wrappers.install(listener)
    try:
        yield listener
    finally:
        wrappers.remove(listener)
        handle.remove()
    assert listener.errors == []


def small_model(seed: int = 0) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))


def small_data(n: int = 16, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, generator=generator), torch.randn(n, 1, generator=generator)


def mse(model: torch.nn.Module, data: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return torch.nn.functional.mse_loss(model(data[0]), data[1])
