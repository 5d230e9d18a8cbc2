"""The cases of every learning-rate schedule: options, groups, edits from outside, jumps, metrics, and why.

Options are JSON. A function is given as `{"table": [...]}`, its values at 0, 1, 2, ...; a scheduler inside another one
as `{"class": "StepLR", "options": {...}}`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Edits = Mapping[int, Mapping[int, float]]


@dataclass(frozen=True)
class ScheduleCase:
    """One life of a scheduler."""

    rule: str
    name: str
    options: Mapping[str, Any]
    purpose: str
    groups: tuple[Mapping[str, Any], ...] = ({"lr": 0.1},)
    """Options of the optimizer's groups before the scheduler is made."""
    steps: int = 24
    edits: Edits = field(default_factory=dict)
    """Before a step: group -> the lr that somebody writes into it."""
    epochs: Mapping[int, float] = field(default_factory=dict)
    """Steps that jump to an epoch."""
    metrics: tuple[float, ...] = ()
    """Of each step, for a scheduler that watches one."""
    resume: int | None = None


THREE = ({"lr": 0.1}, {"lr": 0.037}, {"lr": 3e-7})
SGD = ({"lr": 0.1, "momentum": 0.6}, {"lr": 0.037, "momentum": 0.0})
ADAM = ({"lr": 0.1, "betas": [0.8, 0.95]}, {"lr": 3e-7, "betas": [0.9, 0.999]})
EDITS: Edits = {5: {0: 0.7}, 13: {1: 0.02, 2: 1e-6}, 20: {0: 0.03}}
JUMPS = {6: 18, 11: 4, 12: 4, 17: 0, 18: 12}


def _table(ratio: float, wobble: float, length: int = 40) -> dict[str, Any]:
    return {"table": [round(ratio ** (e + 1) + wobble * (e % 3), 6) for e in range(length)]}


MAIN: dict[str, dict[str, dict[str, Any]]] = {
    "lambdalr": {
        "plain": {"lr_lambda": _table(0.9, 0.0)},
        "one-a-group": {"lr_lambda": [_table(0.9, 0.01), _table(1.05, 0.0), _table(0.5, 0.1)]},
    },
    "multiplicativelr": {
        "plain": {"lr_lambda": _table(0.99, 0.0)},
        "one-a-group": {"lr_lambda": [_table(0.98, 0.01), _table(1.01, 0.0), _table(0.97, 0.1)]},
    },
    "steplr": {
        "plain": {"step_size": 5},
        "gamma": {"step_size": 3, "gamma": 0.7},
        "every-epoch": {"step_size": 1, "gamma": 0.93},
        "rising": {"step_size": 7, "gamma": 1.3},
    },
    "multisteplr": {
        "plain": {"milestones": [4, 9, 15]},
        "duplicates": {"milestones": [12, 4, 4, 4, 7], "gamma": 0.7},
        "at-zero": {"milestones": [0, 0, 1, 23], "gamma": 0.9},
    },
    "constantlr": {
        "plain": {},
        "factor": {"factor": 0.41, "total_iters": 12},
        "never-back": {"factor": 0.3, "total_iters": 0},
        "one": {"factor": 0.3, "total_iters": 1},
    },
    "linearlr": {
        "plain": {},
        "decay": {"start_factor": 1.0, "end_factor": 0.1, "total_iters": 17},
        "warmup": {"start_factor": 0.01, "total_iters": 40},
        "level": {"start_factor": 0.77, "end_factor": 0.77, "total_iters": 3},
        "no-iters": {"start_factor": 0.25, "total_iters": 0},
    },
    "exponentiallr": {"plain": {"gamma": 0.9}, "rising": {"gamma": 1.02}, "zero": {"gamma": 0.0}},
    "polynomiallr": {
        "plain": {},
        "square": {"total_iters": 13, "power": 2.0},
        "root": {"total_iters": 17, "power": 0.37},
        "one": {"total_iters": 1, "power": 3.0},
    },
    "cosineannealinglr": {
        "plain": {"T_max": 10},
        "eta-min": {"T_max": 7, "eta_min": 0.004},
        "one": {"T_max": 1, "eta_min": 0.01},
        "eta-min-above": {"T_max": 5, "eta_min": 0.2},
    },
    "cosineannealingwarmrestarts": {
        "plain": {"T_0": 6},
        "growing": {"T_0": 3, "T_mult": 2, "eta_min": 0.002},
        "one": {"T_0": 1, "T_mult": 3},
    },
    "cycliclr": {
        "plain": {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 4, "cycle_momentum": False},
        "unequal": {"base_lr": 0.01, "max_lr": 0.3, "step_size_up": 3, "step_size_down": 6},
        "triangular2": {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 4, "step_size_down": 2, "mode": "triangular2"},
        "exp-range": {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 5, "mode": "exp_range", "gamma": 0.97},
        "scale-of-cycle": {
            "base_lr": 0.01,
            "max_lr": 0.1,
            "step_size_up": 3,
            "cycle_momentum": False,
            "scale_fn": {"table": [5.0, 1.0, 0.6, 0.9, 0.2, 0.4, 0.1]},
        },
        "scale-of-iterations": {
            "base_lr": 0.01,
            "max_lr": 0.1,
            "step_size_up": 3,
            "cycle_momentum": False,
            "scale_fn": _table(0.95, 0.02),
            "scale_mode": "iterations",
        },
    },
    "onecyclelr": {
        "plain": {"max_lr": 0.1, "total_steps": 24, "cycle_momentum": False},
        "linear": {"max_lr": 0.1, "epochs": 5, "steps_per_epoch": 5, "anneal_strategy": "linear"},
        "three-phase": {"max_lr": 0.3, "total_steps": 25, "pct_start": 0.25, "three_phase": True},
        "three-phase-linear": {
            "max_lr": 0.3,
            "total_steps": 26,
            "pct_start": 0.4,
            "three_phase": True,
            "anneal_strategy": "linear",
            "div_factor": 5.0,
        },
        "factors": {"max_lr": 0.3, "total_steps": 30, "div_factor": 3.0, "final_div_factor": 7.0, "pct_start": 0.6},
        "momenta": {"max_lr": 0.3, "total_steps": 25, "base_momentum": 0.5, "max_momentum": 0.9},
    },
    "reducelronplateau": {
        "plain": {"patience": 2, "factor": 0.5},
        "max": {"mode": "max", "patience": 1, "factor": 0.5, "threshold": 0.1},
        "absolute": {"patience": 1, "factor": 0.5, "threshold": 0.25, "threshold_mode": "abs"},
        "max-absolute": {"mode": "max", "patience": 0, "factor": 0.7, "threshold": 0.2, "threshold_mode": "abs"},
        "cooldown": {"patience": 1, "factor": 0.5, "cooldown": 3},
        "long-cooldown": {"patience": 0, "factor": 0.5, "cooldown": 6, "threshold": 0.0},
        "no-threshold": {"patience": 1, "factor": 0.5, "threshold": 0.0},
        "no-threshold-max": {"mode": "max", "patience": 1, "factor": 0.5, "threshold": 0.0},
        "no-patience": {"patience": 0, "factor": 0.9},
        "min-lr": {"patience": 0, "factor": 0.1, "min_lr": [0.005, 0.0, 1e-7]},
        "eps": {"patience": 0, "factor": 0.5, "eps": 0.004},
    },
    "swalr": {
        "plain": {"swa_lr": 0.05},
        "linear": {"swa_lr": 0.05, "anneal_epochs": 7, "anneal_strategy": "linear"},
        "at-once": {"swa_lr": 0.05, "anneal_epochs": 0},
        "one": {"swa_lr": 0.02, "anneal_epochs": 1},
    },
    "sequentiallr": {
        "plain": {
            "schedulers": [
                {"class": "LinearLR", "options": {"start_factor": 0.1, "total_iters": 5}},
                {"class": "CosineAnnealingLR", "options": {"T_max": 9}},
            ],
            "milestones": [5],
        },
        "three": {
            "schedulers": [
                {"class": "ConstantLR", "options": {"factor": 0.5, "total_iters": 3}},
                {"class": "ExponentialLR", "options": {"gamma": 0.9}},
                {"class": "StepLR", "options": {"step_size": 2, "gamma": 0.5}},
            ],
            "milestones": [4, 11],
        },
        "chained-form": {
            "schedulers": [
                {"class": "StepLR", "options": {"step_size": 2, "gamma": 0.5}},
                {"class": "MultiplicativeLR", "options": {"lr_lambda": _table(0.95, 0.0)}},
            ],
            "milestones": [7],
        },
        "restarts": {
            "schedulers": [
                {"class": "LinearLR", "options": {"start_factor": 0.25, "total_iters": 4}},
                {"class": "CosineAnnealingWarmRestarts", "options": {"T_0": 3, "T_mult": 2}},
            ],
            "milestones": [4],
        },
    },
    "chainedscheduler": {
        "plain": {
            "schedulers": [
                {"class": "ConstantLR", "options": {"factor": 0.5, "total_iters": 4}},
                {"class": "ExponentialLR", "options": {"gamma": 0.9}},
            ]
        },
        "three": {
            "schedulers": [
                {"class": "LinearLR", "options": {"start_factor": 0.1, "total_iters": 6}},
                {"class": "StepLR", "options": {"step_size": 5, "gamma": 0.5}},
                {"class": "MultiStepLR", "options": {"milestones": [3, 3, 8], "gamma": 0.8}},
            ]
        },
        "order": {
            "schedulers": [
                {"class": "StepLR", "options": {"step_size": 3, "gamma": 0.5}},
                {"class": "CosineAnnealingLR", "options": {"T_max": 6, "eta_min": 0.001}},
            ]
        },
    },
}
"""rule -> case -> options of the scheduler."""

METRICS: tuple[float, ...] = (
    3.0,
    2.0,
    2.0,
    2.1,
    1.9999,
    2.0,
    1.9,
    1.95,
    1.8,
    1.8,
    1.8,
    1.7,
    1.75,
    float("nan"),
    1.7,
    1.6,
)
METRICS += (1.65, 1.6, -0.5, -0.49, -0.6, -0.6, -0.7, 5.0, 5.0, 5.0, 4.9, 0.2, 6.0, 6.5, 6.4, 8.0)
JUMPING = (
    "steplr",
    "multisteplr",
    "constantlr",
    "linearlr",
    "exponentiallr",
    "polynomiallr",
    "cosineannealinglr",
    "cosineannealingwarmrestarts",
    "lambdalr",
)
CYCLES_MOMENTUM = ("cycliclr", "onecyclelr")
RICH = {
    "lambdalr": "one-a-group",
    "multiplicativelr": "one-a-group",
    "steplr": "gamma",
    "multisteplr": "duplicates",
    "constantlr": "factor",
    "linearlr": "decay",
    "polynomiallr": "square",
    "cosineannealinglr": "eta-min",
    "cosineannealingwarmrestarts": "growing",
    "cycliclr": "triangular2",
    "onecyclelr": "three-phase",
    "reducelronplateau": "cooldown",
    "swalr": "linear",
    "sequentiallr": "three",
    "chainedscheduler": "three",
}
"""The option set of the cases about groups, edits, jumps and resuming."""
RESUME = {"multisteplr": 6, "constantlr": 10, "polynomiallr": 8, "swalr": 4}
"""Step after which the case about resuming saves, where something still lies ahead; 13 for the others."""
_TORCH_ERRS = {"cosineannealingwarmrestarts", "cycliclr"}
"""Made with `last_epoch`, torch's do not go on where they were (see docs/findings.md)."""
CONTINUING = MAIN.keys() - {"reducelronplateau", "swalr", "sequentiallr", "chainedscheduler"} - _TORCH_ERRS
"""Rules that can go on from an epoch that their constructor is given."""


def schedule_cases(rule: str) -> Iterator[ScheduleCase]:
    """All cases of a schedule, simple ones first."""
    steps = {"onecyclelr": 24, "reducelronplateau": len(METRICS)}.get(rule, 24)
    metrics = METRICS if rule == "reducelronplateau" else ()
    for name, options in MAIN[rule].items():
        many = name in ("one-a-group", "min-lr")
        momenta: Any = {"groups": THREE if many else ({"lr": 0.1},)}
        if rule in CYCLES_MOMENTUM and options.get("cycle_momentum", True):
            momenta = {"groups": SGD}
        yield ScheduleCase(rule, name, options, f"options: {name}", steps=steps, metrics=metrics, **momenta)
    rich = MAIN[rule][RICH.get(rule, "plain")]
    groups = SGD if rule in CYCLES_MOMENTUM else THREE
    edits = EDITS if len(groups) == 3 else {step: {g: v for g, v in e.items() if g < 2} for step, e in EDITS.items()}
    rest: Any = {"steps": steps, "metrics": metrics, "groups": groups}
    yield ScheduleCase(rule, "groups", rich, "groups with lrs of their own, one of them tiny", **rest)
    yield ScheduleCase(rule, "edited", rich, "somebody writes lr between steps", edits=edits, **rest)
    resume = RESUME.get(rule, 13)
    purpose = f"saved after step {resume} and loaded"
    yield ScheduleCase(rule, "resume", rich, purpose, resume=resume, edits={7: {0: 0.05}}, **rest)
    if rule in JUMPING:
        jumps: Mapping[int, float] = JUMPS
        if rule == "cosineannealingwarmrestarts":
            jumps = {6: 2.5, 11: 9.25, 12: 9.0, 17: 0.0, 18: 20.75}
        yield ScheduleCase(rule, "jumps", rich, "step(epoch) jumps by the closed form", epochs=jumps, **rest)
        yield ScheduleCase(
            rule, "edited-jumps", rich, "the closed form forgets edits of lr", epochs=jumps, edits=EDITS, **rest
        )
    if rule in CONTINUING:
        continued = [dict(group, lr=0.7 * group["lr"], initial_lr=group["lr"]) for group in groups]
        if rule == "onecyclelr":
            bounds_of = {"base_momentum": 0.8, "max_momentum": 0.9}
            continued = [{**g, "max_lr": 3 * g["lr"], "min_lr": 0.01 * g["lr"], **bounds_of} for g in continued]
        yield ScheduleCase(
            rule,
            "continued",
            {**rich, "last_epoch": 7},
            "made with last_epoch over groups that hold initial_lr",
            **rest | {"groups": tuple(continued), "steps": 15},
            epochs={10: 12} if rule in JUMPING else {},
        )
    if rule in CYCLES_MOMENTUM:
        rest = rest | {"groups": ADAM}
        yield ScheduleCase(rule, "betas", rich, "momentum is the first of betas", **rest)
    if rule in ("cycliclr", "onecyclelr"):
        bounds: dict[str, Any] = {"max_lr": [0.1, 2e-6]} | ({"base_lr": [0.01, 1e-8]} if rule == "cycliclr" else {})
        bounds |= {"base_momentum": [0.7, 0.8], "max_momentum": [0.9, 0.95]}
        yield ScheduleCase(rule, "bounds-a-group", {**rich, **bounds}, "bounds of each group's own", **rest)
    if rule == "swalr":
        yield ScheduleCase(
            rule, "one-a-group", {**rich, "swa_lr": [0.05, 0.06, 1e-8]}, "a target of each group's own", **rest
        )
