"""Has a list of measuring jobs run on a device: by the Triton kernels, or where there are none by torch's operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from optrace.recorder.device import Device
from optrace.recorder.device_ops import Passes
from optrace.recorder.device_table import DIMS, FIELDS, PARTS, RESULT, SAMPLE, SIZES, DeviceTable, Longs
from optrace.recorder.jobs import Jobs
from optrace.trace.fingerprint import is_narrow, widen
from optrace.trace.jobs import NAMES

WARPS = 8
WIDTH = 256
"""Units that `finish_jobs` adds up at a time."""

NO_TRITON = "measured by torch's operators"


class DeviceJobs:
    """Jobs on one device, made ready once and run at each step at the addresses of that step."""

    def __init__(self, device: Device, jobs: Jobs, tell: Callable[[str, str], None]) -> None:
        """`jobs` (dtype JOB) has addresses of the device; `tell(what, which)` says something in the trace."""
        self._device = device
        self._tell = tell
        self.table = DeviceTable.of(jobs)
        self._by_triton: _ByTriton | None = None
        self._by_torch: Passes | None = None
        if device.has_triton:
            self._by_triton = _ByTriton(device, self.table)

    def launch(self, jobs: Jobs) -> torch.Tensor:
        """Measure where the jobs now say; int64 [n * RESULT] on the device, which nothing waits for."""
        addresses = self.table.addresses(jobs)
        with self._device.current():
            if self._by_triton is not None:
                try:
                    return self._by_triton.launch(addresses)
                except Exception as error:  # no compiler for its launcher, a chip that it does not know
                    if self._by_triton.ran:
                        raise
                    self._tell(NO_TRITON, f"Triton failed: {type(error).__name__}: {str(error)[:200]}")
                    self._by_triton = None
            if self._by_torch is None:
                self._by_torch = Passes(self.table, self._device.upload)
            return self._by_torch.run(addresses, self._device.view).view(-1)


class _ByTriton:
    def __init__(self, device: Device, table: DeviceTable) -> None:
        self._device = device
        self._table = table
        self._addresses: Longs | None = None
        self._on_device: tuple[torch.Tensor, ...] = ()
        self.ran = False

    def launch(self, addresses: Longs) -> torch.Tensor:
        from optrace.recorder import device_kernel as kernels

        table = self._table
        if not self._on_device:
            upload = self._device.upload
            self._on_device = (upload(table.jobs), upload(table.units), upload(minifloats()).int(), upload(addresses))
            self._addresses = addresses
        elif self._addresses is None or not np.array_equal(addresses, self._addresses):
            self._on_device = (*self._on_device[:3], self._device.upload(addresses))
            self._addresses = addresses
        jobs, units, narrow, where = self._on_device
        n_jobs, n_units = len(table.jobs), len(table.units)
        parts = torch.empty((PARTS, max(n_units, 1)), dtype=torch.int64, device=jobs.device)
        results = torch.empty((n_jobs, RESULT), dtype=torch.int64, device=jobs.device)
        columns: dict[str, Any] = {"FIELDS": FIELDS}
        if n_units:
            kernels.measure_units[(n_units,)](
                jobs, where, units, parts, narrow, n_units, table.unit,
                SIZES=SIZES, DIMS=DIMS, CHUNK=kernels.CHUNK, num_warps=WARPS, **columns,
            )  # fmt: skip
        kernels.finish_jobs[(n_jobs,)](
            jobs, where, parts, results, narrow, n_units, SAMPLE=SAMPLE, RESULT=RESULT, WIDTH=WIDTH, **columns
        )
        self.ran = True
        return results.view(-1)


def minifloats() -> Longs:
    """Float32 bits of every float of each 8-bit dtype, one after the other in the order of their codes, signed."""
    codes = np.arange(256, dtype=np.uint8)
    narrow = [name for name in NAMES if is_narrow(name) and name not in ("float16", "bfloat16")]
    return np.concatenate([widen(codes, name).view(np.int32) for name in narrow]).astype(np.int64)
