"""What the events say about a learning rate that differs: who steps the schedule when, and what was loaded before."""

from __future__ import annotations

from typing import NamedTuple

from optrace.compare.causes.case import Case
from optrace.compare.words import count_words


class Hint(NamedTuple):
    """What events show beside a table of lr, and what to do about it."""

    evidence: str
    fix: str


def around_step(case: Case) -> Hint | None:
    """One side steps its scheduler between backward and the first optimizer step, the other after it."""
    step = min(case.steps, default=None)
    if step is None:
        return None
    before = [_just_before(case, side, step) for side in (0, 1)]
    if before[0] == before[1]:
        return None
    wrong, right = ("{B}", "{A}") if before[1] else ("{A}", "{B}")
    fix = "call scheduler.step() after optimizer.step()"
    return Hint(
        f"in {wrong} scheduler.step() comes between backward and optimizer.step(), in {right} it does not",
        f"in {{B}} {fix}" if before[1] else f"{fix} in both, or before it in both",
    )


def more_often(case: Case, step: int) -> Hint | None:
    """One side steps its scheduler more often than the other since the optimizer's step before `step`."""
    kinds = [case.kinds_between(side, step) for side in (0, 1)]
    n = [events.count("scheduler_step") for events in kinds]
    if n[0] == n[1] or not all(n):
        return None
    skipped = [int(case.column("n_skipped", side).get(step, 0)) for side in (0, 1)]
    evidence = f"the scheduler steps {count_words(n[0], 'time')} in {{A}} and {n[1]} in {{B}} before step {step}"
    more = "{B}" if n[1] > n[0] else "{A}"
    if not any(skipped):
        return Hint(evidence, f"step the scheduler once an optimizer step: see what steps it again before step {step}")
    evidence += (
        f"; {count_words(max(skipped), 'optimizer step')} {'was' if max(skipped) == 1 else 'were'} skipped there"
    )
    if more == "{B}":
        return Hint(evidence, "in {B} step the scheduler only after an optimizer step that GradScaler did not skip")
    return Hint(evidence, "step the scheduler for skipped optimizer steps in both, or in neither")


def loaded(case: Case, step: int) -> Hint | None:
    """B's optimizer was given a state_dict just before `step`, whose groups come with their lr."""
    if "load_state_dict" not in case.kinds_between(1, step):
        return None
    return Hint(
        f"{{B}} loads the optimizer's state_dict before step {step}: its groups bring the lr they were saved with",
        "set lr after load_state_dict, in every one of param_groups (and in the scheduler's base_lrs)",
    )


def _just_before(case: Case, side: int, step: int) -> bool:
    kinds = case.kinds_between(side, step)
    if "backward" not in kinds:
        return False
    return "scheduler_step" in kinds[len(kinds) - kinds[::-1].index("backward") :]
