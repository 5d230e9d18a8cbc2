"""Our optimizers under our schedulers train as torch's under torch's: each step uses the lr of the epoch before it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from optrace import reference

from .scheduler_cases import LASTING
from .scheduler_pairs import OURS, TORCH, Case
from .test_schedulers_composite import chain, sequence

CASES = [
    *(which for which in LASTING if which.optimizer != "adam"),
    sequence("linear", "cosine", milestones=[5]),
    chain("cyclic", "step"),
]


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("which", CASES, ids=str)
def test_sgd_under_a_schedule_moves_parameters_as_torch(which: Case) -> None:
    rng = np.random.default_rng(4)
    starts = [rng.standard_normal(7) for _ in range(3)]
    ours = [reference.Parameter(start.copy()) for start in starts]
    torchs = [torch.tensor(start, requires_grad=True) for start in starts]
    options: dict[str, Any] = {"lr": 0.03, "momentum": 0.4, "dampening": 0.1, "weight_decay": 0.01}
    our_optimizer = reference.SGD([{"params": [one]} for one in ours], **options)
    torch_optimizer = torch.optim.SGD([{"params": [one]} for one in torchs], foreach=False, **options)
    our_scheduler = which.build(OURS, our_optimizer)
    torch_scheduler = which.build(TORCH, torch_optimizer)
    for _ in range(40):
        for our, other in zip(ours, torchs, strict=True):
            our.grad = rng.standard_normal(7)
            other.grad = torch.tensor(our.grad)
        our_optimizer.step()
        torch_optimizer.step()
        our_scheduler.step()
        torch_scheduler.step()
        for our, other in zip(ours, torchs, strict=True):
            assert np.array_equal(our.data, other.detach().numpy())


def test_step_number_t_uses_the_lr_of_epoch_t_minus_one() -> None:
    weight = reference.Parameter(np.array([0.0]))
    optimizer = reference.SGD([weight], lr=1.0)
    scheduler = OURS.StepLR(optimizer, step_size=2, gamma=0.5)
    moved = []
    for _ in range(6):
        weight.grad = np.array([1.0])
        before = weight.data[0]
        optimizer.step()
        scheduler.step()
        moved.append(before - weight.data[0])
    assert moved == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


def test_a_resumed_run_trains_as_the_whole_one() -> None:
    def fresh() -> tuple[Any, Any, Any]:
        weight = reference.Parameter(np.array([1.0, -2.0]))
        optimizer = reference.SGD([weight], lr=0.1, momentum=0.9)
        return weight, optimizer, OURS.OneCycleLR(optimizer, max_lr=0.4, total_steps=30)

    def train(weight: Any, optimizer: Any, scheduler: Any, steps: int) -> None:
        for _ in range(steps):
            weight.grad = weight.data * np.array([1.0, 0.3])
            optimizer.step()
            scheduler.step()

    whole = fresh()
    train(*whole, 30)
    first = fresh()
    train(*first, 13)
    second = fresh()
    second[0].data[...] = first[0].data
    second[1].load_state_dict(first[1].state_dict())
    second[2].load_state_dict(first[2].state_dict())
    train(*second, 17)
    assert np.array_equal(second[0].data, whole[0].data)
    assert second[1].param_groups[0]["lr"] == whole[1].param_groups[0]["lr"]
