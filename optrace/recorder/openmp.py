"""Finds the OpenMP runtime whose threads torch uses, for the kernel to measure with."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path

import torch

from optrace.trace.measure import kernel

_IN_PARALLEL = 32768
"""Elements from which on torch takes several threads for an elementwise operation (at::internal::GRAIN_SIZE)."""


@cache
def parallel() -> int:
    """Address of GOMP_parallel as torch's own library finds it; 0 where it uses no such runtime."""
    if not sys.platform.startswith("linux") or not torch.backends.openmp.is_available():  # type: ignore[no-untyped-call]
        return 0
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    for name in (None, str(library)) if library.exists() else ():
        function = getattr(ctypes.CDLL(name), "GOMP_parallel", None)
        if function is not None:
            return ctypes.cast(function, ctypes.c_void_p).value or 0
    return 0


def join_team(optimizer: object, numels: list[int]) -> None:
    """Let the kernel use, in this thread, the threads that torch has here, when a step of `optimizer` has ended.

    Only where torch has gone over a tensor in parallel does it have such threads: `numels` are the sizes of the
    parameters. The runtime would start threads otherwise that the program itself does not have, and a fork would lose.
    """
    if kernel is not None and isinstance(optimizer, torch.optim.Optimizer) and max(numels, default=0) >= _IN_PARALLEL:
        kernel.join_team(parallel())
