"""A recording whose tensors are measured on a device has the rows of one on the host; its steps are written later."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from independent import Capture
from measuring_on import LateDevice

import optrace
from optrace.errors import OptraceError
from optrace.recorder import recording
from optrace.recorder.device import HostDevice
from optrace.recorder.later import MOST
from optrace.recorder.session import Session

SUMS = ["mean", "l1", "l2"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    optrace.stop()


def begin(path: Path, device: HostDevice | None, **settings: Any) -> Session:
    options = {"quiet": True, "strict": True, **settings}
    return recording._start(Session(recording.settings_from(path, options), measure_on=device))


def recorded(path: Path, device: HostDevice | None, train: Callable[[], Any], **settings: Any) -> Any:
    begin(path, device, **settings)
    train()
    optrace.stop()
    trace = optrace.open(path)
    assert trace.problems == []
    return trace


def same_tables(one: Any, other: Any) -> None:
    """The same tables to the bit, but for sums, which may differ by rounding, times, and how was measured."""
    left, right = (trace.tensors.drop(columns="sample") for trace in (one, other))
    np.testing.assert_array_equal([*one.tensors["sample"]], [*other.tensors["sample"]])
    pd.testing.assert_frame_equal(left.drop(columns=SUMS), right.drop(columns=SUMS))
    for name in SUMS:
        scale = left["l1"] / left["numel"].clip(lower=1) if name == "mean" else left[name]
        assert ((left[name] - right[name]).abs() <= 1e-12 * scale.abs()).where(left[name].notna(), True).all()
        assert (left[name].isna() == right[name].isna()).all()
    pd.testing.assert_frame_equal(one.groups, other.groups)
    pd.testing.assert_frame_equal(one.steps.drop(columns="seconds"), other.steps.drop(columns="seconds"))
    pd.testing.assert_frame_equal(one.params, other.params)
    assert [*events(one)] == [*events(other)]


def events(trace: Any) -> Iterator[Any]:
    for row in trace.events.sort_values("seq").itertuples():
        if row.kind != "recorder" or row.data["what"] not in ("measured on the device", "begin"):
            yield row.step, row.kind, row.optimizer, row.data


def parameters(*dtypes: torch.dtype) -> list[torch.Tensor]:
    """Of many shapes; one lies transposed, one with gaps."""
    generator = torch.Generator().manual_seed(7)
    made = []
    for dtype in dtypes or (torch.float32,):
        shapes = ((), (1,), (0,), (17,), (4, 6), (9, 4), (3, 4, 5, 2))
        made += [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
        made[-2] = made[-2].t()
        made[-1] = made[-1].contiguous(memory_format=torch.channels_last)
        made.append(torch.randn((6, 10), generator=generator).to(dtype)[:, ::2])
    return [param.requires_grad_() for param in made]


def grads(params: list[torch.Tensor], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for param in params:
        values = torch.randn(param.shape, generator=generator)
        param.grad = torch.complex(values, -values) if param.is_complex() else values.to(param.dtype)


MAKERS: dict[str, Callable[[list[Any]], torch.optim.Optimizer]] = {
    "sgd-nesterov-foreach": lambda named: torch.optim.SGD(named, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
    "adamw": lambda named: torch.optim.AdamW(named, lr=0.01, amsgrad=True),
    "adamw-fused": lambda named: torch.optim.AdamW(named, lr=0.01, fused=True),
    "nadam": lambda named: torch.optim.NAdam(named),
    "rprop": lambda named: torch.optim.Rprop(named),
}


@pytest.mark.parametrize("name", MAKERS)
def test_rows_equal_a_capture_by_hand(tmp_path: Path, name: str) -> None:
    params = parameters(torch.float32 if name == "adamw" else torch.bfloat16)
    named = [(f"w{i}", param) for i, param in enumerate(params)]
    half = len(named) // 2
    optimizer = MAKERS[name]([{"params": named[:half]}, {"params": named[half:], "lr": 0.03}])
    capture, names = Capture(), {id(param): f"w{i}" for i, param in enumerate(params)}

    def train() -> None:
        for step in range(1, 4):
            grads(params, step)
            capture.around(optimizer, names, optimizer.step)

    trace = recorded(tmp_path / "run", LateDevice(1), train)
    capture.check(trace.tensors, trace.groups)


def eventful() -> torch.Tensor:
    """A training in which everything happens that changes tensors between steps; its weights at the end."""
    torch.manual_seed(5)
    params = parameters(torch.float32, torch.complex64)
    late = torch.randn(5, requires_grad=True)
    named = [(f"w{i}", param) for i, param in enumerate(params)]
    optimizer = torch.optim.Adam(named, lr=0.01)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    saved: Any = None
    for step in range(1, 10):
        grads(params, step)
        if step == 2:
            params[4].grad = None
        if step == 3:
            with torch.no_grad():
                params[3].clamp_(-0.1, 0.1)
                params[6].mul_(2)
            saved = optimizer.state_dict()
        if step == 4:
            optimizer.state[params[0]]["exp_avg"].zero_()
            optimizer.add_param_group({"params": [("late", late)], "lr": 0.5})
            late.grad = torch.ones(5)
        if step == 5:
            optimizer.state[params[1]].clear()
        if step == 6:
            params[3].grad = torch.full_like(params[3], math.inf)
        if step == 7:
            params[5].data = params[5].detach().clone(memory_format=torch.contiguous_format)
            params[5].grad = torch.ones_like(params[5])
            optimizer.load_state_dict({**saved, "param_groups": optimizer.state_dict()["param_groups"]})
        optimizer.step()
        scheduler.step()
    return torch.cat([torch.view_as_real(p).reshape(-1) if p.is_complex() else p.reshape(-1) for p in params]).detach()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"values": "none", "every": 3},
        {"memory": 200},
        {"quantities": ("grad", "param_in", "state_in.*")},
        {"quantities": ("param", "state.exp_avg")},
        {"quantities": ("group.*",)},
        {"params": ("w1*", "late")},
    ],
    ids=lambda settings: ",".join(settings) or "default",
)
def test_a_recording_is_the_one_that_the_host_makes(tmp_path: Path, settings: dict[str, Any]) -> None:
    here = recorded(tmp_path / "here", None, eventful, **settings)
    there = recorded(tmp_path / "there", LateDevice(2), eventful, **settings)
    same_tables(here, there)


def test_weights_are_those_of_the_bare_run(tmp_path: Path) -> None:
    begin(tmp_path / "run", HostDevice())
    weights = eventful()
    optrace.stop()
    assert weights.numpy().tobytes() == eventful().numpy().tobytes()


def closures() -> None:
    """L-BFGS evaluates its closure several times a step; torch's views of its parameters are flat."""
    torch.manual_seed(1)
    params = [torch.randn(3, requires_grad=True), torch.randn(2, 2, requires_grad=True)]
    optimizer = torch.optim.LBFGS([("a", params[0]), ("b", params[1])], max_iter=4)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (params[0].square().sum() - 1).square() + params[1].exp().sum()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)


def sparse() -> None:
    torch.manual_seed(1)
    table = torch.nn.Embedding(7, 3, sparse=True)
    optimizer = torch.optim.SparseAdam(list(table.parameters()))
    for step in range(3):
        optimizer.zero_grad()
        table(torch.tensor([step, 2, 2])).sum().backward()
        optimizer.step()


def accumulated() -> None:
    torch.manual_seed(1)
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        for _ in range(2):
            net(torch.randn(4, 3)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("train", [closures, sparse, accumulated])
def test_closures_sparse_gradients_and_micro_batches(tmp_path: Path, train: Callable[[], None]) -> None:
    settings = {"micro": train is accumulated}
    here = recorded(tmp_path / "here", None, train, **settings)
    there = recorded(tmp_path / "there", LateDevice(1), train, **settings)
    same_tables(here, there)


def test_whole_values_go_through_the_host(tmp_path: Path) -> None:
    trace = recorded(tmp_path / "run", LateDevice(1), accumulated, values="grad")
    assert trace.value(step=2, param="weight", quantity="grad").shape == (2, 3)


def test_it_says_where_was_measured(tmp_path: Path) -> None:
    trace = recorded(tmp_path / "run", HostDevice(), accumulated)
    said = [data for data in trace.events.data if data.get("what") == "measured on the device"]
    assert said == [{"what": "measured on the device", "device": "cpu", "by": "torch"}]


# ---- steps that wait ----


def one_weight() -> tuple[torch.Tensor, Callable[[], None]]:
    weight = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.SGD([("w", weight)], lr=0.1)

    def step() -> None:
        weight.grad = torch.ones(3)
        optimizer.step()

    return weight, step


def on_disk(path: Path) -> int:
    return int(optrace.open(path).steps["step"].max())


def test_steps_are_written_when_their_results_are_there(tmp_path: Path) -> None:
    device = LateDevice(0)
    begin(tmp_path / "run", device)
    weight, step = one_weight()
    for _ in range(5):  # the price is told after the fourth: until then each step is waited for
        step()
    device.lag = 1
    step()
    step()
    assert on_disk(tmp_path / "run") == 6
    device.lag = 10**9
    for _ in range(3):
        step()
    assert on_disk(tmp_path / "run") == 7
    trace = optrace.open(tmp_path / "run")
    assert trace.problems == []
    optrace.stop()
    trace = optrace.open(tmp_path / "run")
    assert len(trace.steps) == 10
    last = trace.tensors.query("step == 10 and quantity == 'param'").iloc[0]
    assert list(last["sample"][:3]) == weight.tolist()
    assert list(trace.events.seq) == sorted(trace.events.seq)


class Slow(HostDevice):
    """Says that it took a quarter of a second in each hook."""

    def mark(self) -> Any:
        return 0

    def seconds(self, first: Any, last: Any) -> float:
        return 0.25


def test_the_price_counts_what_the_device_takes(tmp_path: Path) -> None:
    session = begin(tmp_path / "run", Slow())
    _, step = one_weight()
    for _ in range(4):
        step()
    assert 4 * 2 * 0.25 <= session.price.hooks < 4 * 2 * 0.25 + 1


def test_so_many_steps_wait_and_no_more(tmp_path: Path) -> None:
    device = LateDevice(0)
    begin(tmp_path / "run", device)
    _, step = one_weight()
    for _ in range(4):
        step()
    device.lag = 10**9
    for _ in range(MOST + 5):
        step()
    assert on_disk(tmp_path / "run") == 4 + 5


def test_rare_events_keep_their_place_among_steps_that_wait(tmp_path: Path) -> None:
    device = LateDevice(0)
    begin(tmp_path / "run", device)
    _, step = one_weight()
    for _ in range(4):
        step()
    device.lag = 10**9
    step()
    optrace.event("eval", loss=0.5)
    step()
    optrace.stop()
    found = optrace.open(tmp_path / "run").events
    assert list(found.seq) == sorted(found.seq)
    assert list(found.kind[-3:]) == ["step", "user", "step"]


def test_an_optimizer_on_the_host_waits_for_the_steps_before_its_own(tmp_path: Path) -> None:
    class Second(LateDevice):
        """Has what is larger than 10 elements."""

        def owns(self, tensor: torch.Tensor) -> bool:
            return super().owns(tensor) and tensor.numel() > 10

    device = Second(0)
    begin(tmp_path / "run", device)
    small, large = torch.ones(3, requires_grad=True), torch.ones(30, requires_grad=True)
    optimizers = [torch.optim.SGD([("w", one)], lr=0.1) for one in (large, small)]
    for number in range(6):
        device.lag = 10**9 if number > 4 else 0
        for one, optimizer in zip((large, small), optimizers, strict=True):
            one.grad = torch.ones_like(one)
            optimizer.step()
    optrace.stop()
    trace = optrace.open(tmp_path / "run")
    assert trace.problems == []
    assert list(trace.steps.groupby("optimizer").size()) == [6, 6]
    assert set(trace.tensors.query("optimizer == 1 and step == 6").quantity) == {"grad", "update", "param"}


def test_a_child_process_writes_none_of_the_steps_that_wait(tmp_path: Path) -> None:
    device = LateDevice(0)
    begin(tmp_path / "run", device)
    _, step = one_weight()
    for _ in range(4):
        step()
    device.lag = 10**9
    step()
    child = os.fork()
    if child == 0:
        os._exit(len(recording.current()._later))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    optrace.stop()
    assert on_disk(tmp_path / "run") == 5


class Failing(HostDevice):
    """Its results never arrive after step 0."""

    sent = 0

    def send(self, results: torch.Tensor) -> Any:
        self.sent += 1
        if self.sent > 3:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return super().send(results)


def test_a_device_that_fails_ends_the_recording_and_not_the_program(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(tmp_path / "run", Failing(), strict=False)
    weight, step = one_weight()
    for _ in range(5):
        step()
    optrace.stop()
    assert weight.tolist() == pytest.approx([0.5] * 3)
    said = capsys.readouterr().err
    assert said.count("recording stopped, the program goes on") == 1 and "illegal memory access" in said
    assert on_disk(tmp_path / "run") == 2


def test_a_device_that_fails_is_an_error_where_strict(tmp_path: Path) -> None:
    begin(tmp_path / "run", Failing(), strict=True)
    _, step = one_weight()
    with pytest.raises(OptraceError, match="illegal memory access"):
        for _ in range(5):
            step()


def test_waiting_steps_keep_no_tensor_alive(tmp_path: Path) -> None:
    import gc
    import weakref

    device = LateDevice(0)
    begin(tmp_path / "run", device)
    weight, step = one_weight()
    for _ in range(4):
        step()
    device.lag = 10**9
    step()
    gone = weakref.ref(weight)
    del weight, step
    gc.collect()
    assert gone() is None
