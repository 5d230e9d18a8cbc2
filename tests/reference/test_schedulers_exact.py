"""Every scheduler equals torch's bit for bit: option sets, long runs, edits of lr from outside, step(epoch)."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from .scheduler_cases import LONG, SHORT_LIVED, SINGLE
from .scheduler_pairs import OURS, Case, Pair, case, plain_optimizer, torch_optimizer


@pytest.mark.parametrize("which", SINGLE, ids=str)
def test_every_step_equals_torch(which: Case) -> None:
    Pair(which).build().steps(130)


@pytest.mark.parametrize("which", SHORT_LIVED, ids=str)
def test_errors_come_where_torch_has_them(which: Case) -> None:
    pair = Pair(which).build()
    pair.steps(10)
    assert pair.ended


@pytest.mark.parametrize("which", SINGLE, ids=str)
def test_edits_of_lr_from_outside_live_and_die_as_in_torch(which: Case) -> None:
    pair = Pair(which).build()
    for _ in range(12):
        pair.steps(3)
        pair.scale(0.7)
        pair.edit(1, "lr", 0.2)
        pair.steps(1)


@pytest.mark.parametrize("which", SINGLE, ids=str)
def test_step_to_an_epoch_equals_torch(which: Case) -> None:
    pair = Pair(which).build()
    for epoch in (4, 1, 9, 9, 0, 17, 40, 39):
        if pair.ended:
            break
        pair.step(epoch)
        pair.steps(3)
        pair.edit(0, "lr", 0.33)


@pytest.mark.parametrize("which", LONG, ids=str)
def test_rounding_drifts_as_torchs_over_ten_thousand_steps(which: Case) -> None:
    Pair(which).build().steps(10_000)


@pytest.mark.parametrize("which", SINGLE, ids=str)
def test_schedulers_also_drive_a_torch_optimizer(which: Case) -> None:
    Pair(which, ours_on=torch_optimizer).build().steps(20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("which", SINGLE, ids=str)
def test_tensor_lr_is_filled_in_place_with_torchs_values(which: Case, dtype: torch.dtype) -> None:
    lrs = tuple(torch.tensor(lr, dtype=dtype) for lr in (0.1, 0.037, 3e-7))
    pair = Pair(which, ours_on=torch_optimizer, lrs=lrs)
    held = [group["lr"] for group in pair.optimizers[0].param_groups]
    pair.build().steps(20)
    assert all(group["lr"] is lr for group, lr in zip(pair.optimizers[0].param_groups, held, strict=True))


@pytest.mark.parametrize("T_mult", [1, 2, 3, 10])
def test_warm_restarts_take_fractions_of_an_epoch(T_mult: int) -> None:
    pair = Pair(case("CosineAnnealingWarmRestarts", T_0=3, T_mult=T_mult, eta_min=1e-5)).build()
    for epoch in range(60):
        for batch in range(4):
            pair.step(epoch + batch / 4)
    pair.step(2.5)
    pair.step()
    assert (pair.schedulers[0].T_cur, pair.schedulers[0].last_epoch) == (0.5, 3)
    pair.step(0)
    pair.steps(30)


def test_warm_restarts_find_the_period_of_a_boundary_as_torch_does() -> None:
    pair = Pair(case("CosineAnnealingWarmRestarts", T_0=1, T_mult=3)).build()
    for n in range(12):
        pair.step((3**n - 1) // 2)
        pair.step()
    pair.step(-1)
    assert pair.ended


@pytest.mark.parametrize("last_epoch", [0, 1, 4, 5, 6, 29, 49])
@pytest.mark.parametrize("which", SINGLE, ids=str)
def test_last_epoch_resumes_as_in_torch(which: Case, last_epoch: int) -> None:
    def build(side: Any, optimizer: Any) -> Any:
        which.build(side, optimizer)  # leaves in the groups what an interrupted run would
        return which.build(side, optimizer, last_epoch=last_epoch)

    pair = Pair(Case(which.name, build, which.optimizer)).build()
    pair.steps(25)


@pytest.mark.filterwarnings("ignore:To get the last learning rate")
@pytest.mark.parametrize("last_epoch", [0, 4, 11])
@pytest.mark.parametrize("which", SINGLE, ids=str)
def test_get_lr_called_by_hand_equals_torch(which: Case, last_epoch: int) -> None:
    def build(side: Any, optimizer: Any) -> Any:
        which.build(side, optimizer)
        return which.build(side, optimizer, last_epoch=last_epoch)

    pair = Pair(Case(which.name, build, which.optimizer)).build()
    asked: list[Any] = []
    for _ in range(2):
        if not pair.ended:
            pair.act(lambda index: asked.append(pair.schedulers[index].get_lr()))
            pair.steps(1)
    assert repr(asked[0::2]) == repr(asked[1::2])


def test_resuming_a_fresh_optimizer_by_last_epoch_is_refused() -> None:
    pair = Pair(case("StepLR", step_size=3, last_epoch=4)).build()
    assert pair.ended


def test_cyclic_and_one_cycle_switch_momentum_on_where_it_was_zero() -> None:
    for which in (
        case("CyclicLR", base_lr=0.01, max_lr=0.1, step_size_up=5),
        case("OneCycleLR", max_lr=0.1, total_steps=100),
    ):
        pair = Pair(which)
        assert pair.optimizers[0].param_groups[0]["momentum"] == 0
        pair.build()
        assert pair.optimizers[0].param_groups[0]["momentum"] > 0.8


def test_a_second_scheduler_keeps_the_first_ones_initial_lr() -> None:
    def build(side: Any, optimizer: Any) -> Any:
        side.StepLR(optimizer, 2)
        optimizer.param_groups[0]["lr"] = 0.5
        return side.CyclicLR(optimizer, base_lr=0.01, max_lr=0.3, step_size_up=4)

    Pair(Case("cyclic after step", build)).build().steps(20)


def test_an_added_group_is_met_as_in_torch() -> None:
    for which in SINGLE:
        pair = Pair(which, ours_on=torch_optimizer).build()
        if pair.ended:
            continue
        for optimizer in pair.optimizers:
            optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.2})
        pair.steps(2)


def test_step_to_an_epoch_warns_and_plain_steps_do_not() -> None:
    scheduler = case("StepLR", step_size=2).build(OURS, plain_optimizer())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler.step()
    with pytest.warns(UserWarning, match="closed form"):
        scheduler.step(3)
