"""Writes runs of any size through the trace writer, without training: their norms can be computed again."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from optrace.trace.measure import ROW
from optrace.trace.writer import Event, RankWriter, RunWriter, TensorLayout

QUANTITIES = ("grad", "update", "param", "state.exp_avg", "state.exp_avg_sq")
NUMEL = 4096


def names(params: int) -> list[str]:
    return [f"blocks.{i // 4}.layer{i % 4}.weight" for i in range(params)]


def norms(steps: int, params: int) -> np.ndarray:
    """[steps, quantities, params]: what `write_run` writes as l2."""
    noise = np.random.default_rng(7).standard_normal((steps, len(QUANTITIES), params))
    return 0.01 * np.exp(0.02 * np.cumsum(noise, axis=0))


def write_run(folder: Path, steps: int, params: int, other: tuple[int, int] | None = None) -> Path:
    """A run of an AdamW; with `other` = (step, index) all norms of that parameter are 1 % larger from there on."""
    run = RunWriter.create(folder, {"command": ["synthesized"]})
    (run.folder / "rank=00000").mkdir()
    rank = RankWriter(run.folder / "rank=00000")
    rank.write_rank({"rank": 0, "optimizers": [{"index": 0, "class": "AdamW"}]})
    named = names(params)
    common = {"optimizer": 0, "optimizer_class": "AdamW", "group": 0, "dtype": "float32", "device": "cpu"}
    common |= {"shape": [64, 64], "stride": [64, 1], "numel": NUMEL, "placement": "", "requires_grad": True}
    rank.write_params([{**common, "index": i, "param": name} for i, name in enumerate(named)])
    count = params * len(QUANTITIES)
    quantities = [quantity for quantity in QUANTITIES for _ in named]
    layout = TensorLayout(0, [0] * count, named * len(QUANTITIES), quantities, ["float32"] * count, [NUMEL] * count)
    start = TensorLayout(0, [0] * params, named, ["param"] * params, ["float32"] * params, [NUMEL] * params)
    begin = {"what": "begin", "class": "AdamW", "rows": params}
    rows = np.zeros(count, ROW)
    rows["sample"], rows["fingerprint"] = np.nan, np.arange(count) << 20
    first = rows[:params].copy()
    rank.write_step(0, 0, tensors=(start, first, np.ones(params, bool)), events=[Event(1, 0, "recorder", 0, begin)])
    every, present = norms(steps, params), np.ones(count, bool)
    for step in range(1, steps + 1):
        rows["l2"] = every[step - 1].reshape(-1)
        rows["l1"] = rows["l2"] * 50
        rows["fingerprint"] += 1
        if other is not None and step >= other[0]:
            apart = np.arange(len(QUANTITIES)) * params + other[1]
            rows["l2"][apart] *= 1.01
            if step == other[0]:
                rows["fingerprint"][apart] += 1 << 40
        rank.write_step(
            step,
            0,
            groups=[(0, {"lr": 1e-3 * step / steps, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01})],
            tensors=(layout, rows, present),
            steps={"loss": 1.0 / step, "n_backward": 1, "n_skipped": 0, "seconds": 0.1},
            events=[Event(step + 1, step, "step", 0, {})],
        )
    rank.close("clean")
    return folder
