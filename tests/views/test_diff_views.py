"""A report as text, Markdown, HTML and JSON: literal for the shapes that people and programs rely on."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from textwrap import dedent

import numpy as np
import pytest
import torch
from hand_made import ENVIRONMENT, adamw, sgd

from optrace.compare.report import Difference, strict
from optrace.compare.run import diff
from optrace.compare.words import value_words
from optrace.views.markdown import diff_markdown, escape
from optrace.views.text import diff_text

SCHEMA = [
    "format",
    "verdict",
    "lane",
    "exact",
    "tolerance",
    "evidence",
    "first",
    "causes",
    "divergences",
    "n_divergences",
    "n_unproven",
    "only_in_a",
    "only_in_b",
    "provenance",
    "notes",
]


def bare(report):
    """The report without causes, whose sentences have tests of their own."""
    return replace(report, causes=())


def first(net):
    return next(net.parameters())


def twice_the_update(step, net, optimizer):
    if step == 3:
        with torch.no_grad():
            first(net).sub_(0.25)


@pytest.fixture
def differing(runs):
    return bare(diff(runs("torch", sizes=(2, 2, 1)), runs("mine", sizes=(2, 2, 1), tamper=twice_the_update)))


def text_of(report):
    """The text without paths, which are the test's own."""
    return re.sub(r"/\S*/", "", str(report))


def test_report_of_an_update_that_differs(differing):
    a, b = (value_words(differing.first.a, "float32"), value_words(differing.first.b, "float32"))
    size = f"{differing.first.eps / 4:,.0f} times what rounding may do"
    where = f"{list(differing.first.index)}: {a} in torch, {b} in mine"
    assert text_of(differing) == dedent(f"""\
        mine differs from torch - since step 3, in the update
          first   step 3, optimizer 0 (SGD), group 0, update of 0.weight{where} ({size})
          same    start values, steps 1 to 2, hyper-parameters, gradients of step 3, state momentum_buffer of step 3
          notes   judged to the bit: same implementation, torch, device, CPU capability and threads
          next    optrace show mine tensors --step 3 --param 0.weight""")


def test_report_of_a_hyper_parameter_names_group_key_and_both_values_first(runs):
    report = bare(diff(runs("torch"), runs("mine", sgd(lr=0.06))))
    assert text_of(report) == dedent("""\
        mine differs from torch - since step 1, in the hyper-parameter lr of group 0: 0.05 in torch, 0.06 in mine
          first   step 1, optimizer 0 (SGD), group 0, lr; differs at 8 steps
          same    start values, gradients of step 1
          notes   lr of group 1 is 0.05 in torch, 0.06 in mine since step 1
                  judged to the bit: same implementation, torch, device, CPU capability and threads
          next    optrace show mine groups --step 1""")


def test_report_of_equal_runs(runs):
    assert text_of(bare(diff(runs("torch"), runs("mine")))) == dedent("""\
        mine is the same as torch - to the bit: 8 steps of SGD, 4 params
          same    start values, hyper-parameters, gradients, updates, state, parameters
          notes   judged to the bit: same implementation, torch, device, CPU capability and threads""")


def test_report_of_noise_says_so(runs):
    a, b = runs("for-loop", adamw()), runs("fused", adamw(foreach=None, fused=True), implementation="fused")
    report = bare(diff(a, b))
    lines = text_of(report).splitlines()
    assert lines[0] == "fused is the same as for-loop - within tolerance: 8 steps of AdamW, 4 params"
    assert re.fullmatch(
        r"  noise   \d+ of 196 rows differ by rounding, since step 1; every step is within tolerance of its inputs",
        lines[1],
    )
    assert "  differs optimizer.0.implementation: for-loop -> fused" in lines


def test_json_is_strict_and_has_the_documented_keys(differing):
    data = json.loads(differing.to_json(), parse_constant=lambda word: pytest.fail(f"not strict: {word}"))
    assert list(data) == SCHEMA
    assert list(data["exact"]) == ["same", "first", "n_different", "max_eps", "would_pass_at"]
    assert list(data["tolerance"]) == list(data["exact"])
    assert data["first"] == {"step": 3, "optimizer": 0, "group": 0, "param": "0.weight", "quantity": "update"}
    assert (data["format"], data["verdict"], data["lane"]) == (1, "differ", "exact")
    assert len(data["divergences"]) == min(100, data["n_divergences"])
    assert data["divergences"][0]["index"] == list(differing.first.index)


def test_json_of_equal_runs_has_no_first(runs):
    data = json.loads(diff(runs("a"), runs("b")).to_json())
    assert data["first"] is None and data["divergences"] == [] and data["exact"]["would_pass_at"] == 0.0


def test_json_writes_infinities_as_words(runs):
    def poison(step, net, optimizer):
        if step == 2:
            first(net).grad[0, 0] = math.nan

    report = diff(runs("a"), runs("b", change=poison))
    data = json.loads(report.to_json(), parse_constant=lambda word: pytest.fail(word))
    assert data["exact"]["max_eps"] == "inf"
    assert strict({"a": (math.nan, -math.inf, 1.5, None, True)}) == {"a": ["nan", "-inf", 1.5, None, True]}


def test_details_show_both_lanes_eps_and_the_divergences_within_100_columns(differing):
    text = diff_text(differing, details=True)
    assert text.startswith(str(differing) + "\n")
    tables = text[len(str(differing)) :]
    assert max(map(len, tables.splitlines())) <= 100
    assert "lane (* decides)" in tables and "exact *" in tables
    assert re.search(r"^3 \*\s+0\s+0\.weight\s+update\s+values", tables, re.M)
    assert "eps/granted" in tables and f"{differing.n_divergences:,} divergences" in tables


def test_eps_stays_under_details(differing):
    assert not re.search(r"\beps\b", str(differing)) and "fingerprint" not in str(differing)


def test_color_adds_escapes_and_nothing_else(differing):
    plain, colored = diff_text(differing, details=True), diff_text(differing, details=True, color=True)
    assert "\x1b[" in colored and re.sub(r"\x1b\[\d*m", "", colored) == plain


def test_markdown_pastes_into_an_issue(differing):
    report = replace(differing, provenance=(Difference("torch.version", "2.12", "2.13"),))
    text = diff_markdown(report, details=True)
    lines = text.splitlines()
    assert lines[0] == "**mine differs from torch - since step 3, in the update**"
    table = next(line for line in lines if line.startswith("| step "))
    rows = [line for line in lines if line.startswith("| 3 ")]
    assert rows and all(row.count(" | ") == table.count(" | ") for row in rows)
    assert any(line.startswith("- next: `optrace show") for line in lines)


def test_markdown_escapes_what_would_be_markup():
    assert escape("a_b*c|d<e>`f`[g]\n") == "a\\_b\\*c\\|d\\<e\\>\\`f\\`\\[g\\]\\\\n"


def test_html_escapes_names_from_a_strangers_trace(differing):
    report = replace(differing, b="<script>alert(1)</script>")
    assert "<script>" not in report._repr_html_() and "&lt;script&gt;" in report._repr_html_()


@pytest.mark.parametrize("value", [0.1, 1e-8, 3.0, -0.0, math.pi, 16777217.0])
def test_numbers_are_shortest_and_read_back_in_their_dtype(value):
    assert float(value_words(value, "float64")) == value
    single = float(np.float32(value))
    assert np.float32(value_words(single, "float32")) == np.float32(single)
    assert len(value_words(single, "float32")) <= len(repr(single))


def test_unproven_rows_name_the_recording_that_would_decide(runs):
    threads = {**ENVIRONMENT, "threads": {"intra": 4, "inter": 1}}

    def swap(step, net, optimizer):
        if step == 8:
            flat = optimizer.state[first(net)]["momentum_buffer"].view(-1)
            flat[[4, 5]] = flat[[5, 4]]

    report = diff(runs("a"), runs("b", tamper=swap, environment=threads))
    assert "1 row differs in bits while all that was recorded of it agrees" in str(report)
