"""The elementwise reference optimizers against torch's: bit for bit, up to torch's own square root."""

import numpy as np
import pytest
import torch

from optrace.reference import rounding

from .twins import TORCHS_OWN, Twins, drive, eps_per_step

WITHOUT_ROOT = {
    "Adamax": [
        {},
        {"lr": 0.05, "betas": (0.5, 0.9), "eps": 1e-2},
        {"weight_decay": 0.1, "maximize": True},
    ],
    "ASGD": [
        {},
        {"lr": 0.05, "lambd": 0.1, "alpha": 0.9, "t0": 5},
        {"weight_decay": 0.1, "maximize": True, "t0": 0, "lambd": 1e-2},
    ],
    "Rprop": [
        {},
        {"lr": 0.1, "etas": (0.3, 1.7), "step_sizes": (1e-3, 0.2)},
        {"maximize": True},
    ],
}
WITH_ROOT = {
    "Adam": [
        {},
        {"lr": 0.05, "betas": (0.5, 0.9), "eps": 1e-2, "weight_decay": 0.1},
        {"amsgrad": True, "lr": 0.02},
        {"amsgrad": True, "weight_decay": 0.1, "maximize": True, "betas": (0.3, 0.6)},
        {"weight_decay": 0.1, "decoupled_weight_decay": True},
    ],
    "AdamW": [
        {},
        {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-2, "weight_decay": 0.2, "maximize": True},
        {"amsgrad": True, "weight_decay": 0},
    ],
    "NAdam": [
        {},
        {"lr": 0.05, "betas": (0.45, 0.9), "eps": 1e-2, "weight_decay": 0.1, "momentum_decay": 0.3},
        {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True},
        {"momentum_decay": 0},
    ],
    "RAdam": [
        {},
        {"lr": 0.05, "betas": (0.45, 0.9), "eps": 1e-2, "weight_decay": 0.1},
        {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True},
        {"betas": (0.9, 0.5)},
    ],
    "RMSprop": [
        {},
        {"lr": 0.05, "alpha": 0.3, "eps": 1e-2, "weight_decay": 0.1},
        {"momentum": 0.9},
        {"centered": True},
        {"centered": True, "momentum": 0.9, "weight_decay": 0.1, "maximize": True},
    ],
    "Adagrad": [
        {},
        {"lr": 0.1, "lr_decay": 0.1, "eps": 1e-2, "initial_accumulator_value": 0.5},
        {"weight_decay": 0.1, "maximize": True},
    ],
    "Adadelta": [
        {},
        {"lr": 0.3, "rho": 0.5, "eps": 1e-2},
        {"weight_decay": 0.1, "maximize": True},
    ],
}
GROUPS = {
    "Adamax": {"betas": (0.7, 0.8), "weight_decay": 0.3},
    "ASGD": {"lambd": 0.2, "t0": 3},
    "Rprop": {"etas": (0.2, 1.1)},
    "Adam": {"amsgrad": True, "eps": 1e-3},
    "AdamW": {"weight_decay": 0.0, "betas": (0.6, 0.7)},
    "NAdam": {"momentum_decay": 0.1, "weight_decay": 0.3},
    "RAdam": {"betas": (0.7, 0.8), "weight_decay": 0.3},
    "RMSprop": {"centered": True, "momentum": 0.5},
    "Adagrad": {"lr_decay": 0.3, "eps": 1e-3, "initial_accumulator_value": 7.0},
    "Adadelta": {"rho": 0.6, "weight_decay": 0.3},
}
ALL = WITHOUT_ROOT | WITH_ROOT


def label(options):
    return "-".join(f"{key}={value}" for key, value in options.items()) or "defaults"


def cases(table):
    return [pytest.param(name, o, id=f"{name}-{label(o)}") for name, option_sets in table.items() for o in option_sets]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "options"), cases(WITHOUT_ROOT))
def test_every_bit_of_200_steps_is_torchs(name, options, dtype):
    drive(name, options, dtype, instead={})


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "options"), cases(WITH_ROOT))
def test_every_bit_of_200_steps_is_torchs_with_torchs_square_root(name, options, dtype):
    drive(name, options, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "options"), cases(WITH_ROOT))
def test_a_step_from_the_same_state_is_within_4_eps(name, options, dtype):
    param, state = eps_per_step(name, options, dtype)
    assert param <= 4
    assert state <= 4


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ALL)
def test_groups_keep_their_own_options(name, dtype):
    drive(name, ALL[name][1], dtype, steps=40, groups=[{}, {"lr": 0.3} | GROUPS[name]])


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
@pytest.mark.parametrize(("name", "options"), cases(ALL))
def test_complex_parameters_are_pairs_of_real_ones(name, options, dtype):
    drive(name, options, dtype, steps=24)


@pytest.mark.parametrize(("name", "options"), cases(ALL))
def test_half_precision_is_within_4_eps_a_step(name, options):
    param, state = eps_per_step(name, options, np.float16, steps=20)
    assert param <= 4
    assert state <= 4


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["SGD", *ALL])
def test_infinite_missing_tiny_and_zero_numbers_come_out_as_torchs(name, dtype):
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1} if name == "SGD" else ALL[name][-1]
    twins = Twins(name, options, dtype, shapes=[(8,), (67,), (0,)])
    tiny, huge = np.finfo(dtype).smallest_subnormal, np.finfo(dtype).max
    special = [0.0, -0.0, tiny, -3 * tiny, float(huge) / 4, 1e-30, np.inf, np.nan]
    with rounding(**TORCHS_OWN):
        for step in range(1, 7):
            twins.feed(step)
            for mine, tensor in zip(twins.ours, twins.theirs, strict=True):
                if mine.grad.size and step > 1:
                    mine.grad[:8] = np.roll(special, step if step < 4 else 0)
                    tensor.grad[:8] = torch.from_numpy(mine.grad[:8])
            twins.step()
            twins.check(step)
