"""Finds the living objects of a class, among all that the garbage collector knows."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

from optrace.trace.measure import kernel


def living(base: type) -> list[Any]:
    """Every object of a class, or of one that derives from it, that the garbage collector tracks.

    The C kernel looks at all of them while no other thread runs. Without it a thread that is just making a tuple may
    fail with a SystemError while this one holds the collector's list (python/cpython#59313).
    """
    classes = set(subclasses(base))
    if kernel is not None:
        found: list[Any] = kernel.living(classes)
        return found
    return [thing for thing in gc.get_objects() if type(thing) in classes]


def subclasses(base: type) -> Iterator[type]:
    """The class and all that derive from it."""
    waiting, seen = [base], {base}
    while waiting:
        cls = waiting.pop()
        yield cls
        children: list[type] = type.__subclasses__(cls)
        for child in children:
            if child not in seen:
                seen.add(child)
                waiting.append(child)
