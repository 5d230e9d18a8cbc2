"""Sealing: nothing is lost, one of the two files is whole at any moment, and the Parquet is made for selecting."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from storing import PARAMS, Story

from optrace.errors import TraceError
from optrace.trace.reader import open_trace
from optrace.trace.schema import TABLES
from optrace.trace.segments import seal


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if "-0" in path.name)


def frames_equal(one, other) -> None:
    for table in (*TABLES, "params"):
        a, b = getattr(one, table), getattr(other, table)
        assert list(a.columns) == list(b.columns)
        assert (a.dtypes == b.dtypes).all(), table
        assert len(a) == len(b)
        for column in a.columns:
            for x, y in zip(a[column], b[column], strict=True):
                if isinstance(x, np.ndarray):
                    assert x.tobytes() == y.tobytes()
                else:
                    assert type(x) is type(y) and (x is y or x == y or (x != x and y != y)), (table, column, x, y)


@pytest.mark.parametrize("optimizers", [1, 2])
def test_sealed_small_and_large_segments_hold_the_same_as_the_open_stream(tmp_path, optimizers):
    still_open = Story(tmp_path / "open", optimizers=optimizers).tell(30)
    whole = Story(tmp_path / "whole", optimizers=optimizers).tell(30)
    whole.writer.close()
    many = Story(tmp_path / "many", optimizers=optimizers, segment_bytes=20_000).tell(30)
    many.writer.close()
    rank = "rank=00000"
    assert names(tmp_path / "open" / rank) == [f"{table}-00000001.arrows" for table in sorted(TABLES)]
    assert names(tmp_path / "whole" / rank) == [f"{table}-00000001.parquet" for table in sorted(TABLES)]
    sealed = names(tmp_path / "many" / rank)
    assert all(name.endswith(".parquet") for name in sealed)
    assert "tensors-00000005.parquet" in sealed and "groups-00000002.parquet" in sealed
    reference = open_trace(tmp_path / "open")
    for folder in ("whole", "many"):
        trace = open_trace(tmp_path / folder)
        frames_equal(reference, trace)
        assert trace.problems == [] == trace.verify()
    still_open.writer.close()


def test_segments_are_sealed_in_the_background_while_steps_go_on(tmp_path):
    story = Story(tmp_path / "run", segment_bytes=30_000).tell(40)
    rank = tmp_path / "run" / "rank=00000"
    deadline = time.monotonic() + 30
    while not (rank / "tensors-00000002.parquet").exists() or (rank / "tensors-00000002.arrows").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    story.tell(60, first=41)
    trace = open_trace(tmp_path / "run")
    assert trace.last_step() == 60
    assert len(trace.tensors) == len(PARAMS) * (1 + 60 * 4)
    story.writer.close()


def test_a_sealed_segment_is_sorted_checksummed_and_free_of_dictionaries(tmp_path):
    Story(tmp_path / "run").tell(20).writer.close()
    path = tmp_path / "run" / "rank=00000" / "tensors-00000001.parquet"
    rows = pq.read_table(path).to_pylist()
    keys = [(row["optimizer"], row["param"].encode(), row["quantity"].encode(), row["step"]) for row in rows]
    assert keys == sorted(keys)
    file = pq.ParquetFile(path)
    assert str(file.schema_arrow.field("param").type) == "string"
    group = file.metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert {column.compression for column in columns.values()} == {"ZSTD"}
    for name in ("mean", "l2", "sample.list.element"):
        assert "BYTE_STREAM_SPLIT" in columns[name].encodings
    for name in ("step", "optimizer", "param", "quantity"):
        assert columns[name].statistics.has_min_max
    data = bytearray(path.read_bytes())
    at = columns["l2"].data_page_offset + columns["l2"].total_compressed_size // 2
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(TraceError, match="damaged"):
        open_trace(tmp_path / "run").arrow("tensors")


def test_the_parquet_is_used_when_both_files_are_there(tmp_path):
    story = Story(tmp_path / "run").tell(5)
    rank = tmp_path / "run" / "rank=00000"
    streams = {table: (rank / f"{table}-00000001.arrows").read_bytes() for table in TABLES}
    story.writer.close()
    for table, data in streams.items():
        (rank / f"{table}-00000001.arrows").write_bytes(data)
    trace = open_trace(tmp_path / "run")
    assert len(trace.steps) == 5 and len(trace.tensors) == len(PARAMS) * 21
    assert trace.verify() == []


def test_files_of_other_names_are_not_read(tmp_path):
    story = Story(tmp_path / "run").tell(5)
    rank = tmp_path / "run" / "rank=00000"
    data = (rank / "tensors-00000001.arrows").read_bytes()
    for name in (
        "tensors-00000002.arrows.bak",
        "tensors-2.arrows",
        "tensors-00000002.parquet.tmp",
        "xtensors-00000002.arrows",
    ):
        (rank / name).write_bytes(data)
    trace = open_trace(tmp_path / "run")
    assert len(trace.tensors) == len(PARAMS) * 21
    assert trace.problems == []
    story.writer.close()


def test_a_segment_that_cannot_be_sealed_stays_readable_and_is_named(tmp_path):
    story = Story(tmp_path / "run").tell(5)
    rank = tmp_path / "run" / "rank=00000"
    (rank / "tensors-00000001.parquet.tmp").mkdir()
    story.writer.close()
    assert (rank / "tensors-00000001.arrows").exists()
    assert (rank / "events-00000001.parquet").exists()
    trace = open_trace(tmp_path / "run")
    assert len(trace.tensors) == len(PARAMS) * 21
    assert len(trace.problems) == 1 and "could not be sealed: tensors-00000001.arrows" in trace.problems[0]


def test_a_damaged_stream_is_never_sealed(tmp_path):
    story = Story(tmp_path / "run").tell(5)
    rank = tmp_path / "run" / "rank=00000"
    path = rank / "steps-00000001.arrows"
    data = path.read_bytes()
    path.write_bytes(data[:-3])
    with pytest.raises(TraceError, match="incomplete or damaged"):
        seal(path)
    assert path.read_bytes() == data[:-3]
    assert not (rank / "steps-00000001.parquet").exists()
    story.writer.close()


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from storing import Story
story = Story(Path({run!r}), optimizers=2, segment_bytes=40_000)
print("ready", flush=True)
step = 0
while True:
    for optimizer in range(2):
        story.tell_step(step, optimizer)
        os.write(1, b"%d %d\\n" % (optimizer, step))  # the step is finished: from here on it must be on disk
    step += 1
"""


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.13, 0.31, 0.6])
def test_a_killed_process_leaves_every_finished_step(tmp_path, delay):
    program = KILLED.format(tests=str(Path(__file__).parent), run=str(tmp_path / "run"))
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(delay)
        process.kill()
        finished = {0: -1, 1: -1}
        for line in process.stdout.read().splitlines():
            optimizer, step = map(int, line.split())
            finished[optimizer] = step
    trace = open_trace(tmp_path / "run")
    for optimizer, last in finished.items():
        if last < 0:
            continue
        assert last <= trace.last_step(optimizer) <= last + 1
        steps = trace.last_step(optimizer)
        assert len(trace.table("tensors", optimizer=optimizer)) == len(PARAMS) * (1 + 4 * steps)
        assert list(trace.table("steps", optimizer=optimizer)["step"]) == list(range(1, steps + 1))
        assert len(trace.table("groups", optimizer=optimizer)) == 2 * steps
    assert "end" not in trace.rank_info
    assert os.listdir(tmp_path / "run")


def test_cut_anywhere_the_files_give_whole_steps_and_say_what_was_dropped(tmp_path):
    """A kill between or within the four writes of a step, at every byte: the step's rows are dropped, no other's."""
    story = Story(tmp_path / "run").tell(2)
    rank = tmp_path / "run" / "rank=00000"
    before = {table: (rank / f"{table}-00000001.arrows").stat().st_size for table in TABLES}
    story.tell_step(3)
    after = {table: (rank / f"{table}-00000001.arrows").read_bytes() for table in TABLES}
    for position, table in enumerate(TABLES):
        written = len(after[table]) - before[table]
        for kept in sorted({0, 1, 7, 8, 9, written // 2, written - 1}):
            for index, name in enumerate(TABLES):
                size = len(after[name]) if index < position else before[name] + (kept if index == position else 0)
                (rank / f"{name}-00000001.arrows").write_bytes(after[name][:size])
            trace = open_trace(tmp_path / "run")
            assert trace.last_step() == 2
            assert trace.tensors["step"].max() == 2 == trace.steps["step"].max() == trace.groups["step"].max()
            problems = trace.problems
            dropped = [text for text in problems if "was not finished" in text]
            assert len(dropped) == position, problems
            assert any(f"{table}-00000001.arrows is incomplete" in text for text in problems) == (kept > 0)
    for name in TABLES:
        (rank / f"{name}-00000001.arrows").write_bytes(after[name])
    assert open_trace(tmp_path / "run").problems == []
    story.writer.close()


def test_a_missing_segment_is_reported(tmp_path):
    Story(tmp_path / "run", segment_bytes=20_000).tell(30).writer.close()
    (tmp_path / "run" / "rank=00000" / "tensors-00000002.parquet").unlink()
    trace = open_trace(tmp_path / "run")
    assert trace.problems == ["tensors: segment 2 is missing"]
    assert 0 < len(trace.tensors) < len(PARAMS) * (1 + 4 * 30)


def test_a_small_run_closes_quickly(tmp_path):
    """Sealing four small tables must not be felt; the first time includes what pyarrow loads for it."""
    Story(tmp_path / "first").tell(2).writer.close()
    story = Story(tmp_path / "run").tell(200)
    start = time.perf_counter()
    story.writer.close()
    assert time.perf_counter() - start < 1.0


def test_a_run_that_is_deleted_while_it_is_written_ends_in_an_error_not_a_hang(tmp_path):
    story = Story(tmp_path / "run", segment_bytes=20_000).tell(2)
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(OSError, match="No such file"):
        story.tell(40, first=3)
    with pytest.raises(OSError, match=r"rank\.json"):
        story.writer.close()
