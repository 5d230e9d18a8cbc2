"""The switched rules are torch's where no switch is thrown, and every variant is a mistake that shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from optrace.reference.families import FAMILIES
from optrace.reference.variants import VARIANTS

TORCH = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adamax": torch.optim.Adamax,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "rprop": torch.optim.Rprop,
    "adafactor": torch.optim.Adafactor,
    "muon": torch.optim.Muon,
}
OPTIONS = {
    "sgd": [
        {"lr": 0.1},
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "maximize": True},
        {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    ],
    "adam": [
        {"lr": 0.1, "weight_decay": 0.1, "eps": 1e-3},
        {"lr": 0.1, "amsgrad": True, "betas": (0.8, 0.9), "maximize": True},
        {"lr": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": True},
        {"lr": 0.1, "eps": 1.0},
    ],
    "adamw": [
        {"lr": 0.1, "weight_decay": 0.3, "eps": 1e-3},
        {"lr": 0.1, "eps": 1.0},
        {"lr": 0.1, "amsgrad": True, "betas": (0.8, 0.9)},
    ],
    "rmsprop": [
        {"lr": 0.01, "weight_decay": 0.1, "momentum": 0.9, "eps": 1e-3},
        {"lr": 0.01, "centered": True, "alpha": 0.9, "eps": 1e-2},
    ],
    "adagrad": [{"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.1, "eps": 1e-3, "initial_accumulator_value": 0.1}],
    "adamax": [
        {"lr": 0.1, "weight_decay": 0.1, "eps": 1e-2, "betas": (0.8, 0.9)},
        {"lr": 0.1, "maximize": True},
    ],
    "nadam": [
        {"lr": 0.1, "weight_decay": 0.1, "eps": 1e-3, "momentum_decay": 0.1},
        {"lr": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": True, "betas": (0.7, 0.95), "maximize": True},
    ],
    "radam": [
        {"lr": 0.1, "weight_decay": 0.1, "eps": 1e-3},
        {"lr": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": True, "betas": (0.7, 0.95), "maximize": True},
    ],
    "adadelta": [{"lr": 0.5, "weight_decay": 0.1, "eps": 1e-2}, {"rho": 0.6, "maximize": True}],
    "rprop": [{"lr": 0.1, "step_sizes": (0.08, 0.11)}, {"lr": 0.1, "etas": (0.3, 1.5), "maximize": True}],
    "adafactor": [
        {"lr": 0.6, "weight_decay": 0.1, "eps": (0.3, 1e-3)},
        {"lr": 0.1, "eps": (3.0, 1e-3)},
        {"lr": 0.1, "beta2_decay": -0.5, "d": 1.5, "maximize": True},
    ],
    "muon": [
        {"lr": 0.1, "weight_decay": 0.5, "ns_steps": 2},
        {"lr": 0.1, "momentum": 0.5, "nesterov": False, "weight_decay": 0.5},
        {"lr": 0.1, "adjust_lr_fn": "match_rms_adamw"},
    ],
    "lion": [{"lr": 0.1, "weight_decay": 0.3, "betas": (0.6, 0.9)}, {"lr": 0.01, "betas": (0.3, 0.8)}],
}
SHAPES = {"adafactor": [(4, 3)], "muon": [(4, 3), (3, 4)]}
"""Of the parameter, where it is not [(9,)]."""
SIZES = [1, 3, 0.01, 0.1, 2, 1]

NONE_GRAD = {"none-as-zero", "none-decays"}
"""Mistakes that show only where a gradient is None."""
ALL = [
    (rule, options, shape) for rule, many in OPTIONS.items() for options in many for shape in SHAPES.get(rule, [(9,)])
]
RATES = [1, 1, 0.5, 0.5, 2, 2]


def start(shape):
    return np.linspace(-1, 1.3, int(np.prod(shape))).reshape(shape)


def grads(shape):
    return [g * s for s, g in zip(SIZES, np.random.default_rng(5).normal(size=(6, *shape)), strict=True)]


def torch_run(rule, options, shape):
    """Parameters and state after each step, and the options that torch's group held."""
    p = torch.from_numpy(start(shape)).requires_grad_()
    loop = {} if rule in ("muon", "lion") else {"foreach": False}
    optimizer = (TORCH.get(rule) or pytest.importorskip("lion_pytorch").Lion)([p], **loop, **options)
    outs = []
    hyper = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
    for step, g in enumerate(grads(shape)):
        optimizer.param_groups[0]["lr"] = hyper["lr"] * RATES[step]
        p.grad = torch.tensor(g)
        optimizer.step()
        state = {k: v.detach().numpy().copy() for k, v in optimizer.state[p].items() if v is not None}
        outs.append((p.detach().numpy().copy(), {k: v.copy() for k, v in state.items()}))
    return outs, hyper


def own_run(step, hyper, shape):
    p, state, outs = start(shape), {}, []
    for g, rate in zip(grads(shape), RATES, strict=True):
        p, state = step(p, g, state, hyper | {"lr": hyper["lr"] * rate})
        outs.append((p, state))
    return outs


@pytest.mark.parametrize(("rule", "options", "shape"), ALL)
def test_without_a_switch_a_family_is_torch(rule, options, shape):
    expected, hyper = torch_run(rule, options, shape)
    got = own_run(lambda *a: FAMILIES[rule](*a, {}), hyper, shape)
    for (p, state), (want_p, want_state) in zip(got, expected, strict=True):
        np.testing.assert_allclose(p, want_p, rtol=1e-13, atol=1e-15)
        for key in want_state:
            np.testing.assert_allclose(state[key], want_state[key], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("rule", sorted(VARIANTS))
def test_each_variant_differs_from_torch_and_from_the_others_under_some_options(rule):
    unseen = {v.name for v in VARIANTS[rule]} - NONE_GRAD
    signatures = {}
    for _, options, shape in (one for one in ALL if one[0] == rule):
        expected, hyper = torch_run(rule, options, shape)
        end = expected[-1][0]
        for variant in VARIANTS[rule]:
            out = own_run(variant.step, hyper, shape)[-1][0]
            if not np.allclose(out, end, rtol=1e-9, atol=0, equal_nan=True):
                unseen.discard(variant.name)
            signatures.setdefault(variant.name, []).append(out.tobytes())
    assert not unseen
    names = [n for n in signatures if n not in NONE_GRAD]
    assert len({tuple(signatures[n]) for n in names}) == len(names)


def test_none_as_zero_moves_what_torch_skips():
    variant = next(v for v in VARIANTS["sgd"] if v.name == "none-as-zero")
    hyper = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "dampening": 0, "nesterov": False, "maximize": False}
    p, _ = variant.step(np.ones(3), None, {}, hyper)
    assert (p == 0.99).all()


def test_none_decays_shrinks_what_torch_skips_and_leaves_its_state():
    variant = next(v for v in VARIANTS["adamw"] if v.name == "none-decays")
    state = {"step": np.float32(3), "exp_avg": np.ones(3), "exp_avg_sq": np.ones(3)}
    p, after = variant.step(np.ones(3), None, state, {"lr": 0.1, "weight_decay": 0.1, "betas": (0.9, 0.99), "eps": 0})
    np.testing.assert_allclose(p, 0.99, rtol=1e-15)
    assert after == state


def test_words_hold_the_options_numbers():
    average = next(v for v in VARIANTS["sgd"] if v.name == "average")
    does, torch_does, mend = average.words({"lr": 0.1, "momentum": 0.9})
    assert does == "averages the gradient, buf = 0.9*buf + 0.1*g"
    assert torch_does == "sums it, buf = 0.9*buf + g"
    assert mend == "drop the factor (1 - momentum)"


def test_every_variant_is_worded_for_every_option_set():
    for rule, options, shape in ALL:
        hyper = torch_run(rule, options, shape)[1]
        for variant in VARIANTS[rule]:
            assert all(text and "{" not in text for text in variant.words(hyper))
