"""docs/engines.md: each line names tests that exist, or says that it is untested."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def rows() -> list[list[str]]:
    lines = (ROOT / "docs" / "engines.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [row for row in cells if row[-1] != "test" and not set(row[-1]) <= {"-"}]


def test_each_line_names_its_test_or_says_that_it_has_none():
    assert len(rows()) > 30
    for row in rows():
        assert len(row) == 3, row
        assert row[2] == "untested" or re.fullmatch(r"`test_\w+`(, `test_\w+`)*", row[2]), row


def test_the_tests_that_are_named_exist():
    named = {name for row in rows() for name in re.findall(r"test_\w+", row[2])}
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    assert named <= defined, named - defined
