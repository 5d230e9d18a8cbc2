"""What the writer hands over to the kernel is what was recorded, and a failed write leaves whole steps only."""

from __future__ import annotations

import gc
import json
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storing import PARAMS, QUANTITIES, Story

from optrace.errors import TraceError
from optrace.trace import writer
from optrace.trace.measure import ROW, kernel, measure_array
from optrace.trace.reader import open_trace
from optrace.trace.schema import COLUMNS, TABLES
from optrace.trace.stream import END_OF_STREAM
from optrace.trace.writer import Event, RankWriter, RunWriter, TensorLayout, TraceFull


def stream(folder: Path, table: str) -> pa.Table:
    """The open segment by plain pyarrow, which raises on a torn batch."""
    with pa.ipc.open_stream(folder / f"{table}-00000001.arrows") as reader:
        return pa.Table.from_batches(list(reader), reader.schema)


def rank_writer(tmp_path: Path, **options) -> RankWriter:
    folder = tmp_path / "rank=00000"
    folder.mkdir()
    return RankWriter(folder, **options)


def test_after_each_step_plain_pyarrow_reads_every_table_to_its_last_row(tmp_path):
    story = Story(tmp_path / "run")
    for step in range(4):
        story.tell_step(step)
        rank = tmp_path / "run" / "rank=00000"
        assert stream(rank, "tensors").num_rows == len(PARAMS) * (1 + len(QUANTITIES) * step)
        assert stream(rank, "events").num_rows == 1 + 3 * step
        if step:
            assert stream(rank, "steps").column("step").to_pylist() == list(range(1, step + 1))


def test_rows_on_disk_are_the_measured_rows_bit_for_bit(tmp_path):
    story = Story(tmp_path / "run").tell(6)
    table = stream(tmp_path / "run" / "rank=00000", "tensors")
    checked = 0
    for row in table.to_pylist():
        array = story.arrays[row["step"], row["optimizer"], row["param"], row["quantity"]]
        assert row["present"] == (array is not None)
        if array is None:
            continue
        expected = measure_array(array)
        for name in ROW.names:
            assert np.array(row[name], expected[name].dtype).tobytes() == expected[name].tobytes(), name
        checked += 1
    assert checked == 4 + 6 * 16 - 2  # two gradients were None


def test_stored_columns_are_the_documented_ones(tmp_path):
    Story(tmp_path / "run").tell(1)
    for table in TABLES:
        schema = stream(tmp_path / "run" / "rank=00000", table).schema
        assert schema.names == [column.name for column in COLUMNS[table]]
        assert [field.nullable for field in schema] == [column.nullable for column in COLUMNS[table]]


OPTIONS = st.dictionaries(
    st.sampled_from(["lr", "momentum", "betas", "fused", "name", "eps"]),
    st.one_of(
        st.floats(),
        st.integers(-(2**70), 2**70),
        st.booleans(),
        st.none(),
        st.text(max_size=5),
        st.tuples(st.floats(), st.floats(allow_nan=False)),
        st.lists(st.integers(0, 3), max_size=2),
    ),
    min_size=1,
)


def flat(options: dict) -> dict:
    """Independent of the writer: what the reader should give for one group."""
    out = {}
    for key, value in options.items():
        if isinstance(value, (tuple, list)) and value:
            out.update({f"{key}.{i}": member for i, member in enumerate(value)})
        elif isinstance(value, list):
            out[key] = "builtins.list"
        else:
            out[key] = value
    return out


def same(a, b) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return np.float64(a).tobytes() == np.float64(b).tobytes() or (math.isnan(a) and math.isnan(b))
    return type(a) is type(b) and a == b


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(OPTIONS, min_size=1, max_size=3), min_size=1, max_size=5))
def test_any_hyper_parameters_come_back_with_value_and_type(tmp_path_factory, history):
    folder = tmp_path_factory.mktemp("run")
    RunWriter.create(folder, {})
    writer = rank_writer(folder)
    for step, groups in enumerate(history, 1):
        writer.write_step(step, 0, groups=list(enumerate(groups)), events=[Event(step, step, "step", 0, {})])
    rows = open_trace(folder).arrow("groups").to_pylist()
    writer.close()
    found: dict = {}
    for row in rows:
        value = {
            "float": lambda r: r["number"],
            "int": lambda r: int(r["text"], 16) if r["text"] else int(r["number"]),
            "bool": lambda r: bool(r["number"]),
            "none": lambda r: None,
            "str": lambda r: r["text"],
            "other": lambda r: r["text"],
        }[row["kind"]](row)
        found.setdefault((row["step"], row["group"]), {})[row["key"]] = value
    for step, groups in enumerate(history, 1):
        for group, options in enumerate(groups):
            expected = {
                key: value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
                for key, value in flat(options).items()
            }
            got = found.get((step, group), {})
            assert list(got) == list(expected)
            assert all(same(got[key], expected[key]) for key in expected), (got, expected)


@pytest.mark.parametrize(
    ("before", "after"),
    [(1, 1.0), (1, True), (0.0, -0.0), (1.0, math.nan), (0, None), ("1", 1), ((0.9, 1), (0.9, 1.0)), (0.5, 0.25)],
)
def test_a_change_that_equality_cannot_see_is_still_recorded(tmp_path, before, after):
    writer = rank_writer(tmp_path)
    for step, value in ((1, before), (2, after), (3, before)):
        writer.write_step(step, 0, groups=[(0, {"x": value, "lr": 0.1})], events=[Event(step, step, "step", 0, {})])
    rows = stream(writer.folder, "groups").to_pylist()
    last = len(rows) // 3
    kinds = [[row["kind"] for row in rows[i * last : (i + 1) * last]] for i in range(3)]
    numbers = [np.array([row["number"] for row in rows[i * last : (i + 1) * last]]).tobytes() for i in range(3)]
    texts = [[row["text"] for row in rows[i * last : (i + 1) * last]] for i in range(3)]
    assert (kinds[0], numbers[0], texts[0]) == (kinds[2], numbers[2], texts[2])
    assert (kinds[0], numbers[0], texts[0]) != (kinds[1], numbers[1], texts[1])
    writer.close()


def test_the_options_are_copied_by_value(tmp_path):
    writer = rank_writer(tmp_path)
    options = {"lr": 0.5}
    writer.write_step(1, 0, groups=[(0, options)], events=[Event(1, 1, "step", 0, {})])
    options["lr"] = 0.25
    writer.write_step(2, 0, groups=[(0, options)], events=[Event(2, 2, "step", 0, {})])
    assert stream(writer.folder, "groups").column("number").to_pylist() == [0.5, 0.25]
    writer.close()


def test_unknown_numbers_of_a_step_are_null_and_known_nan_is_nan(tmp_path):
    writer = rank_writer(tmp_path)
    writer.write_step(1, 0, steps={"loss": math.nan, "batch": 2**64 - 1}, events=[Event(1, 1, "step", 0, {})])
    writer.write_step(2, 0, steps={"loss": None, "n_backward": 3}, events=[Event(2, 2, "step", 0, {})])
    first, second = stream(writer.folder, "steps").to_pylist()
    assert math.isnan(first["loss"]) and first["batch"] == -1 and first["rng"] is None
    assert second["loss"] is None and second["n_backward"] == 3 and second["n_skipped"] == 0
    writer.close()


JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.text(max_size=8), st.dictionaries(st.text(max_size=8), JSON_VALUES, max_size=4)), max_size=8)
)
def test_any_event_comes_back(tmp_path_factory, told):
    folder = tmp_path_factory.mktemp("run")
    RunWriter.create(folder, {})
    writer = rank_writer(folder)
    for start in range(0, len(told), 3):
        events = [Event(start + i, 0, kind, -1, data) for i, (kind, data) in enumerate(told[start : start + 3], 1)]
        writer.write_events(events)
    frame = open_trace(folder).events
    assert list(frame["seq"]) == list(range(1, len(told) + 1))
    assert list(frame["data"]) == [json.loads(json.dumps(data)) for _, data in told]
    assert list(frame["kind"]) == [kind.encode("utf-8", "backslashreplace").decode() for kind, _ in told]
    writer.close()


def test_event_data_is_strict_json_whatever_is_in_it(tmp_path):
    writer = rank_writer(tmp_path)
    data = {"loss": math.nan, "top": [math.inf, -math.inf], "n": np.int64(3), "x": np.float32(0.5), 5: {1}, "o": object}
    writer.write_events([Event(1, 0, "user", -1, data)])
    text = stream(writer.folder, "events").column("data")[0].as_py()

    def refuse(word):
        raise AssertionError(word)

    read = json.loads(text, parse_constant=refuse)
    assert read["loss"] == "nan" and read["top"] == ["inf", "-inf"] and read["n"] == 3 and read["x"] == 0.5
    assert read["5"] == [1] and "object" in read["o"]
    loop: dict = {}
    loop["loop"] = loop
    with pytest.raises(TraceError, match="holds itself"):
        writer.write_events([Event(2, 0, "user", -1, loop)])
    assert stream(writer.folder, "events").num_rows == 1
    writer.close()


def test_trace_json_is_written_once_and_joined_by_all_others(tmp_path):
    start = threading.Barrier(8)
    runs = []

    def create(number: int) -> None:
        start.wait()
        runs.append((number, RunWriter.create(tmp_path / "a" / "run", {"who": number})))

    threads = [threading.Thread(target=create, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first = [(number, run) for number, run in runs if not run.joined]
    assert len(first) == 1
    assert {run.info["who"] for _, run in runs} == {first[0][0]}
    assert json.loads((tmp_path / "a" / "run" / "trace.json").read_text()) == {"format": 1, "who": first[0][0]}
    assert os.listdir(tmp_path / "a" / "run") == ["trace.json"]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(TraceError, match=r"cannot write a trace to .*file/run"):
        RunWriter.create(tmp_path / "file" / "run", {})


def test_a_layout_that_does_not_fit_its_rows_is_refused(tmp_path):
    with pytest.raises(TraceError, match="different lengths"):
        TensorLayout(0, [0], ["a", "b"], ["grad"], ["float32"], [1])
    writer = rank_writer(tmp_path)
    layout = TensorLayout(0, [0], ["a"], ["grad"], ["float32"], [1])
    with pytest.raises(TraceError, match="got rows"):
        writer.write_step(
            1, 0, tensors=(layout, np.zeros(2, ROW), np.ones(2, bool)), events=[Event(1, 1, "step", 0, {})]
        )
    writer.close()


def test_no_thread_is_started_before_a_segment_is_full(tmp_path):
    before = threading.active_count()
    story = Story(tmp_path / "run").tell(50)
    assert threading.active_count() == before
    story.writer.close()
    assert threading.active_count() == before


def test_a_forked_child_writes_nothing_into_its_parents_files(tmp_path):
    story = Story(tmp_path / "run").tell(3)
    rank = tmp_path / "run" / "rank=00000"
    sizes = {path.name: path.stat().st_size for path in rank.iterdir()}
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            try:
                story.tell_step(4)
            except TraceError as error:
                assert "forked" in str(error)
                story.writer.close()
                status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert {path.name: path.stat().st_size for path in rank.iterdir()} == sizes
    story.tell(5, first=4).writer.close()
    assert open_trace(tmp_path / "run").last_step() == 5


def test_a_signal_handler_may_write_events_amid_a_step(tmp_path):
    story = Story(tmp_path / "run").tell(1)
    layout = story.layout(0, QUANTITIES)
    seen = []

    class Interrupting(dict):
        def get(self, name, default=None):  # what a handler would do, at a moment of its own choosing
            if not seen:
                seen.append(1)
                story.writer.write_events([Event(100, 1, "state_dict", 0, {})])
                with pytest.raises(TraceError, match="signal handler"):
                    story.writer.write_step(9, 0, events=[Event(101, 9, "step", 0, {})])
            return super().get(name, default)

    rows, present = np.zeros(len(layout), ROW), np.ones(len(layout), bool)
    events = [Event(99, 2, "step", 0, {})]
    story.writer.write_step(2, 0, tensors=(layout, rows, present), steps=Interrupting(loss=1.0), events=events)
    story.writer.close()
    frame = open_trace(tmp_path / "run").events
    assert list(frame["seq"])[-2:] == [99, 100]


def test_threads_may_write_at_the_same_time(tmp_path):
    story = Story(tmp_path / "run", optimizers=2)
    counter = iter(range(1, 10_000))

    def steps(optimizer: int) -> None:
        for step in range(1, 200):
            seq = next(counter)
            story.writer.write_step(
                step,
                optimizer,
                groups=[(0, {"lr": step / 7})],
                steps={"loss": step},
                events=[Event(seq, step, "step", optimizer, {})],
            )

    threads = [threading.Thread(target=steps, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    story.writer.close()
    trace = open_trace(tmp_path / "run")
    for optimizer in range(2):
        assert list(trace.table("groups", optimizer=optimizer)["lr"]) == [step / 7 for step in range(1, 200)]
    assert trace.problems == []


def test_max_bytes_stops_with_whole_steps_on_disk(tmp_path):
    story = Story(tmp_path / "run", max_bytes=60_000)
    with pytest.raises(TraceFull, match="--max-size"):
        story.tell(100)
    told = max(step for step, _ in story.steps)
    assert sum(path.stat().st_size for path in (tmp_path / "run" / "rank=00000").glob("*-*")) <= 60_000
    with pytest.raises(TraceFull):
        story.writer.write_values(3, {"0/param/x": ("float64", (8000,), np.zeros(8000))})
    story.writer.close("error: full")
    trace = open_trace(tmp_path / "run")
    assert trace.problems == []
    assert trace.last_step() == told - 1
    assert trace.tensors["step"].max() == told - 1 == trace.groups["step"].max() == trace.steps["step"].max()
    assert trace.rank_info["end"] == "error: full"


def test_a_read_only_folder_is_an_error_and_leaves_nothing():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)
        pid = os.fork()
        if pid == 0:  # root may write anywhere, so the attempt is made by nobody
            status = 1
            try:
                if os.getuid() == 0:
                    os.setuid(65534)
                writer = RankWriter(folder)
                with pytest.raises(PermissionError):
                    writer.write_step(1, 0, events=[Event(1, 1, "step", 0, {})])
                with pytest.raises(PermissionError):
                    writer.write_rank({})
                with pytest.raises(TraceError, match=r"cannot write a trace to .*: Permission denied"):
                    RunWriter.create(folder / "run", {})
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        assert os.listdir(folder) == []
        folder.chmod(0o700)


FULL_DISK = """
import resource, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from storing import Story
story = Story(Path({run!r})).tell(2)
limit = {limit}
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
try:
    story.tell(10_000, first=3)
except OSError as error:
    print("errno", error.errno, "at", max(step for step, _ in story.steps))
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        story.writer.close("error: disk full")
"""


@pytest.mark.parametrize("limit", [30_000, 30_001, 31_234, 50_000, 54_321])
def test_a_file_that_may_not_grow_keeps_every_finished_step(tmp_path, limit):
    program = FULL_DISK.format(tests=str(Path(__file__).parent), run=str(tmp_path / "run"), limit=limit)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    words = result.stdout.split()
    assert words[:2] == ["errno", "27"], result
    trace = open_trace(tmp_path / "run")
    last = int(words[3]) - 1
    assert trace.last_step() == last > 2
    assert trace.problems == []
    assert len(trace.tensors) == len(PARAMS) * (1 + last * len(QUANTITIES))
    assert trace.verify() == []


def test_a_full_disk_keeps_every_finished_step(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    try:
        program = FULL_DISK.format(tests=str(Path(__file__).parent), run=str(disk / "run"), limit=0)
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        words = result.stdout.split()
        assert words[:2] == ["errno", "28"], result
        trace = open_trace(disk / "run")
        last = int(words[3]) - 1
        assert trace.last_step() == last > 2
        assert trace.problems == []
        assert len(trace.tensors) == len(PARAMS) * (1 + last * len(QUANTITIES))
    finally:
        subprocess.run(["umount", disk], check=True)


def test_the_signal_of_a_file_that_may_not_grow_is_pythons_business():
    """The tests above rest on it: Python ignores SIGXFSZ, so that write(2) fails instead of killing the process."""
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN
    assert resource.RLIM_INFINITY == resource.getrlimit(resource.RLIMIT_FSIZE)[1]


def test_an_interrupt_amid_a_step_takes_the_whole_step_back(tmp_path):
    story = Story(tmp_path / "run").tell(2)
    layout = story.layout(0, QUANTITIES)

    class Stop(dict):
        def get(self, name, default=None):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        story.writer.write_step(
            3,
            0,
            groups=[(0, {"lr": 1.0})],
            tensors=(layout, np.zeros(len(layout), ROW), np.ones(len(layout), bool)),
            steps=Stop(),
        )
    assert open_trace(tmp_path / "run").problems == []
    story.tell(3, first=3).writer.close()
    assert open_trace(tmp_path / "run").verify() == []


def test_closing_twice_or_writing_after_is_harmless_or_refused(tmp_path):
    story = Story(tmp_path / "run").tell(1)
    story.writer.close()
    story.writer.close("error: too late")
    assert open_trace(tmp_path / "run").rank_info["end"] == "clean"
    with pytest.raises(TraceError, match="closed"):
        story.tell_step(2)


def test_writing_and_sealing_load_neither_pandas_nor_torch(tmp_path):
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "from storing import Story\n"
        f"story = Story(Path({str(tmp_path / 'run')!r})).tell(3)\n"
        "assert 'pyarrow.parquet' not in sys.modules\n"
        "story.writer.close()\n"
        "assert not {'pandas', 'torch', 'pyarrow.dataset'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.skipif(kernel is None, reason="steps are written again by the C kernel alone")
def test_a_step_that_is_laid_out_as_the_last_is_written_byte_for_byte_as_any_other(tmp_path, monkeypatch):
    quick = Story(tmp_path / "quick", optimizers=2).tell(60)
    assert quick.again > 20
    monkeypatch.setattr(writer, "can_stand", lambda: False)
    slow = Story(tmp_path / "slow", optimizers=2).tell(60)
    assert slow.again == 0
    for table in TABLES:
        name = f"rank=00000/{table}-00000001.arrows"
        wanted, found = (tmp_path / "slow" / name).read_bytes(), (tmp_path / "quick" / name).read_bytes()
        assert found[: len(wanted)] == wanted
        assert found[len(wanted) :].rstrip(b"\0") in (
            b"",
            END_OF_STREAM.rstrip(b"\0"),
        )  # room to write, see test_windows.py


@pytest.mark.skipif(kernel is None, reason="steps are written again by the C kernel alone")
def test_what_a_standing_order_does_not_fit_is_written_anew(tmp_path):
    story = Story(tmp_path / "run").tell(20)
    assert story.again
    layout, rows = story.layout(0, QUANTITIES), story._rows[0, QUANTITIES]
    groups, present = story._last_groups[0], np.ones(len(layout), bool)
    event, row = [Event(100, 21, "step", 0, {})], {"n_backward": 1}
    write = story.writer.write_again
    assert not write(21, 0, groups, (layout, rows, present), row, event)  # other arrays
    present = story._present[0, (True,) * len(layout)]
    assert not write(21, 0, groups[:1], (layout, rows, present), row, event)  # other options
    assert not write(21, 0, [], (layout, rows, present), row, event)
    assert not write(21, 0, groups, None, row, event)
    assert not write(21, 1, groups, (layout, rows, present), row, event)  # another optimizer
    story.writer.close()
    assert not write(21, 0, groups, (layout, rows, present), row, event)
    assert open_trace(tmp_path / "run").last_step() == 20


@pytest.mark.skipif(kernel is None, reason="steps are written again by the C kernel alone")
def test_a_disk_that_fills_takes_a_step_written_again_back(tmp_path):
    """The kernel's own write(2) fails amid a step: the tables end with the step before it."""
    found = subprocess.run(
        [sys.executable, "-c", AGAIN_UNTIL_FULL, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        timeout=60,
    )
    assert found.returncode == 0, found.stderr
    last, again = map(int, found.stdout.split())
    assert again > 10
    trace = open_trace(tmp_path / "run")
    assert trace.last_step() == last
    assert trace.tensors["step"].max() == last


AGAIN_UNTIL_FULL = """
import resource, signal, sys
from pathlib import Path
from storing import Story
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
story = Story(Path(sys.argv[1])).tell(60)
size = (Path(sys.argv[1]) / "rank=00000" / "tensors-00000001.arrows").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100_000, resource.RLIM_INFINITY))
step = 60
try:
    while True:
        story.tell_step(step + 1)
        step += 1
except OSError as error:
    print(step, story.again)
"""


@pytest.mark.skipif(kernel is None, reason="steps are written again by the C kernel alone")
def test_rows_of_optimizers_that_step_no_more_are_let_go(tmp_path):
    story = Story(tmp_path / "run", optimizers=70).tell(1)
    layout = weakref.ref(story.layout(0, QUANTITIES))
    story._layouts.clear()
    gc.collect()
    assert layout() is None
    story.tell(3, first=2)
    story.writer.close()
    assert open_trace(tmp_path / "run").last_steps == dict.fromkeys(range(70), 3)
