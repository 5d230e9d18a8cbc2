"""Runs a rule on the recorded inputs of many steps and measures how far the record is from what it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optrace.replayer.cubes import Cube, Flags, Floats, Member
from optrace.replayer.jumps import between_jumps

Step = Callable[[Any, Any, Mapping[str, Any], Mapping[str, Any]], tuple[Any, Mapping[str, Any]]]
Groups = Mapping[int, Mapping[int, Mapping[str, Any]]]

SCALARS = frozenset({"step", "mu_product", "eta", "mu"})
"""State keys that hold one number for the whole parameter."""
_NUMPY = {"float64": np.float64, "complex128": np.float64}
"""The dtype that a parameter's arithmetic is done in; float32 for all others."""


@dataclass
class Residuals:
    """Errors of a stretch of steps, in eps of each element's scale; NaN where nothing was judged."""

    steps: NDArray[np.int64]
    members: Sequence[Member]
    param: Floats
    """[steps, members]: the worst element's error of the parameter (and so of the update)."""
    state: dict[str, Floats] = field(default_factory=dict)
    """key -> [steps, members]."""

    @property
    def worst(self) -> Floats:
        """[steps, members]: over the parameter and all state."""
        worst: Floats = np.fmax.reduce([self.param, *self.state.values()])
        return worst


@dataclass
class Carried:
    """State that a rule carries from step to step by itself, for records that hold none."""

    keys: frozenset[str] | None = None
    """Which keys are carried; the record holds the others. None: all of them."""
    values: dict[str, Floats] = field(default_factory=dict)
    known: dict[str, Flags] = field(default_factory=dict)

    def has(self, key: str) -> bool:
        """Whether a key is carried."""
        return self.keys is None or key in self.keys


def arithmetic_dtype(dtype: str) -> Any:
    """The NumPy dtype that a rule is run in for a parameter of this dtype (float16 and bfloat16: float32)."""
    return _NUMPY.get(dtype, np.float32)


def residuals(
    step: Step,
    keys: Sequence[str],
    cube: Cube,
    groups: Groups,
    carried: Carried | None = None,
    *,
    jumps: bool = False,
) -> Residuals:
    """Judge each step of a cube from its own recorded inputs.

    Args:
        step: `(param, grad, state, hyper) -> (param, state)`, elementwise.
        keys: state keys that the rule knows, by their recorded names.
        cube: the recorded samples.
        groups: options by step and group.
        carried: where the rule keeps its own state instead of the recorded; changed in place.
        jumps: the rule jumps where an argument is zero (`jumps`): either way is right where rounding decides.
    """
    shape = len(cube.steps), len(cube.members)
    result = Residuals(cube.steps, cube.members, np.full(shape, np.nan))
    for i, number in enumerate(cube.steps.tolist()):
        for chosen, hyper in _batches(cube, i, groups.get(number, {}), keys, carried):
            new, state = _run(step, cube, i, chosen, hyper, keys, carried, jumps)
            if new is None:
                continue
            old = cube.before["param"][i, chosen]
            after = cube.values["param"][i, chosen]
            result.param[i, chosen] = _errors(after, new, old, cube, chosen)
            for key, value in state.items():
                quantity = f"state.{key}"
                if quantity not in cube.values or (carried is not None and carried.has(key)):
                    continue
                judged = cube.there[quantity][i, chosen]
                errors = _errors(
                    cube.values[quantity][i, chosen], value, cube.before[quantity][i, chosen], cube, chosen
                )
                table = result.state.setdefault(key, np.full(shape, np.nan))
                table[i, chosen] = np.where(judged, errors, np.nan)
    return result


def outcomes(
    step: Step, keys: Sequence[str], cube: Cube, groups: Groups
) -> Iterator[tuple[int, NDArray[np.int64], int, Floats, dict[str, Floats]]]:
    """What a rule makes of the recorded inputs: step of the cube, members, their group, new samples of param and state.

    The samples are [members, 16]; the order depends on the cube and not on the options.
    """
    for i, number in enumerate(cube.steps.tolist()):
        for chosen, hyper in _batches(cube, i, groups.get(number, {}), keys, None):
            new, state = _run(step, cube, i, chosen, hyper, keys, None)
            if new is not None:
                yield i, chosen, cube.members[int(chosen[0])].group, new, state


def _batches(
    cube: Cube, i: int, options: Mapping[int, Mapping[str, Any]], keys: Sequence[str], carried: Carried | None
) -> Iterator[tuple[NDArray[np.int64], Mapping[str, Any]]]:
    """Members that one call of the rule can do together: same options, dtype, state present and state scalars."""
    if "param" not in cube.there:
        return
    batches: dict[Any, list[int]] = {}
    known, values = _state_before(cube, i, keys, carried)
    for m, member in enumerate(cube.members):
        if member.group not in options or not (cube.there["param"][i, m] and cube.known_before["param"][i, m]):
            continue
        if "grad" not in cube.rows or not cube.rows["grad"][i, m]:
            continue
        has_grad = bool(cube.there["grad"][i, m])
        scalars = tuple(float(values[k][m, 0]) for k in keys if k in SCALARS and k in known and known[k][m])
        present = tuple(k for k in keys if k in known and known[k][m])
        batches.setdefault((member.group, member.dtype, has_grad, present, scalars), []).append(m)
    for (group, *_), chosen in batches.items():
        yield np.array(chosen), options[group]


def _state_before(
    cube: Cube, i: int, keys: Sequence[str], carried: Carried | None
) -> tuple[dict[str, Flags], dict[str, Floats]]:
    own = [key for key in keys if f"state.{key}" in cube.before and (carried is None or not carried.has(key))]
    known = {key: cube.known_before[f"state.{key}"][i] for key in own}
    values = {key: cube.before[f"state.{key}"][i] for key in own}
    return (known, values) if carried is None else (known | carried.known, values | carried.values)


def _run(
    step: Step,
    cube: Cube,
    i: int,
    chosen: NDArray[np.int64],
    hyper: Mapping[str, Any],
    keys: Sequence[str],
    carried: Carried | None,
    jumps: bool = False,
) -> tuple[Floats | None, dict[str, Floats]]:
    """New samples [chosen, 16] of parameter and state; None where the rule leaves the parameter alone.

    With `jumps` the parameter is the rule's outcome that is nearest to the recorded one.
    """
    kind = arithmetic_dtype(cube.members[int(chosen[0])].dtype)
    known, values = _state_before(cube, i, keys, carried)
    state: dict[str, Any] = {}
    for key in keys:
        if key in known and known[key][chosen[0]]:
            if key in SCALARS:
                wide = cube.dtypes.get(f"state.{key}") == "float64"
                state[key] = np.array(values[key][chosen[0], 0], dtype=np.float64 if wide else np.float32)
            else:
                state[key] = values[key][chosen].astype(kind)
    has_grad = bool(cube.there["grad"][i, chosen[0]])
    grad = cube.values["grad"][i, chosen].astype(kind) if has_grad else None
    param = cube.before["param"][i, chosen].astype(kind)
    with np.errstate(all="ignore"):
        new, after = step(param, grad, state, hyper)
    if jumps and grad is not None:
        eps = float(cube.eps[chosen[0]])
        new = between_jumps(step, param, grad, state, hyper, eps, cube.values["param"][i, chosen])
    shape = (len(chosen), new.shape[1])
    spread = {key: _spread(np.asarray(value, dtype=np.float64), shape, key) for key, value in after.items()}
    if carried is not None:
        for key, value in spread.items():
            if not carried.has(key):
                continue
            table = carried.values.setdefault(key, np.full((len(cube.members), shape[1]), np.nan))
            table[chosen] = value
            carried.known.setdefault(key, np.zeros(len(cube.members), bool))[chosen] = True
    if not has_grad and new is not None and np.array_equal(new, param, equal_nan=True):
        spread = {}
    return np.asarray(new, dtype=np.float64), spread


def _spread(value: Floats, shape: tuple[int, int], key: str) -> Floats:
    """State as samples [chosen, 16]; a scalar stands in the first slot, as a recorded 0-d tensor's sample does."""
    if key not in SCALARS:
        return np.broadcast_to(value, shape)
    first = np.full(shape, np.nan)
    first[:, 0] = value.reshape(-1)[0]
    return first


def _errors(a: Floats, b: Floats, old: Floats, cube: Cube, chosen: NDArray[np.int64]) -> Floats:
    """Worst error of each member's used slots, in eps of max(|a|, |b|, |old|) + rms(change)."""
    eps, tiny, used = cube.eps[chosen, None], cube.tiny[chosen, None], cube.used[chosen, : a.shape[1]]
    with np.errstate(all="ignore"):
        start = np.where(np.isnan(old), 0.0, old)
        change = np.where(used & np.isfinite(a) & np.isfinite(start), a - start, 0.0)
        rms = np.sqrt((change**2).sum(axis=1) / np.maximum(used.sum(axis=1), 1))[:, None]
        scale = np.fmax(np.fmax(np.abs(a), np.abs(b)), np.abs(start)) + rms
        scale = np.maximum(np.where(np.isfinite(scale), scale, 0.0), tiny)
        same = (a == b) | (np.isnan(a) & np.isnan(b)) | ~used
        difference = np.abs(a - b)
        errors = np.where(same, 0.0, np.where(np.isfinite(difference), difference / (eps * scale), np.inf))
    worst: Floats = errors.max(axis=1)
    return worst


def spot(
    step: Step,
    keys: Sequence[str],
    cube: Cube,
    groups: Groups,
    i: int,
    m: int,
    quantity: str,
    carried: Carried | None = None,
    *,
    jumps: bool = False,
) -> tuple[float, float, float]:
    """Recorded, expected and former value of the worst sampled element of member m's quantity at the cube's step i.

    `carried` is the rule's own state before the cube's first step, where it keeps one; it is run up to step i.
    """
    for j in range(0 if carried is not None else i, i + 1):
        for chosen, hyper in _batches(cube, j, groups.get(int(cube.steps[j]), {}), keys, carried):
            new, state = _run(step, cube, j, chosen, hyper, keys, carried, jumps)
            if j < i or m not in chosen.tolist():
                continue
            at = chosen.tolist().index(m)
            expected = (new if quantity == "param" else state[quantity.removeprefix("state.")])[at]  # type: ignore[index]
            recorded, before = cube.values[quantity][i, m], cube.before[quantity][i, m]
            apart = np.where(np.isnan(recorded) & np.isnan(expected), 0.0, np.abs(recorded - expected))
            worst = int(np.argmax(np.where(np.isnan(apart), np.inf, apart)[: cube.members[m].used]))
            return float(recorded[worst]), float(expected[worst]), float(before[worst])
    raise LookupError(f"member {m} was not judged at step {cube.steps[i]}")
