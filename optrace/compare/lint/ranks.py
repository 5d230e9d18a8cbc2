"""Rules about many ranks: replicas that drifted, gradients that were not reduced, clips by a norm of one rank's own."""

from __future__ import annotations

from collections.abc import Iterator

from optrace.compare.causes.replicas import drift_cause
from optrace.compare.lint.finding import Finding
from optrace.compare.lint.look import Look
from optrace.trace.logical import LogicalTrace
from optrace.trace.replicas import norms_apart

NORM_ROUNDING = 1e-4
"""Relative; how far norms of the same gradient may lie apart that ranks summed in their own order."""


def replica_drift(look: Look) -> Iterator[Finding]:
    """Ranks that hold different values of what should be the same."""
    yield from _drifts(look, "replica-drift")


def grad_unreduced(look: Look) -> Iterator[Finding]:
    """Ranks that used different gradients of a parameter of which each has a copy."""
    yield from _drifts(look, "grad-unreduced")


def _drifts(look: Look, code: str) -> Iterator[Finding]:
    trace = look.run.trace
    if not isinstance(trace, LogicalTrace):
        return
    for drift in (*trace.drifts, *trace.unlike):
        if drift.optimizer == look.index:
            cause = drift_cause(trace, drift)
            if cause.code == code:
                steps = (drift.step, drift.step)
                yield Finding(code, cause.summary, cause.fix, cause.evidence, look.index, drift.params, steps)


def clip_by_rank(look: Look) -> Iterator[Finding]:
    """Gradients of one optimizer that ranks clip by different total norms, though they share its parameters."""
    trace = look.run.trace
    if not isinstance(trace, LogicalTrace):
        return
    apart = norms_apart(trace, look.index, NORM_ROUNDING)
    if apart is None:
        return
    sharing = [name for index, name in trace.blocks if index == look.index and _shared(trace, index, name)]
    if not sharing:
        return
    norms = ", ".join(f"{norm:.6g} on rank {rank}" for rank, norm in sorted(apart.by_rank.items())[:4])
    yield Finding(
        "clip-by-rank",
        f"each rank clips the gradients of {look.title} by another total norm ({norms} at step {apart.step})",
        "give torch.nn.utils.clip_grad_norm_ the parameters themselves (DTensors: their norm is taken over all ranks),"
        " or all-reduce the sum of squares before the root",
        (f"{len(sharing):,} parameters lie on more than one rank, which scaled their gradients by different factors",),
        look.index,
        steps=(apart.step, apart.step),
    )


def _shared(trace: LogicalTrace, optimizer: int, name: str) -> bool:
    return len({rank for ranks in trace.blocks.split(optimizer, name, "param").holders for rank in ranks}) > 1
