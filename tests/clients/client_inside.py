"""Runs a training function twice in this process, bare, then recorded beside the independent capture, and compares."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from client_capture import Captured
from client_check import check_optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import optrace
from optrace.trace.reader import Trace

Named = Iterable[tuple[str, torch.Tensor]]
Train = Callable[[], Named]
"""Trains, from a seed of its own, and returns all parameters with the names that they ought to have."""


@contextmanager
def capturing() -> Iterator[list[Captured]]:
    """Note every step of every torch optimizer in the block; no optimizer is kept alive."""
    seen: list[tuple[weakref.ref[Any], Captured]] = []
    found: list[Captured] = []
    depth: dict[int, int] = {}

    def before(optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        depth[id(optimizer)] = depth.get(id(optimizer), 0) + 1
        if depth[id(optimizer)] > 1:
            return None
        captured = next((known for ref, known in seen if ref() is optimizer), None)
        if captured is None:
            captured = Captured(type(optimizer).__name__)
            found.append(captured)
            seen.append((weakref.ref(optimizer), captured))
        captured.before(optimizer, [])

        def watched(closure: Callable[[], Any]) -> Callable[[], Any]:
            def evaluate() -> Any:
                result = closure()
                captured.evaluated(optimizer)
                return result

            return evaluate

        first, *rest = args
        return (first, *(watched(arg) if callable(arg) else arg for arg in rest)), kwargs

    def after(optimizer: Any, *_: Any) -> None:
        depth[id(optimizer)] -= 1
        if depth[id(optimizer)] == 0:
            next(known for ref, known in seen if ref() is optimizer).after(optimizer)

    handles = [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def check_inside(folder: Path, train: Train, steps: Iterable[int]) -> Trace:
    """Recording changes no bit of the parameters, and every row is the capture's; so many steps an optimizer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        bare = list(train())
        with capturing() as found, optrace.record(folder / "run", quiet=True, strict=True):
            recorded = list(train())
    finally:
        torch.set_num_threads(threads)
    assert [name for name, _ in bare] == [name for name, _ in recorded]
    different = [name for (name, one), (_, two) in zip(bare, recorded, strict=True) if not same_bits(one, two)]
    assert different == [], "recording changed the weights"
    trace = optrace.open(folder / "run")
    assert [*trace.problems, *trace.verify()] == []
    assert [captured.completed for captured in found] == list(steps)
    assert [name for _, name in trace.optimizers] == [captured.class_name for captured in found]
    names = {id(param): name for name, param in recorded}
    for index, captured in enumerate(found):
        as_json = captured.as_json(names)
        check_optimizer(trace, index, as_json)
        listed = trace.params[trace.params["optimizer"] == index]["param"].tolist()
        assert set(listed) == {row[2] for row in as_json["rows"]} - {""}, "the table params lists what was recorded"
    return trace


def same_bits(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Whether two tensors are the same in every bit, NaNs and signs of zeros too."""
    if (one.dtype, one.shape) != (two.dtype, two.shape):
        return False
    flat = [t.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8) for t in (one, two)]
    return torch.equal(*flat)
