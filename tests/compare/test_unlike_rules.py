"""Optimizers of two rules with other options: both are told, and options that no rule of ours reads are no error."""

from __future__ import annotations

import pytest
import torch

import optrace
from optrace.errors import TraceError

pytestmark = pytest.mark.usefixtures("only_what_is_new")

library = pytest.importorskip("pytorch_optimizer")
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
        (lambda params: library.Lamb(params, lr=0.02, weight_decay=0.1), ["group-option", "lr-value", "rule-unknown"]),
        (lambda params: library.StableAdamW(params, lr=0.01, weight_decay=0.1), ["group-option", "rule-unknown"]),
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


@pytest.mark.parametrize("kind", ["Adan", "AdEMAMix"])
def test_options_that_our_rules_cannot_read_are_no_error(tmp_path, kind):
    def make(params):
        return getattr(library, kind)(params, lr=0.01, weight_decay=0.1)

    a, b = train(tmp_path / "a", adamw), train(tmp_path / "b", make)
    for one, other in ((a, b), (b, a)):
        (told,) = (cause for cause in optrace.diff(one, other).causes if cause.code == "rule-unknown")
        words = " ".join([told.summary, *told.evidence])
        assert "follows another rule than adamw, which torch.optim.AdamW follows: it has betas=(0." in words
    assert "none of ours" in str(optrace.identify(b))
    with pytest.raises(TraceError, match=r"adamw takes betas like \(0.9, 0.999\), and Ad.* has \(0.9"):
        optrace.replay(b, rule="adamw")


class WithoutOptions(torch.optim.Optimizer):
    """AdamW with all numbers but lr in the code; `decay` says whether it decays."""

    def __init__(self, params, decay=0.1):
        super().__init__(params, {"lr": 0.01})
        self.decay = decay

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state |= {"step": torch.tensor(0.0), "m": torch.zeros_like(p), "v": torch.zeros_like(p)}
                state["step"] += 1
                t = state["step"].item()
                m = state["m"].mul_(0.9).add_(p.grad, alpha=0.1)
                v = state["v"].mul_(0.999).addcmul_(p.grad, p.grad, value=0.001)
                p.mul_(1 - group["lr"] * self.decay)
                p -= group["lr"] * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)


def test_options_that_a_class_has_in_its_code_are_judged_by_its_updates(tmp_path):
    a = train(tmp_path / "a", adamw)
    report = optrace.diff(a, train(tmp_path / "b", WithoutOptions))
    assert report.same, str(report)
    (note,) = (note for note in report.notes if note.startswith("b has no betas"))
    assert "weight_decay (0.1)" in note and note.endswith("(what it does shows in the updates)")
    report = optrace.diff(a, train(tmp_path / "c", lambda params: WithoutOptions(params, decay=0.0)))
    assert [cause.code for cause in report.causes] == ["rule-decay-missing"]
    assert report.first.quantity == "update"
