"""What a recorder should have seen, taken by hand: values cloned around `step()`, measured in plain Python."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch

GOLDEN = 0x9E3779B97F4A7C15
MASK = 2**64 - 1


def dense(tensor: torch.Tensor) -> np.ndarray:
    """The values as a flat NumPy array in row-major order, complex numbers as pairs, half precisions as float32."""
    tensor = tensor.detach().cpu()
    if tensor.is_sparse:
        tensor = tensor.to_dense()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    flat = tensor.reshape(-1)
    if tensor.dtype == torch.bfloat16:  # the upper half of a float32
        return (flat.view(torch.int16).numpy().astype(np.uint32) << 16).view(np.float32)
    if tensor.dtype == torch.float16:  # by NumPy: torch's conversion changes the bits of a NaN
        return flat.numpy().astype(np.float32)
    return flat.numpy().copy()


def mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def fingerprint(values: np.ndarray) -> int:
    """The design's formula, one element after the other."""
    words = values.view(f"u{values.itemsize}").tolist()
    total = sum(mix((word + (i + 1) * GOLDEN) & MASK) for i, word in enumerate(words) if word) & MASK
    return total - 2**64 if total >= 2**63 else total


def sample(values: np.ndarray) -> list[float]:
    n = len(values)
    if n <= 16:
        return [*values.astype(np.float64).tolist(), *[math.nan] * (16 - n)]
    places = [0, n - 1, *[math.floor(((j + 1) * 0.6180339887498949 % 1) * n) for j in range(14)]]
    return [float(values[i]) for i in places]


@dataclass
class Row:
    """One expected row of the table `tensors`."""

    values: np.ndarray | None
    dtype: str


def check_row(row: Any, expected: Row, where: str) -> None:
    """Every column of a recorded row, to the bit; sums, which may be taken in any order, within n roundings."""
    values = expected.values
    assert bool(row.present) == (values is not None), where
    if values is None:
        return
    assert row.dtype == expected.dtype, where
    assert row.numel == len(values), where
    assert row.fingerprint == fingerprint(values), where
    floats = [float(v) for v in values]
    finite = [v for v in floats if math.isfinite(v)]
    assert row.n_nan == sum(math.isnan(v) for v in floats), where
    assert row.n_inf == sum(math.isinf(v) for v in floats), where
    assert row.n_zero == sum(v == 0 for v in floats), where
    low, high = (min(finite), max(finite)) if finite else (math.nan, math.nan)
    np.testing.assert_array_equal([row.min, row.max], [low, high], err_msg=where)
    l1 = math.fsum(abs(v) for v in finite)
    bound = (len(finite) + 2) * 2.0**-52
    mean = math.fsum(finite) / len(finite) if finite else math.nan
    np.testing.assert_allclose(row.l1, l1, rtol=bound, atol=0, err_msg=where)
    np.testing.assert_allclose(row.l2, math.hypot(*finite), rtol=bound, atol=0, err_msg=where)
    np.testing.assert_allclose(row.mean, mean, rtol=0, atol=bound * l1 / max(len(finite), 1), err_msg=where)
    np.testing.assert_array_equal(row.sample, sample(values), err_msg=where)


@dataclass
class Capture:
    """Expected rows by (step, param, quantity), and hyper-parameters by (step, group)."""

    rows: dict[tuple[int, str, str], Row] = field(default_factory=dict)
    groups: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict)
    step: int = 0

    def world(self, optimizer: torch.optim.Optimizer, names: dict[int, str]) -> None:
        for param in params_of(optimizer):
            self.put(0, names[id(param)], "param", param)
            self.put_state(0, optimizer, param, names)

    def around(self, optimizer: torch.optim.Optimizer, names: dict[int, str], call: Callable[[], Any]) -> Any:
        """Run one step and note everything around it; gradients are those before it."""
        self.step += 1
        if self.step == 1:
            self.world(optimizer, names)
        for number, group in enumerate(optimizer.param_groups):
            self.groups[self.step, number] = {
                key: value.item() if isinstance(value, torch.Tensor) else value
                for key, value in group.items()
                if key not in ("params", "param_names")
            }
        before = {id(param): param.detach().clone() for param in params_of(optimizer)}
        grads = {id(p): None if p.grad is None else p.grad.detach().clone() for p in params_of(optimizer)}
        result = call()
        for param in params_of(optimizer):
            name = names[id(param)]
            self.put(self.step, name, "grad", grads[id(param)])
            self.put(self.step, name, "param", param)
            old, new = dense(before[id(param)]), dense(param)
            with np.errstate(invalid="ignore"):
                update = new.astype(np.float64) - old.astype(np.float64)
            update[np.isnan(update)] = np.nan
            self.rows[self.step, name, "update"] = Row(update, dtype_of(param))
            self.put_state(self.step, optimizer, param, names)
        return result

    def put(self, step: int, name: str, quantity: str, tensor: torch.Tensor | None) -> None:
        self.rows[step, name, quantity] = Row(None, "") if tensor is None else Row(dense(tensor), dtype_of(tensor))

    def put_state(self, step: int, optimizer: Any, param: torch.Tensor, names: dict[int, str]) -> None:
        for key, value in optimizer.state.get(param, {}).items():
            self.put_value(step, names[id(param)], f"state.{key}", value)

    def put_value(self, step: int, name: str, quantity: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            self.put(step, name, quantity, value)
        elif isinstance(value, list):
            for i, item in enumerate(value):
                self.put_value(step, name, f"{quantity}.{i}", item)
        elif isinstance(value, int):
            self.rows[step, name, quantity] = Row(np.array([value], np.int64), "int64")
        elif isinstance(value, float):
            self.rows[step, name, quantity] = Row(np.array([value], np.float64), "float64")
        else:
            assert value is None, (quantity, value)

    def check(self, tensors: pd.DataFrame, groups: pd.DataFrame) -> None:
        """The recorded tables hold these rows, all of them and no other."""
        found = {(row.step, row.param, row.quantity): row for row in tensors.itertuples(index=False)}
        assert len(found) == len(tensors), "a row comes twice"
        assert set(found) == set(self.rows)
        for key, expected in self.rows.items():
            check_row(found[key], expected, str(key))
        recorded = {(row["step"], row["group"]): row for row in groups.to_dict("records")}
        assert set(recorded) == set(self.groups)
        for where, options in self.groups.items():
            check_options(recorded[where], options, str(where))


def check_options(row: dict[str, Any], options: dict[str, Any], where: str) -> None:
    flat: dict[str, Any] = {}
    for key, value in options.items():
        if isinstance(value, tuple | list):
            flat.update({f"{key}.{i}": item for i, item in enumerate(value)})
        else:
            flat[key] = value
    for key, value in flat.items():
        got = row[key]
        assert (got is None and value is None) or got == value, (where, key, got, value)
    others = set(row) - set(flat) - {"step", "optimizer", "group"}
    assert all(isinstance(row[key], float) and math.isnan(row[key]) for key in others), (where, others)


def params_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def dtype_of(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
