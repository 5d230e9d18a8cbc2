"""A resumed run is compared with the run it continues: what it took over, what it lost, and where."""

from __future__ import annotations

import copy

import pytest
import torch

import optrace

pytestmark = pytest.mark.usefixtures("only_what_is_new")

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    torch.manual_seed(0)
    net, x, y = torch.nn.Linear(3, 2), torch.randn(8, 3), torch.randn(8, 2)

    def make(net):
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 5)

    def train(net, optimizer, scheduler, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            (net(x) - y).square().mean().backward()
            optimizer.step()
            scheduler.step()

    optimizer, scheduler = make(net)
    with optrace.record(folder / "full", quiet=True):
        train(net, optimizer, scheduler, 6)
        saved = copy.deepcopy((net.state_dict(), optimizer.state_dict(), scheduler.state_dict()))
        train(net, optimizer, scheduler, 6)

    def resumed(name, load):
        with optrace.record(folder / name, quiet=True):
            again = torch.nn.Linear(3, 2)
            again.load_state_dict(saved[0])
            optimizer, scheduler = make(again)
            load(optimizer, scheduler)
            train(again, optimizer, scheduler, 6)
        return optrace.diff(folder / "full", folder / name)

    return saved, resumed


@pytest.fixture
def runs(recorded):
    """What was saved, and what records a run that loads it: `load_state_dict` keeps the tensors that it is given."""
    saved, resumed = recorded
    return copy.deepcopy(saved), resumed


def test_a_good_resume_takes_everything_over(runs):
    (_, optimizer_state, scheduler_state), resumed = runs
    report = resumed("good", lambda o, s: (o.load_state_dict(optimizer_state), s.load_state_dict(scheduler_state)))
    assert report.same
    assert report.resume == (
        "random state differs",  # making the second network drew numbers
        "equal: params, state.exp_avg, state.exp_avg_sq, step counter, lr, scheduler",
        "not recorded: data",
    )


def test_state_that_was_never_loaded_was_lost_at_load(runs):
    (_, _, scheduler_state), resumed = runs
    report = resumed("no_state", lambda o, s: s.load_state_dict(scheduler_state))
    assert not report.same
    assert "state.exp_avg not restored (lost at load: no state of an optimizer with it was loaded)" in report.resume
    assert "lr differs: 0.001 in full, 0.01 in no_state" in report.resume
    assert any(line.startswith("equal: params, scheduler") for line in report.resume)
    assert any(note.startswith("resume: lr differs") for note in report.as_dict()["notes"])


def test_state_that_was_loaded_and_thrown_away_was_lost_after(runs):
    (_, optimizer_state, scheduler_state), resumed = runs

    def load(optimizer, scheduler):
        optimizer.load_state_dict(optimizer_state)
        scheduler.load_state_dict(scheduler_state)
        for state in optimizer.state.values():
            state["exp_avg"].zero_()

    report = resumed("zeroed", load)
    assert "state.exp_avg differs (it was loaded, and lost after)" in report.resume


def test_what_lies_within_tolerance_was_not_lost(runs):
    """As after a resume in another layout: the moments are the other run's but for a bit."""
    (_, optimizer_state, scheduler_state), resumed = runs

    def load(optimizer, scheduler):
        optimizer.load_state_dict(optimizer_state)
        scheduler.load_state_dict(scheduler_state)
        for state in optimizer.state.values():
            state["exp_avg"].copy_(torch.nextafter(state["exp_avg"], torch.tensor(1.0)))
        optimizer.param_groups[0]["foreach"] = True

    report = resumed("one_bit", load)
    assert report.same and not report.exact.same
    assert report.resume[0] == "within tolerance, as the steps before it: state.exp_avg"
    assert not any("lost" in line for line in report.resume)


def test_a_scheduler_that_starts_anew_is_told(runs):
    (_, optimizer_state, _), resumed = runs
    report = resumed("no_scheduler", lambda o, s: o.load_state_dict(optimizer_state))
    assert "scheduler differs: 7 in full, 1 in no_scheduler" in report.resume


def test_runs_that_start_alike_resume_nothing(runs, tmp_path):
    for name in ("a", "b"):
        p = torch.ones(2, requires_grad=True)
        optimizer = torch.optim.SGD([p], lr=0.1)
        with optrace.record(tmp_path / name, quiet=True):
            p.sum().backward()
            optimizer.step()
    assert optrace.diff(tmp_path / "a", tmp_path / "b").resume == ()
