"""`optrace show` as a command."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "compare"))

from hand_made import TorchHand, model, names_of, sgd, train
from in_process import said


def optrace(*args, cwd, **environment):
    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")} | environment
    command = [sys.executable, "-m", "optrace", *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    train(folder / "a", sgd())
    train(folder / "other", sgd(lr=0.06), steps=3)
    (folder / "train.py").write_text("print(1)\n")
    (folder / "optrace-runs").mkdir()
    (folder / "optrace-runs" / "latest").symlink_to(folder / "other")
    return folder


def test_overview_is_shown_without_a_table(place):
    done = optrace("show", "a", cwd=place)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("a\n") and "optimizer 0: SGD" in done.stdout


def test_latest_is_the_default_also_with_a_table(place):
    assert optrace("show", cwd=place).stdout.startswith("other\n")
    done = optrace("show", "groups", "--step", "1", "--format", "json", cwd=place)
    assert [json.loads(line)["lr"] for line in done.stdout.splitlines()] == [0.06, 0.06]


def test_step_and_param_select(place):
    done = optrace("show", "a", "tensors", "--step", "3", "--param", "0.*", "--format", "csv", cwd=place)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert {(row["step"], row["param"]) for row in rows} == {("3", "0.weight"), ("3", "0.bias")}
    assert {row["quantity"] for row in rows} == {"grad", "update", "param", "state.momentum_buffer"}
    done = optrace("show", "steps", "a", "--step", "2:4", "--format", "json", cwd=place)  # either order
    assert [json.loads(line)["step"] for line in done.stdout.splitlines()] == [2, 3, 4]
    done = optrace("show", "a@6:", "steps", "--format", "json", cwd=place)
    assert [json.loads(line)["step"] for line in done.stdout.splitlines()] == [6, 7, 8]


@pytest.mark.parametrize("table", ["groups", "params", "steps", "tensors", "events"])
def test_every_table_is_shown(place, table):
    done = optrace("show", "a", table, cwd=place)
    assert done.returncode == 0 and done.stderr == ""
    assert max(map(len, done.stdout.splitlines())) <= 100


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nothing"], "there is no trace at nothing"),
        (["a", "tensors", "--param", "0.wieght"], "a has no parameter '0.wieght'; near it are 0.weight"),
        (["a", "tensors", "--step", "99"], "a has no step 99; its last is 8"),
        (["a", "tensors", "--step", "x"], "'x' is no range of steps"),
        (["a", "steps", "--param", "0.weight"], "steps has no parameters"),
        (["a", "params", "--step", "1"], "params has no steps"),
        (["a", "tensors", "--step", "3:1"], "--step 3:1 holds no step; write FIRST:LAST"),
        (["a", "tensor"], "there is no table 'tensor'; did you mean tensors?"),
        (["a", "loss"], "there is no table 'loss'; choose one of groups, params, steps, tensors, events"),
        ([""], "the run's name is empty"),
        (["a@3", "steps"], "no optimizer 3"),
        (["a", "--step", "3"], "name the table"),
        (["a@90:95"], "a@90:95 has no step 90:95; its last is 8"),
        (["a", "other"], "show reads one run; to compare the two: optrace diff a other"),
        (["a/trace.json"], "a/trace.json is a file of a run; name the run's folder, a"),
        (["a/rank=00000/rank.json"], "a/rank=00000/rank.json is a file of a run; name the run's folder, a"),
        (["train.py"], "train.py is a program, not a run; record it first: optrace record train.py"),
    ],
)
def test_trouble_is_a_sentence_and_exit_2(place, monkeypatch, capsys, args, words):
    monkeypatch.chdir(place)
    done = said(capsys, "show", *args)
    assert done.returncode == 2 and done.stdout == ""
    assert words in done.stderr and "Traceback" not in done.stderr


def test_verify_tells_a_whole_trace_from_a_damaged_one(place, tmp_path):
    import shutil

    done = optrace("show", "a", "--verify", cwd=place)
    assert done.returncode == 0 and "a is whole" in done.stdout
    shutil.copytree(place / "a", tmp_path / "a")
    file = next((tmp_path / "a").rglob("tensors-*.parquet"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x55
    file.write_bytes(data)
    done = optrace("show", tmp_path / "a", "--verify", cwd=place)
    assert done.returncode == 1 and "damaged" in done.stdout


def test_follow_prints_rows_as_they_come_and_ends_with_the_recording(tmp_path):
    import torch

    net = model()
    optimizer = sgd()(net)
    hand = TorchHand(tmp_path / "run")
    hand.begin(0, optimizer, names_of(net))
    command = [sys.executable, "-u", "-m", "optrace", "show", "run", "--follow", "--format", "json"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as follower:
        for step in (1, 2):
            optimizer.zero_grad()
            net(torch.ones(2, 5)).sum().backward()
            hand.step(0, optimizer)
            assert json.loads(follower.stdout.readline())["step"] == step
        hand.close()
        assert follower.stdout.read() == ""
    assert follower.returncode == 0


def test_long_tables_are_shown_in_stretches_with_every_row_once(tmp_path, monkeypatch):
    import optrace.cli.show as show
    from optrace.compare.source import open_source

    run = train(tmp_path / "run", sgd(), steps=12)
    monkeypatch.setattr(show, "_ROWS_AT_ONCE", 20)
    frames = list(show._stretches(open_source(run), "tensors", {}))
    assert len(frames) > 5
    assert sum(map(len, frames)) == 4 + 12 * 16
    steps = [step for frame in frames for step in frame["step"]]
    assert steps == sorted(steps)


def test_reader_that_goes_away_is_no_error(place):
    command = f"{sys.executable} -m optrace show a tensors --format csv | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=place, capture_output=True, text=True)
    assert "Traceback" not in done.stderr and done.stdout.startswith("step,optimizer")
