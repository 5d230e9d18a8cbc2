"""The page in a real browser: what it shows is what the trace holds, and nothing in it reaches out or runs."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch
from browser import chromium
from torch import nn

import optrace
from optrace.views.html.series import read_grid

pytest.importorskip("jinja2", reason="jinja2 is not installed")

HOSTILE = "</script><img src=x onerror=window.hit=1><b>x</b>%{y}"


class Named(nn.Module):
    """A model whose parameters have names that an attacker would choose."""

    def __init__(self):
        super().__init__()
        self.inner = nn.ParameterDict({HOSTILE.replace(".", ","): nn.Parameter(torch.ones(3)), "b": torch.ones(2)})

    def forward(self, x):
        return sum((p * x).sum() for p in self.inner.values())


def train(path, *, lr=0.05, steps=30, momentum=0.9, clip=False):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2), nn.Linear(2, 1))
    net[3].requires_grad_(False)
    net.register_parameter("unused", nn.Parameter(torch.ones(3)))
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=momentum)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
    with optrace.record(path, quiet=True):
        for step in range(steps):
            optimizer.zero_grad()
            loss = net(torch.randn(16, 4, generator=torch.Generator().manual_seed(step))).square().mean()
            loss.backward()
            if clip:
                nn.utils.clip_grad_norm_(net.parameters(), 0.1)
            optimizer.step()
            scheduler.step()
        optrace.event("eval", loss=0.5, note=HOSTILE)
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return train(folder / "a"), train(folder / "b", clip=True)


@pytest.fixture
def pair(browser, runs, tmp_path):
    browser.open(optrace.report(*runs, output=tmp_path / "pair.html"))
    yield browser
    assert browser.errors() == []
    assert browser.requests() == []


@pytest.fixture
def one(browser, runs, tmp_path):
    browser.open(optrace.report(runs[1], output=tmp_path / "one.html"))
    yield browser
    assert browser.errors() == []
    assert browser.requests() == []


def line(page, chart, trace):
    """x and y of a drawn line."""
    return page.run(
        "const d = document.querySelector(arguments[0]).data[arguments[1]]; return [Array.from(d.x), Array.from(d.y)]",
        chart,
        trace,
    )


def cell(page, step, row):
    """Where on the screen a cell of the map is."""
    return page.run(
        "const m = document.getElementById('map'); m.scrollIntoView({block: 'center'});"
        "const r = m.getBoundingClientRect(), l = m._fullLayout;"
        "return [r.left + l.xaxis._offset + l.xaxis.d2p(arguments[0]),"
        " r.top + l.yaxis._offset + l.yaxis.r2p(arguments[1])]",
        step,
        row,
    )


def test_verdict_cause_and_fix_are_on_top(pair, runs):
    compared = optrace.diff(*runs)
    assert pair.text("h1") == str(compared).splitlines()[0]
    assert compared.causes[0].code in pair.text(".verdict")
    assert f"step {compared.first.step}" in pair.text(".verdict")


def test_norms_lr_and_losses_are_the_traces(pair, runs):
    for side, path in enumerate(runs):
        trace = optrace.open(path)
        rows = trace.table("tensors", param="0.weight", quantity="update")
        x, y = line(pair, "#norms > div:nth-child(1)", side)
        assert x == rows["step"].tolist()
        assert np.allclose(y, rows["l2"], rtol=1e-6, atol=0)
        _, losses = line(pair, "#losses", side)
        assert losses == trace.steps["loss"].tolist()
        steps, rates = line(pair, "#hyper > div:nth-child(1)", side)
        of_step = dict(zip(trace.groups["step"], trace.groups["lr"], strict=True))
        assert rates == [of_step[step] for step in steps]
        assert set(rates) == set(trace.groups["lr"])


def test_map_is_zero_where_bits_are_equal_and_its_first_difference_is_marked(pair, runs):
    z = pair.run("return document.getElementById('map').data[0].z.map((row) => Array.from(row))")
    names = pair.run("return document.getElementById('map').data[0].y")
    a, b = (optrace.open(path).table("tensors", quantity="update") for path in runs)
    for name, row in zip(names, z, strict=True):
        left, right = (frame[frame["param"] == name] for frame in (a, b))
        equal = (left["fingerprint"].to_numpy() == right["fingerprint"].to_numpy()).tolist()
        drawn = [value is None for value in row]
        assert drawn == (equal if len(left) else [True] * len(row)), name
        if len(left) and not all(equal):
            x, y = (frame["l2"].to_numpy() for frame in (left, right))
            assert all(10 ** (v + 0.02) >= abs(p - q) / max(p, q) for v, p, q in zip(row, x, y, strict=True) if v)
    marked = pair.run("const d = document.getElementById('map').data[1]; return [d.x[0], d.y[0]]")
    first = optrace.diff(*runs).first
    assert marked == [first.step, first.param]
    assert pair.run("return document.getElementById('map').layout.shapes[0].x0") == first.step


def test_hover_reads_a_cell_click_chooses_its_parameter_and_dragging_zooms(pair):
    names = pair.run("return document.getElementById('map').data[0].y")
    x, y = cell(pair, 12, names.index("2.bias"))
    pair.mouse("mouseMoved", x - 3, y)
    pair.mouse("mouseMoved", x, y)
    time.sleep(0.4)
    assert pair.text("#hover").startswith("step 12, 2.bias: update differs by ")
    pair.mouse("mousePressed", x, y)
    pair.mouse("mouseReleased", x, y)
    time.sleep(0.5)
    assert names[int(pair.run("return document.getElementById('param').value"))] == "2.bias"
    left, top = cell(pair, 5, 0)
    right, bottom = cell(pair, 15, 2)
    pair.mouse("mousePressed", left, top)
    for part in (0.3, 0.6, 1.0):
        pair.mouse("mouseMoved", left + part * (right - left), top + part * (bottom - top))
    pair.mouse("mouseReleased", right, bottom)
    time.sleep(0.5)
    low, high = pair.run("return document.getElementById('map')._fullLayout.xaxis.range")
    assert abs(low - 5) < 1 and abs(high - 15) < 1


def test_choosing_a_parameter_or_another_quantity_redraws(pair, runs):
    pair.run(
        "const s = document.getElementById('param'); s.value = '2'; s.dispatchEvent(new Event('change'));"
        "const q = document.getElementById('quantity'); q.value = 'param'; q.dispatchEvent(new Event('change'))"
    )
    time.sleep(0.6)
    name = pair.run("return document.getElementById('param').selectedOptions[0].text")
    rows = optrace.open(runs[0]).table("tensors", param=name, quantity="update")
    assert np.allclose(line(pair, "#norms > div:nth-child(1)", 0)[1], rows["l2"], rtol=1e-6, atol=0)
    z = pair.run("return document.getElementById('map').data[0].z.map((row) => Array.from(row))")
    assert len(z) == len(optrace.open(runs[0]).params)


def test_provenance_and_events_are_shown(pair):
    assert "torch.version" in pair.text("#provenance") and torch.__version__ in pair.text("#provenance")
    kinds = pair.run("return document.getElementById('losses').data.filter((d) => d.yaxis === 'y2').map((d) => d.y[0])")
    assert {"user", "clip"} <= set(kinds)


def test_one_run_shows_ratios_groups_clips_and_dead_parameters(one, runs):
    trace = optrace.open(runs[1])
    update, param = (trace.table("tensors", param="0.weight", quantity=q)["l2"].to_numpy() for q in ("update", "param"))
    z = one.run("const d = document.getElementById('map').data[0]; return Array.from(d.z[d.y.indexOf('0.weight')])")
    assert np.allclose(np.array(z, float), np.log10(update / param[1:]), atol=0.011)
    health = one.run("return Array.from(document.querySelectorAll('#health tr')).map((r) => r.innerText)")
    assert any(row.startswith("unused") and "dead: never a gradient" in row for row in health)
    assert "momentum" in one.text(".groups")
    assert "30 clips" in one.text("main")


def test_norms_of_what_has_nothing_finite_are_gaps_and_not_zeros(tmp_path):
    param = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([param], lr=0.1)
    with optrace.record(tmp_path / "run", quiet=True):
        for grad in ([1.0, 2.0], [float("inf"), 2.0], [float("nan"), float("inf")], [1.0, 1.0]):
            param.grad = torch.tensor(grad)
            optimizer.step()
    trace = optrace.open(tmp_path / "run")
    grid = read_grid(trace, 0, trace.params["param"].tolist(), np.arange(1, 5), compare=False)
    assert np.array_equal(grid.l2["grad"][0], [5**0.5, 2.0, np.nan, 2**0.5], equal_nan=True)
    assert grid.n_bad[0].tolist() == [0, 2, 4, 2]  # of gradient and parameter together


def test_page_follows_the_colour_scheme(browser, runs, tmp_path):
    path = optrace.report(runs[0], output=tmp_path / "one.html")
    seen = []
    for dark in (False, True):
        browser.dark(dark)
        browser.open(path)
        seen.append(browser.run("return document.getElementById('map')._fullLayout.font.color"))
    browser.dark(False)
    assert seen == ["#1b1f24", "#e6edf3"]
    assert browser.errors() == []


def test_names_and_values_of_a_hostile_trace_stay_text(browser, tmp_path):
    net = Named()
    optimizer = torch.optim.SGD([{"params": net.parameters(), "name": HOSTILE}], lr=0.1)
    with optrace.record(tmp_path / "run", quiet=True):
        for _ in range(4):
            optimizer.zero_grad()
            net(torch.ones(1)).backward()
            optimizer.step()
            optrace.event(HOSTILE, **{"text": HOSTILE})
    info = tmp_path / "run" / "trace.json"
    told = json.loads(info.read_text())
    info.write_text(json.dumps(told | {"command": [HOSTILE], HOSTILE: HOSTILE}))
    for args in ([tmp_path / "run"], [tmp_path / "run", tmp_path / "run"]):
        browser.open(optrace.report(*args, output=tmp_path / "page.html"))
        assert browser.run("return window.hit === undefined && document.images.length === 0")
        assert HOSTILE.partition("%")[0].replace(".", ",") in browser.text("#health")
        assert HOSTILE in browser.text("#provenance")
        x, y = cell(browser, 2, 0)
        browser.mouse("mouseMoved", x - 2, y)
        browser.mouse("mouseMoved", x, y)
        time.sleep(0.4)
        assert browser.run("return window.hit === undefined && document.images.length === 0")
        assert browser.errors() == [] and browser.requests() == []
