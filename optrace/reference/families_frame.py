"""What the families of mistaken rules share: types, the gradient, weight decay in its right and wrong places."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np

from optrace.reference.arithmetic import Array

State = Mapping[str, Any]
Hyper = Mapping[str, Any]
Switches = Mapping[str, Any]
Result = tuple[Array, dict[str, Any]]
Family = Callable[[Array, Array | None, State, Hyper, Switches], Result]
DECAY_LR = "lr of weight decay"
"""An option of our own: what decoupled weight decay is multiplied by instead of lr."""
Middle = Callable[[Array, Array, State, Hyper, Switches], Result]
"""What a rule is between the gradient and the new parameter, all in float64: `(p, g, ...) -> (new p, state)`."""


def wide(array: Any) -> Array:
    """As float64."""
    return np.asarray(array, dtype=np.float64)


def idle(param: Array, state: State, hyper: Hyper, switches: Switches) -> Result:
    """A step without a gradient: nothing, or weight decay alone."""
    if switches.get("none_grad") != "decay":
        return param, dict(state)
    shrunk = wide(param) * (1 - hyper["lr"] * hyper.get("weight_decay", 0.0))
    return shrunk.astype(param.dtype), dict(state)


def gradient(param: Array, grad: Array | None, hyper: Hyper, switches: Switches) -> Array | None:
    """The gradient as float64, negated where asked; None: the parameter is skipped."""
    if grad is None:
        if switches.get("none_grad", "skip") != "zero":
            return None
        grad = np.zeros_like(param)
    g = wide(grad)
    if hyper.get("maximize"):
        g = -g
    return cast(Array, g * switches.get("sign", 1.0))


def decay_before(p: Array, g: Array, hyper: Hyper, kind: str) -> tuple[Array, Array]:
    """Weight decay that acts before the rule: on the gradient (coupled) or on the parameter (decoupled)."""
    decay = hyper.get("weight_decay", 0.0)
    if not decay:
        return p, g
    if kind == "coupled":
        return p, g + decay * p
    if kind == "decoupled":
        return p * (1 - hyper.get(DECAY_LR, hyper["lr"]) * decay), g
    if kind == "both":
        return p * (1 - hyper["lr"] * decay), g + decay * p
    if kind == "lr-twice":
        return p * (1 - hyper["lr"] ** 2 * decay), g
    if kind == "coupled-by-lr":
        return p, g + hyper["lr"] * decay * p
    if kind == "grows":
        return p * (1 + hyper["lr"] * decay), g
    if kind == "absolute":
        return p, g + decay * np.sign(p)
    if kind == "without-lr":
        return p * (1 - decay), g
    if kind == "wrong-sign":
        return p, g - decay * p
    return p, g


def decay_after(old: Array, new: Array, hyper: Hyper, kind: str) -> Array:
    """Weight decay that acts after the rule has moved the parameter."""
    decay = hyper.get("weight_decay", 0.0)
    if decay and kind == "after-update":
        return cast(Array, new - hyper["lr"] * decay * new)
    if decay and kind == "after-momentum":
        return cast(Array, new - hyper["lr"] * decay * old)
    return new


def chosen_betas(hyper: Hyper, switches: Switches) -> tuple[float, float]:
    """Both betas as the switch `betas` has them: torch, swapped, first-for-both, second-for-both, exchanged-shares."""
    first, second = (float(b) for b in hyper["betas"])
    return {
        "torch": (first, second),
        "swapped": (second, first),
        "first-for-both": (first, first),
        "second-for-both": (second, second),
        "exchanged-shares": (1 - first, 1 - second),
    }[switches.get("betas", "torch")]


def moments(
    g: Array, state: State, hyper: Hyper, switches: Switches
) -> tuple[float, float, float, Array, Array, dict[str, Any]]:
    """Both betas, t, and the two running averages of Adam and its relatives, also as the state to keep.

    Switches: betas (as in `chosen_betas`), counter (added to t, at least 1; stuck: t stays 1), stride (what t grows by
    beside 1), square (squared, absolute, average: that of the first moment, deviation: that of the gradient from it),
    sums (which averages take the new value whole: none, first, second, both), starts (zero, whole: with the first
    gradient and its square).
    """
    first, second = chosen_betas(hyper, switches)
    t = float(state.get("step", 0.0)) + 1
    sums = switches.get("sums", "none")
    m = first * wide(state.get("exp_avg", 0.0)) + (1.0 if sums in ("first", "both") else 1 - first) * g
    if switches.get("starts") == "whole" and "exp_avg" not in state:
        m = g
    square = {"squared": g, "absolute": np.sqrt(np.abs(g)), "average": m, "deviation": g - m}[
        switches.get("square", "squared")
    ] ** 2
    v = second * wide(state.get("exp_avg_sq", 0.0)) + (1.0 if sums in ("second", "both") else 1 - second) * square
    if switches.get("starts") == "whole" and "exp_avg" not in state:
        v = square
    counter = switches.get("counter", 0)
    at = 1.0 if counter == "stuck" else max(t + counter, 1.0)
    kept: dict[str, Any] = {"step": np.float64(t + switches.get("stride", 0)), "exp_avg": m, "exp_avg_sq": v}
    return first, second, at, m, v, kept


def framed(decay: str) -> Callable[[Middle], Family]:
    """Put around the middle of a rule what all have: None and the sign of gradients, weight decay, the dtype.

    `decay` is where weight decay acts where neither a switch nor the option `decoupled_weight_decay` says it.
    """

    def frame(middle: Middle) -> Family:
        @functools.wraps(middle)
        def family(param: Array, grad: Array | None, state: State, hyper: Hyper, switches: Switches) -> Result:
            g = gradient(param, grad, hyper, switches)
            if g is None:
                return idle(param, state, hyper, switches)
            kind = str(switches.get("decay") or ("decoupled" if hyper.get("decoupled_weight_decay") else decay))
            p, g = decay_before(wide(param), g, hyper, kind)
            new, kept = middle(p, g, state, hyper, switches)
            return rounded(param, decay_after(wide(param), new, hyper, kind), kept)

        return family

    return frame


def rounded(param: Array, new: Array, kept: Mapping[str, Any]) -> Result:
    """The new parameter and its state in the parameter's dtype."""
    return new.astype(param.dtype), {key: np.asarray(value).astype(param.dtype) for key, value in kept.items()}
