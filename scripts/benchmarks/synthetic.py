"""Traces of any size, written as the recorder writes them, without training."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from optrace.trace.measure import ROW
from optrace.trace.writer import Event, RankWriter, RunWriter, TensorLayout

QUANTITIES = ("grad", "update", "param", "state.exp_avg", "state.exp_avg_sq")


def write_trace(folder: Path, steps: int, params: int, seed: int) -> int:
    """A run of an AdamW-like optimizer with random statistics, all different from step to step; its rows."""
    run = RunWriter.create(folder, {"command": ["bench"]})
    rank_folder = run.folder / "rank=00000"
    rank_folder.mkdir()
    rank = RankWriter(rank_folder)
    rank.write_rank({"rank": 0, "optimizers": [{"index": 0, "class": "AdamW"}]})
    names = [f"blocks.{i // 4}.layer{i % 4}.weight" for i in range(params)]
    rank.write_params(
        [
            {
                "optimizer": 0,
                "optimizer_class": "AdamW",
                "group": 0,
                "index": i,
                "param": name,
                "shape": [64, 64],
                "stride": [64, 1],
                "dtype": "float32",
                "device": "cpu",
                "numel": 4096,
                "placement": "",
                "requires_grad": True,
            }
            for i, name in enumerate(names)
        ]
    )
    count = params * len(QUANTITIES)
    layout = TensorLayout(
        0,
        [0] * count,
        names * len(QUANTITIES),
        [quantity for quantity in QUANTITIES for _ in names],
        ["float32"] * count,
        [4096] * count,
    )
    start = TensorLayout(0, [0] * params, names, ["param"] * params, ["float32"] * params, [4096] * params)
    rng = np.random.default_rng(seed)
    event = {"what": "begin", "class": "AdamW", "rows": params}
    rank.write_step(
        0, 0, tensors=(start, _rows(rng, params), np.ones(params, bool)), events=[Event(1, 0, "recorder", 0, event)]
    )
    options = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
    present = np.ones(count, bool)
    for step in range(1, steps + 1):
        rank.write_step(
            step,
            0,
            groups=[(0, options)],
            tensors=(layout, _rows(rng, count), present),
            steps={"loss": 1.0 / step, "n_backward": 1, "n_skipped": 0, "seconds": 0.1},
            events=[Event(step + 1, step, "step", 0, {})],
        )
    rank.close()
    return steps * count


def _rows(rng: np.random.Generator, count: int) -> np.ndarray:
    rows = np.zeros(count, ROW)
    sample = rng.standard_normal((count, 16)).astype(np.float32)
    rows["sample"] = sample
    rows["mean"], rows["l1"], rows["l2"] = sample.mean(1), np.abs(sample).sum(1), np.sqrt((sample**2).sum(1))
    rows["min"], rows["max"] = sample.min(1), sample.max(1)
    rows["fingerprint"] = rng.integers(-(2**63), 2**63 - 1, count)
    return rows
