"""State that differs before the rule used it: lost, exchanged, counted otherwise, or simply other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from optrace.compare.causes.case import Case, Row, Snapshot, close, factor_words, few, figure
from optrace.compare.causes.cause import Cause
from optrace.compare.words import count_words
from optrace.trace.dtypes import eps_of

RELOAD = "in {B} save the optimizer's state_dict() and load it after the optimizer has all its groups"


def state_before(case: Case) -> Iterator[Cause]:
    """Causes for state that differs as a step finds it, or as a run starts with it."""
    first = case.first
    assert first is not None
    step = first.step
    if step == min(case.timeline.steps.tolist()) or (
        case.offset(case.pair) and step + 1 == min(case.steps, default=-1)
    ):
        sides: tuple[Snapshot, Snapshot] = case.at(step)
        when = "starts"
    else:
        sides = case.before(step, 0), case.before(step, 1)
        when = f"comes to step {step}"
    a, b = (_state(side) for side in sides)
    keys = sorted({key for _, key in a} | {key for _, key in b})
    differing = [key for key in keys if any(_unequal(a.get((c, key)), b.get((c, key))) for c, _ in case.cells())]
    if not differing:
        return
    cause = (
        _reset(case, step, when, a, b, differing)
        or _counter(case, step, when, a, b, differing)
        or _swapped(case, step, a, b, differing)
        or _value(case, step, when, a, b, differing)
    )
    if cause is not None:
        yield cause


State = Mapping[tuple[int, str], Row]


def _state(rows: Snapshot) -> State:
    return {
        (cell, q.removeprefix("state.")): row
        for (cell, q), row in rows.items()
        if q.startswith("state.") and row.present  # a row that is not tells that the state is gone
    }


def _unequal(a: Row | None, b: Row | None) -> bool:
    if a is None or b is None:
        return (a is None) != (b is None)
    return a.fingerprint != b.fingerprint


def _empty(row: Row | None) -> bool:
    return row is None or (row.l2 == 0 and row.n_nan == row.n_inf == 0)


def _names(case: Case, cells: Sequence[int]) -> list[str]:
    return [case.numbering.cells[cell].param_a for cell in cells]


def _reset(case: Case, step: int, when: str, a: State, b: State, differing: Sequence[str]) -> Cause | None:
    """State that one side has lost: absent, or all zeros, where the other has numbers."""
    for side, own, other in (("{B}", b, a), ("{A}", a, b)):
        full = [(c, k) for (c, k), row in other.items() if not _empty(row) and k in differing]
        lost = [(c, k) for c, k in full if _empty(own.get((c, k)))]
        tensors = [(c, k) for c, k in lost if k != "step"]
        if not lost or len(lost) < max(1, sum(_unequal(a.get(p), b.get(p)) for p in full)):
            continue
        if not tensors and any(k != "step" for _, k in full):
            continue
        cells = sorted({c for c, _ in lost})
        keys = sorted({k for _, k in lost})
        there = "{A}" if side == "{B}" else "{B}"
        everything = len(lost) == len(full)
        which = "all parameters" if everything and len(cells) == len(case.cells()) else few(_names(case, cells))
        missing = sum(own.get(place) is None for place in lost)
        how = "does not exist" if missing == len(lost) else "is all zeros"
        evidence = [f"{', '.join(keys)} of {which} {how} in {side}, and is there in {there}"]
        evidence += _where_lost(case, 0 if side == "{A}" else 1)
        fix, has = RELOAD, f"which {there} has"
        if side == "{A}":
            fix = "reset the state at the same place in both, or keep it in both"
            if when.startswith("comes"):
                has = "which {B} goes on with"
                fix = f"in {{B}} reset the optimizer's state before step {step} as {{A}} does, or keep it in both"
        return Cause(
            "state-reset",
            f"{side} {when} without {_listed(keys)} of {which}, {has}",
            fix,
            tuple(evidence),
            steps=(step, step),
            params=tuple(_names(case, cells)) if which != "all parameters" else (),
        )
    return None


def _where_lost(case: Case, side: int) -> Iterator[str]:
    """What the events say about saving and loading."""
    events = case.events[side]
    loads = list(events.read(events.of("load_state_dict")))
    name = ("{A}", "{B}")[side]
    if not loads:
        yield f"no load_state_dict of an optimizer was seen in {name}"
    else:
        n = sum(
            1 for key in loads[-1].data.get("fingerprints", loads[-1].data) if "state" in str(key) or "." in str(key)
        )
        yield f"{name} loaded an optimizer's state_dict{f' with {n} entries' if n else ''} before it"


def _counter(case: Case, step: int, when: str, a: State, b: State, differing: Sequence[str]) -> Cause | None:
    """Step counters that are off by one number, all else being equal."""
    if list(differing) != ["step"]:
        return None
    lags = {
        b[cell, "step"].used[0] - a[cell, "step"].used[0]
        for cell, _ in case.cells()
        if (cell, "step") in a and (cell, "step") in b
    }
    return counter_cause(case, step, lags, f"{{B}} {when}")


def counter_cause(case: Case, step: int, lags: set[float], who: str) -> Cause | None:
    """The cause for counters that are off by one whole number."""
    lags -= {0.0}
    if len(lags) != 1 or not float(lag := lags.pop()).is_integer():
        return None
    word = "ahead" if lag > 0 else "behind"
    return Cause(
        "step-counter",
        f"{who} with its step counter {count_words(abs(int(lag)), 'step')} {word}",
        "in {B} count one step per optimizer.step(), from 1 at the parameter's first; load the counter that was saved",
        (f"state step of {{B}} less {{A}}'s is {int(lag):+d}, and all other state is equal",),
        steps=(step, step),
    )


def counter_after(case: Case) -> Iterator[Cause]:
    """A step counter that differs after the first divergent step, though it came in equal."""
    first = case.first
    assert first is not None
    a, b = (_state(rows) for rows in case.at(first.step))
    cells = [c for c, _ in case.cells() if (c, "step") in a and (c, "step") in b]
    lags = {float(b[c, "step"].used[0] - a[c, "step"].used[0]) for c in cells}
    if len(lags) != 1 or lags == {0.0}:
        return
    others = [k for c, k in a if k != "step" and (c, k) in b and not _alike(a[c, k], b[c, k])]
    if not others:
        cause = counter_cause(case, first.step, lags, f"{{B}} leaves step {first.step}")
        if cause is not None:
            yield cause


def _alike(a: Row, b: Row) -> bool:
    eps = max(eps_of(a.dtype), eps_of(b.dtype))
    return a.fingerprint == b.fingerprint or close(a.used, b.used, eps=eps, n=8)


def _swapped(case: Case, step: int, a: State, b: State, differing: Sequence[str]) -> Cause | None:
    """State of one parameter under the name of another."""
    for key in differing:
        if key == "step":
            continue
        owner = {row.fingerprint: cell for (cell, k), row in a.items() if k == key and row.l2 > 0}
        wrong = [
            (cell, owner.get(row.fingerprint))
            for (cell, k), row in b.items()
            if k == key and _unequal(a.get((cell, k)), row)
        ]
        if wrong and all(there is not None for _, there in wrong):
            cells = [cell for cell, _ in wrong]
            pairs = [
                f"{case.numbering.cells[cell].param_a} has that of {case.numbering.cells[there].param_a}"
                for cell, there in wrong
                if there is not None
            ]
            return Cause(
                "state-swapped",
                f"{key} is exchanged between parameters in {{B}}: {few(pairs, 2)}",
                "in {B} load the state by parameter name (named_parameters), or give the optimizer its parameters in"
                " the order they had when it was saved",
                (f"bitwise, at {count_words(len(cells), 'parameter')}",),
                steps=(step, step),
                params=tuple(_names(case, cells)),
            )
    return None


def _value(case: Case, step: int, when: str, a: State, b: State, differing: Sequence[str]) -> Cause | None:
    places = [(c, k) for c, _ in case.cells() for k in differing if _unequal(a.get((c, k)), b.get((c, k)))]
    both = [(a[p], b[p]) for p in places if p in a and p in b]
    if not both:
        return None
    cells = sorted({c for c, _ in places})
    evidence = [f"{', '.join(differing)} of {few(_names(case, cells))}"]
    ratios = []
    for row_a, row_b in both:
        with np.errstate(all="ignore"):
            ratio = row_b.used / row_a.used
        ratios.append(ratio[np.isfinite(ratio)])
    every = np.concatenate(ratios)
    rounded = all(close(x.used, y.used, eps=2.0**-8, n=2) for x, y in both)
    how = "differs"
    if rounded:
        how = "is equal but for rounding to a lower precision"
    elif len(every) and np.ptp(every) <= 1e-4 * abs(every[0]):
        how = f"is {factor_words(float(every[0]))} {{A}}'s"
        evidence.append(f"one factor, {figure(float(every[0]))}, at all sampled elements")
    fix, alias = RELOAD, _of_gradient(case, step, places) if when.startswith("comes") else ""
    if alias:
        evidence.append(f"{alias} of {{B}} before step {step} is the gradient of step {step}, to the bit")
        fix = f"in {{B}} copy the gradient into {alias} (clone): they share their memory, and backward changes both"
    elif when.startswith("comes") and "load_state_dict" not in case.kinds_between(1, step):
        fix = f"look in {{B}} for what changes the state between steps, just before step {step}"
    return Cause(
        "state-value",
        f"{{B}} {when} with other state than {{A}}: {_listed(list(differing))} {how}",
        fix,
        tuple(evidence),
        steps=(step, step),
        params=tuple(_names(case, cells)),
    )


def _of_gradient(case: Case, step: int, places: Sequence[tuple[int, str]]) -> str:
    """B's state that is the gradient of the same step, at all these places; empty where it is not."""
    state, rows = case.before(step, 1), case.at(step)[1]
    keys = {key for _, key in places}
    pairs = [(state.get((cell, f"state.{key}")), rows.get((cell, "grad"))) for cell, key in places]
    alike = all(x is not None and y is not None and x.fingerprint == y.fingerprint and y.l2 > 0 for x, y in pairs)
    return keys.pop() if alike and len(keys) == 1 else ""


def _listed(keys: Sequence[str]) -> str:
    return " and ".join([", ".join(keys[:-1]), keys[-1]]) if len(keys) > 1 else keys[0]
