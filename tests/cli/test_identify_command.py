"""`optrace identify` as a user runs it."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

from in_process import said

import optrace

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def run(*args, cwd):
    return subprocess.run([sys.executable, "-m", "optrace", *args], cwd=cwd, capture_output=True, text=True)


def test_the_examples_rules_are_told_from_their_records(tmp_path, monkeypatch, capsys):
    for name in ("torch", "mine"):
        monkeypatch.setattr(sys, "argv", ["two_layers.py", name, "--steps", "40"])
        with optrace.record(tmp_path / name, quiet=True):
            runpy.run_path(str(EXAMPLES / "two_layers.py"), run_name="__main__")
    done = run("identify", "torch", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("torch@0 (SGD): SGD, momentum 0.9, lr 0.01 in group 0, 0.001 in others; residual ")
    monkeypatch.chdir(tmp_path)
    done = said(capsys, "identify", "mine")
    assert done.returncode == 0
    assert done.stdout.startswith(
        "mine@0 (MySGD): SGD, momentum 0.9 averaged from zero, lr 0.01 in group 0, 0.001 in others; residual "
    )
    done = said(capsys, "identify", "nowhere")
    assert done.returncode == 2
    assert "no trace at nowhere" in done.stderr
