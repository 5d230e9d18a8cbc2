"""Names the mistake that a candidate's numbers look like: the one that reproduces them while others do not."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from optrace.goldens.drive import drive
from optrace.goldens.mistakes import Mistake, mistakes, pairs, right
from optrace.goldens.report import Look
from optrace.goldens.tolerance import Scale, errors
from optrace.reference.arithmetic import rounding

if TYPE_CHECKING:
    from optrace.goldens.check import Run

SLACK = 4.0
"""Times the tolerance: both the candidate's numbers and the mistake's are rounded. Where torch's own rule comes that
close to the candidate too (Muon, whose tolerances are wide), it would name anything: there it is 1."""
MOST = 3


def looks_like(name: str, rule: str, runs: Sequence[Run]) -> tuple[Look, ...]:
    """The mistakes that reproduce the differing cases and contradict no agreeing one, those that explain most first.

    One alone explains all that differs and no other does; several mean that the cases do not tell them apart, or that
    no single one explains everything.
    """
    differing = _best_dtype([run for run in runs if run.result.failure and run.outputs])
    agreeing = _best_dtype([run for run in runs if run.result.verdict == "same"])
    if not differing or rule == "lbfgs":
        return ()
    slack = 1.0 if any(_reproduces(right(rule), run, SLACK) for run in differing) else SLACK
    groups = [list(mistakes(rule)), list(pairs(rule))]
    for group in groups:
        whole = [m for m in group if _explains_all(m, differing, slack) and _explains_all(m, agreeing, slack)]
        if whole:
            best = _simplest([(mistake, list(differing)) for mistake in whole])
            return tuple(_look(name, rule, *pair, len(differing)) for pair in best[:MOST])
    found = [(mistake, _explained(mistake, differing, slack)) for group in groups for mistake in group]
    found = [pair for pair in found if pair[1] and _explains_all(pair[0], agreeing, slack)]
    found.sort(key=lambda pair: -len(pair[1]))
    return tuple(_look(name, rule, *pair, len(differing)) for pair in found[:MOST])


def _explains_all(mistake: Mistake, runs: Sequence[Run], slack: float) -> bool:
    return all(_reproduces(mistake, run, slack) for run in runs)


def _best_dtype(runs: Sequence[Run]) -> list[Run]:
    """The float64 cases, where there are any: their numbers tell more apart."""
    wide = [run for run in runs if run.golden.dtype == "float64"]
    return wide or list(runs)


def _explained(mistake: Mistake, differing: Sequence[Run], slack: float) -> list[Run]:
    ends = [run for run in (differing[0], differing[-1]) if _reproduces(mistake, run, slack)]
    if not ends and mistake.switches is not None:
        return []
    return [run for run in differing if _reproduces(mistake, run, slack)]


def _reproduces(mistake: Mistake, run: Run, slack: float) -> bool:
    """Whether the mistake gives the candidate's parameters in this case, as far as it came."""
    tolerance = slack * run.golden.tolerance_free
    eps = float(np.finfo(run.golden.dtype).eps)
    scales = {param: Scale(values) for param, values in run.golden.at(0, "param").items()}
    try:
        with rounding(fma=False), warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            for step, params, _ in drive(run.golden, mistake.driver(run.golden)):
                got, _ = run.outputs[step]
                for param, values in params.items():
                    scale = scales[param].after(values)
                    theirs = np.asarray(got[param])
                    if theirs.shape != values.shape or not (errors(theirs, values, scale, eps) <= tolerance).all():
                        return False
    except (ArithmeticError, ValueError, KeyError, TypeError):
        return False
    return True


def _simplest(best: list[tuple[Mistake, list[Run]]]) -> list[tuple[Mistake, list[Run]]]:
    """Where several explain all, those of one code count once."""
    codes: dict[str, tuple[Mistake, list[Run]]] = {}
    for mistake, explained in best:
        codes.setdefault(mistake.code, (mistake, explained))
    return list(codes.values())


def _look(name: str, rule: str, mistake: Mistake, explained: Sequence[Run], of: int) -> Look:
    does, torch_does, mend = mistake.words(explained[0].golden.hyper[0])
    summary = f"{name} {does}; torch's {rule} {torch_does}"
    names = tuple(run.result.case for run in explained)
    return Look(mistake.code, mistake.name, summary, f"in {name} {mend}", names, of)
