"""Causes that lie between the ranks of one run: replicas that drifted, gradients that were not reduced, local norms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from optrace.compare.causes.case import Case, few, figure
from optrace.compare.causes.cause import Cause
from optrace.trace.logical import LogicalTrace
from optrace.trace.own import Own
from optrace.trace.replicas import Apart, Drift, hyper_apart, norms_apart, rank_words
from optrace.trace.select import Selection

_SIDES = ("{A}", "{B}")
_OWN_NAMES = (
    "where each rank has layers or experts of its own, give them names of their own, as (name, param) pairs to the"
    " optimizer (docs/large-runs.md)"
)


def drifted(case: Case) -> Iterator[Cause]:
    """What ranks that should agree do otherwise than each other, for the first drift of either side."""
    for row in case.certain:
        if row.kind == "replica":
            side = 0 if row.a != "agree" else 1
            trace = case.sources[side].trace
            step = row.step if side == 0 else row.step_b
            if isinstance(trace, LogicalTrace):
                for drift in (*trace.drifts, *trace.unlike):
                    if (drift.step, drift.quantity, drift.params[0]) == (step, row.quantity, row.param):
                        reduced = _ranks_like(case, side, drift)
                        yield drift_cause(trace, drift, f"in {_SIDES[side]} ", row.step, reduced)
                        return


def _ranks_like(case: Case, side: int, drift: Drift) -> frozenset[int]:
    """The ranks that hold the first drifted tensor as the other run does."""
    trace, other = case.sources[side].trace, case.sources[1 - side].trace
    assert isinstance(trace, LogicalTrace)
    for cell in case.matching.cells:
        pair = case.matching.pairs[cell.pair]
        names, optimizers = (cell.param_a, cell.param_b), (pair.a, pair.b)
        if (optimizers[side], names[side]) != (drift.optimizer, drift.params[0]):
            continue
        shift = case.offset(cell.pair) * (1 if side else -1)
        rows = other.arrow(
            "tensors",
            step=drift.step + shift,
            optimizer=optimizers[1 - side],
            param=names[1 - side],
            quantity=drift.quantity,
            columns=["fingerprint"],
        )
        wanted = set(rows.column("fingerprint").to_pylist())
        selection = Selection.of(drift.step, drift.optimizer, drift.params[0], drift.quantity)
        found = {
            rank: trace.members[rank].stored("tensors", selection, ["fingerprint"]).column("fingerprint").to_pylist()
            for rank in (*drift.ranks, *drift.others)
        }
        return frozenset(rank for rank, bits in found.items() if bits and set(bits) <= wanted)
    return frozenset()


def clipped_apart(case: Case) -> Iterator[Cause]:
    """Gradients that every rank scaled by the norm of what it holds itself, not of the whole gradient."""
    first = case.first
    if first is None:
        return
    for side in (1, 0):
        trace = case.sources[side].trace
        if not isinstance(trace, LogicalTrace):
            continue
        pair = case.matching.pairs[case.pair]
        apart = norms_apart(trace, pair.a if side == 0 else pair.b)
        shift = case.offset(case.pair) if side else 0
        if apart is not None and apart.step + shift <= first.step:
            norms = ", ".join(f"{figure(norm)} on rank {rank}" for rank, norm in sorted(apart.by_rank.items())[:4])
            yield Cause(
                "grad-clip",
                f"in {_SIDES[side]} each rank clips by another total norm ({norms} at step {apart.step}): the norm is"
                " taken over what the rank holds itself, not over the whole gradient",
                "give torch.nn.utils.clip_grad_norm_ the parameters themselves (DTensors: their norm is taken over all"
                " ranks), or all-reduce the sum of squares before the root",
                (f"the norms differ between ranks since step {apart.step}",),
                steps=(apart.step + shift, case.steps[-1] if case.steps else apart.step + shift),
            )
            return


def drift_cause(
    trace: LogicalTrace, drift: Drift, where: str = "", step: int | None = None, reduced: frozenset[int] = frozenset()
) -> Cause:
    """A drift as a cause: `where` begins its sentence, `step` is shown for the drift's own.

    `reduced` are ranks that are known to hold the right gradient: they tell of two equal camps which is the odd one.
    """
    step = drift.step if step is None else step
    if drift.own is not None:
        return _own_cause(drift, drift.own, where, step)
    ranks, others = _ranks(drift.ranks), _ranks(drift.others)
    which = f"all {drift.n_params} params" if len(drift.params) >= drift.n_params > 1 else few(drift.params)
    evidence = [f"{len(drift.params)} of {drift.n_params} params differ on {ranks} from {others} at step {drift.step}"]
    evidence += _sizes(trace, drift)
    common: dict[str, Any] = {"steps": (step, step), "params": drift.params if "all" not in which else ()}
    if drift.quantity.startswith("grad"):
        again = _agree_again(trace, drift)
        told, unless = "", ""
        if again is not None:
            told = f"; before step {again} the parameters are made equal again, as local SGD averages them"
            unless = "if the ranks are meant to train apart and be averaged (post_localSGD_hook), nothing; else "
            evidence.append(f"the values of {drift.params[0]} agree on all these ranks before step {again}")
        return Cause(
            "grad-unreduced",
            f"{where}the gradient of {which} was not reduced at step {drift.step}: {_who(drift, reduced)}{told}",
            f"{unless}let every rank take part in each all-reduce: call backward on the wrapped model, on all ranks,"
            " outside no_sync for the last micro-batch, and reduce by hand what the wrapper does not hold"
            + (f"; {_OWN_NAMES}" if drift.step <= 1 else ""),
            tuple(evidence),
            **common,
        )
    if drift.quantity.startswith("hyper."):
        key = drift.quantity.partition(".")[2]
        first = next(one for one in hyper_apart(trace, drift.optimizer) if (one.step, one.key) == (drift.step, key))
        return Cause(
            "replica-drift",
            f"{where}the ranks step parts of the same parameters with different hyper-parameters: {key} is"
            f" {_values(first)} since step {drift.step}",
            f"give all ranks the same {key}",
            (f"{key} of group {first.group} is {_values(first)} at step {drift.step}",),
            **common,
        )
    apart = [one for one in hyper_apart(trace, drift.optimizer) if one.step <= drift.step or drift.step == 0]
    if apart:
        first = apart[0]
        evidence.insert(0, f"{first.key} of group {first.group} is {_values(first)} at step {first.step}")
        why, fix = f": {first.key} is {_values(first)}", f"give all ranks the same {first.key}"
    elif drift.step == 0:
        counters = _counters(trace, drift)
        if len(set(counters.values())) > 1:
            told = ", ".join(f"{count:g} on rank {rank}" for rank, count in sorted(counters.items())[:4])
            evidence.insert(0, f"the step counter is {told}")
            why, fix = f": the step counter is {told}", "resume all ranks from the same checkpoint"
        else:
            why = ": they start from other values"
            fix = (
                "seed all ranks alike, or broadcast the parameters and the state from one rank before the first step;"
                f" {_OWN_NAMES}"
            )
    elif drift.quantity.partition(".")[0].endswith("_in"):
        why = f": {drift.quantity.replace('_in', '', 1)} changed between two steps on {ranks} alone"
        fix = (
            "look for code that edits the parameters or the state on one rank only; if there is none, suspect the"
            " memory of that machine"
        )
    else:
        why = ", from equal gradients and hyper-parameters"
        fix = "look for arithmetic that is not the same on all ranks: kernels, precision, or a failing machine"
    return Cause(
        "replica-drift",
        f"{where}{ranks} and {others} hold different values of {which} since step {drift.step}"
        f" (first in {drift.quantity}){why}",
        fix,
        tuple(evidence),
        **common,
    )


def _own_cause(drift: Drift, own: Own, where: str, step: int) -> Cause:
    """Replicas that never agreed in anything, or parameters of the ranks' own: nothing in the record decides."""
    params = f"all {drift.n_params} params" if len(own.params) >= drift.n_params > 1 else few(own.params)
    camps = " and ".join(_ranks(camp) for camp in own.camps[:2]) + (" and others" if len(own.camps) > 2 else "")
    when = f"step {own.first}" if own.first == own.last else f"steps {own.first} to {own.last}"
    return Cause(
        "replica-drift",
        f"{where}{camps} start from other values of {params}, and no gradient of them agrees in {when}: either layers"
        " of the ranks' own under one name (stages of a pipeline, experts), or a model that was neither broadcast nor"
        " reduced",
        f"{_OWN_NAMES}; else wrap the model in DistributedDataParallel, or broadcast it once and reduce every gradient",
        (
            f"{len(own.params)} of {drift.n_params} params differ at step 0 and in all gradients up to step {own.last}",
            f"they are read as different ones: {own.params[0]} is that of {_ranks(own.camps[0])},"
            f" {own.params[0]}@rank{own.camps[1][0]} that of {_ranks(own.camps[1])}",
        ),
        steps=(step, step),
        params=own.params if "all" not in params else (),
    )


def _who(drift: Drift, reduced: frozenset[int]) -> str:
    """Which ranks used a gradient of their own."""
    if reduced and reduced < {*drift.ranks, *drift.others}:
        odd = tuple(rank for rank in sorted({*drift.ranks, *drift.others}) if rank not in reduced)
        return f"{_ranks(odd)} used {'its' if len(odd) == 1 else 'their'} own"
    if not drift.others or len(drift.others) == 1 < len(drift.ranks):
        return "each rank used its own"
    if len(drift.ranks) == len(drift.others):
        return f"{_ranks(drift.ranks)} and {_ranks(drift.others)} used different ones"
    return f"{_ranks(drift.ranks)} used {'its' if len(drift.ranks) == 1 else 'their'} own"


def _ranks(ranks: tuple[int, ...]) -> str:
    return rank_words(ranks) if ranks else "the others"


def _values(apart: Apart) -> str:
    camps: dict[str, list[int]] = {}
    for rank, value in sorted(apart.by_rank.items()):
        camps.setdefault(figure(value) if isinstance(value, float) else repr(value), []).append(rank)
    return ", ".join(f"{value} on {_ranks(tuple(ranks))}" for value, ranks in camps.items())


def _sizes(trace: LogicalTrace, drift: Drift) -> list[str]:
    """How large the quantity is on a rank that differs and on one that does not."""
    told = []
    for rank in (*drift.ranks[:1], *drift.others[:1]):
        rows = trace.members[rank].stored(
            "tensors",
            Selection.of(drift.step, drift.optimizer, drift.params[0], drift.quantity),
            ["l2"],
        )
        if rows.num_rows and np.isfinite(norm := rows.column("l2").to_pylist()[0]):
            told.append(f"{figure(norm)} on rank {rank}")
    return [f"the norm of {drift.quantity} of {drift.params[0]} is {', '.join(told)}"] if len(told) == 2 else []


def _agree_again(trace: LogicalTrace, drift: Drift) -> int | None:
    """The first step before which the ranks hold equal values of the first parameter again, set between two steps."""
    ranks = {*drift.ranks, *drift.others}
    selection = Selection.of((drift.step + 1, None), drift.optimizer, drift.params[0], "param_in")
    told: dict[int, list[int]] = {}
    for rank in ranks:
        rows = trace.members[rank].stored("tensors", selection, ["step", "fingerprint"])
        for step, bits in zip(rows.column("step").to_pylist(), rows.column("fingerprint").to_pylist(), strict=True):
            told.setdefault(step, []).append(bits)
    return min((step for step, bits in told.items() if len(bits) == len(ranks) and len(set(bits)) == 1), default=None)


def _counters(trace: LogicalTrace, drift: Drift) -> Mapping[int, float]:
    """The step counter that each rank starts with."""
    found = {}
    for rank, member in trace.members.items():
        selection = Selection.of(0, drift.optimizer, drift.params[0], "state.step")
        rows = member.stored("tensors", selection, ["sample"])
        if rows.num_rows:
            found[rank] = float(rows.column("sample").to_pylist()[0][0])
    return found
