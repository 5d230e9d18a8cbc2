"""Updates of optimizers of which one counts its steps in float32: what that explains, and no more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from optrace.compare.columns import BODY, Floats, Numbering, Side
from optrace.compare.words import count_words
from optrace.replayer.options import options_by_step
from optrace.replayer.single import counts_in_single, entry_of, share_of_average, share_of_update
from optrace.trace.dtypes import eps_of

_AVERAGES = {"state.exp_avg": 0, "state.exp_avg_sq": 1, "state.max_exp_avg_sq": 1}
"""State that is averaged with a beta, and with which."""


@dataclass
class Counts:
    """The matched optimizers of torch's that count in float32 on a side, and what their updates are granted for it."""

    sides: tuple[Side, Side]
    numbering: Numbering
    n_granted: int = 0
    """Rows that needed it."""
    largest: float = 0.0
    """The largest share of an update that was granted."""
    _options: dict[tuple[bool, int], Mapping[int, Mapping[int, Mapping[str, Any]]]] = field(default_factory=dict)

    @cached_property
    def why(self) -> dict[int, tuple[str, str]]:
        """By pair of optimizers why A and B count in float32, empty where a side does not; without other pairs."""
        found = {}
        for number, pair in enumerate(self.numbering.matching.pairs):
            words = tuple(
                counts_in_single(entry_of(side.source.trace, index))
                for side, index in zip(self.sides, (pair.a, pair.b), strict=True)
            )
            if any(words) and pair.class_a == pair.class_b:
                found[number] = (words[0], words[1])
        return found

    def concerns(self, cell: int, quantity: str) -> bool:
        """Whether a row may be off for it."""
        pair = self.numbering.cells[cell].pair
        if quantity == "update":
            return pair in self.why
        return quantity in _AVERAGES and "fused" in self.why.get(pair, ())

    def explained(self, step: int, rows: Sequence[tuple[int, str]], rms: Floats, whole: Sequence[bool]) -> Floats:
        """How far rows may differ for it, in eps of the parameter's dtype and of their scale, [n].

        Args:
            step: A's number.
            rows: (cell, quantity) of each; all `concerns`.
            rms: of each row's change.
            whole: whether all elements of a row were compared, of which some parameter may be zero.
        """
        found = np.zeros(len(rows))
        tables = [_rows(side, self.numbering, step) for side in self.sides]
        for i, (number, quantity) in enumerate(rows):
            cell = self.numbering.cells[number]
            eps = max(eps_of(dtype) for dtype in (cell.dtype_a, cell.dtype_b) if dtype)
            share = 0.0
            for side, word, table in zip(self.sides, self.why[cell.pair], tables, strict=True):
                hyper = self._hyper(side, cell.pair, cell.group_a if side.is_a else cell.group_b, step)
                if not word or hyper is None:
                    continue
                if quantity != "update":
                    share = max(share, share_of_average(float(hyper["betas"][_AVERAGES[quantity]])))
                    continue
                counter = table.get((number, "state.step"))
                t = float(counter.sample[0]) if counter is not None else float(step - side.offsets[cell.pair])
                share = max(share, share_of_update(self.numbering.matching.pairs[cell.pair].class_a, t, hyper))
                if word == "fused":
                    share += share_of_average(float(hyper["betas"][0])) + share_of_average(float(hyper["betas"][1]))
            if quantity != "update":
                found[i] = 2 * share / eps  # no element changes by more than twice its scale
                continue
            moved = max((_most(table, number, float(rms[i]), whole[i]) for table in tables), default=0.0)
            found[i] = moved * share / eps
            self.largest = max(self.largest, share)
        return found

    def notes(self) -> Iterator[str]:
        """What was granted, in words."""
        if not self.n_granted:
            return
        words = [
            f"{{{side}}} is {word}" for pair in self.why.values() for side, word in zip("AB", pair, strict=True) if word
        ]
        yield (
            f"{' and '.join(dict.fromkeys(words))}, and so takes 1 - beta**t in float32: updates may differ by"
            f" {self.largest:.2g} of their size, which {count_words(self.n_granted, 'row')} needed"
        )

    def _hyper(self, side: Side, pair: int, group: int, step: int) -> Mapping[str, Any] | None:
        key = side.is_a, pair
        if key not in self._options:
            matched = self.numbering.matching.pairs[pair]
            trace: Any = side.source.trace
            self._options[key] = options_by_step(trace, matched.a if side.is_a else matched.b)
        hyper = self._options[key].get(step - side.offsets[pair], {}).get(group)
        return hyper if hyper is not None and "betas" in hyper else None


class _Row(NamedTuple):
    """What is read of a tensor."""

    sample: Floats
    largest: float
    """Its largest element by size."""


def _rows(side: Side, numbering: Numbering, step: int) -> dict[tuple[int, str], _Row]:
    """The rows of a step by cell and quantity."""
    rows = side.load(step, step, BODY)
    largest = np.fmax(np.abs(rows.columns["min"]), np.abs(rows.columns["max"]))
    return {
        (cell, numbering.quantities[quantity]): _Row(rows.columns["sample"][i], float(largest[i]))
        for i, (cell, quantity) in enumerate(zip(rows.cell.tolist(), rows.quantity.tolist(), strict=True))
    }


def _most(table: Mapping[tuple[int, str], _Row], cell: int, rms: float, whole: bool) -> float:
    """The largest share of its scale, |param| + rms(change), by which an element of a parameter moves."""
    update, param = table.get((cell, "update")), table.get((cell, "param"))
    if update is None or not rms > 0:
        return 0.0
    if whole or param is None or not np.isfinite(update.sample).any():
        return update.largest / rms
    with np.errstate(invalid="ignore"):
        return float(np.nanmax(np.abs(update.sample) / (np.abs(param.sample) + rms)))
