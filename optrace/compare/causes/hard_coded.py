"""Options that a rule does not take from its group: an lr that was read once, a weight decay or an eps in the code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optrace.compare.causes.decay_lr import decays_by_schedule, first_rates
from optrace.replayer.cubes import Cube
from optrace.replayer.engine import Groups, outcomes
from optrace.replayer.known import Rule, Variant

Floats = NDArray[np.float64]

CLOSE = 0.02
"""How near an estimate must come to a number to be taken for it; the replay of all steps decides."""
LEAST = 3
"""Steps from which an lr is estimated at least."""


def hard_coded(rule: Rule, cube: Cube, options: Groups) -> Iterator[tuple[Variant, Groups]]:
    """Variants of a rule with an lr, weight decay or eps of its own, and the options that it then uses."""
    plain = Variant(rule.name, rule.name, "rule-unknown", "", "", "", {})
    yield from _lr(plain, rule, cube, options)
    yield from decays_by_schedule(rule, options)
    yield from _decay(plain, rule, cube, options)
    yield from _eps(plain, rule, cube, options)


def _lr(plain: Variant, rule: Rule, cube: Cube, options: Groups) -> Iterator[tuple[Variant, Groups]]:
    used = _used_lr(plain, rule, cube, options)
    steps = sorted({step for step, _ in used})
    if len(steps) < LEAST or not all(np.isfinite(list(used.values()))):
        return
    told = {key: float(options[key[0]][key[1]]["lr"]) for key in used}
    groups = {group for _, group in used}
    first = {group: next(told[key] for key in sorted(used) if key[1] == group) for group in groups}
    moves = any(value != first[group] for (_, group), value in told.items())
    ratio = [used[key] / told[key] for key in used if told[key]]
    if moves and _near([used[key] / first[key[1]] for key in used if first[key[1]]], 1.0):
        shown = ", ".join(f"{first[group]:.10g}" for group in sorted(groups))
        yield (
            _variant(rule, "lr-first", "lr-frozen", f"uses lr {shown} at all steps, that of the first", "lr"),
            _replaced(options, lambda step, group, value: first.get(group, value), "lr"),
        )
    middle = float(np.median(ratio)) if ratio else 1.0
    factor = float(f"{middle:.3g}")
    if ratio and abs(factor - 1) > CLOSE and _near(ratio, middle):
        yield (
            Variant(
                rule.name,
                "lr-factor",
                "lr-value",
                f"moves {factor:.10g} times as far as the lr of its groups says",
                "moves by the lr of its groups",
                "look for another lr, or for a factor on the update, in step()",
                {},
            ),
            _replaced(options, lambda step, group, value: factor * value, "lr"),
        )
    before = {key: told.get((key[0] - 1, key[1])) for key in used if key[0] != steps[0]}
    if moves and _near([used[key] / value for key, value in before.items() if value], 1.0):
        late = dict(zip(sorted(options)[1:], sorted(options)[:-1], strict=True))

        def last(step: int, group: int, value: float) -> float:
            return float(options[late.get(step, step)].get(group, {}).get("lr", value))

        yield (
            _variant(rule, "lr-late", "lr-shift", "uses the lr of the step before", "lr"),
            _replaced(options, last, "lr"),
        )


def _used_lr(plain: Variant, rule: Rule, cube: Cube, options: Groups) -> dict[tuple[int, int], float]:
    """The lr by step and group that gives the recorded parameters best; all rules here are linear in lr."""
    top: dict[tuple[int, int], list[float]] = {}
    low, high = (_outcomes(plain, rule, cube, options, {"lr": lr}) for lr in (0.0, 1.0))
    for (i, chosen, group, none, _), (_, _, _, one, _) in zip(low, high, strict=True):
        with np.errstate(all="ignore"):
            way, gone = one - none, cube.values["param"][i, chosen] - none
            known = np.isfinite(way) & np.isfinite(gone)
            sums = top.setdefault((int(cube.steps[i]), group), [0.0, 0.0])
            sums[0] += float((way * gone)[known].sum())
            sums[1] += float((way * way)[known].sum())
    return {key: above / below for key, (above, below) in top.items() if below}


def _decay(plain: Variant, rule: Rule, cube: Cube, options: Groups) -> Iterator[tuple[Variant, Groups]]:
    """Weight decay of its own, seen where the rule is linear in it: in the first state, or in the parameter."""
    key = {"sgd": "momentum_buffer", "adam": "exp_avg"}.get(rule.name)
    if rule.name not in ("sgd", "adam", "adamw"):
        return
    told = {float(o.get("weight_decay", 0.0)) for groups in options.values() for o in groups.values()}
    low, high = (_outcomes(plain, rule, cube, options, {"weight_decay": decay}) for decay in (0.0, 1.0))
    above = below = 0.0
    for (i, chosen, _, none, kept), (_, _, _, one, all_kept) in zip(low, high, strict=True):
        quantity = f"state.{key}"
        if key is not None and key in kept and quantity in cube.values:
            none, one, recorded = kept[key], all_kept[key], cube.values[quantity][i, chosen]
        else:
            recorded = cube.values["param"][i, chosen]
        with np.errstate(all="ignore"):
            way, gone = one - none, recorded - none
            known = np.isfinite(way) & np.isfinite(gone)
            above, below = above + float((way * gone)[known].sum()), below + float((way * way)[known].sum())
    if below:
        decay = float(f"{above / below:.2g}")
        told |= {value / first for value in tuple(told) for first in first_rates(options).values()}  # told by decay_lr
        if decay > 0 and all(abs(decay - value) > CLOSE * max(decay, value) for value in told):
            yield (
                _variant(rule, "decay-other", "group-option", f"uses weight_decay {decay:.10g}", "weight_decay"),
                _replaced(options, lambda step, group, value: decay, "weight_decay"),
            )


def _eps(plain: Variant, rule: Rule, cube: Cube, options: Groups) -> Iterator[tuple[Variant, Groups]]:
    """Eps of its own: 1/u is linear in it where u is the movement."""
    told = {float(o["eps"]) for groups in options.values() for o in groups.values() if isinstance(o.get("eps"), float)}
    if len(told) != 1 or not (eps := told.pop()):
        return
    still = _outcomes(plain, rule, cube, options, {"lr": 0.0})
    without, with_it = (_outcomes(plain, rule, cube, options, {"eps": value}) for value in (0.0, eps))
    found, weights = [], []
    for (i, chosen, group, base, _), (*_, none, _), (*_, one, _) in zip(still, without, with_it, strict=True):
        hyper = options[int(cube.steps[i])][group]
        if rule.name == "adamw" or hyper.get("decoupled_weight_decay"):
            base = base * (1 - hyper["lr"] * hyper.get("weight_decay", 0.0))
        with np.errstate(all="ignore"):
            recorded = cube.values["param"][i, chosen]
            lack = 1 / (recorded - base) - 1 / (none - base)
            estimate = eps * lack / (1 / (one - base) - 1 / (none - base))
            # what one rounding of the parameter makes of the estimate
            error = eps * np.abs(2.0**-24 * recorded / (recorded - base) ** 2 / (1 / (one - base) - 1 / (none - base)))
        known = np.isfinite(estimate) & np.isfinite(error) & (error > 0) & (estimate > 0)
        found += estimate[known].tolist()
        weights += (error[known] / estimate[known]).tolist()
    best = np.array(found)[np.argsort(weights)[: max(3, len(found) // 8)]]
    if len(best) < 3:
        return
    number = float(f"{float(np.median(best)):.2g}")
    if abs(number - eps) > CLOSE * max(number, eps):
        yield (
            _variant(rule, "eps-other", "rule-eps", f"uses eps {number:.10g}", "eps"),
            _replaced(options, lambda step, group, value: number, "eps"),
        )


def _outcomes(
    plain: Variant, rule: Rule, cube: Cube, options: Groups, hyper: Mapping[str, Any]
) -> list[tuple[int, NDArray[np.int64], int, Floats, dict[str, Floats]]]:
    changed = {
        step: {group: {**own, **hyper} for group, own in groups.items()}
        for step, groups in options.items()
        if step in set(cube.steps.tolist())
    }
    return list(outcomes(plain.step, rule.state_keys, cube, changed))


def _near(ratios: list[float], number: float) -> bool:
    return bool(ratios) and all(abs(ratio - number) <= CLOSE * abs(number) for ratio in ratios)


def _replaced(options: Groups, value: Any, key: str) -> Groups:
    """The options with one of them replaced by `value(step, group, old)`."""
    return {
        step: {group: {**own, key: value(step, group, own.get(key, 0.0))} for group, own in groups.items()}
        for step, groups in options.items()
    }


def _variant(rule: Rule, name: str, code: str, does: str, option: str) -> Variant:
    shown = "lr" if option == "lr" else f"{option}, {{{option}}}"
    return Variant(
        rule.name,
        name,
        code,
        f"{does}, whatever its groups say",
        f"uses the groups' {shown} at every step",
        f"read {option} from the group in step(), each time",
        {},
    )
