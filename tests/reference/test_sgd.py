"""The reference SGD is torch.optim.SGD, bit for bit."""

import itertools

import numpy as np
import pytest
import torch

from optrace.errors import OptionError
from optrace.reference import SGD, Parameter, rounding
from optrace.reference.sgd import RULE

from .twins import drive

OPTIONS = [
    {
        "lr": 0.1,
        "momentum": momentum,
        "dampening": dampening,
        "weight_decay": decay,
        "nesterov": nesterov,
        "maximize": m,
    }
    for momentum, dampening, decay, nesterov, m in itertools.product(
        (0, 0.9), (0, 0.4), (0, 0.03), (False, True), (False, True)
    )
    if not (nesterov and (momentum == 0 or dampening)) and not (dampening and momentum == 0)
]
TWO_GROUPS = [{"lr": 0.01}, {"lr": 0.001, "momentum": 0.5, "weight_decay": 0.2, "dampening": 0.1}]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items() if v))
def test_every_bit_of_200_steps_is_torchs(options, dtype):
    drive("SGD", options, dtype, instead={})


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_groups_keep_their_own_options(dtype):
    drive("SGD", {"lr": 0.3, "momentum": 0.9}, dtype, steps=40, groups=TWO_GROUPS)


@pytest.mark.parametrize("options", OPTIONS[::5])
@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_complex_parameters(options, dtype):
    drive("SGD", options, dtype, steps=40)


def test_rule_writes_into_nothing_that_it_was_given():
    hyper = RULE.defaults | {"lr": 0.1, "momentum": 0.9}
    param, grad = np.array([1.0, 2.0]), np.array([0.5, -0.5])
    _, state = RULE.step(param, grad, {}, hyper)
    kept = state["momentum_buffer"].copy()
    grad *= 100  # autograd accumulates into the same memory
    np.testing.assert_array_equal(state["momentum_buffer"], kept)
    RULE.step(param, grad, state, hyper)
    np.testing.assert_array_equal(state["momentum_buffer"], kept)
    np.testing.assert_array_equal(param, [1.0, 2.0])


def test_no_gradient_differs_from_a_gradient_of_zeros():
    hyper = RULE.defaults | {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    param = np.array([1.0])
    state = {"momentum_buffer": np.array([1.0])}
    assert RULE.step(param, None, state, hyper) == (param, state)
    moved, after = RULE.step(param, np.zeros(1), state, hyper)
    assert moved[0] < 1
    assert after["momentum_buffer"][0] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("options", "quoted"),
    [
        ({"lr": -1.0}, "learning rate: -1.0"),
        ({"momentum": -0.5}, "momentum: -0.5"),
        ({"weight_decay": -2}, "weight_decay: -2"),
        ({"nesterov": True}, "momentum=0"),
        ({"nesterov": True, "momentum": 0.9, "dampening": 0.5}, "dampening=0.5"),
    ],
)
def test_options_that_torch_refuses_are_refused(options, quoted):
    with pytest.raises(ValueError, match=r"Invalid|Nesterov"):
        torch.optim.SGD([torch.zeros(1, requires_grad=True)], **options)
    with pytest.raises(OptionError, match=quoted):
        SGD([Parameter(np.zeros(1))], **options)


def test_plain_arithmetic_is_another_result():
    def run():
        param, rng = Parameter(np.ones(100, np.float32)), np.random.default_rng(0)
        optimizer = SGD([param], lr=0.1, momentum=0.9)
        for _ in range(5):
            param.grad = rng.standard_normal(100).astype(np.float32)
            optimizer.step()
        return param.data

    with rounding(fma=True):
        fused = run()
    with rounding(fma=False):
        plain = run()
    assert (fused != plain).any()
    np.testing.assert_allclose(fused, plain, rtol=1e-5)
