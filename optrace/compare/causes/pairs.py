"""Two mistakes in one rule: variants of a rule with two of its switches thrown."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from optrace.replayer.known import Variant

Pair = tuple[Variant, Variant]


def pairs(known: Sequence[Variant]) -> Iterator[tuple[Pair, Variant]]:
    """Every two variants that can be had at once, with the variant that has both; the commonest mistakes first."""
    for one, other in sorted(itertools.combinations(known, 2), key=lambda pair: sum(map(known.index, pair))):
        if not one.switches.keys() & other.switches.keys():
            both = replace(
                one,
                name=f"{one.name} and {other.name}",
                code="rule-unknown",
                switches={**one.switches, **other.switches},
            )
            yield (one, other), both
