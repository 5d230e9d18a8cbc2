"""What an event of the user may hold, and how it is kept."""

from __future__ import annotations

import json
import math
from enum import IntEnum
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optrace.errors import RecordError
from optrace.recorder.events_data import clean_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON)
def test_what_json_can_hold_passes_unchanged(data: Any) -> None:
    assert clean_json(data) == data
    assert json.loads(json.dumps(clean_json(data), allow_nan=False)) == data


def test_single_values_go_by_value() -> None:
    class Phase(IntEnum):
        TRAIN = 3

    tensor = torch.tensor(2.5)
    data = {
        "tensor": tensor,
        "half": torch.tensor(0.1, dtype=torch.bfloat16),
        "flag": torch.tensor(True),
        "array": np.array(3),
        "scalar": np.float32(0.1),
        "phase": Phase.TRAIN,
        "pair": (1, np.int64(2)),
    }
    cleaned = clean_json(data)
    tensor.fill_(9)
    assert cleaned == {
        "tensor": 2.5,
        "half": 0.10009765625,
        "flag": True,
        "array": 3,
        "scalar": float(np.float32(0.1)),
        "phase": 3,
        "pair": [1, 2],
    }
    assert {type(value) for value in json.loads(json.dumps(cleaned)).values()} <= {float, bool, int, list}


def test_numbers_that_json_lacks_become_words() -> None:
    data = [math.nan, math.inf, torch.tensor(-math.inf), np.float64("nan")]
    assert clean_json(data) == ["nan", "inf", "-inf", "nan"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"x": torch.ones(3)}, r"data\['x'\] has the shape \[3\].*x\.item\(\)"),
        ({"x": {"y": [object()]}}, r"data\['x'\]\['y'\]\[0\] is a object"),
        ({"x": {1: 2}}, "has the key 1; an event's keys are strings"),
        ({"x": 1 + 2j}, "is a complex"),
        ({"x": torch.tensor(1 + 2j)}, r"has the value \(1\+2j\)"),
        ({"x": {1, 2}}, "is a set"),
    ],
)
def test_anything_else_is_refused_with_its_place(data: Any, words: str) -> None:
    with pytest.raises(RecordError, match=words):
        clean_json(data)
