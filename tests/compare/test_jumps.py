"""Where the argument of a sign is zero but for rounding, either way is right; elsewhere a sign is a sign."""

from __future__ import annotations

import pytest
import torch
from hand_made import ENVIRONMENT, TorchHand

import optrace
from optrace import diff

OTHER_THREADS = {**ENVIRONMENT, "threads": {"intra": 2, "inter": 1}}
BETAS = 0.9, 0.99


class Lion(torch.optim.Optimizer):
    """Lion that goes along a direction of one's choice."""

    def __init__(self, params, way):
        super().__init__(params, {"lr": 0.01, "betas": BETAS, "weight_decay": 0.1})
        self.way = way

    @torch.no_grad()
    def step(self):
        """One step."""
        for group in self.param_groups:
            first, second = group["betas"]
            for p in group["params"]:
                m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(self.way(m, p.grad, first), alpha=-group["lr"])
                m.mul_(second).add_(p.grad, alpha=1 - second)


WAYS = {
    "one after the other": lambda m, g, beta: (m * beta + g * (1 - beta)).sign(),
    "lerp": lambda m, g, beta: m.lerp(g, 1 - beta).sign(),
    "from the gradient": lambda m, g, beta: (g + beta * (m - g)).sign(),
}


def record(folder, way, environment=ENVIRONMENT, spoil=None, size=14):
    """Five steps; in the third the terms of the average cancel in every element but the first."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(5)
    p = torch.nn.Parameter(torch.randn(size, generator=generator))
    optimizer = Lion([p], way)
    hand = TorchHand(folder, environment=environment)
    hand.begin(0, optimizer, {id(p): "p"})
    for step in range(1, 6):
        p.grad = torch.randn(size, generator=generator)
        if step == 3:
            p.grad[1:] = -(optimizer.state[p]["exp_avg"].double() * BETAS[0] / (1 - BETAS[0])).float()[1:]
        spoiled = None if spoil is None or step != 3 else lambda: spoil(p)
        hand.step(0, optimizer, spoiled)
    return str(hand.close())


@pytest.fixture(params=["lerp", "from the gradient"])
def other(request):
    return WAYS[request.param]


@torch.no_grad()
def first_turned(p):
    p[0] += 0.02 * (1 if p[0] < 0 else -1)


def test_terms_that_cancel_may_go_either_way_and_the_report_counts_them(tmp_path, other):
    a = record(tmp_path / "a", WAYS["one after the other"])
    report = diff(a, record(tmp_path / "b", other, OTHER_THREADS))
    assert report.same, str(report)
    assert [cause.code for cause in report.causes] == ["noise"]
    words = "1 update goes the other way in some element, where the argument of a sign is zero but for rounding"
    assert words in report.notes
    assert not diff(a, tmp_path / "b", exact=True).same


def test_a_sign_that_rounding_cannot_turn_is_a_difference_beside_those_that_it_can(tmp_path, other):
    a = record(tmp_path / "a", WAYS["one after the other"])
    report = diff(a, record(tmp_path / "b", other, OTHER_THREADS, spoil=first_turned))
    assert not report.same
    assert (report.first.step, report.first.quantity) == (3, "update")


def test_a_step_that_is_no_sign_is_a_difference_however_small_its_argument(tmp_path):
    def steep(m, g, beta):
        return (1e2 * (m * beta + g * (1 - beta))).tanh()

    report = diff(record(tmp_path / "a", WAYS["one after the other"]), record(tmp_path / "b", steep, OTHER_THREADS))
    assert not report.same
    assert [cause.code for cause in report.causes] == ["rule-unknown"]


def test_replay_and_identify_go_along_either_way(tmp_path, other):
    run = record(tmp_path / "run", other)
    report = optrace.replay(run)
    assert report.same, str(report)
    assert not optrace.replay(record(tmp_path / "spoiled", other, spoil=first_turned)).same
    assert optrace.identify(run).words == "Lion, betas 0.9 0.99, lr 0.01, decoupled weight decay 0.1"
