"""A step counter that all parameters share and that goes up inside the loop over them, or over the groups."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from optrace.compare.causes.replays import Recorded, Trial
from optrace.replayer.cubes import SLOTS
from optrace.replayer.engine import Carried
from optrace.replayer.known import Rule, Variant

_RULES = ("adam", "adamw", "nadam", "radam", "adamax")
"""Rules whose arithmetic depends on the count."""


def shared_counters(record: Recorded, rule: Rule) -> Iterator[tuple[Variant, Trial]]:
    """Variants whose count is that of parameters or groups seen so far, with trials that begin with such counts."""
    if rule.name not in _RULES or not record.from_its_start:
        return
    groups = [member.group for member in record.members]
    order = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    for name, noun, places in (
        ("counts-parameters", "parameter", list(range(len(groups)))),
        ("counts-groups", "group", [order[group] for group in groups]),
    ):
        total = max(places, default=0) + 1
        if total < 2:
            continue
        variant = Variant(
            rule.name,
            name,
            "step-counter",
            f"counts {noun}s instead of steps: at step n the k-th of {total} has t = {total}*(n - 1) + k",
            "counts steps",
            f"raise t once a step, outside the loop over the {noun}s, or keep it in each parameter's state",
            {"stride": total - 1},
        )
        starts = np.full((len(places), SLOTS), np.nan)
        starts[:, 0] = places
        names = record.names_for(rule.state_keys)
        for carry in (False, True) if names is not None else (True,):
            keys = None if carry else frozenset({"step"})
            known = {"step": np.ones(len(places), bool)}
            carried = Carried(keys, {"step": starts.copy()}, known)
            yield variant, Trial(name, variant.step, rule.state_keys, carry, carried=carried)
