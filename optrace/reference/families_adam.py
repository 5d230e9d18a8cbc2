"""Adam's relatives with switches: Adamax, NAdam, RAdam, and what people write instead (see `families`)."""

from __future__ import annotations

import numpy as np

from optrace.reference.arithmetic import Array
from optrace.reference.families_frame import (
    Hyper,
    Result,
    State,
    Switches,
    framed,
    moments,
    wide,
)


@framed(decay="coupled")
def adamax(p: Array, g: Array, state: State, hyper: Hyper, switches: Switches) -> Result:
    """Adamax. Switches: eps (inside, outside, missing), bias (first, none, both), norm (largest, undecayed, average),
    betas (torch, swapped), counter (added to t), decay (as in `sgd`), none_grad, sign.
    """
    first, second, at, m, _, kept = moments(g, state, hyper, switches)
    del kept["exp_avg_sq"]
    eps, place = float(hyper["eps"]), switches.get("eps", "inside")
    before, size = wide(state.get("exp_inf", 0.0)), np.abs(g) + (eps if place == "inside" else 0.0)
    norm = kept["exp_inf"] = {
        "largest": np.maximum(second * before, size),
        "undecayed": np.maximum(before, size),
        "average": second * before + (1 - second) * size,
    }[switches.get("norm", "largest")]
    bias = switches.get("bias", "first")
    with np.errstate(all="ignore"):
        bottom = (norm / (1 - second**at) if bias == "both" else norm) + (eps if place == "outside" else 0.0)
        new = p - float(hyper["lr"]) / (1.0 if bias == "none" else 1 - first**at) * m / bottom
    return new, kept


@framed(decay="coupled")
def nadam(p: Array, g: Array, state: State, hyper: Hyper, switches: Switches) -> Result:
    """NAdam. Switches: eps (outside, inside, missing), bias (both, first), schedule (torch, constant), ahead (next,
    present), product (running, power), gradient (present, missing), betas, counter, square (as in `adam`), decay,
    none_grad, sign.
    """
    first, second, at, m, v, kept = moments(g, state, hyper, switches)
    falls = float(hyper.get("momentum_decay", 4e-3)) if switches.get("schedule", "torch") == "torch" else None

    def mu(t: float) -> float:
        return first if falls is None else float(first * (1 - 0.5 * 0.96 ** (t * falls)))

    here, ahead = mu(at), mu(at + (switches.get("ahead", "next") == "next"))
    product = np.float32(np.float32(state.get("mu_product", 1.0)) * here)
    kept["mu_product"] = product
    used = float(product) if switches.get("product", "running") == "running" else here**at
    eps, lr, place = float(hyper["eps"]), float(hyper["lr"]), switches.get("eps", "outside")
    with np.errstate(all="ignore"):
        square = v / (1 - second**at) if switches.get("bias", "both") == "both" else v
        bottom = np.sqrt(square + eps) if place == "inside" else np.sqrt(square) + (eps if place == "outside" else 0.0)
        new = p - lr * ahead / (1 - used * ahead) * m / bottom
        if switches.get("gradient", "present") == "present":
            new = new - lr * (1 - here) / (1 - used) * g / bottom
    return new, kept


@framed(decay="coupled")
def radam(p: Array, g: Array, state: State, hyper: Hyper, switches: Switches) -> Result:
    """RAdam. Switches: eps (before-correction, outside, inside, missing), threshold (5), below (momentum, nothing,
    uncorrected), rectifier (torch, missing, inverted), longest (added to rho_inf), bias (both, none), betas, counter,
    square (as in `adam`), decay, none_grad, sign.
    """
    first, second, at, m, v, kept = moments(g, state, hyper, switches)
    lr, eps, two = float(hyper["lr"]), float(hyper["eps"]), 1 - second**at
    mean = m / (1 - first**at) if switches.get("bias", "both") == "both" else m
    most = 2 / (1 - second) - 1 + switches.get("longest", 0.0)
    rho = most - 2 * at * second**at / two
    with np.errstate(all="ignore"):
        if rho > switches.get("threshold", 5.0):
            share = ((rho - 4) * (rho - 2) * most / ((most - 4) * (most - 2) * rho)) ** 0.5
            share = {"torch": share, "missing": 1.0, "inverted": 1 / share}[switches.get("rectifier", "torch")]
            bottom = {
                "before-correction": (np.sqrt(v) + eps) / two**0.5,
                "outside": np.sqrt(v / two) + eps,
                "inside": np.sqrt(v / two + eps),
                "missing": np.sqrt(v / two),
            }[switches.get("eps", "before-correction")]
            new = p - lr * mean * share / bottom
        else:
            new = p - lr * {"momentum": mean, "nothing": 0.0 * m, "uncorrected": m}[switches.get("below", "momentum")]
    return new, kept
