"""Measures a comparison of two runs of many ranks: `python -m benchmarks.ranks [--ranks 64] [--rows 20000000]`.

The tables are synthesized (as FSDP would shard them, rows with random numbers), not recorded: rows are for all ranks of
one run together. Prints seconds and the largest resident memory of the comparing process.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

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


def main() -> None:
    """Synthesize one run, compare it with itself in a fresh process, print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--compare", nargs="+", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.compare:
        from optrace.compare.run import diff

        started = time.perf_counter()
        report = diff(*asked.compare)
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"same": report.same, "rows": report.extent.rows, "seconds": seconds, "bytes": peak}))
        return
    with tempfile.TemporaryDirectory() as folder:
        steps = max(1, asked.rows // (asked.ranks * PARAMS * len(QUANTITIES)))
        started = time.perf_counter()
        rows = synthesize(Path(folder) / "run_a", asked.ranks, steps)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        print(f"{rows:,} rows of {asked.ranks} ranks, {size / 1e6:,.0f} MB, in {time.perf_counter() - started:.0f} s")
        run = str(Path(folder) / "run_a")
        command = [sys.executable, "-m", "benchmarks.ranks", "--compare", run, run]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(
            f"diff: {found['rows']:,} logical rows, same: {found['same']}, {found['seconds']:.1f} s,"
            f" at most {found['bytes'] / 1e6:,.0f} MB resident"
        )


if __name__ == "__main__":
    main()
