"""The linter finds each fault in a small program that has it, and nothing in the same program without it."""

from __future__ import annotations

import io
import json
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import optrace
from optrace.compare.lint.run import RULES
from optrace.errors import TraceError

pytestmark = pytest.mark.usefixtures("only_what_is_new")

DOCS = Path(__file__).resolve().parents[2] / "docs"


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 2)).to(dtype)


def split(net, decay=0.1):
    matrices = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]


def backward(net, scaler=None):
    torch.manual_seed(1)
    dtype = next(net.parameters()).dtype
    loss = net(torch.randn(16, 4, dtype=dtype)).square().mean()
    (loss if scaler is None else scaler.scale(loss)).backward()
    return loss


def train(path, net, *optimizers, steps=12, scheduler=None, zero=True, before=None):
    torch.set_num_threads(1)
    with optrace.record(path, quiet=True):
        for step in range(1, steps + 1):
            if zero:
                for optimizer in optimizers:
                    optimizer.zero_grad()
            backward(net)
            if before is not None:
                before(step)
            for optimizer in optimizers:
                optimizer.step()
            if scheduler is not None:
                scheduler.step()
    return optrace.lint(path)


def test_healthy_program_has_no_finding(tmp_path):
    net = network()
    optimizer = torch.optim.AdamW(split(net), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5)
    report = train(tmp_path / "run", net, optimizer, scheduler=scheduler)
    assert report.clean and report.codes == ()
    assert str(report) == "run: nothing found; AdamW (12 steps)"


def test_defaults_are_no_finding(tmp_path):
    for kind in (torch.optim.AdamW, torch.optim.SGD, torch.optim.Adafactor, torch.optim.Rprop, torch.optim.NAdam):
        net = network()
        assert train(tmp_path / kind.__name__, net, kind(net.parameters())).clean


def test_scheduler_before_the_first_step(tmp_path):
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = train(tmp_path / "run", net, optimizer, before=lambda step: scheduler.step())
    assert report.codes == ("scheduler-before-step",)
    assert "StepLR stepped once before SGD took its first step" in str(report)


def test_decay_on_norms_beside_a_group_that_is_spared(tmp_path):
    net = network()
    named = dict(net.named_parameters())
    spared = [name for name in named if name.endswith("bias")]
    groups = [
        {"params": [p for n, p in named.items() if n not in spared], "weight_decay": 1e-3},
        {"params": [named[n] for n in spared], "weight_decay": 0.0},
    ]
    (finding,) = train(tmp_path / "run", net, torch.optim.AdamW(groups)).findings
    assert (finding.code, finding.params) == ("decay-on-norms", ("1.weight",))


def test_strong_decay_of_everything_alike(tmp_path):
    net = network()
    (finding,) = train(tmp_path / "run", net, torch.optim.AdamW(net.parameters(), weight_decay=0.1)).findings
    assert finding.code == "decay-on-norms"
    assert finding.params == ("0.bias", "1.weight", "1.bias", "3.bias")


def test_parameters_in_no_group_are_those_with_a_gradient(tmp_path):
    net = network()
    optimizer = torch.optim.SGD(net[0].parameters(), lr=0.1)
    net[1].weight.requires_grad_(False)
    (finding,) = train(tmp_path / "run", net, optimizer).findings
    assert (finding.code, finding.params) == ("params-in-no-group", ("1.bias", "3.bias", "3.weight"))


def test_frozen_unused_and_otherwise_held_parameters_belong_nowhere(tmp_path):
    net = network()
    net[1].requires_grad_(False)
    net.register_parameter("unused", nn.Parameter(torch.ones(3)))
    first = torch.optim.SGD([p for p in net[0].parameters()], lr=0.1)
    second = torch.optim.Adam(net[3].parameters())
    assert train(tmp_path / "run", net, first, second).clean


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_never_zeroed(tmp_path, set_to_none):
    net = network()
    report = train(tmp_path / "bad", net, torch.optim.SGD(net.parameters(), lr=0.01), zero=False)
    assert report.codes == ("grads-never-zeroed",)
    assert report.findings[0].steps == (2, 4)

    def zero(step):
        net.zero_grad(set_to_none=set_to_none)
        backward(net)

    assert train(tmp_path / "good", net, torch.optim.SGD(net.parameters(), lr=0.01), zero=False, before=zero).clean


def test_gradients_cleared_by_hand_or_accumulated_within_a_step_are_fine(tmp_path):
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, nesterov=True, momentum=0.9, foreach=True)
    with optrace.record(tmp_path / "run", quiet=True):
        for _ in range(5):
            backward(net)
            backward(net)
            optimizer.step()
            for param in net.parameters():
                param.grad = None
    assert optrace.lint(tmp_path / "run").clean


def test_another_loss_that_reaches_the_parameters_before_they_are_zeroed_is_fine(tmp_path):
    critic, generator = nn.Linear(3, 1), nn.Linear(2, 3)
    first, second = torch.optim.SGD(critic.parameters(), 0.1), torch.optim.SGD(generator.parameters(), 0.1)
    with optrace.record(tmp_path / "run", quiet=True):
        for _ in range(5):
            first.zero_grad()
            critic(torch.randn(4, 3)).mean().backward()
            first.step()
            second.zero_grad()
            critic(generator(torch.randn(4, 2))).mean().backward()
            second.step()
    assert optrace.lint(tmp_path / "run").clean


@pytest.mark.parametrize("waits", [False, True])
def test_scheduler_that_moves_while_the_scaler_skips(tmp_path, waits):
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with optrace.record(tmp_path / "run", quiet=True):
        for step in range(6):
            optimizer.zero_grad()
            backward(net, scaler)
            if step == 2:
                net[0].weight.grad.fill_(float("inf"))
            scale = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            if not waits or scaler.get_scale() >= scale:
                scheduler.step()
    report = optrace.lint(tmp_path / "run")
    assert report.codes == (() if waits else ("scheduler-through-skips",))


def test_lr_at_zero_too_long(tmp_path):
    net = network()
    optimizer = torch.optim.AdamW(split(net), lr=0.1)
    ends = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / 4))
    (first, second) = train(tmp_path / "bad", net, optimizer, scheduler=ends).findings
    assert {first.code, second.code} == {"lr-zero"}
    assert first.steps == (5, 12)
    optimizer = torch.optim.AdamW(split(net), lr=0.1)
    warm = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step, 11 - step) / 6)
    assert train(tmp_path / "good", net, optimizer, scheduler=warm).clean


def test_updates_rounded_away_in_bfloat16(tmp_path):
    net = network(torch.bfloat16)
    report = train(tmp_path / "bad", net, torch.optim.SGD(net.parameters(), lr=1e-4))
    assert report.codes == ("update-rounded",)
    net = network(torch.bfloat16)
    assert train(tmp_path / "good", net, torch.optim.Adam(net.parameters(), lr=1e-2)).clean


def test_state_less_precise_than_the_parameters(tmp_path):
    class Half(torch.optim.Optimizer):
        def __init__(self, params, lr):
            super().__init__(params, {"lr": lr})

        @torch.no_grad()
        def step(self, closure=None):
            for p in self.param_groups[0]["params"]:
                state = self.state[p]
                if not state:
                    state["step"], state["exp_avg"] = torch.zeros((), dtype=torch.float16), p.grad.bfloat16()
                state["step"] += 1
                p.sub_(state["exp_avg"].lerp_(p.grad.bfloat16(), 0.1).float(), alpha=self.param_groups[0]["lr"])

    net = network()
    (finding,) = train(tmp_path / "run", net, Half(net.parameters(), 0.1)).findings
    assert finding.code == "state-precision"
    assert finding.summary.startswith("exp_avg of 0.weight, 0.bias, 1.weight and 3 more is bfloat16")


@pytest.mark.parametrize(
    ("kind", "options", "advice"),
    [
        (torch.optim.AdamW, {"weigth_decay": 0.0}, "write 'weight_decay'"),
        (torch.optim.AdamW, {"learning_rate": 0.0}, "write 'lr'"),
        (torch.optim.SGD, {"betas": (0.9, 0.99)}, "drop it"),
    ],
)
def test_option_that_the_optimizer_never_reads(tmp_path, kind, options, advice):
    net = network()
    groups = [{"params": net[0].parameters(), **options, "name": "first"}, {"params": net[3].parameters()}]
    net[1].requires_grad_(False)
    (finding,) = train(tmp_path / "run", net, kind(groups, lr=0.01)).findings
    assert finding.code == "option-ignored"
    assert finding.fix.startswith(advice)


def test_schedule_and_dampening_that_do_nothing(tmp_path):
    net = network()
    optimizer = torch.optim.Rprop(net.parameters())
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    assert train(tmp_path / "rprop", net, optimizer, scheduler=scheduler).codes == ("option-ignored",)
    assert train(tmp_path / "sgd", net, torch.optim.SGD(net.parameters(), dampening=0.1)).codes == ("option-ignored",)


def test_momentum_written_by_a_cyclic_schedule_is_no_finding(tmp_path):
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.CyclicLR(optimizer, 0.01, 0.1, step_size_up=3)
    assert train(tmp_path / "run", net, optimizer, scheduler=scheduler).clean


@pytest.mark.parametrize("loads", [False, True])
def test_state_initialisation_counted_as_a_step(tmp_path, loads):
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    fresh = optimizer.state_dict()
    with optrace.record(tmp_path / "run", quiet=True):
        for param in net.parameters():
            param.grad = torch.zeros_like(param)
        optimizer.param_groups[0]["lr"] = 0.0
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 0.01
        if loads:
            optimizer.load_state_dict(fresh)
            optimizer.param_groups[0]["lr"] = 0.01
        for _ in range(4):
            optimizer.zero_grad()
            backward(net)
            optimizer.step()
    assert optrace.lint(tmp_path / "run").codes == (() if loads else ("init-counted",))


def test_parameter_of_two_optimizers(tmp_path):
    net = network()
    first = torch.optim.SGD(net.parameters(), lr=0.1)
    second = torch.optim.SGD(net[3].parameters(), lr=0.1)
    (finding,) = train(tmp_path / "run", net, first, second).findings
    assert (finding.code, finding.params) == ("param-twice", ("3.weight", "3.bias"))


def test_parameter_listed_twice_in_a_group(tmp_path):
    net = network()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = torch.optim.SGD([*net.parameters(), net[3].bias], lr=0.1)
    (finding,) = train(tmp_path / "run", net, optimizer).findings
    assert (finding.code, finding.params) == ("param-twice", ("3.bias",))


def test_optimizers_after_one_another_share_nothing(tmp_path):
    net = network()
    with optrace.record(tmp_path / "run", quiet=True):
        for _ in range(2):
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
            for _ in range(3):
                optimizer.zero_grad()
                backward(net)
                optimizer.step()
    assert optrace.lint(tmp_path / "run").clean


def test_one_optimizer_of_a_run_alone(tmp_path):
    net = network()
    first = torch.optim.SGD(net[0].parameters(), lr=0.1)
    second = torch.optim.Adam([*net[1].parameters(), *net[3].parameters()], lr=0.01, weight_decay=0.5)
    train(tmp_path / "run", net, first, second)
    assert optrace.lint(f"{tmp_path}/run@SGD").clean
    assert optrace.lint(f"{tmp_path}/run@1").codes == ("decay-on-norms",)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(TraceError):
        optrace.lint(tmp_path / "nothing")


def report_in_ipython(report):
    text = io.StringIO()
    report._repr_pretty_(SimpleNamespace(text=text.write), False)
    return text.getvalue()


def test_report_is_plain_data_too(tmp_path):
    net = network()
    report = train(tmp_path / "run", net, torch.optim.AdamW(net.parameters(), weight_decay=0.1))
    data = json.loads(report.to_json())
    assert data["findings"][0]["code"] == "decay-on-norms"
    assert data["optimizers"] == [[0, "AdamW", 12]] and not data["clean"]
    assert "decay-on-norms" in report._repr_html_()
    assert report_in_ipython(report) == str(report)


def test_every_code_has_a_section_in_the_docs_and_every_section_a_code():
    assert re.findall(r"^## (\S+)$", (DOCS / "lint.md").read_text(), re.M) == list(RULES)
