"""Devices for the tests: the host as one, with Triton's kernels interpreted, and one whose results come late."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from optrace.recorder.device import Arrival, HostDevice
from optrace.recorder.device_measure import DeviceJobs
from optrace.recorder.device_table import RESULT, rows_of
from optrace.trace import measure as m


class TritonOnHost(HostDevice):
    """The host's memory, measured by the Triton kernels (in Triton's interpreter)."""

    has_triton = True


class LateDevice(HostDevice):
    """The host's memory; results arrive when they have been asked for `lag` times."""

    def __init__(self, lag: int) -> None:
        super().__init__()
        self.lag = lag

    def send(self, results: torch.Tensor) -> Arrival:
        return _Late(results.clone(), self.lag)


class _Late:
    def __init__(self, results: torch.Tensor, lag: int) -> None:
        self.results, self.lag = results, lag

    def ready(self) -> bool:
        self.lag -= 1
        return self.lag < 0

    def wait(self) -> Any:
        return self.results.numpy()


def measure_on(device: HostDevice, jobs: np.ndarray, n_rows: int, told: list[str] | None = None) -> np.ndarray:
    """Rows of the jobs, measured by a device."""
    said: list[str] = [] if told is None else told
    made = DeviceJobs(device, jobs, lambda what, which: said.append(f"{what}: {which}"))
    results = made.launch(jobs).numpy().reshape(-1, RESULT)
    assert told is not None or not said, said
    rows = np.zeros(n_rows, dtype=m.ROW)
    rows_of(made.table, results, rows)
    return rows


def layout_of(*sizes_then_strides: int) -> tuple[np.ndarray, int]:
    """A layout as a job points to it, and its address."""
    fields = np.array([len(sizes_then_strides) // 2, *sizes_then_strides], np.int64)
    return fields, fields.ctypes.data
