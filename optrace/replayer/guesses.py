"""What `identify` looks at and what it tries: stretches of sampled steps, and rules with numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optrace.replayer.cubes import Cube, Member
from optrace.trace.dtypes import eps_of, tiny_of

Floats = NDArray[np.float64]

SIGMAS = 20.0
"""A weight decay is believed where it is so many times its uncertainty."""
_LR = ("lr", "learning_rate", "eta", "step_size", "alpha")


@dataclass(frozen=True)
class Series:
    """Consecutive steps of one parameter: axis 0 steps, axis 1 sampled elements."""

    member: Member
    grad: Floats
    before: Floats
    update: Floats
    lr: Floats
    """[steps]; 1 where none is recorded."""
    unit: Floats
    """eps * scale of each element: the least that can be told apart."""
    options: Mapping[str, Any]
    """What is recorded of the group's options at the first of the steps."""
    first: int = 1
    """Number of the first of the steps."""


@dataclass(frozen=True)
class Guess:
    """A rule with numbers, ready to be tried on the record."""

    family: str
    words: str
    switches: Mapping[str, Any] | None
    """Of the family; None: the reference rule itself, with every option as it is recorded."""
    hyper: Mapping[str, Any]
    decays: Mapping[str, float]
    """weight_decay by parameter."""
    complexity: int


def series_of(cube: Cube, groups: Mapping[int, Mapping[int, Mapping[str, Any]]]) -> Iterator[Series]:
    """The parameters whose steps are all there."""
    if "grad" not in cube.values or "param" not in cube.values:
        return
    for m, member in enumerate(cube.members):
        used = slice(0, member.used)
        if not cube.there["grad"][:, m].all() or not member.used:
            continue
        before, after = cube.before["param"][:, m, used], cube.values["param"][:, m, used]
        scale = np.maximum(np.abs(before), np.abs(after)) + np.sqrt(np.mean((after - before) ** 2, axis=1))[:, None]
        unit = eps_of(member.dtype) * np.maximum(scale, tiny_of(member.dtype))
        options = [groups.get(int(step), {}).get(member.group, {}) for step in cube.steps]
        lr = np.array([rate_of(of_step) for of_step in options])
        grad = cube.values["grad"][:, m, used]
        yield Series(member, grad, before, after - before, lr, unit, options[0], int(cube.steps[0]))


def rate_of(options: Mapping[str, Any]) -> float:
    """The recorded learning rate under any of its names, 0 in a warm-up that begins there; 1 where there is none."""
    for name in _LR:
        value = options.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
            return float(value)
    return 1.0


def lr_words(series: Sequence[Series], share: float = 1.0) -> str:
    """The learning rates in words, `share` times as large as recorded: one number, or how it goes over the steps.

    Where groups differ those of the first one are followed, and of the others the largest are named.
    """
    by_group = {one.member.group: one.lr * share for one in series}
    first, *others = [by_group[group] for group in sorted(by_group)]
    words = f"lr {first[0]:g}"
    if (first != first[0]).any():
        steps = len(first)
        kinds = len(np.unique(first))
        top = f"up to {first.max():g}, " if first.max() > max(first[0], first[-1]) else ""
        often = "another at each step" if kinds == steps else f"{kinds} values"
        words += f" at step {series[0].first}, {top}{first[-1]:g} at step {series[0].first + steps - 1} ({often})"
    apart = list(dict.fromkeys(f"{other.max():g}" for other in others if not np.array_equal(other, first)))
    most = " at most" if any((other != other[0]).any() for other in others) else ""
    return words + (f" in group {min(by_group)}, {' and '.join(apart)}{most} in others" if apart else "")


def uncertainty(design: Floats, position: int) -> float:
    """How far a coefficient may be off when every target, in units of rounding, is off by one."""
    inverse = np.linalg.pinv(design.T @ design)
    return float(np.sqrt(max(inverse[position, position], 0.0)))


def decay_words(decays: Mapping[str, float], kind: str, total: int) -> str:
    """A weight decay in words, and on how many of all parameters it acts."""
    if not decays:
        return ""
    values = sorted(set(decays.values()))
    amount = f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"
    where = "" if len(decays) == total else f" on {len(decays)} of {total} params"
    return f", {kind} weight decay {amount}{where}"


def rounded(value: float) -> float:
    """A fitted number as people write it, where it lies within its uncertainty of one."""
    if value == 0 or not np.isfinite(value):
        return value
    for digits in range(1, 7):
        short = float(f"{value:.{digits}g}")
        if abs(short - value) <= 2e-4 * abs(value):
            return short
    return value


def close(a: float, b: float) -> bool:
    """Whether two fitted numbers are the same one."""
    return abs(a - b) <= 1e-3 * max(abs(a), abs(b))
