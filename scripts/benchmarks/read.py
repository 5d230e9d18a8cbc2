"""A long run of a small model: cost per step while it is written, files on disk, time to open and to read a history."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import optrace
from benchmarks.figures import Report, Row, spread
from benchmarks.training import two_layers_noisy

_OPEN = """
import sys, json
from time import perf_counter
import optrace, pandas, pyarrow.parquet
start = perf_counter()
trace = optrace.open(sys.argv[1])
steps = trace.last_step(0)
opened = perf_counter() - start
start = perf_counter()
rows = trace.table("tensors", param=sys.argv[2], quantity="param", columns=["step", "l2"])
print(json.dumps([opened, perf_counter() - start, steps, len(rows)]))
"""


def cases() -> tuple[str, ...]:
    """What `--only` may name: nothing, all is read from one run."""
    return ()


def run(quick: bool, rounds: int | None, only: tuple[str, ...]) -> Report:
    """Measure 100,000 steps of the two-layer regression; quick: 10,000."""
    count = 10_000 if quick else 100_000
    report = Report(
        "read",
        "The two-layer regression with noisy targets, recorded whole, then opened by another process (imports apart).",
    )
    training = two_layers_noisy()
    with tempfile.TemporaryDirectory(prefix="optrace-bench-") as folder:
        path = Path(folder) / "run"
        hooks, files = [], 0
        with optrace.record(path, quiet=True) as session:
            for number in range(count):
                spent = session.price.hooks
                training.step()
                hooks.append(1e6 * (session.price.hooks - spent))
                if number % 1000 == 0:
                    files = max(files, sum(1 for _ in path.rglob("*")))
            start = perf_counter()
        sealing = perf_counter() - start
        files = max(files, sum(1 for _ in path.rglob("*")))
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        name = str(optrace.open(path).params["param"][0])
        times = []
        for _ in range(rounds or 3):
            command = [sys.executable, "-c", _OPEN, str(path), name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            times.append(json.loads(done.stdout))
        assert times[0][2:] == [count, count + 1], times[0]
    tenth = count // 10
    first, last = statistics.median(hooks[tenth : 2 * tenth]), statistics.median(hooks[-tenth:])
    opened, history = spread([1000 * t[0] for t in times]), spread([1000 * t[1] for t in times])
    case = f"{count:,} steps, {size / 1e6:.0f} MB"
    rows = [
        ("hooks, last tenth / second tenth", f"{last / first:.2f}", last / first, "<= 1.2", last / first <= 1.2),
        ("files and folders, most at one time", str(files), files, "<= 50", files <= 50),
        ("sealing at the end, seconds", f"{sealing:.2f}", sealing, "", None),
        ("open, ms", opened.text(0), opened.median, "< 1000", opened.median < 1000),
        ("history of one parameter, ms", history.text(0), history.median, "< 200", history.median < 200),
    ]
    for what, text, number, goal, met in rows:
        report.rows.append(Row(case, what, {"figure": text}, {"figure": number}, goal, met))
    return report
