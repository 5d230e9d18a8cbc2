"""The script that `repro` makes runs alone and fails where the two runs part."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import optrace
from optrace.compare.repro import repro
from optrace.errors import CompareError

pytestmark = pytest.mark.usefixtures("only_what_is_new")

torch.set_num_threads(1)


class NoNesterov(torch.optim.SGD):
    """Takes the option and forgets it."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["nesterov"] = False
        super().step(closure)
        for group in self.param_groups:
            group["nesterov"] = True


class LateEps(torch.optim.AdamW):
    """From step 4 on adds a little to what it has computed."""

    calls = 0

    def step(self, closure=None):
        super().step(closure)
        self.calls += 1
        if self.calls >= 4:
            with torch.no_grad():
                self.param_groups[0]["params"][0].mul_(1.0001)


def train(path, make, steps=6, target=0.0):
    torch.manual_seed(1)
    net = torch.nn.Linear(5, 4)
    x = torch.randn(8, 5)
    optimizer = make(net.parameters())
    with optrace.record(path, quiet=True):
        for _ in range(steps):
            optimizer.zero_grad()
            (net(x) - target).square().mean().backward()
            optimizer.step()
    return path


def execute(text, tmp_path):
    script = tmp_path / "repro.py"
    script.write_text(text)
    return subprocess.run([sys.executable, script], capture_output=True, text=True, cwd="/")


def sgd(params):
    return torch.optim.SGD(params, lr=0.1, momentum=0.9, nesterov=True)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (sgd, lambda p: NoNesterov(p, lr=0.1, momentum=0.9, nesterov=True)),
        (lambda p: torch.optim.AdamW(p, lr=0.01), lambda p: LateEps(p, lr=0.01)),
        (sgd, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, nesterov=True)),
    ],
)
def test_the_script_runs_alone_and_its_assertion_fails(tmp_path, a, b):
    text = repro(train(tmp_path / "a", a), train(tmp_path / "b", b))
    done = execute(text, tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("AssertionError")
    assert "optrace" not in text.replace("Made by optrace repro", "")
    assert str(tmp_path) not in text


def test_with_the_numbers_of_a_itself_the_same_script_passes(tmp_path):
    run = train(tmp_path / "a", sgd)
    other = train(tmp_path / "b", lambda p: NoNesterov(p, lr=0.1, momentum=0.9, nesterov=True))
    lines = repro(run, other).splitlines()
    trace = optrace.open(run)
    p = next(line for line in lines if line.startswith("p = "))
    (start,) = trace.table("tensors", step=0, param="weight", quantity="param")["sample"]
    shown = [float(word) for word in p[p.index("[") + 1 : p.index("]")].split(",")]
    slots = [list(start).index(value) for value in shown]
    (after,) = trace.table("tensors", step=1, param="weight", quantity="param")["sample"]
    mended = [
        f"other = torch.tensor({[float(after[i]) for i in slots]}, dtype=torch.float32)"
        if line.startswith("other = ")
        else line
        for line in lines
    ]
    done = execute("\n".join(mended), tmp_path)
    assert done.returncode == 0, done.stderr


def test_gradients_that_differ_are_shown_side_by_side(tmp_path):
    text = repro(train(tmp_path / "a", sgd), train(tmp_path / "b", sgd, target=0.5))
    assert "# grad of" in text
    assert execute(text, tmp_path).returncode == 1


def test_equal_runs_have_nothing_to_reproduce(tmp_path):
    with pytest.raises(CompareError, match="nothing to reproduce"):
        repro(train(tmp_path / "a", sgd), train(tmp_path / "b", sgd))
