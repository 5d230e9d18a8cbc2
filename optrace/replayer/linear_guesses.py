"""SGD and its relatives: each update is linear in the last one, gradients and parameters, and the fit is the rule."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from optrace.replayer.guesses import SIGMAS, Guess, Series, close, decay_words, rounded, uncertainty


def linear_guesses(series: Sequence[Series]) -> Iterator[Guess]:
    """SGD with and without momentum, Nesterov, coupled and decoupled decay: numbers by least squares."""
    recorded = any((one.lr != 1.0).any() for one in series)
    lr = float(series[0].lr[0])
    for momentum, nesterov, decay in itertools.product((False, True), (False, True), ("none", "coupled", "decoupled")):
        if nesterov and not momentum:
            continue
        fits = [_fit(one, momentum, nesterov, decay != "none", decay == "decoupled" and momentum) for one in series]
        if any(fit is None for fit in fits):
            continue
        mu = rounded(float(np.median([fit["mu"] for fit in fits if fit]))) if momentum else 0.0
        if momentum and not 0 < mu < 1:
            continue
        share = rounded(float(np.median([fit["share"] for fit in fits if fit])))
        if nesterov:
            share = rounded(share / (1 + mu))
        first = rounded(float(np.median([_first_share(one) for one in series])) / ((1 + mu) if nesterov else 1))
        decays = {
            one.member.name: rounded(fit["decay"] / (share if share else 1.0))
            for one, fit in zip(series, fits, strict=True)
            if fit and fit["decay"]
        }
        switches: dict[str, Any] = {"decay": "decoupled"} if decay == "decoupled" else {}
        rate = share if not recorded else 1.0
        options: dict[str, Any] = {"momentum": mu, "nesterov": nesterov, "dampening": 0.0, "weight_decay": 0.0}
        form = ""
        if recorded and momentum and not close(share, 1.0):
            if close(share, 1 - mu) and close(first, share):
                switches["momentum"], form = "average", " averaged from zero"
            else:
                options["dampening"] = rounded(1 - share)
                form = f" dampened by {options['dampening']:g}"
                if close(first, share):
                    switches["first"], form = "dampened", form + " from the first step on"
        elif recorded and not momentum:
            rate = share
        if nesterov:
            form += ", Nesterov"
        options["lr"] = rate
        words = f"SGD{f', momentum {mu:g}' if momentum else ''}{form}, lr {lr * rate if recorded else rate:g}"
        words += decay_words(decays, decay, len(series))
        complexity = momentum + nesterov + bool(decays) + (decay == "decoupled") + len(switches)
        yield Guess("sgd", words, switches, options, decays, complexity)


def _fit(one: Series, momentum: bool, nesterov: bool, decay: bool, late_decay: bool) -> dict[str, float] | None:
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
        if abs(values[position]) > SIGMAS * uncertainty(design, position):
            found["decay"] = -float(values[position])
    return found


def _first_share(one: Series) -> float:
    """-update/(lr*grad) at the first step, over its elements."""
    g = one.grad[0]
    weight = g**2
    if not weight.sum():
        return 0.0
    return float(-(one.update[0] / one.lr[0] * g).sum() / weight.sum())
