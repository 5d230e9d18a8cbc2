"""`optrace replay` as a user runs it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from in_process import said

import optrace

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def run(*args, cwd):
    return subprocess.run([sys.executable, "-m", "optrace", *args], cwd=cwd, capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replay")
    shutil.copy(EXAMPLES / "two_layers.py", folder)
    done = run("record", "-q", "-o", "good", "two_layers.py", "torch", "--steps", "20", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_torchs_own_run_follows_its_rule(folder):
    done = run("replay", "good", cwd=folder)
    assert done.returncode == 0
    assert done.stdout.startswith("good@0 (SGD) follows sgd in all 20 steps, within 0 eps\n")
    assert done.stderr == ""


def test_a_stretch_and_an_optimizer_can_be_named_and_json_is_strict(folder):
    done = run("replay", "good@SGD@5:9", "--format", "json", cwd=folder)
    (report,) = json.loads(done.stdout)
    assert report["steps"] == [5, 9]
    assert report["same"] is True


def test_an_optimizer_that_cannot_be_judged_keeps_nobody_from_judging_the_others(folder):
    weights = [torch.ones(2, 2, requires_grad=True) for _ in range(2)]
    optimizers = [torch.optim.Muon(weights[:1]), torch.optim.SGD(weights[1:], lr=0.1)]
    with optrace.record(folder / "two", quiet=True):
        for _ in range(4):
            for weight, optimizer in zip(weights, optimizers, strict=True):
                optimizer.zero_grad()
                weight.square().sum().backward()
                optimizer.step()
    done = run("replay", "two", cwd=folder)
    assert done.returncode == 2
    assert done.stderr.startswith("optrace: two@0 (Muon): muon mixes the elements")
    assert done.stdout.startswith("two@1 (SGD) follows sgd in all 4 steps")


def test_another_rule_is_refuted_with_status_1(folder):
    done = run("replay", "good", "--rule", "adam", cwd=folder)
    assert done.returncode == 1
    assert "leaves adam at step 1" in done.stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nowhere"], "no trace at nowhere"),
        (["good@7"], "7"),
        (["good", "--rule", "sdg"], "did you mean sgd"),
        (["good", "--rule", "lbfgs"], "lbfgs"),
        (["good", "--rule", "torch.optim.SGD"], "did you mean sgd"),
        (["good", "--eps", "-1"], "--eps"),
        (["good", "--eps", "nan"], "tolerance is nan; it is a number of eps from 0"),
    ],
)
def test_trouble_is_one_sentence_and_status_2(folder, monkeypatch, capsys, args, words):
    monkeypatch.chdir(folder)
    done = said(capsys, "replay", *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["replay", "identify"])
def test_a_recording_without_what_is_judged_is_trouble_not_a_verdict(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    weight = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    for name, settings in (("no_param", {"params": "nothing"}), ("no_step", {"steps": "100:200"})):
        with optrace.record(name, quiet=True, **settings):
            for _ in range(2):
                weight.square().sum().backward()
                optimizer.step()
    done = said(capsys, command, "no_param")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "optrace: no_param holds no parameter of any optimizer, so there is nothing to judge\n"
    done = said(capsys, command, "no_step")
    assert done.returncode == 2 and "no step" in done.stdout + done.stderr


def test_a_stretch_without_steps_says_so(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    done = said(capsys, "replay", "good@900:901")
    assert done.returncode == 2
    assert "no step of optimizer 0 was recorded in what was asked for" in done.stdout


def test_a_class_of_the_users_own_is_driven_through_the_record(folder, monkeypatch, capsys):
    (folder / "replayed_classes.py").write_text(
        "import torch\n\n\nclass Mine(torch.optim.SGD):\n    pass\n\n\nclass Half(torch.optim.SGD):\n"
        "    def step(self, closure=None):\n        for g in self.param_groups:\n            g['lr'] /= 2\n"
        "        super().step(closure)\n"
    )
    monkeypatch.chdir(folder)
    assert said(capsys, "replay", "good", "--as", "replayed_classes:Mine").returncode == 0
    done = said(capsys, "replay", "good", "--as", "replayed_classes:Half")
    assert done.returncode == 1
    assert "leaves Half at step 1" in done.stdout
    assert said(capsys, "replay", "good", "--as", "replayed_classes:Nothing").returncode == 2
