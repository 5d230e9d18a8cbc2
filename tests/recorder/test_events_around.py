"""Events of clipping, GradScaler and schedulers, in real training loops."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from listening import Listening, listening, mse, small_data, small_model
from torch.optim import SGD, Adam, AdamW
from torch.optim import lr_scheduler as schedulers
from torch.utils.data import DataLoader, TensorDataset

torch.set_num_threads(1)
DATA = small_data()


# ---- clipping ----


def norm_of_gradients(model: torch.nn.Module) -> float:
    squares = [param.grad.double().square().sum() for param in model.parameters() if param.grad is not None]
    return float(torch.stack(squares).sum().sqrt())


def test_clip_tells_limit_and_norm_before_clipping() -> None:
    with listening() as heard:
        model = small_model()
        optimizer = SGD(model.parameters(), lr=0.1)
        mse(model, DATA).backward()
        before = norm_of_gradients(model)
        returned = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=0.001)
        torch.nn.utils.clip_grad_value_(model.parameters(), 1e-4)
        optimizer.step()
    first, second, third = heard.of("clip")
    assert first == {"kind": "norm", "max_norm": 0.01, "norm_type": 2.0, "total_norm": returned.item()}
    assert second["max_norm"] == 0.001
    assert second["total_norm"] == pytest.approx(0.01, rel=1e-4)
    assert third == {"kind": "value", "clip_value": 1e-4}
    assert heard.taken()[0]["grad_norm"] == returned.item()
    assert returned.item() == pytest.approx(before, rel=1e-6)


def test_clip_in_two_calls_is_told_with_the_given_norm() -> None:
    if not hasattr(torch.nn.utils, "get_total_norm"):
        pytest.skip("this torch clips in one call only")
    with listening() as heard:
        model = small_model()
        optimizer = SGD(model.parameters(), lr=0.1)
        mse(model, DATA).backward()
        norm = torch.nn.utils.get_total_norm([param.grad for param in model.parameters()])
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), 0.01, norm)
        optimizer.step()
    assert heard.of("clip") == [{"kind": "norm", "max_norm": 0.01, "total_norm": norm.item()}]
    assert heard.taken()[0]["grad_norm"] == norm.item()


def test_step_without_clip_has_no_norm_and_the_next_step_forgets_it() -> None:
    with listening() as heard:
        model = small_model()
        optimizer = SGD(model.parameters(), lr=0.1)
        for clip in (True, False):
            mse(model, DATA).backward()
            if clip:
                torch.nn.utils.clip_grad_norm_(list(model.parameters()), 1.0)
            optimizer.step()
    assert [taken["grad_norm"] is None for taken in heard.taken()] == [False, True]


def test_clip_belongs_to_the_optimizer_whose_parameters_it_got() -> None:
    with listening() as heard:
        one, two = small_model(1), small_model(2)
        first, second = SGD(one.parameters(), lr=0.1), SGD(two.parameters(), lr=0.1)
        (mse(one, DATA) + mse(two, DATA)).backward()
        norm = torch.nn.utils.clip_grad_norm_(two.parameters(), 0.01)
        first.step()
        second.step()
    assert [(kind, owner is second) for kind, owner, _ in heard.events if kind == "clip"] == [("clip", True)]
    assert [taken["grad_norm"] for taken in heard.taken()] == [None, norm.item()]


@pytest.mark.parametrize("optimizers", [1, 2])
def test_clip_of_an_exhausted_generator_warns_as_without_us(optimizers: int) -> None:
    with listening():
        kept = [SGD(small_model().parameters(), lr=0.1) for _ in range(optimizers)]
        with pytest.warns(UserWarning, match="empty generator") as caught:
            torch.nn.utils.clip_grad_norm_((param for param in ()), 1.0)
    assert len(kept) == optimizers
    assert caught[0].filename == __file__


# ---- GradScaler ----


def scaled_loop(heard: Listening, make: Callable[[Any], torch.optim.Optimizer], clip: str = "") -> list[float]:
    """Four steps with a planted inf in the second; returns the true losses of the steps that were made."""
    model = small_model()
    optimizer = make(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)
    losses = []
    for number in range(4):
        optimizer.zero_grad()
        loss = mse(model, DATA) * (float("inf") if number == 1 else 1.0)
        scaler.scale(loss).backward()
        if clip == "before unscale":
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if clip == "after unscale":
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        if number != 1:
            losses.append(loss.item())
    return losses


def test_scaler_that_skips_a_step_is_told_and_losses_are_unscaled() -> None:
    with listening() as heard:
        losses = scaled_loop(heard, lambda params: SGD(params, lr=0.01))
    one = ["zero_grad", "backward", "unscale"]
    assert heard.kinds() == [*one, "step", *one, "step_skipped", *one, "step", *one, "step"]
    assert heard.of("unscale") == [{"scale": scale} for scale in (1024.0, 1024.0, 512.0, 512.0)]
    assert heard.of("step_skipped") == [{"scale": 1024.0, "why": "inf or nan in the gradients"}]
    assert [taken["loss"] for taken in heard.taken()] == losses
    assert [taken["n_skipped"] for taken in heard.taken()] == [0, 1, 0]
    assert [taken["n_backward"] for taken in heard.taken()] == [1, 2, 1]


def test_fused_optimizer_unscales_itself_and_its_skip_is_left_to_the_hooks() -> None:
    with listening() as heard:
        losses = scaled_loop(heard, lambda params: Adam(params, fused=True))
    assert heard.of("unscale") == [{"scale": scale, "by": "step"} for scale in (1024.0, 1024.0, 512.0, 512.0)]
    assert "step_skipped" not in heard.kinds()
    assert [taken["loss"] for taken in heard.taken()] == losses


def test_clip_before_unscale_sees_scaled_gradients_and_after_it_true_ones() -> None:
    norms = {}
    for clip in ("before unscale", "after unscale"):
        with listening() as heard:
            scaled_loop(heard, lambda params: SGD(params, lr=0.01), clip)
        kinds = [kind for kind in heard.kinds() if kind in ("clip", "unscale")][:2]
        assert kinds == (["clip", "unscale"] if clip == "before unscale" else ["unscale", "clip"])
        norms[clip] = heard.taken()[0]["grad_norm"]
    assert norms["before unscale"] == pytest.approx(1024 * norms["after unscale"], rel=1e-6)


def test_disabled_scaler_tells_nothing() -> None:
    with listening() as heard:
        model = small_model()
        optimizer = SGD(model.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        loss = mse(model, DATA)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    assert heard.kinds() == ["backward", "step"]
    assert heard.losses(optimizer) == [loss.item()]


# ---- schedulers ----

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda o: schedulers.MultiplicativeLR(o, lambda epoch: 0.9),
    "StepLR": lambda o: schedulers.StepLR(o, 2),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [1, 2]),
    "ConstantLR": lambda o: schedulers.ConstantLR(o),
    "LinearLR": lambda o: schedulers.LinearLR(o),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, 5),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 2),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, 0.01, 0.1, step_size_up=2),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, 0.1, total_steps=10),
    "SequentialLR": lambda o: schedulers.SequentialLR(
        o, [schedulers.ConstantLR(o), schedulers.ExponentialLR(o, 0.9)], milestones=[2]
    ),
    "ChainedScheduler": lambda o: schedulers.ChainedScheduler(
        [schedulers.ConstantLR(o), schedulers.ExponentialLR(o, 0.9)]
    ),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, swa_lr=0.05),
    "ReduceLROnPlateau": lambda o: schedulers.ReduceLROnPlateau(o),
}


def test_the_table_below_has_every_scheduler_of_torch() -> None:
    known = {name for name in schedulers.__all__ if name != "LRScheduler"} | {"SWALR"}
    assert known == set(SCHEDULERS)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_tells_one_event_a_step_and_none_when_made(name: str) -> None:
    rates: dict[str, list[float]] = {}
    for mode in ("bare", "observed"):
        model = small_model()
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)

        def train(optimizer: Any = optimizer, model: Any = model, mode: str = mode) -> None:
            scheduler = SCHEDULERS[name](optimizer)
            for _ in range(4):
                loss = mse(model, DATA)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step(*([loss.item()] if name == "ReduceLROnPlateau" else []))
                rates.setdefault(mode, []).append(optimizer.param_groups[0]["lr"])

        if mode == "bare":
            train()
        else:
            with listening() as heard:
                train()
            last_epochs = [None] * 4 if name == "ChainedScheduler" else [1, 2, 3, 4]
            assert heard.of("scheduler_step") == [{"class": name, "last_epoch": last} for last in last_epochs]
            assert all(owner is optimizer for kind, owner, _ in heard.events if kind == "scheduler_step")
            assert [kind for kind in heard.kinds() if kind in ("step", "scheduler_step")] == [
                "step",
                "scheduler_step",
            ] * 4
    assert rates["bare"] == rates["observed"]


def test_scheduler_class_made_while_observed_is_seen_and_its_super_step_not_told_twice() -> None:
    with listening() as heard:

        class Mine(schedulers.StepLR):
            def step(self, epoch: int | None = None) -> None:
                super().step(epoch)

        class OnPlateau(schedulers.ReduceLROnPlateau):
            def step(self, metrics: float, epoch: int | None = None) -> None:
                super().step(metrics, epoch)

        optimizer = SGD(small_model().parameters(), lr=0.1)
        scheduler, plateau = Mine(optimizer, 2), OnPlateau(optimizer)
        optimizer.step()
        scheduler.step()
        plateau.step(1.0)
    assert [data["class"] for data in heard.of("scheduler_step")] == ["Mine", "OnPlateau"]


def test_warning_of_a_scheduler_names_the_line_of_the_program_and_comes_as_often() -> None:
    def provoke() -> list[tuple[str, int]]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                optimizer = SGD(small_model().parameters(), lr=0.1)
                schedulers.StepLR(optimizer, 2).step()
        return [(warning.filename, warning.lineno) for warning in caught]

    bare = provoke()
    with listening():
        observed = provoke()
    assert len(bare) == 2
    assert bare[0][0] == __file__
    assert observed == bare


# ---- all together ----


def test_weights_are_bitwise_those_of_the_bare_run() -> None:
    def train() -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))
        optimizer = AdamW(model.parameters(), lr=0.01)
        scheduler = schedulers.OneCycleLR(optimizer, 0.1, total_steps=20)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for _ in range(4):
            for inputs, targets in DataLoader(TensorDataset(*small_data(12)), batch_size=4, shuffle=True):
                loss = mse(model, (inputs + np.random.RandomState(1).rand() + random.random() * 0, targets))
                scaler.scale(loss).backward()
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                scheduler.step()
            optimizer.load_state_dict(optimizer.state_dict())
        return [param.detach().clone() for param in model.parameters()]

    bare = train()
    with listening():
        observed = train()
    assert all(torch.equal(a, b) for a, b in zip(bare, observed, strict=True))


@pytest.mark.parametrize("passed", [iter, list, tuple])
def test_a_clip_is_told_of_the_optimizer_whose_parameters_it_clips(passed: Any) -> None:
    def params(model: torch.nn.Module) -> Any:
        return (param for param in model.parameters()) if passed is iter else passed(model.parameters())

    with listening() as heard:
        first, second = small_model(), small_model(1)
        of_first, of_second = SGD(first.parameters(), lr=0.1), SGD(second.parameters(), lr=0.1)
        mse(first, DATA).backward()
        mse(second, DATA).backward()
        norm = torch.nn.utils.clip_grad_norm_(params(second), 0.01)
        torch.nn.utils.clip_grad_value_(parameters=params(first), clip_value=1e-4)
        of_first.step()
        of_second.step()
    assert [taken["grad_norm"] for taken in heard.taken()] == [None, norm.item()]
    assert all(param.grad is not None and param.grad.abs().max() <= 1e-4 for param in first.parameters())


def test_a_generator_that_fails_inside_a_clip_fails_as_without_us() -> None:
    def params() -> Any:
        yield from model.parameters()
        raise LookupError("the second half")

    with listening() as heard:
        model = small_model()
        optimizer = SGD(model.parameters(), lr=0.1)
        mse(model, DATA).backward()
        with pytest.raises(LookupError, match="the second half"):
            torch.nn.utils.clip_grad_norm_(params(), 0.01)
        optimizer.step()
    assert heard.of("clip") == []
