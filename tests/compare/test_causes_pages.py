"""Every code has a section in docs/causes.md with all that a section has, and no section is of an unknown code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import optrace
from optrace.compare.causes.cause import CLASSES, Cause
from optrace.reference.variants import VARIANTS

PAGE = (Path(__file__).parents[2] / "docs" / "causes.md").read_text()
SECTIONS = dict(re.findall(r"^### `([a-z-]+)`\n(.*?)(?=^##|\Z)", PAGE, re.M | re.S))
SOURCES = sorted(Path(optrace.__file__).parent.joinpath("compare", "causes").glob("*.py"))


def test_codes_and_sections_are_the_same():
    assert set(SECTIONS) == set(CLASSES)
    assert PAGE.count("\n### ") == len(SECTIONS)


@pytest.mark.parametrize("code", CLASSES)
def test_a_section_says_all_that_one_needs(code):
    for part in ("How it happens", "How it looks", "Confirm", "Mend", "A real case"):
        assert SECTIONS[code].count(f"- **{part}.**") == 1, part


def test_every_code_that_is_given_anywhere_is_known():
    given = {variant.code for variants in VARIANTS.values() for variant in variants}
    for source in SOURCES:
        given |= set(re.findall(r'Cause\(\s*"([a-z-]+)"', source.read_text()))
    assert given <= set(CLASSES)
    others = {"replica-drift", "grad-unreduced"}  # given where the ranks of one run are compared
    assert set(CLASSES) - given - others == set()


def test_a_cause_is_plain_data_with_its_class():
    cause = Cause("lr-rate", "{B} runs faster than {A}", "slow {B}", ("{A}: 1",), steps=(1, 9)).named("a", "b")
    assert cause.as_dict() == {
        "code": "lr-rate",
        "class": "the learning rate",
        "summary": "b runs faster than a",
        "fix": "slow b",
        "evidence": ["a: 1"],
        "score": 1.0,
        "steps": [1, 9],
        "params": [],
        "independent_of": [],
    }
