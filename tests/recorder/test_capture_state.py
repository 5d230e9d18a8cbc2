"""State, groups and parameters are recorded as they are: point 6 of the recorder in the design."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from points import kinds, param, quantities, row, sample

pytestmark = pytest.mark.usefixtures("one_thread")


def test_state_of_a_parameter_without_gradient_is_not_created(traced: Any) -> None:
    w, v = param(1.0), param(2.0)
    optimizer = torch.optim.Adam([w, v], lr=0.1)

    def train() -> None:
        for _ in range(2):
            w.grad = torch.tensor([1.0])
            optimizer.step()

    trace = traced(train)
    assert v not in optimizer.state
    assert not row(trace, 1, "grad", "v").present
    assert sample(trace, 1, "update", "v") == [0.0]
    assert quantities(trace, 2, "v") == {"grad", "update", "param"}


def test_none_and_zero_gradients_differ(traced: Any) -> None:
    w = param(1.0)
    optimizer = torch.optim.SGD([w], lr=0.1)

    def train() -> None:
        optimizer.step()
        w.grad = torch.zeros(1)
        optimizer.step()

    trace = traced(train)
    assert not row(trace, 1, "grad").present
    assert row(trace, 2, "grad").present
    assert row(trace, 2, "grad").n_zero == 1


def test_tensor_lr_is_taken_by_value(traced: Any) -> None:
    w = param(1.0)
    rate = torch.tensor(0.5)
    optimizer = torch.optim.SGD([w], lr=rate)

    def train() -> None:
        for _ in range(3):
            w.grad = torch.tensor([1.0])
            optimizer.step()
            rate.mul_(0.5)

    trace = traced(train)
    assert list(trace.groups.lr) == [0.5, 0.25, 0.125]


def test_loaded_state_and_groups_are_seen(traced: Any) -> None:
    w = param(1.0)
    optimizer = torch.optim.SGD([w], lr=0.5, momentum=0.5)

    def train() -> None:
        w.grad = torch.tensor([1.0])
        optimizer.step()
        saved = copy.deepcopy(optimizer.state_dict())
        optimizer.step()
        saved["param_groups"][0]["lr"] = 0.25
        optimizer.load_state_dict(saved)
        optimizer.step()

    trace = traced(train)
    assert "load_state_dict" in kinds(trace)
    assert list(trace.groups.lr) == [0.5, 0.5, 0.25]
    assert sample(trace, 3, "state_in.momentum_buffer") == [1.0]
    assert sample(trace, 3, "state.momentum_buffer") == [1.5]
    assert "state_in.momentum_buffer" not in quantities(trace, 2)


def test_state_that_was_thrown_away_is_told(traced: Any) -> None:
    w = param(1.0)
    optimizer = torch.optim.SGD([w], lr=0.5, momentum=0.5)

    def train() -> None:
        w.grad = torch.tensor([1.0])
        optimizer.step()
        optimizer.state.clear()
        optimizer.step()

    trace = traced(train)
    assert not row(trace, 2, "state_in.momentum_buffer").present
    assert sample(trace, 2, "state.momentum_buffer") == [1.0]


def test_edited_parameters_are_told_and_only_those(traced: Any) -> None:
    w, v = param(1.0), param(2.0)
    optimizer = torch.optim.SGD([w, v], lr=0.5)

    def train() -> None:
        for _ in range(3):
            w.grad, v.grad = torch.tensor([1.0]), torch.tensor([1.0])
            optimizer.step()
            if v.item() == 1.5:
                v.data = torch.tensor([-7.0])

    trace = traced(train)
    assert sample(trace, 2, "param_in", "v") == [-7.0]
    assert sample(trace, 2, "update", "v") == [-0.5]
    assert "param_in" not in quantities(trace, 2, "w")
    assert "param_in" not in quantities(trace, 3, "v")


class Adaptive(torch.optim.Optimizer):
    """Writes numbers of its own into its group, as Prodigy and the schedule-free optimizers do."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 1.0, "d": 1e-6, "k": 0, "name": "adaptive", "betas": (0.9, 0.99)})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["k"] += 1
            group["d"] *= 2
            group["name"] = f"step {group['k']}"
            with torch.no_grad():
                for p in group["params"]:
                    p.sub_(group["d"] * p.grad)


def test_numbers_that_step_writes_into_its_group_are_kept_after_the_step(traced: Any) -> None:
    w = param(1.0)
    optimizer = Adaptive([w])

    def train() -> None:
        for _ in range(2):
            w.grad = torch.tensor([1.0])
            optimizer.step()
            optimizer.param_groups[0]["lr"] *= 0.5

    trace = traced(train)
    assert sample(trace, 1, "group.d", "") == [2e-6]
    assert sample(trace, 2, "group.k", "") == [2]
    assert row(trace, 2, "group.k", "")["dtype"] == "int64"
    assert set(trace.tensors[trace.tensors.param == ""].quantity) == {"group.d", "group.k"}
    assert list(trace.groups.d) == [1e-6, 2e-6]
    assert list(trace.groups["betas.1"]) == [0.99, 0.99]
