"""Numbers on a device that a step tells of arrive with its rows; what waits is written in order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from measuring_on import LateDevice

import optrace
from optrace.recorder import recording
from optrace.recorder.later import MOST, Later, Mean, Slots, arrived
from optrace.recorder.session import Session


class OnDevice(torch.Tensor):
    """A tensor of the CPU that says that it is on another device, and counts how often it was waited for."""

    is_cpu = property(lambda self: False)
    waits = 0

    def item(self) -> Any:
        OnDevice.waits += 1
        return self.as_subclass(torch.Tensor).item()


def on_device(value: float, *shape: int) -> OnDevice:
    return torch.full(shape, value).as_subclass(OnDevice)


@pytest.fixture(autouse=True)
def _stop() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    optrace.stop()


def test_only_single_numbers_on_a_device_get_a_slot() -> None:
    slots, here, many = Slots(), torch.tensor(1.0), on_device(1.0, 3)
    assert [slots.put(value) for value in (None, 2.0, "word", here, many)] == [None, 2.0, "word", here, many]
    assert slots.take() == []
    numbers = [on_device(1.0), on_device(2.0, 1)]
    made = [slots.put(number) for number in numbers]
    assert [slot for _, slot in slots.take()] == made
    assert slots.take() == []


def test_a_mean_waits_for_the_numbers_that_are_late() -> None:
    slots = Slots()
    first, second = slots.put(on_device(0.0)), slots.put(on_device(0.0))
    first.value, second.value = 4.0, 6.0
    assert arrived(Mean(1.5, 2, [first, second])) == pytest.approx((1.5 + 4 + 6) / 4)
    assert arrived(first) == 4.0 and arrived("clean") == "clean"


def test_loss_total_norm_and_events_arrive_with_the_rows(tmp_path: Path) -> None:
    """The first steps are waited for, as the price is told; the last ones arrive when the recording ends."""
    device = LateDevice(0)
    settings = recording.settings_from(tmp_path / "run", {"quiet": True, "strict": True})
    session = recording._start(Session(settings, measure_on=device))
    weight = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.SGD([("w", weight)], lr=0.1)
    losses = []
    for number in range(7):
        if number == 1:  # the events before the first step are written with step 0
            OnDevice.waits = 0
        device.lag = 10**9 if number >= 5 else 0
        optimizer.zero_grad()
        loss = (weight.square().sum() * (number + 1)).as_subclass(OnDevice)
        losses.append(float(loss.detach().as_subclass(torch.Tensor)))
        loss.backward()
        norm = on_device(10.0 + number)
        session.context.clipped([optimizer], norm)
        session.emit("clip", optimizer, {"kind": "norm", "total_norm": norm})
        optimizer.step()
        norm.add_(1000)  # by the time of the next step the program may use its memory again
    optrace.stop()
    assert OnDevice.waits == 0
    trace = optrace.open(tmp_path / "run")
    assert trace.problems == []
    assert trace.steps["loss"].tolist() == losses
    assert trace.steps["grad_norm"].tolist() == [10.0 + number for number in range(7)]
    clips = trace.events.query("kind == 'clip'")
    assert [data["total_norm"] for data in clips["data"]] == [10.0 + number for number in range(7)]


def test_counted_steps_fetch_no_numbers(tmp_path: Path) -> None:
    settings = recording.settings_from(tmp_path / "run", {"quiet": True, "strict": True, "every": 2})
    session = recording._start(Session(settings, measure_on=LateDevice(0)))
    weight = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.SGD([("w", weight)], lr=0.1)
    for number in range(5):
        weight.grad = torch.ones(3)
        session.context.clipped([optimizer], on_device(float(number)))
        optimizer.step()
    optrace.stop()
    steps = optrace.open(tmp_path / "run").steps
    assert dict(zip(steps["step"], steps["grad_norm"], strict=True)) == {1: 0.0, 2: 1.0, 4: 3.0}


class Step:
    """A step that has arrived once it is told so."""

    seconds = 0.0

    def __init__(self, name: str, written: list[str]) -> None:
        self.name, self.written, self.there, self.waited = name, written, False, False

    def ready(self) -> bool:
        return self.there

    def complete(self) -> Any:
        self.waited = not self.there
        return self.name, None, None

    def write(self, found: Any) -> None:
        self.written.append(self.name if found is None else found[0])


def test_what_waits_is_written_in_order() -> None:
    later, written = Later(), []
    first, second, host = (Step(name, written) for name in ("first", "second", "host"))
    later.put(first, first.write)
    later.put(second, second.write)
    later.put(None, host.write)
    second.there = True
    later.write()
    assert written == [] and len(later) == 3
    first.there = True
    later.write()
    assert written == ["first", "second", "host"] and not later


def test_too_many_steps_wait_for_the_first_of_them() -> None:
    later, written = Later(), []
    steps = [Step(str(i), written) for i in range(MOST + 2)]
    for step in steps:
        later.put(step, step.write)
    assert written == ["0", "1"] and steps[0].waited and len(later) == MOST
    later.write_all()
    assert written == [step.name for step in steps]
