"""ReduceLROnPlateau equals torch's for all modes, over drawn metrics, nan and infinities included."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from .scheduler_pairs import OURS, Pair, case, plain_optimizer, torch_optimizer

FALLING_THEN_FLAT = [5.0, 4.0, 3.0, 2.9999, 2.9997, 2.9997, 2.9997, 3.5, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]
METRICS = {
    "falling": FALLING_THEN_FLAT,
    "rising": [-value for value in FALLING_THEN_FLAT],
    "negative best": [-1.0, -0.99999, -1.00001, -1.1, -1.1, -1.1, -1.2, -1.2, -1.2, -1.2],
    "not a number": [3.0, math.nan, 2.0, math.nan, math.nan, math.nan, math.inf, -math.inf, 1.0, 1.0, 1.0],
    "zero": [0.0] * 12,
}


def live(options: dict[str, Any], metrics: list[float], ours_on: Any = plain_optimizer) -> Pair:
    pair = Pair(case("ReduceLROnPlateau", **options), ours_on=ours_on).build()
    for metric in metrics:
        if not pair.ended:
            pair.step(metric)
    return pair


@pytest.mark.parametrize("metrics", METRICS)
@pytest.mark.parametrize(("mode", "threshold_mode"), list(itertools.product(["min", "max"], ["rel", "abs"])))
def test_every_mode_equals_torch(mode: str, threshold_mode: str, metrics: str) -> None:
    for patience, cooldown, threshold in itertools.product([0, 1, 3], [0, 2], [1e-4, 0.1, 0.0]):
        options = {"patience": patience, "cooldown": cooldown, "threshold": threshold, "factor": 0.5}
        live(options | {"mode": mode, "threshold_mode": threshold_mode}, METRICS[metrics] * 3)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "mode": st.sampled_from(["min", "max"]),
            "factor": st.floats(0, 1, exclude_max=True),
            "patience": st.integers(0, 4),
            "threshold": st.sampled_from([0.0, 1e-4, 0.01, 0.5]),
            "threshold_mode": st.sampled_from(["rel", "abs"]),
            "cooldown": st.integers(0, 4),
            "min_lr": st.one_of(
                st.sampled_from([0, 1e-3, 0.05, 1.0]), st.lists(st.floats(0, 0.1), min_size=3, max_size=3)
            ),
            "eps": st.sampled_from([0.0, 1e-8, 1e-2]),
        },
    ),
    st.lists(st.floats(-10, 10) | st.sampled_from([math.nan, math.inf, -math.inf, 1.0, 1.0001]), max_size=60),
)
@settings(max_examples=150, deadline=None)
def test_drawn_lives_equal_torch(options: dict[str, Any], metrics: list[float]) -> None:
    assert not live(options, metrics).ended


def test_construction_leaves_the_groups_alone() -> None:
    optimizer = plain_optimizer()
    before = [dict(group) for group in optimizer.param_groups]
    OURS.ReduceLROnPlateau(optimizer)
    assert optimizer.param_groups == before


def test_patience_counts_bad_epochs_beyond_it() -> None:
    optimizer = plain_optimizer(lrs=(1.0,))
    scheduler = OURS.ReduceLROnPlateau(optimizer, factor=0.5, patience=2)
    lrs = []
    for _ in range(5):
        scheduler.step(1.0)
        lrs.append(optimizer.param_groups[0]["lr"])
    assert lrs == [1.0, 1.0, 1.0, 0.5, 0.5]


def test_anything_that_float_reads_is_a_metric() -> None:
    for metric in (np.float32(0.1), torch.tensor(0.1), "0.1", 1):
        live({"patience": 0}, [metric] * 3)


def test_what_float_cannot_read_is_refused() -> None:
    assert live({}, [None]).ended


def test_epoch_only_sets_the_counter() -> None:
    pair = live({"patience": 1}, [1.0, 1.0])
    pair.step(1.0, 17)
    pair.step(1.0)


def test_edits_from_outside_live_on() -> None:
    pair = live({"patience": 1}, FALLING_THEN_FLAT)
    pair.edit(0, "lr", 0.4)
    for metric in FALLING_THEN_FLAT:
        pair.step(metric)


@pytest.mark.parametrize("min_lr", [0.001, [0.001, 0.002, 0.003]])
def test_a_group_added_later_needs_a_lower_bound(min_lr: Any) -> None:
    pair = live({"patience": 0, "min_lr": min_lr}, [1.0, 1.0], ours_on=torch_optimizer)
    for optimizer in pair.optimizers:
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.2})
    pair.step(1.0)
    assert pair.ended == isinstance(min_lr, list)


@pytest.mark.parametrize(
    "options",
    [{"factor": 1.0}, {"mode": "least"}, {"threshold_mode": "relative"}, {"min_lr": [0.1]}, {"factor": 1.5}],
)
def test_what_torch_refuses_is_refused(options: dict[str, Any]) -> None:
    assert live(options, []).ended


@pytest.mark.parametrize("cut", [1, 5, 9])
def test_resuming_in_the_middle_equals_going_on(cut: int) -> None:
    options = {"patience": 1, "cooldown": 2, "mode": "min", "threshold_mode": "abs", "factor": 0.7}
    whole = live(options, FALLING_THEN_FLAT * 2)
    first = live(options, (FALLING_THEN_FLAT * 2)[:cut])
    for state_of in (0, 1):
        optimizer = plain_optimizer()
        scheduler = OURS.ReduceLROnPlateau(optimizer, mode="max")
        scheduler.load_state_dict(first.schedulers[state_of].state_dict())
        for group, old in zip(optimizer.param_groups, first.optimizers[0].param_groups, strict=True):
            group.update(old)
        for metric in (FALLING_THEN_FLAT * 2)[cut:]:
            scheduler.step(metric)
        assert optimizer.param_groups == whole.optimizers[0].param_groups


def test_a_drop_of_exactly_eps_is_left_out() -> None:
    pair = live({"patience": 0, "factor": 0.5, "eps": 0.05}, [1.0, 1.0])  # 0.1 - 0.05 == eps
    assert pair.optimizers[0].param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("state", [{"mode": "max", "best": -1.0}, {"threshold_mode": "abs"}, {"mode": "least"}])
def test_a_state_of_older_releases_may_be_partial(state: dict[str, Any]) -> None:
    pair = live({"patience": 0}, [1.0])
    pair.act(lambda index: pair.schedulers[index].load_state_dict(dict(state)))
    assert pair.ended == (state.get("mode") == "least")
    for metric in [1.0, 2.0, 0.99999] if not pair.ended else []:
        pair.step(metric)
