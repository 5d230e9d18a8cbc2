"""Optimizers of two rules with other options: both are told, and options that no rule of ours reads are no error."""

from __future__ import annotations

import pytest
import torch
from pytorch_optimizer import Adan, AdEMAMix, Lamb, StableAdamW

import optrace
from optrace.errors import TraceError

pytestmark = pytest.mark.usefixtures("only_what_is_new")

torch.set_num_threads(1)


def train(path, make, steps=5):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
    optimizer = make(net.parameters())
    x, y = torch.randn(steps, 8, 4), torch.randn(steps, 8, 2)
    with optrace.record(path, quiet=True):
        for step in range(steps):
            optimizer.zero_grad()
            (net(x[step]) - y[step]).square().mean().backward()
            optimizer.step()
    return path


def adamw(params):
    return torch.optim.AdamW(params, lr=0.01, weight_decay=0.1)


@pytest.mark.parametrize(
    ("make", "codes"),
    [
        (lambda params: Lamb(params, lr=0.02, weight_decay=0.1), ["group-option", "lr-value", "rule-unknown"]),
        (lambda params: StableAdamW(params, lr=0.01, weight_decay=0.1), ["group-option", "rule-unknown"]),
    ],
)
def test_another_rule_is_told_beside_other_options(tmp_path, make, codes):
    report = optrace.diff(train(tmp_path / "a", adamw), train(tmp_path / "b", make))
    assert [cause.code for cause in report.causes] == codes
    last = report.causes[-1]
    assert "does not follow adamw even with its own options, as torch.optim.AdamW does" in last.summary
    assert set(last.independent_of) >= {"group-option"}


def test_a_rule_that_only_has_other_options_is_not_called_another(tmp_path):
    def other(params):
        return torch.optim.AdamW(params, lr=0.02, weight_decay=0.3, eps=1e-6)

    report = optrace.diff(train(tmp_path / "a", adamw), train(tmp_path / "b", other))
    assert {cause.code for cause in report.causes} == {"group-option", "lr-value"}


@pytest.mark.parametrize("kind", [Adan, AdEMAMix])
def test_options_that_our_rules_cannot_read_are_no_error(tmp_path, kind):
    def make(params):
        return kind(params, lr=0.01, weight_decay=0.1)

    a, b = train(tmp_path / "a", adamw), train(tmp_path / "b", make)
    for one, other in ((a, b), (b, a)):
        told = [cause.summary for cause in optrace.diff(one, other).causes if cause.code == "rule-unknown"]
        assert told and "follows another rule than adamw, which torch.optim.AdamW follows: it has betas=(0." in told[0]
    assert "none of ours" in str(optrace.identify(b))
    with pytest.raises(TraceError, match=r"adamw takes betas like \(0.9, 0.999\), and Ad.* has \(0.9"):
        optrace.replay(b, rule="adamw")
