"""The goldens accept a right scheduler of another hand and reject every wrong one that we could think of."""

from __future__ import annotations

import pytest

import optrace

from .mutants import mutant
from .scheduler_bases import BASES, source_of
from .scheduler_mutants import EQUIVALENT, FRAME_MUTANTS, FRAME_RULES, MUTANTS

ALL = [(rule, name, edits) for rule, many in MUTANTS.items() for name, edits in many.items()]
ALL += [(rule, name, edits) for rule in FRAME_RULES for name, edits in FRAME_MUTANTS.items()]


@pytest.mark.parametrize("rule", BASES)
def test_a_right_scheduler_of_another_hand_passes_every_case(rule):
    report = optrace.check_golden(mutant(source_of(rule), [], "Mine"), rule)
    assert report.same, str(report)
    assert not report.not_covered


@pytest.mark.parametrize(("rule", "name", "edits"), ALL, ids=[f"{rule}: {name}" for rule, name, _ in ALL])
def test_a_wrong_scheduler_is_rejected(rule, name, edits):
    report = optrace.check_golden(mutant(source_of(rule), edits, "Mine"), rule, explain=False)
    if (rule, name) in EQUIVALENT:
        assert report.same, f"listed as equivalent: {EQUIVALENT[rule, name]}"
        return
    assert not report.same
    assert not report.not_covered


def test_there_are_at_least_forty():
    assert len(ALL) - len(EQUIVALENT) >= 40
    assert set(EQUIVALENT) <= {(rule, name) for rule, name, _ in ALL}
