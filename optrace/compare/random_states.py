"""Which random generators differ between two runs, by the two halves of the column `rng` of the table `steps`.

The lower 32 bits stand for torch's generators, the upper 32 for Python's `random` and NumPy's global generator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TORCHS = "torch's generators"
HOSTS = "Python's random or NumPy's global generator"

_BITS = 0xFFFFFFFF


def torch_half(number: int) -> int:
    """What stands for torch's CPU generator and those of CUDA devices; 0 where torch is not imported."""
    return int(number) & _BITS


def host_half(number: int) -> int:
    """What stands for Python's `random` and NumPy's global generator."""
    return int(number) >> 32 & _BITS


_HALVES = (torch_half, host_half)


@dataclass(frozen=True)
class RandomStates:
    """How the generators of two sides compare at one step."""

    torch: bool
    """Whether torch's generators differ."""
    host: bool
    """Whether Python's `random` or NumPy's global generator differs."""
    torch_rests: bool
    """Whether nothing draws from torch's generators between the recorded steps of either side."""
    host_drawn: bool
    """Whether something draws from the others between two recorded steps, on either side."""

    @property
    def matter(self) -> bool:
        """Whether numbers that are drawn while training may differ."""
        return (self.torch and not self.torch_rests) or (self.host and self.host_drawn)

    @property
    def words(self) -> str:
        """Which generators differ, as the subject of a sentence."""
        return " and ".join(name for name, differs in ((TORCHS, self.torch), (HOSTS, self.host)) if differs)


class Generators:
    """The generators of two runs, by the fingerprints of each side by step."""

    def __init__(self, sides: Sequence[Mapping[int, int]]) -> None:
        self._sides = sides
        torchs, hosts = ([{half(number) for number in side.values()} for side in sides] for half in _HALVES)
        self._torch_rests = all(len(own) == 1 < len(side) for own, side in zip(torchs, sides, strict=True))
        self._host_drawn = any(len(own) > 1 for own in hosts)

    def at(self, step: int) -> RandomStates | None:
        """How they compare at a step; None where a side does not tell it."""
        a, b = (side.get(step) for side in self._sides)
        if a is None or b is None:
            return None
        torch, host = (half(a) != half(b) for half in _HALVES)
        return RandomStates(torch, host, self._torch_rests, self._host_drawn)

    def torch_moved(self, side: int, before: int, step: int) -> bool | None:
        """Whether torch's generators of a side changed between two steps; None where it does not tell."""
        one, other = (self._sides[side].get(s) for s in (before, step))
        return None if one is None or other is None else torch_half(one) != torch_half(other)
