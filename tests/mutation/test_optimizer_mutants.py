"""The goldens accept a right optimizer of another hand and reject every wrong one that we could think of."""

from __future__ import annotations

import pytest

import optrace

from .frame_mutants import EQUIVALENT as OF_OTHERS
from .frame_mutants import FRAME_MUTANTS
from .lbfgs_mutants import LBFGS_EQUIVALENT, LBFGS_MUTANTS
from .mutants import mutant
from .optimizer_bases import BASES, source_of
from .optimizer_mutants import MUTANTS

EQUIVALENT = OF_OTHERS | {("lbfgs", name): why for name, why in LBFGS_EQUIVALENT.items()}
SHARP = {"lbfgs": ["resume", "far-start", "memory-of-one"]}
"""The cases that are tried first; most mutants fail there, and the whole grid need not be run for them."""
FRAME_RULES = ("sgd", "adam")
ALL = [
    (rule, name, edits) for rule, many in (MUTANTS | {"lbfgs": LBFGS_MUTANTS}).items() for name, edits in many.items()
]
ALL += [(rule, name, edits) for rule in FRAME_RULES for name, edits in FRAME_MUTANTS.items()]


@pytest.mark.parametrize("rule", BASES)
def test_a_right_optimizer_of_another_hand_passes_every_case(rule):
    report = optrace.check_golden(mutant(source_of(rule), [], "Optimizer"), rule)
    assert report.same, str(report)
    assert not report.not_covered


@pytest.mark.parametrize(("rule", "name", "edits"), ALL, ids=[f"{rule}: {name}" for rule, name, _ in ALL])
def test_a_wrong_optimizer_is_rejected(rule, name, edits):
    wrong = mutant(source_of(rule), edits, "Optimizer")
    for cases in (SHARP.get(rule, ["groups-resume", "shapes"]), None):
        report = optrace.check_golden(wrong, rule, dtype="float64", cases=cases, explain=False)
        if any(result.failure for result in report.cases):
            break
    if (rule, name) in EQUIVALENT:
        assert report.same, f"listed as equivalent: {EQUIVALENT[rule, name]}"
        return
    assert not report.same
    assert any(result.failure for result in report.cases), "rejected only because it raised"
    assert not report.not_covered


def test_there_are_at_least_a_hundred():
    assert len(ALL) - len(EQUIVALENT) >= 100
    assert set(EQUIVALENT) <= {(rule, name) for rule, name, _ in ALL}
