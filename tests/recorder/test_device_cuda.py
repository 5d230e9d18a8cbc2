"""On a CUDA device: what is measured there is what the CPU measures, nothing waits, nothing is read too late."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from independent import Capture, sample
from measuring_on import measure_on

import optrace
from optrace.recorder.device import CudaDevice
from optrace.trace import measure as m
from optrace.trace.jobs import NAMES

sys.path.insert(0, str(Path(__file__).parent.parent / "trace"))
from measuring import assert_same_rows, job, run, tensor

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")

WARM = 6
"""Steps after which nothing waits: kernels are compiled, the price has been told."""


@pytest.fixture(params=["triton", "torch"])
def device(request: pytest.FixtureRequest) -> CudaDevice:
    made = CudaDevice(torch.device("cuda", 0))
    if request.param == "torch":
        made.has_triton = False
    elif not made.has_triton:
        pytest.skip("no Triton for this device")
    return made


@pytest.fixture(autouse=True)
def _stop() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")
    optrace.stop()


def on_device(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.view(np.uint8).copy()).cuda()


@pytest.mark.parametrize("name", NAMES)
def test_every_dtype_is_measured_as_on_the_cpu(device: CudaDevice, name: str) -> None:
    for numel in (1, 17, 4097, 100_000, 3_000_000):
        values, before = tensor(name, numel, seed=1), tensor(name, numel, seed=2)
        jobs = np.concatenate([job(m.STAT, name, before, row=2), job(m.UPDATE, name, values, before, row=0, row2=1)])
        expected = run(jobs, 3)
        after, old, room = on_device(values), on_device(before), torch.zeros_like(on_device(values))
        jobs["a"], jobs["b"] = [old.data_ptr(), after.data_ptr()], [0, old.data_ptr()]
        copy = jobs[:1].copy()
        copy["op"], copy["b"], copy["row"] = m.COPY, room.data_ptr(), 3
        found = measure_on(device, np.concatenate([jobs, copy]), 4)
        assert_same_rows(found[:3], expected, numel)
        assert_same_rows(found[3:], expected[2:], numel)
        assert room.cpu().numpy().tobytes() == before.tobytes()


class Net(torch.nn.Module):
    """A convolution in channels_last, a norm, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


def train(
    steps: int = 10, around: Any = None, strict_from: int | None = None, after: Any = None, **options: Any
) -> torch.Tensor:
    """A small training on the device; its weights at the end."""
    torch.manual_seed(3)
    model = Net().cuda().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, **options)
    names = {id(param): name for name, param in model.named_parameters()}
    images = torch.randn(16, 3, 8, 8, device="cuda").to(memory_format=torch.channels_last)
    for step in range(1, steps + 1):
        if strict_from is not None and step > strict_from:
            torch.cuda.set_sync_debug_mode("error")
        optimizer.zero_grad()
        model(images).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if around is None:
            optimizer.step()
        else:
            around(optimizer, names, optimizer.step)
        if after is not None:
            after(model, step)
    torch.cuda.set_sync_debug_mode("default")
    return torch.cat([param.detach().reshape(-1) for param in model.parameters()])


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"foreach": False}, {"capturable": True}], ids=str)
def test_rows_equal_a_capture_by_hand(tmp_path: Path, options: dict[str, Any]) -> None:
    capture = Capture()
    with optrace.record(tmp_path / "run", quiet=True, strict=True):
        train(around=capture.around, **options)
    trace = optrace.open(tmp_path / "run")
    assert trace.problems == []
    capture.check(trace.tensors, trace.groups)
    assert trace.steps["loss"].notna().all() and trace.steps["grad_norm"].notna().all()
    assert any(data.get("what") == "measured on the device" for data in trace.events.data)


def test_weights_are_those_of_the_bare_run(tmp_path: Path) -> None:
    torch.backends.cudnn.deterministic = True
    bare = train()
    with optrace.record(tmp_path / "run", quiet=True, strict=True):
        weights = train()
    assert weights.cpu().numpy().tobytes() == bare.cpu().numpy().tobytes()


def test_nothing_waits_for_the_device(tmp_path: Path) -> None:
    with optrace.record(tmp_path / "run", quiet=True, strict=True):
        train(strict_from=WARM)
    assert len(optrace.open(tmp_path / "run").steps) == 10


def test_what_the_program_writes_right_after_a_step_is_not_what_is_recorded(tmp_path: Path) -> None:
    """The weights are large, so that the kernels of the hook have not run when the program goes on."""
    weight = torch.ones(50_000_000, device="cuda", requires_grad=True)
    optimizer = torch.optim.SGD([("w", weight)], lr=0.5)
    grad = torch.ones_like(weight)
    with optrace.record(tmp_path / "run", quiet=True, strict=True):
        for _ in range(WARM + 2):
            weight.grad = grad
            optimizer.step()
            with torch.no_grad():
                weight.zero_()
                grad.fill_(1.0)
    trace = optrace.open(tmp_path / "run")
    rows = trace.tensors[trace.tensors.step > 1]
    for quantity, value in (("param", -0.5), ("update", -0.5), ("grad", 1.0), ("param_in", 0.0)):
        chosen = rows[rows.quantity == quantity]
        assert set(chosen["min"]) == set(chosen["max"]) == {value}, quantity


def test_steps_on_a_stream_of_the_program_are_recorded(tmp_path: Path) -> None:
    stream = torch.cuda.Stream()
    capture = Capture()
    with optrace.record(tmp_path / "run", quiet=True, strict=True), torch.cuda.stream(stream):
        train(around=capture.around)
    trace = optrace.open(tmp_path / "run")
    capture.check(trace.tensors, trace.groups)


def test_a_step_captured_into_a_graph_is_not_recorded(tmp_path: Path) -> None:
    weight = torch.ones(10, device="cuda", requires_grad=True)
    weight.grad = torch.ones_like(weight)
    optimizer = torch.optim.Adam([("w", weight)], lr=0.1, capturable=True)
    with optrace.record(tmp_path / "run", quiet=True, strict=True):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                optimizer.step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            optimizer.step()
        graph.replay()
    trace = optrace.open(tmp_path / "run")
    assert len(trace.steps) == 3
    assert any(data.get("what") == "step not recorded" for data in trace.events.data)


def test_a_device_without_room_for_copies_gives_updates_from_samples(tmp_path: Path) -> None:
    with optrace.record(tmp_path / "run", quiet=True, strict=True, memory=0):
        weights = train(steps=2)
    rows = optrace.open(tmp_path / "run").tensors.query("step == 2")
    assert rows.query("quantity == 'update'")["l2"].isna().all()
    bias = rows.query("quantity == 'param' and param == 'head.bias'").iloc[0]
    np.testing.assert_array_equal(bias["sample"], sample(weights[-5:].cpu().numpy()))
