"""Comparing two traces of which every row differs, against a pandas merge; two small runs; whole tensors."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import optrace
from benchmarks.figures import Report, Row, spread
from benchmarks.synthetic import QUANTITIES, write_trace

PARAMS = 40

_OPTRACE = """
import optrace.compare.run, pandas, pyarrow.parquet
run = lambda: optrace.compare.run.diff(A, B)
"""
_PANDAS = """
import glob, pandas as pd, numpy as np
KEYS = ["step", "optimizer", "param", "quantity"]
NUMBERS = ["mean", "l1", "l2", "min", "max", "n_nan", "n_inf", "n_zero", "fingerprint"]
def read(run):
    files = sorted(glob.glob(run + "/rank=00000/tensors-*.parquet"))
    return pd.concat([pd.read_parquet(f, columns=KEYS + NUMBERS + ["sample"]) for f in files])
def run():
    both = read(A).merge(read(B), on=KEYS, how="outer", suffixes=("_a", "_b"), indicator=True)
    differ = {n: (both[n + "_a"] - both[n + "_b"]).abs() for n in NUMBERS}
    bits = both["fingerprint_a"] != both["fingerprint_b"]
    a, b = np.stack(both["sample_a"].to_list()), np.stack(both["sample_b"].to_list())
    apart = np.nanmax(np.abs(a - b), axis=1)
    return both.loc[bits, "step"].min(), apart.max(), sum(d.max() for d in differ.values())
"""
_TIMED = """
import sys, json, resource, threading
from time import perf_counter, sleep
A, B = sys.argv[1:3]
{setup}
def rss():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
before = rss()
peak = [before]
def watch():
    while True:
        peak[0] = max(peak[0], rss()); sleep(0.005)
threading.Thread(target=watch, daemon=True).start()
start = perf_counter(); run(); seconds = perf_counter() - start
print(json.dumps([seconds, peak[0] - before]))
"""


def _measured(setup: str, a: Path, b: Path) -> tuple[float, float]:
    """Seconds and peak of memory beyond the imports, in a process of its own."""
    command = [sys.executable, "-c", _TIMED.format(setup=setup), str(a), str(b)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak


def _sizes(folder: Path, rounds: int, sizes: tuple[int, ...], report: Report) -> None:
    last: tuple[int, float, float] | None = None
    for rows in sizes:
        steps = max(rows // (PARAMS * len(QUANTITIES)), 1)
        a, b = folder / f"a{rows}", folder / f"b{rows}"
        write_trace(a, steps, PARAMS, seed=1)
        write_trace(b, steps, PARAMS, seed=2)
        ours, theirs = [], []
        for _ in range(rounds):
            ours.append(_measured(_OPTRACE, a, b))
            if rows <= 2_000_000:
                theirs.append(_measured(_PANDAS, a, b))
        case = f"{rows:,} rows a trace, all different"
        seconds, memory = spread([one[0] for one in ours]), spread([one[1] / 1e6 for one in ours])
        cells = {"seconds": seconds.text(2), "peak MB": memory.text(0)}
        numbers = {"seconds": seconds.__dict__, "peak_mb": memory.__dict__}
        if theirs:
            ratio = spread([p[0] / o[0] for o, p in zip(ours, theirs, strict=True)])
            share = spread([o[1] / p[1] for o, p in zip(ours, theirs, strict=True)])
            cells |= {"pandas' time / ours": ratio.text(2), "memory / pandas'": share.text(2)}
            numbers |= {"speedup": ratio.__dict__, "memory_share": share.__dict__}
            met = ratio.median >= 2.5 and share.median <= 0.5
            report.rows.append(Row(case, "optrace.diff", cells, numbers, ">= 2.5, <= 0.5", met))
            plain = {
                "seconds": spread([t[0] for t in theirs]).text(2),
                "peak MB": spread([t[1] / 1e6 for t in theirs]).text(0),
            }
            report.rows.append(Row(case, "pandas merge", plain, {}))
        else:
            assert last is not None
            grown, times = seconds.median / last[1], rows / last[0]
            cells["time / rows, against the size before"] = f"{grown / times:.2f}"
            met = grown / times <= 1.25 and memory.median <= 1.5 * last[2]
            report.rows.append(Row(case, "optrace.diff", cells, numbers, "linear, memory flat", met))
        last = (rows, seconds.median, memory.median)


def _small(folder: Path, rounds: int, report: Report) -> None:
    """`optrace diff` of demo-sized runs as a command, against importing what it reads with."""
    for name, seed in (("small_a", 1), ("small_b", 2)):
        write_trace(folder / name, 200, 4, seed)
    command = [sys.executable, "-m", "optrace", "diff", str(folder / "small_a"), str(folder / "small_b")]
    imports = [sys.executable, "-c", "import pandas, pyarrow"]
    ratios, seconds = [], []
    for _ in range(rounds + 1):
        times = []
        for what in (command, imports):
            start = perf_counter()
            done = subprocess.run(what, capture_output=True)
            times.append(perf_counter() - start)
            assert done.returncode in (0, 1), done.stderr.decode()
        ratios.append(times[0] / times[1])
        seconds.append(times[0])
    ratio = spread(ratios[1:])
    cells = {"seconds": spread(seconds[1:]).text(2), "time / `import pandas, pyarrow`": ratio.text(2)}
    met = ratio.median <= 1.5
    report.rows.append(Row("two runs of 200 steps", "optrace diff", cells, {"ratio": ratio.__dict__}, "<= 1.5", met))


def cases() -> tuple[str, ...]:
    """What `--only` may name."""
    return "small", "large", "whole"


def run(quick: bool, rounds: int | None, only: tuple[str, ...]) -> Report:
    """Measure; quick takes a tenth of the rows."""
    report = Report(
        "diff",
        "Two sealed traces in which every fingerprint, statistic and sample differs: each measurement is a process of"
        " its own; memory is what it takes beyond its imports. Whole tensors: in turns in one process, in memory.",
    )
    assert optrace.__version__
    with tempfile.TemporaryDirectory(prefix="optrace-bench-") as folder:
        if not only or "small" in only:
            _small(Path(folder), rounds or 5, report)
        if not only or "large" in only:
            sizes = (200_000, 400_000) if quick else (2_000_000, 20_000_000)
            _sizes(Path(folder), rounds or (1 if quick else 3), sizes, report)
    if not only or "whole" in only:
        from benchmarks.whole import compare_whole

        compare_whole(quick, rounds or (3 if quick else 7), report)
    return report
