"""The line search of L-BFGS: a step length that satisfies the strong Wolfe conditions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from optrace.reference.arithmetic import Array, dot, sqrt

Number: TypeAlias = Any
"""A Python float, or a NumPy scalar of the parameters' dtype where torch has a 0-d tensor: they round differently."""


@dataclass(frozen=True)
class Point:
    """A step length that was tried: loss, gradient, and slope along the direction there."""

    t: Number
    loss: Number
    grad: Array
    slope: Number


@np.errstate(all="ignore")
def quotient(a: Number, b: Number) -> Number:
    """`a / b`; of a Python number and a 0-d tensor torch computes `(1 / b) * a`."""
    if isinstance(b, np.floating) and not isinstance(a, np.floating):
        return (1 / b) * a
    return a / b


def strong_wolfe(
    evaluate: Callable[[Number], tuple[float, Array]],
    t: Number,
    direction: Array,
    loss: float,
    grad: Array,
    slope: Number,
    *,
    max_evaluations: int,
    c1: float = 1e-4,
    c2: float = 0.9,
    tolerance_change: float = 1e-9,
) -> tuple[float, Array, Number, int]:
    """Search along a direction for a step length t with enough decrease and a slope that is flat enough.

        loss(t) <= loss(0) + c1 * t * slope(0)      and      |slope(t)| <= -c2 * slope(0)

    First t grows until an interval brackets such a point, then the interval shrinks around it; new lengths are the
    minima of cubics through two points, kept away from the ends of the interval.

    Args:
        evaluate: from a step length to the loss and the gradient there.
        t: the length to try first.
        direction: the vector to go along.
        loss: the loss at length 0.
        grad: the gradient at length 0.
        slope: `dot(grad, direction)`, negative.
        max_evaluations: how many further lengths may be tried after the first.
        c1: see above.
        c2: see above.
        tolerance_change: the interval is not shrunk further when the parameters would move less than this.

    Returns:
        Loss, gradient and length at the best point, and how often `evaluate` was called.

    References:
        Nocedal and Wright, Numerical Optimization (2006), algorithms 3.5 and 3.6. torch 2.13, torch/optim/lbfgs.py,
        `_strong_wolfe`, whose order of tests this follows.
    """

    def attempt(length: Number) -> Point:
        loss_there, grad_there = evaluate(length)
        return Point(length, loss_there, grad_there, dot(grad_there, direction))

    def decreased(point: Point) -> bool:
        return not point.loss > (loss + c1 * point.t * slope)

    def flat(point: Point) -> bool:
        return bool(abs(point.slope) <= -c2 * slope)

    size = np.max(np.abs(direction))
    origin = Point(0, loss, grad, slope)
    before, now, tried = origin, attempt(t), 0
    bracket: list[Point] = []
    done = False
    while tried < max_evaluations:
        if not decreased(now) or (tried > 1 and now.loss >= before.loss):
            bracket = [before, now]
            break
        if flat(now):
            bracket, done = [now], True
            break
        if now.slope >= 0:
            bracket = [before, now]
            break
        bounds = now.t + 0.01 * (now.t - before.t), now.t * 10
        before, now = now, attempt(cubic_minimum(before, now, bounds))
        tried += 1
    if tried == max_evaluations:
        bracket = [origin, now]

    stalled = False
    low, high = (0, 1) if bracket[0].loss <= bracket[-1].loss else (1, 0)
    while not done and tried < max_evaluations:
        if abs(bracket[1].t - bracket[0].t) * size < tolerance_change:
            break
        ends = [point.t for point in bracket]
        t = cubic_minimum(bracket[0], bracket[1])
        margin = 0.1 * (max(ends) - min(ends))
        if min(max(ends) - t, t - min(ends)) < margin:
            if stalled or t >= max(ends) or t <= min(ends):
                t = max(ends) - margin if abs(t - max(ends)) < abs(t - min(ends)) else min(ends) + margin
                stalled = False
            else:
                stalled = True
        else:
            stalled = False

        now = attempt(t)
        tried += 1
        if not decreased(now) or now.loss >= bracket[low].loss:
            bracket[high] = now
            low, high = (0, 1) if bracket[0].loss <= bracket[1].loss else (1, 0)
        else:
            if flat(now):
                done = True
            elif now.slope * (bracket[high].t - bracket[low].t) >= 0:
                bracket[high] = bracket[low]
            bracket[low] = now
    best = bracket[low]
    return best.loss, best.grad, best.t, tried + 1


@np.errstate(all="ignore")
def cubic_minimum(a: Point, b: Point, bounds: tuple[Number, Number] | None = None) -> Number:
    """Where the cubic with the losses and slopes of two points has its minimum, kept within bounds.

    Without bounds the interval between the points; where there is no minimum, the middle of the bounds.
    """
    lower, upper = bounds if bounds is not None else (min(a.t, b.t), max(a.t, b.t))
    d1 = a.slope + b.slope - quotient(3 * (a.loss - b.loss), a.t - b.t)
    square = d1 * d1 - a.slope * b.slope
    if not square >= 0:
        return (lower + upper) / 2.0
    d2 = sqrt(np.asarray(square))[()]
    if a.t <= b.t:
        t = b.t - (b.t - a.t) * ((b.slope + d2 - d1) / (b.slope - a.slope + 2 * d2))
    else:
        t = a.t - (a.t - b.t) * ((a.slope + d2 - d1) / (a.slope - b.slope + 2 * d2))
    return min(max(t, lower), upper)
