"""`--noise A2`: what the reference's own noise explains is no difference, and what goes beyond it is."""

from __future__ import annotations

import pytest
import torch
from hand_made import adamw, sgd

from optrace import diff
from optrace.errors import CompareError


def noisy(seed, size=1e-4, at=None, by=1.0):
    """Gradients as kernels give them that add in another order each time; at one step one is wrong by a factor."""
    generator = torch.Generator().manual_seed(seed)

    def change(step, net, optimizer):
        for p in net.parameters():
            spread = p.grad.square().mean().sqrt()
            p.grad.add_(torch.randn(p.shape, generator=generator) * spread * size)
        if step == at:
            next(net.parameters()).grad.mul_(by)

    return change


@pytest.mark.parametrize("maker", [sgd, adamw])
def test_within_the_noise_of_a_the_verdict_is_same_and_the_report_says_noise(runs, maker):
    a, again, b = (runs(name, maker(), change=noisy(seed)) for seed, name in enumerate(("a", "again", "b")))
    assert not diff(a, b).same
    report = diff(a, b, noise=again)
    assert (report.verdict, report.lane) == ("same", "tolerance"), str(report)
    assert any(line.startswith("  noise") for line in str(report).splitlines())
    assert any(note.startswith("noise of a by again: up to ") for note in report.notes)
    assert [cause.code for cause in report.causes] == ["noise"]


@pytest.mark.parametrize("step", [1, 6])
def test_beyond_three_times_the_noise_is_a_difference(runs, step):
    a, again = runs("a", change=noisy(1)), runs("again", change=noisy(2))
    b = runs("b", change=noisy(3, at=step, by=1.01))
    report = diff(a, b, noise=again)
    assert (report.first.step, report.first.quantity, report.first.param) == (step, "grad", "0.weight")


def test_wrong_rule_is_found_beneath_noisy_gradients(runs):
    a, again = runs("a", change=noisy(1)), runs("again", change=noisy(2))
    report = diff(a, runs("b", sgd(momentum=0.8), change=noisy(3)), noise=again)
    assert not report.same and report.first.quantity == "hyper.momentum"

    def half(step, net, optimizer):
        if step == 3:
            with torch.no_grad():
                next(net.parameters()).add_(next(net.parameters()).grad * 0.01)

    report = diff(a, runs("c", tamper=half, change=noisy(3)), noise=again)
    assert (report.first.step, report.first.quantity) == (3, "update")


def test_reference_that_repeats_itself_to_the_bit_forgives_no_bit(runs):
    def one_ulp(step, net, optimizer):
        if step == 3:
            with torch.no_grad():
                weight = next(net.parameters())
                weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))

    a, again = runs("a"), runs("again")
    report = diff(a, runs("b", tamper=one_ulp), noise=again)
    assert (report.lane, report.verdict) == ("exact", "differ")
    assert "no noise: again repeats a to the bit at all steps that both have" in report.notes
    assert diff(a, runs("c"), noise=again).same


def test_parameter_without_noise_gets_none_from_the_others(runs):
    def first_only(seed, also=None):
        add = noisy(seed)

        def change(step, net, optimizer):
            kept = [p.grad.clone() for p in net.parameters()]
            add(step, net, optimizer)
            for p, grad in list(zip(net.parameters(), kept, strict=True))[1:]:
                p.grad.copy_(grad)
            if step == 1 and also:
                net[2].bias.grad.mul_(also)

        return change

    a, again = runs("a", change=first_only(1), steps=1), runs("again", change=first_only(2), steps=1)
    assert diff(a, runs("b", change=first_only(3), steps=1), noise=again).same
    report = diff(a, runs("c", change=first_only(3, also=1 + 4e-5), steps=1), noise=again)
    assert (report.first.param, report.first.quantity) == ("2.bias", "grad")


def test_second_recording_that_is_shorter_says_so(runs):
    a, again = runs("a", change=noisy(1)), runs("again", change=noisy(2), steps=4)
    report = diff(a, runs("b", change=noisy(3)), noise=again)
    assert "again ends at step 4; after it the largest noise until there is used" in report.notes


def test_floor_does_not_depend_on_how_a_run_is_cut_into_stretches(runs, monkeypatch):
    import optrace.compare.walk as walk

    a, again = runs("a", change=noisy(1), steps=12), runs("again", change=noisy(2), steps=12)
    b = runs("b", change=noisy(3, at=9, by=1.001), steps=12)
    whole = diff(a, b, noise=again)
    monkeypatch.setattr(walk, "CELLS_AT_ONCE", 60)
    parts = diff(a, b, noise=again)
    assert (whole.first, whole.tolerance, whole.notes) == (parts.first, parts.tolerance, parts.notes)


def test_noise_and_exact_exclude_each_other_and_a_strange_run_is_refused(runs):
    a, b = runs("a", steps=1), runs("b", steps=1)
    with pytest.raises(CompareError, match="ask for one of the two"):
        diff(a, b, noise=a, exact=True)
    with pytest.raises(CompareError, match="no parameter in common"):
        diff(a, b, noise=runs("c", adamw(), prefix="other.", steps=1))
