"""A stranger with docs/trace-format.md reads what our reader reads; the page says what the schema says."""

from __future__ import annotations

import json
import math
import re
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from storing import PARAMS, Story

from optrace.trace.reader import open_trace
from optrace.trace.schema import COLUMNS, FORMAT, PARAM_COLUMNS, TABLES

duckdb = pytest.importorskip("duckdb")
polars = pytest.importorskip("polars")

PAGE = Path(__file__).parents[2] / "docs" / "trace-format.md"
STATES = ("open", "sealed", "both", "torn")


def plain_reader() -> dict:
    """The reader that the page shows, as it stands there."""
    block = re.search(r"```python\n# file: plain_reader.py\n(.*?)```", PAGE.read_text(), re.S)
    assert block is not None
    assert sum(bool(line.strip()) for line in block[1].splitlines()) <= 60
    names: dict = {}
    exec(compile(block[1], str(PAGE), "exec"), names)
    return names


@pytest.fixture(scope="module", params=STATES)
def run(request, tmp_path_factory):
    story = Story(
        tmp_path_factory.mktemp(request.param) / "run",
        optimizers=2,
        segment_bytes=40_000 if request.param in ("both", "torn") else 2**30,
    )
    story.tell(24)
    for thread in threading.enumerate():  # what is being sealed in the background would change the order of rows
        if thread.name == "optrace-seal":
            thread.join()
    if request.param == "sealed":
        story.writer.close()
    if request.param == "torn":  # killed while the step event was being written
        rank = story.folder / "rank=00000"
        path = sorted(rank.glob("events-*.arrows"))[-1]
        path.write_bytes(path.read_bytes()[:-5])
    yield story.folder
    story.writer.close()


def same(a, b) -> bool:
    if isinstance(a, list | np.ndarray) and isinstance(b, list | np.ndarray):
        return np.array(a, "f8").tobytes() == np.array(b, "f8").tobytes()
    return a == b or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))


def test_the_reader_of_the_page_reads_what_ours_reads(run):
    read = plain_reader()["read"]
    trace = open_trace(run)
    for table in TABLES:
        ours, theirs = trace.arrow(table, columns=[c.name for c in COLUMNS[table]]).to_pylist(), read(run, table)
        assert len(ours) == len(theirs) > 20
        for a, b in zip(ours, theirs, strict=True):
            assert a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    assert [row["param"] for row in read(run, "params")] == list(trace.params["param"])


def test_pandas_duckdb_and_polars_get_the_readers_numbers_from_a_sealed_trace(tmp_path):
    import pandas as pd

    Story(tmp_path / "run", optimizers=2, segment_bytes=40_000).tell(24).writer.close()
    trace = open_trace(tmp_path / "run")
    rank = tmp_path / "run" / "rank=00000"
    columns = ["step", "optimizer", "param", "quantity", "l2", "min", "n_zero", "fingerprint", "present"]
    ours = trace.tensors
    expected = sorted(ours[columns].itertuples(index=False, name=None), key=repr)
    pattern = f"{rank}/tensors-????????.parquet"

    def rows(found) -> list:
        plain = [tuple(x.item() if isinstance(x, np.generic) else x for x in row) for row in found]
        return sorted(plain, key=repr)

    expected = rows(expected)
    assert repr(rows(duckdb.sql(f"select {', '.join(columns)} from '{pattern}'").fetchall())) == repr(expected)
    assert repr(rows(polars.read_parquet(pattern).select(columns).rows())) == repr(expected)
    frames = [pd.read_parquet(path) for path in sorted(rank.glob("tensors-*.parquet"))]
    assert len(frames) > 2
    assert repr(rows(pd.concat(frames)[columns].itertuples(index=False, name=None))) == repr(expected)
    samples = {(r[0], r[1], r[2], r[3]): r[4] for r in duckdb.sql(
        f"select step, optimizer, param, quantity, sample from '{pattern}'").fetchall()}  # fmt: skip
    for row in ours.itertuples():
        found = np.array(samples[row.step, row.optimizer, row.param, row.quantity], "f8")
        assert np.array_equal(found, row.sample, equal_nan=True)
    loss = duckdb.sql(f"select loss, batch, grad_norm from '{rank}/steps-????????.parquet' order by step, optimizer")
    steps = trace.steps.sort_values(["step", "optimizer"])
    assert [row[0] for row in loss.fetchall()] == list(steps["loss"])
    batches = polars.read_parquet(f"{rank}/steps-????????.parquet").sort("step", "optimizer")["batch"].to_list()
    assert batches == [None if pd.isna(batch) else batch for batch in steps["batch"]]
    events = f"{rank}/events-????????.parquet"
    first = duckdb.sql(
        f"select cast(data->>'loss' as double) from '{events}' where kind = 'backward' order by seq"
    ).fetchall()[0]
    assert first == (1.0,)
    described = duckdb.sql(f"select param, shape from read_json('{rank}/params.json') order by optimizer").fetchall()
    assert described[:4] == [(name, list(shape)) for name, shape in PARAMS.items()]


def test_polars_and_pandas_read_an_open_stream(tmp_path):
    story = Story(tmp_path / "run").tell(10)
    path = tmp_path / "run" / "rank=00000" / "tensors-00000001.arrows"
    ours = open_trace(tmp_path / "run").arrow("tensors")
    theirs = polars.read_ipc_stream(path)
    assert theirs["fingerprint"].to_list() == ours.column("fingerprint").to_pylist()
    assert theirs["param"].to_list() == ours.column("param").to_pylist()
    with pa.ipc.open_stream(path) as batches:
        frame = batches.read_pandas()
    assert list(frame["l2"]) == ours.column("l2").to_pylist()
    with pa.ipc.open_stream(path) as batches:
        connection = duckdb.connect()
        connection.register("opened", batches.read_all())
    total = connection.sql("select count(*), sum(numel) from opened").fetchall()[0]
    assert total == (ours.num_rows, sum(ours.column("numel").to_pylist()))
    story.writer.close()


@pytest.mark.parametrize("table", ["params", *TABLES])
def test_the_page_describes_the_columns_as_they_are(table):
    found = re.search(
        rf"<!-- {table} -->\n\| (?:column|key) \| type \| meaning \|\n\|---\|---\|---\|\n((?:\|.*\n)+)",
        PAGE.read_text(),
    )
    assert found is not None
    columns = PARAM_COLUMNS if table == "params" else COLUMNS[table]
    rows = [f"| {c.name} | {c.type} | {c.doc.replace('|', chr(92) + '|')} |" for c in columns]
    assert found[1].splitlines() == rows


FORMAT_1 = Path(__file__).parent / "data" / "format-1"


def numbers_of(trace) -> dict:
    """What a reader of any version must make of a stored trace, as JSON."""
    return {
        "tensors": [
            [r.step, r.optimizer, r.group, r.param, r.quantity, r.dtype, r.numel, r.present, r.n_nan, r.n_inf, r.n_zero]
            + [f"{r.fingerprint % 2**64:016x}"]
            + [float(x).hex() for x in (r.mean, r.l1, r.l2, r.min, r.max, r.absmax, *r.sample)]
            for r in trace.tensors.itertuples()
        ],
        "group_columns": list(trace.groups.columns),
        "groups": [repr(row) for row in trace.groups.to_dict("records")],
        "steps": [repr(row) for row in trace.arrow("steps").to_pylist()],
        "events": [[r.seq, r.step, r.kind, r.optimizer, r.data] for r in trace.events.itertuples()],
        "params": [repr(row) for row in trace.params.to_dict("records")],
        "last_steps": sorted(trace.last_steps.items()),
        "value": trace.value(3, "second.weight", "param").tolist(),
        "info": trace.info,
        "rank_info": {name: value for name, value in trace.rank_info.items() if name != "end"},
    }


@pytest.mark.parametrize("state", ["sealed", "killed"])
def test_a_stored_trace_of_format_1_is_read_by_this_version(state):
    """Made once by the writer of format 1 (make_format_1.py); later versions must read it to the same numbers."""
    expected = json.loads((FORMAT_1 / "expected.json").read_text())
    trace = open_trace(FORMAT_1 / state)
    assert trace.info["format"] == 1 <= FORMAT
    assert json.loads(json.dumps(numbers_of(trace))) == expected
    if state == "sealed":
        assert trace.problems == [] == trace.verify()
        assert trace.rank_info["end"] == "clean"
    else:
        assert "end" not in trace.rank_info
        assert trace.problems == [
            "tensors-00000001.arrows is incomplete or damaged from byte 68416 on (1000 bytes dropped)",
            "step 7 of optimizer 0 was not finished: its 11 rows of groups are left out",
        ]
