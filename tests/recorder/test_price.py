"""The price that is told counts hooks, observed calls and what training loses to caches, of typical steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter

import pytest
import torch

import optrace
from optrace.recorder.price import CACHES, EACH, QUICK, QUICK_STEPS, STEPS, Mark, ObservedCall, Price
from optrace.recorder.session import Session


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    optrace.stop()


def marked(price: Price, count: int, period: float, hooks: float) -> list[bool]:
    """Steps of `period` seconds, `hooks` of them in the hooks, with two observed calls beside the backward."""
    return [price.step_ended(Mark(n * period, n * hooks, 0.0, 16 * n, 5000 * n, 4 * n, n)) for n in range(1, count + 1)]


def test_the_share_counts_observed_calls_and_the_hooks_own() -> None:
    price = Price()
    price.observed(ObservedCall(5e-6, 15e-6), ObservedCall(5e-6, 15e-6))
    marked(price, 10, 300e-6, 60e-6)
    assert "16 rows, 5 kB" in str(price.line(0))
    taken = 60e-6 + 15e-6 + 3 * 5e-6  # zero_grad, scheduler and the step itself beside the backward
    assert price.share == pytest.approx(taken / (300e-6 - taken))


def test_training_is_taken_to_lose_to_caches_what_the_recorder_does() -> None:
    price = Price()
    price.observed(ObservedCall(5e-6, 15e-6), ObservedCall(2e-6, 8e-6))
    marked(price, 10, 300e-6, 60e-6)
    price.line(0)
    taken = 1.5 * (60e-6 + 15e-6 + 3 * 5e-6)  # half of a call's time was lost
    assert price.share == pytest.approx(taken / (300e-6 - taken))


def test_what_is_lost_to_caches_is_bounded() -> None:
    price = Price()
    price.observed(ObservedCall(5e-6, 15e-6), ObservedCall(2e-6, 8e-6))
    marked(price, 10, 1.0, 0.04)
    price.line(0)
    taken = 0.04 + 30e-6 + CACHES
    assert price.share == pytest.approx(taken / (1 - taken))


@pytest.mark.parametrize(
    ("hooks", "words"), [(0.02, "2 % "), (0.6, "150 % "), (0.99, "over 1,000 % "), (2.0, "over 1,")]
)
def test_a_share_is_told_in_words_that_people_read(hooks: float, words: str) -> None:
    price = Price()
    marked(price, 10, 1.0, hooks)
    assert f"and {words}" in str(price.line(0))


def test_quick_steps_are_waited_out_and_slow_ones_are_not() -> None:
    assert marked(Price(), QUICK_STEPS + 1, 1e-4, 1e-5).index(True) == QUICK_STEPS
    assert marked(Price(), 10, 1.0, 0.1).index(True) == STEPS
    assert marked(Price(), 10, QUICK / 5, 0.01).index(True) == 5
    assert Price().step_ended(Mark(0, 0, 0, 0, 0, 0, 0), soon=True) is False


def test_what_is_told_of_small_steps_is_more_than_their_hooks(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    spent, periods = [], []
    with optrace.record(tmp_path / "run", quiet=True) as session:
        while session.price.share is None:
            hooks, start = session.price.hooks, perf_counter()
            optimizer.zero_grad()
            weight.sum().backward()
            optimizer.step()
            periods.append(perf_counter() - start)
            spent.append(session.price.hooks - hooks)
    assert STEPS < len(spent) <= QUICK_STEPS + 1
    assert len(session.price._observed) == (len(spent) - 1) // EACH + 1
    hooks, period = median(spent), median(periods)
    assert session.price.share > hooks / (period - hooks)


def test_taking_the_price_is_no_event_and_no_part_of_a_step(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with optrace.record(tmp_path / "run", quiet=True):
        for _ in range(6):
            optimizer.zero_grad()
            weight.sum().backward()
            optimizer.step()
    events = optrace.open(tmp_path / "run").events
    assert list(events["kind"][events["kind"] != "recorder"]) == ["zero_grad", "backward", "step"] * 6
    assert list(events["seq"]) == list(range(1, len(events) + 1))


def test_taking_the_price_looks_for_no_work_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backwards without a step would be looked into, which takes longer than all that is priced."""
    looked: list[Session] = []
    monkeypatch.setattr(Session, "_suspect_hand_work", looked.append)
    net = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with optrace.record(tmp_path / "run", quiet=True) as session:
        for _ in range(70):
            optimizer.zero_grad()
            net(torch.ones(1, 2)).sum().backward()
            optimizer.step()
        assert session.price.told
    assert not looked
