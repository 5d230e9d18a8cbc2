"""Steps whose counts and bias corrections torch computes in float32 instead of Python's float64, and what that changes.

A compiled step, `capturable=True` and the fused kernels on a device keep `step` as a float32 tensor and take `1 -
beta**step` of it. For beta2 = 0.999 the first such number is 0.00099998713: off by 1.3e-5 of itself, and the update by
half of that, which is dozens of roundings. (torch 2.13: torch/optim/adam.py `_single_tensor_adam` with `capturable`;
ATen/native/cuda/fused_adam_utils.cuh, `pow_(beta1_opmath, step_count)`.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_EPS = 2.0**-23
_USUAL = {"betas": (0.9, 0.999)}
CLASSES = ("Adam", "AdamW", "NAdam", "RAdam")
"""torch's classes that correct a bias with both betas."""


def counts_in_single(entry: Mapping[str, Any]) -> str:
    """Why an optimizer of torch's counts in float32, in one word, by its entry in rank.json; empty if it does not."""
    if entry.get("class") not in CLASSES or not str(entry.get("module", "")).startswith("torch.optim"):
        return ""
    words = str(entry.get("implementation") or "").split()
    for word in ("compiled", "capturable"):
        if word in words:
            return word
    devices = [str(device) for device in entry.get("devices") or ()]
    return "fused" if "fused" in words and any(not device.startswith("cpu") for device in devices) else ""


def entry_of(trace: Any, optimizer: int) -> Mapping[str, Any]:
    """What rank.json says of an optimizer; empty where it says nothing."""
    listed = trace.rank_info.get("optimizers") or ()
    return next((e for e in listed if isinstance(e, Mapping) and e.get("index") == optimizer), {})


def explains(entry: Mapping[str, Any], worst: float) -> str:
    """Why an optimizer's record may be `worst` eps off its rule, in words; empty where this is no reason for it.

    The largest share is that of the first step, of parameters that are no larger than their updates: twice their scale.
    """
    why = counts_in_single(entry)
    kind = str(entry.get("class"))
    if not why or not worst <= max(2 * share_of_update(kind, t, _USUAL) / _EPS for t in (1.0, 6.0)):
        return ""
    return f"a {why} step of {kind} takes 1 - beta**t in float32, which may be all of this"


def share_of_update(kind: str, t: float, hyper: Mapping[str, Any]) -> float:
    """The share of its size by which an update may change when `1 - beta**t` is computed in float32.

    Args:
        kind: torch's class name, of `CLASSES`.
        t: the number of the step, from 1.
        hyper: the group's options, with `betas`; NAdam's with `momentum_decay`.

    Returns:
        A bound, from the two ends of what float32 may make of the powers: each is off by at most (t + 3)/4 eps, for the
        beta itself is rounded and the power multiplies its error. Infinite where RAdam may or may not rectify.
    """
    first, second = (float(beta) for beta in hyper["betas"])
    off = 0.25 * (t + 3) * _EPS
    found = [_factors(kind, t, hyper, one, two) for one in _ends(first**t, off) for two in _ends(second**t, off)]
    plain = _factors(kind, t, hyper, first**t, second**t)
    share = 0.0
    for factors in found:
        for value, right in zip(factors, plain, strict=True):
            share = max(share, abs(value / right - 1) if right and math.isfinite(value) else math.inf)
    return share + 4 * _EPS


def share_of_average(beta: float) -> float:
    """The share of its change by which an average may be off when beta itself is rounded to float32."""
    return 0.25 * _EPS / (1 - beta)


def _ends(power: float, off: float) -> tuple[float, float]:
    return power * (1 - off), min(power * (1 + off), 1 - _EPS / 4)


def _factors(kind: str, t: float, hyper: Mapping[str, Any], one: float, two: float) -> tuple[float, ...]:
    """What the moments are multiplied by in an update; `one` and `two` are the powers of the betas."""
    first, second = (float(beta) for beta in hyper["betas"])
    root = math.sqrt(1 - two)
    if kind == "NAdam":  # its product of momenta is float32 anyway, and off by as much as a power of them
        decay = float(hyper.get("momentum_decay", 4e-3))
        now, ahead = (first * (1 - 0.5 * 0.96 ** (s * decay)) for s in (t, t + 1))
        product = math.prod(first * (1 - 0.5 * 0.96 ** (s * decay)) for s in range(1, int(t) + 1))
        product *= one / first**t
        return (1 - now) / (1 - product) * root, ahead / (1 - product * ahead) * root
    if kind == "RAdam":
        longest = 2 / (1 - second) - 1
        rho = longest - 2 * t * two / (1 - two)
        if rho <= 5.0:
            return (1 / (1 - one),)
        rectified = (rho - 4) * (rho - 2) * longest / ((longest - 4) * (longest - 2) * rho)
        return (math.sqrt(rectified) * root / (1 - one),)
    return (root / (1 - one),)
