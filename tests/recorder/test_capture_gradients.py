"""Gradients are what the rule consumed, in the parameter's own units: points 1 to 3 of the recorder in the design."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from points import kinds, param, sample

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- 1: gradients are what the rule consumed ----


def test_gradient_is_read_before_a_rule_that_overwrites_it(traced: Any) -> None:
    w = param(1.0, 2.0)
    optimizer = torch.optim.SGD([w], lr=0.1, momentum=0.9, nesterov=True, foreach=True)
    w.grad = torch.tensor([1.0, -1.0])
    trace = traced(optimizer.step)
    assert w.grad.tolist() != [1.0, -1.0]
    assert sample(trace, 1, "grad") == [1.0, -1.0]


def test_gradient_is_read_after_the_hooks_that_change_it(traced: Any) -> None:
    w = param(1.0)
    optimizer = torch.optim.SGD([w], lr=1.0)

    def double(optimizer: Any, args: Any, kwargs: Any) -> None:
        w.grad.mul_(2)

    def train() -> None:
        optimizer.register_step_pre_hook(double)
        for _ in range(2):
            w.grad = torch.tensor([1.0])
            optimizer.step()
            optimizer.register_step_pre_hook(double)

    trace = traced(train)
    assert sample(trace, 1, "grad") == [2.0]
    assert sample(trace, 2, "grad") == [4.0]


def test_parameters_are_read_before_the_hooks_that_change_them(traced: Any) -> None:
    w = param(1.0)
    optimizer = torch.optim.SGD([w], lr=1.0)

    def project(optimizer: Any, args: Any, kwargs: Any) -> None:
        with torch.no_grad():
            w.zero_()

    optimizer.register_step_post_hook(project)

    def train() -> None:
        for _ in range(2):
            w.grad = torch.tensor([0.25])
            optimizer.step()

    trace = traced(train)
    assert sample(trace, 1, "param") == [0.75]
    assert sample(trace, 2, "param_in") == [0.0]
    assert sample(trace, 2, "update") == [-0.25]


# ---- 2: GradScaler ----


def scaled_training(fused: bool) -> tuple[Callable[[], Any], torch.Tensor]:
    w = param(1.0, 2.0)
    optimizer = torch.optim.Adam([w], lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)

    def train() -> None:
        for factor in (1.0, float("inf"), 3.0):
            optimizer.zero_grad()
            scaler.scale((w * factor).sum()).backward()
            scaler.step(optimizer)
            scaler.update()

    return train, w


@pytest.mark.parametrize("fused", [False, True], ids=["for-loop", "fused"])
def test_scaled_gradients_come_in_their_own_units_and_skips_have_no_number(traced: Any, fused: bool) -> None:
    bare, expected = scaled_training(fused)
    bare()
    train, w = scaled_training(fused)
    trace = traced(train)
    assert torch.equal(w, expected)
    assert sample(trace, 1, "grad") == [1.0, 1.0]
    assert sample(trace, 2, "grad") == [3.0, 3.0]
    assert trace.last_step(0) == 2
    assert kinds(trace).count("step_skipped") == 1
    skipped = trace.events[trace.events.kind == "step_skipped"].iloc[0]
    assert (skipped.step, skipped.optimizer) == (1, 0)
    assert list(trace.steps.n_skipped) == [0, 1]


def test_a_skipped_first_step_does_not_become_step_0(traced: Any) -> None:
    w = param(1.0)
    optimizer = torch.optim.SGD([w], lr=1.0, momentum=0.5, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

    def train() -> None:
        for factor in (float("nan"), 1.0):
            optimizer.zero_grad()
            scaler.scale((w * factor).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
            with torch.no_grad():
                w.add_(1.0)

    trace = traced(train)
    assert sample(trace, 0, "param") == [2.0]
    assert trace.last_step(0) == 1
    assert kinds(trace).count("step_skipped") == 1


# ---- 3: closures ----


def test_gradient_of_a_closure_is_the_last_that_it_produced(traced: Any) -> None:
    w = param(1.0, -2.0)
    optimizer = torch.optim.LBFGS([w], lr=0.5, max_iter=4)
    last: list[list[float]] = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (w**4).sum()
        loss.backward()
        last.append(w.grad.tolist())
        return loss

    trace = traced(lambda: optimizer.step(closure))
    assert len(last) > 2
    assert sample(trace, 1, "grad") == last[-1]
    closures = trace.events[trace.events.kind == "closure"]
    assert len(closures) == len(last)
    assert closures.iloc[0].data["loss"] == 17.0


def test_closure_by_keyword_sees_its_gradient_although_there_was_none_before(traced: Any) -> None:
    w = param(3.0)
    optimizer = torch.optim.SGD([w], lr=0.1)

    def closure() -> torch.Tensor:
        loss = (2 * w).sum()
        loss.backward()
        return loss

    trace = traced(lambda: optimizer.step(closure=closure))
    assert sample(trace, 1, "grad") == [2.0]


def test_closure_is_not_called_more_often_and_gives_its_result(traced: Any) -> None:
    w = param(3.0)
    optimizer = torch.optim.SGD([w], lr=0.1)
    calls = []

    def closure() -> str:
        calls.append(1)
        return "a result of its own"

    results = []
    traced(lambda: results.append(optimizer.step(closure)))
    assert (len(calls), results) == (1, ["a result of its own"])
