"""Memory that the recorder keeps: copies of the parameters from before a step, within a bound."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from optrace.recorder.jobs import size_of
from optrace.recorder.tensors import Found

SHARE = 20
"""Without `--memory` the recorder holds at most 1/SHARE of the memory of the machine (or of its container)."""

_UNKNOWN = 8 * 2**30
_ALIGNMENT = 64


class Budget:
    """Bytes that may be taken for copies; shared by all optimizers of a process."""

    def __init__(self, limit: int | None = None) -> None:
        """`limit` in bytes; None: 5 % of the machine's memory."""
        self.limit = machine_memory() // SHARE if limit is None else limit
        self.held = 0
        self._lock = threading.Lock()

    def take(self, count: int) -> bool:
        """Whether `count` bytes more fit; if so they count as held."""
        with self._lock:
            if self.held + count > self.limit:
                return False
            self.held += count
            return True

    def give_back(self, count: int) -> None:
        """Undo a `take` of the same number of bytes."""
        with self._lock:
            self.held -= count


class Copies:
    """Room for the values that one optimizer's parameters had before the step, taken once and reused each step."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._sizes: list[int] = []
        self._fitted: Iterable[Found] | None = None
        self._memory: npt.NDArray[np.uint8] | None = None
        self.held = 0
        """Bytes taken."""
        self.missing = 0
        """Bytes that did not fit."""
        self.addresses: list[int | None] = []
        """Where each parameter's copy goes; None where there was no room for it."""

    def fit(self, params: Iterable[Found]) -> bool:
        """Make room for copies of `params`, as far as the budget goes; whether anything had to be changed."""
        if params is self._fitted:
            return False
        sizes = [size_of(param) for param in params]
        self._fitted = params
        if sizes == self._sizes:
            return False
        self.release()
        self._fitted = params
        offsets: list[int | None] = []
        for size in sizes:
            room = _aligned(size)
            if self._budget.take(room):
                offsets.append(self.held)
                self.held += room
            else:
                offsets.append(None)
                self.missing += size
        self._memory = np.empty(self.held + _ALIGNMENT, np.uint8)
        start = _aligned(self._memory.ctypes.data)
        self.addresses = [None if offset is None else start + offset for offset in offsets]
        self._sizes = sizes
        return True

    def release(self) -> None:
        """Give all room back."""
        self._budget.give_back(self.held)
        self._memory, self._sizes, self.addresses, self.held, self.missing = None, [], [], 0, 0
        self._fitted = None


def _aligned(count: int) -> int:
    return -(-count // _ALIGNMENT) * _ALIGNMENT


def machine_memory() -> int:
    """Bytes of memory of this machine, or of the container that the process runs in; 8 GiB where it cannot be told."""
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        found = _UNKNOWN
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found = min(found, int(Path(file).read_text()))
        except (OSError, ValueError):
            continue
    return found
