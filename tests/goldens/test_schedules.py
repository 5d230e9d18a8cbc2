"""Schedulers are met bit for bit, and what a sequence of lrs looks like is said."""

from __future__ import annotations

import math

import pytest

import optrace
from optrace.errors import GoldenError
from optrace.goldens.make_schedules import torch_scheduler
from optrace.reference.schedulers import SCHEDULES


@pytest.mark.parametrize("rule", SCHEDULES)
def test_torch_and_the_reference_pass_every_case(rule):
    for candidate in (torch_scheduler(rule), SCHEDULES[rule]):
        report = optrace.check_golden(candidate, rule)
        assert report.same, str(report)
        assert not report.not_covered


class Own:
    """A schedule of one's own: no state_dict, no step(epoch)."""

    def __init__(self, optimizer, gamma):
        self.optimizer, self.gamma = optimizer, gamma

    def step(self):
        for group in self.optimizer.param_groups:
            group["lr"] *= self.gamma


def test_a_small_class_is_judged_on_what_it_has():
    report = optrace.check_golden(Own, "exponentiallr")
    assert report.same
    assert set(report.lacks) == {"state_dict", "step(epoch)", "last_epoch"}


class Frozen(Own):
    def step(self):
        pass


class Late(Own):
    started = False

    def step(self):
        if self.started:
            super().step()
        self.started = True


class TwiceAsFast(Own):
    def step(self):
        super().step()
        super().step()


class Scaled(Own):
    def __init__(self, optimizer, gamma):
        super().__init__(optimizer, gamma)
        for group in optimizer.param_groups:
            group["lr"] *= 2


class Closed(Own):
    def __init__(self, optimizer, gamma):
        super().__init__(optimizer, gamma)
        self.bases, self.epoch = [group["lr"] for group in optimizer.param_groups], 0

    def step(self):
        self.epoch += 1
        for group, base in zip(self.optimizer.param_groups, self.bases, strict=True):
            group["lr"] = base * self.gamma**self.epoch


class Rounds(Own):
    def step(self):
        for group in self.optimizer.param_groups:
            group["lr"] = math.exp(math.log(group["lr"]) + math.log(self.gamma)) if self.gamma else 0.0


@pytest.mark.parametrize(
    ("wrong", "code", "variant"),
    [
        (Frozen, "lr-frozen", "frozen"),
        (Late, "lr-shift", "shift-1"),
        (TwiceAsFast, "lr-rate", "times-2"),
        (Scaled, "lr-value", "factor"),
        (Closed, "lr-value", "closed-form"),
        (Rounds, "noise", "rounding"),
    ],
)
def test_a_wrong_sequence_is_named(wrong, code, variant):
    report = optrace.check_golden(wrong, "exponentiallr", cases=["plain", "rising"])
    assert [(look.code, look.variant) for look in report.looks] == [(code, variant)], str(report)


def test_resuming_wrongly_is_named():
    from torch.optim.lr_scheduler import StepLR

    class Forgets(StepLR):
        def load_state_dict(self, state_dict):
            pass

    report = optrace.check_golden(Forgets, "steplr")
    assert [result.case for result in report.differing] == ["steplr/resume"]
    assert report.looks[0].code == "lr-reset"


def test_construction_that_fails_is_a_difference_with_its_reason():
    class Fails(Own):
        def __init__(self, optimizer, gamma):
            raise ValueError("no")

    report = optrace.check_golden(Fails, "exponentiallr")
    assert report.differing[0].raised == "construction raised ValueError: no"


def test_what_is_no_schedule_is_refused():
    with pytest.raises(GoldenError, match="no class over an optimizer"):
        optrace.check_golden(3, "steplr")
    with pytest.raises(GoldenError, match="lacks gamma"):
        optrace.check_golden(lambda optimizer: None, "exponentiallr")
