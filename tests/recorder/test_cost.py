"""What a recorded step may cost, counted rather than timed: passes over memory, Arrow calls, writes, threads."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import optrace
from optrace.recorder import jobs, plain_steps, plans
from optrace.trace import stream
from optrace.trace.measure import COPY, HASH, STAT, UPDATE, kernel
from optrace.trace.writer import BackgroundWriter

torch.set_num_threads(1)

WARM = 8
"""Steps after which nothing new is met: the layouts of batches and the plans are made."""

AGAIN = ("before_again", "after_again")


class Counter:
    """Calls of functions that go on to do what they do."""

    def __init__(self, monkeypatch):
        self.monkeypatch = monkeypatch
        self.calls = {}

    def watch(self, owner, name, note=lambda *args, **kwargs: 1):
        real, calls = getattr(owner, name), self.calls.setdefault((owner, name), [])

        def counted(*args, **kwargs):
            calls.append(note(*args, **kwargs))
            return real(*args, **kwargs)

        self.monkeypatch.setattr(owner, name, counted)
        return calls


def training(momentum=0.9):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=momentum)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5)
    x, y = torch.randn(16, 4), torch.randn(16, 1)

    def step():
        optimizer.zero_grad()
        (net(x) - y).square().mean().backward()
        optimizer.step()
        schedule.step()

    return step, len(list(net.parameters()))


def writes():
    """How often this process has called write(2) and its like."""
    return int(re.search(r"syscw: (\d+)", Path("/proc/self/io").read_text())[1])


def operations(jobs):
    return np.bincount(np.asarray(jobs)["op"], minlength=4).tolist()


def test_each_tensor_is_read_once_before_and_once_after_the_rule(tmp_path, monkeypatch):
    monkeypatch.setattr(plain_steps, "_KNOWN", False)  # the kernel makes the same calls of its own
    step, count = training()
    counter = Counter(monkeypatch)
    with optrace.record(tmp_path / "run", quiet=True):
        for _ in range(WARM):
            step()
        seen = counter.watch(plans, "measure", lambda jobs, *_: operations(jobs))
        if kernel is not None:  # a step like the last: the jobs are measured within the look at the optimizer
            known = [counter.watch(kernel, name, lambda *given: operations(given[4][0])) for name in AGAIN]
        now = counter.watch(jobs, "measure")
        step()
    before, after = seen or (known[0][0], known[1][0])
    assert kernel is None or not seen
    ops = (STAT, UPDATE, COPY, HASH)
    assert [before[op] for op in ops] == [count, 0, count, count]  # gradients; parameters copied; momentum hashed
    assert [after[op] for op in ops] == [count, count, 0, 0]  # momentum; updates with their parameters
    assert not now


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="this system does not count writes")
@pytest.mark.parametrize("windows", [True, False])
def test_a_step_like_the_last_builds_no_arrow_object_and_writes_each_table_once(tmp_path, monkeypatch, windows):
    if not windows:
        monkeypatch.setattr(stream, "kernel", None)
    step, _ = training()
    counter = Counter(monkeypatch)
    with optrace.record(tmp_path / "run", quiet=True) as session:
        for _ in range(WARM + 1):
            step()
        mapped = sum(one.has_window for one in session._rank._tables)
        built = [counter.watch(pa, name) for name in ("array", "record_batch", "table", "schema")]
        before = writes()
        for _ in range(3):
            step()
        made = writes() - before
    assert not any(built)
    assert made == 3 * (4 - mapped)  # groups, tensors, steps, events
    assert windows or not mapped


@pytest.mark.parametrize("values", ["sample", "none"])
def test_no_thread_is_started_while_steps_are_recorded(tmp_path, values):
    step, _ = training()
    before = threading.active_count()
    with optrace.record(tmp_path / "run", quiet=True, values=values):
        for _ in range(WARM):
            step()
        assert threading.active_count() == before


def test_whole_values_take_one_thread_and_bounded_memory(tmp_path, monkeypatch):
    step, _ = training()
    waiting = []
    put = BackgroundWriter.put

    def watched(self, size, write, done):
        put(self, size, write, done)
        waiting.append((self.waiting, size, self.limit))

    monkeypatch.setattr(BackgroundWriter, "put", watched)
    before = threading.active_count()
    with optrace.record(tmp_path / "run", quiet=True, values="full", staging=4000):
        for _ in range(WARM):
            step()
            assert threading.active_count() <= before + 1
    assert len(waiting) == WARM + 1  # and step 0
    assert all(total <= max(limit, size) for total, size, limit in waiting)
    assert threading.active_count() == before


def test_a_small_trace_has_the_same_number_of_files_however_long_it_is(tmp_path):
    counts = []
    for steps in (10, 200):
        step, _ = training()
        with optrace.record(tmp_path / f"run{steps}", quiet=True):
            for _ in range(steps):
                step()
        counts.append(sorted(p.name for p in (tmp_path / f"run{steps}" / "rank=00000").iterdir()))
    assert counts[0] == counts[1]
