"""Before the first step, and between steps: dtypes, shapes, start values, what is trained, and edits from outside."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from optrace.compare.causes.case import Case, close, few, figure
from optrace.compare.causes.cause import Cause
from optrace.compare.source import param_rows
from optrace.compare.words import count_words
from optrace.trace.dtypes import eps_of

Floats = NDArray[np.float64]


def dtypes(case: Case) -> Iterator[Cause]:
    """Parameters, then state, of another dtype."""
    params = [row for row in case.certain if row.kind == "dtype" and row.quantity == "param"]
    if params:
        kinds = sorted({(str(row.a), str(row.b)) for row in params})
        a, b = kinds[0]
        names = [str(row.param) for row in params]
        total = len(case.cells())
        who = "all parameters are" if len(params) == total else f"{few(names)} {'is' if len(names) == 1 else 'are'}"
        evidence = [_how_equal(case, b, a)]
        share = rounded_share(case)
        if share is not None:
            evidence.append(
                f"{share[1]:.0%} of the elements of {{B}} do not move in step {share[2]}, {share[0]:.0%} of {{A}}'s"
            )
        yield Cause(
            "param-dtype",
            f"{who} {b} in {{B}}, {a} in {{A}}" + (f", and {len(kinds) - 1} more pairs of dtypes" if kinds[1:] else ""),
            f"in {{B}} load the model as {a} (torch_dtype, dtype or .to()); to compute in {_lower(a, b)} use autocast"
            if eps_of(b) > eps_of(a)
            else f"in {{B}} load the model as {a}, if {{A}} is what you want",
            tuple(text for text in evidence if text),
            steps=(params[0].step, max(case.steps, default=params[0].step)),
            params=tuple(names) if len(names) < total else (),
        )
    states = [row for row in case.certain if row.kind == "dtype" and row.quantity.startswith("state.")]
    if states and not params:
        row = states[0]
        keys = sorted({found.quantity.removeprefix("state.") for found in states})
        yield Cause(
            "state-dtype",
            f"{', '.join(keys)} is {row.b} in {{B}}, {row.a} in {{A}}",
            f"in {{B}} keep the state as {row.a}; load_state_dict casts it to the dtype of the parameters",
            (f"of {few([str(found.param) for found in states])}, since step {row.step}",),
            steps=(row.step, row.step),
            params=tuple(dict.fromkeys(str(found.param) for found in states)),
        )


def _lower(a: str, b: str) -> str:
    return b if eps_of(b) > eps_of(a) else a


def _how_equal(case: Case, b: str, a: str) -> str:
    step = int(case.timeline.steps[0])
    rows_a, rows_b = case.at(step)
    pairs = [
        (rows_a[n, "param"], rows_b[n, "param"])
        for n, _ in case.cells()
        if (n, "param") in rows_a and (n, "param") in rows_b
    ]
    if not pairs:
        return ""
    if all(x.fingerprint == y.fingerprint for x, y in pairs):
        return "the start values are equal"
    eps = max(eps_of(a), eps_of(b))
    if all(close(x.used, y.used, eps=eps, n=1) for x, y in pairs):
        return f"the start values of {{B}} are {{A}}'s rounded to {_lower(a, b)}"
    return "the start values differ by more than rounding"


def rounded_share(case: Case) -> tuple[float, float, int] | None:
    """Share of elements that do not move at the first step with updates: of A, of B, and the step."""
    for step in case.steps[:3]:
        shares = []
        for rows in case.at(step):
            updates = [rows[n, "update"] for n, _ in case.cells() if (n, "update") in rows]
            total = sum(row.numel for row in updates)
            if not total:
                return None
            shares.append(sum(row.n_zero for row in updates) / total)
        if shares[0] < 1:
            return shares[0], shares[1], step
    return None


def shapes(case: Case) -> Iterator[Cause]:
    """Parameters of another shape."""
    cells = [
        cell for _, cell in case.cells() if cell.shape_a != cell.shape_b and None not in (cell.shape_a, cell.shape_b)
    ]
    if cells:
        first = cells[0]
        yield Cause(
            "param-shape",
            f"{first.param_a} has shape {list(first.shape_b or ())} in {{B}}, {list(first.shape_a or ())} in {{A}}",
            "build both models with the same sizes, or give the tensors of {B} the layout of those of {A}",
            (count_words(len(cells), "parameter") + " differ in shape",),
            params=tuple(cell.param_a for cell in cells),
        )


def frozen(case: Case) -> Iterator[Cause]:
    """Parameters that require grad on one side only."""
    asked = []
    for side in (0, 1):
        matched = case.matching.pairs[case.pair]
        index = matched.a if side == 0 else matched.b
        rows = param_rows(case.sources[side])
        asked.append({row["param"]: row.get("requires_grad") for row in rows if row["optimizer"] == index})
    for has, lacks, a_side in (("{A}", "{B}", True), ("{B}", "{A}", False)):
        names = [
            cell.param_a
            for _, cell in case.cells()
            if asked[0].get(cell.param_a) is a_side and asked[1].get(cell.param_b) is (not a_side)
        ]
        if names:
            them = "it" if len(names) == 1 else "them"
            late = case.first is not None and case.first.step > min(case.steps, default=0)
            since = f"since step {case.first.step}" if late and case.first is not None else "before training"
            fix = f"in {{B}} call requires_grad_({a_side}) on {them}{'' if late else ' before training'}"
            if late:
                fix = f"look for what freezes or unfreezes {them} before that step, and do it in both or in neither"
            yield Cause(
                "param-frozen",
                f"{few(names)} {'does' if len(names) == 1 else 'do'} not require grad in {lacks}"
                f"{f' {since}' if late else ''}, and {'does' if len(names) == 1 else 'do'} in {has}",
                fix,
                (f"{count_words(len(names), 'parameter')} of {len(case.cells())}",),
                params=tuple(names),
            )


def init(case: Case) -> Iterator[Cause]:
    """Other start values."""
    first = case.first
    assert first is not None
    rows_a, rows_b = case.at(first.step)
    differing = [
        (cell.param_a, rows_a[n, "param"], rows_b[n, "param"])
        for n, cell in case.cells()
        if (n, "param") in rows_a
        and (n, "param") in rows_b
        and rows_a[n, "param"].fingerprint != rows_b[n, "param"].fingerprint
    ]
    if not differing:
        return
    names = [name for name, _, _ in differing]
    a = np.concatenate([row.used for _, row, _ in differing])
    b = np.concatenate([row.used for _, _, row in differing])
    known = np.isfinite(a) & np.isfinite(b)
    size = float(np.linalg.norm(a[known]))
    total = sum((n, "param") in rows_a and (n, "param") in rows_b for n, _ in case.cells())
    how = "all zero in {A}"
    if size:
        how = f"relative distance {figure(float(np.linalg.norm((a - b)[known])) / size)} over the sampled elements"
    eps = max(eps_of(row.dtype) for _, row, _ in differing)
    if all(close(x.used, y.used, eps=max(eps, 2.0**-23), n=4) for _, x, y in differing):
        how = "equal but for rounding"
    elif size and _same_in_float16(a[known], b[known]):
        how = "equal but for rounding to float16: saved or loaded in half precision"
    elif all(close(x.used, y.used, eps=2.0**-8, n=1) for _, x, y in differing):
        how = "equal but for rounding to bfloat16: saved or loaded in half precision"
    resumed = case.offset(case.pair) or case.events[1].of("load_state_dict").any()
    fix = (
        "load the same checkpoint on both sides, or set the same seed before the model is built"
        if not resumed
        else "check that the checkpoint that {B} loads is the one that {A} saved, and that loading is strict"
    )
    share = "all parameters" if len(differing) == total else few(names)
    yield Cause(
        "init",
        f"{share} {'starts' if share == names[0] else 'start'} from other values in {{B}} than in {{A}}",
        fix,
        (f"{len(differing)} of {count_words(total, 'parameter')} differ; {how}",),
        steps=(first.step, first.step),
        params=tuple(names) if len(differing) < total else (),
    )


def _same_in_float16(a: Floats, b: Floats) -> bool:
    """Whether one side is the other's rounded to float16, to the bit."""
    with np.errstate(all="ignore"):
        return any(np.array_equal(one, other.astype(np.float16).astype(np.float64)) for one, other in ((a, b), (b, a)))


def outside(case: Case) -> Iterator[Cause]:
    """Parameters that changed between two steps."""
    first = case.first
    assert first is not None
    step = first.step
    earlier = [s for s in case.steps if s < step]
    last = case.at(earlier[-1] if earlier else int(case.timeline.steps[0]))
    names, who = [], set()
    factors, broken = [], []
    for side, name in enumerate(("{A}", "{B}")):
        rows = case.at(step)[side]
        for n, cell in case.cells():
            now, past = rows.get((n, "param_in")), last[side].get((n, "param"))
            if now is not None and past is not None and now.fingerprint != past.fingerprint:
                names.append(cell.param_a)
                who.add(name)
                if now.n_nan + now.n_inf > past.n_nan + past.n_inf:
                    broken.append(cell.param_a)
                    continue
                with np.errstate(all="ignore"):
                    ratio = now.used / past.used
                factors.append(ratio[np.isfinite(ratio)])
    if not names:
        return
    sides = " and ".join(sorted(who))
    every = np.concatenate(factors) if factors else np.empty(0)
    evidence = [f"what came to step {step} is not what step {earlier[-1] if earlier else 0} left"]
    if len(every) and np.abs(every - 1).max() <= 1e-6:
        evidence.append("the sampled elements changed by rounding alone, as when weights are swapped out and in again")
    elif len(every) and np.ptp(every) <= 1e-4 * abs(every[0]):
        evidence.append(f"every sampled element was multiplied by {figure(float(every[0]))}")
    if broken:
        evidence.append(f"{few(broken)} {'holds' if len(broken) == 1 else 'hold'} nan or inf since then")
    yield Cause(
        "param-outside",
        f"{few(names)} changed outside the optimizer before step {step} in {sides}",
        f"look in {sides} for what writes to parameters just before step {step}: weight averaging, clamping, tying,"
        " loading, a swap with averaged weights",
        tuple(evidence),
        steps=(step, step),
        params=tuple(dict.fromkeys(names)),
    )
