"""pytest inside pytest, for tests of the plugin."""

import shutil

import pandas
import pyarrow.compute
import pyarrow.parquet
import pytest
import torch
import torch._dynamo
import torch._inductor.test_operators

import optrace.testing.asserts
import optrace.testing.conformance
import optrace.testing.golden_cases
import optrace.testing.optimizer_baseline
import optrace.testing.plugin
import optrace.testing.run_baseline

HEAVY = (optrace.testing, pandas, pyarrow.compute, pyarrow.parquet, torch)
"""Imported once here, so that the pytests inside this process do not import them again each."""
for kind in (torch.optim.SGD, torch.optim.AdamW):  # whose first step imports the rest of torch
    tensor = torch.nn.Parameter(torch.ones(2))
    tensor.grad = torch.ones(2)
    kind([tensor]).step()
pytest_plugins = ["pytester"]

OPTIMIZER = """
import torch

class MySGD(torch.optim.Optimizer):
    AVERAGE = {average}

    def __init__(self, params, lr=0.1, momentum=0.9):
        super().__init__(params, dict(lr=lr, momentum=momentum))

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                buf = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                buf.mul_(group["momentum"]).add_(p.grad, alpha=1 - group["momentum"] if self.AVERAGE else 1.0)
                p.add_(buf, alpha=-group["lr"])
"""

TEST = """
from mine import MySGD

def test_sgd(optrace_baseline):
    optrace_baseline.check(lambda params: MySGD(params, lr=0.1))
"""


@pytest.fixture
def project(pytester, monkeypatch):
    """A folder with an optimizer and a test of it; `run(*arguments)` runs pytest there."""
    for name in ("CI", "BUILD_NUMBER", "OPTRACE_REGEN_IN_CI", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)
    pytester.makepyfile(mine=OPTIMIZER.format(average=False), test_mine=TEST)
    pytester.makeini("[pytest]\npythonpath = .\nfilterwarnings = error\n")

    class Project:
        path = pytester.path
        stored = pytester.path / "optrace_baselines" / "test_mine"

        def run(self, *arguments):
            quiet = ("-p", "no:cacheprovider", *(() if "--randomly" in str(arguments) else ("-p", "no:randomly")))
            if "-n" in arguments:
                return pytester.runpytest_subprocess(*PLUGIN, *quiet, *arguments)
            for stale in pytester.path.rglob("__pycache__"):  # a file written twice within a second keeps its bytecode
                shutil.rmtree(stale)
            plugins = [optrace.testing.plugin] if PLUGIN else []
            return pytester.runpytest_inprocess(*quiet, *arguments, plugins=plugins)

        def write(self, **files):
            pytester.makepyfile(**files)

        def average(self, on=True):
            pytester.makepyfile(mine=OPTIMIZER.format(average=on))

    return Project()


def _plugin():
    """Options that load the plugin where it is not installed; as pytest looks for it: in every distribution."""
    from importlib.metadata import distributions

    found = {point.name for one in distributions() for point in one.entry_points if point.group == "pytest11"}
    return () if "optrace" in found else ("-p", "optrace.testing.plugin")


PLUGIN = _plugin()
