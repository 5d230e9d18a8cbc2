"""The C kernel against NumPy: every dtype, length, address and instruction set, any number of threads."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from measuring import LENGTHS, assert_same_rows, job, raw_dtype, run, tensor

from optrace.trace import measure as m
from optrace.trace.jobs import NAMES

needs_c = pytest.mark.skipif(m.kernel_name() != "c", reason="the C kernel is not built here")


def all_ops(name: str, values: np.ndarray, before: np.ndarray, copy: np.ndarray) -> np.ndarray:
    return np.concatenate(
        [
            job(m.STAT, name, values, row=0),
            job(m.UPDATE, name, values, before, row=1, row2=2),
            job(m.COPY, name, values, copy, row=3),
            job(m.HASH, name, before, row=4),
        ]
    )


def instruction_sets() -> list[str]:
    from optrace.trace import _kernel

    names = ["plain", "avx2", "avx512"]
    return names[: names.index(_kernel.instructions()) + 1]


@needs_c
@pytest.mark.parametrize("name", NAMES)
def test_c_finds_what_numpy_finds(name):
    for numel in LENGTHS:
        values, before = tensor(name, numel, seed=1), tensor(name, numel, seed=2)
        copies = [np.zeros_like(values) for _ in range(2)]
        rows = run(all_ops(name, values, before, copies[0]), 5)
        assert_same_rows(rows, run(all_ops(name, values, before, copies[1]), 5, kernel="numpy"), numel)
        assert copies[0].tobytes() == copies[1].tobytes() == values.tobytes()


@needs_c
@pytest.mark.parametrize("name", ["float64", "float32", "float16", "bfloat16", "int64", "uint64"])
def test_c_finds_what_numpy_finds_in_any_bits(name):
    for numel in (5, 600, 33_000):
        dtype = raw_dtype(name)
        bits = np.random.default_rng(numel).integers(0, 256, 2 * numel * dtype.itemsize, dtype=np.uint8)
        values, before = bits[::2].copy().view(dtype), bits[1::2].copy().view(dtype)
        copy = np.zeros_like(values)
        jobs = all_ops(name, values, before, copy)
        assert_same_rows(run(jobs, 5), run(jobs, 5, kernel="numpy"), numel)


@needs_c
@pytest.mark.parametrize("name", NAMES)
def test_every_instruction_set_gives_the_same_bits(name):
    from optrace.trace import _kernel

    try:
        for numel in LENGTHS:
            values, before = tensor(name, numel, seed=3), tensor(name, numel, seed=4)
            copy = np.zeros_like(values)
            jobs = all_ops(name, values, before, copy)
            found = set()
            for instructions in instruction_sets():
                assert _kernel.instructions(instructions) == instructions
                found.add(run(jobs, 5).tobytes())
            assert len(found) == 1
    finally:
        _kernel.instructions()


@pytest.mark.parametrize("kernel", ["chosen", "numpy"])
@pytest.mark.parametrize("name", ["float64", "float32", "bfloat16", "float8_e5m2", "int16"])
def test_any_address_will_do(name, kernel):
    values, before = tensor(name, 1100, seed=1), tensor(name, 1100, seed=2)
    copy = np.zeros_like(values)
    expected = run(all_ops(name, values, before, copy), 5, kernel=kernel)
    for offset in (1, 3, 4):
        size = values.nbytes
        store = np.zeros(3 * size + 64, dtype=np.uint8)
        moved = [store[offset + k * (size + 7) :][:size] for k in range(3)]
        moved[0][:], moved[1][:] = values.view(np.uint8), before.view(np.uint8)
        jobs = all_ops(name, *moved)
        jobs["numel"] = values.size
        assert run(jobs, 5, kernel=kernel).tobytes() == expected.tobytes()
        assert moved[2].tobytes() == values.tobytes()
        assert not store[offset + size :][:7].any()
        assert not store[offset + 2 * size + 7 :][:7].any()
        assert not store[offset + 3 * size + 14 :].any()


@pytest.mark.parametrize("name", ["float32", "float64", "bfloat16", "int32"])
def test_results_do_not_depend_on_threads(name):
    tensors = [(tensor(name, n, seed=1), tensor(name, n, seed=2)) for n in (300_001, 10, 0, 65_536, 40_000, 3)]
    copies = [np.zeros_like(values) for values, _ in tensors]
    jobs = np.concatenate([all_ops(name, *pair, copy) for pair, copy in zip(tensors, copies, strict=True)])
    jobs["row"] = np.arange(len(jobs)) * 2
    jobs["row2"] = np.arange(len(jobs)) * 2 + 1
    results = []
    for threads in (1, 2, 3, 7, 1000):
        for copy in copies:
            copy.fill(0)
        results.append(run(jobs, 2 * len(jobs), threads).tobytes())
        assert [c.tobytes() for c in copies] == [values.tobytes() for values, _ in tensors]
    assert len(set(results)) == 1


@pytest.mark.parametrize("offset", [0, 1, 16])
def test_large_copies_arrive_whole(offset):
    values = tensor("float32", 1_500_001)
    store = np.zeros(values.nbytes + 64, dtype=np.uint8)
    copy = store[offset:][: values.nbytes]
    for threads in (1, 3):
        store.fill(0)
        made = job(m.COPY, "float32", values)
        made["b"] = copy.ctypes.data
        row = run(made, 1, threads)[0]
        assert copy.tobytes() == values.tobytes()
        assert not store[:offset].any()
        assert not store[offset + values.nbytes :].any()
        assert int(row["fingerprint"]) % 2**64 == m.fingerprint(values)


def test_torch_keeps_its_threads_and_no_thread_stays():
    values = tensor("float32", 1_000_000)
    before = torch.get_num_threads(), len(os.listdir("/proc/self/task")) if sys.platform == "linux" else 0
    run(job(m.STAT, "float32", values), 1, threads=4)
    assert before == (torch.get_num_threads(), len(os.listdir("/proc/self/task")) if sys.platform == "linux" else 0)


def test_flushed_subnormals_are_measured_all_the_same():
    values = np.arange(-600, 600, dtype=np.int32).astype(np.float32) * np.float32(2**-149)
    assert values.view(np.uint32)[601] == 1
    halves = np.arange(1200, dtype=np.uint16)
    before, copy = np.roll(values, 1), np.zeros_like(values)
    jobs = np.concatenate([all_ops("float32", values, before, copy), job(m.STAT, "float16", halves, row=5)])
    for kernel in ("chosen", "numpy"):
        expected = run(jobs, 6, kernel=kernel)
        if not torch.set_flush_denormal(True):
            pytest.skip("this processor cannot flush subnormals")
        try:
            flushed = run(jobs, 6, kernel=kernel)
            assert torch.tensor(1e-310, dtype=torch.float64).mul(1).item() == 0, "still flushing for the caller"
        finally:
            torch.set_flush_denormal(False)
        assert flushed.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("op", 4, "op 4"),
        ("dtype", 99, "dtype code 99"),
        ("row", 1, "row 1"),
        ("row", -1, "row -1"),
        ("numel", -1, "numel -1"),
        ("a", 0, "address"),
    ],
)
@pytest.mark.parametrize("kernel", ["chosen", "numpy"])
def test_wrong_jobs_are_refused(field, value, message, kernel):
    values = np.ones(4)
    wrong = job(m.STAT, "float64", values)
    wrong[field] = value
    with pytest.raises(ValueError, match=message):
        run(wrong, 1, kernel=kernel)


@needs_c
def test_wrong_arrays_are_refused():
    values = np.ones(4)
    with pytest.raises(ValueError, match="dtype JOB"):
        m.measure(np.zeros(7, dtype=np.uint8), np.zeros(1, dtype=m.ROW))
    rows = np.zeros(1, dtype=m.ROW)
    rows.flags.writeable = False
    with pytest.raises((BufferError, ValueError)):
        m.measure(job(m.STAT, "float64", values), rows)


def test_calls_from_many_python_threads_do_not_disturb_each_other():
    values = [tensor("float32", 200_000, seed=seed) for seed in range(4)]
    expected = [run(job(m.STAT, "float32", v), 1).tobytes() for v in values]
    found: dict[int, bytes] = {}

    def work(k: int) -> None:
        found[k] = run(job(m.STAT, "float32", values[k]), 1, threads=2).tobytes()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[k] for k in range(4)] == expected


PROBE = """
import os, sys
if sys.argv[1] == "broken":
    sys.modules["optrace.trace._kernel"] = None
import numpy as np
from optrace.trace import measure as m
x = np.arange(300_000, dtype=np.float32)
job, rows = np.zeros(1, m.JOB), np.zeros(1, m.ROW)
job["dtype"], job["a"], job["numel"] = m.DTYPES["float32"], x.ctypes.data, x.size
m.measure(job, rows, 3)
if sys.argv[1] == "fork":
    pid = os.fork()
    if pid == 0:
        again = np.zeros(1, m.ROW)
        m.measure(job, again, 3)
        os._exit(0 if again.tobytes() == rows.tobytes() else 9)
    assert os.waitpid(pid, 0)[1] == 0
print(m.kernel_name(), f"{m.fingerprint(x):016x}", rows["n_zero"][0], rows["max"][0])
"""


def probe(how: str, **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, how],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_without_the_kernel_numpy_gives_the_same():
    chosen = probe("plain")
    assert chosen[0] == m.kernel_name()
    for without in (probe("broken"), probe("plain", OPTRACE_KERNEL="numpy")):
        assert without == ["numpy", *chosen[1:]]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_measures_with_threads():
    assert probe("fork")[2:] == ["1", "299999.0"]
