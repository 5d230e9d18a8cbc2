"""Optimizers that take 1 - beta**t in float32 are not called different for it, and for nothing else."""

from __future__ import annotations

import importlib
import json
import math

import pytest
import torch

import optrace
from optrace.replayer.single import share_of_update

pytestmark = pytest.mark.usefixtures("only_what_is_new")

torch.set_num_threads(1)
ADAM = importlib.import_module("torch.optim.adam")
KINDS = ("Adam", "AdamW", "NAdam", "RAdam")


@pytest.fixture
def capturable(monkeypatch):
    """Lets torch's `capturable` code run on a CPU: it refuses to, unless a compiler looks at it."""
    for name in ("adam", "nadam", "radam"):
        module = importlib.import_module(f"torch.optim.{name}")
        plain = getattr(module, name)

        def compiling(*args, plain=plain, **options):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch.compiler, "is_compiling", lambda: bool(options.get("capturable")))
                return plain(*args, **options)

        monkeypatch.setattr(module, name, compiling)


def train(path, make, steps=8):
    torch.manual_seed(3)
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
    optimizer = make(net.parameters())
    x, y = torch.randn(64, 4), torch.randn(64, 3)
    with optrace.record(path, quiet=True):
        for step in range(steps):
            optimizer.zero_grad()
            batch = slice(8 * step, 8 * step + 8)
            (net(x[batch]) - y[batch]).square().mean().backward()
            optimizer.step()
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.95), (0.8, 0.99)])
def test_the_share_bounds_what_torch_does_to_each_update(capturable, kind, betas):
    options = {"lr": 0.01, "betas": betas, "eps": 1e-12}
    p, q = torch.zeros(200).requires_grad_(), torch.zeros(200).requires_grad_()
    plain = getattr(torch.optim, kind)([p], **options)
    single = getattr(torch.optim, kind)([q], capturable=True, **options)
    for t in range(1, 41):
        p.grad = torch.randn(200)
        q.grad = p.grad.clone()
        with torch.no_grad():
            p.zero_(), q.zero_()
        single.state[q].update({key: value.clone() for key, value in plain.state[p].items()})
        plain.step(), single.step()
        off = ((q - p) / p).abs().detach()
        worst = off.median() if kind == "NAdam" else off.max()  # NAdam adds two terms, which may cancel
        assert worst <= share_of_update(kind, t, options), t


@pytest.mark.parametrize("kind", KINDS)
def test_a_capturable_optimizer_is_the_same_as_one_that_is_not(tmp_path, capturable, kind):
    make = getattr(torch.optim, kind)
    a = train(tmp_path / "a", lambda params: make(params, lr=0.05))
    b = train(tmp_path / "b", lambda params: make(params, lr=0.05, capturable=True))
    report = optrace.diff(a, b)
    assert report.same, str(report)
    assert any(note.startswith("b is capturable, and so takes 1 - beta**t in float32") for note in report.notes), str(
        report
    )


def test_a_replay_and_an_identification_say_what_may_be_all_of_it(tmp_path, capturable):
    run = train(tmp_path / "run", lambda params: torch.optim.Adam(params, lr=0.01, capturable=True))
    report = optrace.replay(run)
    (note,) = report.notes
    assert note.startswith("a capturable step of Adam takes 1 - beta**t in float32, which may be all of this: --eps ")
    allowed = float(note.rpartition("--eps ")[2].split()[0])
    assert optrace.replay(run, tolerance=allowed).same
    assert "closest is Adam" in str(optrace.identify(run))
    assert "takes 1 - beta**t in float32" in str(optrace.identify(run))


@pytest.mark.parametrize("share", [1e-3, 3e-3])
def test_an_error_beyond_that_is_found(tmp_path, capturable, monkeypatch, share):
    plain = ADAM.adam

    def stretched(params, *rest, **options):
        plain(params, *rest, **options)
        params[0].add_(share * 0.01)

    a = train(tmp_path / "a", lambda params: torch.optim.Adam(params, lr=0.01))
    monkeypatch.setattr(ADAM, "adam", torch.no_grad()(stretched))
    b = train(tmp_path / "b", lambda params: torch.optim.Adam(params, lr=0.01, capturable=True))
    report = optrace.diff(a, b)
    assert not report.same
    assert (report.first.step, report.first.param) == (1, "0.weight")


def fused_on_a_device(params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps, *, beta1, beta2, lr, eps, **_):
    """The arithmetic of torch's fused CUDA kernel: all in float32, the betas too."""
    one, two = torch.tensor(beta1), torch.tensor(beta2)
    for p, g, m, v, t in zip(params, grads, exp_avgs, exp_avg_sqs, steps, strict=True):
        t += 1
        m.copy_(one * m + (g - one * g))
        v.copy_(two * v + (g * g - two * g * g))
        p -= torch.tensor(lr) / (1 - one**t) * m / (v.sqrt() / (1 - two**t).sqrt() + eps)


def test_a_fused_kernel_on_a_device_may_also_round_the_betas(tmp_path, monkeypatch):
    a = train(tmp_path / "a", lambda params: torch.optim.Adam(params, lr=0.01))
    monkeypatch.setattr(ADAM, "adam", torch.no_grad()(fused_on_a_device))
    b = train(tmp_path / "b", lambda params: torch.optim.Adam(params, lr=0.01))
    assert not optrace.diff(a, b, exact=True).same
    for path in (a, b):
        told = path / "rank=00000" / "rank.json"
        rank = json.loads(told.read_text())
        rank["optimizers"][0] |= {"devices": ["cuda:0"], "implementation": "fused" if path == b else "foreach"}
        told.write_text(json.dumps(rank))
    report = optrace.diff(a, b)
    assert report.same, str(report)
    assert any("b is fused" in note for note in report.notes)
    assert report.tolerance.same and math.isfinite(report.tolerance.max_eps)
