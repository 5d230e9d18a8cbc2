"""Batches that the C kernel fills are, byte for byte, those that Python fills."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optrace.trace import batches, group_batches
from optrace.trace.batches import EventBatches, StepBatches, TensorLayout
from optrace.trace.group_batches import GroupBatches
from optrace.trace.measure import ROW, kernel
from optrace.trace.schema import Event

pytestmark = pytest.mark.skipif(kernel is None, reason="without the C kernel all batches are filled by Python")

ODD = ["StepLR", 'a"b', "back\\slash", "tab\t", "ä", "\x7f", "\ud800"]
WORDS = st.one_of(st.text(max_size=12), st.sampled_from(ODD))
VALUES = st.one_of(
    WORDS,
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, -1, 2**63 - 1, -(2**63), 2**63]),
    st.floats(),
    st.lists(st.integers(0, 3), max_size=2),
)
DATA = st.one_of(st.just({}), st.dictionaries(WORDS, VALUES, max_size=3))
EVENTS = st.lists(
    st.builds(
        Event,
        st.integers(0, 2**62),
        st.integers(0, 2**62),
        st.sampled_from(["step", "backward", "zero_grad"]),
        st.integers(-1, 2**31 - 1),
        DATA,
    ),
    min_size=1,
    max_size=4,
)


def of_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_fill_events", None)
    monkeypatch.setattr(batches, "_fill_tensors", None)
    monkeypatch.setattr(batches, "_fill_step", None)
    monkeypatch.setattr(group_batches, "_fill_groups", None)


@settings(max_examples=100, deadline=None)
@given(st.lists(EVENTS, min_size=1, max_size=6))
def test_events_are_filled_alike(several: list[list[Event]]) -> None:
    ours, pythons = EventBatches(), EventBatches()
    for events in several:
        for again in (events, [event._replace(seq=event.seq + 1, step=event.step + 1) for event in events]):
            found = bytes(ours.fill(again))
            with pytest.MonkeyPatch.context() as patch:
                of_python(patch)
                wanted = bytes(pythons.fill(again))
            assert found == wanted


NUMBERS = st.fixed_dictionaries(
    {
        "loss": st.one_of(st.none(), st.floats(), st.integers(-3, 3)),
        "n_backward": st.integers(0, 2**40),
        "n_skipped": st.one_of(st.none(), st.integers(0, 3)),
        "batch": st.one_of(st.none(), st.integers(-(2**63), 2**64 - 1)),
    },
    optional={
        "grad_norm": st.one_of(st.none(), st.floats()),
        "rng": st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
        "seconds": st.one_of(st.none(), st.floats(0, 1e9)),
    },
)


@settings(max_examples=100, deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=4))
def test_rows_of_steps_are_filled_alike(several: list[dict[str, Any]]) -> None:
    ours, pythons = StepBatches(), StepBatches()
    for number, values in enumerate(several):
        for step in (2 * number, 2 * number + 1):
            found = bytes(ours.fill(step, number, values))
            with pytest.MonkeyPatch.context() as patch:
                of_python(patch)
                assert found == bytes(pythons.fill(step, number, values))


SCALARS = st.one_of(st.floats(), st.integers(-3, 3), st.booleans(), st.none(), st.sampled_from(["a", "b"]))
OPTIONS = st.fixed_dictionaries(
    {"lr": SCALARS, "momentum": st.floats()}, optional={"betas": st.tuples(SCALARS, SCALARS)}
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(OPTIONS, min_size=1, max_size=3), min_size=1, max_size=5), st.lists(st.floats(), max_size=5))
def test_options_are_filled_alike(several: list[list[dict[str, Any]]], rates: list[float]) -> None:
    ours, pythons = GroupBatches(), GroupBatches()
    several += [[{**options, "lr": rate} for options in several[-1]] for rate in rates]
    for number, given_options in enumerate(several):
        for groups in (list(enumerate(given_options)), list(enumerate(given_options))):
            message = ours.fill(number, 1, groups)
            found = None if message is None else bytes(message)
            with pytest.MonkeyPatch.context() as patch:
                of_python(patch)
                message = pythons.fill(number, 1, groups)
            assert found == (None if message is None else bytes(message))


def test_a_value_that_changes_within_itself_is_seen() -> None:
    filled, inside = GroupBatches(), [0.5]
    first = bytes(filled.fill(1, 0, [(0, {"lr": 0.1, "betas": inside})]))
    inside[0] = 0.25
    groups = [(0, {"lr": 0.1, "betas": inside})]
    assert bytes(filled.fill(1, 0, groups)) == bytes(GroupBatches().fill(1, 0, groups)) != first


def test_events_like_the_last_are_filled_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    filled = EventBatches()
    first = [Event(1, 0, "zero_grad", 0, {"set_to_none": True}), Event(2, 1, "step", 0, {})]
    filled.fill(first)
    monkeypatch.setattr(batches, "_text", None)  # what takes events apart in Python
    second = [Event(3, 1, "zero_grad", 0, {"set_to_none": False}), Event(4, 2, "step", 0, {})]
    message = bytes(filled.fill(second))
    monkeypatch.undo()
    of_python(monkeypatch)
    assert message == bytes(EventBatches().fill(second))


@pytest.mark.parametrize("count", [1, 3, 200])
def test_rows_are_filled_alike(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(count)
    columns = ([0] * count, [f"p{i}" for i in range(count)], ["grad"] * count, ["float32"] * count, [4] * count)
    ours, pythons = TensorLayout(2, *columns), TensorLayout(2, *columns)
    everything = np.frombuffer(random.bytes(2 * count * ROW.itemsize), ROW)
    for step, rows in enumerate((everything[:count], everything[count:], everything[::2], everything[:count].copy())):
        present = random.random(count) < 0.5
        found = bytes(ours.fill(step, rows, present))
        with monkeypatch.context() as patch:
            of_python(patch)
            assert found == bytes(pythons.fill(step, rows, present))


def test_what_does_not_fit_into_a_batch_is_refused() -> None:
    rows, message, places = bytes(2 * ROW.itemsize), bytearray(600), np.array([0, 16, 16, 160], np.int64).tobytes()
    kernel.fill_tensors(message, places, 7, rows)
    assert message[:16] == np.array([7, 7], np.int64).tobytes()
    for wrong in ([-1, 16, 16, 160], [0, 16, 8, 160], [0, 16, 16, 400], [0, 500, 16, 160], [2**63 - 1, 16, 16, 160]):
        with pytest.raises(ValueError, match="do not fit"):
            kernel.fill_tensors(message, np.array(wrong, np.int64).tobytes(), 7, rows)
    with pytest.raises(ValueError, match="do not fit"):
        kernel.fill_tensors(message, places, 7, rows + b"x")
    with pytest.raises(ValueError, match="four"):
        kernel.fill_tensors(message, b"", 7, rows)
    with pytest.raises(TypeError):
        kernel.fill_tensors(message, places)
    assert kernel.fill_events(message, b"", ("step",), (32,), [Event(1, 1, "step", 0, {})]) is False
    assert kernel.fill_events(message, places, ("step",), (32,), [1]) is False
    with pytest.raises(TypeError):
        kernel.fill_events(message, places, [], (), [])
