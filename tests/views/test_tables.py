"""Tables of text: they fit, they align, and they print nothing that a terminal would obey."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optrace.views.style import wants_color
from optrace.views.tables import Table, cut, printable, render

CELLS = st.text(st.characters(codec="utf-8"), max_size=60)


@st.composite
def tables(draw):
    width = draw(st.integers(1, 9))
    row = st.lists(CELLS, min_size=width, max_size=width)
    return draw(st.lists(CELLS.filter(bool), min_size=width, max_size=width)), draw(st.lists(row, max_size=4))


@given(tables())
def test_lines_fit_100_characters_and_hold_no_control_characters(table):
    columns, rows = table
    lines = render(Table([printable(c) for c in columns], rows))
    assert all(len(line) <= 100 for line in lines)
    assert all(line.isprintable() for line in lines)


def test_numbers_stand_to_the_right_and_empty_columns_are_left_out():
    lines = render(Table(("name", "n", "no"), [["a", "1", ""], ["bb", "10", ""]]))
    assert lines == ["name   n", "a      1", "bb    10"]


def test_columns_that_do_not_fit_go_below_with_the_first_one_again():
    lines = render(Table([f"column{i}" for i in range(20)], [[str(i) * 9 for i in range(20)]]))
    heads = [line.split() for line in lines if "column0" in line]
    assert len(heads) == lines.count("") + 1 > 1
    assert [name for head in heads for name in head if name != "column0"] == [f"column{i}" for i in range(1, 20)]


@given(st.text(min_size=1), st.integers(3, 30))
def test_cut_keeps_both_ends(text, width):
    short = cut(text, width)
    assert len(short) <= width
    assert short == text or ("~" in short and text.endswith(short.partition("~")[2]))


@pytest.mark.parametrize(
    ("environment", "tty", "wanted"),
    [
        ({}, False, False),
        ({}, True, True),
        ({"TERM": "dumb"}, True, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, True, False),
        ({"NO_COLOR": ""}, True, True),
    ],
)
def test_color_follows_the_environment(monkeypatch, environment, tty, wanted):
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stream = io.StringIO()
    stream.isatty = lambda: tty
    assert wants_color(stream) is wanted
