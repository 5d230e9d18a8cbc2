"""Adam's relatives as torch and as people write them: tried over recorded and usual numbers, lr and decay fitted."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optrace.reference.families import FAMILIES
from optrace.replayer.guesses import SIGMAS, Floats, Guess, Series, close, decay_words, lr_words, rounded, uncertainty

KEEP = 3
"""Candidates of a stage that are looked at whole, after all of them were tried on a part of the record."""
_PART = 24, 3
"""Steps and parameters of that part."""
_BETAS = ((0.9, 0.999), (0.9, 0.95), (0.9, 0.99), (0.9, 0.98), (0.8, 0.99), (0.5, 0.999), (0.95, 0.95))
_ALPHAS = (0.99, 0.9, 0.95, 0.999)
_EPS = (1e-8, 1e-6, 1e-7, 1e-10, 1e-5, 1e-3)
_LION_BETAS = ((0.9, 0.99), (0.95, 0.98))
_EPS_NAMES = ("eps", "epsilon", "e")
_DECAY_NAMES = ("weight_decay", "wd", "decay", "l2", "lambda_", "reg")
_INSIDE = ", eps inside the root"


@dataclass(frozen=True)
class _Trial:
    """A family with all its numbers but lr and decoupled decay."""

    family: str
    title: str
    numbers: str
    hyper: Mapping[str, Any]
    switches: Mapping[str, Any]
    coupled: bool = False
    """Whether the recorded weight decay is added to the gradient."""


def adaptive_stages(series: Sequence[Series]) -> Iterator[Iterator[Guess]]:
    """Stages of guesses, the likeliest first: each is worth looking at only where the ones before explain nothing.

    With the recorded numbers as torch has the rules; then as people write them; then both with the usual numbers.
    """
    own = _recorded(series)
    usual = _Numbers(_BETAS, _ALPHAS, _EPS)
    for numbers in (own, usual) if own != usual else (usual,):
        for dialects in (False, True):
            yield _best(list(_trials(numbers, dialects, series)), series)


# ---- what to try ----


@dataclass(frozen=True)
class _Numbers:
    betas: tuple[tuple[float, float], ...]
    alphas: tuple[float, ...]
    eps: tuple[float, ...]


def _recorded(series: Sequence[Series]) -> _Numbers:
    """Numbers that the record holds under whatever name, the usual ones where it holds none."""
    flat: dict[str, float] = {}
    for one in series:
        for name, value in one.options.items():
            for part in value if isinstance(value, tuple) else (value,):
                if isinstance(part, float):
                    flat.setdefault(f"{name}.{len(flat)}" if isinstance(value, tuple) else name, part)
    shares = tuple(dict.fromkeys(value for value in flat.values() if 0.4 <= value < 1))
    eps = tuple(dict.fromkeys(v for n, v in flat.items() if n.partition(".")[0] in _EPS_NAMES and v > 0))
    betas = tuple(itertools.combinations(shares, 2))[:12] if len(shares) > 1 else ()
    if len(shares) == 1:
        betas = ((shares[0], shares[0]),)
    return _Numbers(betas or _BETAS, shares[:6] or _ALPHAS, eps or _EPS)


def _trials(numbers: _Numbers, dialects: bool, series: Sequence[Series]) -> Iterator[_Trial]:
    decays = any(_recorded_decay(one) for one in series)
    for betas, eps in itertools.product(numbers.betas, numbers.eps):
        hyper = {"betas": betas, "eps": eps, "amsgrad": False}
        for words, switches in _ADAM if dialects else _ADAM[:1]:
            text = f"betas {betas[0]:g} {betas[1]:g}, eps {eps:g}{words}"
            yield _Trial("adamw", "Adam", text, hyper, switches)
            if decays:
                yield _Trial("adamw", "Adam", text, hyper, switches, coupled=True)
    for alpha, eps in itertools.product(numbers.alphas, numbers.eps):
        hyper = {"alpha": alpha, "eps": eps, "momentum": 0.0, "centered": False}
        for words, switches in _RMSPROP if dialects else _RMSPROP[:1]:
            yield _Trial("rmsprop", "RMSprop", f"alpha {alpha:g}, eps {eps:g}{words}", hyper, switches)
    for eps in dict.fromkeys((*numbers.eps, 1e-10)):
        hyper = {"eps": eps, "lr_decay": 0.0, "initial_accumulator_value": 0.0}
        for words, switches in _ADAGRAD if dialects else _ADAGRAD[:1]:
            yield _Trial("adagrad", "Adagrad", f"eps {eps:g}{words}", hyper, switches)
    for betas in dict.fromkeys((*numbers.betas, *_LION_BETAS)):
        for words, switches in _LION if dialects else _LION[:1]:
            yield _Trial("lion", "Lion", f"betas {betas[0]:g} {betas[1]:g}{words}", {"betas": betas}, switches)


_ADAM: tuple[tuple[str, dict[str, Any]], ...] = (
    ("", {}),
    (_INSIDE, {"eps": "inside"}),
    (f"{_INSIDE} and before bias correction", {"eps": "inside-uncorrected"}),
    (" added before bias correction", {"eps": "before-correction"}),
    (", no bias correction", {"bias": "none"}),
    (", bias correction of the first moment only", {"bias": "first"}),
    (", bias correction of the second moment only", {"bias": "second"}),
    (f"{_INSIDE}, no bias correction", {"eps": "inside", "bias": "none"}),
    (", step counted from 0", {"counter": -1}),
    (", amsgrad", {"amsgrad": "on"}),
    (", amsgrad of the corrected moment", {"amsgrad": "corrected"}),
)
_RMSPROP: tuple[tuple[str, dict[str, Any]], ...] = (
    ("", {}),
    (_INSIDE, {"eps": "inside"}),
    (", centered", {"centered": "on"}),
    (", the shares of old and new exchanged", {"share": "exchanged"}),
)
_LION: tuple[tuple[str, dict[str, Any]], ...] = (
    ("", {}),
    (", the gradient counted before the sign", {"look": "after"}),
)
_ADAGRAD: tuple[tuple[str, dict[str, Any]], ...] = (("", {}), (_INSIDE, {"eps": "inside"}))


def _recorded_decay(one: Series) -> float:
    for name in _DECAY_NAMES:
        value = one.options.get(name)
        if isinstance(value, int | float) and value > 0:
            return float(value)
    return 0.0


# ---- lr and decoupled decay by least squares ----


def _best(trials: Sequence[_Trial], series: Sequence[Series]) -> Iterator[Guess]:
    """The trials that come closest on a part of the record, closest first, with lr and decay fitted to all of it."""
    steps, params = _PART
    part = sorted(series, key=lambda one: -one.grad.shape[1])[:params]
    scored = []
    for number, trial in enumerate(trials):
        fits = [_fit(trial, one, steps) for one in part]
        worst = max((np.inf if fit is None else fit.residual for fit in fits), default=np.inf)
        scored.append((worst, number))
    for worst, number in sorted(scored)[:KEEP]:
        if np.isfinite(worst):
            yield from _guess(trials[number], series)


@dataclass(frozen=True)
class _Fit:
    share: float
    """Of the recorded lr, by which the rule with lr 1 goes."""
    decay: float
    residual: float
    """Of the worst element, in eps."""


def _fit(trial: _Trial, one: Series, steps: int | None = None) -> _Fit | None:
    """The rule with lr 1 gives the directions; how far each update goes along them gives lr, what is left the decay."""
    hyper = {**trial.hyper, "lr": 1.0, "weight_decay": _recorded_decay(one) if trial.coupled else 0.0}
    switches = {**trial.switches, "decay": "coupled" if trial.coupled else "decoupled"}
    taken = slice(0, steps)
    state: dict[str, Any] = {}
    directions: list[Floats] = []
    for g, p in zip(one.grad[taken], one.before[taken], strict=True):
        new, state = FAMILIES[trial.family](p, g, state, hyper, switches)
        directions.append(new - p)
    rate, unit = one.lr[taken, None], one.unit[taken]
    columns = [np.stack(directions) * rate]
    if not trial.coupled:
        columns.append(-one.before[taken] * rate)
    design = np.stack([(column / unit).ravel() for column in columns], axis=1)
    target = (one.update[taken] / unit).ravel()
    if not (np.isfinite(design).all() and np.isfinite(target).all()) or not design.any(axis=0).all():
        return None
    solved = np.linalg.lstsq(design, target, rcond=None)[0]
    residual = float(np.abs(design @ solved - target).max(initial=0.0))
    decay = 0.0
    if not trial.coupled and abs(solved[1]) > SIGMAS * uncertainty(design, 1):
        decay = rounded(float(solved[1]))
    return _Fit(float(solved[0]), decay, residual)


def _guess(trial: _Trial, series: Sequence[Series]) -> Iterator[Guess]:
    fits = [_fit(trial, one) for one in series]
    found = [fit for fit in fits if fit is not None]
    if len(found) < len(fits):
        return
    share = rounded(float(np.median([fit.share for fit in found])))
    if share <= 0:
        return
    if trial.coupled:
        decays = {one.member.name: decay for one in series if (decay := _recorded_decay(one))}
    else:
        decays = {one.member.name: fit.decay / share for one, fit in zip(series, found, strict=True) if fit.decay}
    kind = "coupled" if trial.coupled else "decoupled"
    recorded = any((one.lr != 1.0).any() for one in series)
    rate = share if not recorded or not close(share, 1.0) else 1.0
    title = "AdamW" if trial.title == "Adam" and decays and not trial.coupled else trial.title
    words = f"{title}, {trial.numbers}, {lr_words(series, share)}" + decay_words(decays, kind, len(series))
    yield Guess(
        trial.family,
        words,
        {**trial.switches, "decay": kind},
        {**trial.hyper, "lr": rate, "weight_decay": 0.0},
        decays,
        3 + bool(decays) + len(trial.switches),
    )
