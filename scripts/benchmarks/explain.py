"""Finding the cause of a difference, replaying and rebuilding, on the two-layer example with its planted mistake."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import optrace
from benchmarks.figures import Report, Row, spread

_EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "two_layers.py"


def cases() -> tuple[str, ...]:
    """What `--only` may name."""
    return "diff", "replay", "identify", "value", "faults"


def run(quick: bool, rounds: int | None, only: tuple[str, ...]) -> Report:
    """Measure on runs of 200 steps; not quick: of 1,000 steps."""
    steps = 200 if quick else 1000
    report = Report(
        "explain", f"The two-layer example, {steps} steps, torch's SGD against one that averages gradients."
    )
    with tempfile.TemporaryDirectory(prefix="optrace-bench-") as folder:
        paths = {}
        for name, values in (("torch", "sample"), ("mine", "sample"), ("grads", "grad")):
            paths[name] = f"{folder}/{name}"
            script = [str(_EXAMPLE), "torch" if name == "grads" else name, "--steps", str(steps)]
            command = [sys.executable, "-m", "optrace", "record", "-q", "--values", values, "-o", paths[name], *script]
            subprocess.run(command, check=True, capture_output=True)
        at = steps // 2 + 1
        jobs: dict[str, tuple[str, Callable[[], Any]]] = {
            "diff": ("optrace.diff with causes", lambda: optrace.diff(paths["torch"], paths["mine"])),
            "replay": ("optrace.replay", lambda: optrace.replay(paths["torch"])),
            "identify": ("optrace.identify", lambda: optrace.identify(paths["torch"])),
            "value": (
                f"optrace.value at step {at}",
                lambda: optrace.value(paths["grads"], at, "first.weight", "state.momentum_buffer"),
            ),
        }
        for case, (name, job) in jobs.items():
            if only and case not in only:
                continue
            job()
            times = []
            for _ in range(rounds or 5):
                start = perf_counter()
                job()
                times.append(1000 * (perf_counter() - start))
            found = spread(times)
            report.rows.append(Row(f"{steps} steps", name, {"ms": found.text(0)}, {"ms": found.__dict__}))
    if not only or "faults" in only:
        report.rows.append(_faults(quick))
    return report


def _faults(quick: bool) -> Row:
    """How many faults are located and named (quick: of every eighth); `tests/faults/table.py` tells each."""
    from tests.faults.cases import FAULTS
    from tests.faults.table import try_fault

    results = []
    for fault in FAULTS[:: 8 if quick else 1]:
        with tempfile.TemporaryDirectory(prefix="optrace-bench-") as folder:
            results.append(try_fault(fault, Path(folder)))
    n = len(results)
    numbers = {
        "faults": n,
        "located": sum(result.located for result in results),
        "named": sum(result.named for result in results),
        "wrongly_named": sum(result.wrong for result in results),
        "ms": spread([1000 * result.seconds for result in results]).__dict__,
    }
    found = f"{numbers['located']} located, {numbers['named']} named, {numbers['wrongly_named']} wrongly"
    met = numbers["located"] == n and numbers["named"] >= 0.95 * n and not numbers["wrongly_named"]
    goal = "all located, 95 % named, none wrongly"
    return Row(f"{n} faults", "recorded, diffed and explained", {"found": found}, numbers, goal, met)
