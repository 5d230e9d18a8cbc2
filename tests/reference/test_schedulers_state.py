"""Resuming through state_dict equals going on, and states pass between ours and torch's in both directions."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from typing import Any

import pytest

from optrace.reference import schedulers

from .scheduler_cases import LASTING
from .scheduler_pairs import OURS, TORCH, Case, Pair, group_scalars, plain_optimizer, saved, torch_optimizer
from .test_schedulers_composite import chain, sequence

CASES = [
    *LASTING,
    sequence("linear", "cosine", "exponential", milestones=[5, 12]),
    sequence("sequential", "restarts", milestones=[9]),
    chain("constant", "step", "cosine"),
    chain("cyclic", "sequential"),
]


def carry_groups(old: Any, new: Any) -> None:
    """What load_state_dict of an optimizer does to the options."""
    for source, target in zip(old.param_groups, new.param_groups, strict=True):
        target.update({key: value for key, value in source.items() if key != "params"})


def life(which: Case, steps: int) -> Pair:
    pair = Pair(which).build()
    pair.steps(steps)
    assert not pair.ended
    return pair


@pytest.mark.parametrize("cut", [1, 7, 30])
@pytest.mark.parametrize("which", CASES, ids=str)
def test_resuming_in_the_middle_equals_going_on(which: Case, cut: int) -> None:
    whole, first = life(which, 45), life(which, cut)
    for state_of in (0, 1):  # ours from ours; ours from torch's
        optimizer = plain_optimizer(which.optimizer)
        scheduler = which.build(OURS, optimizer)
        scheduler.load_state_dict(copy.deepcopy(first.schedulers[state_of].state_dict()))
        carry_groups(first.optimizers[state_of], optimizer)
        for _ in range(45 - cut):
            scheduler.step()
        assert group_scalars(optimizer) == group_scalars(whole.optimizers[1])
        assert saved(scheduler) == saved(whole.schedulers[1])


@pytest.mark.parametrize("which", CASES, ids=str)
def test_torch_can_go_on_from_our_state(which: Case) -> None:
    whole, first = life(which, 45), life(which, 17)
    optimizer = torch_optimizer(which.optimizer)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        scheduler = which.build(TORCH, optimizer)
    scheduler.load_state_dict(copy.deepcopy(first.schedulers[0].state_dict()))
    carry_groups(first.optimizers[0], optimizer)
    optimizer.step()
    for _ in range(45 - 17):
        scheduler.step()
    assert group_scalars(optimizer) == group_scalars(whole.optimizers[0])


@pytest.mark.parametrize("which", CASES, ids=str)
def test_loading_leaves_the_given_state_and_the_groups_alone(which: Case) -> None:
    pair = life(which, 3)
    state = pair.schedulers[0].state_dict()
    before = copy.deepcopy(state)
    optimizer = plain_optimizer(which.optimizer)
    scheduler = which.build(OURS, optimizer)
    groups = group_scalars(optimizer)
    scheduler.load_state_dict(state)
    assert state == before
    assert group_scalars(optimizer) == groups


@pytest.mark.parametrize("name", ["StepLR", "CosineAnnealingLR", "OneCycleLR", "CyclicLR", "SWALR", "LambdaLR"])
def test_a_state_is_plain_data(name: str) -> None:
    which = next(one for one in LASTING if one.name.startswith(f"{name}-"))
    state = life(which, 5).schedulers[0].state_dict()
    assert json.loads(json.dumps(state)) == state
    assert pickle.loads(pickle.dumps(state)) == state


class Decay:
    """A callable object: what it holds is data, so it belongs into the state."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, epoch: float) -> float:
        return self.rate**epoch


@pytest.mark.parametrize("name", ["LambdaLR", "MultiplicativeLR"])
def test_callable_objects_are_saved_and_functions_are_not(name: str) -> None:
    def build(side: Any, optimizer: Any, rate: float = 0.9) -> Any:
        return getattr(side, name)(optimizer, [Decay(rate), lambda epoch: 0.5, Decay(0.3)])

    pair = Pair(Case(name, build)).build()
    pair.steps(4)
    state = pair.schedulers[0].state_dict()
    assert state["lr_lambdas"] == [{"rate": 0.9}, None, {"rate": 0.3}]
    resumed = build(OURS, plain_optimizer(), rate=0.1)
    resumed.load_state_dict(state)
    assert resumed.lr_lambdas[0].rate == 0.9


def test_a_callable_object_as_scale_is_saved() -> None:
    def build(side: Any, optimizer: Any, rate: float = 0.9) -> Any:
        return side.CyclicLR(optimizer, 0.01, 0.1, step_size_up=3, scale_fn=Decay(rate), scale_mode="iterations")

    pair = Pair(Case("cyclic", build)).build()
    pair.steps(20)
    resumed = build(OURS, plain_optimizer(), rate=0.1)
    resumed.load_state_dict(pair.schedulers[0].state_dict())
    assert resumed.scale_fn(2) == 0.9**2


def test_a_scheduler_and_its_optimizer_can_be_copied_together() -> None:
    optimizer = plain_optimizer()
    scheduler = schedulers.CosineAnnealingLR(optimizer, T_max=7)
    other_optimizer, other = copy.deepcopy((optimizer, scheduler))
    for _ in range(20):
        scheduler.step()
        other.step()
    assert other_optimizer.param_groups == optimizer.param_groups
