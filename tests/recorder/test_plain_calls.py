"""What the kernel notes, looks at and writes is what Python would, whatever a program does around its steps."""

from __future__ import annotations

import gc
import os
import resource
import weakref

import pytest
import torch
from plain_programs import PROGRAMS, STEPS, Plain, Scales, Scheduled

import optrace
from optrace.errors import RecordError
from optrace.recorder import plain_calls, plain_steps, steady, wrappers
from optrace.recorder.steps import Steps
from optrace.trace import batches, group_batches, stream, writer
from optrace.trace.measure import kernel

pytestmark = pytest.mark.skipif(kernel is None, reason="without the C kernel Python notes all calls")


def recorded(program, path):
    """The tables of a run, of what does not depend on the clock."""
    training = program()
    with optrace.record(path, quiet=True, strict=True):
        for number in range(STEPS):
            training.step(number)
    run = optrace.open(path)
    events, steps = run.events, run.steps
    assert run.problems == []
    return events, steps.drop(columns="seconds"), run.groups, run.tensors


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_a_trace_made_by_the_kernel_is_the_one_that_python_makes(program, tmp_path, monkeypatch):
    by_kernel = recorded(program, tmp_path / "kernel")
    monkeypatch.setattr(plain_calls, "_KNOWN", False)
    monkeypatch.setattr(plain_steps, "_KNOWN", False)
    monkeypatch.setattr(steady, "kernel", None)
    monkeypatch.setattr(stream, "kernel", None)
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


@pytest.fixture
def left_to_python(monkeypatch):
    """The steps that the kernel has left to Python."""
    left, before = [], Steps.before_step
    monkeypatch.setattr(Steps, "before_step", lambda self, *given: (left.append(id(given[0])), before(self, *given))[1])
    return left


@pytest.mark.parametrize("settings", [{}, {"quantities": ["group.*"], "values": "none"}])
def test_a_step_like_the_last_is_recorded_by_the_kernel(tmp_path, left_to_python, settings):
    training = Plain(lambda params: torch.optim.AdamW(params, lr=0.1))
    with optrace.record(tmp_path / "run", quiet=True, strict=True, **settings) as session:
        for number in range(STEPS):
            if number == 8:
                left_to_python.clear()
            training.step(number)
        assert not left_to_python
        training.net[0].weight.grad.zero_()  # no matter: it is measured when the step begins
        training.optimizer.step()
        assert not left_to_python
        training.net[0].weight.data.add_(1)
        training.step(0)
        assert len(left_to_python) == (0 if settings else 1)  # what is not recorded may change
        known = session._hooks._plain._known
        training.step(1), training.step(2), training.step(3)
        assert list(known) == [id(training.optimizer)]
        gone = weakref.ref(training.optimizer)
        del training
        gc.collect()
        assert gone() is None and not known
    assert optrace.open(tmp_path / "run").problems == []


def test_what_training_has_after_it_is_what_it_has_without_recording(tmp_path):
    for program in (Plain, Scheduled, Scales):
        bare, seen = program(), program()
        for number in range(STEPS):
            bare.step(number)
        with optrace.record(tmp_path / program.__name__, quiet=True, strict=True):
            for number in range(STEPS):
                seen.step(number)
        for one, other in zip(bare.net.parameters(), seen.net.parameters(), strict=True):
            assert torch.equal(one, other)
        hooks = seen.optimizer._optimizer_step_pre_hooks, seen.optimizer._optimizer_step_post_hooks
        assert not any(hooks)


@pytest.mark.parametrize("windows", [True, False])
@pytest.mark.parametrize("strict", [True, False])
def test_a_disk_that_fills_amid_a_step_of_the_kernels_ends_the_recording_at_the_step_before(
    tmp_path, windows, strict, monkeypatch, capfd
):
    if not windows:
        monkeypatch.setattr(stream, "kernel", None)
    training, limits = Plain(), resource.getrlimit(resource.RLIMIT_FSIZE)
    with optrace.record(tmp_path / "run", quiet=True, strict=strict) as session:
        for number in range(STEPS):
            training.step(number)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
        try:
            number = STEPS
            while session.active and number < 3000:
                number += 1
                try:
                    training.step(number)
                except RecordError as error:
                    assert strict and "File too large" in str(error)
            assert session.failure is not None and "File too large" in session.failure
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "recording stopped, the program goes on" in capfd.readouterr().err
    run = optrace.open(tmp_path / "run")
    assert run.last_step() == number - 1 and run.problems == []
    assert run.tensors["step"].max() == run.groups["step"].max() == number - 1
    assert list(run.steps["step"]) == list(range(1, number))


def test_a_forked_child_that_goes_on_training_records_a_run_of_its_own(tmp_path):
    training = Plain()
    with optrace.record(tmp_path / "run", quiet=True, strict=True):
        for number in range(STEPS):
            training.step(number)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                for number in range(STEPS):
                    training.step(number)
                optrace.stop()
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        for number in range(5):
            training.step(number)
    assert optrace.open(tmp_path / "run").last_step() == STEPS + 5
    (of_child,) = (tmp_path / "run").rglob("child-*")
    assert optrace.open(of_child).last_step() == STEPS
