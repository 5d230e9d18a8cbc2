"""A trace for the eye and for programs: the overview, and tables that read back to the same numbers."""

from __future__ import annotations

import csv
import io
import json
import math

import numpy as np
import pytest
import torch
from hand_made import adamw

import optrace
from optrace.compare.source import open_source
from optrace.views.overview import overview
from optrace.views.trace_table import table_csv, table_json, table_text


def decay(step, net, optimizer):
    for group in optimizer.param_groups:
        group["lr"] = 0.05 * 0.5 ** (step // 3)


@pytest.fixture
def run(runs):
    return runs("run", change=decay)


def test_overview_shows_groups_with_what_changes_losses_parameters_and_end_on_one_screen(run):
    text = overview(open_source(run))
    lines = text.splitlines()
    commands = [line for line in lines if "optrace show" in line]  # as long as the path of the run
    assert len(lines) <= 40 and all(len(line) <= 100 for line in lines if line not in commands)
    assert lines[0] == "run"
    assert "  ended   cleanly" in lines
    assert any(line.startswith("optimizer 0: SGD (for-loop), 8 steps, loss ") for line in lines)
    head = next(i for i, line in enumerate(lines) if line.split()[:3] == ["group", "params", "lr"])
    assert lines[head].split() == "group params lr momentum dampening weight_decay nesterov maximize".split()
    assert lines[head + 1].split() == "0 2 0.05 -> 0.0125 0.9 0 0 False False".split()
    assert any(line.split() == ["0", "0.weight", "20x5"] for line in lines)
    assert "4 parameters, 183 elements, float32, cpu" in lines


def test_overview_of_a_killed_run_says_so_and_lists_problems(tmp_path):
    from hand_made import TorchHand, model, names_of, sgd

    net = model()
    hand = TorchHand(tmp_path / "run")
    optimizer = sgd()(net)
    hand.begin(0, optimizer, names_of(net))
    text = overview(open_source(tmp_path / "run"))
    hand.close()
    assert "not yet: it is running, or was killed" in text
    assert "0 steps" in text


def test_overview_of_a_search_over_many_optimizers_stays_on_one_screen(tmp_path):
    with optrace.record(tmp_path / "search", quiet=True):
        for number in range(14):
            kind = torch.optim.Adam if number % 3 else torch.optim.SGD
            optimizer = kind([weight := torch.ones(2, requires_grad=True)], lr=0.1)
            weight.sum().backward()
            optimizer.step()
    lines = overview(open_source(tmp_path / "search")).splitlines()
    assert sum(line.startswith("optimizer ") for line in lines) == 8
    further = next(line for line in lines if "more optimizers" in line)
    assert further.startswith("6 more optimizers (4 Adam, 2 SGD): optrace show ") and "search@8" in further
    assert "optimizer 13: Adam" in overview(open_source(f"{tmp_path / 'search'}@13"))


def test_overview_says_what_was_asked_to_be_kept(tmp_path):
    weight = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    settings = {"values": "grad", "every": 2, "params": ["par*", "x y"], "quantities": "grad,state.*", "steps": "2:"}
    for name, asked in (("plain", {}), ("asked", {**settings, "micro": True, "stop_after": 3})):
        with optrace.record(tmp_path / name, quiet=True, **asked):
            for _ in range(4):
                weight.square().sum().backward()
                optimizer.step()
    words = (
        "--values grad --every 2 --steps 2: --stop-after 3 --params 'par*' --params 'x y' --quantities 'grad,state.*'"
    )
    assert f"  with    {words} --micro" in overview(open_source(tmp_path / "asked"))
    assert "  with  " not in overview(open_source(tmp_path / "plain"))


def test_overview_of_runs_without_parameters_and_of_goldens(tmp_path):
    weight = torch.ones(3, requires_grad=True)
    with optrace.record(tmp_path / "run", quiet=True, params="nothing"):
        weight.sum().backward()
        torch.optim.SGD([weight], lr=0.1).step()
    assert "\n0 parameters, 0 elements\n\n  next" in overview(open_source(tmp_path / "run"))
    assert "optimizer 0: SGD, 12 steps\n" in overview(open_source("golden:sgd/nesterov"))
    assert "optimizer 0: SGD, 3 steps (4 to 6)\n" in overview(open_source("golden:sgd/nesterov@4:6"))


def test_overview_of_an_error_quotes_it(runs):
    assert "error: ValueError: no" in overview(open_source(runs("run", end="error: ValueError: no")))


@pytest.mark.parametrize("name", ["tensors", "groups", "steps", "params", "events"])
def test_csv_reads_back_to_the_readers_numbers(run, name):
    frame = optrace.open(run).table(name)
    rows = list(csv.DictReader(io.StringIO("\n".join(table_csv(frame, name, header=True)))))
    assert list(rows[0]) == list(frame.columns) and len(rows) == len(frame)
    for column in frame.columns:
        if frame[column].dtype == np.float64:
            mine = [float(row[column] or "nan") for row in rows]
            np.testing.assert_array_equal(mine, frame[column].to_numpy())
    if name == "tensors":
        assert [int(row["fingerprint"], 16) for row in rows] == [f % 2**64 for f in frame["fingerprint"]]
        for row, sample, numel in zip(rows, frame["sample"], frame["numel"], strict=True):
            assert json.loads(row["sample"]) == [float(x) for x in sample[: min(numel, 16)]]


def test_json_is_strict_and_leaves_out_options_that_a_group_lacks(run, tmp_path):
    frame = optrace.open(run).groups
    frame.loc[0, "momentum"] = math.nan
    rows = [json.loads(line, parse_constant=pytest.fail) for line in table_json(frame, "groups")]
    assert "momentum" not in rows[0] and rows[1]["momentum"] == 0.9
    assert rows[0]["foreach"] is False and rows[0]["fused"] is None


def test_gradient_that_was_none_says_so(runs):
    def none(step, net, optimizer):
        if step == 2:
            next(net.parameters()).grad = None

    frame = optrace.open(runs("run", adamw(), change=none)).table("tensors", step=2, quantity="grad")
    lines = list(table_text(frame, "tensors"))
    assert lines[1].split() == ["2", "0.weight", "grad", "None"]
    assert len(lines) == 5


def test_text_tables_fit_and_leave_out_what_says_nothing(run):
    trace = optrace.open(run)
    for name in ("tensors", "groups", "steps", "params", "events"):
        lines = list(table_text(trace.table(name), name))
        assert max(map(len, lines)) <= 100
        assert name == "events" or "opt" not in lines[0].split()
