"""How small an error is found: 1e-5 of one update between equal implementations, early and late; else it is told."""

from __future__ import annotations

import re

import pytest
import torch
from hand_made import ENVIRONMENT, TorchHand

from optrace import diff

OTHER_THREADS = {**ENVIRONMENT, "threads": {"intra": 2, "inter": 1}}
LAST = 10_000


def record(tmp_path, name, wrong_at=None, wrong=0.0, environment=ENVIRONMENT):
    """10,000 steps of AdamW, of which the first and the last ten are recorded; one update is off by a factor."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(40, generator=generator) * 0.02), torch.nn.Parameter(torch.zeros(6))]
    optimizer = torch.optim.AdamW(params, lr=3e-2, weight_decay=0.0, foreach=False)
    hand = TorchHand(tmp_path / name, environment=environment, settings={"steps": [[1, 10], [LAST - 9, LAST]]})
    hand.begin(0, optimizer, {id(p): f"p{n}" for n, p in enumerate(params)})
    grads = torch.randn(4, 46, generator=generator)
    grads = torch.stack([grads, -grads], 1).reshape(8, 46)  # so that the parameters stay where they are
    for step in range(1, LAST + 1):
        for p, grad in zip(params, grads[step % 8].split([40, 6]), strict=True):
            p.grad = grad.clone()
        if 10 < step < LAST - 9:
            optimizer.step()
            hand.known[0]["step"] += 1
            continue
        before = params[0].detach().clone()

        def tamper(step=step, before=before):
            if step == wrong_at:
                with torch.no_grad():
                    params[0].copy_(before + (params[0] - before).double() * (1 + wrong))

        hand.step(0, optimizer, tamper)
    return str(hand.close())


@pytest.mark.parametrize("step", [1, LAST])
def test_error_of_1e_5_in_one_update_is_found(tmp_path, step):
    report = diff(record(tmp_path, "a"), record(tmp_path, "b", step, 1e-5))
    assert report.lane == "exact"
    assert (report.first.step, report.first.quantity, report.first.param) == (step, "update", "p0")


def test_smallest_error_that_would_have_been_found_is_told_and_is_right(tmp_path):
    a = record(tmp_path, "a")
    report = diff(a, record(tmp_path, "b", LAST, 1e-6, OTHER_THREADS))
    assert report.same
    told = next(note for note in report.notes if "would have been found" in note)
    best, worst = (float(number) for number in re.findall(r"from (\S+) (?:of|on)", told))
    assert 1e-7 < best <= worst < 1e-3
    assert diff(a, record(tmp_path, "c", LAST, worst / 20, OTHER_THREADS)).same
    assert diff(a, record(tmp_path, "d", LAST, worst * 3, OTHER_THREADS)).first.quantity == "update"
