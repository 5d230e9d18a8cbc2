"""Linting a run: the public `optrace.lint`, and the table of rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from optrace.compare.lint import membership, numbers, options, ranks, schedules
from optrace.compare.lint.finding import Finding, LintReport
from optrace.compare.lint.look import Look, Run
from optrace.compare.source import open_source
from optrace.errors import TraceError
from optrace.trace.reader import Trace

RULES: dict[str, Callable[[Look], Iterator[Finding]]] = {
    "scheduler-before-step": schedules.scheduler_before_step,
    "scheduler-through-skips": schedules.scheduler_through_skips,
    "lr-zero": schedules.lr_zero,
    "grads-never-zeroed": membership.grads_never_zeroed,
    "params-in-no-group": membership.params_in_no_group,
    "param-twice": membership.param_twice,
    "decay-on-norms": options.decay_on_norms,
    "option-ignored": options.option_ignored,
    "init-counted": numbers.init_counted,
    "update-rounded": numbers.update_rounded,
    "state-precision": numbers.state_precision,
    "replica-drift": ranks.replica_drift,
    "grad-unreduced": ranks.grad_unreduced,
    "clip-by-rank": ranks.clip_by_rank,
}
"""Each code, and the rule that yields findings of that code for one optimizer."""


def lint(run: str | Path | Trace = "latest") -> LintReport:
    """Look at one run for what is rarely meant: settings and orders of calls that quietly spoil training.

    Args:
        run: a run folder, `RUN@1` or `RUN@SGD` (an optimizer), `RUN@rank=3`, or an open Trace.

    Returns:
        LintReport: `.clean`, `.findings`, `.codes`, `str(report)`.

    Raises:
        TraceError: there is no such run, or it is unreadable or no recorded run.
        CompareError: what follows the @ names nothing in the run.
    """
    source = open_source(run)
    if not source.recorded or not isinstance(source.trace, Trace):
        raise TraceError(f"{run} is no recorded run; lint reads what `optrace record` wrote")
    whole = Run(source.trace)
    looks = [look for look in whole.looks if look.index in source.optimizers]
    findings = tuple(finding for rule in RULES.values() for look in looks for finding in rule(look))
    return LintReport(source.name, findings, tuple((look.index, look.name, look.n_steps) for look in looks))
