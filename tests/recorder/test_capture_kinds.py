"""Every kind of optimizer, parameter and tensor that people step: point 7 of the recorder in the design."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from independent import Capture, dense, fingerprint
from points import kinds, param, quantities, row, sample

pytestmark = pytest.mark.usefixtures("one_thread")


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
