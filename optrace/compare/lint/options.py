"""Rules about the options of the groups."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from optrace.compare.lint.finding import Finding
from optrace.compare.lint.look import Look, few, is_norm_or_bias

STRONG_DECAY = 0.01
"""Decay of everything up to this size is a common recipe (and AdamW's default)."""

COMMON = frozenset({"lr", "weight_decay", "maximize", "foreach", "differentiable", "fused", "capturable"})
OPTIONS: dict[str, frozenset[str]] = {
    "SGD": COMMON | {"momentum", "dampening", "nesterov"},
    "Adam": COMMON | {"betas", "eps", "amsgrad", "decoupled_weight_decay"},
    "AdamW": COMMON | {"betas", "eps", "amsgrad", "decoupled_weight_decay"},
    "Adamax": COMMON | {"betas", "eps"},
    "NAdam": COMMON | {"betas", "eps", "momentum_decay", "decoupled_weight_decay"},
    "RAdam": COMMON | {"betas", "eps", "decoupled_weight_decay"},
    "RMSprop": COMMON | {"alpha", "eps", "momentum", "centered"},
    "Adagrad": COMMON | {"lr_decay", "initial_accumulator_value", "eps"},
    "Adadelta": COMMON | {"rho", "eps"},
    "ASGD": COMMON | {"lambd", "alpha", "t0"},
    "Rprop": COMMON | {"etas", "step_sizes"},
    "Adafactor": COMMON | {"beta2_decay", "eps", "d"},
    "Muon": COMMON | {"momentum", "nesterov", "ns_coefficients", "eps", "ns_steps", "adjust_lr_fn"},
    "SparseAdam": COMMON | {"betas", "eps"},
    "LBFGS": COMMON | {"max_iter", "max_eval", "tolerance_grad", "tolerance_change", "history_size", "line_search_fn"},
}
"""What each class of torch.optim reads from a group."""

SYNONYMS = {
    "learning_rate": "lr", "base_lr": "lr", "eta": "lr", "step_size": "lr", "wd": "weight_decay", "l2": "weight_decay",
    "decay": "weight_decay", "weight_decay_rate": "weight_decay", "mu": "momentum", "beta": "momentum",
    "beta1": "betas", "beta2": "betas", "beta_1": "betas", "beta_2": "betas", "epsilon": "eps",
}  # fmt: skip
WRITTEN_BY_SCHEDULERS = frozenset(
    {"initial_lr", "max_lr", "min_lr", "swa_lr", "base_momentum", "max_momentum", "momentum", "betas"}
)
"""Keys that schedulers put into every group (CyclicLR and OneCycleLR: momentum or betas)."""
_CLOSE = 0.8


def decay_on_norms(look: Look) -> Iterator[Finding]:
    """Biases and weights of normalisations that decay with the matrices."""
    frame = look.groups
    if "weight_decay" not in frame or not len(frame):
        return
    first = frame[frame["step"] == frame["step"].min()]
    decays = {int(g): float(d) for g, d in zip(first["group"], first["weight_decay"], strict=True) if _number(d)}
    found: dict[int, list[str]] = defaultdict(list)
    kinds: dict[int, set[bool]] = defaultdict(set)
    params = look.params[look.params["requires_grad"].astype(bool)]
    for name, shape, group in zip(params["param"], params["shape"], params["group"], strict=True):
        if decays.get(group):
            small = is_norm_or_bias(name, shape)
            kinds[group].add(small)
            if small:
                found[group].append(name)
    spared = any(decay == 0 for decay in decays.values())
    for group, names in found.items():
        if False not in kinds[group] or not (spared or decays[group] > STRONG_DECAY):
            continue  # a group of their own is meant so; a little decay of everything is a recipe
        why = "another group of it decays nothing" if spared else f"weight_decay is {decays[group]!r} for all alike"
        yield Finding(
            "decay-on-norms",
            f"{few(names)} {'decays' if len(names) == 1 else 'decay'} with the matrices of group {group} of"
            f" {look.title}",
            "put parameters of one dimension or none into a group with weight_decay=0 (choose by p.ndim, not by name)",
            (f"{len(names):,} biases and norm weights have weight_decay {decays[group]!r}; {why}",),
            look.index,
            tuple(names),
        )


def option_ignored(look: Look) -> Iterator[Finding]:
    """Keys of a group that its optimizer never reads, and options that do nothing beside the others."""
    frame = look.groups
    if not len(frame):
        return
    yield from _unread(look)
    if look.name == "Rprop" and "lr" in frame:
        for group, rows in frame.groupby("group"):
            if rows["lr"].nunique() > 1:
                yield _finding(
                    look,
                    f"the lr of group {group} changes, and Rprop reads lr only when it makes its state",
                    "drop the scheduler, or write group['step_sizes'] bounds instead",
                    f"{rows['lr'].nunique():,} values of lr in {len(rows):,} steps; the sizes of Rprop's steps are its"
                    " state",
                )
    if look.name == "SGD" and {"dampening", "momentum"} <= set(frame):
        idle = frame[(frame["momentum"] == 0) & (frame["dampening"] != 0)]
        if len(idle):
            value = idle["dampening"].iloc[0]
            yield _finding(
                look,
                f"dampening is {value!r} and momentum is 0: SGD reads dampening only with momentum",
                "set momentum, or drop dampening",
                f"at {len(idle):,} steps",
            )


def _unread(look: Look) -> Iterator[Finding]:
    """Keys that stand for an option the optimizer reads under another name, or does not have."""
    frame = look.groups
    last = frame[frame["step"] == frame["step"].max()]
    keys: dict[str, list[int]] = defaultdict(list)
    for column in last.columns[3:]:
        base = str(column).partition(".")[0]
        groups = [int(g) for g, v in zip(last["group"], last[column], strict=True) if v is None or v == v]
        keys[base] = sorted({*keys[base], *groups})
    everywhere = {base for base, groups in keys.items() if len(groups) == len(last)}
    known = OPTIONS.get(look.name)
    if known is not None and not known - COMMON <= set(keys):
        known = None  # another class of the same name
    for base, groups in keys.items():
        if base in (known or everywhere) or (base in WRITTEN_BY_SCHEDULERS and base in everywhere):
            continue
        options = known or frozenset(everywhere)
        meant = _meant(base, options)
        if meant is None and not (known and any(base in others for others in OPTIONS.values())):
            continue
        where = f"group{'s' if len(groups) > 1 else ''} {', '.join(map(str, groups))}"
        advice = f"write {meant!r}" if meant else f"drop it, or use an optimizer that has {base}"
        yield _finding(
            look,
            f"{where} of {look.title} {'have' if len(groups) > 1 else 'has'} the option {base!r}, which {look.name}"
            " never reads",
            f"{advice}: a group keeps any key without a word",
            f"{look.name} reads {', '.join(sorted(options))}",
        )


def _meant(base: str, options: frozenset[str]) -> str | None:
    """The option that a key seems to stand for."""
    if SYNONYMS.get(base.lower()) in options:
        return SYNONYMS[base.lower()]
    close = get_close_matches(base.lower().replace("-", "_"), sorted(options), 1, _CLOSE)
    return close[0] if close else None


def _finding(look: Look, summary: str, fix: str, evidence: str) -> Finding:
    return Finding("option-ignored", summary, fix, (evidence,), look.index)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
