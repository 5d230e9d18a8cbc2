"""Optimizers for the same parameters: made anew in the middle of a run, or stepping beside the one that is compared."""

from __future__ import annotations

from collections.abc import Iterator

from optrace.compare.arrow import integers
from optrace.compare.causes.case import Case, few
from optrace.compare.causes.cause import Cause
from optrace.compare.successors import successors
from optrace.compare.words import count_words


def made_anew(case: Case) -> Iterator[Cause]:
    """One side goes on with a new optimizer for the same parameters; the other keeps its own."""
    found = successors(case.sources, case.matching)
    for side, name in ((1, "{B}"), (0, "{A}")):
        own = [one for one in found if one.side == side]
        if not own or any(one.side != side for one in found):
            continue
        first = own[0]
        step = first.after + (case.offset(first.pair) if side else 0) + 1
        several = f"{few([str(one.index) for one in own])} ({first.cls})"
        which = f"optimizer{'s' if len(own) > 1 else ''} {several}"
        goes_on = f"{name} goes on with a new optimizer from step {step} on: {which} hold{'s' if len(own) == 1 else ''}"
        lost = _lost(case, first.pair)
        matched = case.matching.pairs[first.pair]
        evidence = (
            f"optimizer {matched.b if side else matched.a} of {name} makes {count_words(first.after, 'step')} and no"
            f" more; {which} come{'s' if len(own) == 1 else ''} after it",
        )
        if lost and not first.state:
            fix = "make the optimizer once, before the loop over epochs or phases, and keep it"
            if side == 0:
                fix = "keep the optimizer in both, or make it anew in both at the same step"
            yield Cause(
                "state-reset",
                f"{goes_on} the same parameters and start{'s' if len(own) == 1 else ''} without {lost}",
                f"in {{B}} {fix}" if side else fix,
                evidence,
                steps=(step, step),
            )
        else:
            kept = "and their state" if first.state else "and keeps no state of them"
            yield Cause(
                "steps-missing",
                f"{goes_on} the same parameters {kept}",
                f"keep one optimizer in both, or compare the whole other run with {name}@{first.index}",
                evidence,
                steps=(step, step),
            )
        return


def beside(case: Case) -> Iterator[Cause]:
    """A second optimizer of one side that moves the parameters of a compared one between its steps."""
    for side, name, words in ((1, "{B}", case.matching.only_in_b), (0, "{A}", case.matching.only_in_a)):
        others = [word.removeprefix("optimizer ") for word in words if word.startswith("optimizer ")]
        for pair, matched in enumerate(case.matching.pairs):
            index = matched.b if side else matched.a
            table = case.sources[side].trace.arrow(
                "tensors", optimizer=index, quantity="param_in", columns=["step", "param"]
            )
            moved = sorted({step for step in integers(table.column("step")).tolist() if step > 1})
            if len(others) != 1 or not moved:
                continue
            step = moved[0] + (case.offset(pair) if side else 0)
            inner = f"optimizer {index} ({case.class_name(side, pair)})"
            yield Cause(
                "param-outside",
                f"optimizer {others[0]} of {name} holds the parameters of {inner} too, and they change between its"
                f" steps, first before step {step}",
                "use the same wrapper in both, or in neither (Lookahead, SAM, averaging)",
                (f"{count_words(len(moved), 'step')} of {inner} begin with other parameters than its last one left",),
                steps=(step, max(case.steps, default=step)),
            )
            return


def _lost(case: Case, pair: int) -> str:
    """The state that the compared optimizer keeps of its parameters, in words; empty where it keeps none."""
    keys = set()
    for side in (0, 1):
        index = case.matching.pairs[pair].b if side else case.matching.pairs[pair].a
        table = case.sources[side].trace.arrow("tensors", optimizer=index, quantity="state.*", columns=["quantity"])
        keys |= {name.removeprefix("state.") for name in table.column("quantity").unique().to_pylist()}
    return few(sorted(keys))
