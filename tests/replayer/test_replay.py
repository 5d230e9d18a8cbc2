"""A replay certifies what torch did, and names what a wrong implementation does instead."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import optrace
from optrace.errors import OptraceError
from optrace.replayer.cubes import cubes, members_of
from optrace.replayer.run import replay

pytestmark = pytest.mark.usefixtures("only_what_is_new")

torch.set_num_threads(1)

CASES = [
    (torch.optim.SGD, {"lr": 0.1}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "dampening": 0.2}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True}),
    (torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True}),
    (torch.optim.AdamW, {"lr": 0.01}),
    (torch.optim.Adamax, {}),
    (torch.optim.NAdam, {}),
    (torch.optim.RAdam, {"lr": 0.01}),
    (torch.optim.RMSprop, {"momentum": 0.5, "centered": True, "eps": 1e-3}),
    (torch.optim.Adagrad, {"lr_decay": 0.1}),
    (torch.optim.Adadelta, {}),
    (torch.optim.ASGD, {"lambd": 0.1, "t0": 4}),
    (torch.optim.Rprop, {}),
]


def train(path, make, steps=12, dtype=torch.float32, none_at=(), settings=None):
    """Record a small network with two groups, the second at a tenth of the lr; the lr halves after step 5."""
    torch.manual_seed(3)
    net = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).to(dtype)
    optimizer = make(net)
    x, y = torch.randn(16, 5, dtype=dtype), torch.randn(16, 2, dtype=dtype)
    with optrace.record(path, quiet=True, **(settings or {})):
        for step in range(1, steps + 1):
            optimizer.zero_grad()
            (net(x) - y).square().mean().backward()
            if step in none_at:
                net[0].bias.grad = None
            optimizer.step()
            if step == 5:
                for group in optimizer.param_groups:
                    group["lr"] = group["lr"] / 2


def groups_of(net, options):
    lr = options.get("lr", 0.01)
    return [{"params": net[0].parameters()}, {"params": net[2].parameters(), "lr": lr / 10}]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("kind", "options"), CASES)
def test_torch_follows_its_own_rule(tmp_path, kind, options, dtype):
    train(
        tmp_path / "run",
        lambda net: kind(groups_of(net, options), foreach=False, **options),
        dtype=dtype,
        none_at=(1, 7),
    )
    report = replay(tmp_path / "run")
    assert report.same, str(report)
    assert report.n_steps == 12
    assert report.n_numbers > 12 * 4 * 2
    if kind in (torch.optim.SGD, torch.optim.Adamax) and dtype is not torch.bfloat16:
        assert report.worst_eps == 0


def test_every_nth_step_replays_from_what_came_in(tmp_path):
    options = {"lr": 0.1, "momentum": 0.9}
    train(tmp_path / "run", lambda net: torch.optim.SGD(groups_of(net, options), **options), settings={"every": 3})
    report = replay(tmp_path / "run")
    assert report.same
    assert report.worst_eps == 0
    assert report.n_steps == 5  # 1, 3, 6, 9, 12


class Averaging(torch.optim.SGD):
    """SGD whose momentum averages."""

    def __init__(self, params, **options):
        super().__init__(params, **options)
        for group in self.param_groups:
            group["dampening"] = 0

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    buf = state.setdefault("momentum_buffer", torch.zeros_like(p))
                    buf.mul_(group["momentum"]).add_(p.grad, alpha=1 - group["momentum"])
                    p.sub_(buf, alpha=group["lr"])


def test_a_wrong_rule_is_located_and_named(tmp_path):
    train(tmp_path / "run", lambda net: Averaging(net.parameters(), lr=0.1, momentum=0.9))
    report = replay(tmp_path / "run", rule="sgd")
    assert not report.same
    assert report.first is not None
    assert (report.first.step, report.first.quantity) == (1, "param")
    assert {look.code for look in report.looks_like} == {"rule-momentum-form"}
    assert "averages the gradient, buf = 0.9*buf + 0.1*g" in str(report)


def test_another_class_needs_a_named_rule(tmp_path):
    train(tmp_path / "run", lambda net: Averaging(net.parameters(), lr=0.1, momentum=0.9))
    with pytest.raises(OptraceError, match="Averaging, which is no optimizer of torch"):
        replay(tmp_path / "run")
    with pytest.raises(OptraceError, match="no optimizer 3"):
        replay(tmp_path / "run", optimizer=3)


def test_one_edited_number_is_found_at_its_step(tmp_path):
    class Bumped(torch.optim.SGD):
        count = 0

        def step(self, closure=None):
            super().step(closure)
            self.count += 1
            if self.count == 7:
                with torch.no_grad():
                    self.param_groups[1]["params"][1].mul_(1 + 1e-5)

    options = {"lr": 0.1, "momentum": 0.9}
    train(tmp_path / "run", lambda net: Bumped(groups_of(net, options), **options))
    report = replay(tmp_path / "run", rule="sgd")
    assert not report.same
    assert (report.first.step, report.first.group, report.first.param) == (7, 1, "2.bias")
    assert report.n_differing == 1
    assert not report.looks_like


def test_cubes_hold_what_the_table_holds(tmp_path):
    train(tmp_path / "run", lambda net: torch.optim.AdamW(net.parameters()), none_at=(4,))
    trace = optrace.open(tmp_path / "run")
    members = members_of(trace, 0)
    whole = list(cubes(trace, 0, members))
    assert len(whole) == 1
    frame = trace.tensors
    for i, step in enumerate(whole[0].steps):
        for m, member in enumerate(members):
            rows = frame[(frame["step"] == step) & (frame["param"] == member.name)].set_index("quantity")
            for quantity in ("param", "state.exp_avg", "state.step"):
                np.testing.assert_array_equal(whole[0].values[quantity][i, m], rows.loc[quantity, "sample"])
            assert whole[0].there["grad"][i, m] == rows.loc["grad", "present"]


def test_a_run_is_replayed_with_a_named_class(tmp_path):
    train(tmp_path / "run", lambda net: Averaging(groups_of(net, {"lr": 0.1}), lr=0.1, momentum=0.9))
    assert replay(tmp_path / "run", as_class=Averaging).same
    report = replay(tmp_path / "run", as_class=torch.optim.SGD)
    assert not report.same
    assert report.first.step == 1
    with pytest.raises(OptraceError, match="one rule"):
        replay(tmp_path / "run", rule="sgd", as_class=Averaging)


def test_a_class_of_another_shape_is_refused_in_words(tmp_path):
    class Strange:
        def __init__(self):
            pass

    train(tmp_path / "run", lambda net: torch.optim.SGD(net.parameters(), lr=0.1))
    with pytest.raises(OptraceError, match="Strange could not make the recorded step"):
        replay(tmp_path / "run", as_class=Strange)


class Hidden:
    """Keeps its momentum where no recorder looks."""

    def __init__(self, params, share):
        self.params, self.lr, self.momentum = list(params), 0.1, 0.9
        buffers = {}

        @torch.no_grad()
        def rule(self):
            for p in self.params:
                v = buffers.setdefault(p, torch.zeros_like(p))
                v.mul_(self.momentum).add_(p.grad, alpha=share)
                p -= self.lr * v

        self._rule = rule

    def step(self):
        self._rule(self)


@pytest.mark.parametrize(("share", "same"), [(1.0, True), (0.1, False)])
def test_state_that_is_not_recorded_is_carried_from_the_first_step(tmp_path, share, same):
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 2)
    optimizer = optrace.watch(Hidden(net.parameters(), share))
    for name, settings in (("all", {}), ("some", {"every": 2})):
        with optrace.record(tmp_path / name, quiet=True, **settings):
            for _ in range(8 if name == "all" else 4):
                net.zero_grad()
                net(torch.ones(2, 3)).square().mean().backward()
                optimizer.step()
    report = replay(tmp_path / "all", rule="sgd")
    assert report.same is same
    assert any("computed from the first step on" in note for note in report.notes)
    if not same:
        assert report.first.step == 1
        assert [look.code for look in report.looks_like] == ["rule-momentum-form"]
    with pytest.raises(OptraceError, match="record with the state"):
        replay(tmp_path / "some", rule="sgd")


def test_a_count_that_is_not_recorded_beside_the_moments_is_made_from_the_first_step(tmp_path):
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    with optrace.record(tmp_path / "run", quiet=True, quantities="param,grad,update,state.exp_avg*"):
        for _ in range(6):
            optimizer.zero_grad()
            net(torch.rand(4, 3)).square().mean().backward()
            optimizer.step()
    recorded = set(optrace.open(tmp_path / "run").tensors["quantity"])
    assert "state.exp_avg_sq" in recorded and "state.step" not in recorded
    report = replay(tmp_path / "run")
    assert report.same and report.n_steps == 6
    assert "the rule's step is not in the record; it was computed from the first step on" in report.notes
    assert not replay(tmp_path / "run", rule="adamax").same
