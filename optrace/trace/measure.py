"""Measures tensors where they lie: statistics, fingerprint and sample of each, by the C kernel or else by NumPy.

The C kernel is an optional extension module; without a compiler the package installs without it, and NumPy gives the
same fingerprints, counts, extrema and samples, and the same sums within rounding. Setting OPTRACE_KERNEL=numpy in the
environment before the import chooses NumPy although the kernel is there.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optrace.trace.fingerprint import MASK, code_of, sample_indices
from optrace.trace.jobs import COPY, DTYPES, HASH, JOB, ROW, STAT, UPDATE
from optrace.trace.statistics import measure_numpy


def _load_kernel() -> Any:
    if os.environ.get("OPTRACE_KERNEL") == "numpy":
        return None
    try:
        return importlib.import_module("optrace.trace._kernel")
    except ImportError:
        return None


kernel = _load_kernel()
"""The C kernel's module; None where NumPy measures."""
_measure_c = None if kernel is None else kernel.measure


def measure(jobs: NDArray[np.void], rows: NDArray[np.void], threads: int = 1) -> None:
    """Run `jobs` (dtype JOB, C-contiguous) and write what they find into `rows` (dtype ROW, C-contiguous).

    Fields of a job:
        op: STAT measures `a` into rows[row]. UPDATE takes a = after and b = before, and writes the update (a - b in
            float64, hashed as float64 with every NaN as 0x7ff8000000000000) into rows[row] and the measures of `a` into
            rows[row2]. COPY copies `a` to `b` and writes the fingerprint of `a` into rows[row]["fingerprint"], nothing
            else; HASH only the latter.
        dtype: a code of DTYPES; complex goes as its real view, numel and indices doubled.
        a, b: addresses of `numel` elements in CPU memory, dense, of any alignment; both in the same order.
        index_base, global_numel: for a piece of a larger tensor, the logical index of its first element and the number
            of elements of the whole; 0 and 0 for a whole tensor.
        layout: 0 where element k has the logical index index_base + k; else the address of int64 values
            [ndim, sizes.., strides..]: dimensions in the order of memory (slowest first), and the step of the logical
            index in the whole tensor along each; index_base is then the logical index of the piece's first element.

    Statistics are over finite elements: without any, mean, min and max are NaN and the norms 0. Min and max tell no
    sign of a zero. Sums are taken in float64 over fixed blocks in the order of memory. Sample slots that the piece does
    not hold, or that the tensor is too small for, are NaN.

    threads: at most so many, the caller's among them; results do not depend on it, and small calls use one. They end
    before the call returns. NumPy uses one.

    Raises ValueError for an unknown op or dtype, a row out of range, or a layout that does not fit; rows of the jobs
    before it may have been written. The caller keeps the memory behind the addresses alive.
    """
    if _measure_c is not None:
        _measure_c(jobs, rows, threads)
    else:
        measure_numpy(jobs, rows)


def measure_array(array: NDArray[Any]) -> np.void:
    """Return the ROW of a NumPy array of any shape, its elements in row-major logical order.

    Raises TypeError for a dtype that is neither in DTYPES nor complex (ml_dtypes' names are understood).
    """
    row: np.void = _run(STAT, array)[0]
    return row


def fingerprint(array: NDArray[Any]) -> int:
    """Return the fingerprint of a NumPy array, as an unsigned number: f"{fingerprint(a):016x}" is how it is shown.

    >>> f"{fingerprint(np.array([1.5, 0, -2])):016x}"
    '935295236a2712c0'
    """
    return int(_run(HASH, array)["fingerprint"][0]) & MASK


def kernel_name() -> str:
    """Return "c" or "numpy": what measures in this process."""
    return "numpy" if _measure_c is None else "c"


def _run(op: int, array: NDArray[Any]) -> NDArray[np.void]:
    flat = np.ascontiguousarray(array).reshape(-1)
    if not flat.dtype.isnative:
        flat = flat.astype(flat.dtype.newbyteorder("="))
    if flat.dtype.kind == "c":
        flat = flat.view(flat.real.dtype)
    job = np.zeros(1, dtype=JOB)
    job["op"], job["dtype"] = op, code_of(flat.dtype.name)
    job["a"], job["numel"] = flat.ctypes.data, flat.size
    rows = np.zeros(1, dtype=ROW)
    measure(job, rows)
    return rows


__all__ = [
    "COPY",
    "DTYPES",
    "HASH",
    "JOB",
    "ROW",
    "STAT",
    "UPDATE",
    "fingerprint",
    "kernel_name",
    "measure",
    "measure_array",
    "sample_indices",
]
