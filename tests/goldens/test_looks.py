"""A check names the mistake whose numbers the candidate has, and none where it knows none."""

from __future__ import annotations

import pytest
import torch
from mutation.frame_mutants import FRAME_MUTANTS
from mutation.mutants import mutant
from mutation.optimizer_bases import BASES, source_of
from mutation.optimizer_mutants import MUTANTS

import optrace
from optrace.goldens.mistakes import mistakes
from optrace.reference.variants import VARIANTS

NAMED = [
    ("sgd", "momentum averages", "rule-momentum-form"),
    ("sgd", "lr inside the buffer", "rule-momentum-form"),
    ("sgd", "first gradient dampened", "rule-dampening"),
    ("sgd", "dampening ignored", "rule-dampening"),
    ("sgd", "nesterov ignored", "rule-nesterov"),
    ("sgd", "nesterov minus", "rule-nesterov"),
    ("sgd", "decay decoupled", "rule-decay-coupling"),
    ("sgd", "decay ignored", "rule-decay-missing"),
    ("sgd", "climbs", "rule-sign"),
    ("adam", "eps inside the root", "rule-eps"),
    ("adam", "eps before correction", "rule-eps"),
    ("adam", "no correction", "rule-bias-correction"),
    ("adam", "betas exchanged", "rule-betas"),
    ("adam", "counter ahead", "step-counter"),
    ("adam", "amsgrad of the corrected moment", "rule-amsgrad"),
    ("adamw", "decay coupled", "rule-decay-coupling"),
    ("adamw", "decay after the update", "rule-decay-order"),
    ("adamax", "eps missing", "rule-eps"),
    ("nadam", "gradient term missing", "rule-nesterov"),
    ("radam", "eps after correction", "rule-eps"),
    ("radam", "rectification missing", "rule-unknown"),
    ("adadelta", "lr ignored", "rule-unknown"),
    ("adadelta", "eps outside the roots", "rule-eps"),
    ("rprop", "moves after a change of sign", "rule-unknown"),
    ("rprop", "old step size", None),
    ("adafactor", "relative step missing", "rule-unknown"),
    ("adafactor", "beta2 of Adam", "rule-betas"),
    ("muon", "momentum sums", "rule-momentum-form"),
    ("muon", "decay ignored", "rule-decay-missing"),
]
FRAME = [
    ("options of the first group for all", "group-option"),
    ("lr of the first group for all", "group-option"),
    ("options frozen at construction", "lr-frozen"),
    ("None taken for zeros", "rule-none-grad"),
    ("break at the first gradient that is None", "rule-none-grad"),
    ("state not loaded", "state-reset"),
    ("options not loaded", "lr-reset"),
    ("gradient clipped to 1 by norm", None),
]


def codes(rule, edits):
    report = optrace.check_golden(mutant(source_of(rule), edits, "Optimizer"), rule)
    assert not report.same
    return [look.code for look in report.looks], str(report)


@pytest.mark.parametrize(("rule", "name", "code"), NAMED, ids=lambda x: str(x))
def test_a_known_mistake_of_the_rule_is_named(rule, name, code):
    found, text = codes(rule, MUTANTS[rule][name])
    assert found[:1] == ([code] if code else []), text
    if code:
        assert len(found) == 1 or "perhaps" in text


@pytest.mark.parametrize("rule", ["sgd", "adam"])
@pytest.mark.parametrize(("name", "code"), FRAME)
def test_a_known_mistake_in_the_loop_is_named(rule, name, code):
    found, text = codes(rule, FRAME_MUTANTS[name])
    assert found[:1] == ([code] if code else []), text


def test_two_mistakes_at_once_are_named_together():
    edits = MUTANTS["sgd"]["momentum averages"] + MUTANTS["sgd"]["decay ignored"]
    source = source_of("sgd")
    report = optrace.check_golden(mutant(source, edits, "Optimizer"), "sgd")
    assert any("and applies no weight decay" in look.summary for look in report.looks), str(report)


def test_the_report_says_what_to_change_and_where_to_look():
    edits = MUTANTS["sgd"]["momentum averages"]
    text = str(optrace.check_golden(mutant(source_of("sgd"), edits, "Optimizer"), "sgd"))
    assert "buf = 0.9*buf + 0.1*g; torch's sgd sums it, buf = 0.9*buf + g" in text
    assert "drop the factor (1 - momentum)   (checked: gives its numbers in" in text
    assert "next         optrace golden show sgd/" in text


def test_a_right_optimizer_is_never_given_a_mistake():
    for rule in BASES:
        report = optrace.check_golden(mutant(source_of(rule), [], "Optimizer"), rule)
        assert not report.looks


@pytest.mark.parametrize("rule", sorted(VARIANTS.keys() - {"lion"}))  # torch has no Lion, so there are no goldens of it
def test_every_variant_of_the_table_is_named_by_its_own_code(rule):
    from optrace.goldens.check import check_golden

    for mistake in mistakes(rule):
        if mistake.switches is None:
            continue
        variant = next(v for v in VARIANTS[rule] if v.name == mistake.name)
        report = check_golden(variant.step, rule, dtype="float64")
        assert report.same or variant.code in [look.code for look in report.looks], (variant.name, str(report))


def test_torchs_own_optimizers_look_like_nothing():
    assert optrace.check_golden(torch.optim.AdamW, "adamw").looks == ()
