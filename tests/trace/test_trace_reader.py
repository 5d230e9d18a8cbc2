"""What the frames hold, how selections are pushed down, and what is refused in one sentence."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from fnmatch import fnmatchcase

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storing import PARAMS, QUANTITIES, Story

from optrace.errors import TraceError
from optrace.trace import rank
from optrace.trace.measure import measure_array
from optrace.trace.reader import open_trace
from optrace.trace.writer import Event, RankWriter, RunWriter


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    story = Story(tmp_path_factory.mktemp("module") / "run", optimizers=2, segment_bytes=40_000).tell(20)
    yield story
    story.writer.close()


@pytest.fixture(scope="module")
def trace(story):
    return open_trace(story.folder)


def test_frames_have_the_documented_columns_and_types(trace):
    assert {name: str(kind) for name, kind in trace.tensors.dtypes.items()} == {
        "step": "int64", "optimizer": "int64", "group": "int64", "param": "str", "quantity": "str", "dtype": "str",
        "numel": "int64", "present": "bool", "mean": "float64", "l1": "float64", "l2": "float64", "min": "float64",
        "max": "float64", "absmax": "float64", "n_nan": "int64", "n_inf": "int64", "n_zero": "int64",
        "fingerprint": "int64", "sample": "object",
    }  # fmt: skip
    assert {name: str(kind) for name, kind in trace.steps.dtypes.items()} == {
        "step": "int64", "optimizer": "int64", "loss": "float64", "n_backward": "int64", "n_skipped": "int64",
        "grad_norm": "float64", "batch": "Int64", "rng": "Int64", "seconds": "float64",
    }  # fmt: skip
    assert {name: str(kind) for name, kind in trace.events.dtypes.items()} == {
        "seq": "int64", "step": "int64", "kind": "str", "optimizer": "int64", "data": "object",
    }  # fmt: skip
    assert list(trace.params.columns) == [
        "optimizer", "optimizer_class", "group", "index", "param", "shape", "stride", "dtype", "device", "numel",
        "placement", "requires_grad",
    ]  # fmt: skip
    assert list(trace.params["shape"])[:4] == [(10, 1), (10,), (2, 10), ()]
    assert trace.params["placement"][0] is None


def test_tensors_hold_what_was_measured_in_order_of_step_optimizer_param_quantity(story, trace):
    frame = trace.tensors
    assert len(frame) == len(story.arrays)
    keys = list(zip(frame["step"], frame["optimizer"], frame["param"], frame["quantity"], strict=True))
    places = {name: i for i, name in enumerate(PARAMS)}
    order = {"grad": 0, "update": 1, "param": 2, "state.momentum_buffer": 3}
    assert keys == sorted(keys, key=lambda key: (key[0], key[1], places[key[2]], order[key[3]]))
    for row in frame.to_dict("records"):
        array = story.arrays[row["step"], row["optimizer"], row["param"], row["quantity"]]
        assert row["present"] == (array is not None)
        if array is None:
            continue
        expected = measure_array(array)
        for name in ("mean", "l1", "l2", "min", "max", "n_nan", "n_inf", "n_zero", "fingerprint"):
            assert row[name] == expected[name] or (row[name] != row[name] and expected[name] != expected[name])
        assert row["sample"].tobytes() == expected["sample"].tobytes()
        finite = np.abs(array[np.isfinite(array)])
        assert row["absmax"] == finite.max() if finite.size else math.isnan(row["absmax"])


def test_groups_are_wide_with_exact_python_values(story, trace):
    frame = trace.groups
    assert list(frame.columns) == [
        "step", "optimizer", "group", "lr", "momentum", "nesterov",
        "betas.0", "betas.1", "foreach", "name", "weight_decay",
    ]  # fmt: skip
    assert str(frame["lr"].dtype) == "float64" and str(frame["nesterov"].dtype) == "bool"
    assert str(frame["betas.0"].dtype) == "float64"
    for row in frame.to_dict("records"):
        options = story.groups[row["step"], row["optimizer"], row["group"]]
        assert row["lr"] == options["lr"]
        if row["group"] == 0:
            assert math.isnan(row["betas.0"]) and all(
                isinstance(row[name], float) and math.isnan(row[name]) for name in ("foreach", "name", "weight_decay")
            )
        else:
            assert (row["betas.0"], row["betas.1"]) == options["betas"]
            assert row["foreach"] is None and row["name"] == "second"
            assert row["weight_decay"] == 0 and type(row["weight_decay"]) is int


def test_options_of_changing_type_keep_their_type_in_each_row(tmp_path):
    RunWriter.create(tmp_path / "run", {})
    (tmp_path / "run" / "rank=00000").mkdir()
    writer = RankWriter(tmp_path / "run" / "rank=00000")
    values = [1, 1.0, True, None, "a", 2**60, (0.5, 1)]
    for step, value in enumerate(values, 1):
        writer.write_step(step, 0, groups=[(0, {"x": value, "n": step})], events=[Event(step, step, "step", 0, {})])
    frame = open_trace(tmp_path / "run").groups
    assert [(type(x), x) for x in frame["x"][:6]] == [(type(x), x) for x in values[:6]]
    assert math.isnan(frame["x"][6]) and frame["x.0"][6] == 0.5 and frame["x.1"][6] == 1
    assert str(frame["n"].dtype) == "int64"
    writer.close()


def test_steps_and_events_hold_what_was_told(story, trace):
    for row in trace.steps.to_dict("records"):
        told = story.steps[row["step"], row["optimizer"]]
        assert row["loss"] == told["loss"] and row["rng"] == told["rng"] and row["seconds"] == 0.25
        assert row["batch"] == told["batch"] if "batch" in told else pd.isna(row["batch"])
        assert math.isnan(row["grad_norm"])
    events = [(event.seq, event.step, event.kind, event.optimizer, event.data) for event in story.events]
    assert [tuple(row) for row in trace.events.itertuples(index=False)] == events


SELECTIONS = st.fixed_dictionaries(
    {},
    optional={
        "step": st.one_of(
            st.integers(-1, 22),
            st.tuples(st.one_of(st.none(), st.integers(-1, 22)), st.one_of(st.none(), st.integers(-1, 22))),
        ),
        "optimizer": st.integers(0, 2),
        "param": st.sampled_from(
            ["first.*", "first.weight", "*", "sca*", "nothing", "*.b?as", "[fs]*", ["scale", "second.*"]]
        ),
        "quantity": st.sampled_from(["param", "state.*", "grad", "*a*", ["grad", "update"]]),
    },
)


@settings(max_examples=60, deadline=None)
@given(SELECTIONS)
def test_a_selection_gives_the_rows_that_filtering_the_whole_frame_gives(story, selection):
    trace = open_trace(story.folder)
    frame = trace.tensors
    keep = pd.Series(True, index=frame.index)
    if "step" in selection:
        step = selection["step"]
        low, high = (step, step) if isinstance(step, int) else step
        keep &= (frame["step"] >= (-9 if low is None else low)) & (frame["step"] <= (99 if high is None else high))
    if "optimizer" in selection:
        keep &= frame["optimizer"] == selection["optimizer"]
    for name in ("param", "quantity"):
        if name in selection:
            patterns = [selection[name]] if isinstance(selection[name], str) else selection[name]
            keep &= frame[name].map(lambda text, ps=patterns: any(fnmatchcase(text, p) for p in ps)).astype(bool)
    expected = frame[keep].reset_index(drop=True)
    got = trace.table("tensors", **selection)
    pd.testing.assert_frame_equal(got.drop(columns="sample"), expected.drop(columns="sample"))
    assert [a.tobytes() for a in got["sample"]] == [a.tobytes() for a in expected["sample"]]
    columns = ["l2", "absmax", "step"]
    pd.testing.assert_frame_equal(trace.table("tensors", columns=columns, **selection), expected[columns])
    arrow = trace.arrow("tensors", columns=["fingerprint"], **selection)
    assert sorted(arrow.column("fingerprint").to_pylist()) == sorted(expected["fingerprint"])


def test_a_name_with_special_characters_is_found_by_itself(tmp_path):
    from optrace.trace.measure import ROW
    from optrace.trace.writer import TensorLayout

    RunWriter.create(tmp_path / "run", {})
    (tmp_path / "run" / "rank=00000").mkdir()
    writer = RankWriter(tmp_path / "run" / "rank=00000")
    names = ["blocks[0].w", "blocks0.w", "a*b", "ab", "\N{GREEK SMALL LETTER BETA}", "\ud800"]
    layout = TensorLayout(0, [0] * 6, names, ["param"] * 6, ["float32"] * 6, [1] * 6)
    writer.write_step(
        0,
        0,
        tensors=(layout, np.zeros(6, ROW), np.ones(6, bool)),
        events=[Event(1, 0, "recorder", 0, {"what": "begin"})],
    )
    for _ in range(2):  # as an open stream, then sealed
        trace = open_trace(tmp_path / "run")
        for name in names[:5]:
            assert name in list(trace.table("tensors", param=name)["param"])
        assert set(trace.table("tensors", param="blocks[0].w")["param"]) == {"blocks[0].w", "blocks0.w"}
        writer.close()


def test_only_row_groups_that_may_hold_the_rows_are_read(tmp_path, monkeypatch):
    from optrace.trace import segments

    monkeypatch.setattr(segments, "ROW_GROUP", 50)
    Story(tmp_path / "run").tell(60).writer.close()
    read = []
    original = rank.Selection.row_groups

    def spy(self, metadata):
        read.append((original(self, metadata), metadata.num_row_groups))
        return read[-1][0]

    monkeypatch.setattr(rank.Selection, "row_groups", spy)
    trace = open_trace(tmp_path / "run")
    assert len(trace.table("tensors", param="scale", quantity="grad", step=(1, 60))) == 60
    groups, n_groups = read[-1]
    assert n_groups == 20 and len(groups) <= 3


def test_selecting_what_a_table_does_not_have_is_refused(trace):
    for call, words in {
        lambda: trace.table("steps", param="x"): "no param to select by",
        lambda: trace.table("events", quantity="x"): "no quantity to select by",
        lambda: trace.table("params", step=1): "no step or quantity",
        lambda: trace.table("tensor"): "no table 'tensor'.*params, groups, tensors, steps, events",
        lambda: trace.table("tensors", columns=["l3"]): "no column 'l3'",
        lambda: trace.table("groups", columns=["l3"]): "no column 'l3'",
        lambda: trace.table("tensors", step="7"): "step='7' selects nothing",
        lambda: trace.table("tensors", step=(1, 2, 3)): "selects nothing",
    }.items():
        with pytest.raises(TraceError, match=words):
            call()


def test_params_and_other_tables_take_selections_and_columns(trace):
    assert list(trace.table("params", optimizer=1, param="first.*")["param"]) == ["first.weight", "first.bias"]
    assert list(trace.table("groups", step=(2, 3), optimizer=0, columns=["step", "lr"]).itertuples(index=False)) == [
        (2, 0.1), (2, 0.05), (3, 0.1), (3, 0.05),
    ]  # fmt: skip
    assert list(trace.table("events", optimizer=1, step=3)["kind"]) == ["step", "zero_grad"]
    described = trace.arrow("params", optimizer=1, columns=["param", "shape", "placement"]).to_pylist()
    assert described[0] == {"param": "first.weight", "shape": [10, 1], "placement": None} and len(described) == 4
    assert trace.optimizers == [(0, "SGD"), (1, "AdamW")]
    assert trace.last_step(1) == 20 and trace.last_steps == {0: 20, 1: 20}


def test_arrow_is_free_of_pandas_and_opening_of_pyarrow(story):
    program = (
        "import sys, optrace\n"
        f"trace = optrace.open({str(story.folder)!r})\n"
        "assert not {'pyarrow', 'pandas', 'torch'} & set(sys.modules), sorted(sys.modules)\n"
        "trace.arrow('tensors', param='scale'); trace.last_step(0); trace.problems; trace.rank_info; trace.optimizers\n"
        "assert 'pandas' not in sys.modules and 'pyarrow.dataset' not in sys.modules\n"
        "trace.tensors\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_ranks_restarts_and_children(tmp_path):
    for name in ("rank=00001", "rank=00003", "rank=00001.1"):
        Story(tmp_path / "run", rank=name).tell(2 if name.endswith("3") else 1).writer.close()
    Story(tmp_path / "run" / "child-2").tell(1).writer.close()
    Story(tmp_path / "run" / "child-10").tell(1).writer.close()
    (tmp_path / "run" / "child-x").mkdir()
    (tmp_path / "run" / "rank=00009~").mkdir()
    trace = open_trace(tmp_path / "run")
    assert trace.ranks == [1, 3] and trace.rank_number == 1
    assert trace.last_step() == trace.rank(3).last_step() == 2 and trace.rank(1).last_step() == 1
    assert trace.restarts(1) == 1 and trace.restarts(3) == 0
    assert trace.rank(1, 1).rank_path == tmp_path / "run" / "rank=00001.1"
    assert trace.problems == [
        "rank 1 stops after step 1 of optimizer 0 (it ended: clean); others go on to step 2",
        "rank 1 was started again: run@restart=1 is what it recorded then",
    ]
    assert [path.name for path in trace.children] == ["child-2", "child-10"]
    with pytest.raises(TraceError, match=r"no rank 2; it has rank=00001, rank=00001.1, rank=00003"):
        trace.rank(2)
    with pytest.raises(TraceError, match=r"one rank of a run; name the run, .*run, or .*run@rank=\d+"):
        open_trace(tmp_path / "run" / "rank=00001")


def test_a_run_in_which_nobody_stepped_opens_empty(tmp_path):
    RunWriter.create(tmp_path / "run", {})
    trace = open_trace(tmp_path / "run")
    assert trace.ranks == [] and trace.optimizers == [] and trace.rank_info == {} and trace.rank_path is None
    for table in ("params", "groups", "steps", "tensors", "events"):
        assert len(getattr(trace, table)) == 0
    assert trace.problems == ["no process of this run has recorded a step"] == trace.verify()
    with pytest.raises(TraceError, match="no optimizer 0; it has none"):
        trace.last_step()


def test_latest_is_a_link_or_a_file_that_names_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TraceError, match="there is no latest run"):
        open_trace("latest")
    Story(tmp_path / "optrace-runs" / "a").tell(1).writer.close()
    Story(tmp_path / "optrace-runs" / "b").tell(2).writer.close()
    os.symlink("a", tmp_path / "optrace-runs" / "latest")
    assert open_trace().last_step() == 1
    (tmp_path / "optrace-runs" / "latest").unlink()
    (tmp_path / "optrace-runs" / "latest").write_text("b\n")
    assert open_trace("latest").last_step() == 2
    assert open_trace("optrace-runs/latest").last_step() == 2


def test_the_folder_of_the_runs_is_refused_with_the_newest_of_them(tmp_path):
    Story(tmp_path / "a").tell(1).writer.close()
    with pytest.raises(TraceError, match=r"no trace.json; it holds the run \S*a$"):
        open_trace(tmp_path)
    Story(tmp_path / "b").tell(1).writer.close()
    os.utime(tmp_path / "a" / "trace.json", (0, 0))
    os.symlink("a", tmp_path / "latest")
    with pytest.raises(TraceError, match=r"no trace.json; it holds 2 runs, the newest is \S*b$"):
        open_trace(tmp_path)


@pytest.mark.parametrize("part", ["1", "SGD", "rank=0"])
def test_a_part_of_a_run_is_told_how_it_is_chosen_in_python(tmp_path, monkeypatch, part):
    monkeypatch.chdir(tmp_path)
    Story(tmp_path / "a").tell(1).writer.close()
    with pytest.raises(
        TraceError, match=r"no trace at a@\S+; give a, and optimizer=1 .*: optrace.open\('a'\).rank\(1\)"
    ):
        open_trace(f"a@{part}")
    Story(tmp_path / "a@1").tell(1).writer.close()
    assert open_trace("a@1").last_step() == 1


REFUSED = {
    "absent": (lambda run: None, "there is no trace at"),
    "file": (lambda run: run.write_text("x"), "is a file; a trace is a folder"),
    "foreign": (lambda run: (run.mkdir(), (run / "a.txt").write_text("x")), "is no trace: it has no trace.json"),
    "empty": (lambda run: (run.mkdir(), (run / "trace.json").write_text("")), "is damaged: it is no JSON"),
    "list": (lambda run: (run.mkdir(), (run / "trace.json").write_text("[]")), "should hold a JSON object"),
    "binary": (lambda run: (run.mkdir(), (run / "trace.json").write_bytes(b"\xff\x00")), "is damaged"),
    "deep": (lambda run: (run.mkdir(), (run / "trace.json").write_text("[" * 100_000)), "nested too deeply"),
    "digits": (lambda run: (run.mkdir(), (run / "trace.json").write_text('{"format":' + "1" * 9999 + "}")), "damaged"),
    "other": (lambda run: (run.mkdir(), (run / "trace.json").write_text('{"a": 1}')), "format None, which is none of"),
    "newer": (
        lambda run: (run.mkdir(), (run / "trace.json").write_text('{"format": 2}')),
        "format 2; .* up to 1: upgrade",
    ),
    "true": (lambda run: (run.mkdir(), (run / "trace.json").write_text('{"format": true}')), "format True"),
    "folder": (lambda run: (run / "trace.json").mkdir(parents=True), "cannot read"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_trace_is_refused_in_one_sentence(tmp_path, name):
    make, words = REFUSED[name]
    make(tmp_path / "run")
    with pytest.raises(TraceError, match=words) as caught:
        open_trace(tmp_path / "run")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "", "/proc/self/mem/x"])
def test_a_name_that_can_be_no_trace_is_refused_in_one_sentence(name):
    with pytest.raises(TraceError) as caught:
        open_trace(name)
    assert "\n" not in str(caught.value)


def test_streams_and_parquet_of_something_else_are_refused(tmp_path):
    import pyarrow.parquet as pq

    Story(tmp_path / "run").tell(2).writer.close()
    folder = tmp_path / "run" / "rank=00000"
    path = folder / "steps-00000001.parquet"
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(TraceError, match="does not hold the columns of steps"):
        open_trace(tmp_path / "run").steps  # noqa: B018
    path.write_bytes(b"PAR1 not at all PAR1")
    with pytest.raises(TraceError, match="is damaged"):
        open_trace(tmp_path / "run").steps  # noqa: B018
    path.unlink()
    with pa.ipc.new_stream(folder / "steps-00000001.arrows", pa.schema([("a", pa.int64())])) as out:
        out.write_table(pa.table({"a": [1]}))
    with pytest.raises(TraceError, match="another program"):
        open_trace(tmp_path / "run").steps  # noqa: B018
    (folder / "params.json").write_text('["a"]')
    with pytest.raises(TraceError, match=r"params.json is damaged: 'a' is no object"):
        open_trace(tmp_path / "run").params  # noqa: B018


def test_frames_stay_as_they_were_read_until_refresh(tmp_path):
    story = Story(tmp_path / "run").tell(3)
    trace = open_trace(tmp_path / "run")
    assert len(trace.steps) == 3
    story.tell(5, first=4)
    assert len(trace.steps) == 3 and trace.last_step() == 3
    assert trace.tensors["step"].max() == 3 and trace.groups["step"].max() == 3
    assert trace.problems == []
    trace.refresh()
    assert len(trace.steps) == 5 and trace.tensors["step"].max() == 5
    story.writer.close()
    trace.refresh()
    assert len(trace.steps) == 5 and len(trace.tensors) == len(PARAMS) * (1 + 4 * 5)


@pytest.mark.parametrize("table", ["steps", "tensors", "groups", "events"])
def test_following_sees_every_row_once_while_a_writer_appends_and_seals(tmp_path, table):
    story = Story(tmp_path / "run", optimizers=2, segment_bytes=30_000).tell(2)
    trace = open_trace(tmp_path / "run")
    frames = []
    ready = threading.Event()

    def write() -> None:
        ready.wait(30)
        for step in range(3, 80):
            for optimizer in range(2):
                story.tell_step(step, optimizer)
        story.writer.close()

    writer = threading.Thread(target=write)
    writer.start()
    for frame in trace.follow(table, interval=0.01):
        frames.append(frame)
        ready.set()
    writer.join()
    assert len(frames) > 1
    together = pd.concat(frames, ignore_index=True)
    whole = getattr(open_trace(tmp_path / "run"), table)
    keys = {"steps": ["optimizer", "step"], "groups": ["optimizer", "step", "group"], "events": ["seq"]}.get(
        table, ["optimizer", "step", "param", "quantity"]
    )
    drop = [name for name in ("sample", "data") if name in whole]
    pd.testing.assert_frame_equal(
        together.drop(columns=drop).sort_values(keys).reset_index(drop=True),
        whole.drop(columns=drop).sort_values(keys).reset_index(drop=True),
    )


def test_following_ends_when_the_process_is_gone(tmp_path):
    import platform

    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    story = Story(tmp_path / "run").tell(2)
    story.writer.write_rank({"pid": gone.pid, "host": platform.node()})
    assert [len(frame) for frame in open_trace(tmp_path / "run").follow("steps", interval=0.01)] == [2]
    with pytest.raises(TraceError, match="'params' cannot be followed"):
        next(open_trace(tmp_path / "run").follow("params"))
    story.writer.close()


def test_the_deep_check_finds_what_does_not_fit_together(tmp_path):
    story = Story(tmp_path / "run").tell(4)
    story.writer.write_step(4, 0, steps={"loss": 1.0}, events=[Event(story.seq, 4, "step", 0, {})])
    story.writer.write_step(9, 0, steps={"loss": 1.0}, events=[Event(story.seq + 1, 9, "step", 0, {})])
    layout = story.layout(0, QUANTITIES)
    rows = story._rows[0, QUANTITIES]
    rows["n_zero"] = 99
    events = [Event(story.seq + 2, 10, "step", 0, {})]
    story.writer.write_step(10, 0, tensors=(layout, rows, np.ones(len(layout), bool)), events=events)
    story.writer.close()
    path = tmp_path / "run" / "rank=00000" / "params.json"
    path.write_text(json.dumps([{"optimizer": 0, "param": "x"}]))
    assert open_trace(tmp_path / "run").verify() == [
        f"rank=00000: params.json: {name} is missing in some rows"
        for name in (
            "optimizer_class",
            "group",
            "index",
            "shape",
            "stride",
            "dtype",
            "device",
            "numel",
            "requires_grad",
        )
    ] + [
        "rank=00000: events: a seq occurs twice",
        "rank=00000: events: the steps of optimizer 0 are not numbered one after the other",
        "rank=00000: tensors: 16 rows count more special elements than the tensor has",
        "rank=00000: steps: 1 rows occur twice",
    ]


def test_events_that_waited_for_an_optimizer_stand_where_they_happened(tmp_path):
    story = Story(tmp_path / "run").tell(2)
    early, late = story.seq + 1, story.seq + 2
    story.writer.write_events([Event(late, 0, "user", -1, {"name": "late"})])
    trace = open_trace(tmp_path / "run")
    following = trace.follow("events", interval=0.01)
    seen = len(next(following))
    story.writer.write_events([Event(early, 0, "zero_grad", 1, {})])
    assert next(following)["seq"].tolist() == [early]
    trace.refresh()
    assert trace.events["seq"].tolist() == list(range(1, seen + 2))
    assert trace.events["kind"].tolist()[-2:] == ["zero_grad", "user"]
    story.writer.close()
    assert open_trace(tmp_path / "run").verify() == []


def test_an_option_called_step_does_not_replace_the_step(tmp_path):
    story = Story(tmp_path / "run").tell(2)
    events = [Event(story.seq + 1, 3, "step", 0, {})]
    story.writer.write_step(3, 0, groups=[(0, {"lr": 0.5, "step": 41, "group": "a"})], events=events)
    story.writer.close()
    last = open_trace(tmp_path / "run").groups.to_dict("records")[-1]
    assert (last["step"], last["group"], last["lr"]) == (3, 0, 0.5)
    assert (last["group.step"], last["group.group"]) == (41, "a")
