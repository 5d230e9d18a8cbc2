"""What people write instead of a recorder: statistics of gradients, updates, parameters and state after each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Tensors = list[torch.Tensor]


def _params(optimizer: torch.optim.Optimizer) -> Tensors:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _everything(optimizer: torch.optim.Optimizer, before: Tensors) -> Tensors:
    """Gradients, updates, parameters and state: what optrace writes rows of."""
    params = _params(optimizer)
    state = [v for p in params for v in optimizer.state[p].values() if isinstance(v, torch.Tensor)]
    updates = [p - old for p, old in zip(params, before, strict=True)]
    return [p.grad for p in params if p.grad is not None] + updates + [p.detach() for p in params] + state


def nine_items(tensors: Tensors) -> Any:
    """Nine statistics of each tensor, each fetched by `.item()`."""
    rows = []
    for t in tensors:
        size = t.abs()
        rows.append(
            (
                t.mean().item(),
                size.sum().item(),
                t.norm().item(),
                t.min().item(),
                t.max().item(),
                size.max().item(),
                t.isnan().sum().item(),
                t.isinf().sum().item(),
                (t == 0).sum().item(),
            )
        )
    return rows


def foreach(tensors: Tensors) -> Any:
    """Norms over lists of tensors, stacked and fetched once: no extrema with sign, no counts, no fingerprint."""
    norms = [torch.stack(torch._foreach_norm(tensors, order)) for order in (1, 2, float("inf"))]
    means = torch.stack([t.mean() for t in tensors])
    return torch.stack([*norms, means]).tolist()


def few_calls(tensors: Tensors) -> Any:
    """Five torch calls a tensor, stacked and fetched once: no counts of nan and inf, no fingerprint."""
    parts = []
    for t in tensors:
        low, high = torch.aminmax(t)
        parts += [t.sum(), t.norm(1), t.norm(), low, high]
    return torch.stack(parts).tolist()


def hooked(write: Callable[[Tensors], Any], optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Put a way to write statistics on an optimizer; the returned function takes it off."""
    kept: list[Tensors] = [[]]
    rows: list[Any] = []

    def before(*_: Any) -> None:
        if not kept[0]:
            kept[0] = [p.detach().clone() for p in _params(optimizer)]
        else:
            with torch.no_grad():
                torch._foreach_copy_(kept[0], _params(optimizer))

    def after(*_: Any) -> None:
        with torch.no_grad():
            rows.append(write(_everything(optimizer, kept[0])))

    handles = [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]

    def remove() -> None:
        for handle in handles:
            handle.remove()

    return remove


ALTERNATIVES: dict[str, Callable[[Tensors], Any]] = {
    "nine statistics, .item()": nine_items,
    "torch._foreach_norm": foreach,
    "five torch calls a tensor": few_calls,
}
