"""The kernel measures with the threads that torch has: same results, nothing started, nothing lost by a fork."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import numpy as np
import pytest
import torch

import optrace
from optrace.recorder import openmp
from optrace.trace.jobs import COPY, DTYPES, HASH, ITEMSIZE, JOB, ROW, STAT, UPDATE
from optrace.trace.measure import kernel

torch.set_num_threads(1)

Task = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
Parallel = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)

pytestmark = pytest.mark.skipif(kernel is None or not openmp.parallel(), reason="no kernel, or no GOMP_parallel")


@pytest.fixture
def teams(monkeypatch):
    """Sizes of the teams that the kernel has asked torch's runtime for."""
    real, asked = Parallel(openmp.parallel()), []

    @Parallel
    def counted(task, argument, threads, flags):
        asked.append(threads)
        real(task, argument, threads, flags)

    address = ctypes.cast(counted, ctypes.c_void_p).value
    monkeypatch.setattr(openmp, "parallel", lambda: address)
    yield asked
    kernel.join_team(0)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_the_team_finds_what_one_thread_finds(dtype, teams):
    code, width = DTYPES[dtype], ITEMSIZE[DTYPES[dtype]]
    random = np.random.default_rng(code)
    sizes = [1, 1000, 32767, 32768, 300_001, 524_288 // width + 5]
    memory = [[random.integers(0, 256, size * width, np.uint8) for size in sizes] for _ in range(2)]
    if dtype == "bool":
        memory = [[one % 2 for one in some] for some in memory]
    jobs = np.zeros(3 * len(sizes), JOB)
    for number, (op, index) in enumerate((op, index) for op in (STAT, UPDATE, HASH) for index in range(len(sizes))):
        jobs[number]["op"], jobs[number]["dtype"], jobs[number]["numel"] = op, code, sizes[index]
        jobs[number]["a"], jobs[number]["b"] = (some[index].ctypes.data for some in memory)
        jobs[number]["row"], jobs[number]["row2"] = number, len(jobs) + number
    alone, together = np.zeros(2 * len(jobs), ROW), np.zeros(2 * len(jobs), ROW)
    kernel.measure(jobs, alone, 1)
    kernel.join_team(openmp.parallel())
    for threads in (2, 3):
        kernel.measure(jobs, together, threads)
        assert together.tobytes() == alone.tobytes()
    assert teams == [2, 3]


def test_a_team_copies_what_one_thread_copies(teams):
    source, target = np.arange(3_000_000, dtype=np.float32), np.zeros(3_000_000, np.float32)
    jobs, rows = np.zeros(1, JOB), np.zeros(1, ROW)
    jobs["op"], jobs["dtype"], jobs["numel"] = COPY, DTYPES["float32"], source.size
    jobs["a"], jobs["b"] = source.ctypes.data, target.ctypes.data
    kernel.join_team(openmp.parallel())
    kernel.measure(jobs, rows, 2)
    assert (source == target).all() and teams == [2]


def train(shapes, steps=3):
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9)
    for _ in range(steps):
        for param in params:
            param.grad = torch.randn_like(param)
        optimizer.step()


def test_a_recording_joins_when_torch_has_gone_over_a_large_parameter(tmp_path, teams, two_threads):
    with optrace.record(tmp_path / "run", quiet=True):
        train([(300, 400)], steps=1)
        before_it_had_ended = len(teams)
        train([(300, 400)], steps=3)
    assert before_it_had_ended == 0 and len(teams) >= 4 and set(teams) == {2}


def test_small_parameters_start_no_threads_of_torchs_runtime(tmp_path, teams, two_threads):
    with optrace.record(tmp_path / "run", quiet=True):
        train([(100, 300)] * 30)  # 3.6 MB, of which torch goes over no tensor in parallel
    assert not teams


def test_one_thread_of_torch_stays_one(tmp_path, teams):
    with optrace.record(tmp_path / "run", quiet=True):
        train([(300, 400)])
    assert not teams


FORKED = """
import os, sys, numpy as np, torch
from optrace.recorder import openmp
from optrace.trace.measure import kernel, fingerprint
from optrace.trace.jobs import DTYPES, JOB, ROW, STAT
torch.set_num_threads(2)
values = torch.randn(1_000_000)
values += 1
kernel.join_team(openmp.parallel())
jobs, rows = np.zeros(1, JOB), np.zeros(1, ROW)
jobs["op"], jobs["dtype"], jobs["numel"], jobs["a"] = STAT, DTYPES["float32"], values.numel(), values.data_ptr()
kernel.measure(jobs, rows, 2)
expected = rows.tobytes()
child = os.fork()
if child == 0:
    rows[:] = 0
    kernel.measure(jobs, rows, 2)
    os._exit(0 if rows.tobytes() == expected else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_waits_for_no_thread_that_it_has_not():
    """A region of the runtime in the child would wait for ever for the parent's threads."""
    done = subprocess.run([sys.executable, "-c", FORKED], timeout=60, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
