"""Gradients that are rounding alone, and what rules make of them, are noise; wrong numbers beside them are not."""

from __future__ import annotations

import pytest
import torch
from hand_made import ENVIRONMENT, TorchHand

from optrace import diff

OTHER_THREADS = {**ENVIRONMENT, "threads": {"intra": 2, "inter": 1}}
EPS = 2.0**-23


def record(folder, kernels, cls=torch.optim.Adam, environment=ENVIRONMENT, fault=None, size=20):
    """Five steps over a large gradient and one that is zero; `kernels` seeds how both are rounded."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(5)
    large, cancelled = (torch.nn.Parameter(torch.randn(size, generator=generator)) for _ in range(2))
    optimizer = cls([large, cancelled], lr=0.01, foreach=False)
    hand = TorchHand(folder, environment=environment)
    hand.begin(0, optimizer, {id(large): "large", id(cancelled): "cancelled"})
    own = torch.Generator().manual_seed(kernels)
    for step in range(1, 6):
        large.grad = torch.randn(size, generator=generator) * (1 + 4 * EPS * torch.rand(size, generator=own))
        cancelled.grad = EPS * torch.randn(size, generator=own)
        if fault is not None:
            fault(step, large, cancelled)
        hand.step(0, optimizer)
    return str(hand.close())


@pytest.fixture
def pair(tmp_path):
    a = record(tmp_path / "a", 1)
    return lambda **parts: diff(a, record(tmp_path / "b", 2, environment=OTHER_THREADS, **parts))


def test_gradient_that_is_rounding_alone_is_noise_though_adam_makes_whole_steps_of_it(pair):
    report = pair()
    assert report.same, str(report)
    assert [cause.code for cause in report.causes] == ["noise"]


def test_small_gradient_that_differs_by_more_than_the_terms_round_is_a_difference(pair):
    def fault(step, large, cancelled):
        if step == 1:
            cancelled.grad += 40 * EPS

    report = pair(fault=fault)
    assert (report.first.step, report.first.quantity, report.first.param) == (1, "grad", "cancelled")


def test_parameter_that_the_loss_does_not_feel_excuses_no_other_gradient(pair):
    def fault(step, large, cancelled):
        if step == 4:
            large.grad *= 1.01

    report = pair(fault=fault)
    assert (report.first.step, report.first.quantity, report.first.param) == (4, "grad", "large")


def test_noise_in_some_elements_of_a_tensor_excuses_no_wrong_rule(tmp_path):
    """As in a bias of queries, keys and values: a third of it is zero but for rounding."""

    def noisy(seed):
        generator = torch.Generator().manual_seed(seed)

        def change(step, large, cancelled):
            large.grad[::3] = EPS * torch.randn(7, generator=generator)

        return change

    class Doubled(torch.optim.Adam):
        def step(self, closure=None):
            before = self.param_groups[0]["params"][0].detach().clone()
            super().step()
            with torch.no_grad():
                p = self.param_groups[0]["params"][0]
                p += 1e-3 * (p - before)

    a = record(tmp_path / "a", 1, fault=noisy(1))
    same = diff(a, record(tmp_path / "b", 2, fault=noisy(2), environment=OTHER_THREADS))
    assert same.same and any("what the rule makes of inputs" in note for note in same.notes), str(same)
    wrong = diff(a, record(tmp_path / "c", 2, cls=Doubled, environment=OTHER_THREADS))
    assert (wrong.first.step, wrong.first.param) == (1, "large") and not wrong.same


def test_state_that_is_made_before_it_is_used_is_no_difference_and_state_that_is_used_is(tmp_path):
    def run(name, early, value=0.0):
        p = torch.nn.Parameter(torch.ones(4))
        optimizer = torch.optim.SGD([p], lr=0.1, momentum=0.9, foreach=False)
        if early:
            optimizer.state[p]["momentum_buffer"] = torch.full((4,), value)
        hand = TorchHand(tmp_path / name)
        hand.begin(0, optimizer, {id(p): "p"})
        for _ in range(3):
            p.grad = torch.ones(4)
            hand.step(0, optimizer)
        return str(hand.close())

    report = diff(run("a", False), run("b", True))
    assert report.same, str(report)
    assert "b makes momentum_buffer before its first step, a when it is first used" in report.notes
    assert not diff(run("c", False), run("d", True, 0.5)).same
