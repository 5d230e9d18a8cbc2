"""SGD and its relatives: each update is linear in the last one, gradients and parameters, and the fit is the rule."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from optrace.replayer.guesses import SIGMAS, Guess, Series, close, decay_words, lr_words, rounded, uncertainty


def linear_guesses(series: Sequence[Series]) -> Iterator[Guess]:
    """SGD with and without momentum, Nesterov, coupled and decoupled decay: numbers by least squares."""
    recorded = any((one.lr != 1.0).any() for one in series)
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
        first = float(
            np.median([_first_share(one, fit, nesterov) for one, fit in zip(series, fits, strict=True) if fit])
        )
        first = rounded(first / ((1 + mu) if nesterov else 1))
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
        words = f"SGD{f', momentum {mu:g}' if momentum else ''}{form}, {lr_words(series, rate)}"
        words += decay_words(decays, decay, len(series))
        complexity = momentum + nesterov + bool(decays) + (decay == "decoupled") + len(switches)
        yield Guess("sgd", words, switches, options, decays, complexity)


def _fit(one: Series, momentum: bool, nesterov: bool, decay: bool, late_decay: bool) -> dict[str, float] | None:
    """Coefficients of update/lr on the last update/lr, gradients and parameters; None where they are not determined."""
    start = 1 if momentum else 0
    moving = one.lr > 0  # an lr of zero hides what the rule did
    rate = np.where(moving, one.lr, 1.0)[:, None]
    u, g, p = one.update / rate, one.grad, one.before
    seen = (moving[start:] & moving[: len(moving) - start])[:, None]
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
    weight = np.where(np.isfinite(weight) & seen, weight, 0.0)
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


def _first_share(one: Series, fit: Mapping[str, float], nesterov: bool) -> float:
    """-update/(lr*grad) at the first step, over its elements; where its lr is zero, what step 2 has of its gradient."""
    g = one.grad[0]
    weight = float((g**2).sum())
    if not weight:
        return 0.0
    if one.lr[0]:
        return float(-(one.update[0] / one.lr[0] * g).sum() / weight)
    if nesterov or len(one.lr) < 2 or not one.lr[1] or not fit["mu"]:
        return float("nan")
    drag = fit["decay"] / fit["share"] if fit["share"] else 0.0
    then, now = (one.grad[i] + drag * one.before[i] for i in (0, 1))
    kept = -one.update[1] / one.lr[1] - fit["share"] * now
    return float((kept * then).sum() / (fit["mu"] * (then**2).sum()))
