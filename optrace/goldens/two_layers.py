"""The two-layer regression of the tutorial as a golden: `sgd/two-layers` and `sgd/two-layers-steplr`.

A line fitted by two linear layers, from the parameters that the tutorial printed (docs/examples/two_layers.py is the
program): x = -1, -0.8, ..., 1, y = 3x + 0.5, mean squared error, SGD with momentum 0.9, lr 0.01 for the first layer
and 0.001 for the second. The gradients that training met are stored as inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from optrace.goldens.format import Golden, Row
from optrace.reference.rule import RULES

STEPS = 55
DROPS = {51: 0.5}
"""Step -> what lr has become by then, under StepLR(step_size=50, gamma=0.5)."""
LRS = (0.01, 0.001)
START = {
    "first.weight": [
        [0.7895],
        [0.4697],
        [-0.0534],
        [0.8223],
        [0.9414],
        [-0.5877],
        [-0.4069],
        [-0.6598],
        [-0.1982],
        [-0.2233],
    ],
    "first.bias": [-0.9338, -0.9721, 0.3418, -0.4599, 0.1251, -0.2313, 0.9735, -0.1804, 0.0935, 0.9205],
    "second.weight": [[-0.0765, -0.1632, 0.0979, 0.2206, -0.0102, -0.0452, -0.3096, 0.0189, -0.0240, -0.0900]],
    "second.bias": [-0.1148],
}
GROUP_OF = {param: 0 if param.startswith("first") else 1 for param in START}


def inputs(dtype: str) -> Iterator[Golden]:
    """Both cases without their outputs; the gradients come from a training run of torch's."""
    hyper = tuple({**RULES["sgd"].defaults, "lr": lr, "momentum": 0.9} for lr in LRS)
    for case, drops, purpose in (
        ("two-layers", {}, "the tutorial's two-layer regression: two groups that differ in lr"),
        ("two-layers-steplr", DROPS, "the same under StepLR(step_size=50, gamma=0.5)"),
    ):
        notes = {"purpose": purpose, "model": "Linear(1, 10), Linear(10, 1); x = -1, -0.8, ..., 1; y = 3x + 0.5; mse"}
        yield Golden("sgd", case, dtype, hyper, 0.0, 0.0, tuple(_rows(dtype, drops)), notes)


def _rows(dtype: str, drops: dict[int, float]) -> Iterator[Row]:
    import torch
    from torch import nn

    kind: Any = getattr(torch, dtype)
    x = torch.linspace(-1, 1, 11, dtype=kind).reshape(11, 1)
    y = 3 * x + 0.5
    net = nn.ModuleDict({"first": nn.Linear(1, 10, dtype=kind), "second": nn.Linear(10, 1, dtype=kind)})
    params = {name: net[name.split(".")[0]].get_parameter(name.split(".")[1]) for name in START}
    with torch.no_grad():
        for name, values in START.items():
            params[name].copy_(torch.tensor(values, dtype=kind))
    optimizer = torch.optim.SGD(
        [{"params": [params[n] for n in START if GROUP_OF[n] == g], "lr": lr} for g, lr in enumerate(LRS)],
        momentum=0.9,
        foreach=False,
    )
    for name, param in params.items():
        yield Row(0, GROUP_OF[name], name, "param", param.detach().numpy().copy())
    for step in range(1, STEPS + 1):
        if step in drops:
            for group, lr in enumerate(LRS):
                optimizer.param_groups[group]["lr"] = lr * drops[step]
                yield Row(step, group, "lr", "hyper", np.array(lr * drops[step]))
        optimizer.zero_grad()
        ((net["second"](net["first"](x)) - y) ** 2).mean().backward()
        for name, param in params.items():
            assert param.grad is not None
            yield Row(step, GROUP_OF[name], name, "grad", param.grad.numpy().copy())
        optimizer.step()
