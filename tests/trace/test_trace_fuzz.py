"""A damaged trace gives one clear sentence or a read with its problems named: no crash, no other exception."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storing import Story

from optrace.errors import TraceError
from optrace.trace.decode import _decode_each, decode
from optrace.trace.reader import open_trace
from optrace.trace.schema import TABLES, arrow_schema

FUZZING = Path(__file__).with_name("fuzzing.py")


def told(folder: Path, state: str) -> Path:
    story = Story(folder, optimizers=2, segment_bytes=30_000 if state == "both" else 2**30)
    story.tell(2)
    story.writer.write_values(
        3, {"0/param/second.weight": ("float32", (2, 10), Story.arrays_of(3, 0)["second.weight", "param"])}
    )
    story.tell(12, first=3)
    if state == "sealed":
        story.writer.close()
    return folder


@pytest.mark.parametrize("state", ["open", "sealed", "both"])
def test_a_damaged_file_never_crashes_the_reader(tmp_path, state):
    told(tmp_path / "run", state)
    command = [sys.executable, FUZZING, tmp_path / "run", tmp_path / "work", "20", "80"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    outcomes = json.loads(result.stdout)
    assert sum(outcomes.values()) == 80
    assert outcomes["error"] > 15 and outcomes["partial"] > 0 and outcomes["whole"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("state", ["open", "sealed", "both"])
def test_many_more_damaged_files_never_crash_the_reader(tmp_path, state, seed):
    told(tmp_path / "run", state)
    command = [sys.executable, FUZZING, tmp_path / "run", tmp_path / "work", str(seed), "200"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]


class Exploding:
    def __reduce__(self):
        return (Path("exploded").write_text, ("code from a file has run",))


def test_no_file_of_a_trace_is_ever_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = told(tmp_path / "run", "sealed")
    bomb = pickle.dumps(Exploding())
    for path in sorted(run.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            path.write_bytes(bomb)
            try:
                trace = open_trace(run)
                for table in (*TABLES, "params"):
                    trace.table(table)
                trace.value(3, "second.weight", "param")
            except TraceError:
                pass
            path.write_bytes(data)
    assert not (tmp_path / "exploded").exists()


def test_an_extension_type_in_a_foreign_file_is_not_built(tmp_path):
    """Arrow can name a Python type to be built on reading; a schema that is not ours is refused before that matters."""
    run = told(tmp_path / "run", "open")
    field = pa.field("a", pa.int64(), metadata={"ARROW:extension:name": "arrow.py_extension_type"})
    with pa.ipc.new_stream(run / "rank=00000" / "steps-00000002.arrows", pa.schema([field])) as out:
        out.write_table(pa.table({"a": [1]}, pa.schema([field])))
    with pytest.raises(TraceError, match="another program"):
        open_trace(run).table("steps")


BATCHES = st.lists(
    st.lists(st.tuples(st.sampled_from(["a", "step", "\u00e9"]), st.text(max_size=3)), max_size=3), max_size=12
)


@settings(max_examples=60, deadline=None)
@given(BATCHES, st.randoms(use_true_random=False), st.booleans())
def test_reading_alike_batches_together_gives_what_reading_one_by_one_gives(batches, chance, damaged):
    schema = arrow_schema("events")
    number = 0
    data = bytearray()
    for batch in batches:
        rows = []
        for kind, text in batch:
            number += 1
            rows.append({"seq": number, "step": number * 3, "kind": kind, "optimizer": -1, "data": text})
        data += pa.RecordBatch.from_pylist(rows, schema).serialize().to_pybytes()
    if damaged and data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    one, other = decode(bytes(data), schema, 0), _decode_each(bytes(data), schema, 0)
    assert one.end == other.end and one.ended == other.ended
    assert one.rows.equals(other.rows)
    if not damaged:
        assert one.end == len(data) and one.rows.num_rows == number
