"""The ways in which a recorder of optimizers is fooled, one test each: points 1 to 7 of the design on the recorder."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from independent import Capture, dense, fingerprint

import optrace


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def traced(tmp_path: Path) -> Callable[..., Any]:
    """Record a function strictly and give the trace."""

    def run(train: Callable[[], Any], **settings: Any) -> Any:
        with optrace.record(tmp_path / "run", quiet=True, strict=True, **settings):
            train()
        trace = optrace.open(tmp_path / "run")
        assert trace.problems == []
        return trace

    return run


def param(*values: float, **options: Any) -> torch.Tensor:
    return torch.tensor(values, requires_grad=True, **options)


def row(trace: Any, step: int, quantity: str, name: str = "w", optimizer: int = 0) -> Any:
    frame = trace.tensors
    chosen = frame[
        (frame.step == step) & (frame.quantity == quantity) & (frame.param == name) & (frame.optimizer == optimizer)
    ]
    assert len(chosen) == 1, (step, quantity, name, len(chosen))
    return chosen.iloc[0]


def sample(trace: Any, step: int, quantity: str, name: str = "w", optimizer: int = 0) -> list[float]:
    found = row(trace, step, quantity, name, optimizer)
    return list(found["sample"][: found["numel"]])


def quantities(trace: Any, step: int, name: str = "w") -> set[str]:
    frame = trace.tensors
    return set(frame[(frame.step == step) & (frame.param == name)].quantity)


def kinds(trace: Any) -> list[str]:
    return list(trace.events.kind)


# ---- 1: gradients are what the rule consumed ----


def test_gradient_is_read_before_a_rule_that_overwrites_it(traced: Any) -> None:
    w = param(1.0, 2.0)
    optimizer = torch.optim.SGD([w], lr=0.1, momentum=0.9, nesterov=True, foreach=True)
    w.grad = torch.tensor([1.0, -1.0])
    trace = traced(optimizer.step)
    assert w.grad.tolist() != [1.0, -1.0]
    assert sample(trace, 1, "grad") == [1.0, -1.0]


def test_gradient_is_read_after_the_hooks_that_change_it(traced: Any) -> None:
    w = param(1.0)
    optimizer = torch.optim.SGD([w], lr=1.0)

    def double(optimizer: Any, args: Any, kwargs: Any) -> None:
        w.grad.mul_(2)

    def train() -> None:
        optimizer.register_step_pre_hook(double)
        for _ in range(2):
            w.grad = torch.tensor([1.0])
            optimizer.step()
            optimizer.register_step_pre_hook(double)

    trace = traced(train)
    assert sample(trace, 1, "grad") == [2.0]
    assert sample(trace, 2, "grad") == [4.0]


def test_parameters_are_read_before_the_hooks_that_change_them(traced: Any) -> None:
    w = param(1.0)
    optimizer = torch.optim.SGD([w], lr=1.0)

    def project(optimizer: Any, args: Any, kwargs: Any) -> None:
        with torch.no_grad():
            w.zero_()

    optimizer.register_step_post_hook(project)

    def train() -> None:
        for _ in range(2):
            w.grad = torch.tensor([0.25])
            optimizer.step()

    trace = traced(train)
    assert sample(trace, 1, "param") == [0.75]
    assert sample(trace, 2, "param_in") == [0.0]
    assert sample(trace, 2, "update") == [-0.25]


# ---- 2: GradScaler ----


def scaled_training(fused: bool) -> tuple[Callable[[], Any], torch.Tensor]:
    w = param(1.0, 2.0)
    optimizer = torch.optim.Adam([w], lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)

    def train() -> None:
        for factor in (1.0, float("inf"), 3.0):
            optimizer.zero_grad()
            scaler.scale((w * factor).sum()).backward()
            scaler.step(optimizer)
            scaler.update()

    return train, w


@pytest.mark.parametrize("fused", [False, True], ids=["for-loop", "fused"])
def test_scaled_gradients_come_in_their_own_units_and_skips_have_no_number(traced: Any, fused: bool) -> None:
    bare, expected = scaled_training(fused)
    bare()
    train, w = scaled_training(fused)
    trace = traced(train)
    assert torch.equal(w, expected)
    assert sample(trace, 1, "grad") == [1.0, 1.0]
    assert sample(trace, 2, "grad") == [3.0, 3.0]
    assert trace.last_step(0) == 2
    assert kinds(trace).count("step_skipped") == 1
    skipped = trace.events[trace.events.kind == "step_skipped"].iloc[0]
    assert (skipped.step, skipped.optimizer) == (1, 0)
    assert list(trace.steps.n_skipped) == [0, 1]


def test_a_skipped_first_step_does_not_become_step_0(traced: Any) -> None:
    w = param(1.0)
    optimizer = torch.optim.SGD([w], lr=1.0, momentum=0.5, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

    def train() -> None:
        for factor in (float("nan"), 1.0):
            optimizer.zero_grad()
            scaler.scale((w * factor).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
            with torch.no_grad():
                w.add_(1.0)

    trace = traced(train)
    assert sample(trace, 0, "param") == [2.0]
    assert trace.last_step(0) == 1
    assert kinds(trace).count("step_skipped") == 1


# ---- 3: closures ----


def test_gradient_of_a_closure_is_the_last_that_it_produced(traced: Any) -> None:
    w = param(1.0, -2.0)
    optimizer = torch.optim.LBFGS([w], lr=0.5, max_iter=4)
    last: list[list[float]] = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (w**4).sum()
        loss.backward()
        last.append(w.grad.tolist())
        return loss

    trace = traced(lambda: optimizer.step(closure))
    assert len(last) > 2
    assert sample(trace, 1, "grad") == last[-1]
    closures = trace.events[trace.events.kind == "closure"]
    assert len(closures) == len(last)
    assert closures.iloc[0].data["loss"] == 17.0


def test_closure_by_keyword_sees_its_gradient_although_there_was_none_before(traced: Any) -> None:
    w = param(3.0)
    optimizer = torch.optim.SGD([w], lr=0.1)

    def closure() -> torch.Tensor:
        loss = (2 * w).sum()
        loss.backward()
        return loss

    trace = traced(lambda: optimizer.step(closure=closure))
    assert sample(trace, 1, "grad") == [2.0]


def test_closure_is_not_called_more_often_and_gives_its_result(traced: Any) -> None:
    w = param(3.0)
    optimizer = torch.optim.SGD([w], lr=0.1)
    calls = []

    def closure() -> str:
        calls.append(1)
        return "a result of its own"

    results = []
    traced(lambda: results.append(optimizer.step(closure)))
    assert (len(calls), results) == (1, ["a result of its own"])


# ---- 4: nested and failing steps ----


class Nested(torch.optim.SGD):
    """Calls `super().step()`, which torch wraps a second time."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.add_(1.0)
        return super().step(closure)


def test_a_step_within_a_step_is_one_step(traced: Any) -> None:
    w = param(1.0)
    optimizer = Nested([w], lr=0.5)

    def train() -> None:
        for _ in range(3):
            w.grad = torch.tensor([1.0])
            optimizer.step()

    trace = traced(train)
    assert trace.last_step(0) == 3
    assert kinds(trace).count("step") == 3
    assert sample(trace, 1, "grad") == [1.0]
    assert sample(trace, 1, "update") == [-1.0]


class Failing(torch.optim.Optimizer):
    """Moves the first parameter and then raises, when told to."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 1.0})
        self.broken = False

    def step(self, closure: Any = None) -> None:
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.sub_(p.grad)
                    if self.broken:
                        raise ZeroDivisionError("on purpose")


@pytest.mark.parametrize("fails", [(1,), (2,), (1, 2), (3,)])
def test_a_step_that_raises_is_an_event_without_a_number(traced: Any, fails: tuple[int, ...]) -> None:
    w, v = param(10.0), param(20.0)
    optimizer = Failing([{"params": [w]}, {"params": [v]}])

    def train() -> None:
        for number in (1, 2, 3):
            w.grad, v.grad = torch.tensor([1.0]), torch.tensor([1.0])
            optimizer.broken = number in fails
            try:
                optimizer.step()
            except ZeroDivisionError:
                pass

    trace = traced(train)
    assert trace.last_step(0) == 3 - len(fails)
    assert kinds(trace).count("step_failed") == len(fails)
    assert sample(trace, 3 - len(fails), "param", "v") == [20.0 - (3 - len(fails))]
    if fails == (2,):
        assert sample(trace, 2, "param_in") == [8.0]
        assert "param_in" not in quantities(trace, 2, "v")


def test_no_hook_of_ours_is_left_between_steps_or_copied(traced: Any) -> None:
    w = param(1.0)
    optimizer = torch.optim.SGD([w], lr=0.5)

    def train() -> None:
        w.grad = torch.tensor([1.0])
        optimizer.step()
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks
        assert b"optrace" not in pickle.dumps(optimizer)
        twin = copy.deepcopy(optimizer)
        twin.param_groups[0]["params"][0].grad = torch.tensor([1.0])
        twin.step()

    trace = traced(train)
    assert trace.last_step(0) == 1
    assert trace.last_step(1) == 1


# ---- 5: steps that are no steps ----


def test_a_step_that_only_creates_state_is_none(traced: Any) -> None:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)

    def train() -> None:
        get_optimizer_state_dict(model, optimizer)
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()

    trace = traced(train)
    assert "state_init" in kinds(trace)
    assert trace.last_step(0) == 1
    assert quantities(trace, 0, "weight") == {"param", "state.step", "state.exp_avg", "state.exp_avg_sq"}
    assert sample(trace, 0, "state.step", "weight") == [1.0]
    assert sample(trace, 1, "state.step", "weight") == [2.0]
    assert not any(name.startswith("state_in") for name in quantities(trace, 1, "weight"))


def test_creating_state_of_a_stateless_optimizer_in_mid_run_is_no_step(traced: Any) -> None:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train() -> None:
        for _ in range(2):
            model(torch.ones(2, 3)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            get_optimizer_state_dict(model, optimizer)

    trace = traced(train)
    assert trace.last_step(0) == 2
    assert kinds(trace).count("state_init") == 2


def test_warm_up_from_lr_zero_is_a_step(traced: Any) -> None:
    w = param(1.0)
    optimizer = torch.optim.AdamW([w], lr=0.0)

    def train() -> None:
        w.grad = torch.tensor([1.0])
        optimizer.step()

    trace = traced(train)
    assert trace.last_step(0) == 1


# ---- 6: state and groups as they are ----


def test_state_of_a_parameter_without_gradient_is_not_created(traced: Any) -> None:
    w, v = param(1.0), param(2.0)
    optimizer = torch.optim.Adam([w, v], lr=0.1)

    def train() -> None:
        for _ in range(2):
            w.grad = torch.tensor([1.0])
            optimizer.step()

    trace = traced(train)
    assert v not in optimizer.state
    assert not row(trace, 1, "grad", "v").present
    assert sample(trace, 1, "update", "v") == [0.0]
    assert quantities(trace, 2, "v") == {"grad", "update", "param"}


def test_none_and_zero_gradients_differ(traced: Any) -> None:
    w = param(1.0)
    optimizer = torch.optim.SGD([w], lr=0.1)

    def train() -> None:
        optimizer.step()
        w.grad = torch.zeros(1)
        optimizer.step()

    trace = traced(train)
    assert not row(trace, 1, "grad").present
    assert row(trace, 2, "grad").present
    assert row(trace, 2, "grad").n_zero == 1


def test_tensor_lr_is_taken_by_value(traced: Any) -> None:
    w = param(1.0)
    rate = torch.tensor(0.5)
    optimizer = torch.optim.SGD([w], lr=rate)

    def train() -> None:
        for _ in range(3):
            w.grad = torch.tensor([1.0])
            optimizer.step()
            rate.mul_(0.5)

    trace = traced(train)
    assert list(trace.groups.lr) == [0.5, 0.25, 0.125]


def test_loaded_state_and_groups_are_seen(traced: Any) -> None:
    w = param(1.0)
    optimizer = torch.optim.SGD([w], lr=0.5, momentum=0.5)

    def train() -> None:
        w.grad = torch.tensor([1.0])
        optimizer.step()
        saved = copy.deepcopy(optimizer.state_dict())
        optimizer.step()
        saved["param_groups"][0]["lr"] = 0.25
        optimizer.load_state_dict(saved)
        optimizer.step()

    trace = traced(train)
    assert "load_state_dict" in kinds(trace)
    assert list(trace.groups.lr) == [0.5, 0.5, 0.25]
    assert sample(trace, 3, "state_in.momentum_buffer") == [1.0]
    assert sample(trace, 3, "state.momentum_buffer") == [1.5]
    assert "state_in.momentum_buffer" not in quantities(trace, 2)


def test_state_that_was_thrown_away_is_told(traced: Any) -> None:
    w = param(1.0)
    optimizer = torch.optim.SGD([w], lr=0.5, momentum=0.5)

    def train() -> None:
        w.grad = torch.tensor([1.0])
        optimizer.step()
        optimizer.state.clear()
        optimizer.step()

    trace = traced(train)
    assert not row(trace, 2, "state_in.momentum_buffer").present
    assert sample(trace, 2, "state.momentum_buffer") == [1.0]


def test_edited_parameters_are_told_and_only_those(traced: Any) -> None:
    w, v = param(1.0), param(2.0)
    optimizer = torch.optim.SGD([w, v], lr=0.5)

    def train() -> None:
        for _ in range(3):
            w.grad, v.grad = torch.tensor([1.0]), torch.tensor([1.0])
            optimizer.step()
            if v.item() == 1.5:
                v.data = torch.tensor([-7.0])

    trace = traced(train)
    assert sample(trace, 2, "param_in", "v") == [-7.0]
    assert sample(trace, 2, "update", "v") == [-0.5]
    assert "param_in" not in quantities(trace, 2, "w")
    assert "param_in" not in quantities(trace, 3, "v")


class Adaptive(torch.optim.Optimizer):
    """Writes numbers of its own into its group, as Prodigy and the schedule-free optimizers do."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 1.0, "d": 1e-6, "k": 0, "name": "adaptive", "betas": (0.9, 0.99)})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["k"] += 1
            group["d"] *= 2
            group["name"] = f"step {group['k']}"
            with torch.no_grad():
                for p in group["params"]:
                    p.sub_(group["d"] * p.grad)


def test_numbers_that_step_writes_into_its_group_are_kept_after_the_step(traced: Any) -> None:
    w = param(1.0)
    optimizer = Adaptive([w])

    def train() -> None:
        for _ in range(2):
            w.grad = torch.tensor([1.0])
            optimizer.step()
            optimizer.param_groups[0]["lr"] *= 0.5

    trace = traced(train)
    assert sample(trace, 1, "group.d", "") == [2e-6]
    assert sample(trace, 2, "group.k", "") == [2]
    assert row(trace, 2, "group.k", "")["dtype"] == "int64"
    assert set(trace.tensors[trace.tensors.param == ""].quantity) == {"group.d", "group.k"}
    assert list(trace.groups.d) == [1e-6, 2e-6]
    assert list(trace.groups["betas.1"]) == [0.99, 0.99]


# ---- 7: everything that people step ----


def test_optimizers_stepping_inside_backward(traced: Any) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}
    seen: dict[str, list[Any]] = {}
    names = {p: name for name, p in model.named_parameters()}

    def step(p: torch.Tensor) -> None:
        seen.setdefault(names[p], []).append(p.grad.clone())
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in optimizers:
        p.register_post_accumulate_grad_hook(step)

    def train() -> None:
        for _ in range(2):
            model(torch.ones(3, 2)).sum().backward()

    trace = traced(train)
    assert len(trace.optimizers) == 4
    for number in range(4):
        name = trace.params[trace.params.optimizer == number].iloc[0].param
        for step_number in (1, 2):
            grad = dense(seen[name][step_number - 1])
            assert row(trace, step_number, "grad", name, number).fingerprint == fingerprint(grad)


def test_two_optimizers_count_their_own_steps(traced: Any) -> None:
    w, v = param(1.0), param(2.0)
    one, two = torch.optim.SGD([w], lr=0.5), torch.optim.Adam([v], lr=0.5)

    def train() -> None:
        for number in range(4):
            w.grad, v.grad = torch.tensor([1.0]), torch.tensor([1.0])
            one.step()
            if number % 2:
                two.step()

    trace = traced(train)
    assert trace.optimizers == [(0, "SGD"), (1, "Adam")]
    assert (trace.last_step(0), trace.last_step(1)) == (4, 2)
    assert list(trace.events.seq) == sorted(trace.events.seq)


def test_group_added_in_mid_run(traced: Any) -> None:
    w, v = param(1.0), param(2.0)
    optimizer = torch.optim.SGD([w], lr=0.5)

    def train() -> None:
        w.grad = torch.tensor([1.0])
        optimizer.step()
        optimizer.add_param_group({"params": [v], "lr": 0.25})
        v.grad = torch.tensor([1.0])
        optimizer.step()
        optimizer.step()

    trace = traced(train)
    assert quantities(trace, 1, "v") == set()
    assert sample(trace, 2, "param_in", "v") == [2.0]
    assert "param_in" not in quantities(trace, 3, "v")
    assert row(trace, 3, "param", "v").group == 1
    assert list(trace.params.param) == ["w", "v"]
    assert "add_param_group" in kinds(trace)


def test_unfrozen_parameter(traced: Any) -> None:
    w, v = param(1.0), torch.tensor([2.0])
    optimizer = torch.optim.SGD([w, v], lr=0.5)

    def train() -> None:
        (w + v).sum().backward()
        optimizer.step()
        v.requires_grad_()
        optimizer.zero_grad()
        (w + v).sum().backward()
        optimizer.step()

    trace = traced(train)
    assert not row(trace, 1, "grad", "v").present
    assert row(trace, 2, "grad", "v").present
    assert list(trace.params.requires_grad) == [True, True]
    assert "param_in" not in quantities(trace, 2, "v")


def test_tied_and_twice_listed_parameters_come_once(traced: Any) -> None:
    model = torch.nn.Module()
    model.embed = torch.nn.Embedding(3, 2)
    model.head = torch.nn.Linear(2, 3, bias=False)
    model.head.weight = model.embed.weight
    with pytest.warns(UserWarning, match="duplicate"):
        optimizer = torch.optim.SGD([model.embed.weight, model.head.weight], lr=0.1)

    def train() -> None:
        model.head(model.embed(torch.tensor([0, 2]))).sum().backward()
        optimizer.step()

    trace = traced(train)
    assert list(trace.params.param) == ["embed.weight"]
    expected = dense(model.embed.weight)
    assert row(trace, 1, "param", "embed.weight").fingerprint == fingerprint(expected)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("name", ["SGD", "Adam", "RMSprop"])
def test_complex_parameters(traced: Any, name: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(3, 4, dtype=dtype, generator=generator).t().requires_grad_()
    optimizer = getattr(torch.optim, name)([("w", w)], lr=0.1)
    capture = Capture()

    def train() -> None:
        for _ in range(2):
            grad = torch.randn(4, 3, dtype=dtype, generator=generator)
            w.grad = grad.conj() if name == "SGD" else grad  # the others refuse a lazy conjugate
            capture.around(optimizer, {id(w): "w"}, optimizer.step)

    trace = traced(train)
    capture.check(trace.tensors, trace.groups)
    assert row(trace, 1, "param").numel == 24


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_sparse_gradients_equal_their_dense_form(traced: Any, name: str) -> None:
    model = torch.nn.Embedding(30, 3, sparse=True)
    optimizer = getattr(torch.optim, name)([("w", model.weight)], lr=0.1)
    capture = Capture()

    def train() -> None:
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.tensor([3, 1, 3, 29])).square().sum().backward()
            assert model.weight.grad.is_sparse
            capture.around(optimizer, {id(model.weight): "w"}, optimizer.step)

    trace = traced(train)
    capture.check(trace.tensors, trace.groups)


class Odd(torch.optim.Optimizer):
    """Keeps all sorts of things in its state."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 1.0})

    def step(self, closure: Any = None) -> None:
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            state["count"] = state.get("count", 0) + 1
            state["rate"] = 0.5
            state["seen"] = True
            state["history"] = [*state.get("history", []), p.detach().clone()]
            state["ema"] = {"fast": p.detach() * 2, "slow": (np.float64(3.0), None)}
            state["label"] = "a word"
            state["table"] = np.arange(3, dtype=np.float32)
            with torch.no_grad():
                p.sub_(p.grad)
        self.state["shared"] = torch.tensor([9.0])


def test_odd_state_is_walked_and_what_cannot_be_kept_is_told(traced: Any) -> None:
    w = param(1.0)
    optimizer = Odd([w])

    def train() -> None:
        for _ in range(2):
            w.grad = torch.tensor([1.0])
            optimizer.step()

    trace = traced(train)
    assert sample(trace, 2, "state.count") == [2]
    assert row(trace, 2, "state.count")["dtype"] == "int64"
    assert row(trace, 2, "state.seen")["dtype"] == "bool"
    assert sample(trace, 2, "state.rate") == [0.5]
    assert sample(trace, 2, "state.history.1") == [0.0]
    assert sample(trace, 2, "state.ema.fast") == [0.0]
    assert sample(trace, 2, "state.ema.slow.0") == [3.0]
    assert sample(trace, 2, "state.table") == [0.0, 1.0, 2.0]
    assert sample(trace, 2, "state.shared", "") == [9.0]
    told = [e.data for e in trace.events.itertuples() if e.kind == "recorder" and "label" in str(e.data)]
    assert len(told) == 1


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantised_state_is_measured_in_its_own_values(traced: Any) -> None:
    w = param(*[i / 7 for i in range(20)])
    optimizer = torch.optim.SGD([w], lr=1.0)
    quantised = torch.quantize_per_tensor(torch.linspace(-1, 1, 20), 0.01, 0, torch.qint8)

    def train() -> None:
        w.grad = torch.ones(20)
        optimizer.step()
        optimizer.state[w]["exp_avg"] = quantised
        optimizer.step()

    trace = traced(train)
    expected = dense(quantised.dequantize())
    assert row(trace, 2, "state.exp_avg").fingerprint == fingerprint(expected)


def test_differentiable_steps_keep_their_graph(traced: Any) -> None:
    def meta_gradient() -> torch.Tensor:
        rate = torch.tensor(0.1, requires_grad=True)
        leaf = torch.tensor([2.0], requires_grad=True)
        w = leaf.clone()
        w.retain_grad()
        optimizer = torch.optim.SGD([w], lr=rate, differentiable=True)
        w.grad = (leaf * 3).clone()
        optimizer.step()
        w.square().sum().backward()
        return torch.cat([rate.grad.reshape(1), leaf.grad])

    expected = meta_gradient()
    got: list[torch.Tensor] = []
    trace = traced(lambda: got.append(meta_gradient()))
    assert torch.equal(got[0], expected)
    assert sample(trace, 1, "grad") == [6.0]


def test_inference_mode_and_default_device_do_not_matter(traced: Any) -> None:
    w = param(1.0, 2.0)
    w.grad = torch.tensor([1.0, 1.0])
    optimizer = torch.optim.SGD([w], lr=0.5, momentum=0.9)

    def train() -> None:
        with torch.device("meta"), torch.autocast("cpu"):
            optimizer.step()
        optimizer.step()

    trace = traced(train)
    assert sample(trace, 1, "param") == [0.5, 1.5]
    assert trace.last_step(0) == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own modules, as the compiler imports them
def test_compiled_step_is_seen_each_time(traced: Any) -> None:
    w = param(1.0, 2.0)
    optimizer = torch.optim.SGD([w], lr=0.5, momentum=0.9)

    @torch.compile(backend="eager")
    def step() -> None:
        optimizer.step()

    def train() -> None:
        for _ in range(4):
            w.grad = torch.tensor([1.0, 1.0])
            step()

    trace = traced(train)
    assert trace.last_step(0) == 4
    assert kinds(trace).count("step") == 4
    assert "step_failed" not in kinds(trace)
    assert row(trace, 4, "param").fingerprint == fingerprint(dense(w))
    assert sample(trace, 3, "grad") == [1.0, 1.0]


def test_fake_tensors_are_no_steps(traced: Any) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    w = param(1.0)
    real = torch.optim.SGD([w], lr=0.5)

    def train() -> None:
        with FakeTensorMode():
            p = torch.ones(3, requires_grad=True)
            p.grad = torch.ones(3)
            torch.optim.SGD([p], lr=0.1).step()
        w.grad = torch.tensor([1.0])
        real.step()

    trace = traced(train)
    assert trace.optimizers == [(0, "SGD")]
    assert list(trace.params.numel) == [1]


def test_dtensor_is_its_local_shard_at_its_place_in_the_whole(traced: Any, tmp_path: Path) -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        whole = torch.arange(6.0).reshape(2, 3)
        w = torch.nn.Parameter(distribute_tensor(whole.clone(), mesh, [Shard(0)]))
        optimizer = torch.optim.AdamW([w], lr=0.1)

        def train() -> None:
            w.grad = distribute_tensor(torch.ones(2, 3), mesh, [Shard(0)])
            optimizer.step()

        trace = traced(train)
    finally:
        dist.destroy_process_group()
    assert row(trace, 0, "param").fingerprint == fingerprint(dense(whole))
    assert row(trace, 1, "grad").n_zero == 0
    assert quantities(trace, 1) == {"grad", "update", "param", "state.step", "state.exp_avg", "state.exp_avg_sq"}
    assert "Shard(dim=0)" in trace.params.iloc[0].placement


def test_an_optimizer_whose_step_raised_is_not_kept_alive(tmp_path: Path) -> None:
    with optrace.record(tmp_path / "run", quiet=True, strict=True):
        w = param(1.0)
        optimizer = Failing([w])
        w.grad = torch.tensor([1.0])
        optimizer.broken = True
        try:
            optimizer.step()
        except ZeroDivisionError:
            pass
        dead = weakref.ref(optimizer)
        del optimizer
        gc.collect()
        assert dead() is None
