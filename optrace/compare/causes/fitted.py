"""Variants with a number of their own: betas, momentum or eps that a rule uses instead of what its group says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optrace.compare.causes.hard_coded import hard_coded
from optrace.compare.causes.replays import Recorded
from optrace.replayer.cubes import Cube, renamed
from optrace.replayer.engine import Groups
from optrace.replayer.known import Rule, Variant
from optrace.replayer.options import unlike

Floats = NDArray[np.float64]

_STEPS = 6


def fitted_variants(record: Recorded, rule: Rule) -> Iterator[tuple[Variant, Groups]]:
    """Variants of a rule whose numbers were estimated from the first recorded steps, and the options they use."""
    names = record.names_for(rule.state_keys)
    if names is None:
        return
    cube = next(record.stretches((_STEPS,)), None)
    if cube is None:
        return
    cube = renamed(cube, names)
    if any(_is_gradient(cube, key) for key in rule.state_keys):
        return  # state that shares the gradient's memory: no number of its own tells what the rule does
    options = record.groups_for(rule.name)
    if any(unlike(own, rule.defaults) for groups in options.values() for own in groups.values()):
        return
    for variant, hyper in _averages(rule, cube, options):
        yield variant, record.groups_for(rule.name, hyper)
    yield from hard_coded(rule, cube, options)


def _averages(rule: Rule, cube: Cube, options: Groups) -> Iterator[tuple[Variant, Mapping[str, Any]]]:
    """Other betas, momentum or alpha, seen in the state."""
    if rule.name in ("adam", "adamw"):
        yield from _betas(rule, cube, options)
    elif rule.name == "sgd":
        yield from _momentum(rule, cube, options)
    elif rule.name == "rmsprop":
        value = _share(_columns(cube, "square_avg", rule, options), square=True)
        if value is not None:
            yield _variant(rule, "alpha-other", "alpha", value), {"alpha": value}


def _betas(rule: Rule, cube: Cube, options: Mapping[int, Any]) -> Iterator[tuple[Variant, Mapping[str, Any]]]:
    told = next((o["betas"] for groups in options.values() for o in groups.values()), (0.9, 0.999))
    first = _share(_columns(cube, "exp_avg", rule, options), square=False)
    second = _share(_columns(cube, "exp_avg_sq", rule, options), square=True)
    used = tuple(own if own is not None else float(beta) for own, beta in zip((first, second), told, strict=True))
    if max(abs(u - t) for u, t in zip(used, told, strict=True)) > 1e-6:
        yield _variant(rule, "betas-other", "betas", used), {"betas": used}


def _momentum(rule: Rule, cube: Cube, options: Mapping[int, Any]) -> Iterator[tuple[Variant, Mapping[str, Any]]]:
    told = next((o["momentum"] for groups in options.values() for o in groups.values()), 0.0)
    x, y, z = _columns(cube, "momentum_buffer", rule, options)
    if len(x) < 4:
        return
    try:
        solution, *_ = np.linalg.lstsq(np.stack([x, z], axis=1), y, rcond=None)
    except np.linalg.LinAlgError:
        return
    mu, share = (_tidy(float(number)) for number in solution)
    if abs(share - 1) < 1e-5 and abs(mu - told) > 1e-6:
        yield _variant(rule, "momentum-other", "momentum", mu), {"momentum": mu}


def _share(columns: tuple[Floats, ...], *, square: bool) -> float | None:
    """Beta of state' = beta*state + (1 - beta)*x with x the gradient or its square, if one fits all elements."""
    old, new, grad = columns
    with np.errstate(over="ignore"):  # squares of large float64 gradients; the comparison leaves them out
        x = grad * grad if square else grad
        chosen = np.abs(old - x) > 1e-3 * np.maximum(np.abs(new), np.abs(x))
    share = (new - x)[chosen] / (old - x)[chosen]
    if len(share) < 3:
        return None
    middle = float(np.median(share))
    return _tidy(middle) if np.quantile(np.abs(share - middle), 0.9) < 1e-4 else None


def _columns(cube: Cube, key: str, rule: Rule, options: Mapping[int, Any]) -> tuple[Floats, ...]:
    """State before, state after and what the rule averages, of all sampled elements of the first steps, flat."""
    quantity = f"state.{key}"
    if quantity not in cube.values or "grad" not in cube.values or "param" not in cube.before:
        return np.empty(0), np.empty(0), np.empty(0)
    old, new = cube.before[quantity][:_STEPS], cube.values[quantity][:_STEPS]
    old = np.where(cube.known_before[quantity][:_STEPS][:, :, None], old, 0.0)
    grad, param = (np.where(np.isfinite(values), values, np.nan) for values in _inputs(cube))
    for i, step in enumerate(cube.steps[:_STEPS].tolist()):
        for m, member in enumerate(cube.members):
            hyper = options.get(step, {}).get(member.group, {})
            if hyper.get("maximize"):
                grad[i, m] *= -1
            if rule.name != "adamw" and not hyper.get("decoupled_weight_decay"):
                grad[i, m] += hyper.get("weight_decay", 0.0) * param[i, m]
    there = np.isfinite(old) & np.isfinite(new) & np.isfinite(grad)
    return old[there], new[there], grad[there]


def _inputs(cube: Cube) -> tuple[Floats, Floats]:
    return cube.values["grad"][:_STEPS], cube.before["param"][:_STEPS]


def _is_gradient(cube: Cube, key: str) -> bool:
    """Whether a state is the gradient of the same step before each of the first steps at which it is known."""
    name = f"state.{key}"
    if name not in cube.before or "grad" not in cube.values:
        return False
    known = cube.known_before[name][:_STEPS] & cube.there["grad"][:_STEPS]
    old, grad = cube.before[name][:_STEPS][known], cube.values["grad"][:_STEPS][known]
    return bool(np.nansum(np.abs(grad)) > 0 and np.array_equal(old, grad, equal_nan=True))


def _tidy(number: float) -> float:
    """The shortest decimal within the estimate's error."""
    for digits in range(1, 7):
        short = round(number, digits)
        if abs(short - number) < 2e-6:
            return short
    return number


def _variant(rule: Rule, name: str, option: str, value: Any) -> Variant:
    shown = f"({', '.join(f'{v:.10g}' for v in value)})" if isinstance(value, tuple) else f"{value:.10g}"
    code = "rule-momentum-form" if option == "momentum" else "rule-betas"
    template = "({beta1}, {beta2})" if option == "betas" else f"{{{option}}}"
    return Variant(
        rule.name,
        name,
        code,
        f"uses {option} {shown}, whatever its groups say",
        f"uses the groups' {option}, {template}",
        f"use the groups' {option}",
        {},
    )
