"""Events are known by their kinds at once, and what they hold is read when it is asked for."""

from __future__ import annotations

import tracemalloc

import pytest

import optrace
from optrace.compare.causes.events import Events
from optrace.trace.writer import Event, RankWriter, RunWriter

STEPS = 150
LONG = "x" * 2000


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    """A run of two optimizers: a backward and a clip before each step of the first, a long note after it."""
    folder = tmp_path_factory.mktemp("events") / "run"
    RunWriter.create(folder, {"command": ["python", "train.py"]})
    (folder / "rank=00000").mkdir()
    writer = RankWriter(folder / "rank=00000")
    writer.write_rank({"rank": 0, "optimizers": [{"index": i, "class": "SGD"} for i in (0, 1)]})
    seq = 0
    for step in range(1, STEPS + 1):
        told = [
            (step - 1, "backward", -1, {}),
            (step - 1, "clip", 0, {"max_norm": float(step)}),
            (step, "step", 1, {}),
            (step, "step", 0, {}),
            (step, "user", -1, {"note": LONG}),
        ]
        events = [Event(seq + n, *one) for n, one in enumerate(told, 1)]
        seq += len(told)
        writer.write_step(step, 0, groups=[(0, {"lr": 0.1})], steps={"n_backward": 1}, events=events)
    writer.close()
    return optrace.open(folder)


def test_what_came_before_a_step_is_told_in_order_with_what_it_holds(trace):
    events = Events(trace, 0)
    mask = events.before_step(0, 3)
    assert events.kinds(mask) == ["user", "backward", "clip", "step"]
    assert [event.data.get("max_norm") for event in events.read(mask)] == [None, None, 3.0, None]
    assert events.kinds(events.before_step(0, 1)) == ["backward", "clip", "step"]
    assert events.kinds(events.before_step(0, STEPS + 1)) == []


def test_steps_are_counted_as_the_other_side_counts_them(trace):
    events = Events(trace, 100)
    assert [event.step for event in events.read(events.before_step(0, 102) & events.of("clip"))] == [101]


def test_of_an_optimizer_and_of_several_kinds(trace):
    events = Events(trace, 0)
    assert events.of("step", optimizer=(1,)).sum() == STEPS
    assert events.of("clip", "backward").sum() == 2 * STEPS
    assert not events.of("unheard").any()


def test_what_events_hold_is_not_kept_in_memory(trace):
    Events(trace, 0)  # what is imported on the way
    tracemalloc.start()
    events = Events(trace, 0)
    assert sum(1 for _ in events.read(events.of("user"))) == STEPS
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept < 100 * len(events.seq) < len(LONG) * STEPS


def test_a_run_without_events_has_none(tmp_path):
    folder = tmp_path / "run"
    RunWriter.create(folder, {"command": ["python"]})
    (folder / "rank=00000").mkdir()
    writer = RankWriter(folder / "rank=00000")
    writer.write_rank({"rank": 0})
    writer.close()
    events = Events(optrace.open(folder), 0)
    assert not events.of("step").any()
    assert list(events.read(events.of("step"))) == []
    assert events.kinds(events.before_step(0, 1)) == []
