"""CPU time of the hooks against that of a bare step, on one thread: for machines that are busy with other work too."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import thread_time
from typing import Any

from benchmarks.figures import Report, Row, spread
from benchmarks.record import GOALS, recorded_ways
from benchmarks.training import TRAININGS, Training
from optrace.recorder.steps import Steps

_STEPS = {"two-layer": 300}


@contextmanager
def _timed() -> Iterator[list[float]]:
    """One number in a list: CPU seconds of this thread in the hooks of optimizers, added up."""
    spent = [0.0]
    kept = {name: getattr(Steps, name) for name in ("before_step", "after_step")}

    def timed(hook: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = thread_time()
            try:
                return hook(*args, **kwargs)
            finally:
                spent[0] += thread_time() - start

        return run

    for name, hook in kept.items():
        setattr(Steps, name, timed(hook))
    try:
        yield spent
    finally:
        for name, hook in kept.items():
            setattr(Steps, name, hook)


def _bare(training: Training, count: int) -> list[float]:
    times = []
    for _ in range(count):
        start = thread_time()
        training.step()
        times.append(thread_time() - start)
    return times


def _case(name: str, count: int, report: Report) -> None:
    training = TRAININGS[name]()
    for _ in range(2):
        training.step()
    first = _bare(training, count)
    for way, around in recorded_ways().items():
        hooks = []
        with tempfile.TemporaryDirectory(prefix="optrace-bench-") as folder, _timed() as spent:
            with around(training, Path(folder) / "run"):
                for _ in range(training.warm + 1):
                    training.step()
                for _ in range(count):
                    spent[0] = 0.0
                    training.step()
                    hooks.append(spent[0])
        last = _bare(training, count)
        bare = spread(first + last)
        first = last
        ratio = spread([1 + seconds / bare.median for seconds in hooks])
        cells = {
            "1 + hooks / bare step": ratio.text(),
            "hooks, ms": spread([1000 * seconds for seconds in hooks]).text(2),
            "bare step, ms": spread([1000 * seconds for seconds in first]).text(1),
        }
        numbers = {"ratio": ratio.__dict__, "hooks_s": spread(hooks).__dict__, "bare_s": bare.__dict__}
        goal = None if name == "two-layer" else GOALS.get((name, way))
        met = None if goal is None else ratio.median <= goal
        report.rows.append(Row(name, way, cells, numbers, "" if goal is None else f"<= {goal}", met))


def cases() -> tuple[str, ...]:
    """What `--only` may name: the trainings."""
    return tuple(TRAININGS)


def run(quick: bool, rounds: int | None, only: tuple[str, ...]) -> Report:
    """Measure; quick leaves out the big models. `rounds` is the number of steps, of all but the two-layer model."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    report = Report(
        "hooks",
        "CPU time in the hooks of the optimizer over that of a bare step, one thread each; what observing backward,"
        " zero_grad and the scheduler costs is not in it, nor is the thread that writes whole values."
        " Median of the steps (quartiles).",
    )
    for name in only or (("two-layer", "gpt-3m") if quick else ("two-layer", "cnn-11m", "gpt-29m", "gpt-124m")):
        _case(name, _STEPS.get(name, rounds or 5), report)
    torch.set_num_threads(threads)
    return report
