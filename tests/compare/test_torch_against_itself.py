"""Every optimizer of torch against itself in its other implementations: none is called different, but where torch is.

What torch gets wrong is listed by name in `FAULTS`; docs/findings.md shows each in a few lines of plain torch.
"""

from __future__ import annotations

import pytest
import torch
from hand_made import TorchHand

from optrace import diff

CASES = {
    "sgd": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}),
    "sgd-nesterov": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True, "maximize": True}),
    "adam": (torch.optim.Adam, {"lr": 0.01}),
    "adam-amsgrad": (torch.optim.Adam, {"lr": 0.01, "amsgrad": True, "weight_decay": 0.1, "eps": 1e-3}),
    "adamw": (torch.optim.AdamW, {"lr": 0.01, "eps": 1e-3}),
    "adamax": (torch.optim.Adamax, {"lr": 0.01, "eps": 1e-3}),
    "nadam": (torch.optim.NAdam, {"lr": 0.01, "eps": 1e-3}),
    "radam": (torch.optim.RAdam, {"lr": 0.01}),
    "radam-eps": (torch.optim.RAdam, {"lr": 0.01, "eps": 1e-3, "weight_decay": 0.1}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.01, "centered": True, "momentum": 0.9, "eps": 1e-3}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.05, "lr_decay": 0.1, "eps": 1e-3}),
    "adadelta": (torch.optim.Adadelta, {"lr": 1.0}),
    "asgd": (torch.optim.ASGD, {"lr": 0.01}),
    "asgd-lambd": (torch.optim.ASGD, {"lr": 0.1, "lambd": 0.1}),
    "rprop": (torch.optim.Rprop, {"lr": 0.01}),
    "adafactor": (torch.optim.Adafactor, {"lr": 0.01}),
}
FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

_STANDS = "fused SGD on CPU leaves 16 elements or more of low precision where they are"
_EMPTY = "exp_avg_sq underflows in float16: the Python implementations divide by what is left of it, the fused one not"
_RECIPROCAL = "foreach RAdam divides by 0 in float16 even while it is not rectified, the for-loop does not"
_SINGLE = "foreach ASGD takes eta and lambd through float32 in float64"
_STEP = "differentiable Adam and NAdam raise betas to a float32 step, and so round the bias correction to float32"
FAULTS = {
    **{(name, "fused", dtype): _STANDS for name in ("sgd", "sgd-nesterov") for dtype in DTYPES[2:]},
    **{(name, "fused", torch.float16): _EMPTY for name in ("adam", "adam-amsgrad", "adamw")},
    **{
        (name, "differentiable", dtype): _STEP
        for name in ("adam", "adam-amsgrad", "adamw")
        for dtype in (torch.float64, torch.float32)
    },
    ("nadam", "differentiable", torch.float64): _STEP,
    ("adam", "differentiable", torch.float16): _STEP,
    ("radam", "foreach", torch.float16): _RECIPROCAL,
    **{(name, "foreach", torch.float64): _SINGLE for name in ("asgd", "asgd-lambd")},
}


def record(folder, case, implementation, dtype, steps):
    torch.set_num_threads(1)
    cls, options = CASES[case]
    options = {**options, "foreach": implementation == "foreach"}
    if implementation in ("fused", "differentiable"):
        options = {**options, "foreach": None, implementation: True}
    generator = torch.Generator().manual_seed(0)
    shapes = [(), (7,), (64,), (5, 11), (1,)]
    params = [(torch.randn(shape, generator=generator) * 0.3).to(dtype) for shape in shapes]
    optimizer = cls(params, **options)
    hand = TorchHand(folder / f"{case}-{implementation}-{dtype}")
    hand.begin(0, optimizer, {id(p): f"p{n}" for n, p in enumerate(params)}, implementation=implementation)
    for _ in range(steps):
        for p in params:  # from 0.001 to 1, so that float16 has small ones
            size = 10 ** (torch.rand(1, generator=generator).item() * 3 - 3)
            p.grad = (torch.randn(p.shape, generator=generator) * size).to(dtype)
        hand.step(0, optimizer)
    return hand.close()


def judge(tmp_path, case, dtype, steps):
    """Names of the implementations that are called different from the for-loop, with the reports."""
    cls = CASES[case][0]
    others = ["foreach", *(["differentiable"] if cls is not torch.optim.Adafactor else [])]
    others += ["fused"] if cls in FUSED else []
    reference = record(tmp_path, case, "for-loop", dtype, steps)
    return {other: diff(reference, record(tmp_path, case, other, dtype, steps)) for other in others}


def check(reports, case, dtype):
    for implementation, report in reports.items():
        assert report.lane == "tolerance"
        fault = FAULTS.get((case, implementation, dtype))
        if fault is None:
            assert report.same, f"{case} {implementation} {dtype}\n{report}"
        else:
            assert not report.same, f"torch has mended this: {case} {implementation} {dtype}: {fault}\n{report}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_implementations_of_an_optimizer_are_not_called_different(tmp_path, case, dtype):
    check(judge(tmp_path, case, dtype, 7), case, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_nor_are_they_after_60_steps(tmp_path, case, dtype):
    check(judge(tmp_path, case, dtype, 60), case, dtype)
