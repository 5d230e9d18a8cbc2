"""Rules about schedulers and the learning rate."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from optrace.compare.lint.finding import Finding
from optrace.compare.lint.look import Look, stretch

ZERO_STEPS = 5
"""A warm-up that starts at 0 and a schedule that ends there spend a step or two at 0."""
ZERO_SHARE = 0.01


def scheduler_before_step(look: Look) -> Iterator[Finding]:
    """The scheduler stepped before the optimizer ever did: the first value of the schedule is skipped."""
    early: list[str] = []
    for event in look.events:
        if event.kind in ("load_state_dict", "step", "step_skipped", "state_init", "step_failed"):
            break
        if event.kind == "scheduler_step":
            early.append(str(event.data.get("class", "a scheduler")))
    else:
        return
    if not early or event.kind == "load_state_dict" or _goes_on(look):
        return
    names, count = ", ".join(dict.fromkeys(early)), len(early)
    yield Finding(
        "scheduler-before-step",
        f"{names} stepped {'once' if count == 1 else f'{count} times'} before {look.title} took its first step",
        "call scheduler.step() after optimizer.step()",
        (
            f"in the events scheduler_step comes before step 1; the first value{'s' if count > 1 else ''} of the"
            " schedule never applied",
        ),
        look.index,
        steps=(1, 1),
    )


def _goes_on(look: Look) -> bool:
    """Whether recording began in the middle of a training: the optimizer had state before step 1."""
    return bool(len(look.tensors(["param"], step=0, quantity="state.*")))


def scheduler_through_skips(look: Look) -> Iterator[Finding]:
    """A scheduler that steps once a step went on while a GradScaler skipped the optimizer's step."""
    pending, moved, n_scheduled, n_steps = False, [], 0, 0
    for event in look.run.events:
        if event.kind == "backward":
            pending = False
        if event.optimizer != look.index:
            continue
        if event.kind == "step":
            pending, n_steps = False, n_steps + 1
        elif event.kind == "step_skipped":
            pending, n_steps = True, n_steps + 1
        elif event.kind == "scheduler_step":
            n_scheduled += 1
            if pending:
                moved.append(event.step)
                pending = False
    if not moved or n_scheduled < n_steps / 2:
        return
    times = "once" if len(moved) == 1 else f"{len(moved)} times"
    yield Finding(
        "scheduler-through-skips",
        f"the scheduler moved on {times} while the scaler skipped the step of {look.title}",
        "step the scheduler only when the scaler did not skip: compare scaler.get_scale() before and after"
        " scaler.update()",
        (f"step_skipped is followed by scheduler_step after {stretch(min(moved), max(moved))}",),
        look.index,
        steps=(min(moved), max(moved)),
    )


def lr_zero(look: Look) -> Iterator[Finding]:
    """A group's lr stays at 0 for more than the ends of a schedule explain."""
    frame = look.groups
    if "lr" not in frame:
        return
    for group, rows in frame.groupby("group"):
        rates = np.array([rate if isinstance(rate, int | float) else np.nan for rate in rows["lr"]], float)
        steps = rows["step"].to_numpy()
        count, end = _longest(rates == 0)
        if count < ZERO_STEPS or count <= ZERO_SHARE * len(rates):
            continue
        first, last = int(steps[end - count]), int(steps[end - 1])
        where = "" if frame["group"].nunique() == 1 else f" of group {group}"
        yield Finding(
            "lr-zero",
            f"the lr{where} of {look.title} is 0 at {stretch(first, last)}",
            "if the group is meant to rest, set requires_grad=False for its parameters; else look at the schedule:"
            " its length, its warm-up and what steps it",
            (f"{count:,} of {len(rates):,} recorded steps in a row with lr 0",),
            look.index,
            steps=(first, last),
        )


def _longest(flags: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> tuple[int, int]:
    """Length of the longest run of True, and the index behind it."""
    best, end, length = 0, 0, 0
    for place, flag in enumerate(flags.tolist()):
        length = length + 1 if flag else 0
        if length > best:
            best, end = length, place + 1
    return best, end
