"""From the record alone: the rule and its numbers, or none of ours."""

from __future__ import annotations

import pytest
import torch

import optrace
from optrace.replayer.identify import identify

torch.set_num_threads(1)


def train(path, make, steps=30):
    torch.manual_seed(5)
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
    x, y = torch.randn(32, 4), torch.randn(32, 3)
    optimizer = make(net)
    with optrace.record(path, quiet=True):
        for step in range(steps):
            optimizer.zero_grad()
            batch = slice(4 * (step % 8), 4 * (step % 8) + 4)
            (net(x[batch]) - y[batch]).square().mean().backward()
            optimizer.step()


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
