"""Rows that only some recordings have: updates known at the sample, state that is gone, gradients of micro-batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hand_made import ENVIRONMENT, TorchHand, sgd

from optrace import diff
from optrace.trace.measure import fingerprint, measure_array

OTHER_THREADS = {**ENVIRONMENT, "threads": {"intra": 2, "inter": 1}}


@pytest.fixture
def sampled_updates(monkeypatch):
    """Makes recordings as a recorder does that had no memory for a copy: updates known at the sample only."""
    import hand_made

    def measure(elements, update):
        row = measure_array(elements)
        if update:
            for name in ("mean", "l1", "l2", "min", "max"):
                row[name] = np.nan
            for name in ("n_nan", "n_inf", "n_zero"):
                row[name] = -1
            row["fingerprint"] = np.uint64(fingerprint(row["sample"])).astype(np.int64)
        return row

    def switch(on):
        write = hand_made.Hand.write

        def patched(self, index, step, rows, *more):
            queue = [row[2] == "update" and on for row in rows if row[4] is not None]
            numbers = iter(queue)
            monkeypatch.setattr(hand_made, "measure_array", lambda elements: measure(elements, next(numbers)))
            write(self, index, step, rows, *more)

        monkeypatch.setattr(hand_made.TorchHand, "write", patched)

    return switch


def grow(step, net, optimizer):
    if step == 3:
        with torch.no_grad():
            net[0].weight.mul_(1.01)


def test_update_known_at_its_sample_is_no_difference_to_a_whole_one(runs, sampled_updates):
    a = runs("a")
    sampled_updates(True)
    b, c = runs("b"), runs("c", environment=OTHER_THREADS)
    again, wrong = runs("again"), runs("wrong", tamper=grow)
    loose = runs("loose", tamper=grow, environment=OTHER_THREADS)
    for one, other in ((a, b), (b, a), (a, c), (b, again)):
        report = diff(one, other)
        assert report.same and report.exact.n_different == 0, str(report)
    for one, other in ((a, wrong), (b, wrong), (a, loose), (b, loose)):
        assert (diff(one, other).first.step, diff(one, other).first.quantity) == (3, "update")


def lose(tmp_path, name, gone, environment=ENVIRONMENT):
    """Two steps of SGD; between them the momentum of the first parameter is lost, or is not."""
    torch.set_num_threads(1)
    params = [torch.nn.Parameter(torch.arange(1.0, 5.0)), torch.nn.Parameter(torch.ones(3))]
    optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9, foreach=False)
    hand = TorchHand(tmp_path / name, environment=environment)
    hand.begin(0, optimizer, {id(p): f"p{n}" for n, p in enumerate(params)})
    for step in (1, 2):
        for p in params:
            p.grad = torch.ones_like(p) * step
        extra = []
        if gone and step == 2:
            del optimizer.state[params[0]]
            extra = [(0, "p0", "state_in.momentum_buffer", "float32", None)]
        hand.step(0, optimizer, extra=extra)
    return str(hand.close())


@pytest.mark.parametrize("environment", [ENVIRONMENT, OTHER_THREADS], ids=["exact", "tolerance"])
def test_state_that_is_gone_before_a_step_is_where_two_runs_part(tmp_path, environment):
    a, b = lose(tmp_path, "a", False), lose(tmp_path, "b", True, environment)
    report = diff(a, b)
    assert (report.first.step, report.first.param) == (2, "p0")
    assert (report.first.quantity, report.first.kind) == ("state_in.momentum_buffer", "none")
    assert (report.first.a, report.first.b) == ("a tensor", None)
    assert str(report).splitlines()[0] == (
        "b differs from a - since step 2, in the state momentum_buffer before the step: that of p0 is gone in b"
    )
    assert not {cause.code for cause in report.causes if cause.claimed} & {"grad-missing", "param-frozen"}
    assert diff(b, lose(tmp_path, "c", True)).same


def with_micro(tmp_path, name, wrong=1.0, rows=True, environment=ENVIRONMENT):
    torch.set_num_threads(1)
    p = torch.nn.Parameter(torch.arange(1.0, 5.0))
    optimizer = torch.optim.SGD([p], lr=0.1, foreach=False)
    hand = TorchHand(tmp_path / name, environment=environment)
    hand.begin(0, optimizer, {id(p): "p"})
    for step in (1, 2):
        extra, p.grad = [], torch.zeros(4)
        for k in (1, 2):
            p.grad += torch.ones(4) * k * (wrong if (step, k) == (2, 1) else 1.0)
            extra.append((0, "p", f"grad_micro.{k}", "float32", p.grad.numpy().copy()))
        hand.step(0, optimizer, extra=extra if rows else ())
    return str(hand.close())


def test_gradient_of_a_micro_batch_is_told_before_that_of_the_step_and_judged_like_it(tmp_path):
    a = with_micro(tmp_path, "a")
    report = diff(a, with_micro(tmp_path, "b", wrong=1.5))
    assert (report.first.step, report.first.quantity) == (2, "grad_micro.1")
    near = with_micro(tmp_path, "c", wrong=1 + 40 * 2.0**-23, environment=OTHER_THREADS)
    assert diff(a, near).same, "64 eps are granted to gradients of other kernels"
    without = diff(a, with_micro(tmp_path, "d", rows=False))
    assert without.same and any("grad_micro.1" in note for note in without.notes)


def test_state_that_was_infinite_on_both_sides_raises_no_warning(runs):
    def explode(step, net, optimizer):
        if step >= 2:
            optimizer.state[net[0].weight]["momentum_buffer"][0, 0] = float("inf")

    a = runs("a", sgd(), tamper=explode, steps=4)
    report = diff(a, runs("b", sgd(), tamper=explode, steps=4, environment=OTHER_THREADS))
    assert report.same


def test_gradients_recorded_without_samples_are_not_called_accumulated(runs):
    def other(step, net, optimizer):
        if step == 4:
            net[0].weight.grad[0, 0] += 1

    report = diff(runs("a", samples=False), runs("b", change=other, samples=False))
    assert (report.first.step, report.first.quantity) == (4, "grad")
    assert "grad-accumulated" not in {cause.code for cause in report.causes if cause.claimed}, str(report)
