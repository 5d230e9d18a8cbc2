"""Goldens are made again byte for byte, said to differ where they do, shipped in the wheel, and read as runs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import optrace
from optrace.cli.golden import command
from optrace.cli.main import main
from optrace.errors import GoldenError
from optrace.goldens import library, remake
from optrace.goldens.check import judge
from optrace.goldens.closures import evaluate
from optrace.goldens.export import export_text
from optrace.goldens.format import read_golden, write_csv
from optrace.goldens.library import case_names, golden_folder, load, rules, wrong_names
from optrace.goldens.make_own import make_goldens
from optrace.goldens.source import open_source
from optrace.reference.rule import RULES
from optrace.reference.schedulers import SCHEDULES

ROOT = Path(__file__).parents[2]
TORCH_2_13 = pytest.mark.skipif(not torch.__version__.startswith("2.13."), reason="made with torch 2.13")


@TORCH_2_13
@pytest.mark.parametrize("rule", ["sgd", "adam", "adafactor", "sparseadam", "lbfgs", "steplr", "onecyclelr", "wrong"])
def test_the_files_of_a_rule_come_out_byte_for_byte(rule, capsys):
    assert remake.main(["--check", rule]) == 0, capsys.readouterr().out


def test_check_says_which_file_would_change_and_where(tmp_path, monkeypatch, capsys):
    shutil.copytree(golden_folder() / "rprop", tmp_path / "rprop")
    path = tmp_path / "rprop" / "plain.csv"
    golden = read_golden(path)
    row = next(r for r in golden.rows if r.step == 3 and r.quantity == "param")
    moved = replace(row, values=row.values * (1 + 1e-12))
    path.write_text(write_csv(replace(golden, rows=tuple(moved if r is row else r for r in golden.rows))))
    (tmp_path / "rprop" / "etas.safetensors").unlink()
    monkeypatch.setattr(remake, "golden_folder", lambda: tmp_path)
    assert remake.main(["--check", "rprop"]) == 1
    said = capsys.readouterr().out
    assert "rprop/plain.csv: step 3, w param is another by 4.5e+03 eps" in said
    assert "rprop/etas.safetensors is missing" in said
    assert remake.main(["rprop"]) == 0
    assert remake.main(["--check", "rprop"]) == 0


def test_every_rule_of_torch_has_goldens():
    assert set(rules()) == {*RULES, *SCHEDULES} - {"lion"}


def test_the_grid_holds_what_the_design_asks_for():
    for rule in RULES.keys() - {"lbfgs", "lion"}:
        names = {name.partition("/")[2] for name in case_names(rule)}
        assert {"lr-change", "option-change", "resume", "shapes", "none-grad", "groups", "groups-resume"} <= names
        assert load(f"{rule}/groups").steps >= 12
        groups = load(f"{rule}/groups")
        assert len(groups.hyper) == 2
        assert len(groups.at(1, "grad")) < len(groups.at(0, "param"))
    shapes = {row.values.shape for row in load("sgd/shapes").rows_at(0, "param")}
    assert {(), (1,), (7,), (16,), (33,), (3, 4)} <= shapes
    assert any(np.prod(shape) >= 64 for shape in shapes)


def test_two_layers_is_what_the_example_program_trains(tmp_path):
    sys.path.insert(0, str(ROOT / "docs" / "examples"))
    try:
        import two_layers
    finally:
        sys.path.pop(0)
    golden = load("sgd/two-layers-steplr-float32")
    net = two_layers.Net()
    optimizer = two_layers.make_optimizer("torch", net)
    scheduler = two_layers.make_scheduler("torch", optimizer)
    x = torch.linspace(-1, 1, 11).reshape(11, 1)
    for step in range(1, golden.steps + 1):
        optimizer.zero_grad()
        ((net(x) - (3 * x + 0.5)) ** 2).mean().backward()
        optimizer.step()
        scheduler.step()
        for name, parameter in net.named_parameters():
            np.testing.assert_allclose(parameter.detach().numpy(), golden.at(step, "param")[name], rtol=1e-4, atol=1e-6)


def test_the_functions_of_lbfgs_are_what_the_header_says():
    for name in ("lbfgs/plain", "lbfgs/strong-wolfe"):
        golden = load(name)
        x = torch.tensor([0.3, -0.2, 0.5, 0.1, 0.9, -0.7], dtype=torch.float64, requires_grad=True)
        if golden.notes["loss"] == "least-squares":
            a, y = (torch.tensor(golden.at(0, "input")[key]) for key in ("A", "y"))
            loss = 0.5 * ((a @ x - y) ** 2).sum()
        else:
            loss = (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()
        loss.backward()
        ours, grad = evaluate(golden, x.detach().numpy())
        assert float(ours) == pytest.approx(loss.item(), rel=1e-12)
        np.testing.assert_allclose(grad, x.grad.numpy(), rtol=1e-11)


@pytest.mark.parametrize("name", wrong_names())
def test_every_wrong_output_is_labelled_and_far_from_the_right_one(name):
    wrong = read_golden(golden_folder() / f"{name}.csv")
    right = load(wrong.notes["golden"])
    assert wrong.notes["wrong"]
    assert wrong.notes["code"]
    inputs = [r for r in right.rows if r.quantity == "grad" or (r.step == 0 and r.quantity == "param")]
    for row in inputs:
        assert np.array_equal(wrong.at(row.step, row.quantity)[row.param], row.values)
    if right.rule in RULES:
        got = {step: (wrong.at(step, "param"), {}) for step in range(1, wrong.steps + 1)}
        failure = judge(right, got).failure
        assert failure.error > 1e4 * failure.tolerance
    else:
        assert [r.values for r in wrong.rows] != [r.values for r in right.rows]


def test_there_are_at_least_twenty_wrong_ones():
    assert len(wrong_names()) >= 20


def test_a_golden_is_read_as_a_run_with_whole_values():
    trace = open_source("golden:adam/groups")
    golden = load("adam/groups")
    assert trace.optimizers == [(0, "Adam")]
    assert not trace.problems
    assert trace.verify() == []
    for row in golden.rows:
        if row.quantity != "hyper" and row.step:
            assert np.array_equal(trace.value(row.step, row.param, row.quantity), row.values)
    groups = trace.groups
    assert list(groups[groups.group == 1].lr[:5]) == pytest.approx([0.002] * 3 + [0.006] * 2)
    absent = trace.tensors.query("param == 'first.b' and quantity == 'grad' and step == 1")
    assert not absent.present.any()


def test_a_diff_with_a_golden_is_the_same_for_its_other_file_and_differs_for_a_wrong_one():
    folder = golden_folder()
    assert optrace.diff("golden:sgd/nesterov", folder / "sgd" / "nesterov.safetensors").same
    report = optrace.diff("golden:sgd/momentum", folder / "wrong" / "sgd-momentum-average.csv")
    assert report.causes[0].code == "rule-momentum-form"
    assert optrace.diff("golden:steplr/plain", folder / "steplr" / "plain.csv").same
    assert not optrace.diff("golden:steplr/plain", "golden:steplr/gamma").same


def test_ones_own_goldens_hold_ones_own_numbers(tmp_path):
    written, left_out = make_goldens(torch.optim.SGD, "sgd", tmp_path / "own")
    assert len(written) == len(case_names("sgd"))
    assert not left_out
    own = read_golden(tmp_path / "own" / "nesterov.csv")
    assert all(np.array_equal(a.values, b.values) for a, b in zip(own.rows, load("sgd/nesterov").rows, strict=True))
    with pytest.raises(GoldenError, match="not an empty folder"):
        make_goldens(torch.optim.SGD, "sgd", tmp_path / "own")
    with pytest.raises(GoldenError, match="not steplr"):
        make_goldens(torch.optim.SGD, "steplr", tmp_path / "other")


def test_exported_c_compiles_and_holds_the_numbers(tmp_path):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    golden = load("sgd/shapes-float32")
    main = (
        "#include <stdio.h>\nint main(void) { double sum = 0; for (size_t i = 0; i < sgd_shapes_float32_rows; i++)\n"
        "for (size_t j = 0; j < sgd_shapes_float32[i].numel; j++) sum += sgd_shapes_float32[i].values[j];\n"
        'printf("%zu %.17g\\n", sgd_shapes_float32_rows, sum); return 0; }\n'
    )
    (tmp_path / "x.c").write_text(export_text(golden, "c") + main)
    subprocess.run(
        [compiler, "-std=c99", "-Wall", "-Werror", "-o", tmp_path / "x", tmp_path / "x.c", "-lm"], check=True
    )
    rows, total = subprocess.run([tmp_path / "x"], capture_output=True, text=True, check=True).stdout.split()
    assert int(rows) == len(golden.rows)
    wide = sum(float(str(v)) for row in golden.rows for v in row.values.reshape(-1).astype(np.float64))
    assert float(total) == pytest.approx(wide, rel=1e-6)


def test_exported_json_is_strict_and_whole():
    import json

    golden = load("reducelronplateau/plain")
    data = json.loads(export_text(golden, "json"), parse_constant=lambda name: pytest.fail(name))
    assert len(data["rows"]) == len(golden.rows)
    assert any(row["values"] == ["nan"] for row in data["rows"])


@pytest.mark.parametrize("language", ["rust", "swift"])
def test_other_languages_list_every_row(language):
    golden = load("adamw/eps")
    text = export_text(golden, language)
    assert sum(line.strip().startswith(("Row {", "Row(")) for line in text.splitlines()) == len(golden.rows)
    with pytest.raises(GoldenError, match="not 'cobol'"):
        export_text(golden, "cobol")


def test_exit_statuses_are_same_differ_trouble(monkeypatch, capsys):
    monkeypatch.chdir(ROOT / "docs" / "examples")
    monkeypatch.setattr(sys, "path", list(sys.path))  # what a command adds is taken off again

    def run(*args):
        with pytest.raises(SystemExit) as ended:
            main(["golden", *args])
        return ended.value.code, *capsys.readouterr()

    assert run("check", "torch.optim:SGD", "--rule", "sgd", "--case", "plain")[0] == 0
    status, out, _ = run("check", "two_layers:MySGD", "--rule", "sgd")
    assert status == 1
    assert "rule-momentum-form" in out
    status, out, err = run("check", "two_layers:Nothing", "--rule", "sgd")
    assert (status, out) == (2, "")
    assert err.startswith("optrace: two_layers has no 'Nothing'")


def test_the_command_finds_a_candidate_in_the_working_folder():
    command = [sys.executable, "-m", "optrace", "golden", "check", "two_layers:MySGD", "--rule", "sgd"]
    done = subprocess.run(
        [*command, "--case", "momentum"], capture_output=True, text=True, cwd=ROOT / "docs" / "examples"
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "rule-momentum-form" in done.stdout


def test_commands_list_show_and_export():
    invoke = CliRunner().invoke
    assert "onecyclelr" in invoke(command, ["list"]).output
    assert "sgd/nesterov " in invoke(command, ["list", "sgd"]).output
    assert "averages the gradient" in invoke(command, ["list", "wrong"]).output
    shown = invoke(command, ["show", "sgd/plain"]).output
    assert shown == library.path_of("sgd/plain").read_text()
    assert "\n3,0,w,grad," in invoke(command, ["show", "sgd/plain", "--step", "3"]).output
    assert invoke(command, ["export", "sgd/plain", "--as", "json"]).output.startswith("{")
    report = invoke(command, ["check", "torch.optim:SGD", "--rule", "sgd", "--case", "plain", "--format", "json"])
    assert '"verdict": "same"' in report.output
    with pytest.raises(GoldenError, match="did you mean sgd/nesterov"):
        load("sgd/nestrov")
    with pytest.raises(GoldenError, match="no NAME=VALUE"):
        invoke(command, ["check", "x:y", "--rule", "sgd", "--option", "fused"], catch_exceptions=False)


@pytest.mark.slow
def test_a_wheel_holds_the_goldens_and_finds_them(tmp_path):
    source = tmp_path / "source"
    kept = shutil.ignore_patterns(".*", "*.so", "build", "*.egg-info", "__pycache__", "tests", "optrace-runs")
    shutil.copytree(ROOT, source, ignore=kept)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "target", wheel], check=True)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'target')!r})\n"
        "from optrace.goldens.library import case_names, golden_folder\n"
        "print(golden_folder()); print(len(case_names()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    folder, count = done.stdout.split()
    assert Path(folder) == tmp_path / "target" / "optrace" / "_golden"
    assert int(count) == len(case_names())
