"""A recorded step against a bare one, in turns, storage included; and other ways to write such statistics down."""

from __future__ import annotations

import gc
import os
import statistics
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

import optrace
from benchmarks.alternatives import ALTERNATIVES, hooked
from benchmarks.figures import Report, Row, spread
from benchmarks.training import ON_CUDA, TRAININGS, Training

GOALS = {
    ("two-layer", "optrace"): 1.35,
    ("cnn-11m", "optrace"): 1.02,
    ("gpt-29m", "optrace"): 1.035,
    ("gpt-124m", "optrace"): 1.07,
    ("gpt-29m", "optrace, hyper-parameters only"): 1.005,
    ("gpt-29m", "optrace, --values grad"): 1.06,
    ("gpt-29m", "optrace, --values full"): 1.15,
}
MICROSECONDS = {("two-layer", "optrace"): 120.0}
"""Goals for the time that recording adds to a step."""

Around = Callable[[Training, Path], AbstractContextManager[Any]]


@contextmanager
def _bare(training: Training, folder: Path) -> Any:
    yield


def _recorded(**settings: Any) -> Around:
    @contextmanager
    def around(training: Training, folder: Path) -> Any:
        with optrace.record(folder, quiet=True, **settings) as session:
            yield session

    return around


def _written(write: Callable[..., Any]) -> Around:
    @contextmanager
    def around(training: Training, folder: Path) -> Any:
        remove = hooked(write, training.optimizer)
        yield
        remove()

    return around


@contextmanager
def _only_written(training: Training, folder: Path) -> Any:
    """Nothing is measured: as many bytes as a recorded step has go to as many files, each by one write(2)."""
    with optrace.record(folder, quiet=True) as session:
        for _ in range(8):
            training.step()
        tables = session._rank._tables
        before = [table.size for table in tables]
        training.step()
        batches = [bytes(table.size - size) for table, size in zip(tables, before, strict=True)]
    files = [os.open(f"{folder}.{number}", os.O_WRONLY | os.O_CREAT | os.O_APPEND) for number in range(len(batches))]

    def write(*_: Any) -> None:
        for file, batch in zip(files, batches, strict=True):
            os.write(file, batch)

    handle = training.optimizer.register_step_post_hook(write)
    yield
    handle.remove()
    for file in files:
        os.close(file)


def recorded_ways() -> dict[str, Around]:
    """What optrace may be asked to record: a context around a training and the folder of its run."""
    return {
        "optrace": _recorded(),
        "optrace, hyper-parameters only": _recorded(quantities=["group.*"], values="none"),
        "optrace, --values grad": _recorded(values="grad"),
        "optrace, --values full": _recorded(values="full"),
    }


def _ways() -> dict[str, Around]:
    others = {name: _written(write) for name, write in ALTERNATIVES.items()}
    return {"bare": _bare, **recorded_ways(), "as many bytes written, nothing measured": _only_written, **others}


def _times(training: Training, around: Around, folder: Path) -> tuple[list[float], list[float], float | None]:
    """Seconds of each step of one turn, of them those in optrace's step hooks, and the share that the run told."""
    steps, hooks = [], []
    with around(training, folder) as session:
        for _ in range(training.warm):
            training.step()
        if training.wait is not None:
            return *_times_on_device(training, training.wait, session), session and session.price.share
        for _ in range(training.steps):
            spent = session.price.hooks if session is not None else 0.0
            start = perf_counter()
            training.step()
            steps.append(perf_counter() - start)
            if session is not None:
                hooks.append(session.price.hooks - spent)
    return steps, hooks, session and session.price.share


def _times_on_device(training: Training, wait: Callable[[], None], session: Any) -> tuple[list[float], list[float]]:
    """The same where steps go on while a device works: the mean over all, from rest to rest."""
    wait()
    spent = session.price.hooks if session is not None else 0.0
    start = perf_counter()
    for _ in range(training.steps):
        training.step()
    wait()
    step = (perf_counter() - start) / training.steps
    return [step], [(session.price.hooks - spent) / training.steps] if session is not None else []


def _case(name: str, ways: dict[str, Around], rounds: int, report: Report) -> None:
    training = (TRAININGS | ON_CUDA)[name]()
    for _ in range(2 * training.warm + 1):
        training.step()
    ratios: dict[str, list[float]] = {way: [] for way in ways}
    means: dict[str, list[float]] = {way: [] for way in ways}
    added: dict[str, list[float]] = {way: [] for way in ways}
    inside: dict[str, list[float]] = {way: [] for way in ways}
    told: dict[str, list[float]] = {way: [] for way in ways}
    bare_times = []
    for _ in range(rounds):
        bare_steps = _times(training, _bare, Path())[0]
        bare_times.append(statistics.median(bare_steps))
        for way, around in ways.items():
            with tempfile.TemporaryDirectory(prefix="optrace-bench-") as folder:
                steps, hooks, share = _times(training, around, Path(folder) / "run")
            gc.collect()
            # a bare turn on both sides of each other turn: what the machine does meanwhile weighs on both
            after = _times(training, _bare, Path())[0]
            both = (statistics.median(bare_steps) + statistics.median(after)) / 2
            means[way].append(statistics.fmean(steps) / statistics.fmean([*bare_steps, *after]))
            bare_steps = after
            now = statistics.median(steps)
            ratios[way].append(now / both)
            added[way].append(1e6 * (now - both))
            if hooks:
                inside[way].append(1 + statistics.median(hooks) / both)
            if share is not None:
                told[way].append(1 + share)
    for way in ways:
        ratio, extra = spread(ratios[way]), spread(added[way])
        mean = spread(means[way])
        cells = {
            "step / bare step": ratio.text(),
            "the same of means": mean.text(),
            "added, microseconds": extra.text(0),
        }
        numbers: dict[str, Any] = {"ratio": ratio.__dict__, "mean": mean.__dict__, "added_us": extra.__dict__}
        if inside[way]:
            hook = spread(inside[way])
            cells["1 + hooks / bare step"] = hook.text()
            numbers["hooks"] = hook.__dict__
        if told[way]:
            said = spread(told[way])
            cells["1 + share told by the run"] = said.text()
            numbers["told"] = said.__dict__
        if way == "bare":
            cells["bare step, ms"] = spread([1000 * t for t in bare_times]).text(2)
            numbers["bare_ms"] = spread([1000 * t for t in bare_times]).__dict__
        goal, most = GOALS.get((name, way)), MICROSECONDS.get((name, way))
        met = None if goal is None else ratio.median <= goal and (most is None or extra.median <= most)
        text = "" if goal is None else f"<= {goal}" + ("" if most is None else f", <= {most:.0f} us")
        report.rows.append(Row(name, way, cells, numbers, text, met))


def cases() -> tuple[str, ...]:
    """What `--only` may name: the trainings, and the ways to record them."""
    return (*TRAININGS, *(ON_CUDA if torch.cuda.is_available() else ()), *_ways())


def run(quick: bool, rounds: int | None, only: tuple[str, ...]) -> Report:
    """Measure; quick leaves out the big models and takes fewer turns."""
    report = Report(
        "record",
        "Time of a training step, forward to scheduler, over that of a bare one; turns of both alternate in one process"
        " and the trace is written to disk. Median of the turns (quartiles), of their median step or of the mean.",
    )
    names = ("two-layer", "gpt-3m") if quick else ("two-layer", "two-layer-cosine", "cnn-11m", "gpt-29m", "gpt-124m")
    if torch.cuda.is_available():
        names = (*names, *ON_CUDA)
    ways = _ways()
    known = (*TRAININGS, *ON_CUDA)
    chosen = {way: around for way, around in ways.items() if way in only} or ways
    for name in [name for name in only if name in known] or names:
        _case(name, chosen, rounds or (5 if quick else 9), report)
    return report
