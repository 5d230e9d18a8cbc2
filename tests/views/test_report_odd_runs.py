"""The page of runs that are short, broken off or not finite, with names of any kind, on paper and on small screens."""

from __future__ import annotations

import base64
import json
import time

import numpy as np
import pytest
import torch
from browser import chromium
from torch import nn

import optrace

pytest.importorskip("jinja2", reason="jinja2 is not installed")

NAMES = ["a" * 200, "constructor", "__proto__", "ünïcödé.重み", "new\nline", "&amp;", "w"]


def train(path, names=("a", "b", "c"), steps=8, spoil=None):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    params = [(name, nn.Parameter(torch.randn(3, 2))) for name in names]
    optimizer = torch.optim.SGD(params, lr=0.1)
    with optrace.record(path, quiet=True):
        for step in range(1, steps + 1):
            optimizer.zero_grad()
            sum((param**2).sum() for _, param in params).backward()
            if spoil is not None:
                spoil(step, [param.grad for _, param in params])
            optimizer.step()
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page
        assert page.errors() == []


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    folder = tmp_path_factory.mktemp("named")
    return optrace.report(train(folder / "run", NAMES), output=folder / "page.html")


def test_nan_on_one_side_is_the_largest_difference_and_is_told_as_such(browser, tmp_path):
    def spoil(step, grads):
        if step >= 4:
            grads[0][0, 0] = float("nan")
        if step >= 6:
            grads[1].fill_(float("inf"))

    runs = train(tmp_path / "a"), train(tmp_path / "b", spoil=spoil)
    browser.open(optrace.report(*runs, output=tmp_path / "page.html"))
    z = browser.run("return document.getElementById('map').data[0].z.map((row) => Array.from(row))")
    drawn = np.array(z, float)
    assert np.isnan(drawn[2]).all() and np.isnan(drawn[0][:3]).all() and np.isnan(drawn[1][:5]).all()
    assert browser.text("main .problem") == "b: NaN or inf since step 4, in a."
    assert (drawn[0][3:] == 9).all() and (drawn[1][5:] == 9).all()
    assert browser.run("return document.getElementById('map').data[0].zmax") < 9
    for row in (0, 1):
        x, y = browser.run(
            "const m = document.getElementById('map'), r = m.getBoundingClientRect(), l = m._fullLayout;"
            "return [r.left + l.xaxis._offset + l.xaxis.d2p(7), r.top + l.yaxis._offset + l.yaxis.r2p(arguments[0])]",
            row,
        )
        browser.mouse("mouseMoved", x - 2, y)
        browser.mouse("mouseMoved", x, y)
        time.sleep(0.3)
        assert browser.text("#hover") == f"step 7, {'ab'[row]}: update is nan or inf on one side"


def test_steps_of_one_side_only_are_gaps_in_the_map(browser, tmp_path):
    browser.open(optrace.report(train(tmp_path / "a"), train(tmp_path / "b", steps=5), output=tmp_path / "page.html"))
    assert browser.run("return document.getElementById('map').data[0].x") == list(range(1, 9))
    x, y = browser.run("const d = document.getElementById('map'); return [d.data[0].z[0][6], d.data[0].z[0][2]]")
    assert (x, y) == (None, None)
    unpacked = browser.run("return document.getElementById('map').data[0].z.flat().filter((v) => v !== null).length")
    assert unpacked == 0


def test_every_name_has_its_row_whatever_it_is(browser, named):
    browser.open(named)
    rows = browser.run(
        "const m = document.getElementById('map'); return [m.data[0].y.length, m._fullLayout.yaxis._categories.length]"
    )
    assert rows == [len(NAMES), len(NAMES)]
    ticks = browser.run("return [...document.querySelectorAll('#map .ytick text')].map((t) => t.textContent)")
    assert len(ticks) == len(NAMES) and {"constructor\u200b", "__proto__\u200b", "&amp;", "w"} <= set(ticks)
    options = browser.run("return [...document.getElementById('param').options].map((o) => o.text)")
    assert options[0] == NAMES[0] and options[1:4] == NAMES[1:4]


def test_a_page_of_few_steps_counts_in_whole_ones(browser, tmp_path):
    browser.open(optrace.report(train(tmp_path / "one", ("w",), steps=1), output=tmp_path / "page.html"))
    assert browser.text("h1") == "one: 1 step of SGD"
    ticks = browser.run("return [...document.querySelectorAll('.xtick text')].map((t) => t.textContent)")
    assert ticks and all(tick.isdigit() for tick in ticks)


def test_a_run_that_did_not_end_says_so(browser, tmp_path):
    run = train(tmp_path / "run")
    info = run / "rank=00000" / "rank.json"
    told = json.loads(info.read_text())
    for end, words in ((None, "run has not ended: it is running, or was killed"),
                       ("error: ValueError", "run ended with error: ValueError")):  # fmt: skip
        info.write_text(
            json.dumps({key: value for key, value in told.items() if key != "end"} | ({"end": end} if end else {}))
        )
        browser.open(optrace.report(run, output=tmp_path / "page.html"))
        assert browser.text("header .problem") == words


def test_long_names_do_not_widen_a_small_screen(browser, named):
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        browser.open(named)
        assert browser.run("return document.documentElement.scrollWidth") == 390
    finally:
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_charts_fit_the_paper_and_the_window_after_it(browser, named):
    browser.open(named)
    widths = "return [...document.querySelectorAll('.js-plotly-plot')].map((c) => c._fullLayout.width)"
    before = browser.run(widths)
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert max(browser.run(widths)) <= 690 < max(before)
    browser.run("dispatchEvent(new Event('afterprint'))")
    assert browser.run(widths) == before
    pdf = browser.driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert base64.b64decode(pdf["data"]).startswith(b"%PDF")


def test_losses_of_two_optimizers_bear_their_names_and_state_of_the_other_takes_no_room(browser, tmp_path):
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(3)) for _ in range(2)]
    optimizers = [torch.optim.SGD([("d", params[0])], lr=0.1), torch.optim.Adam([("g", params[1])], lr=0.1)]
    with optrace.record(tmp_path / "gan", quiet=True):
        for _ in range(5):
            for param, optimizer in zip(params, optimizers, strict=True):
                optimizer.zero_grad()
                (param**2).sum().backward()
                optimizer.step()
    browser.open(optrace.report(tmp_path / "gan", output=tmp_path / "page.html"))
    assert browser.text("h1") == "gan: 5 steps of SGD, 5 steps of Adam"
    ends = browser.run("return document.getElementById('losses').layout.annotations.map((a) => [a.text, a.x])")
    assert ends == [["SGD@0", 5], ["Adam@1", 5]]
    shown = (
        "return [...document.querySelectorAll('#norms > div')].filter((d) => !d.hidden).map((d) => d.layout.title.text)"
    )
    basic = ["norm of update", "norm of grad", "norm of param"]
    assert browser.run(shown) == basic
    choose = "const s = document.getElementById('param'); s.value = arguments[0]; s.dispatchEvent(new Event('change'))"
    browser.run(choose, "1")
    time.sleep(0.6)
    assert browser.run(shown) == [*basic, "norm of state.exp_avg", "norm of state.exp_avg_sq"]


def marks(browser):
    """Kind, steps and words of each row of events."""
    rows = "document.getElementById('losses').data.filter((d) => d.yaxis === 'y2')"
    return browser.run(f"return {rows}.map((d) => [d.y[0], d.x, d.text])")


def test_losses_that_are_not_finite_are_marked_where_their_line_has_a_gap(browser, tmp_path):
    param = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([("w", param)], lr=0.1)
    with optrace.record(tmp_path / "run", quiet=True):
        for factor in (1.0, float("nan"), 1.0, float("inf")):
            optimizer.zero_grad()
            (param.detach() * 0 + param * factor).sum().backward()
            param.grad = torch.ones(3)
            optimizer.step()
    losses = optrace.open(tmp_path / "run").steps["loss"].tolist()
    assert np.isnan(losses[1]) and losses[3] == float("inf")
    browser.open(optrace.report(tmp_path / "run", output=tmp_path / "page.html"))
    assert marks(browser) == [["loss not finite", [2, 4], ["nan", "inf"]]]


def test_events_of_a_resumed_run_stand_at_the_steps_of_the_whole_one(browser, tmp_path):
    def run(path, first, last, state=None):
        torch.manual_seed(0)
        param = nn.Parameter(torch.randn(3))
        optimizer = torch.optim.Adam([("w", param)], lr=0.1)
        if state is not None:
            param.data.copy_(state[0])
            optimizer.load_state_dict(state[1])
        with optrace.record(path, quiet=True):
            for step in range(first, last + 1):
                optimizer.zero_grad()
                (param**2).sum().backward()
                optimizer.step()
                if step == 6:
                    optrace.event("eval")
        return path, (param.detach().clone(), optimizer.state_dict())

    whole, _ = run(tmp_path / "whole", 1, 8)
    _, saved = run(tmp_path / "start", 1, 4)
    resumed, _ = run(tmp_path / "resumed", 5, 8, saved)
    browser.open(optrace.report(whole, resumed, output=tmp_path / "page.html"))
    assert [(kind, steps) for kind, steps, _ in marks(browser)].count(("user", [6])) == 2
