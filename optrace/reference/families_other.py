"""Adadelta, Rprop, Lion, Adafactor and Muon with switches, and what people write instead (see `families`)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from optrace.reference.arithmetic import Array
from optrace.reference.families_frame import (
    Hyper,
    Result,
    State,
    Switches,
    chosen_betas,
    decay_after,
    decay_before,
    framed,
    gradient,
    idle,
    rounded,
    wide,
)
from optrace.reference.muon import adjusted_lr, orthogonal


@framed(decay="coupled")
def adadelta(p: Array, g: Array, state: State, hyper: Hyper, switches: Switches) -> Result:
    """Adadelta. Switches: eps (inside, outside, missing), deltas (before, after: those of this step count already,
    scaled: with lr, none: not used), share (torch, exchanged), lr (used, ignored), decay, none_grad, sign.
    """
    rho = float(hyper["rho"]) if switches.get("share", "torch") == "torch" else 1 - float(hyper["rho"])
    eps, place, deltas = float(hyper["eps"]), switches.get("eps", "inside"), switches.get("deltas", "before")
    lr = float(hyper["lr"]) if switches.get("lr", "used") == "used" else 1.0

    def root(square: Array) -> Array:
        small = 0.0 if place == "missing" else eps
        return np.asarray(np.sqrt(square) + small if place == "outside" else np.sqrt(square + small))

    v = rho * wide(state.get("square_avg", 0.0)) + (1 - rho) * g * g
    past = wide(state.get("acc_delta", np.zeros_like(p)))
    with np.errstate(all="ignore"):
        delta = g / root(v) if deltas == "none" else root(past) / root(v) * g
        counted = lr * delta if deltas == "scaled" else delta
        after = rho * past + (1 - rho) * counted * counted
        if deltas == "after":
            delta = root(after) / root(v) * g
    kept = {"step": np.float64(float(state.get("step", 0.0)) + 1), "square_avg": v, "acc_delta": after}
    return p - lr * delta, kept


@framed(decay="missing")
def rprop(p: Array, g: Array, state: State, hyper: Hyper, switches: Switches) -> Result:
    """Rprop. Switches: turn (rest, go-on: moves after a change of sign, keep: rests but remembers the gradient, back:
    takes the last move back), etas (torch, exchanged), limits (both, none), lr (start, always: each size times the
    present lr), none_grad, sign.
    """
    down, up = hyper["etas"] if switches.get("etas", "torch") == "torch" else hyper["etas"][::-1]
    last = wide(state.get("prev", np.zeros_like(p)))
    start = wide(state.get("step_size", np.full_like(p, float(hyper["lr"]))))
    agreement = g * last
    size = start * np.where(agreement > 0, up, np.where(agreement < 0, down, 1.0))
    if switches.get("limits", "both") == "both":
        size = np.clip(size, *hyper["step_sizes"])
    turn = switches.get("turn", "rest")
    rested = g if turn == "go-on" else np.where(agreement < 0, 0.0, g)
    new = p - size * np.sign(rested)
    if turn == "back":
        new = new + np.where(agreement < 0, start * np.sign(last), 0.0)
    kept = {
        "step": np.float64(float(state.get("step", 0.0)) + 1),
        "prev": g if turn == "keep" else rested,
        "step_size": size,
    }
    return new, kept


@framed(decay="decoupled")
def lion(p: Array, g: Array, state: State, hyper: Hyper, switches: Switches) -> Result:
    """Lion. Switches: betas (torch, swapped, first-for-both, second-for-both), look (before, after: along the average
    that counts the gradient already), move (sign, whole), decay (as in `sgd`), none_grad, sign.
    """
    first, second = chosen_betas(hyper, switches)
    m = wide(state.get("exp_avg", np.zeros_like(p)))
    kept = second * m + (1 - second) * g
    along = first * (kept if switches.get("look", "before") == "after" else m) + (1 - first) * g
    way = np.sign(along) if switches.get("move", "sign") == "sign" else along
    return p - float(hyper["lr"]) * way, {"exp_avg": kept}


def adafactor(param: Array, grad: Array | None, state: State, hyper: Hyper, switches: Switches) -> Result:
    """Adafactor. Switches: factored (matrices, never), middle (divided, missing), clip (torch, missing, norm), scale
    (torch, missing, norm), relative (torch, missing), newest (falling, 0.001), floor (squared, plain), decay (of torch,
    relative: by the relative step; and as in `sgd`), none_grad, sign.
    """
    g = gradient(param, grad, hyper, switches)
    if g is None:
        return idle(param, state, hyper, switches)
    eps1, eps2 = hyper["eps"]
    eps1 = float(np.finfo(param.dtype).eps) if eps1 is None else eps1
    old, lr, n = wide(param), float(hyper["lr"]), max(param.size, 1) ** 0.5
    t = float(state.get("step", 0.0)) + 1
    newest = t ** float(hyper["beta2_decay"]) if switches.get("newest", "falling") == "falling" else 0.001
    rate = min(lr, 1 / t**0.5) if switches.get("relative", "torch") == "torch" else lr
    size = float(np.linalg.norm(old))
    rate *= {"torch": max(eps2, size / n), "norm": max(eps2, size), "missing": 1.0}[switches.get("scale", "torch")]
    decay = switches.get("decay", "decoupled")
    if decay == "relative":
        p = old * (1 - min(lr, 1 / t**0.5) * hyper["weight_decay"])
    else:
        p, g = decay_before(old, g, hyper, decay)

    kept: dict[str, Any] = {"step": np.float64(t)}

    def averaged(key: str, square: Array) -> Array:
        before = wide(state.get(key, np.zeros(square.shape)))
        kept[key] = before + (newest if t > 1 else 1.0) * (square - before)
        return np.asarray(kept[key])

    if param.ndim > 1 and switches.get("factored", "matrices") == "matrices":
        rows = averaged("row_var", (g * g).mean(-1, keepdims=True))
        columns = averaged("col_var", (g * g).mean(-2, keepdims=True))
        overall = np.maximum(rows.mean(-2, keepdims=True), eps1)
        v = rows * columns / (overall if switches.get("middle", "divided") == "divided" else 1.0)
    else:
        v = averaged("variance", g * g)
    u = g / np.sqrt(np.maximum(v, eps1 * eps1 if switches.get("floor", "squared") == "squared" else eps1))
    length = float(np.linalg.norm(u))
    clip = {"torch": length / n, "norm": length, "missing": 0.0}[switches.get("clip", "torch")] / float(hyper["d"])
    new = p - rate / max(1.0, clip) * u
    return rounded(param, decay_after(old, new, hyper, decay), kept)


def muon(param: Array, grad: Array | None, state: State, hyper: Hyper, switches: Switches) -> Result:
    """Muon. Switches: momentum (average, sum), nesterov (None as the option says, on, off; whole: adds the gradient
    whole, where the option is on), iterations (added to ns_steps), shape (torch, missing, root-missing, wide), decay
    (decoupled, adjusted: by the adjusted lr; and as in `sgd`), none_grad, sign.
    """
    g = gradient(param, grad, hyper, switches)
    if g is None:
        return idle(param, state, hyper, switches)
    old, lr, momentum = wide(param), float(hyper["lr"]), float(hyper["momentum"])
    rate = float(adjusted_lr(lr, hyper["adjust_lr_fn"], param.shape))
    if hyper["adjust_lr_fn"] != "match_rms_adamw":
        rows, columns = param.shape
        shape = switches.get("shape", "torch")
        rate = {
            "torch": rate,
            "missing": lr,
            "root-missing": lr * max(1.0, rows / columns),
            "wide": lr * math.sqrt(max(1.0, columns / rows)),
        }[shape]
    decay = switches.get("decay", "decoupled")
    if decay == "adjusted":
        p = old * (1 - rate * hyper["weight_decay"])
    else:
        p, g = decay_before(old, g, hyper, decay)
    share = 1.0 if switches.get("momentum", "average") == "sum" else 1 - momentum
    buffer = momentum * wide(state.get("momentum_buffer", np.zeros(param.shape))) + share * g
    look = "on" if hyper["nesterov"] else "off"
    if "nesterov" in switches and not (switches["nesterov"] == "whole" and look == "off"):
        look = switches["nesterov"]
    ahead = {"on": (1 - momentum) * g + momentum * buffer, "whole": g + momentum * buffer, "off": buffer}[look]
    steps = max(int(hyper["ns_steps"]) + switches.get("iterations", 0), 0)
    moved = orthogonal(ahead.astype(param.dtype), hyper["ns_coefficients"], steps, hyper["eps"])
    new = decay_after(old, p - rate * wide(moved), hyper, decay)
    return rounded(param, new, {"momentum_buffer": buffer})
