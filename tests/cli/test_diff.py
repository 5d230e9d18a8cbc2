"""`optrace diff` as a command: exit status, streams, formats, and how light it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "compare"))

from hand_made import adamw, sgd, train
from in_process import said


def optrace(*args, cwd, **environment):
    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")} | environment
    command = [sys.executable, "-W", "error", "-m", "optrace", *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    train(folder / "a", sgd())
    train(folder / "b", sgd())
    train(folder / "c", sgd(lr=0.06))
    train(folder / "d", adamw(), prefix="other.")
    return folder


def test_exit_status_is_0_same_1_differ_2_trouble(place, monkeypatch, capsys):
    assert optrace("diff", "a", "b", cwd=place).returncode == 0
    assert optrace("diff", "a", "c", cwd=place).returncode == 1
    monkeypatch.chdir(place)
    for trouble in (
        ["a", "nothing"],
        ["a", "d"],
        ["a", "b", "--align", "x"],
        ["a", "b", "--no-such-option"],
        ["a", "b", "--format", "xml"],
        ["a", "b", "--rtol", "-1"],
        ["a", "b", "--limit", "-1"],
        ["a", "b", "--map", "nothing=else"],
        ["a", "b", "-o", "/nonexistent/file"],
        ["a", "c", "--noise", "./c"],
        [],
    ):
        done = said(capsys, "diff", *trouble)
        assert done.returncode == 2, trouble
        assert done.stdout == "" and done.stderr and "Traceback" not in done.stderr
    assert said(capsys, "diff", "a", "c", "--format", "JSON").stdout.startswith("{")


def test_result_is_on_stdout_and_nothing_else_anywhere(place):
    done = optrace("diff", "a", "c", cwd=place)
    assert done.stderr == ""
    assert done.stdout.splitlines()[0] == (
        "c differs from a - since step 1, in the hyper-parameter lr of group 0: 0.05 in a, 0.06 in c"
    )


def test_trouble_is_one_sentence(place):
    done = optrace("diff", "a", "nothing", cwd=place)
    assert done.stderr == "optrace: there is no trace at nothing\n"


def test_json_is_the_reports_json(place):
    import optrace as package

    done = optrace("diff", "a", "c", "--format", "json", "--limit", "3", cwd=place)
    assert json.loads(done.stdout)["n_divergences"] > 3
    report = package.diff(place / "a", place / "c", limit=3)
    mine, theirs = json.loads(done.stdout), json.loads(report.to_json())
    assert mine == theirs and len(mine["divergences"]) == 3


def test_output_file_gets_the_result_without_colors(place, tmp_path):
    done = optrace("diff", "a", "c", "-o", tmp_path / "out.txt", cwd=place, FORCE_COLOR="1")
    assert (done.returncode, done.stdout) == (1, "")
    assert (tmp_path / "out.txt").read_text().startswith("c differs from a")


def test_colors_only_when_wanted(place):
    assert "\x1b[" not in optrace("diff", "a", "c", cwd=place).stdout
    assert "\x1b[" in optrace("diff", "a", "c", cwd=place, FORCE_COLOR="1").stdout
    assert "\x1b[" not in optrace("diff", "a", "c", cwd=place, FORCE_COLOR="1", NO_COLOR="1").stdout


def test_b_is_the_latest_run_by_default(place, tmp_path):
    (tmp_path / "optrace-runs").mkdir()
    (tmp_path / "optrace-runs" / "latest").symlink_to(place / "c")
    done = optrace("diff", place / "a", cwd=tmp_path)
    assert done.returncode == 1 and "0.06 in c" in done.stdout


def test_markdown_and_details(place):
    done = optrace("diff", "a", "c", "--format", "markdown", "--details", cwd=place)
    assert done.stdout.startswith("**c differs from a") and "| step |" in done.stdout


def test_neither_torch_nor_pandas_is_imported(place):
    code = (
        "import sys\nsys.argv = ['optrace', 'diff', 'a', 'c', '--details']\nimport runpy\n"
        "try:\n    runpy.run_module('optrace', run_name='__main__')\nexcept SystemExit as end:\n    status = end.code\n"
        "print(status, [m for m in ('torch', 'pandas') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True)
    assert done.stderr.strip() == "1 []"


def test_help_says_the_exit_status(place):
    done = optrace("diff", "--help", cwd=place)
    assert done.returncode == 0 and "0 same, 1 differ, 2 trouble" in done.stdout


def test_reader_that_goes_away_is_no_error(place):
    command = f"{sys.executable} -m optrace diff a c --details --limit 1000 | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=place, capture_output=True, text=True)
    assert "Traceback" not in done.stderr and done.stdout.startswith("c differs from a")


def test_damaged_trace_is_one_sentence(place, tmp_path):
    import shutil

    shutil.copytree(place / "c", tmp_path / "c")
    file = next((tmp_path / "c").rglob("tensors-*.parquet"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
    file.write_bytes(data)
    done = optrace("diff", place / "a", tmp_path / "c", cwd=place)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "damaged" in done.stderr


def test_rules_come_from_the_nearest_project_file(place, tmp_path):
    runs = [place / "a", place / "c"]
    below = tmp_path / "below"
    below.mkdir()
    assert optrace("diff", *runs, cwd=below).returncode == 1
    project = tmp_path / "pyproject.toml"
    project.write_text(
        '[[tool.optrace.diff.rules]]\nquantity = "hyper.lr"\nignore = true\n'
        "[[tool.optrace.diff.rules]]\nignore = true\n"
    )
    done = optrace("diff", *runs, cwd=below)
    assert done.returncode == 0 and "pyproject.toml rule 1 applied (quantity hyper.lr: ignore)" in done.stdout
    project.write_text('[[tool.optrace.diff.rules]]\nparam = "*"\ntolerance = 3\n')
    done = optrace("diff", *runs, cwd=below)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "optrace: pyproject.toml rule 1 has the key 'tolerance';"
        " a rule knows param, quantity, rtol, atol, eps, ignore\n"
    )


def test_noise_is_an_option(place):
    done = optrace("diff", "a", "c", "--noise", "b", cwd=place)
    assert done.returncode == 1 and "no noise: b repeats a to the bit" in done.stdout
    assert optrace("diff", "a", "c", "--noise", "b", "--exact", cwd=place).returncode == 2
    assert optrace("diff", "a", "c", "--noise", "nothing", cwd=place).returncode == 2
