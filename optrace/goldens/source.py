"""Makes a golden readable like a recorded run, so that a diff can compare with it: `golden:sgd/nesterov`, or a file."""

from __future__ import annotations

import math
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from optrace.goldens.drive import as_option
from optrace.goldens.format import Golden, Row, read_golden
from optrace.goldens.library import load
from optrace.reference.rule import RULES
from optrace.trace.measure import ROW, measure_array
from optrace.trace.reader import Trace, open_trace
from optrace.trace.writer import Event, RankWriter, RunWriter, TensorLayout

CLASSES = {
    "sgd": "SGD",
    "adam": "Adam",
    "adamw": "AdamW",
    "adamax": "Adamax",
    "nadam": "NAdam",
    "radam": "RAdam",
    "rmsprop": "RMSprop",
    "adagrad": "Adagrad",
    "adadelta": "Adadelta",
    "asgd": "ASGD",
    "rprop": "Rprop",
    "sparseadam": "SparseAdam",
    "adafactor": "Adafactor",
    "muon": "Muon",
    "lbfgs": "LBFGS",
}
"""torch's class names of the rules."""


def open_source(spec: str) -> Trace:
    """Read `golden:NAME`, or a CSV or safetensors file in golden format, as a trace with whole values.

    Raises:
        GoldenError: there is no such golden, or the file is none.
    """
    golden = load(spec) if spec.startswith("golden:") else read_golden(Path(spec))
    folder = Path(tempfile.mkdtemp(prefix="optrace-golden-"))
    try:
        write_as_run(golden, folder / "run")
        trace = open_trace(folder / "run")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(trace, shutil.rmtree, folder, ignore_errors=True)
    return trace


def write_as_run(golden: Golden, folder: Path) -> None:
    """Write a golden as a run of one optimizer, `--values full`; one of a schedule holds nothing but groups."""
    RunWriter.create(folder, {"run": golden.name, "golden": golden.name, "made_with": golden.notes.get("made_with")})
    rank = folder / "rank=00000"
    rank.mkdir()
    writer = RankWriter(rank)
    name = golden.notes.get("optimizer_class") or CLASSES.get(golden.rule, "SGD")
    module = golden.notes.get("optimizer_module", "torch.optim")
    writer.write_rank({"optimizers": [{"index": 0, "class": name, "module": module}]})
    writer.write_params(_params(golden, name))
    if _of_optimizer(golden):
        _write_optimizer(golden, writer)
    else:
        _write_schedule(golden, writer)
    writer.close(end="clean")


def _of_optimizer(golden: Golden) -> bool:
    """Whether it has parameters: a rule of ours, or an optimizer of a user's own; else it is a schedule's."""
    return golden.rule in RULES or bool(golden.rows_at(0, "param"))


def _params(golden: Golden, optimizer_class: str) -> list[dict[str, Any]]:
    rows = golden.rows_at(0, "param") if _of_optimizer(golden) else _idle_params(golden, 0)
    counts: dict[int, int] = {}
    found = []
    for row in rows:
        index = counts.get(row.group, 0)
        counts[row.group] = index + 1
        found.append(
            {
                "optimizer": 0,
                "optimizer_class": optimizer_class,
                "group": row.group,
                "index": index,
                "param": row.param,
                "shape": list(row.values.shape),
                "stride": [math.prod(row.values.shape[axis + 1 :]) for axis in range(row.values.ndim)],
                "dtype": golden.dtype,
                "device": "cpu",
                "numel": row.values.size,
                "placement": None,
                "requires_grad": True,
            }
        )
    return found


def _options(groups: list[dict[str, Any]]) -> list[tuple[int, Mapping[str, Any]]]:
    return [(number, {k: as_option(v) for k, v in options.items()}) for number, options in enumerate(groups)]


def _write_optimizer(golden: Golden, writer: RankWriter) -> None:
    options: list[dict[str, Any]] = [dict(group) for group in golden.hyper]
    before = dict(golden.at(0, "param"))
    group_of = {row.param: row.group for row in golden.rows_at(0, "param")}
    states = list(dict.fromkeys(row.quantity for row in golden.rows if row.quantity.startswith("state.")))
    for step in range(golden.steps + 1):
        tensors: list[tuple[Row, bool]] = []
        after = {param: golden.at(step, "param").get(param, values) for param, values in before.items()}
        for row in golden.rows_at(step, "hyper"):
            options[row.group][row.param] = row.values.tolist()
        for param, values in after.items():
            if step:
                grad = golden.at(step, "grad").get(param)
                empty = np.zeros(0, dtype=golden.dtype)
                tensors.append(
                    (Row(step, group_of[param], param, "grad", empty if grad is None else grad), grad is not None)
                )
                with np.errstate(all="ignore"):
                    update = values.astype(np.float64) - before[param].astype(np.float64)
                tensors.append((Row(step, group_of[param], param, "update", update), True))
            tensors.append((Row(step, group_of[param], param, "param", values), True))
            for quantity in states:
                state = golden.at(step, quantity).get(param)
                if state is not None:
                    tensors.append((Row(step, group_of[param], param, quantity, state), True))
        before = after
        _write_step(writer, golden, step, tensors, _options(options) if step else [])


def _write_step(
    writer: RankWriter,
    golden: Golden,
    step: int,
    tensors: list[tuple[Row, bool]],
    groups: list[tuple[int, Mapping[str, Any]]],
) -> None:
    numels = [
        math.prod(golden.at(0, "param")[row.param].shape) if not there else row.values.size for row, there in tensors
    ]
    rows = np.zeros(len(tensors), ROW)
    for number, (row, _) in enumerate(tensors):
        rows[number] = measure_array(row.values)
    layout = TensorLayout(
        0,
        [row.group for row, _ in tensors],
        [row.param for row, _ in tensors],
        [row.quantity for row, _ in tensors],
        [row.values.dtype.name for row, _ in tensors],
        numels,
    )
    present = np.array([there for _, there in tensors], dtype=bool)
    values = {
        f"0/{row.quantity}/{row.param}": (row.values.dtype.name, row.values.shape, np.ascontiguousarray(row.values))
        for row, there in tensors
        if there and row.quantity != "update"
    }
    if values:
        writer.write_values(step, values)
    event = Event(step + 1, step, "step", 0, {}) if step else Event(1, 0, "recorder", 0, {"what": "begin"})
    writer.write_step(
        step,
        0,
        groups=groups,
        tensors=(layout, rows, present) if tensors else None,
        events=[event],
    )


def _write_schedule(golden: Golden, writer: RankWriter) -> None:
    """Step t of the optimizer uses what the schedule left after its step t - 1."""
    options: list[dict[str, Any]] = [dict(group) for group in golden.hyper]
    _write_step(writer, golden, 0, [(row, True) for row in _idle_params(golden, 0)], [])
    for step in range(golden.steps + 1):
        for row in golden.rows_at(step, "hyper"):
            options[row.group][row.param] = row.values.tolist()
        idle = [(row, True) for row in _idle_params(golden, step + 1)]
        _write_step(writer, golden, step + 1, idle, _options(options))


def _idle_params(golden: Golden, step: int) -> list[Row]:
    """A schedule has no parameters: one zero a group stands for them, so that groups and steps can be matched."""
    return [Row(step, n, f"group{n}", "param", np.zeros(1)) for n in range(len(golden.hyper))]
