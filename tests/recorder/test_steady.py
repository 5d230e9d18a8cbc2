"""An optimizer that stays as it is is known in one look, and whatever changes is recorded as if it were looked for."""

from __future__ import annotations

import gc
import weakref

import pandas as pd
import pytest
import torch

import optrace
from optrace.recorder import steady
from optrace.recorder.finding import Finder

pytestmark = [
    pytest.mark.usefixtures("only_what_is_new"),
    pytest.mark.skipif(steady.kernel is None, reason="without the C kernel each step is looked for anew"),
]

WARM = 6
"""Steps after which an optimizer that stays as it is is known."""


class Training:
    """A small model, its optimizer, and its step."""

    def __init__(self, make=None):
        torch.manual_seed(0)
        torch.set_num_threads(1)
        self.net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 4))
        make = make or (lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9))
        self.optimizer = make(self.net.parameters())
        self.x, self.y = torch.randn(8, 3), torch.randn(8, 4)

    @property
    def group(self):
        return self.optimizer.param_groups[0]

    @property
    def weight(self):
        return self.net[2].weight

    def backward(self):
        self.optimizer.zero_grad()
        loss = (self.net(self.x) - self.y).square().mean()
        loss.backward()
        return loss

    def step(self, count=1):
        for _ in range(count):
            self.backward()
            self.optimizer.step()


def adam(params):
    return torch.optim.AdamW(params, lr=0.01)


class Renewing(torch.optim.Optimizer):
    """Makes its state anew at each step, and keeps a number there."""

    def __init__(self, params, number=False):
        super().__init__(params, {"lr": 0.1})
        self.number = number

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state["seen"] = state["seen"] + p.grad if "seen" in state else p.grad.clone()
                if self.number:
                    state["step"] = state.get("step", 0) + 1
                p.sub_(state["seen"], alpha=group["lr"])


class Counting(torch.optim.SGD):
    """Writes an option of its group at each step."""

    def step(self, closure=None):
        self.param_groups[0]["k"] = self.param_groups[0].get("k", 0) + 1
        return super().step(closure)


def nothing(run):
    run.step(4)


def other_rate(run):
    for rate in (0.2, 0.3, -0.0, float("nan"), 0.3, 1):
        run.group["lr"] = rate
        run.step()


def tensor_rate(run):
    run.group["lr"] = torch.tensor(0.05)
    run.step(2)
    run.group["lr"].mul_(0.5)
    run.step(2)


def other_betas(run):
    run.group["betas"] = (0.5, 0.99)
    run.step(2)


def new_option(run):
    run.group["note"] = "a"
    run.step(2)
    del run.group["note"]
    run.step(2)


def edited_param(run):
    run.weight.data.mul_(0.5)
    run.step(3)


def other_memory(run):
    run.weight.data = run.weight.data.clone()
    run.step(3)


def transposed_param(run):
    with torch.no_grad():
        run.weight.t_()
    run.step(3)


def smaller_param(run):
    run.net[2] = torch.nn.Linear(4, 4)
    run.group["params"][2:] = list(run.net[2].parameters())
    run.step(3)


def no_gradient(run):
    run.backward()
    run.weight.grad = None
    run.optimizer.step()
    run.step(2)


def strided_gradient(run):
    run.backward()
    run.weight.grad = run.weight.grad.t().contiguous().t()
    run.optimizer.step()
    run.step(2)


def same_gradient_again(run):
    run.backward()
    run.optimizer.step()
    run.optimizer.step()
    run.step(2)


def frozen(run):
    run.weight.requires_grad_(False)
    run.step(2)
    run.weight.requires_grad_(True)
    run.step(2)


def more_params(run):
    more = torch.nn.Parameter(torch.ones(3))
    run.optimizer.add_param_group({"params": [more], "lr": 0.5})
    run.step(3)
    more.grad = torch.ones(3)
    run.optimizer.step()
    run.step(1)


def fewer_params(run):
    del run.group["params"][1]
    run.step(3)


def loaded(run):
    run.optimizer.load_state_dict(run.optimizer.state_dict())
    run.step(3)


def edited_state(run):
    for entry in run.optimizer.state.values():
        next(iter(entry.values())).add_(0.25)
    run.step(3)


def lost_state(run):
    run.optimizer.state.pop(run.weight, None)
    run.step(3)


def odd_state(run):
    run.optimizer.state[run.weight]["note"] = torch.ones(2)
    run.step(2)
    run.optimizer.state[run.weight]["note"] = 3
    run.step(2)


def shared_state(run):
    run.optimizer.state["total"] = torch.zeros(1)
    run.step(2)


def closure(run):
    for _ in range(3):
        run.optimizer.step(lambda: run.backward())


def raised(run):
    run.backward()
    with pytest.raises(ZeroDivisionError):
        run.optimizer.step(lambda: 1 // 0)
    run.step(3)


CHANGES = [
    nothing,
    other_rate,
    tensor_rate,
    new_option,
    edited_param,
    other_memory,
    transposed_param,
    smaller_param,
    no_gradient,
    strided_gradient,
    same_gradient_again,
    frozen,
    more_params,
    fewer_params,
    loaded,
    edited_state,
    lost_state,
    odd_state,
    shared_state,
    closure,
    raised,
]


def tables(folder):
    trace = optrace.open(folder)
    steps = trace.steps.drop(columns="seconds")
    groups = trace.groups
    return {"params": trace.params, "groups": groups, "steps": steps, "tensors": trace.tensors, "events": trace.events}


def recorded(folder, change, make=None, known=True, **settings):
    run = Training(make)
    with pytest.MonkeyPatch.context() as patch:
        if not known:
            patch.setattr(steady, "kernel", None)
        with optrace.record(folder, quiet=True, strict=True, **settings) as session:
            run.step(WARM)
            capture = session._steps.tracks[0].capture
            assert (capture.known_steps > 0) is (known and make not in NEVER and "every" not in settings)
            change(run)
    return tables(folder)


def counting(params):
    return Counting(params, lr=0.1)


def numbered(params):
    return Renewing(params, number=True)


NEVER = (Renewing, counting, numbered)


def assert_same(tmp_path, change, make=None, **settings):
    found = recorded(tmp_path / "known", change, make, known=True, **settings)
    wanted = recorded(tmp_path / "anew", change, make, known=False, **settings)
    for name, table in wanted.items():
        pd.testing.assert_frame_equal(found[name], table, check_exact=True)


@pytest.fixture(params=["told by torch's table", "asked through Python"])
def looked_at(request, monkeypatch):
    """A torch that has the exchange table (2.10 and newer), and one that has not."""
    if request.param == "asked through Python":
        monkeypatch.setattr(steady, "EXCHANGE", None)
    elif steady.EXCHANGE is None:
        pytest.skip("this torch has no exchange table")


@pytest.mark.usefixtures("looked_at")
@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_after_many_equal_steps_is_recorded_as_if_it_were_looked_for(tmp_path, change):
    assert_same(tmp_path, change)


@pytest.mark.usefixtures("looked_at")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_gradients_of_any_type_are_known_again(tmp_path, dtype):
    param = torch.nn.Parameter(torch.arange(12).reshape(3, 4).to(dtype))
    scalar, empty = torch.nn.Parameter(torch.ones((), dtype=dtype)), torch.nn.Parameter(torch.ones(0, 3, dtype=dtype))
    optimizer = torch.optim.SGD([param, scalar, empty], lr=0.1, momentum=0.5)
    with optrace.record(tmp_path / "run", quiet=True, strict=True) as session:
        for step in range(1, WARM + 1):
            for one in (param, scalar, empty):
                one.grad = torch.full_like(one, step)
            optimizer.step()
        assert session._steps.tracks[0].capture.known_steps > 0
        scalar.grad = torch._neg_view(torch.full_like(scalar, 3.0))
        assert scalar.grad.item() == -3.0
        optimizer.step()
    grads = optrace.open(tmp_path / "run").table("tensors", quantity="grad")
    means = {numel: list(of["mean"]) for numel, of in grads.groupby("numel")}
    assert means[12] == [*map(float, range(1, WARM + 1)), WARM]
    assert means[1] == [*map(float, range(1, WARM + 1)), -3.0]


@pytest.mark.parametrize("change", [nothing, other_rate, other_betas, loaded, edited_state, lost_state, frozen])
def test_the_same_holds_for_an_optimizer_with_more_state(tmp_path, change):
    assert_same(tmp_path, change, adam)


@pytest.mark.parametrize("make", NEVER)
def test_an_optimizer_that_never_stays_as_it_is_is_looked_for_at_each_step(tmp_path, make):
    assert_same(tmp_path, nothing, make)


@pytest.mark.parametrize(
    "settings",
    [
        {"quantities": ["group.*"], "values": "none"},
        {"quantities": ["param"]},
        {"quantities": ["update", "grad"], "values": "none"},
        {"params": ["*.weight"]},
        {"every": 2},
        {"memory": 64},
    ],
    ids=lambda settings: "-".join(settings),
)
@pytest.mark.parametrize("change", [edited_param, no_gradient])
def test_the_same_holds_whatever_is_recorded(tmp_path, change, settings):
    assert_same(tmp_path, change, **settings)


def test_a_step_like_the_last_is_not_looked_for(tmp_path, monkeypatch):
    run = Training()
    with optrace.record(tmp_path / "run", quiet=True):
        run.step(WARM)
        looked = []
        for name in ("params", "same_params", "grads", "state"):
            monkeypatch.setattr(Finder, name, lambda *args, **kwargs: looked.append(args))
        run.group["lr"] = 0.2
        run.step(3)
    assert not looked
    assert optrace.open(tmp_path / "run").groups["lr"].tolist()[-4:] == [0.1, 0.2, 0.2, 0.2]


def test_what_is_known_keeps_nothing_alive(tmp_path):
    run = Training(adam)
    with optrace.record(tmp_path / "run", quiet=True):
        run.step(WARM)
        held = [weakref.ref(thing) for thing in (run.weight, run.optimizer, run.optimizer.state[run.weight]["exp_avg"])]
        held.append(weakref.ref(run.weight.grad))
        del run
        gc.collect()
        assert [reference() for reference in held] == [None] * 4


def test_a_look_finds_another_tensor_at_the_address_of_one_that_is_gone(tmp_path):
    run = Training()
    with optrace.record(tmp_path / "run", quiet=True):
        run.step(WARM)
        for _ in range(20):
            values = run.optimizer.state[run.weight].pop("momentum_buffer")
            run.optimizer.state[run.weight]["momentum_buffer"] = values.clone()
            run.step()
    assert optrace.open(tmp_path / "run").events["kind"].eq("step").sum() == WARM + 20
