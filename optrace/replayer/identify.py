"""`optrace.identify`: from the record alone, which rule a run followed and with what numbers."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optrace.errors import TraceError
from optrace.reference.families import FAMILIES
from optrace.replayer.cubes import Cube, Member, cubes, members_of
from optrace.replayer.engine import Carried, residuals
from optrace.replayer.options import options_by_step
from optrace.trace.dtypes import eps_of, tiny_of
from optrace.trace.reader import Trace, open_trace

Floats = NDArray[np.float64]

STEPS = 64
"""Recorded steps that are looked at; an optimizer's rule shows in far fewer."""
FITS = 8.0
"""Eps within which a rule is said to explain every number."""
SIGMAS = 20.0
"""A weight decay is believed where it is so many times its uncertainty."""
_LR = ("lr", "learning_rate", "eta", "step_size", "alpha")


@dataclass(frozen=True)
class Identity:
    """The rule that explains a record best."""

    run: str
    optimizer: int
    optimizer_class: str
    rule: str | None
    """Name of the rule that explains every judged number; None: none of ours."""
    closest: str
    """The rule that comes closest."""
    numbers: tuple[tuple[str, float], ...]
    """Its hyper-parameters, as fitted or as recorded."""
    words: str
    """All of it in words."""
    residual_eps: float
    """The worst number's distance from the rule, in eps."""
    params: int
    steps: int

    def __str__(self) -> str:
        who = f"{self.run}@{self.optimizer} ({self.optimizer_class})"
        if self.rule is not None:
            return f"{who}: {self.words}; residual {self.residual_eps:.3g} eps over {self.steps} steps"
        return f"{who}: none of ours; the closest is {self.words}, off by {self.residual_eps:.3g} eps"


@dataclass(frozen=True)
class _Series:
    """Consecutive steps of one parameter: axis 0 steps, axis 1 sampled elements."""

    member: Member
    grad: Floats
    before: Floats
    update: Floats
    lr: Floats
    """[steps]; 1 where none is recorded."""
    unit: Floats
    """eps * scale of each element: the least that can be told apart."""


@dataclass(frozen=True)
class _Guess:
    """A rule with numbers, ready to be tried on the record."""

    family: str
    words: str
    switches: Mapping[str, Any]
    hyper: Mapping[str, Any]
    decays: Mapping[str, float]
    """weight_decay by parameter."""
    complexity: int


def identify(run: str | os.PathLike[str] | Trace, *, optimizer: int = 0) -> Identity:
    """Find the rule and its numbers that explain the recorded steps of an optimizer.

    SGD and its relatives are fitted: each update is a linear function of the last update, the gradients and the
    parameters, and its coefficients are the numbers. Adam's relatives are tried over the numbers that people use, with
    lr and weight decay fitted. What is found is then run over the record, its state carried from step to step, and the
    residual is that of this run.

    Args:
        run: a run folder or an open trace, recorded from the first step with samples.
        optimizer: index of the optimizer.

    Raises:
        TraceError: the run is missing, or holds too few consecutive steps.
    """
    trace = run if isinstance(run, Trace) else open_trace(run)
    names = dict(trace.optimizers)
    if optimizer not in names:
        raise TraceError(f"{trace.path} has no optimizer {optimizer}; it has {', '.join(map(str, names)) or 'none'}")
    members = members_of(trace, optimizer)
    cube = _first_cube(trace, optimizer, members)
    groups = options_by_step(trace, optimizer, None, int(cube.steps[-1]))
    series = list(_series(cube, groups))
    if not series or len(cube.steps) < 3:
        raise TraceError(
            f"{trace.path} has too few steps with samples of param and grad to tell a rule; record from step 1"
        )
    best: tuple[tuple[bool, int, float], _Guess, float] | None = None
    for family in (_linear, _adaptive):  # the second, many times as much work, only where the first explains nothing
        for guess in family(series):
            worst = _try(guess, cube, groups)
            rank = (worst > FITS, guess.complexity if worst <= FITS else 0, worst)
            if best is None or rank < best[0]:
                best = rank, guess, worst
        if best is not None and best[2] <= FITS:
            break
    if best is None:
        raise TraceError(
            f"the steps of {trace.path} determine no rule: its gradients or updates are zero or not finite"
        )
    _, guess, worst = best
    numbers = tuple(
        (k, float(v)) for k, v in guess.hyper.items() if isinstance(v, int | float) and not isinstance(v, bool)
    )
    return Identity(
        trace.path.name,
        optimizer,
        names[optimizer],
        guess.family if worst <= FITS else None,
        guess.family,
        numbers,
        guess.words,
        worst,
        len(members),
        len(cube.steps),
    )


def _first_cube(trace: Trace, optimizer: int, members: Sequence[Member]) -> Cube:
    for cube in cubes(trace, optimizer, members):
        steps = cube.steps[:STEPS]
        last = int(np.argmax(np.diff(steps) != 1)) if (np.diff(steps) != 1).any() else len(steps) - 1
        for found in cubes(trace, optimizer, members, 1, int(steps[last])):
            return found
    raise TraceError(f"{trace.path} holds no step of optimizer {optimizer}")


def _series(cube: Cube, groups: Mapping[int, Mapping[int, Mapping[str, Any]]]) -> Iterator[_Series]:
    if "grad" not in cube.values or "param" not in cube.values:
        return
    for m, member in enumerate(cube.members):
        used = slice(0, member.used)
        if not cube.there["grad"][:, m].all() or not member.used:
            continue
        before, after = cube.before["param"][:, m, used], cube.values["param"][:, m, used]
        scale = np.maximum(np.abs(before), np.abs(after)) + np.sqrt(np.mean((after - before) ** 2, axis=1))[:, None]
        unit = eps_of(member.dtype) * np.maximum(scale, tiny_of(member.dtype))
        lr = np.array([_rate(groups.get(int(step), {}).get(member.group, {})) for step in cube.steps])
        yield _Series(member, cube.values["grad"][:, m, used], before, after - before, lr, unit)


def _rate(options: Mapping[str, Any]) -> float:
    for name in _LR:
        value = options.get(name)
        if isinstance(value, int | float) and value > 0:
            return float(value)
    return 1.0


# ---- SGD and its relatives: linear ----


def _linear(series: Sequence[_Series]) -> Iterator[_Guess]:
    """SGD with and without momentum, Nesterov, coupled and decoupled decay: numbers by least squares."""
    recorded = any((one.lr != 1.0).any() for one in series)
    lr = float(series[0].lr[0])
    for momentum, nesterov, decay in itertools.product((False, True), (False, True), ("none", "coupled", "decoupled")):
        if nesterov and not momentum:
            continue
        fits = [_fit(one, momentum, nesterov, decay != "none", decay == "decoupled" and momentum) for one in series]
        if any(fit is None for fit in fits):
            continue
        mu = _round(float(np.median([fit["mu"] for fit in fits if fit]))) if momentum else 0.0
        if momentum and not 0 < mu < 1:
            continue
        share = _round(float(np.median([fit["share"] for fit in fits if fit])))
        if nesterov:
            share = _round(share / (1 + mu))
        first = _round(float(np.median([_first_share(one) for one in series])) / ((1 + mu) if nesterov else 1))
        decays = {
            one.member.name: _round(fit["decay"] / (share if share else 1.0))
            for one, fit in zip(series, fits, strict=True)
            if fit and fit["decay"]
        }
        switches: dict[str, Any] = {"decay": "decoupled"} if decay == "decoupled" else {}
        rate = share if not recorded else 1.0
        options: dict[str, Any] = {"momentum": mu, "nesterov": nesterov, "dampening": 0.0, "weight_decay": 0.0}
        form = ""
        if recorded and momentum and not _close(share, 1.0):
            if _close(share, 1 - mu) and _close(first, share):
                switches["momentum"], form = "average", " averaged from zero"
            else:
                options["dampening"] = _round(1 - share)
                form = f" dampened by {options['dampening']:g}"
                if _close(first, share):
                    switches["first"], form = "dampened", form + " from the first step on"
        elif recorded and not momentum:
            rate = share
        if nesterov:
            form += ", Nesterov"
        options["lr"] = rate
        words = f"SGD{f', momentum {mu:g}' if momentum else ''}{form}, lr {lr * rate if recorded else rate:g}"
        words += _decay_words(decays, decay, len(series))
        complexity = momentum + nesterov + bool(decays) + (decay == "decoupled") + len(switches)
        yield _Guess("sgd", words, switches, options, decays, complexity)


def _fit(one: _Series, momentum: bool, nesterov: bool, decay: bool, late_decay: bool) -> dict[str, float] | None:
    """Coefficients of update/lr on the last update/lr, gradients and parameters; None where they are not determined."""
    start = 1 if momentum else 0
    rate = one.lr[:, None]
    u, g, p = one.update / rate, one.grad, one.before
    columns = []
    if momentum:
        columns.append(u[:-1])
    columns.append(g[start:])
    if nesterov:
        columns.append(g[:-1])
    if decay:
        columns.append(p[start:])
        if late_decay or nesterov:
            columns.append(p[:-1])
    weight = (rate / one.unit)[start:]
    weight = np.where(np.isfinite(weight), weight, 0.0)
    design = np.stack([(column * weight).ravel() for column in columns], axis=1)
    target = (u[start:] * weight).ravel()
    if not np.isfinite(design).all() or not np.isfinite(target).all() or len(target) < len(columns):
        return None
    norms = np.linalg.norm(design, axis=0)
    if (norms == 0).any():
        return None
    solved, _, rank, _ = np.linalg.lstsq(design / norms, target, rcond=1e-12)
    if rank < len(columns):
        return None
    values = solved / norms
    found = {"mu": float(values[0]) if momentum else 0.0, "share": -float(values[1 if momentum else 0]), "decay": 0.0}
    if decay:
        position = (1 if momentum else 0) + 1 + (1 if nesterov else 0)
        if abs(values[position]) > SIGMAS * _uncertainty(design, position):
            found["decay"] = -float(values[position])
    return found


def _uncertainty(design: Floats, position: int) -> float:
    """How far a coefficient may be off when every target, in units of rounding, is off by one."""
    inverse = np.linalg.pinv(design.T @ design)
    return float(np.sqrt(max(inverse[position, position], 0.0)))


def _first_share(one: _Series) -> float:
    """-update/(lr*grad) at the first step, over its elements."""
    g = one.grad[0]
    weight = g**2
    if not weight.sum():
        return 0.0
    return float(-(one.update[0] / one.lr[0] * g).sum() / weight.sum())


# ---- Adam and its relatives: tried ----

_BETAS = ((0.9, 0.999), (0.9, 0.95), (0.9, 0.99), (0.9, 0.98), (0.8, 0.99), (0.5, 0.999), (0.95, 0.95))
_EPS = (1e-8, 1e-6, 1e-7, 1e-10, 1e-5, 1e-3)


def _adaptive(series: Sequence[_Series]) -> Iterator[_Guess]:
    """Adam, AdamW, RMSprop and Adagrad over the numbers that people use; lr and decoupled decay by least squares."""
    for betas, eps in itertools.product(_BETAS, _EPS):
        hyper = {"betas": betas, "eps": eps, "amsgrad": False, "weight_decay": 0.0, "lr": 1.0}
        yield from _scaled("adamw", "Adam", series, hyper, f"betas {betas[0]:g} {betas[1]:g}, eps {eps:g}")
    for alpha, eps in itertools.product((0.99, 0.9, 0.95, 0.999), _EPS):
        hyper = {"alpha": alpha, "eps": eps, "momentum": 0.0, "centered": False, "weight_decay": 0.0, "lr": 1.0}
        yield from _scaled("rmsprop", "RMSprop", series, hyper, f"alpha {alpha:g}, eps {eps:g}")
    for eps in (1e-10, 1e-8, 1e-7):
        hyper = {"eps": eps, "lr_decay": 0.0, "weight_decay": 0.0, "lr": 1.0, "initial_accumulator_value": 0.0}
        yield from _scaled("adagrad", "Adagrad", series, hyper, f"eps {eps:g}")


def _scaled(
    family: str, title: str, series: Sequence[_Series], hyper: dict[str, Any], numbers: str
) -> Iterator[_Guess]:
    """The rule with lr 1 gives the directions; how far each update goes along them gives lr, what is left the decay."""
    shares, decays = [], {}
    for one in series:
        p, directions = np.zeros_like(one.before[0]), []
        state: dict[str, Any] = {}
        for g in one.grad:
            new, state = FAMILIES[family](p, g, state, hyper, {})
            directions.append(new - p)
        columns = [np.stack(directions) * one.lr[:, None], -one.before * one.lr[:, None]]
        design = np.stack([(c / one.unit).ravel() for c in columns], axis=1)
        target = (one.update / one.unit).ravel()
        if not (np.isfinite(design).all() and np.isfinite(target).all()) or not design.any(axis=0).all():
            return
        solved = np.linalg.lstsq(design, target, rcond=None)[0]
        shares.append(float(solved[0]))
        if abs(solved[1]) > SIGMAS * _uncertainty(design, 1):
            decays[one.member.name] = _round(float(solved[1]))
    recorded = any((one.lr != 1.0).any() for one in series)
    share = _round(float(np.median(shares)))
    if share <= 0:
        return
    lr = float(series[0].lr[0]) * share
    made = hyper | {"lr": share if not recorded or not _close(share, 1.0) else 1.0}
    plain = f"{title}W" if family == "adamw" and decays else title
    words = f"{plain}, {numbers}, lr {lr:g}" + _decay_words(decays, "decoupled", len(series))
    yield _Guess(
        family, words, {"decay": "decoupled"}, made, {k: v / share for k, v in decays.items()}, 3 + bool(decays)
    )


# ---- trying a guess ----


def _try(guess: _Guess, cube: Cube, groups: Mapping[int, Mapping[int, Mapping[str, Any]]]) -> float:
    """The worst residual of the guess over the record, state carried from the first step."""
    worst = 0.0
    by_decay: dict[float, list[int]] = {}
    for m, member in enumerate(cube.members):
        by_decay.setdefault(guess.decays.get(member.name, 0.0), []).append(m)
    for decay, chosen in by_decay.items():
        part = _of(cube, chosen)
        options = {
            step: {g: {**guess.hyper, "lr": guess.hyper["lr"] * _rate(o), "weight_decay": decay} for g, o in of.items()}
            for step, of in groups.items()
        }
        found = residuals(
            lambda p, g, s, h: FAMILIES[guess.family](p, g, s, h, guess.switches),
            _KEYS[guess.family],
            part,
            options,
            Carried(),
        )
        judged = found.param[~np.isnan(found.param)]
        worst = max(worst, float(judged.max(initial=0.0)))
    return worst


_KEYS = {
    "sgd": ("momentum_buffer",),
    "adamw": ("step", "exp_avg", "exp_avg_sq"),
    "rmsprop": ("step", "square_avg"),
    "adagrad": ("step", "sum"),
}


def _of(cube: Cube, chosen: list[int]) -> Cube:
    def cut(arrays: Mapping[str, Any]) -> dict[str, Any]:
        return {name: array[:, chosen] for name, array in arrays.items()}

    return Cube(
        cube.steps,
        [cube.members[m] for m in chosen],
        cut(cube.values),
        cut(cube.there),
        cut(cube.rows),
        cut(cube.before),
        cut(cube.known_before),
        cube.dtypes,
    )


def _decay_words(decays: Mapping[str, float], kind: str, total: int) -> str:
    if not decays:
        return ""
    values = sorted(set(decays.values()))
    amount = f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"
    where = "" if len(decays) == total else f" on {len(decays)} of {total} params"
    return f", {kind} weight decay {amount}{where}"


def _round(value: float) -> float:
    """A fitted number as people write it, where it lies within its uncertainty of one."""
    if value == 0 or not np.isfinite(value):
        return value
    for digits in range(1, 7):
        rounded = float(f"{value:.{digits}g}")
        if abs(rounded - value) <= 2e-4 * abs(value):
            return rounded
    return value


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-3 * max(abs(a), abs(b))
