"""The option sets of the optimizer cases: the least that parts the mistakes people make in each rule."""

from __future__ import annotations

from typing import Any

OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "sgd": {
        "plain": {"lr": 0.1},
        "momentum": {"lr": 0.1, "momentum": 0.9},
        "dampening": {"lr": 0.1, "momentum": 0.9, "dampening": 0.5},
        "nesterov": {"lr": 0.1, "momentum": 0.9, "nesterov": True},
        "weight-decay": {"lr": 0.1, "weight_decay": 0.05},
        "momentum-decay": {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.05},
        "dampening-decay": {"lr": 0.1, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.05},
        "nesterov-decay": {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.05, "nesterov": True},
        "maximize": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05, "maximize": True},
    },
    "adam": {
        "plain": {"lr": 0.01},
        "betas": {"lr": 0.01, "betas": (0.7, 0.95)},
        "eps": {"lr": 0.01, "eps": 1e-2},
        "weight-decay": {"lr": 0.01, "weight_decay": 0.1},
        "amsgrad": {"lr": 0.01, "betas": (0.8, 0.9), "amsgrad": True},
        "amsgrad-decay-eps": {"lr": 0.01, "betas": (0.8, 0.9), "amsgrad": True, "weight_decay": 0.1, "eps": 1e-3},
        "decoupled": {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True},
        "maximize": {"lr": 0.01, "weight_decay": 0.1, "maximize": True},
    },
    "adamw": {
        "plain": {"lr": 0.01},
        "no-decay": {"lr": 0.01, "weight_decay": 0.0},
        "weight-decay": {"lr": 0.01, "weight_decay": 0.5},
        "betas": {"lr": 0.01, "betas": (0.7, 0.95)},
        "eps": {"lr": 0.01, "eps": 1e-2, "weight_decay": 0.1},
        "amsgrad": {"lr": 0.01, "betas": (0.8, 0.9), "amsgrad": True, "weight_decay": 0.1},
        "maximize": {"lr": 0.01, "weight_decay": 0.5, "maximize": True},
    },
    "adamax": {
        "plain": {"lr": 0.01},
        "betas": {"lr": 0.01, "betas": (0.7, 0.9)},
        "eps": {"lr": 0.01, "eps": 1e-2, "betas": (0.9, 0.9)},
        "weight-decay": {"lr": 0.01, "weight_decay": 0.1},
        "maximize": {"lr": 0.01, "weight_decay": 0.1, "maximize": True},
    },
    "nadam": {
        "plain": {"lr": 0.01},
        "betas": {"lr": 0.01, "betas": (0.7, 0.95)},
        "eps": {"lr": 0.01, "eps": 1e-2},
        "momentum-decay": {"lr": 0.01, "momentum_decay": 0.1},
        "weight-decay": {"lr": 0.01, "weight_decay": 0.1},
        "decoupled": {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True},
        "maximize": {"lr": 0.01, "weight_decay": 0.1, "maximize": True},
    },
    "radam": {
        "plain": {"lr": 0.01},
        "betas": {"lr": 0.01, "betas": (0.7, 0.95)},
        "eps": {"lr": 0.01, "eps": 1e-2},
        "weight-decay": {"lr": 0.01, "weight_decay": 0.1},
        "decoupled": {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True},
        "maximize": {"lr": 0.01, "weight_decay": 0.1, "maximize": True},
    },
    "rmsprop": {
        "plain": {"lr": 0.01},
        "alpha": {"lr": 0.01, "alpha": 0.8},
        "eps": {"lr": 0.01, "eps": 1e-2},
        "momentum": {"lr": 0.01, "momentum": 0.9},
        "centered": {"lr": 0.01, "centered": True, "alpha": 0.9, "eps": 1e-3},
        "centered-momentum-decay": {
            "lr": 0.01,
            "centered": True,
            "alpha": 0.9,
            "eps": 1e-3,
            "momentum": 0.8,
            "weight_decay": 0.1,
        },
        "weight-decay": {"lr": 0.01, "weight_decay": 0.1},
        "maximize": {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1, "maximize": True},
    },
    "adagrad": {
        "plain": {"lr": 0.1},
        "lr-decay": {"lr": 0.1, "lr_decay": 0.1},
        "accumulator": {"lr": 0.1, "initial_accumulator_value": 0.5},
        "eps": {"lr": 0.1, "eps": 1e-2},
        "weight-decay": {"lr": 0.1, "weight_decay": 0.1},
        "maximize": {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.1, "maximize": True},
    },
    "adadelta": {
        "plain": {},
        "lr": {"lr": 0.3},
        "rho": {"lr": 0.5, "rho": 0.6},
        "eps": {"lr": 0.5, "eps": 1e-2},
        "weight-decay": {"lr": 0.5, "weight_decay": 0.1},
        "maximize": {"lr": 0.5, "weight_decay": 0.1, "maximize": True},
    },
    "asgd": {
        "plain": {"lr": 0.05},
        "lambd": {"lr": 0.05, "lambd": 0.1},
        "alpha": {"lr": 0.05, "lambd": 0.1, "alpha": 0.5},
        "averaging": {"lr": 0.05, "lambd": 0.1, "t0": 4},
        "weight-decay": {"lr": 0.05, "weight_decay": 0.1, "t0": 4},
        "maximize": {"lr": 0.05, "weight_decay": 0.1, "t0": 4, "maximize": True},
    },
    "rprop": {
        "plain": {"lr": 0.01},
        "etas": {"lr": 0.01, "etas": (0.3, 1.5)},
        "step-sizes": {"lr": 0.01, "step_sizes": (0.008, 0.015)},
        "maximize": {"lr": 0.01, "maximize": True},
    },
    "sparseadam": {
        "plain": {"lr": 0.01},
        "betas": {"lr": 0.01, "betas": (0.7, 0.95)},
        "eps": {"lr": 0.01, "eps": 1e-2},
        "maximize": {"lr": 0.01, "maximize": True},
    },
    "adafactor": {
        "plain": {},
        "beta2-decay": {"lr": 0.05, "beta2_decay": -0.5},
        "eps": {"lr": 0.05, "eps": (0.3, 0.8)},
        "clipping": {"lr": 0.05, "d": 2.0},
        "weight-decay": {"lr": 0.05, "weight_decay": 0.1},
        "maximize": {"lr": 0.05, "weight_decay": 0.1, "maximize": True},
    },
    "muon": {
        "plain": {"lr": 0.1},
        "no-nesterov": {"lr": 0.1, "nesterov": False, "weight_decay": 0.0},
        "momentum": {"lr": 0.1, "momentum": 0.5, "weight_decay": 2.0},
        "match-rms-adamw": {"lr": 0.2, "adjust_lr_fn": "match_rms_adamw"},
        "ns-steps": {"lr": 0.1, "ns_steps": 3},
        "eps": {"lr": 0.1, "ns_steps": 2, "eps": 2.0},
        "ns-coefficients": {"lr": 0.1, "ns_coefficients": (3.0, -3.2, 1.2)},
    },
}
"""rule -> case -> options that are not torch's defaults."""

SECOND_GROUP: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.02, "momentum": 0.5, "weight_decay": 0.1, "nesterov": True},
    "adam": {"lr": 0.002, "betas": (0.8, 0.99), "weight_decay": 0.1},
    "adamw": {"lr": 0.002, "betas": (0.8, 0.99), "weight_decay": 0.3},
    "adamax": {"lr": 0.002, "betas": (0.8, 0.99), "weight_decay": 0.1},
    "nadam": {"lr": 0.002, "betas": (0.8, 0.99), "weight_decay": 0.1},
    "radam": {"lr": 0.002, "betas": (0.8, 0.9), "weight_decay": 0.1},
    "rmsprop": {"lr": 0.002, "alpha": 0.9, "momentum": 0.5},
    "adagrad": {"lr": 0.02, "lr_decay": 0.05, "weight_decay": 0.1},
    "adadelta": {"lr": 0.2, "rho": 0.8, "weight_decay": 0.1},
    "asgd": {"lr": 0.01, "lambd": 0.05, "weight_decay": 0.1},
    "rprop": {"lr": 0.003, "etas": (0.4, 1.3)},
    "sparseadam": {"lr": 0.002, "betas": (0.8, 0.99)},
    "adafactor": {"lr": 0.02, "beta2_decay": -0.6, "weight_decay": 0.1},
    "muon": {"lr": 0.03, "momentum": 0.6, "nesterov": False, "weight_decay": 4.0},
}
"""Options of the second group in the cases about groups."""

RICH: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.02},
    "rmsprop": {"lr": 0.01, "weight_decay": 0.05},
    "adamw": {"lr": 0.01, "weight_decay": 0.2},
    "asgd": {"lr": 0.05, "lambd": 0.1, "t0": 4},
    "rprop": {"lr": 0.01},
    "sparseadam": {"lr": 0.01},
    "muon": {"lr": 0.1, "weight_decay": 2.0, "ns_steps": 2},
}
"""Options of the cases about shapes, groups, resume and edits, where the plain ones would hide a mistake."""


EDITS: dict[str, dict[int, dict[str, Any]]] = {
    "sgd": {4: {"momentum": 0.5, "weight_decay": 0.2}, 9: {"momentum": 0.8, "dampening": 0.25}},
    "adam": {4: {"betas": (0.7, 0.95)}, 9: {"eps": 1e-3, "weight_decay": 0.3}},
    "adamw": {4: {"betas": (0.7, 0.95)}, 9: {"eps": 1e-3, "weight_decay": 0.7}},
    "adamax": {4: {"betas": (0.7, 0.95)}, 9: {"eps": 1e-3, "weight_decay": 0.3}},
    "nadam": {4: {"betas": (0.7, 0.95), "momentum_decay": 0.05}, 9: {"eps": 1e-3, "weight_decay": 0.3}},
    "radam": {4: {"betas": (0.7, 0.95)}, 9: {"eps": 1e-3, "weight_decay": 0.3}},
    "rmsprop": {4: {"alpha": 0.8}, 9: {"eps": 1e-3, "weight_decay": 0.3}},
    "adagrad": {4: {"lr_decay": 0.2}, 9: {"eps": 1e-3, "weight_decay": 0.3}},
    "adadelta": {4: {"rho": 0.7}, 9: {"eps": 1e-3, "weight_decay": 0.3}},
    "asgd": {4: {"lambd": 0.3, "alpha": 0.5}, 9: {"t0": 2, "weight_decay": 0.3}},
    "rprop": {4: {"etas": (0.3, 1.6)}, 9: {"step_sizes": (0.005, 0.02)}},
    "sparseadam": {4: {"betas": (0.7, 0.95)}, 9: {"eps": 1e-3}},
    "adafactor": {4: {"beta2_decay": -0.5, "d": 1.5}, 9: {"weight_decay": 0.3}},
    "muon": {4: {"momentum": 0.7}, 9: {"weight_decay": 5.0}},
}
"""What is written into the group before which step in the case `option-change`."""
