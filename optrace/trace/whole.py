"""One tensor with all its elements, from what a trace stored: a values file, or a sample that covers it."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from optrace.errors import TraceError
from optrace.trace.schema import SAMPLE_SLOTS, VALUES_NAME
from optrace.trace.values import values_folder

if TYPE_CHECKING:
    from optrace.trace.reader import Trace


def values_files(rank: Path) -> dict[int, list[Path]]:
    """Step to its values files, by exact names; empty when the rank has none."""
    folder = values_folder(rank)
    found: dict[int, list[tuple[int, Path]]] = {}
    if folder.is_dir():
        for name in os.listdir(folder):
            match = VALUES_NAME.fullmatch(name)
            if match:
                found.setdefault(int(match[1]), []).append((int(match[2] or 0), folder / name))
    return {step: [path for _, path in sorted(parts)] for step, parts in sorted(found.items())}


def stored_value(trace: Trace, step: int, param: str, quantity: str, optimizer: int) -> npt.NDArray[Any]:
    """What `Trace.value` returns; TraceError when it was not stored."""
    check_step(trace, step, optimizer)
    found = trace.value_in_files(step, param, quantity, optimizer)
    return value_from_row(trace, step, param, quantity, optimizer) if found is None else found


def check_step(trace: Trace, step: int, optimizer: int) -> None:
    """Raise TraceError unless the optimizer has finished that step."""
    if not isinstance(step, int | np.integer):
        raise TraceError(f"step {step!r} is no whole number")
    last = trace.last_step(optimizer)
    if not 0 <= step <= last:
        raise TraceError(f"optimizer {optimizer} of {trace.path} has finished steps 0 to {last}, not {step}")


def value_from_row(trace: Trace, step: int, param: str, quantity: str, optimizer: int) -> npt.NDArray[Any]:
    """The tensor from its row, if the sample holds every element; TraceError if it does not."""
    found = trace.arrow(
        "tensors",
        step=step,
        optimizer=optimizer,
        param=param,
        quantity=quantity,
        columns=["param", "quantity", "dtype", "numel", "present", "n_nan", "sample"],
    ).to_pylist()
    row = next((row for row in found if row["param"] == param and row["quantity"] == quantity), None)
    if row is None:
        rows = trace.arrow("tensors", step=step, optimizer=optimizer, columns=["param", "quantity"])
        raise TraceError(_no_row(rows.to_pylist(), step, param, quantity) + _whose(trace, param, optimizer))
    if not row["present"]:
        raise TraceError(f"{quantity} of {param!r} was None at step {step}: it has no values")
    value = _from_sample(row, _shape(trace, param, optimizer), quantity)
    if value is None:
        mode = "grad" if quantity == "grad" else "full"
        raise TraceError(
            f"{quantity} of {param!r} at step {step} was not stored whole ({row['numel']} elements);"
            f" a recording with --values {mode} --steps {step} would have it"
        )
    return value


def _no_row(rows: list[dict[str, Any]], step: int, param: str, quantity: str) -> str:
    if not rows:
        return f"step {step} has no tensors in this trace; a recording with --steps {step} would have them"
    quantities = sorted({row["quantity"] for row in rows if row["param"] == param})
    if quantities:
        return f"{param!r} has no {quantity!r} at step {step}; it has {', '.join(quantities)}"
    names = list(dict.fromkeys(row["param"] for row in rows))
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"there is no parameter {param!r} at step {step}; there are {shown}"


def _whose(trace: Trace, param: str, optimizer: int) -> str:
    """How to ask for a parameter that other optimizers hold; empty where none does."""
    held = {row.get("optimizer") for row in trace.params_rows() if isinstance(row, dict) and row.get("param") == param}
    others = sorted(index for index in held if isinstance(index, int))
    if not others or optimizer in others:
        return ""
    return f"; {param!r} is of optimizer {others[0]}: give optimizer={others[0]}"


def _shape(trace: Trace, param: str, optimizer: int) -> tuple[int, ...]:
    for row in trace.params_rows():
        if isinstance(row, dict) and (row.get("optimizer"), row.get("param")) == (optimizer, param):
            return tuple(row["shape"]) if isinstance(row.get("shape"), list) else ()
    return ()


def _from_sample(row: dict[str, Any], shape: tuple[int, ...], quantity: str) -> npt.NDArray[Any] | None:
    """The tensor when its row's sample holds every element exactly, else None."""
    numel, dtype = row["numel"], row["dtype"]
    sample = np.array(row["sample"], np.float64)
    if not 0 <= numel <= SAMPLE_SLOTS:
        return None
    elements = sample[:numel]
    if np.isnan(elements).all() and row["n_nan"] < numel:
        return None  # recorded with --values none
    if dtype.startswith("complex"):
        part = np.dtype({"complex128": "f8", "complex32": "f2"}.get(dtype, "f4"))
        real = elements.astype(part)
        value: npt.NDArray[Any] = real.view(f"c{2 * part.itemsize}") if part.itemsize > 2 else real
    elif quantity == "update":
        value = elements
    else:
        value = elements.astype(_DTYPES.get(dtype, np.dtype("f4")))
        if value.dtype.kind in "iu" and not (np.abs(elements) < 2**53).all():
            return None
    if quantity.endswith(".step"):
        shape = ()
    fits = math.prod(shape) == len(value)
    value = value.reshape(shape if fits else () if len(value) == 1 else (-1,))
    value.flags.writeable = False
    return value


_DTYPES = {
    name: np.dtype(name)
    for name in ("float64", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool")
}
