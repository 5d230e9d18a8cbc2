"""Drawn options and drawn lives (steps, jumps, edits, saving and loading) leave ours and torch's equal."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .scheduler_pairs import Pair, case

unit = st.floats(0, 1, width=32) | st.floats(0, 1)
small_lr = st.floats(1e-9, 1.0)
count = st.integers(1, 12)
momentum = st.floats(0.01, 0.999)


def each_or_all(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return values | st.lists(values, min_size=3, max_size=3)


CYCLIC = {
    "max_lr": each_or_all(small_lr),
    "base_momentum": each_or_all(momentum),
    "max_momentum": each_or_all(momentum),
    "cycle_momentum": st.booleans(),
}
OPTIONS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "StepLR": {"step_size": count, "gamma": st.floats(0, 2)},
    "MultiStepLR": {"milestones": st.lists(st.integers(0, 20), max_size=8), "gamma": st.floats(0, 2)},
    "ConstantLR": {"factor": unit, "total_iters": st.integers(0, 12)},
    "LinearLR": {"start_factor": st.floats(1e-3, 1), "end_factor": unit, "total_iters": st.integers(0, 12)},
    "ExponentialLR": {"gamma": st.floats(0, 1.5)},
    "PolynomialLR": {"total_iters": st.integers(0, 12), "power": st.floats(0, 4)},
    "CosineAnnealingLR": {"T_max": count, "eta_min": unit},
    "CosineAnnealingWarmRestarts": {"T_0": count, "T_mult": st.integers(1, 4), "eta_min": unit},
    "CyclicLR": CYCLIC
    | {
        "base_lr": each_or_all(small_lr),
        "step_size_up": count,
        "step_size_down": st.none() | count,
        "mode": st.sampled_from(["triangular", "triangular2", "exp_range"]),
        "gamma": st.floats(0.5, 1.1),
    },
    "OneCycleLR": CYCLIC
    | {
        "total_steps": st.integers(1, 60),
        "pct_start": unit,
        "anneal_strategy": st.sampled_from(["cos", "linear"]),
        "div_factor": st.floats(1, 100),
        "final_div_factor": st.floats(1, 1e5),
        "three_phase": st.booleans(),
    },
    "SWALR": {
        "swa_lr": each_or_all(small_lr),
        "anneal_epochs": st.integers(0, 12),
        "anneal_strategy": st.sampled_from(["cos", "linear"]),
    },
}
ACTS = st.one_of(
    st.tuples(st.just("steps"), st.integers(1, 15)),
    st.tuples(st.just("jump"), st.integers(0, 30)),
    st.tuples(st.just("edit"), st.floats(1e-6, 1)),
    st.tuples(st.just("scale"), st.floats(0.1, 2)),
    st.tuples(st.just("save and load"), st.none()),
    st.tuples(st.just("swap states"), st.none()),
)


def perform(pair: Pair, act: str, value: Any) -> None:
    if act == "steps":
        pair.steps(value)
    elif act == "jump":
        pair.step(value)
    elif act == "edit":
        pair.edit(0, "lr", value)
    elif act == "scale":
        pair.scale(value)
    else:
        states = [copy.deepcopy(scheduler.state_dict()) for scheduler in pair.schedulers]
        if act == "swap states":
            states.reverse()
        rebuilt = [pair.case.build(side, copy.deepcopy(o)) for side, o in zip(pair.sides, pair.optimizers, strict=True)]
        for scheduler, optimizer, state in zip(rebuilt, pair.optimizers, states, strict=True):
            scheduler.optimizer = optimizer
            scheduler.load_state_dict(state)
        pair.optimizers[1].step()
        pair.schedulers = rebuilt


@pytest.mark.parametrize("name", OPTIONS)
@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_drawn_lives_equal_torch(name: str, data: st.DataObject) -> None:
    options = data.draw(st.fixed_dictionaries(OPTIONS[name]))
    optimizer = data.draw(st.sampled_from(["sgd", "momentum", "adam"]))
    lrs = data.draw(st.tuples(small_lr, small_lr, st.sampled_from([0.0, 1, 3e-7, 0.1])))
    pair = Pair(case(name, optimizer, **options), lrs=lrs).build()
    for act, value in data.draw(st.lists(ACTS, max_size=8)):
        if pair.ended:
            break
        perform(pair, act, value)
