"""Several threads that train at once are recorded into one run."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import optrace
from optrace.recorder import living
from optrace.recorder.session import Session, StoppedAfter
from optrace.recorder.settings import Settings
from optrace.recorder.steps import Track

ROUNDS = 20


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


@pytest.mark.parametrize("repetition", range(2))
def test_first_steps_that_are_made_at_once_make_one_run(tmp_path: Path, repetition: int) -> None:
    with optrace.record(tmp_path / "run", quiet=True) as session:
        at_once(4, lambda optimizer: optimizer.step())
    assert session.failure is None
    trace = optrace.open(tmp_path / "run")
    assert trace.problems == []
    assert sorted(trace.steps["optimizer"]) == [0, 1, 2, 3]
    assert list((tmp_path / "run").glob("*rank=*")) == [tmp_path / "run" / "rank=00000"]


def test_the_last_step_ends_the_program_in_one_thread() -> None:
    sys.setswitchinterval(1e-6)
    steps = Session(Settings(stop_after=1))._steps
    optimizers = [torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1) for _ in range(3)]
    tracks = [steps._new_track(optimizer) for optimizer in optimizers]
    for track in tracks:
        track.completed = 1
    for number in range(20_000):  # long enough to look at that the other threads come meanwhile
        steps.by_id[-number] = tracks[0]
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


def test_living_objects_are_found_alike_with_and_without_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(torch.nn.Linear):
        pass

    held = [Own(2, 3), torch.nn.Linear(2, 3), torch.nn.Parameter(torch.ones(2))]
    for base in (torch.nn.Linear, torch.nn.Module, torch.Tensor):
        found = set(map(id, living.living(base)))
        with monkeypatch.context() as patch:
            patch.setattr(living, "kernel", None)
            assert found == set(map(id, living.living(base)))
        assert {id(one) for one in held if isinstance(one, base)} <= found


@pytest.mark.skipif(living.kernel is None, reason="without the C kernel other threads go on meanwhile")
def test_finding_living_objects_disturbs_no_thread_that_makes_tuples() -> None:
    sys.setswitchinterval(1e-6)
    failed: list[BaseException] = []
    done = threading.Event()

    def make() -> None:
        try:
            while not done.is_set():
                tuple(number for number in range(50))
        except SystemError as error:
            failed.append(error)

    threads = [threading.Thread(target=make) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        living.living(torch.nn.Module)
    done.set()
    for thread in threads:
        thread.join()
    assert not failed
