"""Update rules with switches: what torch computes and what people write instead, in plain float64 NumPy.

The reference rules say how torch rounds; these say which arithmetic was meant. Every switch at its default is the
torch rule (a test compares them), and each other position is a mistake or a dialect that occurs in real code. All
functions are pure, `(param, grad, state, hyper, switches) -> (param, state)`, compute in float64 and return the
parameter's dtype; elementwise, so that they work on samples of tensors too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np

from optrace.reference.arithmetic import Array

State = Mapping[str, Any]
Hyper = Mapping[str, Any]
Switches = Mapping[str, Any]
Result = tuple[Array, dict[str, Any]]
Family = Callable[[Array, Array | None, State, Hyper, Switches], Result]


def _wide(array: Any) -> Array:
    return np.asarray(array, dtype=np.float64)


def _idle(param: Array, state: State, hyper: Hyper, switches: Switches) -> Result:
    """A step without a gradient: nothing, or weight decay alone."""
    if switches.get("none_grad") != "decay":
        return param, dict(state)
    shrunk = _wide(param) * (1 - hyper["lr"] * hyper.get("weight_decay", 0.0))
    return shrunk.astype(param.dtype), dict(state)


def _gradient(param: Array, grad: Array | None, hyper: Hyper, switches: Switches) -> Array | None:
    """The gradient as float64, negated where asked; None: the parameter is skipped."""
    if grad is None:
        if switches.get("none_grad", "skip") != "zero":
            return None
        grad = np.zeros_like(param)
    g = _wide(grad)
    if hyper.get("maximize"):
        g = -g
    return cast(Array, g * switches.get("sign", 1.0))


def _decay_before(p: Array, g: Array, hyper: Hyper, kind: str) -> tuple[Array, Array]:
    """Weight decay that acts before the rule: on the gradient (coupled) or on the parameter (decoupled)."""
    decay = hyper.get("weight_decay", 0.0)
    if not decay:
        return p, g
    if kind == "coupled":
        return p, g + decay * p
    if kind == "decoupled":
        return p * (1 - hyper["lr"] * decay), g
    if kind == "without-lr":
        return p * (1 - decay), g
    if kind == "wrong-sign":
        return p, g - decay * p
    return p, g


def _decay_after(old: Array, new: Array, hyper: Hyper, kind: str) -> Array:
    """Weight decay that acts after the rule has moved the parameter."""
    decay = hyper.get("weight_decay", 0.0)
    if decay and kind == "after-update":
        return cast(Array, new - hyper["lr"] * decay * new)
    if decay and kind == "after-momentum":
        return cast(Array, new - hyper["lr"] * decay * old)
    return new


def sgd(
    param: Array, grad: Array | None, state: State, hyper: Hyper, switches: Switches
) -> tuple[Array, dict[str, Any]]:
    """SGD. Switches: momentum (sum, average, lr-inside), first (whole, dampened), nesterov (None as the option says,
    on, off, minus, twice), dampening (None), decay (coupled, decoupled, after-momentum, after-update, missing,
    without-lr, wrong-sign), none_grad (skip, zero, decay), sign, and any hyper-parameter by its name.
    """
    hyper = {**hyper, **{k: v for k, v in switches.items() if k in hyper and k not in ("momentum", "nesterov")}}
    g = _gradient(param, grad, hyper, switches)
    if g is None:
        return _idle(param, state, hyper, switches)
    decay = switches.get("decay", "coupled")
    old = _wide(param)
    p, g = _decay_before(old, g, hyper, decay)
    mu, lr = float(hyper.get("momentum", 0.0)), float(hyper["lr"])
    damp = float(hyper.get("dampening", 0.0))
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
            buffer = mu * _wide(buffer) + share * g
        kept["momentum_buffer"] = buffer.astype(param.dtype)
        rate = 1.0 if form == "lr-inside" else lr
        scaled = lr * g if form == "lr-inside" else g
        look = switches.get("nesterov")
        look = ("on" if hyper.get("nesterov") else "off") if look is None else look
        direction = {
            "on": scaled + mu * buffer,
            "off": buffer,
            "minus": scaled - mu * buffer,
            "twice": buffer + mu * buffer,
        }[look]
    new = _decay_after(old, p - rate * direction, hyper, decay)
    return new.astype(param.dtype), kept


def adam(
    param: Array, grad: Array | None, state: State, hyper: Hyper, switches: Switches
) -> tuple[Array, dict[str, Any]]:
    """Adam and AdamW. Switches: eps (outside, inside, inside-uncorrected, before-correction, missing), bias (both,
    none, first, second), betas (torch, swapped, first-for-both, second-for-both, exchanged-shares), counter (added
    to t), amsgrad (None as the option says, on, off, corrected), decay (as in `sgd`; None as the option
    `decoupled_weight_decay` says), none_grad, sign, root (sqrt, missing), square (squared, absolute).
    """
    g = _gradient(param, grad, hyper, switches)
    if g is None:
        return _idle(param, state, hyper, switches)
    decay = switches.get("decay")
    if decay is None:
        decay = "decoupled" if hyper.get("decoupled_weight_decay") else "coupled"
    old = _wide(param)
    p, g = _decay_before(old, g, hyper, decay)
    first, second = (float(b) for b in hyper["betas"])
    first, second = {
        "torch": (first, second),
        "swapped": (second, first),
        "first-for-both": (first, first),
        "second-for-both": (second, second),
        "exchanged-shares": (1 - first, 1 - second),
    }[switches.get("betas", "torch")]
    t = float(state.get("step", 0.0)) + 1
    m = first * _wide(state.get("exp_avg", 0.0)) + (1 - first) * g
    v = second * _wide(state.get("exp_avg_sq", 0.0)) + (1 - second) * (np.abs(g) if switches.get("square") else g * g)
    kept: dict[str, Any] = {"step": np.float64(t), "exp_avg": m, "exp_avg_sq": v}
    at = max(t + switches.get("counter", 0), 1.0)
    bias = switches.get("bias", "both")
    one = 1 - first**at if bias in ("both", "first") else 1.0
    two = 1 - second**at if bias in ("both", "second") else 1.0
    look = switches.get("amsgrad")
    look = ("on" if hyper.get("amsgrad") else "off") if look is None else look
    used = v
    if look == "on":
        used = kept["max_exp_avg_sq"] = np.maximum(_wide(state.get("max_exp_avg_sq", 0.0)), v)
    elif look == "corrected":
        used = kept["max_exp_avg_sq"] = np.maximum(_wide(state.get("max_exp_avg_sq", 0.0)), v / two)
        two = 1.0
    eps, lr = float(hyper["eps"]), float(hyper["lr"])
    place = switches.get("eps", "outside")
    with np.errstate(all="ignore"):
        power = 1.0 if switches.get("root") == "missing" else 0.5
        bottom = {
            "outside": (used / two) ** power + eps,
            "inside": (used / two + eps) ** power,
            "inside-uncorrected": ((used + eps) / two) ** power,
            "before-correction": (used**power + eps) / two**power,
            "missing": (used / two) ** power,
        }[place]
        new = p - lr * (m / one) / bottom
    new = _decay_after(old, new, hyper, decay)
    return new.astype(param.dtype), {k: np.asarray(x).astype(param.dtype) for k, x in kept.items()}


def rmsprop(
    param: Array, grad: Array | None, state: State, hyper: Hyper, switches: Switches
) -> tuple[Array, dict[str, Any]]:
    """RMSprop. Switches: eps (outside, inside, missing), share (torch, exchanged), momentum (torch, lr-inside, off),
    centered (None as the option says, on, off), decay, none_grad, sign.
    """
    g = _gradient(param, grad, hyper, switches)
    if g is None:
        return _idle(param, state, hyper, switches)
    decay = switches.get("decay", "coupled")
    old = _wide(param)
    p, g = _decay_before(old, g, hyper, decay)
    alpha = float(hyper["alpha"]) if switches.get("share", "torch") == "torch" else 1 - float(hyper["alpha"])
    v = alpha * _wide(state.get("square_avg", 0.0)) + (1 - alpha) * g * g
    kept: dict[str, Any] = {"step": np.float64(float(state.get("step", 0.0)) + 1), "square_avg": v}
    centered = switches.get("centered")
    used = v
    if hyper.get("centered") if centered is None else centered == "on":
        mean = kept["grad_avg"] = alpha * _wide(state.get("grad_avg", 0.0)) + (1 - alpha) * g
        used = v - mean * mean
    eps, lr, mu = float(hyper["eps"]), float(hyper["lr"]), float(hyper.get("momentum", 0.0))
    place = switches.get("eps", "outside")
    with np.errstate(all="ignore"):
        bottom = np.sqrt(used + eps) if place == "inside" else np.sqrt(used) + (0.0 if place == "missing" else eps)
        direction = g / bottom
    form = switches.get("momentum", "torch")
    if mu and form != "off":
        share = lr if form == "lr-inside" else 1.0
        direction = kept["momentum_buffer"] = mu * _wide(state.get("momentum_buffer", 0.0)) + share * direction
        lr = 1.0 if form == "lr-inside" else lr
    new = _decay_after(old, p - lr * direction, hyper, decay)
    return new.astype(param.dtype), {k: np.asarray(x).astype(param.dtype) for k, x in kept.items()}


def adagrad(
    param: Array, grad: Array | None, state: State, hyper: Hyper, switches: Switches
) -> tuple[Array, dict[str, Any]]:
    """Adagrad. Switches: eps (outside, inside, missing), lr_decay (torch, from-one, missing), decay, none_grad,
    sign.
    """
    g = _gradient(param, grad, hyper, switches)
    if g is None:
        return _idle(param, state, hyper, switches)
    decay = switches.get("decay", "coupled")
    old = _wide(param)
    p, g = _decay_before(old, g, hyper, decay)
    t = float(state.get("step", 0.0)) + 1
    total = _wide(state.get("sum", hyper.get("initial_accumulator_value", 0.0))) + g * g
    late = {"torch": t - 1, "from-one": t, "missing": 0.0}[switches.get("lr_decay", "torch")]
    rate = float(hyper["lr"]) / (1 + late * float(hyper.get("lr_decay", 0.0)))
    eps, place = float(hyper["eps"]), switches.get("eps", "outside")
    with np.errstate(all="ignore"):
        bottom = np.sqrt(total + eps) if place == "inside" else np.sqrt(total) + (0.0 if place == "missing" else eps)
        new = _decay_after(old, p - rate * g / bottom, hyper, decay)
    kept = {"step": np.float64(t), "sum": total}
    return new.astype(param.dtype), {k: np.asarray(x).astype(param.dtype) for k, x in kept.items()}


FAMILIES: dict[str, Family] = {"sgd": sgd, "adam": adam, "adamw": adam, "rmsprop": rmsprop, "adagrad": adagrad}
"""The rule's name -> its function with switches."""
