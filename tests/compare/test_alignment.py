"""Which step is which: resumed runs, stretches, gaps, and what one side lacks."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from hand_made import TorchHand, adamw, model, names_of, sgd

from optrace.compare.run import diff
from optrace.errors import CompareError


def record(folder, steps, make=None, checkpoint=None, keep=lambda state: state, **hand):
    """Train `steps` (a range, for the data), from a checkpoint if one is given; the folder and a checkpoint."""
    torch.set_num_threads(1)
    net = model()
    optimizer = (make or adamw())(net)
    if checkpoint is not None:
        net.load_state_dict(checkpoint[0])
        loaded = keep(checkpoint[1])
        if loaded is not None:
            optimizer.load_state_dict(copy.deepcopy(loaded))
    recording = TorchHand(folder, **hand)
    recording.begin(0, optimizer, names_of(net))
    for step in steps:
        x = torch.randn(6, 5, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (net(x) ** 2).mean().backward()
        recording.step(0, optimizer)
    clone = {k: v.clone() for k, v in net.state_dict().items()}
    return str(recording.close()), (clone, copy.deepcopy(optimizer.state_dict()))


@pytest.mark.parametrize("make", [adamw(), sgd(), sgd(momentum=0.0)])
def test_resumed_run_is_aligned_with_the_run_that_it_continues(tmp_path, make):
    a, _ = record(tmp_path / "a", range(1, 11), make)
    _, checkpoint = record(tmp_path / "half", range(1, 7), make)
    b, _ = record(tmp_path / "b", range(7, 11), make, checkpoint)
    report = diff(a, b)
    assert report.same, str(report)
    assert "step 1 of b is taken for step 7 of a" in str(report).splitlines()[0]
    assert report.extent.steps == 5  # 7 to 10, and step 6 as the world before


def test_moments_lost_on_resume_are_missing_at_the_step_where_they_were(tmp_path):
    a, _ = record(tmp_path / "a", range(1, 11))
    _, checkpoint = record(tmp_path / "half", range(1, 7))
    b, _ = record(tmp_path / "b", range(7, 11), checkpoint=checkpoint, keep=lambda state: None)
    report = diff(a, b)
    assert not report.same and report.alignment is not None
    assert report.first.kind == "missing" and (report.first.step, report.first.step_b) == (6, 0)
    assert report.first.quantity.startswith("state.")
    assert "state.exp_avg of 0.weight at step 6" in report.only_in_a


def test_run_that_starts_with_a_counter_but_other_values_is_aligned_by_the_counter(tmp_path):
    a, _ = record(tmp_path / "a", range(1, 11))
    _, checkpoint = record(tmp_path / "half", range(1, 7))
    checkpoint[0]["0.bias"] += 1.0
    b, _ = record(tmp_path / "b", range(7, 11), checkpoint=checkpoint)
    report = diff(a, b)
    assert "starts with step counter 6" in (report.alignment or "")
    assert (report.first.step, report.first.param, report.first.quantity) == (6, "0.bias", "param")


def test_two_runs_from_one_checkpoint_are_compared_by_number(tmp_path):
    _, checkpoint = record(tmp_path / "half", range(1, 7))
    a, _ = record(tmp_path / "a", range(7, 11), checkpoint=checkpoint)
    b, _ = record(tmp_path / "b", range(7, 11), checkpoint=checkpoint)
    report = diff(a, b)
    assert report.same and report.alignment is None


def test_align_overrides(tmp_path):
    a, _ = record(tmp_path / "a", range(1, 11))
    _, checkpoint = record(tmp_path / "half", range(1, 7))
    b, _ = record(tmp_path / "b", range(7, 11), checkpoint=checkpoint)
    report = diff(a, b, align="8:1")
    assert not report.same and "aligned as asked: step 1 of b is step 8 of a" in str(report)
    assert diff(a, b, align=(7, 1)).same
    assert (report.first.step, report.first.step_b, report.first.quantity) == (7, 0, "param")
    assert "in the start values" in str(report).splitlines()[0]
    with pytest.raises(CompareError, match="is no I:J"):
        diff(a, b, align="8")


def test_stretches_limit_what_is_compared(runs):
    def change(step, net, optimizer):
        if step == 6:
            next(net.parameters()).grad.mul_(2)

    a, b = runs("a"), runs("b", change=change)
    assert diff(f"{a}@1:5", b).same
    assert diff(f"{a}@1:5", b).extent.steps == 5
    assert diff(a, f"{b}@:5").same
    assert diff(f"{a}@6:", b).first.step == 6
    with pytest.raises(CompareError, match=r"no step in common: a@1:2 has 1-2, b@5:6 has 5-6; .*--align 1:5"):
        diff(f"{a}@1:2", f"{b}@5:6")


def test_a_shorter_run_is_the_same_as_far_as_it_goes_and_the_rest_is_noted(runs):
    report = diff(runs("a", steps=8), runs("b", steps=5))
    assert report.same and report.extent.steps == 5
    assert "a has 3 later steps (6-8); b has not" in report.notes


def test_a_step_missing_in_the_middle_is_a_difference(runs):
    report = diff(runs("a"), runs("b", record=lambda step: step != 4))
    assert not report.same
    assert (report.first.kind, report.first.quantity, report.first.step) == ("missing", "step", 4)
    assert report.only_in_a == ("steps 4",)


def test_steps_that_a_recorder_was_told_to_skip_are_not_missing(runs):
    report = diff(runs("a"), runs("b", record=lambda step: step % 3 == 1, settings={"every": 3}))
    assert report.same
    assert any("was told not to record them" in note for note in report.notes)


def test_quantities_that_a_recorder_was_told_to_skip_are_not_missing(runs, monkeypatch):
    import hand_made

    a = runs("a")
    monkeypatch.setattr(hand_made.TorchHand, "state_rows", lambda *_: [])
    b = runs("b", settings={"quantities": ["param", "grad", "update"]})
    assert diff(a, b).same
    c = runs("c")
    report = diff(a, c)
    assert not report.same and report.first.quantity == "state.momentum_buffer"


def test_one_lost_row_is_missing(tmp_path):
    def make(name, lose):
        torch.set_num_threads(1)
        net = model()
        optimizer = sgd()(net)
        hand = TorchHand(tmp_path / name)
        hand.begin(0, optimizer, names_of(net))
        write = hand.write
        hand.write = lambda i, s, rows, *more: write(
            i, s, [r for r in rows if not (lose and s == 2 and r[1:3] == ("0.bias", "grad"))], *more
        )
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.ones(2, 5)).sum().backward()
            hand.step(0, optimizer)
        return str(hand.close())

    report = diff(make("a", False), make("b", True))
    assert not report.same
    assert (report.first.step, report.first.param, report.first.quantity) == (2, "0.bias", "grad")
    assert report.only_in_a == ("grad of 0.bias at step 2",)


def test_killed_run_is_compared_up_to_its_last_whole_step(tmp_path):
    def make(name, killed):
        torch.set_num_threads(1)
        net = model()
        optimizer = sgd()(net)
        hand = TorchHand(tmp_path / name)
        hand.begin(0, optimizer, names_of(net))
        for _ in range(4):
            optimizer.zero_grad()
            net(torch.ones(2, 5)).sum().backward()
            hand.step(0, optimizer)
        if killed:
            shutil.copytree(tmp_path / name, tmp_path / "torn")
        return str(hand.close())

    a = make("a", False)
    make("whole", True)
    events = tmp_path / "torn" / "rank=00000" / "events-00000001.arrows"
    events.write_bytes(events.read_bytes()[:-40])
    report = diff(a, tmp_path / "torn")
    assert report.same and report.extent.steps == 3
    assert "a has 1 later step (4); torn has not" in report.notes
