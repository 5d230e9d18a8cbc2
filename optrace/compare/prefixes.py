"""Parameters of several optimizers that one side calls by a longer name: `generator.0.weight` and `0.weight`.

A parameter bears the name that the largest module that is alive gives it. So the names of a program whose optimizers
each have a module depend on whether it also keeps these in one module, and no one `--map` says which of two equal names
is which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Held = Mapping[int, Mapping[str, Mapping[str, Any]]]
"""By optimizer and parameter's name: its row of the table `params`."""


@dataclass
class ByEnds:
    """Optimizers that were matched by how their parameters' names end."""

    partner: dict[int, int] = field(default_factory=dict)
    """B's optimizer of A's."""
    names: dict[int, dict[str, str]] = field(default_factory=dict)
    """By A's optimizer: B's name of each parameter."""
    notes: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    """Optimizers of which several would fit, in words."""


def match_by_ends(held_a: Held, held_b: Held, of_b: Mapping[str, str]) -> ByEnds:
    """Match optimizers of which the other side calls no parameter the same, where the names end alike.

    Two belong together when their names become equal, with equal shapes, without the first parts that all names of the
    one share, of which one side's end like the other's; and when this is true of no other optimizer of either side.
    Where each run has one optimizer, nothing is done: there `--map` can say it.
    """
    found = ByEnds()
    if max(len(held_a), len(held_b)) < 2:
        return found
    named_b = set(of_b.values())
    free_a = [i for i, held in held_a.items() if not any(name in of_b for name in held)]
    free_b = [j for j, held in held_b.items() if not any(name in named_b for name in held)]
    fits = {(i, j): names for i in free_a for j in free_b if (names := _by_ends(held_a[i], held_b[j]))}
    for (i, j), names in fits.items():
        if sum(i == a or j == b for a, b in fits) > 1:
            found.doubts.append(f"{{A}}@{i} with {{B}}@{j}")
            continue
        found.partner[i], found.names[i] = j, names
        old, new = next(iter(names.items()))
        found.notes.append(
            f"{old} of {{A}} is {new} of {{B}}'s optimizer {j}, and so on: names end alike, shapes are equal"
        )
    return found


def _by_ends(a: Mapping[str, Mapping[str, Any]], b: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """B's name of each of A's parameters; empty where the ends or the shapes do not agree."""
    start_a, start_b = _common(list(a)), _common(list(b))
    short, long = sorted((start_a, start_b), key=len)
    ends_b = {name[_length(start_b) :]: name for name in b}
    names = {name: ends_b.get(name[_length(start_a) :], "") for name in a}
    if len(a) != len(b) or not all(names.values()) or long[len(long) - len(short) :] != short:
        return {}
    return names if all(a[old].get("shape") == b[new].get("shape") for old, new in names.items()) else {}


def _common(names: list[str]) -> list[str]:
    """The parts that all names begin with, the last part of the shortest left out."""
    parts = [name.split(".")[:-1] for name in names]
    same = 0
    while all(len(part) > same and part[same] == parts[0][same] for part in parts):
        same += 1
    return parts[0][:same]


def _length(parts: list[str]) -> int:
    return sum(len(part) + 1 for part in parts)
