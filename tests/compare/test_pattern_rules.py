"""Tolerances of a project: `[[tool.optrace.diff.rules]]` and `optrace.diff(..., rules=...)`."""

from __future__ import annotations

import pytest
import torch
from hand_made import ENVIRONMENT, sgd

from optrace import diff
from optrace.compare.patterns import PatternRule, nearest_rules
from optrace.errors import CompareError

OTHER_THREADS = {**ENVIRONMENT, "threads": {"intra": 2, "inter": 1}}


def nudged(by, layer=0, step=4):
    def change(now, net, optimizer):
        if now == step:
            net[layer].bias.grad.mul_(by)

    return change


@pytest.fixture
def pair(runs):
    return runs("a"), runs("b", change=nudged(1.001), environment=OTHER_THREADS)


@pytest.mark.parametrize(
    "rule", [{"rtol": 0.01}, {"atol": 0.1}, {"eps": 1e5}, {"param": "*.bias", "quantity": "grad", "rtol": 0.01}]
)
def test_rule_that_fits_widens_what_is_allowed(pair, rule):
    assert not diff(*pair).same
    report = diff(*pair, rules=[rule])
    assert report.same, str(report)
    assert any(note.startswith("rules 1 applied (") for note in report.notes)


@pytest.mark.parametrize(
    "rule",
    [
        {"param": "2.*", "rtol": 0.01},
        {"quantity": "state.*", "rtol": 0.01},
        {"param": "*.bias", "quantity": "grad", "rtol": 1e-4},
    ],
)
def test_rule_that_fits_nothing_or_allows_too_little_changes_nothing(pair, rule):
    report = diff(*pair, rules=[rule])
    assert (report.first.step, report.first.param, report.first.quantity) == (4, "0.bias", "grad")


def test_first_rule_that_fits_counts(pair):
    strict, wide = {"param": "0.bias", "eps": 1}, {"param": "*", "rtol": 0.1}
    assert not diff(*pair, rules=[strict, wide]).same
    assert diff(*pair, rules=[wide, strict]).same


def test_rules_eps_is_in_the_tolerance_that_would_have_passed(pair):
    passes = diff(*pair).tolerance.would_pass_at
    assert diff(*pair, rules=[{"param": "0.bias", "quantity": "grad", "eps": passes}]).same
    assert diff(*pair, rules=[{"param": "0.bias", "eps": 5}]).tolerance.would_pass_at is None


def test_ignored_rows_are_in_neither_lane(runs):
    def poke(step, net, optimizer):
        if step == 8:
            optimizer.state[net[0].bias]["momentum_buffer"].mul_(2)

    a, b = runs("a"), runs("b", tamper=poke)
    assert not diff(a, b).same
    report = diff(a, b, rules=[{"param": "0.bias", "quantity": "state.*", "ignore": True}])
    assert report.same and report.exact.n_different == 0
    assert report.extent.rows < diff(a, b).extent.rows
    assert "rules 1 applied (param 0.bias, quantity state.*: ignore): 1 row that differs" in report.notes


def test_ignored_hyper_parameter_is_no_difference(runs):
    def relabel(step, net, optimizer):
        for group in optimizer.param_groups:
            group["tag"] = 5.0

    a, b = runs("a"), runs("b", change=relabel)
    assert diff(a, b).first.quantity == "hyper.tag"
    report = diff(a, b, rules=[{"quantity": "hyper.tag", "ignore": True}])
    assert report.same and any("hyper.tag" in note for note in report.notes)


def test_ignored_parameter_may_be_missing_where_it_stands(runs):
    without = {"record": lambda step: True}
    a = runs("a", sgd(), **without)

    def no_bias(net):
        return torch.optim.SGD([p for n, p in net.named_parameters() if n != "2.bias"], lr=0.05, foreach=False)

    def every(net):
        return torch.optim.SGD(net.parameters(), lr=0.05, foreach=False)

    a, b = runs("c", every), runs("d", no_bias)
    assert not diff(a, b).same
    report = diff(a, b, rules=[{"param": "2.bias", "ignore": True}])
    assert report.first is None or report.first.param != "2.bias"


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"param": "*", "tol": 1}, "has the key 'tol'"),
        ({"param": 3, "rtol": 1}, "param is 3; it is a glob"),
        ({"rtol": -1}, "rtol is -1; it is a number from 0"),
        ({"rtol": True}, "rtol is True"),
        ({"eps": float("nan")}, "eps is nan"),
        ({"ignore": 1}, "ignore is 1; it is true or false"),
        ({"param": "*"}, "has none of them"),
        ({"rtol": 1, "ignore": True}, "both ignore and rtol"),
        ({"quantity": "hyper.lr", "rtol": 1}, "compared exactly or ignored"),
        ("*.bias", "a rule is a table"),
    ],
)
def test_malformed_rule_is_named(runs, table, words):
    with pytest.raises(CompareError) as raised:
        diff("a", "b", rules=[table])
    assert words in str(raised.value) and str(raised.value).startswith("rules 1")


def test_nearest_project_file_counts(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[[tool.optrace.diff.rules]]\nparam = "*.bias"\nrtol = 0.5\n')
    inner = tmp_path / "inner" / "deep"
    inner.mkdir(parents=True)
    assert nearest_rules(inner).rules == (PatternRule(param="*.bias", rtol=0.5),)
    (tmp_path / "inner" / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert nearest_rules(inner).rules == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[tool.optrace.diff]\nrtol = 1\n", "holds 'rtol'"),
        ("[tool.optrace]\ndiff = 3\n", "holds 3"),
        ("[tool]\noptrace = 3\n", "holds None"),
        ("[tool.optrace.diff]\nrules = 'x'\n", "rule is 'x'"),
        ("[tool.optrace.diff\n", "cannot be read"),
        ("[[tool.optrace.diff.rules]]\nparam = '*'\n", "pyproject.toml rule 1 has none"),
    ],
)
def test_malformed_project_file_is_one_sentence(tmp_path, text, words):
    (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(CompareError) as raised:
        nearest_rules(tmp_path)
    assert words in str(raised.value) and "\n" not in str(raised.value).replace("(at line", "")
