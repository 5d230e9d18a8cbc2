"""What scripts/bench does with cases that there are not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

SCRIPTS = str(Path(__file__).parents[2] / "scripts")


@pytest.fixture
def bench(monkeypatch):
    """Runs the command with arguments in this process; its exit status."""
    monkeypatch.syspath_prepend(SCRIPTS)
    from benchmarks import __main__ as command

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["bench", *arguments])
        return command.main()

    return run


@pytest.mark.parametrize(
    ("subject", "known"),
    [
        ("record", "two-layer; cnn-11m"),
        ("hooks", "two-layer; cnn-11m"),
        ("diff", "it has small; large; whole"),
        ("read", "it is measured as a whole"),
        ("memory", "two-layer; cnn-11m"),
        ("muon", "bfloat16, addmm; bfloat16, operation by operation"),
        ("explain", "diff; replay; identify; value; faults"),
        ("ranks", "it has small; large; larger"),
    ],
)
def test_unknown_case_is_refused_by_one_sentence_with_the_known_ones(bench, subject, known, capsys):
    assert bench(subject, "--only", "nonsense") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert f"scripts/bench {subject} has no case 'nonsense'" in err and known in err


def test_names_with_commas_are_understood_in_a_list(bench):
    from benchmarks.__main__ import _named

    known = ("two-layer", "optrace", "optrace, --values grad")
    assert _named("two-layer,optrace, --values grad", known) == (("two-layer", "optrace, --values grad"), "")
    assert _named("optrace,two-layer", known) == (("optrace", "two-layer"), "")
    assert _named("optrace, --values all", known) == (("optrace",), "--values all")
    assert _named("", known) == ((), "")
