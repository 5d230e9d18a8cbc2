"""JAX and optax: what was told by `run.step(...)` is what was recorded, and torch's rule explains every step."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from client_measure import measured, measured_update, row_errors
from client_runs import PROGRAMS, run

import optrace


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """The trace of the training, and the arrays that were told of, by step/quantity/name."""
    pytest.importorskip("optax")
    folder = tmp_path_factory.mktemp("optax")
    run([sys.executable, PROGRAMS / "optax_training.py"], folder, JAX_PLATFORMS="cpu")
    with np.load(folder / "told.npz") as arrays:
        return optrace.open(folder / "run"), dict(arrays)


def dtype_of(name: str, array: np.ndarray) -> str:
    return "bfloat16" if name == "out" and array.ndim else str(array.dtype)


def test_rows_are_the_arrays_that_optax_was_given_and_made(told):
    trace, arrays = told
    assert trace.problems == [] and trace.verify() == [] and trace.last_step(0) == 5
    rows = {(r["step"], r["quantity"], r["param"]): r for r in trace.tensors.to_dict("records")}
    expected = {}
    for key, array in arrays.items():
        step, quantity, name = key.split("/")
        dtype = dtype_of(name, array)
        if quantity == "before":
            after = arrays[f"{step}/param/{name}"].reshape(-1)
            expected[int(step), "update", name] = measured_update(after, array.reshape(-1), dtype)
            if step == "1":
                expected[0, "param", name] = measured(array.reshape(-1), dtype)
        elif quantity != "loss":
            expected[int(step), quantity, name] = measured(array.reshape(-1), dtype)
    assert set(rows) == set(expected)
    assert {key: errors for key, row in expected.items() if (errors := row_errors(rows[key], row))} == {}
    assert trace.steps["loss"].tolist() == [float(arrays[f"{step}/loss/"]) for step in range(1, 6)]
    shapes = trace.params.set_index("param")["shape"].to_dict()
    assert shapes == {"hidden.bias": (20,), "hidden.kernel": (3, 20), "out": (20,)}
    assert trace.groups["betas.1"].tolist() == [0.999] * 5


def test_the_recorded_steps_are_adamw_but_for_a_bias_correction_in_float32(told):
    trace, arrays = told
    report = optrace.replay(trace)
    assert report.n_steps == 5 and not report.same, "optax takes 1 - beta**t in float32: 1 - 0.999 is 5e-5 off"
    assert optrace.replay(trace, tolerance=64).same
    eps = np.finfo(np.float32).eps
    for step in range(1, 6):
        p, after, first, second = (
            arrays[f"{step}/{quantity}/hidden.kernel"]
            for quantity in ("before", "param", "state.exp_avg", "state.exp_avg_sq")
        )
        first = first / (1 - np.float32(0.9) ** step)
        second = second / (1 - np.float32(0.999) ** step)
        change = -np.float32(0.01) * (first / (np.sqrt(second) + np.float32(1e-8)) + np.float32(0.1) * p)
        assert (np.abs(p + change - after) <= 4 * eps * (np.abs(p) + np.abs(change))).all(), step
