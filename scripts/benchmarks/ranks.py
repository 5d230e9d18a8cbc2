"""Comparing a run of many ranks with itself: shards are added up on the way, memory must not grow with the rows.

The tables are synthesized (as FSDP would shard them, rows with random numbers), not recorded.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.figures import Report, Row, spread

RANKS = 64
FLAT = 1.25
"""What memory may grow by from 20 to 40 million rows; 2 million fill no stretch of steps, and are no measure of it."""

PARAMS = 100
QUANTITIES = ("param", "grad", "update", "state.exp_avg", "state.exp_avg_sq")
BLOCK = 1000
"""Elements that a rank holds of each tensor."""


def synthesize(folder: Path, ranks: int, steps: int) -> int:
    """Write a run of so many ranks; the rows written."""
    from optrace.trace.measure import ROW
    from optrace.trace.writer import Event, RankWriter, RunWriter, TensorLayout

    RunWriter.create(folder, {"settings": {}})
    names = [f"layers.{number}.weight" for number in range(PARAMS)]
    for rank in range(ranks):
        (folder / f"rank={rank:05d}").mkdir()
        writer = RankWriter(folder / f"rank={rank:05d}")
        writer.write_rank({"distributed": {"world_size": ranks}})
        piece = {"quantities": list(QUANTITIES), "shape": [BLOCK], "offset": [rank * BLOCK], "of": [ranks * BLOCK]}
        writer.write_params(
            [
                {
                    "optimizer": 0,
                    "optimizer_class": "AdamW",
                    "group": 0,
                    "index": number,
                    "param": name,
                    "shape": [ranks * BLOCK],
                    "stride": [1],
                    "dtype": "float32",
                    "device": "cpu",
                    "numel": ranks * BLOCK,
                    "placement": "(Shard(dim=0),)",
                    "requires_grad": True,
                    "pieces": [piece],
                }
                for number, name in enumerate(names)
            ]
        )
        pairs = [(name, quantity) for quantity in QUANTITIES for name in names]
        layout = TensorLayout(
            0,
            group=[0] * len(pairs),
            param=[name for name, _ in pairs],
            quantity=[quantity for _, quantity in pairs],
            dtype=["float32"] * len(pairs),
            numel=[BLOCK] * len(pairs),
        )
        present, generator = np.ones(len(pairs), np.bool_), np.random.default_rng(rank)
        rows = np.zeros(len(pairs), ROW)
        for step in range(1, steps + 1):
            for name in ("mean", "l1", "l2", "min", "max"):
                rows[name] = generator.normal(size=len(pairs))
            rows["fingerprint"] = generator.integers(-(2**62), 2**62, len(pairs))
            rows["sample"] = np.nan
            rows["sample"][:, rank % 16] = rows["mean"]
            taken = {"loss": 1.0, "n_backward": 1, "n_skipped": 0, "seconds": 0.1}
            end = [Event(step, step, "step", 0, {})]
            writer.write_step(
                step, 0, groups=[(0, {"lr": 1e-3})], tensors=(layout, rows, present), steps=taken, events=end
            )
        writer.close("clean")
    return ranks * steps * len(pairs)


_COMPARE = """
import json, resource, sys
from time import perf_counter
from optrace.compare.run import diff
start = perf_counter()
report = diff(sys.argv[1], sys.argv[1])
seconds = perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps([seconds, peak, report.extent.rows, report.same]))
"""


def cases() -> tuple[str, ...]:
    """What `--only` may name: the sizes."""
    return "small", "large", "larger"


def run(quick: bool, rounds: int | None, only: tuple[str, ...]) -> Report:
    """Measure runs of 2, 20 and 40 million rows on 64 ranks; quick: a tenth of the rows on 16."""
    ranks = 16 if quick else RANKS
    report = Report(
        "ranks",
        f"A synthesized run of {ranks} ranks, every tensor sharded over all of them, compared with itself by a process"
        " of its own; rows are those of all ranks together, memory is the whole process.",
    )
    last: tuple[int, float, float] | None = None
    for name, millions in (("small", 2), ("large", 20), ("larger", 40)):
        rows = millions * (100_000 if quick else 1_000_000)
        if only and name not in only:
            continue
        with tempfile.TemporaryDirectory(prefix="optrace-bench-") as folder:
            path = Path(folder) / "run"
            written = synthesize(path, ranks, max(1, rows // (ranks * PARAMS * len(QUANTITIES))))
            found = []
            for _ in range(rounds or (1 if quick else 3)):
                done = subprocess.run(
                    [sys.executable, "-c", _COMPARE, str(path)], check=True, capture_output=True, text=True
                )
                found.append(json.loads(done.stdout.splitlines()[-1]))
        assert all(one[3] for one in found), found
        seconds, memory = spread([one[0] for one in found]), spread([one[1] / 1e6 for one in found])
        cells = {"logical rows": f"{found[0][2]:,}", "seconds": seconds.text(2), "peak MB": memory.text(0)}
        numbers = {"seconds": seconds.__dict__, "peak_mb": memory.__dict__}
        goal, met = "", None
        if last is not None:
            slower = (seconds.median / last[1]) / (written / last[0])
            cells["time / rows, against the size before"] = f"{slower:.2f}"
            if not quick:  # small runs fit in memory whole
                goal, met = "linear", slower <= 1.25
                if name == "larger":
                    goal, met = "linear, memory flat", met and memory.median <= FLAT * last[2]
        report.rows.append(Row(f"{written:,} rows of {ranks} ranks", "optrace.diff", cells, numbers, goal, met))
        last = (written, seconds.median, memory.median)
    return report
