"""No false alarm: every implementation that torch ships passes; what does not is in docs/findings.md, and only that."""

from __future__ import annotations

import functools
import inspect
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import optrace
from optrace.goldens.adapters import adapt
from optrace.goldens.candidate import recognise
from optrace.goldens.check import run_case
from optrace.goldens.drive import with_outputs
from optrace.goldens.grid import Case, _rich
from optrace.goldens.grid_options import OPTIONS
from optrace.goldens.low_precision import check_case
from optrace.goldens.make import inputs_of, torch_optimizer
from optrace.goldens.rule_driver import RuleDriver
from optrace.goldens.tolerance import derive
from optrace.reference.rule import RULES

RULE_NAMES = [rule for rule in RULES if rule not in ("lbfgs", "lion")]  # one takes closures, the other is not torch's
IMPLEMENTATIONS = [
    (rule, how)
    for rule in RULE_NAMES
    for how in ("for-loop", "foreach", "fused", "differentiable")
    if how == "for-loop" or how in inspect.signature(torch_optimizer(rule)).parameters
]
MARGIN = 0.55
"""The largest error of a correct implementation, as a share of the tolerance."""


def options_of(rule, how):
    if how != "for-loop":
        return {how: True}
    return {"foreach": False} if "foreach" in inspect.signature(torch_optimizer(rule)).parameters else {}


def finding(rule, how, dtype, case=""):
    """The number of the finding in docs/findings.md that makes this fail, or None."""
    low = dtype in ("bfloat16", "float16")
    if rule == "sgd" and how == "fused":
        return (
            3
            if "none-grad" in case or "groups" in case
            else 1
            if low and ("shapes" in case or "sizes" in case)
            else None
        )
    if rule == "muon" and dtype == "bfloat16":
        return 2 if "no-nesterov" in case or "groups" in case else None
    if how == "differentiable" and not low and rule in ("adam", "adamw"):
        return 5
    if how == "differentiable" and rule == "nadam" and dtype == "float64":
        return 5
    return None


def judged(rule, how, dtype):
    report = optrace.check_golden(torch_optimizer(rule), rule, dtype, options_of(rule, how), explain=False)
    assert not report.not_covered
    failing = [result for result in report.differing if finding(rule, how, dtype, result.case) is None]
    assert not failing, str(report)
    return report


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("rule", "how"), IMPLEMENTATIONS)
def test_every_implementation_passes_in_every_dtype_but_for_the_findings(rule, how, dtype):
    report = judged(rule, how, dtype)
    if dtype in ("float64", "float32"):
        for result in report.agreeing:
            if finding(rule, how, dtype, result.case) is None:
                assert result.worst <= MARGIN * result.tolerance, result


TORCH_2_13 = pytest.mark.skipif(not torch.__version__.startswith("2.13."), reason="findings of torch 2.13")


@TORCH_2_13
@pytest.mark.parametrize(
    ("rule", "how", "dtype", "case"),
    [
        ("sgd", "fused", "bfloat16", "shapes"),
        ("sgd", "fused", "float32", "none-grad"),
        ("muon", "for-loop", "bfloat16", "no-nesterov"),
        ("adam", "differentiable", "float64", "plain"),
    ],
)
def test_the_findings_are_still_found(rule, how, dtype, case):
    assert finding(rule, how, dtype, case)
    report = optrace.check_golden(torch_optimizer(rule), rule, dtype, options_of(rule, how), cases=case, explain=False)
    assert not report.same


def test_two_threads_make_no_difference():
    torch.set_num_threads(2)
    for rule in RULE_NAMES:
        for how in ("for-loop", "foreach"):
            if (rule, how) in IMPLEMENTATIONS:
                judged(rule, how, "float32")


WITHOUT_FMA = """
import torch, sys
torch.set_num_threads(1)
assert torch.backends.cpu.get_cpu_capability() == "DEFAULT"
import optrace
for name in sys.argv[1:]:
    rule = name.lower()
    for options in ({}, {"foreach": True}):
        if options and rule in ("sparseadam", "muon", "lbfgs"):
            continue
        report = optrace.check_golden(getattr(torch.optim, name), rule, options=options, explain=False)
        assert report.same, str(report)
    assert optrace.check_golden(getattr(optrace.reference, name), rule, explain=False).same
"""


def test_without_fused_multiply_add_torch_and_the_reference_pass():
    names = ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "NAdam", "ASGD", "Rprop", "SparseAdam", "Muon", "LBFGS"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_FMA, *names],
        env={**os.environ, "ATEN_CPU_CAPABILITY": "default"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@functools.cache
def sizes(rule, dtype):
    """Two steps of tensors of 1 to 300 elements; the reference is the oracle."""
    by_row = rule in ("muon", "sparseadam")
    params = {f"n{n}": (0, (n, 3) if by_row else (n,)) for n in (range(1, 101, 9) if by_row else range(1, 301))}
    options = OPTIONS[rule].get("amsgrad", _rich(rule))
    case = Case(rule, "sizes", (options,), params, "", steps=2, sparse=rule == "sparseadam")
    some = {
        name: params[name] for name in list(params)[:: 1 if by_row else 23]
    }  # of all it would be as large or larger
    free = derive(inputs_of(replace(case, params=some), dtype))
    golden = with_outputs(inputs_of(case, dtype), RuleDriver(RULES[rule].step, rule == "sparseadam"))
    return replace(golden, tolerance_free=free["param"], notes={**golden.notes, "tolerance_state": str(free["state"])})


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("rule", "how"), IMPLEMENTATIONS)
def test_tensors_of_1_to_300_elements(rule, how, dtype):
    wide = dtype in ("float64", "float32")
    golden = sizes(rule, dtype if wide else "float32")
    driver_of = adapt(recognise(torch_optimizer(rule), options_of(rule, how)), rule, RULES[rule].defaults, dtype)
    result = run_case(golden, driver_of).result if wide else check_case(golden, dtype, driver_of)
    assert result.verdict == "same" or finding(rule, how, dtype, "sizes"), result


def test_low_precision_without_state_is_not_covered_and_wrong_is_rejected():
    class Ignores(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                group["weight_decay"] = 0
            super().step(closure)

    report = optrace.check_golden(Ignores, "sgd", "bfloat16")
    assert "sgd/groups-resume-bfloat16" in {result.case for result in report.differing}

    class Renamed:
        def __init__(self, params, lr=1e-3, momentum=0.0):
            self.inner = torch.optim.SGD(params, lr, momentum)

        def step(self):
            self.inner.step()

    report = optrace.check_golden(Renamed, "sgd", "bfloat16")
    assert report.same
    assert any("state under torch's names" in str(result.lacks) for result in report.not_covered)
