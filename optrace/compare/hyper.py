"""Hyper-parameters side by side: exact, group by group, with those that only say how the rule was run set apart."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optrace.compare.arrow import coded, integers, numbers, texts
from optrace.compare.match import Matching, one_class
from optrace.compare.missing import MISSING as MISSING
from optrace.compare.names import SYNONYMS, Renaming, match_hyper
from optrace.compare.source import Source

STRUCTURE = frozenset({"foreach", "fused", "capturable", "differentiable"})
"""How the same arithmetic is carried out: provenance, never a difference."""

SCHEDULER_KEYS = frozenset({"initial_lr", "max_lr", "min_lr", "swa_lr", "base_momentum", "max_momentum"})
"""What schedulers keep in a group for themselves; no rule reads it."""

RULES_OWN = frozenset({"decoupled_weight_decay"})
"""What says which rule a class follows: between two classes the rules are compared, not the option."""

NEUTRAL: dict[str, float] = {
    "momentum": 0.0,
    "dampening": 0.0,
    "weight_decay": 0.0,
    "nesterov": 0.0,
    "maximize": 0.0,
    "amsgrad": 0.0,
    "centered": 0.0,
    "decoupled_weight_decay": 0.0,
    "lr_decay": 0.0,
    "initial_accumulator_value": 0.0,
}
"""Values with which a rule computes what it would without the option."""

KNOWN = frozenset(
    """adjust_lr_fn alpha amsgrad beta2_decay betas centered d dampening decoupled_weight_decay eps etas history_size
    initial_accumulator_value lambd line_search_fn lr lr_decay max_eval max_iter maximize momentum momentum_decay
    nesterov ns_coefficients ns_steps rho step_sizes t0 tolerance_change tolerance_grad weight_decay""".split()
)
"""Options of the rules of the reference. What another option means to a class that lacks it, only its updates tell."""

_NUMBERS = ("float", "int", "bool")


@dataclass
class HyperDifference:
    """One option of one group that is not the same on both sides."""

    pair: int
    group_a: int
    group_b: int
    key: str
    """A's name of the option, B's where A has none."""
    key_b: str
    step: int
    """First step (A's number) at which it differs."""
    a: Any
    """A's value there; `MISSING` where A has none."""
    b: Any
    count: int
    """Steps at which it differs."""
    decides: bool


@dataclass(frozen=True)
class _Options:
    """Rows of the table `groups` of one side: pair, A's step, group, and for each the option and its value."""

    pair: NDArray[np.int64]
    step: NDArray[np.int64]
    group: NDArray[np.int64]
    key: NDArray[np.int64]
    names: list[str]
    kind: NDArray[np.int64]
    kinds: list[str]
    number: NDArray[np.float64]
    text: NDArray[np.int64]
    texts: list[str]

    def value(self, row: int) -> Any:
        """A row's value as Python has it."""
        kind, number = self.kinds[self.kind[row]], float(self.number[row])
        if kind == "int":
            text = self.texts[self.text[row]]
            return int(text, 16) if text else int(number)
        if kind == "bool":
            return bool(number)
        if kind == "float":
            return number
        return None if kind == "none" else self.texts[self.text[row]]


class HyperComparison:
    """Compares the tables `groups` stretch by stretch and remembers what differed first and how often."""

    def __init__(
        self,
        a: Source,
        b: Source,
        matching: Matching,
        offsets: Sequence[int],
        renaming: Renaming,
        ignored: Callable[[str], bool] = lambda key: False,
    ) -> None:
        """`ignored` says of an option, by A's name, whether the user asked not to look at it."""
        self._a, self._b = a, b
        self._ignored = ignored
        self._matching = matching
        self._offsets = offsets
        self._renaming = renaming
        self.differences: dict[tuple[int, int, int, str], HyperDifference] = {}
        self.names_a: set[str] = set()
        self.names_b: set[str] = set()
        self._by_value: dict[tuple[int, int, int], dict[str, str]] = {}
        """By pair and groups: B's name of an option that A calls otherwise, told by its value when first seen."""
        self.compared = 0
        """Values compared."""
        self._begin: dict[int, int] = {}
        self._one_class = [one_class(a, b, pair) for pair in matching.pairs]
        self.written = [
            _written(a, pair.a) & {renaming.name(key) for key in _written(b, pair.b)} for pair in matching.pairs
        ]

    def set_by_user(self, found: HyperDifference) -> bool:
        """Whether an option is none that step() itself writes, as Prodigy does with d."""
        return found.key not in self.written[found.pair]

    def stretch(self, low: int, high: int) -> dict[tuple[int, int, int], NDArray[np.int64]]:
        """Compare steps low to high (A's); by (pair, group of A, of B) the steps at which a deciding option differs.

        Steps that only one side has are left alone.
        """
        pairs = self._matching.pairs
        rows_a = _load(self._a, [pair.a for pair in pairs], low, high, [0] * len(pairs))
        rows_b = _load(self._b, [pair.b for pair in pairs], low, high, self._offsets)
        self.names_a.update(rows_a.names)
        self.names_b.update(rows_b.names)
        found: dict[tuple[int, int, int], NDArray[np.int64]] = {}
        for pair in range(len(pairs)):
            for group_a, group_b in self._matching.groups(pair):
                unequal = self._groups(pair, group_a, group_b, rows_a, rows_b)
                if len(unequal):
                    found[pair, group_a, group_b] = unequal
        return found

    def notes(self) -> list[str]:
        """What is not the same without being a difference, in words."""
        words: dict[tuple[bool, str], list[str]] = {}
        same = {(a, b): None for names in self._by_value.values() for a, b in names.items()}
        notes = [f"{b} of {{B}} is {a} of {{A}}: equal values" for a, b in same]
        for found in self.differences.values():
            if found.decides:
                continue
            if found.a is MISSING or found.b is MISSING:
                value = found.b if found.a is MISSING else found.a
                text = found.key if value is None else f"{found.key} ({value!r})"
                idle = found.key in STRUCTURE | SCHEDULER_KEYS | RULES_OWN
                kind = "neutral" if _neutral(found.key, value) else "idle" if idle else "unknown"
                names = words.setdefault((found.a is MISSING, kind), [])
                if text not in names:
                    names.append(text)
            elif found.key in RULES_OWN:
                notes.append(
                    f"{found.key}: {found.a!r} in {{A}}, {found.b!r} in {{B}}; it says which rule the class follows"
                )
            elif found.key in SCHEDULER_KEYS:
                notes.append(f"{found.key}: {found.a!r} in {{A}}, {found.b!r} in {{B}}; only schedulers use it")
        for (only_in_b, kind), names in words.items():
            lacks, has = ("{A}", "{B}") if only_in_b else ("{B}", "{A}")
            why = {
                "neutral": f"neutral in {has}",
                "idle": f"in {has} it does not touch the rule",
                "unknown": "what it does shows in the updates",
            }[kind]
            notes.append(f"{lacks} has no {', '.join(names)} ({why})")
        return notes

    def _groups(self, pair: int, group_a: int, group_b: int, rows_a: _Options, rows_b: _Options) -> NDArray[np.int64]:
        own_a = np.flatnonzero((rows_a.pair == pair) & (rows_a.group == group_a))
        own_b = np.flatnonzero((rows_b.pair == pair) & (rows_b.group == group_b))
        steps = np.intersect1d(rows_a.step[own_a], rows_b.step[own_b])
        if not len(steps):
            return steps
        names_a = {rows_a.names[code] for code in np.unique(rows_a.key[own_a])}
        names_b = {rows_b.names[code] for code in np.unique(rows_b.key[own_b])}
        of_b = match_hyper(names_a, names_b, self._renaming)
        codes_a = {name: code for code, name in enumerate(rows_a.names)}
        codes_b = {name: code for code, name in enumerate(rows_b.names)}
        by_value = self._by_value.setdefault((pair, group_a, group_b), {})
        for name_a, name_b in itertools.product(
            sorted(names_a - set(of_b) - set(by_value)), sorted(names_b - set(of_b.values()) - set(by_value.values()))
        ):
            row_a = _by_step(rows_a, own_a, codes_a[name_a], steps)
            row_b = _by_step(rows_b, own_b, codes_b[name_b], steps)
            if name_a not in by_value and name_b not in by_value.values() and _torchs(name_a) != _torchs(name_b):
                value = rows_a.value(int(row_a[0])) if row_a[0] >= 0 else None
                number = isinstance(value, float) and value not in (0.0, 1.0)
                if number and not _unequal(rows_a, rows_b, row_a, row_b).any():
                    by_value[name_a] = name_b
        of_b |= {a: b for a, b in by_value.items() if a in names_a and b in names_b}
        said = {word for names in of_b.items() for name in names for word in _words(name)}
        unequal: set[int] = set()
        keys: list[tuple[str | None, str | None]] = [(name, of_b.get(name)) for name in sorted(names_a)]
        keys += [(None, name) for name in sorted(names_b - set(of_b.values()))]
        nowhere = np.full(len(steps), -1)
        for name_a, name_b in keys:
            row_a = _by_step(rows_a, own_a, codes_a[name_a], steps) if name_a is not None else nowhere
            row_b = _by_step(rows_b, own_b, codes_b[name_b], steps) if name_b is not None else nowhere
            wrong = _unequal(rows_a, rows_b, row_a, row_b)
            if name_a in self.written[pair]:  # whoever made the optimizer set it before the first step alone
                wrong &= steps == self._begin.setdefault(pair, int(steps[0]))
            self.compared += len(steps)
            if wrong.any():
                place = (pair, group_a, group_b, name_a or name_b or "")
                again = (name_a is None or name_b is None) and (name_a or name_b) in said
                if self._note(place, name_b or name_a or "", (rows_a, rows_b), (row_a, row_b), steps, wrong, again):
                    unequal.update(steps[wrong].tolist())
        return np.array(sorted(unequal), np.int64)

    def _note(
        self,
        place: tuple[int, int, int, str],
        name_b: str,
        sides: tuple[_Options, _Options],
        rows: tuple[NDArray[np.int64], NDArray[np.int64]],
        steps: NDArray[np.int64],
        wrong: NDArray[np.bool_],
        again: bool,
    ) -> bool:
        """Remember one option that differs; whether it decides. `again`: its side calls it by another name too."""
        first = int(np.flatnonzero(wrong)[0])
        a, b = (
            side.value(int(row[first])) if row[first] >= 0 else MISSING for side, row in zip(sides, rows, strict=True)
        )
        name = place[3]
        decides = not (name in STRUCTURE or name in SCHEDULER_KEYS)
        matched = self._matching.pairs[place[0]]
        if name in RULES_OWN and matched.class_a != matched.class_b:
            decides = False
        decides = decides and not again and not self._ignored(name)
        if decides and (a is MISSING or b is MISSING):
            # what one class keeps in its code shows in its updates; only an lr must be told
            is_lr = "lr" in _words(name) | _words(name_b)
            decides = not _neutral(name, b if a is MISSING else a) and (is_lr or self._one_class[place[0]])
        known = self.differences.get(place)
        if known is None:
            new = HyperDifference(*place, name_b, int(steps[first]), a, b, int(wrong.sum()), decides)
            self.differences[place] = new
            return decides
        if decides and not known.decides:
            known.step, known.a, known.b, known.decides = int(steps[first]), a, b, True
        known.count += int(wrong.sum())
        return decides


def _written(source: Source, optimizer: int) -> set[str]:
    """Options that an optimizer's step() writes itself: compared as what it computes, not as what somebody set."""
    if not source.recorded:
        return set()
    table = source.trace.arrow("tensors", optimizer=optimizer, param="", quantity="group.*", columns=["quantity"])
    return {name.removeprefix("group.") for name in texts(table.column("quantity"))}


def _words(name: str) -> set[str]:
    """An option's name and all other words for what it may mean."""
    return {name}.union(*((torchs, *others) for torchs, others in SYNONYMS.items() if name in (torchs, *others)))


def _torchs(name: str) -> bool:
    return name.partition(".")[0] in KNOWN


def _neutral(name: str, value: Any) -> bool:
    return value is None or (name in NEUTRAL and value == NEUTRAL[name])


def _by_step(rows: _Options, own: NDArray[np.int64], key: int, steps: NDArray[np.int64]) -> NDArray[np.int64]:
    """Row of an option at each step, -1 where it has none."""
    mine = own[rows.key[own] == key]
    order = mine[np.argsort(rows.step[mine], kind="stable")]
    if not len(order):
        return np.full(len(steps), -1)
    place = np.minimum(np.searchsorted(rows.step[order], steps), len(order) - 1)
    return np.where(rows.step[order][place] == steps, order[place], -1)


def _unequal(
    rows_a: _Options, rows_b: _Options, row_a: NDArray[np.int64], row_b: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether the values differ; numbers of any kind by value, NaN equal to NaN, all else by kind and text."""
    if not len(rows_a.step) or not len(rows_b.step):
        return np.asarray((row_a >= 0) != (row_b >= 0))
    number_a, number_b = rows_a.number[row_a], rows_b.number[row_b]
    numeric_a = np.isin(rows_a.kind, [i for i, kind in enumerate(rows_a.kinds) if kind in _NUMBERS])[row_a]
    numeric_b = np.isin(rows_b.kind, [i for i, kind in enumerate(rows_b.kinds) if kind in _NUMBERS])[row_b]
    text_a = np.array(rows_a.texts, dtype=object)[rows_a.text[row_a]]
    text_b = np.array(rows_b.texts, dtype=object)[rows_b.text[row_b]]
    kind_a = np.array(rows_a.kinds, dtype=object)[rows_a.kind[row_a]]
    kind_b = np.array(rows_b.kinds, dtype=object)[rows_b.kind[row_b]]
    same_number = (number_a == number_b) | (np.isnan(number_a) & np.isnan(number_b))
    same = np.where(numeric_a & numeric_b, same_number, kind_a == kind_b).astype(bool) & (text_a == text_b)
    there_a, there_b = row_a >= 0, row_b >= 0
    wrong: NDArray[np.bool_] = np.where(there_a & there_b, ~same.astype(bool), there_a != there_b)
    return wrong


def _load(source: Source, optimizers: Sequence[int], low: int, high: int, offsets: Sequence[int]) -> _Options:
    """Rows of A's steps low to high of the optimizers of each pair."""
    own = (low - max(offsets), high - min(offsets))
    only = optimizers[0] if len(optimizers) == 1 else None
    table = source.trace.arrow("groups", step=own, optimizer=only)
    own_step = integers(table.column("step"))
    optimizer = integers(table.column("optimizer"))
    pairs = np.full(max(int(optimizer.max(initial=0)), *optimizers) + 1, -1, np.int64)
    pairs[list(optimizers)] = np.arange(len(optimizers))
    pair = pairs[optimizer]
    step = own_step + np.array(offsets, np.int64)[pair]
    stretch_low, stretch_high = source.steps
    keep = (pair >= 0) & (step >= low) & (step <= high)
    keep &= (own_step >= (stretch_low or 0)) & (own_step <= (stretch_high if stretch_high is not None else own[1]))
    key, names = coded(table.column("key"))
    kind, kinds = coded(table.column("kind"))
    text, texts = coded(table.column("text"))
    return _Options(
        pair[keep],
        step[keep],
        integers(table.column("group"))[keep],
        key[keep],
        names,
        kind[keep],
        kinds,
        numbers(table.column("number"))[keep],
        text[keep],
        texts,
    )
