"""What two traces have in common up to where they part, in words: half of every diagnosis."""

from __future__ import annotations

from collections.abc import Iterator

from optrace.compare.hyper import HyperComparison
from optrace.compare.order import GRAD_RANK, HYPER_RANK, STATE_RANK, UPDATE_RANK, rank_of
from optrace.compare.report import Divergence
from optrace.compare.tally import Tally
from optrace.compare.timeline import Timeline

_FEW = 3


def what_is_same(
    first: Divergence | None, tally: Tally, hyper: HyperComparison, timeline: Timeline, recorded: set[str]
) -> Iterator[str]:
    """Phrases for the line `same`, in causal order; `recorded` names the quantities that both sides have."""
    started = int(timeline.steps[0]) == 0
    differing = [found for found in hyper.differences.values() if found.decides]
    if first is None:
        if started:
            yield "start values"
        if hyper.compared:
            yield "hyper-parameters"
        kinds = {"grad": "gradients", "update": "updates", "state": "state", "param": "parameters"}
        there = [word for kind, word in kinds.items() if any(name.partition(".")[0] == kind for name in recorded)]
        if there:
            yield ", ".join(there)
        return
    step = first.step
    rank = HYPER_RANK if first.kind == "hyper" else rank_of(first.quantity)
    if first.kind in ("missing", "dtype", "replica"):
        rank = -1
    if started and step > 0 and tally.first_steps.get("param", 1) > 0:
        yield "start values"
    before = timeline.steps[(timeline.steps > 0) & (timeline.steps < step)]
    if len(before):
        yield f"step {before[0]}" if len(before) == 1 else f"steps {before[0]} to {before[-1]}"
    if step == 0 or first.kind == "replica":  # what ranks do not agree in may be anything at this step
        return
    if first.quantity in ("step", "optimizer"):  # one side has nothing of this step
        return
    if hyper.compared and not differing:
        yield "hyper-parameters"
    elif hyper.compared and rank > HYPER_RANK and all(found.step > step for found in differing):
        yield f"hyper-parameters of step {step}"

    def agrees(name: str) -> bool:
        return name in recorded and tally.first_steps.get(name, step + 1) > step

    if rank != GRAD_RANK and agrees("grad"):
        yield f"gradients of step {step}"
    if rank > UPDATE_RANK and agrees("update"):
        yield f"updates of step {step}"
    states = [name for name in sorted(recorded) if rank_of(name) == STATE_RANK and agrees(name)]
    if rank >= UPDATE_RANK and 0 < len(states) <= _FEW:
        yield f"state {' and '.join(name.partition('.')[2] for name in states)} of step {step}"
