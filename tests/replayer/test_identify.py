"""From the record alone: the rule and its numbers, or none of ours."""

from __future__ import annotations

import pytest
import torch

import optrace
from optrace.errors import TraceError
from optrace.replayer.identify import identify

pytestmark = pytest.mark.usefixtures("only_what_is_new")

torch.set_num_threads(1)


def train(path, make, steps=30, schedule=None):
    torch.manual_seed(5)
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
    x, y = torch.randn(32, 4), torch.randn(32, 3)
    optimizer = make(net)
    scheduler = schedule(optimizer) if schedule is not None else None
    with optrace.record(path, quiet=True):
        for step in range(steps):
            optimizer.zero_grad()
            batch = slice(4 * (step % 8), 4 * (step % 8) + 4)
            (net(x[batch]) - y[batch]).square().mean().backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()


def decayed(net, **options):
    weights = [p for p in net.parameters() if p.ndim > 1]
    biases = [p for p in net.parameters() if p.ndim == 1]
    return [{"params": weights, "weight_decay": 5e-2, **options}, {"params": biases, **options}]


class Averaging:
    def __init__(self, params, lr, momentum):
        self.params, self.lr, self.beta = list(params), lr, momentum
        self.v = [torch.zeros_like(p) for p in self.params]

    def zero_grad(self):
        for p in self.params:
            p.grad = None

    @torch.no_grad()
    def step(self):
        for v, p in zip(self.v, self.params, strict=True):
            v.mul_(self.beta).add_(p.grad, alpha=1 - self.beta)
            p -= self.lr * v


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda net: torch.optim.SGD(net.parameters(), lr=0.1), "SGD, lr 0.1"),
        (lambda net: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), "SGD, momentum 0.9, lr 0.1"),
        (
            lambda net: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, dampening=0.5),
            "SGD, momentum 0.9 dampened by 0.5, lr 0.1",
        ),
        (
            lambda net: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True),
            "SGD, momentum 0.9, Nesterov, lr 0.1",
        ),
        (
            lambda net: torch.optim.SGD(decayed(net), lr=0.1, momentum=0.9),
            "SGD, momentum 0.9, lr 0.1, coupled weight decay 0.05 on 2 of 4 params",
        ),
        (
            lambda net: optrace.watch(Averaging(net.parameters(), lr=0.1, momentum=0.9)),
            "SGD, momentum 0.9 averaged from zero, lr 0.1",
        ),
        (
            lambda net: torch.optim.AdamW(decayed(net), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0),
            "AdamW, betas 0.9 0.95, eps 1e-08, lr 0.01, decoupled weight decay 0.05 on 2 of 4 params",
        ),
        (lambda net: torch.optim.Adam(net.parameters(), lr=1e-2), "Adam, betas 0.9 0.999, eps 1e-08, lr 0.01"),
        (lambda net: torch.optim.RMSprop(net.parameters(), lr=1e-2), "RMSprop, alpha 0.99, eps 1e-08, lr 0.01"),
        (lambda net: torch.optim.Adagrad(net.parameters(), lr=1e-1), "Adagrad, eps 1e-10, lr 0.1"),
    ],
)
def test_the_rule_and_its_numbers_are_found(tmp_path, make, words):
    train(tmp_path / "run", make)
    found = identify(tmp_path / "run")
    assert found.rule is not None, str(found)
    assert found.words == words


class AveragingByGroups(torch.optim.Optimizer):
    def __init__(self, params):
        super().__init__(params, {"lr": 0.1, "momentum": 0.9})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                buffer = self.state[p].setdefault("buffer", torch.zeros_like(p))
                buffer.mul_(0.9).add_(p.grad, alpha=1 - 0.9)
                p -= group["lr"] * buffer


def warm_up(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda e: min(e / 5, 1.0))


def falling(optimizer):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)


def layers(net):
    return [{"params": net[0].parameters()}, {"params": net[2].parameters(), "lr": 0.02}]


@pytest.mark.parametrize(
    ("make", "schedule", "words"),
    [
        (
            lambda net: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9),
            warm_up,
            "SGD, momentum 0.9, lr 0 at step 1, 0.1 at step 12 (6 values)",
        ),
        (
            lambda net: torch.optim.AdamW(net.parameters(), lr=0.1),
            warm_up,
            "AdamW, betas 0.9 0.999, eps 1e-08, lr 0 at step 1, 0.1 at step 12 (6 values), decoupled weight decay 0.01",
        ),
        (
            lambda net: torch.optim.NAdam(net.parameters(), lr=1.0),
            falling,
            "NAdam, betas 0.9 0.999, eps 1e-08, momentum_decay 0.004, lr 1 at step 1, 0.000488281 at step 12"
            " (another at each step)",
        ),
        (
            lambda net: AveragingByGroups(net.parameters()),
            warm_up,
            "SGD, momentum 0.9 averaged from zero, lr 0 at step 1, 0.1 at step 12 (6 values)",
        ),
        (
            lambda net: torch.optim.SGD(layers(net), lr=0.1),
            None,
            "SGD, lr 0.1 in group 0, 0.02 in others",
        ),
    ],
)
def test_a_schedule_is_told_from_its_first_to_its_last_lr(tmp_path, make, schedule, words):
    train(tmp_path / "run", make, 12, schedule)
    found = identify(tmp_path / "run")
    assert found.rule is not None, str(found)
    assert found.words == words


def test_none_of_ours_is_said_so(tmp_path):
    class Sign(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {"lr": 0.01})

        @torch.no_grad()
        def step(self):
            for group in self.param_groups:
                for p in group["params"]:
                    p -= group["lr"] * torch.sign(p.grad) * p.abs()

    train(tmp_path / "run", lambda net: Sign(net.parameters()))
    found = identify(tmp_path / "run")
    assert found.rule is None
    assert "none of ours; the closest is" in str(found)


def test_a_rule_that_samples_cannot_tell_is_not_called_none_of_ours(tmp_path):
    train(tmp_path / "run", lambda net: torch.optim.Muon([net[0].weight, net[2].weight], lr=0.02), steps=6)
    with pytest.raises(TraceError, match="muon mixes the elements of a tensor, so samples cannot tell"):
        identify(tmp_path / "run")


class HandAdam:
    """Adam as in a notebook; `bottom` makes the denominator of the second moment, its correction and eps."""

    def __init__(self, params, bottom, correct=True, lr=1e-2, decay=0.0):
        self.params = list(params)
        self.lr, self.b1, self.b2, self.epsilon, self.l2 = lr, 0.8, 0.95, 1e-6, decay
        self._bottom, self._correct = bottom, correct
        self.m = [torch.zeros_like(p) for p in self.params]
        self.v = [torch.zeros_like(p) for p in self.params]
        self.t = 0

    def zero_grad(self):
        for p in self.params:
            p.grad = None

    @torch.no_grad()
    def step(self):
        self.t += 1
        one = 1 - self.b1**self.t if self._correct else 1.0
        two = 1 - self.b2**self.t if self._correct else 1.0
        for m, v, p in zip(self.m, self.v, self.params, strict=True):
            g = p.grad + self.l2 * p
            m.mul_(self.b1).add_(g, alpha=1 - self.b1)
            v.mul_(self.b2).add_(g * g, alpha=1 - self.b2)
            p -= self.lr * (m / one) / self._bottom(v, two, self.epsilon)


NUMBERS = "Adam, betas 0.8 0.95, eps 1e-06"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bottom": lambda v, two, eps: (v / two).sqrt() + eps}, f"{NUMBERS}, lr 0.01"),
        ({"bottom": lambda v, two, eps: (v / two + eps).sqrt()}, f"{NUMBERS}, eps inside the root, lr 0.01"),
        (
            {"bottom": lambda v, two, eps: (v.sqrt() + eps) / two**0.5},
            f"{NUMBERS} added before bias correction, lr 0.01",
        ),
        (
            {"bottom": lambda v, two, eps: v.sqrt() + eps, "correct": False},
            f"{NUMBERS}, no bias correction, lr 0.01",
        ),
        (
            {"bottom": lambda v, two, eps: (v / two).sqrt() + eps, "decay": 0.05},
            f"{NUMBERS}, lr 0.01, coupled weight decay 0.05",
        ),
    ],
)
def test_the_form_of_a_hand_written_adam_is_told(tmp_path, options, words):
    train(tmp_path / "run", lambda net: optrace.watch(HandAdam(net.parameters(), **options)))
    found = identify(tmp_path / "run")
    assert found.rule == "adamw", str(found)
    assert found.words == words


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda net: torch.optim.Adam(decayed(net), lr=1e-2, amsgrad=True),
            "Adam, betas 0.9 0.999, eps 1e-08, amsgrad, lr 0.01, coupled weight decay 0.05 on 2 of 4 params",
        ),
        (
            lambda net: torch.optim.NAdam(net.parameters(), lr=1e-2),
            "NAdam, betas 0.9 0.999, eps 1e-08, momentum_decay 0.004, lr 0.01",
        ),
        (lambda net: torch.optim.Adamax(net.parameters(), lr=1e-2), "Adamax, betas 0.9 0.999, eps 1e-08, lr 0.01"),
        (lambda net: torch.optim.Adadelta(net.parameters()), "Adadelta, rho 0.9, eps 1e-06, lr 1"),
        (
            lambda net: torch.optim.RMSprop(net.parameters(), lr=1e-3, momentum=0.5, centered=True),
            "RMSprop, alpha 0.99, eps 1e-08, momentum 0.5, centered, lr 0.001",
        ),
    ],
)
def test_torchs_other_rules_are_told_by_their_recorded_options(tmp_path, make, words):
    train(tmp_path / "run", make)
    found = identify(tmp_path / "run")
    assert found.rule is not None, str(found)
    assert found.words == words
