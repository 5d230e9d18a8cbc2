"""Whole tensors of a step, for `--values grad` and `full`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from optrace.recorder.jobs import size_of
from optrace.recorder.plans import Located
from optrace.recorder.tensors import CODES, COMPLEX, Found, bytes_at, dtype_name, torch_dtype
from optrace.trace.direct import BLOCK, IN_PLACE
from optrace.trace.measure import COPY, JOB, ROW, kernel, measure

Values = dict[str, tuple[str, tuple[int, ...], Any]]
"""`<optimizer>/<quantity>/<param>` -> dtype name, shape, buffer; what `RankWriter.write_values` takes."""

Buffer = npt.NDArray[np.uint8]

_MANY = 2**20
_WORD = 4
_KEPT = 64
"""Free buffers of one size that are kept."""

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


class KeptBuffers:
    """Memory for copies that is used again: the first touch of fresh pages costs more than the copying."""

    def __init__(self) -> None:
        self._free: dict[int, list[Buffer]] = {}

    def take(self, size: int) -> Buffer:
        """So many bytes, of any content."""
        if size == 0:
            return np.empty(0, np.uint8)
        try:
            return self._free[size].pop()
        except (KeyError, IndexError):
            return np.empty(size, np.uint8) if size < IN_PLACE else _on_a_page(size)

    def give_back(self, buffers: Iterable[Buffer]) -> None:
        """Take memory back that nobody reads any more."""
        for buffer in buffers:
            free = self._free.setdefault(buffer.nbytes, [])
            if buffer.nbytes and len(free) < _KEPT:
                free.append(buffer)

    def release(self) -> None:
        """Forget all memory that is not in use."""
        self._free.clear()


def _on_a_page(size: int) -> Buffer:
    """Memory that begins with a page, from where it can be written past the page cache."""
    memory = np.empty(size + BLOCK, np.uint8)
    start = -memory.ctypes.data % BLOCK
    return memory[start : start + size]


buffers = KeptBuffers()
"""Those of this process."""


def copied(values: Values) -> Values:
    """The same values in memory of their own, safe from what the rule does."""
    return values | _copies(values)


def owned(values: Values) -> Values:
    """The same values, copied where they have not been yet."""
    return values | _copies({key: value for key, value in values.items() if not isinstance(value[2], np.ndarray)})


def _copies(values: Values) -> Values:
    """The same values in memory of their own."""
    sources = {key: np.frombuffer(buffer, np.uint8) for key, (_, _, buffer) in values.items() if len(buffer)}
    copies = {key: buffers.take(len(source)) for key, source in sources.items()}
    _copy(list(copies.values()), list(sources.values()))
    nothing = np.empty(0, np.uint8)
    return {key: (dtype, shape, copies.get(key, nothing)) for key, (dtype, shape, _) in values.items()}


def _copy(targets: list[Buffer], sources: list[Buffer]) -> None:
    """Copy bytes: where they are many, in as many threads as measure."""
    if kernel is None or sum(map(len, sources)) < _MANY:
        for target, source in zip(targets, sources, strict=True):
            np.copyto(target, source)
        return
    jobs = np.zeros(len(sources), JOB)
    jobs["op"], jobs["dtype"] = COPY, CODES[torch.int32]
    jobs["a"] = [source.ctypes.data for source in sources]
    jobs["b"] = [target.ctypes.data for target in targets]
    jobs["numel"] = [len(source) // _WORD for source in sources]
    measure(jobs, np.zeros(1, ROW), torch.get_num_threads())
    for target, source in zip(targets, sources, strict=True):
        words = len(source) // _WORD * _WORD
        target[words:] = source[words:]


def returner(values: Values) -> Callable[[], None]:
    """A function that gives the memory of owned values back, once they are written."""
    kept = [buffer for _, _, buffer in values.values()]
    return lambda: buffers.give_back(kept)
