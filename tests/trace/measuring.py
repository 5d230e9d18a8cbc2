"""Jobs over NumPy arrays, tensors with every kind of value, and a slow fingerprint, for the tests of measuring."""

from __future__ import annotations

import numpy as np

from optrace.trace import measure as m
from optrace.trace.jobs import ITEMSIZE, NAMES
from optrace.trace.statistics import measure_numpy

LENGTHS = [0, 1, 2, 7, 15, 16, 17, 31, 33, 63, 64, 65, 127, 511, 512, 513, 1025, 32767, 32768, 32769, 65537, 100_000]
FLOATS = [name for name in NAMES if "float" in name]
SPECIAL = {  # +-0, +-inf, quiet and signalling NaNs with payloads, subnormals, the greatest finite value
    "float64": [
        0,
        1 << 63,
        0x7FF << 52,
        0xFFF << 52,
        0x7FF8 << 48,
        0x7FF0000000000001,
        0xFFFDEADBEEF00001,
        1,
        0x7FEFFFFFFFFFFFFF,
        0x800FFFFFFFFFFFFF,
    ],
    "float32": [0, 1 << 31, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFC01234, 1, 0x7F7FFFFF, 0x807FFFFF],
    "float16": [0, 0x8000, 0x7C00, 0xFC00, 0x7E00, 0x7C01, 0xFE12, 1, 0x7BFF, 0x83FF],
    "bfloat16": [0, 0x8000, 0x7F80, 0xFF80, 0x7FC0, 0x7F81, 0xFFC1, 1, 0x7F7F, 0x807F],
}


def raw_dtype(name: str) -> np.dtype:
    """A NumPy dtype with the bits of `name`: itself where NumPy has it, else unsigned."""
    try:
        return np.dtype(name)
    except TypeError:
        return np.dtype(f"u{ITEMSIZE[m.DTYPES[name]]}")


def tensor(name: str, numel: int, seed: int = 0) -> np.ndarray:
    """Random values of a dtype; for floats ordinary ones with zeros, infinities, NaNs and subnormals among them."""
    rng = np.random.default_rng([seed, numel])
    dtype = raw_dtype(name)
    if name == "bool":
        return rng.integers(0, 2, numel).astype(bool)
    bits = rng.integers(0, 256, numel * dtype.itemsize, dtype=np.uint8).view(f"u{dtype.itemsize}")
    if name in ("float64", "float32", "float16"):
        values = rng.standard_normal(numel).astype(dtype).view(bits.dtype)
    elif name == "bfloat16":
        values = (rng.standard_normal(numel).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    else:
        values = np.where(rng.random(numel) < 0.1, 0, bits).astype(bits.dtype)
    if name in SPECIAL and numel > 2:
        where = rng.random(numel) < 0.05
        values[where] = rng.choice(np.array(SPECIAL[name], dtype=bits.dtype), int(where.sum()))
    return values.view(dtype)


def job(
    op: int, name: str, a: np.ndarray, b: np.ndarray | None = None, row: int = 0, row2: int = 0, **fields: int
) -> np.ndarray:
    """One job over flat arrays (their addresses are taken: keep them)."""
    made = np.zeros(1, dtype=m.JOB)
    made["op"], made["dtype"], made["a"], made["numel"] = op, m.DTYPES[name], a.ctypes.data, a.size
    made["b"] = 0 if b is None else b.ctypes.data
    made["row"], made["row2"] = row, row2
    for field, value in fields.items():
        made[field] = value
    return made


def run(jobs: np.ndarray, n_rows: int, threads: int = 1, kernel: str = "chosen") -> np.ndarray:
    """Rows of the jobs, from what `measure` chose or from NumPy."""
    rows = np.zeros(n_rows, dtype=m.ROW)
    if kernel == "numpy":
        measure_numpy(jobs, rows)
    else:
        m.measure(jobs, rows, threads)
    return rows


def slow_fingerprint(words: list[int], indices: list[int] | None = None) -> int:
    """The design's formula in Python integers."""
    total, modulus = 0, 2**64
    for i, w in zip(range(len(words)) if indices is None else indices, words, strict=True):
        if w != 0:
            z = (w + (i + 1) * 0x9E3779B97F4A7C15) % modulus
            z = (z ^ z // 2**30) * 0xBF58476D1CE4E5B9 % modulus
            z = (z ^ z // 2**27) * 0x94D049BB133111EB % modulus
            total += z ^ z // 2**31
    return total % modulus


def sum_bound(numel: int) -> float:
    """Relative error that sums of `numel` float64 terms may show, against the sum of their magnitudes.

    Blocks of 32768 terms in 16 lanes: each term passes at most 2048 + 4 additions in its block and one for each block,
    every one of them wrong by at most 2**-53; 4 more for a square, a root or a quotient.
    """
    return (2048 + 4 + numel // 32768 + 1 + 4) * 2.0**-53


def assert_same_rows(rows: np.ndarray, others: np.ndarray, numel: int) -> None:
    """Everything equal to the bit but mean, l1 and l2, which may differ by what two orders of summation may."""
    for field in ("min", "max", "n_nan", "n_inf", "n_zero", "fingerprint", "sample"):
        assert rows[field].tobytes() == others[field].tobytes(), field
    bound = 2 * sum_bound(numel)
    for row, other in zip(rows, others, strict=True):
        for field in ("l1", "l2"):
            np.testing.assert_allclose(row[field], other[field], rtol=bound, atol=0)
        count = max(numel - row["n_nan"] - row["n_inf"], 1)
        if np.isnan(row["mean"]) or np.isnan(other["mean"]):
            assert np.isnan(row["mean"]) and np.isnan(other["mean"])
        elif np.isfinite(row["l1"]):
            assert abs(row["mean"] - other["mean"]) <= bound * row["l1"] / count
