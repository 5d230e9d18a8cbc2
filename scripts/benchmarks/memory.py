"""Peak memory of a recorded training beyond that of a bare one, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile

from benchmarks.figures import Report, Row, spread
from benchmarks.training import TRAININGS

_TRAIN = """
import json, resource, sys, contextlib
import optrace
from benchmarks.training import TRAININGS
name, folder, values = sys.argv[1:4]
training = TRAININGS[name]()
settings = dict(values=values, quiet=True)
with optrace.record(folder, **settings) if folder else contextlib.nullcontext():
    for _ in range(3):
        training.step()
    while_training = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
params = sum(p.numel() * p.element_size() for g in training.optimizer.param_groups for p in g["params"])
print(json.dumps([while_training * 1024, params]))
"""
SLACK = 64e6
STAGING = 512 * 2**20


def _peak(case: str, folder: str, values: str) -> tuple[float, float]:
    command = [sys.executable, "-c", _TRAIN, case, folder, values]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, params = json.loads(done.stdout.splitlines()[-1])
    return peak, params


def cases() -> tuple[str, ...]:
    """What `--only` may name: the trainings."""
    return tuple(TRAININGS)


def run(quick: bool, rounds: int | None, only: tuple[str, ...]) -> Report:
    """Measure; quick takes the small model only."""
    report = Report("memory", "Peak resident memory of three steps, recorded less bare; a process each.")
    for case in only or (("gpt-3m",) if quick else ("gpt-3m", "cnn-11m", "gpt-29m")):
        for values in ("sample", "grad"):
            extra, params = [], 0.0
            for _ in range(rounds or 3):
                bare, params = _peak(case, "", values)
                with tempfile.TemporaryDirectory(prefix="optrace-bench-") as folder:
                    extra.append(_peak(case, folder + "/run", values)[0] - bare)
            found = spread([one / 1e6 for one in extra])
            allowed = (params + SLACK) / 1e6 + (0 if values == "sample" else (STAGING + params) / 1e6)
            goal = f"<= {allowed:.0f}"
            cells = {"extra MB": found.text(0), "parameters MB": f"{params / 1e6:.0f}"}
            numbers = {"extra_mb": found.__dict__}
            report.rows.append(Row(case, f"--values {values}", cells, numbers, goal, found.median <= allowed))
    return report
