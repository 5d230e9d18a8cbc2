"""The baseline of a training run: a small trace whose every step today's optimizer must make again from its inputs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import optrace
from optrace.errors import OptraceError
from optrace.testing.judging import hyper_words, listing

PRIVATE = ("host", "pid", "command", "variables", "code")
"""What a stored trace need not tell of the machine that it was made on."""


@dataclass
class RunBaseline:
    """A recorded run, beside the stored trace that it must agree with."""

    trace: optrace.Trace
    path: Path
    eps: float = 4.0
    free_running: bool = False

    def exists(self) -> bool:
        """Whether something is stored."""
        return self.path.is_dir()

    def write(self) -> None:
        """Store a copy of the trace, by rename.

        Raises:
            OptraceError: its steps cannot be made again from their inputs, so that only `free_running` could judge it.
        """
        if not self.free_running:
            trouble = list(_replayed(self.trace, self.trace, self.eps))
            if trouble:
                raise OptraceError(
                    f"its steps cannot be judged one by one: {trouble[0]}; an optimizer that mixes elements or keeps"
                    " state elsewhere than in optimizer.state is compared with check(trace, free_running=True)"
                )
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(
            self.trace.path, temporary, ignore=shutil.ignore_patterns("child-*", "values", ".job", ".launch")
        )
        for file in [temporary / "trace.json", *temporary.glob("rank=*/rank.json")]:
            facts = json.loads(file.read_text(encoding="utf-8"))
            kept = {key: value for key, value in facts.items() if key not in PRIVATE}
            if isinstance(kept.get("settings"), dict):
                kept["settings"]["output"] = None
            file.write_text(json.dumps(kept), encoding="utf-8", newline="\n")
        shutil.rmtree(self.path, ignore_errors=True)
        os.replace(temporary, self.path)

    def changed(self) -> bool:
        """Whether any bit of a passing baseline differs."""
        return not optrace.diff(self.path, self.trace.path).exact.same

    def compare(self, folder: Path) -> str | None:
        """Why the stored run and this one differ; None where they do not."""
        try:
            stored = optrace.open(self.path)
            found = [
                *_hyper(stored, self.trace),
                *_structure(stored, self.trace),
                *_start(stored, self.trace, self.eps),
            ]
            if not self.free_running and not found:
                found += _replayed(stored, self.trace, self.eps)
            report = optrace.diff(self.path, self.trace.path, eps=None if self.eps == 4.0 else self.eps)
        except OptraceError as error:
            return f"the two runs cannot be compared: {error}"
        if self.free_running and not report.tolerance.same and not found:
            found = ["the runs differ beyond tolerance"]
        if not found:
            return None
        lines = [] if report.tolerance.same else str(report).splitlines()
        mode = "free-running" if self.free_running else "each step replayed from its stored inputs"
        return "\n".join([*lines, f"by the numbers, {mode}:", listing(found)])


def _hyper(stored: optrace.Trace, got: optrace.Trace) -> Iterator[str]:
    """Hyper-parameters, exactly, by optimizer, group and key; the first step of each that differs."""
    told: set[tuple[int, int, str]] = set()
    old, new = _options(stored), _options(got)
    own = {quantity.removeprefix("group.") for _, _, quantity in _rows(stored) if quantity.startswith("group.")}
    for step, optimizer, group in sorted(old.keys() & new.keys()):
        before, after = old[step, optimizer, group], new[step, optimizer, group]
        for key in [*before, *(key for key in after if key not in before)]:
            words = hyper_words(key, key in before, before.get(key), key in after, after.get(key))
            if words and key not in own and (optimizer, group, key) not in told:
                told.add((optimizer, group, key))
                yield f"step {step}: the hyper-parameter {key} of group {group} {words}"
    for missing, where in ((old.keys() - new.keys(), "stored and gone now"), (new.keys() - old.keys(), "new")):
        if missing:
            step, optimizer, group = min(missing)
            yield f"step {step} of group {group} of optimizer {optimizer} is {where} ({len(missing)} such rows)"


def _options(trace: optrace.Trace) -> dict[tuple[int, int, int], dict[str, Any]]:
    found: dict[tuple[int, int, int], dict[str, Any]] = {}
    for row in trace.arrow("groups").to_pylist():
        value = {"none": None, "bool": bool(row["number"]) if row["number"] is not None else None}.get(
            row["kind"], row["number"] if row["kind"] in ("int", "float") else row["text"]
        )
        found.setdefault((row["step"], row["optimizer"], row["group"]), {})[row["key"]] = value
    return found


def _structure(stored: optrace.Trace, got: optrace.Trace) -> Iterator[str]:
    """Parameters with shape, dtype and group, and which rows there are."""
    columns = ["optimizer", "optimizer_class", "group", "param", "shape", "dtype"]
    old, new = ({row["param"]: row for row in t.arrow("params").select(columns).to_pylist()} for t in (stored, got))
    for name in [*old, *(n for n in new if n not in old)]:
        if name not in new or name not in old:
            yield f"the parameter {name} is {'stored and gone now' if name in old else 'new and not stored'}"
        elif old[name] != new[name]:
            apart = [
                f"{c} {new[name][c]!r}, stored is {old[name][c]!r}" for c in columns if old[name][c] != new[name][c]
            ]
            yield f"the parameter {name} has {'; '.join(apart)}"
    rows_old, rows_new = _rows(stored), _rows(got)
    for missing, where in ((rows_old - rows_new, "stored and gone now"), (rows_new - rows_old, "new and not stored")):
        by_quantity: dict[tuple[str, str], list[int]] = {}
        for step, param, quantity in missing:
            by_quantity.setdefault((param, quantity), []).append(step)
        for (param, quantity), steps in sorted(by_quantity.items()):
            yield f"{quantity} of {param} is {where} at {len(steps)} steps from {min(steps)}"


def _rows(trace: optrace.Trace) -> set[tuple[int, str, str]]:
    rows = trace.arrow("tensors", columns=["step", "param", "quantity"]).to_pylist()
    return {
        (r["step"], r["param"], r["quantity"]) for r in rows if not r["quantity"].startswith(("param_in", "state_in"))
    }


def _start(stored: optrace.Trace, got: optrace.Trace, eps: float) -> Iterator[str]:
    """Start values, by their samples."""
    old, new = _samples(stored), _samples(got)
    for name in old.keys() & new.keys():
        (a, dtype), (b, _) = old[name], new[name]
        unit = float(np.finfo("float64" if dtype == "float64" else "float32").eps)
        apart = np.abs(a - b) > eps * unit * np.maximum(np.abs(a), np.abs(b))
        if apart.any():
            slot = int(np.argmax(apart))
            yield f"{name} starts from other values: {b[slot]!r}, stored is {a[slot]!r}"


def _samples(trace: optrace.Trace) -> dict[str, tuple[Any, str]]:
    rows = trace.arrow("tensors", step=0, quantity="param", columns=["param", "sample", "dtype"]).to_pylist()
    return {row["param"]: (np.nan_to_num(np.array(row["sample"])), row["dtype"]) for row in rows}


def _replayed(stored: optrace.Trace, got: optrace.Trace, eps: float) -> Iterator[str]:
    """Each optimizer's stored steps, made again by the class that ran today."""
    listed = {entry["index"]: entry for entry in got.rank_info.get("optimizers", [])}
    for index, name in stored.optimizers:
        kind = class_of(str(listed.get(index, {}).get("module", "")), str(listed.get(index, {}).get("class", name)))
        if kind is None:
            yield f"the class {name} of optimizer {index} is no torch optimizer that this process knows"
            continue
        report = optrace.replay(stored, as_class=kind, optimizer=index, tolerance=eps)
        if not report.same:
            yield from str(report).splitlines()


def class_of(module: str, name: str) -> type | None:
    """The subclass of torch's Optimizer that a trace names, among those that this process has."""
    import torch

    waiting: list[type] = [torch.optim.Optimizer]
    found = None
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if kind.__name__ == name and (kind.__module__ == module or found is None):
            found = kind
            if kind.__module__ == module:
                return kind
    return found
