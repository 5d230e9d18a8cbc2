"""SequentialLR and ChainedScheduler equal torch's, nested ones included, whatever torch does with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .scheduler_pairs import OURS, Case, Pair, case, plain_optimizer, torch_optimizer

# Parts to combine: with a closed form and without, chained and direct, with and without momentum.
PARTS: dict[str, Callable[[Any, Any], Any]] = {
    "constant": lambda s, o: s.ConstantLR(o, factor=0.3, total_iters=4),
    "linear": lambda s, o: s.LinearLR(o, start_factor=0.1, total_iters=5),
    "exponential": lambda s, o: s.ExponentialLR(o, gamma=0.93),
    "step": lambda s, o: s.StepLR(o, step_size=3, gamma=0.7),
    "multistep": lambda s, o: s.MultiStepLR(o, milestones=[2, 2, 5], gamma=0.7),
    "polynomial": lambda s, o: s.PolynomialLR(o, total_iters=7, power=2.0),
    "cosine": lambda s, o: s.CosineAnnealingLR(o, T_max=6, eta_min=1e-4),
    "restarts": lambda s, o: s.CosineAnnealingWarmRestarts(o, T_0=3, T_mult=2),
    "lambda": lambda s, o: s.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
    "multiplicative": lambda s, o: s.MultiplicativeLR(o, lambda epoch: 0.9),
    "cyclic": lambda s, o: s.CyclicLR(o, base_lr=0.01, max_lr=0.2, step_size_up=3, step_size_down=4),
    "onecycle": lambda s, o: s.OneCycleLR(o, max_lr=0.5, total_steps=50),
    "swa": lambda s, o: s.SWALR(o, swa_lr=0.01, anneal_epochs=4),
    "sequential": lambda s, o: s.SequentialLR(
        o, [s.ConstantLR(o, 0.5, 2), s.ExponentialLR(o, 0.9), s.StepLR(o, 2)], milestones=[3, 8]
    ),
    "chained": lambda s, o: s.ChainedScheduler([s.ConstantLR(o, 0.5, 4), s.ExponentialLR(o, 0.9)]),
}


def sequence(*names: str, milestones: list[int]) -> Case:
    def build(side: Any, optimizer: Any) -> Any:
        return side.SequentialLR(optimizer, [PARTS[name](side, optimizer) for name in names], list(milestones))

    return Case(f"{'-'.join(names)}-{milestones}", build)


def chain(*names: str) -> Case:
    def build(side: Any, optimizer: Any) -> Any:
        return side.ChainedScheduler([PARTS[name](side, optimizer) for name in names])

    return Case("-".join(names), build)


@pytest.mark.parametrize("second", PARTS)
@pytest.mark.parametrize("first", PARTS)
def test_any_scheduler_may_follow_any_other(first: str, second: str) -> None:
    Pair(sequence(first, second, milestones=[6])).build().steps(25)


@pytest.mark.parametrize("second", PARTS)
@pytest.mark.parametrize("first", PARTS)
def test_any_two_schedulers_may_be_chained(first: str, second: str) -> None:
    Pair(chain(first, second)).build().steps(25)


@pytest.mark.parametrize("milestones", [[1, 2], [5, 11], [4, 4], [0, 3], [0, 0], [3, 1], [-1, 2]])
def test_milestones_hand_over_as_in_torch(milestones: list[int]) -> None:
    Pair(sequence("linear", "cosine", "exponential", milestones=milestones)).build().steps(30)


def test_edits_between_milestones_live_and_die_as_in_torch() -> None:
    pair = Pair(sequence("step", "multiplicative", "cosine", milestones=[4, 9])).build()
    for _ in range(10):
        pair.steps(2)
        pair.scale(0.8)


@pytest.mark.parametrize(
    "which",
    [
        sequence("sequential", "cosine", milestones=[12]),
        sequence("chained", "cosine", milestones=[5]),
        chain("sequential", "chained", "step"),
        chain("chained", "chained"),
    ],
    ids=str,
)
def test_composites_inside_composites_equal_torch(which: Case) -> None:
    pair = Pair(which).build()
    pair.steps(40)
    assert not pair.ended


@pytest.mark.parametrize("inner", ["sequential", "chained"])
def test_a_composite_cannot_take_over_at_a_milestone(inner: str) -> None:
    pair = Pair(sequence("step", inner, milestones=[3])).build()
    pair.steps(5)
    assert pair.ended  # torch raises NotImplementedError, and so do we


def test_deep_nesting_equals_torch() -> None:
    def build(side: Any, o: Any) -> Any:
        inner = side.ChainedScheduler([PARTS["linear"](side, o), PARTS["sequential"](side, o)])
        outer = side.SequentialLR(o, [inner, PARTS["cosine"](side, o)], [7])
        return side.ChainedScheduler([outer, PARTS["multistep"](side, o)])

    pair = Pair(Case("deep", build)).build()
    pair.steps(40)
    assert not pair.ended


def test_composites_also_drive_a_torch_optimizer() -> None:
    Pair(sequence("linear", "cyclic", "swa", milestones=[5, 12]), ours_on=torch_optimizer).build().steps(30)


@pytest.mark.parametrize(
    "build",
    [
        lambda s, o: s.SequentialLR(o, [], []),
        lambda s, o: s.SequentialLR(o, [PARTS["step"](s, o)], [3]),
        lambda s, o: s.SequentialLR(o, [PARTS["step"](s, o), PARTS["linear"](s, o)], []),
        lambda s, o: s.SequentialLR(o, [PARTS["step"](s, o), s.ReduceLROnPlateau(o)], [3]),
        lambda s, o: s.SequentialLR(o, [PARTS["step"](s, o), "no scheduler"], [3]),
        lambda s, o: s.SequentialLR(o, [PARTS["step"](s, torch_optimizer())], []),
        lambda s, o: s.ChainedScheduler([]),
        lambda s, o: s.ChainedScheduler([PARTS["step"](s, o), s.ReduceLROnPlateau(o)]),
        lambda s, o: s.ChainedScheduler([PARTS["step"](s, o), "no scheduler"]),
        lambda s, o: s.ChainedScheduler([PARTS["step"](s, o), PARTS["step"](s, torch_optimizer())]),
        lambda s, o: s.ChainedScheduler([PARTS["step"](s, o)], optimizer=torch_optimizer()),
    ],
)
def test_what_torch_refuses_is_refused(build: Callable[[Any, Any], Any]) -> None:
    assert Pair(Case("refused", build), ours_on=torch_optimizer).build().ended


def test_state_of_other_schedulers_is_refused_rather_than_loaded_in_part() -> None:
    long = sequence("step", "linear", "cosine", milestones=[3, 6]).build(OURS, plain_optimizer())
    short = sequence("step", "linear", milestones=[3]).build(OURS, plain_optimizer())
    with pytest.raises(ValueError):
        long.load_state_dict(short.state_dict())


def test_a_composite_steps_by_one_epoch_only() -> None:
    for which in (sequence("step", "linear", milestones=[3]), chain("step", "linear")):
        pair = Pair(which).build()
        pair.step(4)
        assert pair.ended


def test_one_scheduler_alone_is_a_sequence() -> None:
    Pair(Case("alone", lambda s, o: s.SequentialLR(o, [PARTS["cosine"](s, o)], []))).build().steps(20)


def test_case_of_a_single_scheduler_equals_its_chain_of_one() -> None:
    alone, chained = plain_optimizer(), plain_optimizer()
    one = case("StepLR", step_size=3).build(OURS, alone)
    other = OURS.ChainedScheduler([case("StepLR", step_size=3).build(OURS, chained)])
    for _ in range(10):
        one.step()
        other.step()
        assert alone.param_groups == chained.param_groups
