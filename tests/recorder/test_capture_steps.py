"""What counts as a step, and what nested, failing and empty ones leave: points 4, 5 of the recorder in the design."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from points import kinds, param, quantities, sample

import optrace

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- 4: nested and failing steps ----


class Nested(torch.optim.SGD):
    """Calls `super().step()`, which torch wraps a second time."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.add_(1.0)
        return super().step(closure)


def test_a_step_within_a_step_is_one_step(traced: Any) -> None:
    w = param(1.0)
    optimizer = Nested([w], lr=0.5)

    def train() -> None:
        for _ in range(3):
            w.grad = torch.tensor([1.0])
            optimizer.step()

    trace = traced(train)
    assert trace.last_step(0) == 3
    assert kinds(trace).count("step") == 3
    assert sample(trace, 1, "grad") == [1.0]
    assert sample(trace, 1, "update") == [-1.0]


class Failing(torch.optim.Optimizer):
    """Moves the first parameter and then raises, when told to."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 1.0})
        self.broken = False

    def step(self, closure: Any = None) -> None:
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.sub_(p.grad)
                    if self.broken:
                        raise ZeroDivisionError("on purpose")


@pytest.mark.parametrize("fails", [(1,), (2,), (1, 2), (3,)])
def test_a_step_that_raises_is_an_event_without_a_number(traced: Any, fails: tuple[int, ...]) -> None:
    w, v = param(10.0), param(20.0)
    optimizer = Failing([{"params": [w]}, {"params": [v]}])

    def train() -> None:
        for number in (1, 2, 3):
            w.grad, v.grad = torch.tensor([1.0]), torch.tensor([1.0])
            optimizer.broken = number in fails
            try:
                optimizer.step()
            except ZeroDivisionError:
                pass

    trace = traced(train)
    assert trace.last_step(0) == 3 - len(fails)
    assert kinds(trace).count("step_failed") == len(fails)
    assert sample(trace, 3 - len(fails), "param", "v") == [20.0 - (3 - len(fails))]
    if fails == (2,):
        assert sample(trace, 2, "param_in") == [8.0]
        assert "param_in" not in quantities(trace, 2, "v")


def test_no_hook_of_ours_is_left_between_steps_or_copied(traced: Any) -> None:
    w = param(1.0)
    optimizer = torch.optim.SGD([w], lr=0.5)

    def train() -> None:
        w.grad = torch.tensor([1.0])
        optimizer.step()
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks
        assert b"optrace" not in pickle.dumps(optimizer)
        twin = copy.deepcopy(optimizer)
        twin.param_groups[0]["params"][0].grad = torch.tensor([1.0])
        twin.step()

    trace = traced(train)
    assert trace.last_step(0) == 1
    assert trace.last_step(1) == 1


# ---- 5: steps that are no steps ----


def test_a_step_that_only_creates_state_is_none(traced: Any) -> None:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)

    def train() -> None:
        get_optimizer_state_dict(model, optimizer)
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()

    trace = traced(train)
    assert "state_init" in kinds(trace)
    assert trace.last_step(0) == 1
    assert quantities(trace, 0, "weight") == {"param", "state.step", "state.exp_avg", "state.exp_avg_sq"}
    assert sample(trace, 0, "state.step", "weight") == [1.0]
    assert sample(trace, 1, "state.step", "weight") == [2.0]
    assert not any(name.startswith("state_in") for name in quantities(trace, 1, "weight"))


def test_creating_state_of_a_stateless_optimizer_in_mid_run_is_no_step(traced: Any) -> None:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train() -> None:
        for _ in range(2):
            model(torch.ones(2, 3)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            get_optimizer_state_dict(model, optimizer)

    trace = traced(train)
    assert trace.last_step(0) == 2
    assert kinds(trace).count("state_init") == 2


def test_warm_up_from_lr_zero_is_a_step(traced: Any) -> None:
    w = param(1.0)
    optimizer = torch.optim.AdamW([w], lr=0.0)

    def train() -> None:
        w.grad = torch.tensor([1.0])
        optimizer.step()

    trace = traced(train)
    assert trace.last_step(0) == 1


def test_an_optimizer_whose_step_raised_is_not_kept_alive(tmp_path: Path) -> None:
    with optrace.record(tmp_path / "run", quiet=True, strict=True):
        w = param(1.0)
        optimizer = Failing([w])
        w.grad = torch.tensor([1.0])
        optimizer.broken = True
        try:
            optimizer.step()
        except ZeroDivisionError:
            pass
        dead = weakref.ref(optimizer)
        del optimizer
        gc.collect()
        assert dead() is None
