"""Update rules with switches: what torch computes and what people write instead, in plain float64 NumPy.

The reference rules say how torch rounds; these say which arithmetic was meant. Every switch at its default is the
reference's rule (a test compares them), and each other position is a mistake or a dialect that occurs in real code. All
functions are pure, `(param, grad, state, hyper, switches) -> (param, state)`, compute in float64 and return the
parameter's dtype; elementwise where the rule is, so that they work on samples of tensors too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from optrace.reference.arithmetic import Array
from optrace.reference.families_adam import adamax, nadam, radam
from optrace.reference.families_frame import (
    Family,
    Hyper,
    Result,
    State,
    Switches,
    framed,
    moments,
    wide,
)
from optrace.reference.families_other import adadelta, adafactor, lion, muon, rprop


@framed(decay="coupled")
def sgd(p: Array, g: Array, state: State, hyper: Hyper, switches: Switches) -> Result:
    """SGD. Switches: momentum (sum, average, lr-inside), first (whole, dampened), nesterov (None as the option says,
    on, off; minus, twice where the option is on), dampening (None as the option says, or a number), decay (coupled,
    decoupled, both, after-momentum, after-update, missing, without-lr, lr-twice, coupled-by-lr, wrong-sign, grows,
    absolute: of the parameter's sign), none_grad (skip, zero, decay), sign.
    """
    mu, lr = float(hyper.get("momentum", 0.0)), float(hyper["lr"])
    damp = float(switches.get("dampening", hyper.get("dampening", 0.0)))
    kept: dict[str, Any] = {}
    direction, rate = g, lr
    if mu:
        form = switches.get("momentum", "sum")
        share = {"sum": 1 - damp, "average": 1 - mu, "lr-inside": lr}[form]
        buffer = state.get("momentum_buffer")
        if buffer is None:
            whole = switches.get("first", "whole") == "whole" and form == "sum"
            buffer = g if whole else share * g
        else:
            buffer = mu * wide(buffer) + share * g
        kept["momentum_buffer"] = buffer
        rate = 1.0 if form == "lr-inside" else lr
        scaled = lr * g if form == "lr-inside" else g
        look = "on" if hyper.get("nesterov") else "off"
        if "nesterov" in switches and not (switches["nesterov"] in ("minus", "twice") and look == "off"):
            look = switches["nesterov"]
        direction = {
            "on": scaled + mu * buffer,
            "off": buffer,
            "minus": scaled - mu * buffer,
            "twice": buffer + mu * buffer,
        }[look]
    return p - rate * direction, kept


@framed(decay="coupled")
def adam(p: Array, g: Array, state: State, hyper: Hyper, switches: Switches) -> Result:
    """Adam and AdamW. Switches: eps (outside, inside, inside-squared, inside-uncorrected, before-correction, least,
    missing), bias (both, none, first, second, second-for-both, unrooted: v is corrected after its root was taken),
    betas, counter, stride, square, sums, starts (as in `moments`), kept (moments, corrected), nesterov (off, on: moves
    along beta1*m + (1 - beta1)*g), amsgrad (None as the option says, on, off; corrected where the option is on), decay
    (as in `sgd`; None as the option `decoupled_weight_decay` says), none_grad, sign, root (sqrt, missing).
    """
    first, second, at, m, v, kept = moments(g, state, hyper, switches)
    bias = switches.get("bias", "both")
    one = 1.0 if bias in ("none", "second") else 1 - (second if bias == "second-for-both" else first) ** at
    two = 1.0 if bias in ("none", "first") else 1 - second**at
    look = "on" if hyper.get("amsgrad") else "off"
    if "amsgrad" in switches and not (switches["amsgrad"] == "corrected" and look == "off"):
        look = switches["amsgrad"]
    used = v
    if look == "on":
        used = kept["max_exp_avg_sq"] = np.maximum(wide(state.get("max_exp_avg_sq", 0.0)), v)
    elif look == "corrected":
        used = kept["max_exp_avg_sq"] = np.maximum(wide(state.get("max_exp_avg_sq", 0.0)), v / two)
        two = 1.0
    eps, lr = float(hyper["eps"]), float(hyper["lr"])
    place = switches.get("eps", "outside")
    with np.errstate(all="ignore"):
        power = 1.0 if switches.get("root") == "missing" else 0.5
        root = (used / (two * two if bias == "unrooted" else two)) ** power
        if place == "outside":
            bottom = root + eps
        elif place in ("inside", "inside-squared"):
            bottom = (used / two + (eps if place == "inside" else eps * eps)) ** power
        elif place == "inside-uncorrected":
            bottom = ((used + eps) / two) ** power
        elif place == "before-correction":
            bottom = (used**power + eps) / two**power
        else:
            bottom = np.maximum(root, eps) if place == "least" else root
        along = first * m + (1 - first) * g if switches.get("nesterov") == "on" else m
        new = p - lr * (along / one) / bottom
    if switches.get("kept") == "corrected":
        kept |= {"exp_avg": m / one, "exp_avg_sq": v / two}
    return new, kept


@framed(decay="coupled")
def rmsprop(p: Array, g: Array, state: State, hyper: Hyper, switches: Switches) -> Result:
    """RMSprop. Switches: eps (outside, inside, missing), share (torch, exchanged, summed: the new square is taken
    whole), starts (zero, one), root (sqrt, missing), momentum (torch, lr-inside, average, off), centered (None as the
    option says, on, off), decay, none_grad, sign.
    """
    share = switches.get("share", "torch")
    alpha = 1 - float(hyper["alpha"]) if share == "exchanged" else float(hyper["alpha"])
    start = 1.0 if switches.get("starts") == "one" else 0.0
    v = alpha * wide(state.get("square_avg", start)) + (1.0 if share == "summed" else 1 - alpha) * g * g
    kept: dict[str, Any] = {"step": np.float64(float(state.get("step", 0.0)) + 1), "square_avg": v}
    centered = switches.get("centered")
    used = v
    if hyper.get("centered") if centered is None else centered == "on":
        mean = kept["grad_avg"] = alpha * wide(state.get("grad_avg", 0.0)) + (1 - alpha) * g
        used = v - mean * mean
    eps, lr, mu = float(hyper["eps"]), float(hyper["lr"]), float(hyper.get("momentum", 0.0))
    place = switches.get("eps", "outside")
    with np.errstate(all="ignore"):
        power = 1.0 if switches.get("root") == "missing" else 0.5
        bottom = (used + eps) ** power if place == "inside" else used**power + (0.0 if place == "missing" else eps)
        direction = g / bottom
    form = switches.get("momentum", "torch")
    if mu and form != "off":
        new = {"lr-inside": lr, "average": 1 - mu}.get(form, 1.0)
        direction = kept["momentum_buffer"] = mu * wide(state.get("momentum_buffer", 0.0)) + new * direction
        lr = 1.0 if form == "lr-inside" else lr
    return p - lr * direction, kept


@framed(decay="coupled")
def adagrad(p: Array, g: Array, state: State, hyper: Hyper, switches: Switches) -> Result:
    """Adagrad. Switches: eps (outside, inside, missing), lr_decay (torch, from-one, missing), decay, none_grad,
    sign.
    """
    t = float(state.get("step", 0.0)) + 1
    total = wide(state.get("sum", hyper.get("initial_accumulator_value", 0.0))) + g * g
    late = {"torch": t - 1, "from-one": t, "missing": 0.0}[switches.get("lr_decay", "torch")]
    rate = float(hyper["lr"]) / (1 + late * float(hyper.get("lr_decay", 0.0)))
    eps, place = float(hyper["eps"]), switches.get("eps", "outside")
    with np.errstate(all="ignore"):
        bottom = np.sqrt(total + eps) if place == "inside" else np.sqrt(total) + (0.0 if place == "missing" else eps)
        new = p - rate * g / bottom
    kept = {"step": np.float64(t), "sum": total}
    return new, kept


FAMILIES: dict[str, Family] = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adam,
    "adamax": adamax,
    "nadam": nadam,
    "radam": radam,
    "rmsprop": rmsprop,
    "adagrad": adagrad,
    "adadelta": adadelta,
    "rprop": rprop,
    "adafactor": adafactor,
    "muon": muon,
    "lion": lion,
}
"""The rule's name -> its function with switches."""
