"""Notices programs that change their parameters without an optimizer that torch knows."""

from __future__ import annotations

import weakref

import numpy as np
import torch

from optrace.recorder.jobs import measure_now
from optrace.recorder.living import living
from optrace.recorder.tensors import Unmeasurable, locate


class Parameters:
    """The leaf tensors that require grad at one moment, by fingerprint; none is kept alive."""

    def __init__(self) -> None:
        """Look at all that the garbage collector knows."""
        found = [thing for thing in living(torch.Tensor) if _is_leaf(thing)]
        self._references = [weakref.ref(tensor) for tensor in found]
        self._fingerprints = [_fingerprint(tensor) for tensor in found]

    def changed(self) -> int:
        """How many of them hold other values now."""
        pairs = zip(self._references, self._fingerprints, strict=True)
        return sum((tensor := reference()) is not None and _fingerprint(tensor) != old for reference, old in pairs)


def _is_leaf(tensor: torch.Tensor) -> bool:
    return bool(tensor.requires_grad and tensor.is_leaf)


def _fingerprint(tensor: torch.Tensor) -> int | None:
    keep: list[object] = []
    found = locate(tensor, keep)
    if isinstance(found[2], Unmeasurable):
        return None
    rows = measure_now([found], 1)
    return int(np.int64(rows["fingerprint"][0]))
