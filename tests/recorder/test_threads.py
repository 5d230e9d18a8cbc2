"""Several threads that train at once are recorded into one run."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import optrace
from optrace.recorder.session import Session, StoppedAfter
from optrace.recorder.settings import Settings
from optrace.recorder.steps import Track

REPETITIONS, ROUNDS = 2, 10


@pytest.fixture(autouse=True)
def _switching_often() -> Iterator[None]:
    interval, threads = sys.getswitchinterval(), torch.get_num_threads()
    sys.setswitchinterval(1e-4)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    sys.setswitchinterval(interval)
    optrace.stop()


def at_once(count: int, step: Callable[[torch.optim.Optimizer], None]) -> None:
    """Make one optimizer in each of several threads, and call `step` on all of them at the same moment."""
    ready = threading.Barrier(count)

    def train() -> None:
        net = torch.nn.Linear(3, 2)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        net(torch.ones(1, 3)).sum().backward()
        ready.wait()
        step(optimizer)

    threads = [threading.Thread(target=train) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_first_steps_that_are_made_at_once_make_one_run(tmp_path: Path) -> None:
    for number in range(REPETITIONS):
        with optrace.record(tmp_path / f"run{number}", quiet=True) as session:
            at_once(3, lambda optimizer: optimizer.step())
        assert session.failure is None
        trace = optrace.open(tmp_path / f"run{number}")
        assert trace.problems == []
        assert sorted(trace.steps["optimizer"]) == [0, 1, 2]
        assert list((tmp_path / f"run{number}").glob("*rank=*")) == [tmp_path / f"run{number}" / "rank=00000"]


def test_the_last_step_ends_the_program_in_one_thread() -> None:
    sys.setswitchinterval(1e-6)
    steps = Session(Settings(stop_after=1))._steps
    optimizers = [torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1) for _ in range(3)]
    tracks = [steps._new_track(optimizer) for optimizer in optimizers]
    for track in tracks:
        track.completed = 1
    for number in range(5_000):  # long enough to look at that the other threads come meanwhile
        steps._tracks[-number] = tracks[0]
    stopped: list[int] = []
    ready = threading.Barrier(3)

    def stop(track: Track) -> None:
        for number in range(ROUNDS):
            ready.wait()
            steps.stopped = False
            ready.wait()
            try:
                steps._stop_if_done(track)
            except StoppedAfter:
                stopped.append(number)

    threads = [threading.Thread(target=stop, args=(track,)) for track in tracks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stopped == list(range(ROUNDS))
