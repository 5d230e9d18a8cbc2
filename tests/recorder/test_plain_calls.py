"""What the kernel notes, looks at and writes is what Python would, whatever a program does around its steps."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

import optrace
from optrace.recorder import plain_calls, steady, wrappers
from optrace.trace import batches, group_batches, writer
from optrace.trace.measure import kernel

pytestmark = pytest.mark.skipif(kernel is None, reason="without the C kernel Python notes all calls")

STEPS = 12


class Plain:
    """One optimizer, a schedule and a loss."""

    def __init__(self, make=None):
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        make = make or (lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9))
        self.optimizer = make(self.net.parameters())
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, 4, gamma=0.5)
        self.x, self.y = torch.randn(8, 3), torch.randn(8, 1)

    def loss(self):
        return (self.net(self.x) - self.y).square().mean()

    def zero(self):
        self.optimizer.zero_grad()

    def backward(self):
        self.loss().backward()

    def step(self, number):
        self.zero()
        self.backward()
        self.optimizer.step()
        self.schedule.step()


class Scheduled(Plain):
    """An lr that changes with each step, and other options at times, one of them during a step."""

    def __init__(self):
        super().__init__(lambda params: torch.optim.AdamW(params, lr=0.1, betas=(0.9, 0.99)))
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 0.2, total_steps=STEPS + 1)

    def backward(self):
        super().backward()
        group = self.optimizer.param_groups[0]
        self.count = getattr(self, "count", 0) + 1
        if self.count == 6:
            group["maximize"] = True
        if self.count == 8:
            group["lr"] = 0.0
        if self.count == 10:
            group["weight_decay"] = 1


class Accumulates(Plain):
    """Two backwards a step, and gradients that are cleared between some."""

    def backward(self):
        self.loss().backward()
        (2 * self.loss()).backward()

    def step(self, number):
        if number % 3 == 0:
            self.loss().backward()  # thrown away
        super().step(number)


class ZeroesInPlace(Plain):
    """`zero_grad` with arguments, at times by the module."""

    def zero(self):
        self.count = getattr(self, "count", 0) + 1
        if self.count % 3 == 0:
            self.net.zero_grad()
        elif self.count % 3 == 1:
            self.optimizer.zero_grad(set_to_none=False)
        else:
            self.optimizer.zero_grad(False)


class Clips(Plain):
    """A clip between backward and step."""

    def backward(self):
        super().backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 0.3)


class ManyRoots(Plain):
    """Backwards from several roots, with gradients given, of float64 and bfloat16."""

    def step(self, number):
        self.zero()
        loss = self.loss()
        if number % 4 == 0:
            torch.autograd.backward([loss, 2 * self.loss()])
        elif number % 4 == 1:
            loss.double().backward()
        elif number % 4 == 2:
            loss.bfloat16().backward()
        else:
            self.net(self.x).backward(torch.ones(8, 1))
        self.optimizer.step()


class Fails(Plain):
    """Backwards and steps of schedules that raise, calls inside of calls."""

    def step(self, number):
        self.zero()
        if number % 3 == 0:
            with pytest.raises(RuntimeError):
                torch.zeros(()).backward()
        hook = self.net[0].weight.register_post_accumulate_grad_hook(self.nested)
        self.backward()
        hook.remove()
        self.optimizer.step()
        self.schedule.step()

    def nested(self, _):
        with torch.enable_grad():
            inner = torch.ones((), requires_grad=True)
            (inner * 2).backward()


class Sub(torch.optim.SGD):
    """Overrides what is observed, and calls what it overrides."""

    def zero_grad(self, set_to_none=True):
        super().zero_grad(set_to_none)

    def step(self, closure=None):
        return super().step(closure)


class Subclassed(Plain):
    """An optimizer whose methods call those of torch."""

    def __init__(self):
        super().__init__(lambda params: Sub(params, lr=0.1, momentum=0.9))
        inner = torch.optim.lr_scheduler.ConstantLR(self.optimizer, 0.5, 3)
        self.schedule = torch.optim.lr_scheduler.SequentialLR(self.optimizer, [inner, self.schedule], [5])


class Closure(Plain):
    """A closure that does everything, several times a step."""

    def __init__(self):
        super().__init__(lambda params: torch.optim.LBFGS(params, lr=0.1, max_iter=3))

    def step(self, number):
        def closure():
            self.zero()
            loss = self.loss()
            loss.backward()
            return loss

        self.optimizer.step(closure)


class Two(Plain):
    """Two optimizers that step in turn, the second made late."""

    def step(self, number):
        super().step(number)
        if number == 4:
            self.other = Plain(lambda params: torch.optim.AdamW(params, lr=0.01))
        if number >= 4:
            self.other.step(number)


class Draws(Plain):
    """Random numbers between the steps, and a schedule at times."""

    def step(self, number):
        self.zero()
        self.x = torch.randn(8, 3)
        self.backward()
        self.optimizer.step()
        if number % 2:
            self.schedule.step()


class Watched(Plain):
    """A mode that sees torch's functions while some backwards run."""

    def backward(self):
        class Mode(torch.overrides.TorchFunctionMode):
            def __torch_function__(self, func, types, args=(), kwargs=None):
                return func(*args, **(kwargs or {}))

        with Mode():
            super().backward()


class Threads(Plain):
    """Steps in one thread and then another, each with its own."""

    def step(self, number):
        if number % 3 == 2:
            thread = threading.Thread(target=super().step, args=(number,))
            thread.start()
            thread.join()
        else:
            super().step(number)


class UserEvents(Plain):
    """Words of the program's own between the calls, more than wait for a step."""

    def step(self, number):
        self.zero()
        for _ in range(300 if number == 5 else 1):
            self.optimizer.zero_grad()
        self.backward()
        self.optimizer.step()
        self.optimizer.state_dict()


PROGRAMS = [
    Plain, Scheduled, Accumulates, ZeroesInPlace, Clips, ManyRoots, Fails, Subclassed, Closure, Two, Draws, Watched,
    Threads, UserEvents,
]  # fmt: skip


def recorded(program, path):
    """The tables of a run, of what does not depend on the clock."""
    training = program()
    with optrace.record(path, quiet=True):
        for number in range(STEPS):
            training.step(number)
    run = optrace.open(path)
    events, steps = run.events, run.steps
    return events, steps.drop(columns="seconds"), run.groups, run.tensors


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_a_trace_made_by_the_kernel_is_the_one_that_python_makes(program, tmp_path, monkeypatch):
    by_kernel = recorded(program, tmp_path / "kernel")
    monkeypatch.setattr(plain_calls, "_KNOWN", False)
    monkeypatch.setattr(steady, "kernel", None)
    monkeypatch.setattr(writer, "can_stand", lambda: False)
    monkeypatch.setattr(group_batches, "_fill_groups", None)
    for filled in ("tensors", "step", "events"):
        monkeypatch.setattr(batches, f"_fill_{filled}", None)
    by_python = recorded(program, tmp_path / "python")
    for ours, theirs in zip(by_kernel, by_python, strict=True):
        assert ours.equals(theirs)


def test_plain_calls_are_noted_by_the_kernel(tmp_path, monkeypatch):
    monkeypatch.setattr(wrappers, "_living_optimizers", list)  # a backward is plain where there is one optimizer
    training, slow = Plain(), []
    with optrace.record(tmp_path / "run", quiet=True) as session:
        for number in range(8):
            training.step(number)
        emit = session.emit
        monkeypatch.setattr(session, "emit", lambda kind, *rest: (slow.append(kind), emit(kind, *rest)))
        training.step(8)
        assert not slow
        training.optimizer.zero_grad(set_to_none=False)
        assert slow == ["zero_grad"]


def test_nothing_is_noted_after_the_end(tmp_path):
    training = Plain()
    with optrace.record(tmp_path / "run", quiet=True) as session:
        training.step(0)
    events = len(optrace.open(tmp_path / "run").events)
    training.step(1)
    assert session.plain is None
    assert len(optrace.open(tmp_path / "run").events) == events
