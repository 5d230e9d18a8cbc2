"""The page of long runs of many parameters, in a real browser: small, fluid, and it says what it left out."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest
from browser import chromium
from synthesized import QUANTITIES, names, norms, write_run

import optrace

pytest.importorskip("jinja2", reason="jinja2 is not installed")

STEPS, PARAMS, APART = 1000, 300, (600, 13)
MOST_BYTES = 5_000_000
MAP = "document.getElementById('map')"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("large") / "a", STEPS, PARAMS)


@pytest.fixture
def open_page(browser, tmp_path):
    """Write a page, check its size, open it; at the end nothing was on the console and nothing was asked for."""

    def make(*runs):
        path = optrace.report(*runs, output=tmp_path / "page.html")
        assert path.stat().st_size < MOST_BYTES
        browser.open(path)
        return browser

    yield make
    assert browser.errors() == [] and browser.requests() == []


def choose(page, index):
    """Choose a parameter as a user does; the seconds until its charts are drawn."""
    start = time.perf_counter()
    page.driver.execute_async_script(
        """
        const done = arguments[1], charts = document.querySelectorAll("#norms > div");
        charts[charts.length - 1].once("plotly_afterplot", () => done());
        const select = document.getElementById("param");
        select.value = String(arguments[0]);
        select.dispatchEvent(new Event("change"));
        """,
        index,
    )
    return time.perf_counter() - start


def zoom(page, low, high):
    """Zoom the map; the seconds until it is drawn."""
    start = time.perf_counter()
    page.driver.execute_async_script(
        f"Plotly.relayout({MAP}, {{'xaxis.range': [arguments[0], arguments[1]]}}).then(() => arguments[2]())", low, high
    )
    return time.perf_counter() - start


@pytest.mark.slow
def test_a_pair_of_a_thousand_steps_and_three_hundred_parameters_is_small_and_fluid(run, open_page, tmp_path):
    other = write_run(tmp_path / "b", STEPS, PARAMS, APART)
    page = open_page(run, other)
    assert page.text("#status") == "300 parameters, 1,000 steps" and page.text("#left-out") == ""
    z = page.run(
        f"const d = {MAP}.data[0]; return [d.z.length, d.z[0].length, Array.from(d.z[arguments[0]])]", APART[1]
    )
    assert z[:2] == [PARAMS, STEPS]
    assert z[2][: APART[0] - 1] == [None] * (APART[0] - 1)
    assert np.allclose(np.array(z[2][APART[0] - 1 :], float), np.log10(0.01 / 1.01), atol=0.011)
    assert page.run(f"return [{MAP}.data[1].x[0], {MAP}.data[1].y[0]]") == [APART[0], names(PARAMS)[APART[1]]]
    drawn = page.run(
        "return Array.from(document.querySelector('#norms > div').data[1].y)"
    )  # the parameter chosen first
    expected = norms(STEPS, PARAMS)[:, QUANTITIES.index("update"), APART[1]]
    expected[APART[0] - 1 :] *= 1.01
    assert len(drawn) == STEPS and np.allclose(drawn, expected, rtol=1e-6)
    seconds = min(choose(page, index) for index in (0, 150, 299))
    assert seconds < 1
    assert min(zoom(page, 590, 610), zoom(page, 1, STEPS)) < 1


def test_one_run_of_that_size_is_small_and_its_thinned_charts_say_so(run, open_page):
    page = open_page(run)
    assert page.text("#status") == "300 parameters, 1,000 steps"
    every = norms(STEPS, PARAMS)
    z = np.array(page.run(f"return {MAP}.data[0].z.map((row) => Array.from(row))"), float)
    ratio = every[:, QUANTITIES.index("update")] / every[:, QUANTITIES.index("param")]
    assert np.allclose(z, np.log10(ratio.T), atol=0.011)
    assert choose(page, 200) < 5
    assert page.text("#thinned") == "every 4th step of the map is drawn here"
    x, y = page.run(
        "const d = document.querySelector('#norms > div').data[0]; return [Array.from(d.x), Array.from(d.y)]"
    )
    assert len(x) == STEPS / 4
    assert np.allclose(y, every[np.array(x) - 1, QUANTITIES.index("update"), 200], rtol=1e-6)


def test_a_run_with_more_steps_than_a_page_holds_says_which_are_on_it(open_page, tmp_path):
    page = open_page(write_run(tmp_path / "long", 3100, 2))
    assert page.text("#status") == "2 parameters, 3,100 steps"
    assert page.text("#left-out").startswith("The run has more steps than a page can hold: 1,034 of the 3,100 are on")
    steps = page.run(f"return Array.from({MAP}.data[0].x)")
    assert steps[:3] == [1, 4, 7] and steps[-1] == 3100 and len(steps) == 1034


def test_charts_do_not_lie_over_each_other_after_the_window_has_changed(run, browser, open_page):
    open_page(run)
    for width in (700, 1300):
        browser.driver.set_window_size(width, 900)
        time.sleep(0.5)
        boxes = browser.run(
            "return Array.from(document.querySelectorAll('main section')).map((s) => s.getBoundingClientRect())"
            ".map((r) => [r.top, r.bottom])"
        )
        charts = browser.run(
            "return Array.from(document.querySelectorAll('.js-plotly-plot .main-svg')).map((s) => {"
            "const own = s.closest('section').getBoundingClientRect(), r = s.getBoundingClientRect();"
            "return r.top >= own.top - 1 && r.bottom <= own.bottom + 1 })"
        )
        assert all(low <= next_top for (_, low), (next_top, _) in pairwise(boxes))
        assert charts and all(charts)
