"""Whole tensors of a step, for `--values grad` and `full`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from optrace.recorder.jobs import size_of
from optrace.recorder.plans import Located
from optrace.recorder.tensors import COMPLEX, Found, bytes_at, dtype_name, torch_dtype

Values = dict[str, tuple[str, tuple[int, ...], Any]]
"""`<optimizer>/<quantity>/<param>` -> dtype name, shape, buffer; what `RankWriter.write_values` takes."""

KEYFRAME = 1000
"""With `--values grad`, parameters and state are kept whole each so many steps."""


def view_of(key: str, thing: Any, found: Found) -> Values:
    """What was located, as one entry over the memory where it lies; empty where there is nothing."""
    address, numel, kind = found
    if kind is None:
        return {}
    dtype = torch_dtype(kind)
    elements = numel // 2 if dtype in COMPLEX else numel
    shape = tuple(thing.shape) if hasattr(thing, "shape") else ()
    if torch.Size(shape).numel() != elements:  # a shard: the local piece
        local = getattr(thing, "_local_tensor", None)
        shape = tuple(local.shape) if local is not None and local.numel() == elements else (elements,)
    return {key: (dtype_name(dtype), shape, bytes_at(address, size_of(found)))}


def views_of(keys: Iterable[str], things: Iterable[Any], located: Located) -> Values:
    """`view_of` of several."""
    values: Values = {}
    for key, thing, found in zip(keys, things, located, strict=True):
        values.update(view_of(key, thing, found))
    return values


def copied(values: Values) -> Values:
    """The same values in memory of their own, safe from what the rule does."""
    return {key: (dtype, shape, bytes(buffer)) for key, (dtype, shape, buffer) in values.items()}
