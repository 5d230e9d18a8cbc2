"""Hyper-parameters are read by value, as plain scalars."""

from __future__ import annotations

import enum
import math
from typing import Any

import numpy as np
import pytest
import torch

from optrace.recorder.hyper import scalars_of_group, unread_options, written_by_step


class Mode(enum.Enum):
    FAST = 1


def schedule(step: int) -> float:
    return step


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.1, {"x": 0.1}),
        (1, {"x": 1}),
        (True, {"x": True}),
        (None, {"x": None}),
        ("adamw", {"x": "adamw"}),
        ((0.9, 0.99), {"x.0": 0.9, "x.1": 0.99}),
        ([None, 1e-3], {"x.0": None, "x.1": 1e-3}),
        ((torch.tensor(0.5), 0.9), {"x.0": 0.5, "x.1": 0.9}),
        (torch.tensor(3), {"x": 3}),
        (torch.tensor([0.25], requires_grad=True), {"x": 0.25}),
        (torch.tensor(1 + 2j), {"x.real": 1.0, "x.imag": 2.0}),
        (np.float64(0.1), {"x": 0.1}),
        (np.float32(0.5), {"x": 0.5}),
        (np.array([7]), {"x": 7}),
        (np.bool_(True), {"x": True}),
        ({"warmup": 10, "to": (1, 2)}, {"x.warmup": 10, "x.to.0": 1, "x.to.1": 2}),
        (torch.bfloat16, {"x": "bfloat16"}),
        (torch.device("cpu"), {"x": "cpu"}),
        (Mode.FAST, {"x": "FAST"}),
        (schedule, {"x": f"{__name__}.schedule"}),
        (Mode, {"x": f"{__name__}.Mode"}),
        ((), {}),
    ],
)
def test_options_become_scalars(value: Any, expected: dict[str, Any]) -> None:
    found = scalars_of_group({"params": [torch.ones(1)], "param_names": ["w"], "x": value})
    assert found == expected
    assert [type(one) for one in found.values()] == [type(one) for one in expected.values()]
    assert unread_options({"params": [], "x": value}) == []


@pytest.mark.parametrize("value", [torch.ones(3), object(), list(range(100)), torch.empty((), device="meta")])
def test_data_is_no_option_and_is_named(value: Any) -> None:
    assert scalars_of_group({"params": [], "x": value, "lr": 1.0}) == {"lr": 1.0}
    assert unread_options({"params": [], "x": value, "lr": 1.0}) == [f"x ({type(value).__name__})"]


def test_values_are_copied() -> None:
    rate = torch.tensor(0.5)
    before = scalars_of_group({"params": [], "lr": rate})
    rate.mul_(2)
    assert before == {"lr": 0.5}


def test_numbers_that_step_wrote() -> None:
    before = {"lr": 1.0, "k": 0, "d": math.nan, "name": "a", "gone": 1}
    after = {"lr": 1.0, "k": 1, "d": math.nan, "name": "b", "new": 2.0}
    assert written_by_step(before, after) == ["k", "new"]
