"""Small batches that come quickly are put into mapped parts of the files: nobody can tell but by the time it takes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from storing import PARAMS, QUANTITIES, Story

from optrace.trace.measure import kernel
from optrace.trace.reader import open_trace
from optrace.trace.schema import TABLES
from optrace.trace.stream import END_OF_STREAM
from optrace.trace.tail import StreamTail


@pytest.fixture
def story(tmp_path):
    """A run whose tables are written through windows."""
    told = Story(tmp_path / "run").tell(20)
    if kernel is None or not windows(told):
        pytest.skip("windows need the C kernel and a file system that keeps blocks (ext4, xfs, tmpfs)")
    return told


def windows(story):
    return [stream.table for stream in story.writer._tables if stream.has_window]


def path_of(story, table):
    return story.folder / "rank=00000" / f"{table}-00000001.arrows"


def steps_by_pyarrow(story, table):
    with pa.ipc.open_stream(path_of(story, table)) as reader:
        return [step for batch in reader for step in batch.column("step").to_pylist()]


def test_after_each_step_plain_pyarrow_reads_every_table_to_its_last_row(story):
    through = 0
    for step in range(21, 200):
        story.tell_step(step)
        through += len(windows(story)) == len(TABLES)
        for table in TABLES:
            assert steps_by_pyarrow(story, table)[-1] == step
        with pa.ipc.open_stream(path_of(story, "tensors")) as reader:
            assert sum(batch.num_rows for batch in reader) == len(PARAMS) * (1 + len(QUANTITIES) * step)
    assert through > 100
    trace = open_trace(story.folder)
    assert trace.problems == [] and trace.verify() == []


def test_the_room_that_is_left_goes_when_the_segment_is_closed(story):
    story.tell(100, first=21)
    sizes = {stream.table: stream.size for stream in story.writer._tables}
    assert any(path_of(story, table).stat().st_size > size + 8 for table, size in sizes.items())
    for stream in story.writer._tables:
        path = stream.finish()
        assert path.stat().st_size == sizes[stream.table] + len(END_OF_STREAM)
        assert path.read_bytes().endswith(END_OF_STREAM)


def test_other_batches_and_steps_taken_back_leave_whole_tables(story):
    class Stop(dict):
        def get(self, name, default=None):
            raise KeyboardInterrupt

    layout = story.layout(0, QUANTITIES)
    tensors = (layout, story._rows[0, QUANTITIES], np.ones(len(layout), bool))
    for step in range(21, 60):
        story.tell_step(step)
        if step % 7 == 0:
            story.writer.write_events([story.event(step, "user", name="x" * 50_000 if step % 2 else "short")])
        if step % 10 == 0:
            with pytest.raises(KeyboardInterrupt):
                story.writer.write_step(step + 1, 0, groups=[(0, {"lr": 1.0})], tensors=tensors, steps=Stop())
        assert steps_by_pyarrow(story, "events")[-1] == step
    trace = open_trace(story.folder)
    assert trace.problems == [] and trace.verify() == []
    assert list(trace.steps["step"]) == list(range(1, 60))


def test_a_window_that_has_grown_old_is_left(story):
    """Its pages may have been written to disk since, and would have to be asked for again."""
    time.sleep(1.1)
    story.tell_step(21)
    assert windows(story) == []
    for stream in story.writer._tables:
        assert path_of(story, stream.table).stat().st_size == stream.size
    story.tell(40, first=22)
    assert len(windows(story)) == len(TABLES)
    story.writer.close()
    assert open_trace(story.folder).verify() == []


def test_a_forked_child_leaves_the_windows_of_its_parent_alone(story):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            story.writer.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    story.tell(60, first=21)
    assert windows(story)
    story.writer.close()
    trace = open_trace(story.folder)
    assert trace.problems == [] and trace.last_step() == 60


def test_what_follows_the_mark_is_told_unless_it_is_room(story):
    path = path_of(story, "steps")
    size = next(stream.size for stream in story.writer._tables if stream.table == "steps")
    tail = StreamTail(path, "steps")
    tail.read()
    assert (tail.offset, tail.ended, tail.problem) == (size, False, None)
    story.tell_step(21)
    tail.read()
    assert tail.rows().column("step").to_pylist()[-1] == 21 and tail.problem is None
    with path.open("r+b") as file:  # as if a batch were being put there
        file.seek(tail.offset + 24)
        file.write(b"\x01")
    tail.read()
    assert "steps-00000001.arrows is incomplete or damaged from byte" in tail.problem
    assert tail.rows().column("step").to_pylist()[-1] == 21


WRITE_FOR_EVER = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import numpy as np
from storing import QUANTITIES, Story
from optrace.trace.writer import Event
story = Story(Path({run!r}), segment_bytes=2**40)
writer, layout = story.writer, story.layout(0, QUANTITIES)
rows, present = story._rows[0, QUANTITIES], np.ones(len(layout), bool)
done = np.memmap({done!r}, np.int64, "r+", shape=(2,))
groups = [(0, {{"lr": 0.1}})]
words = rows.view(np.int64).reshape(len(rows), -1)
for step in range(1, 10**7):
    words[:] = step
    event = [Event(step, step, "step", 0, {{}})]
    tensors, row = (layout, rows, present), {{"n_backward": step, "n_skipped": 0}}
    if writer.write_again(step, 0, groups, tensors, row, event):
        done[1] += 1
    else:
        writer.write_step(step, 0, groups=groups, tensors=tensors, steps=row, events=event)
    done[0] = step
"""
"""Each number in a row of `tensors` is the step's, as bits."""


@pytest.mark.skipif(kernel is None, reason="steps are written again by the C kernel alone")
def test_a_reader_beside_the_writer_sees_whole_batches_only_and_a_kill_loses_none(tmp_path):
    done = np.memmap(tmp_path / "done", np.int64, "w+", shape=(2,))
    program = WRITE_FOR_EVER.format(
        tests=str(Path(__file__).parent), run=str(tmp_path / "run"), done=str(tmp_path / "done")
    )
    path = tmp_path / "run" / "rank=00000" / "tensors-00000001.arrows"
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE) as process:
        try:
            while done[0] < 100:
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.01)
            tail, looks = StreamTail(path, "tensors"), 0
            until = time.monotonic() + 1.0
            while time.monotonic() < until:
                before, known = int(done[0]), tail.rows().num_rows
                tail.read()
                fresh = tail.rows().slice(known)
                steps = np.asarray(fresh.column("step"))
                assert (np.asarray(fresh.column("fingerprint")) == steps).all()
                for name in ("mean", "l2", "max"):
                    assert (np.asarray(fresh.column(name)).view(np.int64) == steps).all()
                assert len(steps) == 0 or steps[-1] >= before
                looks += 1
            assert looks > 2
        finally:
            process.send_signal(signal.SIGKILL)
    steps, again = (int(count) for count in done)
    assert again > 0.9 * steps
    trace = open_trace(tmp_path / "run")
    assert trace.last_step() in (steps, steps + 1)
    assert list(trace.steps["n_backward"]) == list(range(1, trace.last_step() + 1))
    assert trace.tensors["step"].max() == trace.last_step()
