"""Whole tensors written in the background: bounded, in order, nothing dropped, failures told."""

import threading
import time

import numpy as np
import pytest

from optrace.trace.background import BackgroundWriter
from optrace.trace.values import ValuesFile
from optrace.trace.whole import values_files
from optrace.trace.writer import Event, RankWriter, TraceFull


def test_put_waits_for_a_slow_disk_and_nothing_is_dropped():
    writer = BackgroundWriter(limit=100)
    written, returned = [], []

    def slow(number):
        time.sleep(0.005)
        written.append(number)

    for number in range(20):
        writer.put(40, lambda number=number: slow(number), lambda number=number: returned.append(number))
        assert writer.waiting <= 100
    writer.close()
    assert written == returned == list(range(20))
    assert writer.most <= 100
    assert writer.waiting == 0


def test_a_write_beyond_the_limit_goes_through_alone():
    writer = BackgroundWriter(limit=10)
    seen = []
    for size in (5, 1000, 5):
        writer.put(size, lambda: seen.append(writer.waiting), lambda: None)
    writer.close()
    assert seen == [5, 1000, 5]


def test_a_failure_is_raised_by_the_next_call_and_buffers_come_back():
    writer = BackgroundWriter()
    returned = []

    def full():
        raise OSError(28, "No space left on device")

    writer.put(1, full, lambda: returned.append(1))
    with pytest.raises(OSError, match="No space"):
        for _ in range(100):
            writer.put(1, lambda: None, lambda: returned.append(2))
            time.sleep(0.01)
    with pytest.raises(OSError, match="No space"):
        writer.close()
    assert returned[0] == 1
    assert len(returned) >= 2


def test_no_thread_is_started_before_it_is_needed():
    before = threading.active_count()
    BackgroundWriter().close()
    assert threading.active_count() == before


def test_values_written_in_the_background_are_those_handed_over(tmp_path):
    folder = tmp_path / "rank=00000"
    folder.mkdir()
    writer = RankWriter(folder, staging_bytes=1 << 16)
    returned = []
    expected = {}
    for step in range(1, 13):
        array = np.random.default_rng(step).standard_normal((64, 33)).astype(np.float32)
        expected[step] = array.copy()

        def done(array=array, step=step):
            array[:] = np.nan  # the memory may be used again from here on
            returned.append(step)

        writer.write_values(step, {"0/grad/w": ("float32", array.shape, array)}, done)
        writer.write_step(step, 0, events=[Event(step, step, "step", 0, {})])
    writer.close()
    assert returned == list(range(1, 13))
    files = values_files(folder)
    for step, array in expected.items():
        assert ValuesFile(files[step][0]).read("0/grad/w").tobytes() == array.tobytes()


def test_the_bound_on_the_trace_counts_values_that_still_wait(tmp_path):
    folder = tmp_path / "rank=00000"
    folder.mkdir()
    writer = RankWriter(folder, max_bytes=5000)
    array = np.zeros(1000, np.float32)
    writer.write_values(1, {"0/grad/w": ("float32", (1000,), array)}, lambda: None)
    with pytest.raises(TraceFull):
        writer.write_values(2, {"0/grad/w": ("float32", (1000,), array)}, lambda: None)
    writer.close()
    assert list(values_files(folder)) == [1]
