"""Which random generators are blamed for unequal gradients, and which are only told to differ."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

import optrace
from optrace.compare.random_states import Generators

pytestmark = pytest.mark.usefixtures("only_what_is_new")


def train(path, *, seed=0, draw=None, dropout=0.0, scale=1.0, torch_seed=0):
    """Six steps on fixed batches; `draw` gives a number that the inputs are multiplied by."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(dropout), torch.nn.Linear(8, 2))
    examples = torch.utils.data.TensorDataset(torch.randn(24, 4), torch.randn(24, 2))
    loader = torch.utils.data.DataLoader(examples, batch_size=4, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(torch_seed)
    with optrace.record(path, quiet=True):
        for x, y in loader:
            optimizer.zero_grad()
            factor = scale if draw is None else 1.0 + 0.1 * draw()
            (net(x * factor) - y).square().mean().backward()
            optimizer.step()
    return path


def first_cause(tmp_path, a, b):
    return optrace.diff(train(tmp_path / "a", **a), train(tmp_path / "b", **b))


def test_a_generator_that_nothing_draws_from_is_not_the_cause(tmp_path):
    report = first_cause(tmp_path, {}, {"seed": 1, "scale": 1.1})
    cause = report.causes[0]
    assert cause.code == "grad-upstream"
    assert (
        "the random state differs (Python's random or NumPy's global generator), but nothing is seen to draw from it"
        " while training; torch's agree"
    ) in cause.evidence
    assert "the random state differs since step 1 (Python's random or NumPy's global generator)" in report.notes


@pytest.mark.parametrize("draw", [random.random, np.random.rand])
def test_a_generator_outside_torch_that_training_draws_from_is_the_cause(tmp_path, draw):
    cause = first_cause(tmp_path, {"draw": draw}, {"draw": draw, "seed": 1}).causes[0]
    assert cause.code == "rng"
    assert "Python's random or NumPy's global generator" in cause.summary
    assert "random.seed and numpy.random.seed" in cause.fix
    assert "torch's generators agree" in cause.evidence[1]


def test_torchs_generator_is_the_cause_where_dropout_draws_from_it(tmp_path):
    cause = first_cause(tmp_path, {"dropout": 0.5}, {"dropout": 0.5, "torch_seed": 1}).causes[0]
    assert cause.code == "rng"
    assert "(torch's generators)" in cause.summary
    assert "torch.manual_seed" in cause.fix


def test_torchs_generator_is_not_the_cause_where_it_rests(tmp_path):
    cause = first_cause(tmp_path, {}, {"torch_seed": 1, "scale": 1.1}).causes[0]
    assert cause.code == "grad-upstream"
    assert (
        "the random state differs (torch's generators), but nothing is seen to draw from it while training"
        in cause.evidence
    )


def test_one_step_alone_does_not_tell_that_torchs_generator_rests():
    state = Generators(({1: 5}, {1: 6})).at(1)
    assert state is not None
    assert state.matter


def test_a_fingerprint_that_one_side_lacks_says_nothing():
    assert Generators(({1: 5}, {})).at(1) is None


def test_halves_of_negative_fingerprints_are_told_apart():
    state = Generators(({1: -(1 << 32) + 7, 2: 7}, {1: 7, 2: 7})).at(1)
    assert state is not None
    assert (state.torch, state.host, state.host_drawn) == (False, True, True)
