"""Runs a function over some items on all cores; worth it where NumPy and Arrow do the work, which hold no lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

MOST = 4
"""Threads at most: each holds the memory of one item."""


def in_threads(work: Callable[[T], R], items: Sequence[T]) -> Iterable[R]:
    """The results in the order of the items; the first exception is raised when all have ended."""
    threads = min(len(items), MOST, cores())
    if threads < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, items))


def cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
