"""What a recorded row must say of a tensor, computed in NumPy from the design's words and nothing of optrace's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
BLOCK = 1 << 20
"""Elements that are mixed at once."""


def dense(tensor: torch.Tensor) -> np.ndarray:
    """The values as a flat array in row-major order: complex as pairs, half precisions as float32, sparse as dense."""
    tensor = tensor.detach()
    if tensor.is_sparse:
        tensor = tensor.coalesce().to_dense()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.float()
    return tensor.reshape(-1).numpy().copy()


def mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def fingerprint(values: np.ndarray) -> int:
    """The sum of the mixed words of all elements that are not all zero bits, as a signed 64-bit number."""
    words = values.view(f"u{values.itemsize}")
    total = np.uint64(0)
    with np.errstate(over="ignore"):
        for start in range(0, len(words), BLOCK):
            part = words[start : start + BLOCK].astype(np.uint64)
            place = np.arange(start + 1, start + 1 + len(part), dtype=np.uint64) * GOLDEN
            total += mix(part + place)[part != 0].sum(dtype=np.uint64)
    return int(total.astype(np.int64))


def sample(values: np.ndarray) -> list[float]:
    n = len(values)
    if n <= 16:
        return [*values.astype(np.float64).tolist(), *[math.nan] * (16 - n)]
    places = [0, n - 1, *[math.floor(((j + 1) * 0.6180339887498949 % 1) * n) for j in range(14)]]
    return [float(values[i]) for i in places]


def measured(values: np.ndarray | None, dtype: str) -> dict[str, Any]:
    """Every column of the table `tensors` for these values; None is a gradient that was not there."""
    if values is None:
        return {"present": False}
    wide = values.astype(np.float64)
    finite = wide[np.isfinite(wide)]
    return {
        "present": True,
        "dtype": dtype,
        "numel": len(values),
        "fingerprint": fingerprint(values),
        "n_nan": int(np.isnan(wide).sum()),
        "n_inf": int(np.isinf(wide).sum()),
        "n_zero": int((wide == 0).sum()),
        "min": float(finite.min()) if len(finite) else math.nan,
        "max": float(finite.max()) if len(finite) else math.nan,
        "l1": float(np.abs(finite).sum()),
        "l2": float(np.sqrt((finite**2).sum())) if np.abs(finite).max(initial=0) < 1e150 else math.hypot(*finite),
        "mean": float(finite.mean()) if len(finite) else math.nan,
        "sample": sample(values),
    }


def measured_tensor(tensor: torch.Tensor | None) -> dict[str, Any]:
    return measured(None, "") if tensor is None else measured(dense(tensor), dtype_of(tensor))


def measured_number(value: float | int | bool) -> dict[str, Any]:
    kind = {bool: "bool", int: "int64"}.get(type(value), "float64")
    return measured(np.array([value], kind), kind)


def measured_update(after: np.ndarray, before: np.ndarray, dtype: str) -> dict[str, Any]:
    """The difference in float64, every NaN of it the same one."""
    with np.errstate(invalid="ignore"):
        change = after.astype(np.float64) - before.astype(np.float64)
    change[np.isnan(change)] = np.nan
    return measured(change, dtype)


def dtype_of(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


EXACT = ("dtype", "numel", "fingerprint", "n_nan", "n_inf", "n_zero", "min", "max", "sample")


def row_errors(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """What of a recorded row is not as expected: all to the bit but sums, which may be taken in any order."""
    if bool(found["present"]) != expected["present"]:
        return [f"present is {found['present']}"]
    if not expected["present"]:
        return []
    wrong = [
        f"{key} is {found[key]!r}, not {expected[key]!r}"
        for key in EXACT
        if not np.array_equal(found[key], expected[key], equal_nan=key in ("min", "max", "sample"))
    ]
    bound = (expected["numel"] + 2) * 2.0**-52
    for key, slack in (
        ("l1", expected["l1"]),
        ("l2", expected["l2"]),
        ("mean", expected["l1"] / max(found["numel"], 1)),
    ):
        both_nan = math.isnan(found[key]) and math.isnan(expected[key])
        if not both_nan and not abs(found[key] - expected[key]) <= bound * slack:
            wrong.append(f"{key} is {found[key]!r}, not {expected[key]!r}")
    return wrong
