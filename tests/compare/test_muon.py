"""Muon written by hand against torch's: right ones are the same, each single mistake is named, from whole tensors."""

from __future__ import annotations

import pytest
import torch

import optrace

pytestmark = pytest.mark.usefixtures("only_what_is_new")

torch.set_num_threads(1)

STEPS = 6


class OwnMuon(torch.optim.Optimizer):
    """Muon after its authors' description; a test makes one mistake in it."""

    steps, coefficients, dtype = 5, (3.4445, -4.7750, 2.0315), torch.bfloat16

    def __init__(self, params):
        super().__init__(params, {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1})

    def orthogonal(self, matrix):
        a, b, c = self.coefficients
        x = matrix.to(self.dtype)
        x = x.mT if matrix.shape[0] > matrix.shape[1] else x
        x = x / (x.norm() + 1e-7)
        for _ in range(self.steps):
            gram = x @ x.mT
            x = a * x + (b * gram + c * gram @ gram) @ x
        return (x.mT if matrix.shape[0] > matrix.shape[1] else x).float()

    def momentum(self, buffer, grad, mu):
        return buffer.lerp_(grad, 1 - mu)

    def direction(self, buffer, grad, mu):
        return grad.lerp(buffer, mu)

    def scale(self, rows, columns):
        return max(1, rows / columns) ** 0.5

    def decay(self, lr, weight_decay, scale):
        return 1 - lr * weight_decay

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, mu = group["lr"], group["momentum"]
            for p in group["params"]:
                buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                update = self.orthogonal(self.direction(self.momentum(buffer, p.grad, mu), p.grad, mu))
                scale = self.scale(*p.shape)
                p.mul_(self.decay(lr, group["weight_decay"], scale)).add_(update, alpha=-lr * scale)


def torchs(params):
    return torch.optim.Muon(params, lr=0.02)


def changed(**members):
    return type("Changed", (OwnMuon,), members)


RIGHT = {
    "bfloat16": OwnMuon,
    "float32": changed(dtype=torch.float32),
    "float16": changed(dtype=torch.float16),
}
WRONG = {
    "sum": (
        changed(
            momentum=lambda self, buffer, grad, mu: buffer.mul_(mu).add_(grad),
            direction=lambda self, buffer, grad, mu: grad.add(buffer, alpha=mu),
        ),
        "rule-momentum-form",
        "b sums them",
    ),
    "no nesterov": (
        changed(direction=lambda self, buffer, grad, mu: buffer),
        "rule-nesterov",
        "b makes the momentum itself orthogonal",
    ),
    "added": (
        changed(direction=lambda self, buffer, grad, mu: grad.add(buffer, alpha=mu)),
        "rule-nesterov",
        "b adds the gradient to momentum times an average",
    ),
    "no decay": (changed(decay=lambda self, *_: 1.0), "rule-decay-missing", "b leaves out weight decay"),
    "scaled decay": (
        changed(decay=lambda self, lr, weight_decay, scale: 1 - lr * weight_decay * scale),
        "rule-decay-coupling",
        "by the lr that is adjusted to the shape",
    ),
    "adamw's rms": (
        changed(scale=lambda self, rows, columns: 0.2 * max(rows, columns) ** 0.5),
        "lr-value",
        "b multiplies lr by 0.2*sqrt(max(rows, columns)); torch.optim.Muon by sqrt(max(1, rows/columns))",
    ),
    "no scale": (changed(scale=lambda self, *_: 1.0), "lr-value", "b multiplies lr by 1, whatever the shape"),
    "columns": (
        changed(scale=lambda self, rows, columns: max(1, columns / rows) ** 0.5),
        "lr-value",
        "b multiplies lr by sqrt(max(1, columns/rows))",
    ),
    "four iterations": (changed(steps=4), "group-option", "b iterates with ns_steps=4"),
    "other coefficients": (changed(coefficients=(2.0, -1.5, 0.5)), "group-option", "coefficients (2, -1.5, 0.5)"),
}


def train(path, make, *, values="full", edit=None):
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(12, 32, bias=False),
        torch.nn.Tanh(),
        torch.nn.Linear(32, 24, bias=False),
        torch.nn.Tanh(),
        torch.nn.Linear(24, 8, bias=False),
    )
    optimizer = make(net.parameters())
    x, y = torch.randn(STEPS, 64, 12), torch.randn(STEPS, 64, 8)
    with optrace.record(path, quiet=True, values=values):
        for step in range(STEPS):
            optimizer.zero_grad()
            (net(x[step]) - y[step]).square().mean().backward()
            if edit is not None:
                edit(optimizer, step)
            optimizer.step()
    return path


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return train(tmp_path_factory.mktemp("muon") / "a", torchs)


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_muon_is_the_same_in_any_precision_of_its_iteration(tmp_path, reference, name):
    report = optrace.diff(reference, train(tmp_path / "b", RIGHT[name]))
    assert report.same, report
    assert [cause.code for cause in report.causes] == ["noise"]
    assert any("of Muon differ" in note for note in report.notes)


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_in_a_muon_is_named(tmp_path, reference, name):
    make, code, words = WRONG[name]
    report = optrace.diff(reference, train(tmp_path / "b", make))
    assert [cause.code for cause in report.causes] == [code], report
    assert words in report.causes[0].summary


def test_two_mistakes_are_both_named(tmp_path, reference):
    make = changed(scale=lambda self, *_: 1.0, decay=lambda self, *_: 1.0)
    report = optrace.diff(reference, train(tmp_path / "b", make))
    assert [cause.code for cause in report.causes] == ["lr-value", "rule-decay-missing"]


def test_a_muon_that_is_torchs_on_the_other_side_is_not_the_mistaken_one(tmp_path, reference):
    report = optrace.diff(train(tmp_path / "b", changed(steps=4)), reference)
    assert report.causes[0].summary.startswith("b iterates with ns_steps=4 and coefficients")
    assert report.causes[0].fix.startswith("in b iterate with ns_steps=5")


class StopsHalfway(OwnMuon):
    def orthogonal(self, matrix):
        self.calls = getattr(self, "calls", 0) + 1
        return super().orthogonal(matrix) * (0.5 if self.calls == 3 * 4 else 1.0)


def test_one_step_of_one_matrix_that_goes_wrong_is_found_amid_the_noise(tmp_path, reference):
    report = optrace.diff(reference, train(tmp_path / "b", StopsHalfway))
    assert not report.same


def test_samples_cannot_tell_and_the_report_says_what_can(tmp_path):
    a, b = train(tmp_path / "a", torchs, values="sample"), train(tmp_path / "b", OwnMuon, values="sample")
    cause = optrace.diff(a, b).causes[0]
    assert cause.code == "rule-unknown"
    assert cause.fix == "record both runs again with --values full, and compare those"
    assert any("makes much of rounding" in evidence for evidence in cause.evidence)


def test_another_rule_is_no_muon(tmp_path, reference):
    def sgd(params):
        return torch.optim.SGD(params, lr=0.02, momentum=0.95, weight_decay=0.1)

    cause = optrace.diff(reference, train(tmp_path / "b", sgd)).causes[0]
    assert cause.code in ("rule-unknown", "group-option")
    assert "Muon" not in cause.fix
