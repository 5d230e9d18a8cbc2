"""`optrace replay` as a user runs it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
        (["good", "--eps", "-1"], "--eps"),
    ],
)
def test_trouble_is_one_sentence_and_status_2(folder, args, words):
    done = run("replay", *args, cwd=folder)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_class_of_the_users_own_is_driven_through_the_record(folder):
    (folder / "mine.py").write_text(
        "import torch\n\n\nclass Mine(torch.optim.SGD):\n    pass\n\n\nclass Half(torch.optim.SGD):\n"
        "    def step(self, closure=None):\n        for g in self.param_groups:\n            g['lr'] /= 2\n"
        "        super().step(closure)\n"
    )
    assert run("replay", "good", "--as", "mine:Mine", cwd=folder).returncode == 0
    done = run("replay", "good", "--as", "mine:Half", cwd=folder)
    assert done.returncode == 1
    assert "leaves Half at step 1" in done.stdout
    assert run("replay", "good", "--as", "mine:Nothing", cwd=folder).returncode == 2
