"""The report of the design, as literal text, for the questions that people have most often."""

# ruff: noqa: E501 - the reports are literal text
from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

import optrace
from tests.faults.cases import FAULTS
from tests.faults.programs import run

pytestmark = pytest.mark.usefixtures("only_what_is_new")

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def told(report) -> str:
    """The report without what depends on machine and code: `differs`, `resume`, digests, "both ran the same code"."""
    lines, keep = [], True
    for line in str(report).splitlines():
        label = line[2:10].strip() if line.startswith("  ") else "head"
        keep = keep if not label and line.startswith("  ") else label not in ("differs", "resume")
        if keep and "both ran the same code" not in line:
            lines.append(re.sub(r"\b[0-9a-f]{8}\b", "<source>", line))
    return "\n".join(lines) + "\n"


def of_fault(name: str) -> str:
    fault = next(fault for fault in FAULTS if fault.name == name)
    return told(optrace.diff(run(Path("right"), fault.a()), run(Path("wrong"), fault.b())))


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


def test_momentum_that_averages_as_tutorials_have_it(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import two_layers

    for name in ("torch", "mine"):
        monkeypatch.setattr(sys, "argv", ["two_layers.py", name])
        with optrace.record(name, quiet=True):
            two_layers.main()
    assert told(optrace.diff("torch", "mine")) == MOMENTUM


def test_bf16_weights_where_fp32_were():
    assert of_fault("all-bf16") == BF16


def test_a_resume_that_lost_the_moments():
    assert of_fault("moments-lost") == MOMENTS


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_a_scheduler_stepped_per_micro_batch():
    assert of_fault("scheduler-per-micro-batch") == PER_MICRO_BATCH


def test_noise():
    assert of_fault("own-sgd") == NOISE


MOMENTUM = """\
mine differs from torch - since step 1, in the update rule
  cause   rule-momentum-form: mine averages the gradient, buf = 0.9*buf + 0.1*g; torch.optim.SGD sums it, buf = 0.9*buf + g
  fix     in mine drop the factor (1 - momentum)   (checked: makes all 200 steps equal)
  because replayed from its own inputs, torch.optim.SGD follows sgd at all 200 steps; mine does not, and follows it at all 200 steps with this one change
          as it averages from zero, mine is sgd at 0.1 times the lr, and not with dampening=0.9
  first   step 1, optimizer 0 (SGD), group 0, update of first.weight[2, 0]: 0.002197314 in torch, 0.00021973252 in mine (73,330 times what rounding may do); the same at 3 other params
  same    start values, hyper-parameters, gradients of step 1
  notes   velocity of mine is momentum_buffer/10 of torch at the first step
          torch has state.momentum_buffer, which mine has not
          mine has state.velocity, which torch has not
          mine has no dampening (0), foreach, fused, maximize (False), nesterov (False), weight_decay (0) (neutral in torch)
          mine has no differentiable (False) (in torch it does not touch the rule)
          a tolerance of --eps 1.54e+06 would have passed
          judged within tolerance: other implementation (SGD for-loop, MySGD for-loop of two_layers <source>)
  next    optrace show mine tensors --step 1 --param first.weight
"""
BF16 = """\
wrong differs from right - since step 0, in the dtype of inside.weight: float32 in right, bfloat16 in wrong
  cause   param-dtype: all parameters are bfloat16 in wrong, float32 in right
  fix     in wrong load the model as float32 (torch_dtype, dtype or .to()); to compute in bfloat16 use autocast
  because the start values of wrong are right's rounded to bfloat16
          2% of the elements of wrong do not move in step 1, 0% of right's
  first   step 0, optimizer 0 (AdamW), group 0, param of inside.weight
  notes   judged within tolerance: other dtype (float32, bfloat16)
  next    optrace show wrong tensors --step 0 --param inside.weight
"""
MOMENTS = """\
wrong differs from right - since step 6, in the state (step 1 of wrong is taken for step 7 of right: wrong starts with the parameters of right after step 6)
  cause   state-reset: wrong starts without exp_avg, exp_avg_sq and step of all parameters, which right has
  fix     in wrong save the optimizer's state_dict() and load it after the optimizer has all its groups
  because exp_avg, exp_avg_sq, step of all parameters does not exist in wrong, and is there in right
          no load_state_dict of an optimizer was seen in wrong
  first   step 6 (0 of wrong), optimizer 0 (AdamW), group 0, state.exp_avg of inside.weight
  only    in right: state.exp_avg of inside.weight at step 6
          in right: state.exp_avg_sq of inside.weight at step 6
          in right: state.step of inside.weight at step 6
          in right: state.exp_avg of outside.weight at step 6
          in right: state.exp_avg_sq of outside.weight at step 6
          in right: 13 more
  same    hyper-parameters, gradients of step 6
  notes   right has 5 earlier steps (1-5), which wrong has not
          judged to the bit: same implementation, torch, device, CPU capability and threads
  next    optrace show right tensors --step 6 --param inside.weight
"""
PER_MICRO_BATCH = """\
wrong differs from right - since step 1, in the hyper-parameter lr of group 0: 0.0 in right, 0.0013333333333333333 in wrong
  cause   lr-rate: the lr schedule of wrong runs 2 times as fast as in right
  fix     in wrong step the scheduler once an optimizer step, not 2 times (as when it is stepped for every micro-batch)
  because lr of wrong is right's at steps 2 times as far apart: exact at 14 places of the table with 7 values of lr
          scheduler steps an optimizer step: 1 in right, 2 in wrong
          backward passes an optimizer step in wrong: 2
  first   step 1, optimizer 0 (AdamW), group 0, lr; differs at 16 steps
  same    start values, gradients of step 1
  notes   lr of group 1 is 0.0 in right, 0.0013333333333333333 in wrong since step 1
          judged to the bit: same implementation, torch, device, CPU capability and threads
  next    optrace show wrong groups --step 1
"""
NOISE = """\
wrong is the same as right - within tolerance: 12 steps of SGD, 4 params
  noise   81 of 196 rows differ by rounding, since step 1; every step is within tolerance of its inputs
  same    start values, hyper-parameters, gradients, updates, state, parameters
  notes   wrong has no differentiable (False) (in right it does not touch the rule)
          wrong has no foreach, fused, maximize (False) (neutral in right)
          in updates that differ in bits, errors from 6.4e-06 of an update's size on would have been found at best, from 3.8e-05 on at worst (first.bias, step 9)
          judged within tolerance: other implementation (SGD for-loop, OwnSGD for-loop of tests.faults.optimizers <source>)
"""
