"""The example that the project comes from, recorded for real: two layers, two groups, SGD with StepLR."""

from __future__ import annotations

import pytest
import torch

import optrace
from optrace.compare.report import Place

pytestmark = pytest.mark.usefixtures("only_what_is_new")


def train(folder, *, momentum=0.9, gamma=0.5, slow=0.001, steps=12, hurt=None):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(1, 10), torch.nn.Linear(10, 1))
    x = torch.linspace(-1, 1, 11).reshape(11, 1)
    groups = [{"params": net[0].parameters()}, {"params": net[1].parameters(), "lr": slow}]
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=momentum)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5, gamma)
    with optrace.record(str(folder), quiet=True):
        for step in range(1, steps + 1):
            optimizer.zero_grad()
            ((net(x) - 3 * x - 0.5) ** 2).mean().backward()
            if hurt is not None:
                hurt(step, net)
            optimizer.step()
            scheduler.step()
    return str(folder)


@pytest.mark.parametrize(
    ("change", "step", "group", "quantity", "values"),
    [
        ({"slow": 0.002}, 1, 1, "hyper.lr", (0.001, 0.002)),
        ({"momentum": 0.8}, 1, 0, "hyper.momentum", (0.9, 0.8)),
        ({"gamma": 0.1}, 6, 0, "hyper.lr", (0.005, 0.001)),
    ],
)
def test_one_changed_hyper_parameter_is_found_at_its_step_group_and_key(
    tmp_path, change, step, group, quantity, values
):
    report = optrace.diff(train(tmp_path / "a"), train(tmp_path / "b", **change))
    first = report.first
    assert (first.step, first.group, first.quantity) == (step, group, quantity)
    assert (first.a, first.b) == pytest.approx(values, rel=1e-12)


def test_the_same_program_twice_is_the_same_to_the_bit(tmp_path):
    report = optrace.diff(train(tmp_path / "a"), train(tmp_path / "b"))
    assert report.same and report.lane == "exact" and report.exact.n_different == 0


def test_a_gradient_that_is_scaled_once_is_found_there(tmp_path):
    def hurt(step, net):
        if step == 7:
            net[1].weight.grad.mul_(2)

    report = optrace.diff(train(tmp_path / "a"), train(tmp_path / "b", hurt=hurt))
    assert report.first.place == Place(7, 0, 1, report.first.param, "grad")
    assert report.first.param.endswith("1.weight")


def test_every_kth_step_recorded_compares_with_every_step(tmp_path):
    a = train(tmp_path / "a")
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        record = optrace.record
        patch.setattr(optrace, "record", lambda folder, **options: record(folder, every=4, **options))
        b = train(tmp_path / "b")
    report = optrace.diff(a, b)
    assert report.same, str(report)
    assert any("told not to record" in note for note in report.notes)
