"""Rules with a jump: what a step may give where the argument of a sign is within rounding of zero.

beta1*m + (1 - beta1)*g has terms that may cancel, and then the order of the arithmetic decides which way an element
goes. No tolerance of the result can allow for that. So the rule is run again on inputs that were moved by a few
roundings: where that changes nothing, neither can rounding, and the result must be what it is; where it turns the
element round, every outcome between the two is one of this rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from optrace.replayer.cubes import Floats

ROUNDINGS = 4.0
"""By so many eps each input is moved: what the arithmetic of one step may be off, as for every rule."""


def between_jumps(
    step: Any, param: Any, grad: Any, state: Mapping[str, Any], hyper: Mapping[str, Any], eps: float, recorded: Floats
) -> Floats:
    """What is recorded, moved into the range of what the rule gives with its inputs a few roundings apart.

    Args:
        step: `(param, grad, state, hyper) -> (param, state)`, elementwise.
        param: before the step, any shape; grad and the tensors of `state` alike, or 0-d.
        grad: not None.
        state: before the step.
        hyper: options of the group.
        eps: of the dtype that the run had.
        recorded: the parameter after the step, float64; NaN where there is none.

    Returns:
        The outcome of the rule that is nearest to `recorded`, element by element.
    """
    outcomes = []
    for way in (0.0, 1.0, -1.0):
        moved = {
            key: value * np.asarray(1 - way * ROUNDINGS * eps, value.dtype) if np.ndim(value) else value
            for key, value in state.items()
        }
        with np.errstate(all="ignore"):
            new, _ = step(param, grad * np.asarray(1 + way * ROUNDINGS * eps, grad.dtype), moved, hyper)
        outcomes.append(np.asarray(new, np.float64))
    low, high = np.minimum.reduce(outcomes), np.maximum.reduce(outcomes)
    nearest: Floats = np.clip(np.where(np.isnan(recorded), low, recorded), low, high)
    return nearest
