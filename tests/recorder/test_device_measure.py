"""What measures on a device, by torch's operators and by Triton's kernels, finds what the CPU's kernel finds."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from independent import Capture
from measuring_on import TritonOnHost, layout_of, measure_on

import optrace
import optrace.recorder
from optrace.recorder import device_ops, recording
from optrace.recorder.device import HostDevice
from optrace.recorder.device_table import RESULT
from optrace.recorder.session import Session
from optrace.trace import measure as m
from optrace.trace.jobs import NAMES

sys.path.insert(0, str(Path(__file__).parent.parent / "trace"))
from measuring import assert_same_rows, job, raw_dtype, run, tensor

DTYPES = (torch.float32, torch.bfloat16)
LENGTHS = (0, 1, 16, 17, 1025, 9000)
"""The last one is more than a unit, and more than a piece."""


@pytest.fixture(params=["torch", "triton"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[HostDevice]:
    """Both ways to measure; Triton (no package that CI installs: it is 1 GB) runs in its interpreter."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    if request.param == "torch":
        yield HostDevice()
    else:
        interpret(monkeypatch)
        with np.errstate(all="ignore"):
            yield TritonOnHost()
    torch.set_num_threads(threads)


def interpret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the kernels run in Triton's interpreter, on long chunks: it takes its time for each operation."""
    if find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # before its first import: its own functions are interpreted too
    import triton.language

    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9):
        pytest.skip("the interpreter of Triton 3.6 does not run with NumPy 2.4; that of 3.9 does")
    if not type(triton.language.sum).__name__.startswith("Interpreted"):
        pytest.skip("something has imported Triton to compile")
    monkeypatch.delitem(sys.modules, "optrace.recorder.device_kernel", raising=False)
    kernels = importlib.import_module("optrace.recorder.device_kernel")
    monkeypatch.setattr(kernels, "CHUNK", 8192)
    monkeypatch.setitem(sys.modules, "optrace.recorder.device_kernel", kernels)


def check(device: HostDevice, jobs: np.ndarray, numels: list[int]) -> None:
    """A row for each of `numels`, from the device and from the CPU."""
    found, expected = measure_on(device, jobs, len(numels)), run(jobs, len(numels))
    for row, numel in enumerate(numels):
        assert_same_rows(found[row : row + 1], expected[row : row + 1], numel)


@pytest.mark.parametrize("name", NAMES)
def test_every_dtype_is_measured_as_on_the_cpu(device: HostDevice, name: str) -> None:
    jobs, keep, numels = [], [], []
    for numel in LENGTHS:
        values, before = tensor(name, numel, seed=1), tensor(name, numel, seed=2)
        keep += [values, before]
        jobs.append(job(m.STAT, name, before, row=len(numels)))
        jobs.append(job(m.UPDATE, name, values, before, row=len(numels) + 1, row2=len(numels) + 2))
        numels += [numel] * 3
    check(device, np.concatenate(jobs), numels)


@pytest.mark.parametrize("name", ["float64", "float32", "float16", "bfloat16"])
def test_any_bits_are_measured_as_on_the_cpu(device: HostDevice, name: str) -> None:
    dtype = raw_dtype(name)
    bits = np.random.default_rng(5).integers(0, 256, 6000 * dtype.itemsize, dtype=np.uint8)
    values, before = bits[::2].copy().view(dtype), bits[1::2].copy().view(dtype)
    jobs = [job(m.UPDATE, name, values, before, row=0, row2=1), job(m.STAT, name, before, row=2)]
    check(device, np.concatenate(jobs), [3000] * 3)


@pytest.mark.parametrize("name", ["float64", "float32", "bfloat16", "uint8"])
def test_a_copy_is_made_and_measured_in_one_go(device: HostDevice, name: str) -> None:
    values = tensor(name, 9000)
    copy = np.zeros_like(values)
    found = measure_on(device, job(m.COPY, name, values, copy), 1)
    assert copy.tobytes() == values.tobytes()
    assert_same_rows(found, run(job(m.STAT, name, values), 1), 9000)


def test_hashes_come_with_statistics(device: HostDevice) -> None:
    values = tensor("float32", 40)
    assert_same_rows(measure_on(device, job(m.HASH, "float32", values), 1), run(job(m.STAT, "float32", values), 1), 40)


@pytest.mark.parametrize(
    "sizes_then_strides",
    [(5, 300, 300, 1), (300, 5, 1, 300), (7, 4, 3, 5, 2, 60, 1, 4, 12, 420), (2, 2, 2, 2, 2, 2, 1, 2, 4, 8, 16, 32)],
    ids=str,
)
def test_fingerprint_and_sample_go_by_logical_index(device: HostDevice, sizes_then_strides: tuple[int, ...]) -> None:
    keep, address = layout_of(*sizes_then_strides)
    numel = int(np.prod(keep[1 : 1 + keep[0]]))
    values = tensor("float32", numel)
    for base, whole in ((0, 0), (3, 100_000)):
        jobs = job(m.STAT, "float32", values, layout=address, index_base=base, global_numel=whole)
        check(device, jobs, [numel])


HUGE, TINY = 1e300, 1e-290


@pytest.mark.parametrize(
    "parts",
    [(HUGE,), (TINY,), (HUGE, 1.0), (TINY, 0.0), (0.0, TINY), (TINY, HUGE), (1.0, TINY), (5e-324,), (1.7e308,)],
    ids=str,
)
def test_squares_that_leave_the_range_of_float64(device: HostDevice, parts: tuple[float, ...]) -> None:
    """Each part is longer than a unit and a piece, so that they are scaled apart."""
    rng = np.random.default_rng(1)
    values = np.concatenate([part * rng.uniform(0.5, 1, 9000) * rng.choice([-1, 1], 9000) for part in parts])
    check(device, job(m.STAT, "float64", values), [values.size])


def test_tensors_that_do_not_fit_into_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_ops, "PASS", 10_000)
    monkeypatch.setattr(device_ops, "PIECE", 1024)
    keep = [
        tensor(name, numel, seed=3) for name in ("float32", "float16") for numel in (9500, 700, 33_000, 12, 0, 4096)
    ]
    jobs = [job(m.STAT, "float16" if one.itemsize == 2 else "float32", one, row=i) for i, one in enumerate(keep)]
    check(HostDevice(), np.concatenate(jobs), [one.size for one in keep])


def test_units_grow_with_what_is_to_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    from optrace.recorder import device_table

    values = np.zeros(100_000, np.float32)
    jobs = np.concatenate([job(m.STAT, "float32", values), job(m.STAT, "float32", values[:5], row=1)])
    assert len(device_table.DeviceTable.of(jobs).units) == 13 + 1
    monkeypatch.setattr(device_table, "MOST_UNITS", 8)
    table = device_table.DeviceTable.of(jobs)
    assert table.unit == 16384 and len(table.units) == 7 + 1


def test_other_addresses_are_measured_without_making_anything_ready_again(device: HostDevice) -> None:
    from optrace.recorder.device_measure import DeviceJobs
    from optrace.recorder.device_table import rows_of

    jobs = job(m.STAT, "float32", tensor("float32", 3000, seed=1))
    made = DeviceJobs(device, jobs, lambda what, which: pytest.fail(f"{what} {which}"))
    for seed in (1, 2, 2):
        values = tensor("float32", 3000, seed=seed)
        jobs["a"] = values.ctypes.data
        rows = np.zeros(1, m.ROW)
        rows_of(made.table, made.launch(jobs).numpy().reshape(-1, RESULT), rows)
        assert_same_rows(rows, run(job(m.STAT, "float32", values), 1), 3000)


def test_torch_measures_where_triton_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(optrace.recorder, "device_kernel", raising=False)
    monkeypatch.setitem(sys.modules, "optrace.recorder.device_kernel", None)
    values, told = tensor("float32", 50), []
    rows = measure_on(TritonOnHost(), job(m.STAT, "float32", values), 1, told)
    assert_same_rows(rows, run(job(m.STAT, "float32", values), 1), 50)
    assert len(told) == 1 and told[0].startswith("measured by torch's operators: Triton failed: ")


def test_a_recording_by_the_kernels_has_the_rows_of_a_capture_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpret(monkeypatch)
    settings = recording.settings_from(tmp_path / "run", {"quiet": True, "strict": True})
    recording._start(Session(settings, measure_on=TritonOnHost()))
    params = [torch.randn(shape).to(dtype).requires_grad_() for shape in ((5, 4), (33,)) for dtype in DTYPES]
    names = {id(param): f"w{i}" for i, param in enumerate(params)}
    optimizer, capture = torch.optim.AdamW([(names[id(param)], param) for param in params], lr=0.1), Capture()
    with np.errstate(all="ignore"):
        for _ in range(2):
            for param in params:
                param.grad = torch.randn(param.shape).to(param.dtype)
            capture.around(optimizer, names, optimizer.step)
        optrace.stop()
    trace = optrace.open(tmp_path / "run")
    capture.check(trace.tensors, trace.groups)
    assert {"what": "measured on the device", "device": "cpu", "by": "triton"} in list(trace.events.data)


COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from optrace.recorder import device_kernel as kernels, device_measure, device_table as table

longs = dict.fromkeys(("jobs", "addresses", "units", "parts", "results"), "*i64")
types = {**longs, "minifloats": "*i32", "n_units": "i32", "unit": "i32"}
constants = {name: getattr(table, name) for name in ("FIELDS", "SIZES", "DIMS", "SAMPLE", "RESULT")}
constants |= {"CHUNK": kernels.CHUNK, "WIDTH": device_measure.WIDTH}
for kernel, warps in ((kernels.measure_units, device_measure.WARPS), (kernels.finish_jobs, 4)):
    own = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=own)
    for capability in (75, 80, 90):
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
        assert made.asm["cubin"] and ".ftz" not in made.asm["ptx"]
"""


def test_the_kernels_compile_for_nvidia_chips() -> None:
    """Down to machine code, by the assembler that Triton brings: no device is needed. No flag flushes subnormals."""
    if find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", COMPILE], check=True, env=environment)
