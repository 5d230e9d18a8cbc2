"""Which optimizer, parameter and group of A is which of B: by what they hold and are called, never by position."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from optrace.compare.names import Renaming, match_names, suggest_rule
from optrace.compare.orphans import nameless, without_grad
from optrace.compare.prefixes import match_by_ends
from optrace.compare.source import Source, param_rows
from optrace.compare.words import count_words
from optrace.errors import CompareError

_DELEGATES = frozenset({"ZeroRedundancyOptimizer"})
"""Optimizers that are a wrapper around another, and have no rule of their own."""


@dataclass(frozen=True)
class Cell:
    """One parameter of one matched optimizer, on both sides."""

    pair: int
    """Index into `Matching.pairs`."""
    param_a: str
    param_b: str
    group_a: int
    group_b: int
    shape_a: tuple[int, ...] | None
    shape_b: tuple[int, ...] | None
    dtype_a: str
    dtype_b: str


@dataclass(frozen=True)
class Pair:
    """One optimizer of A and its counterpart of B."""

    a: int
    b: int
    class_a: str
    class_b: str


@dataclass(frozen=True)
class Matching:
    """Everything that is on both sides, and what is on one only."""

    pairs: tuple[Pair, ...]
    cells: tuple[Cell, ...]
    """By pair, then in A's order of groups and parameters."""
    only_in_a: tuple[str, ...]
    """In words: `param fc3.weight`, `optimizer 1 (Adam)`."""
    only_in_b: tuple[str, ...]
    notes: tuple[str, ...]
    elsewhere: tuple[tuple[str, str], ...] = ()
    """A's and B's names of parameters that both have, in optimizers that are not counterparts."""

    def groups(self, pair: int) -> list[tuple[int, int]]:
        """A's and B's groups that share a parameter, in order."""
        return sorted({(cell.group_a, cell.group_b) for cell in self.cells if cell.pair == pair})


def match_sources(a: Source, b: Source, renaming: Renaming) -> Matching:
    """Match the optimizers by the parameters they hold, and their parameters by name.

    CompareError when nothing is common, saying what each side has and which `--map` would help.
    """
    rows_a, rows_b = param_rows(a), param_rows(b)
    held_a, held_b = _held(rows_a), _held(rows_b)
    all_a, all_b = _names(rows_a), _names(rows_b)
    of_b = match_names(all_a, all_b, renaming)
    by_ends = match_by_ends(held_a, held_b, of_b)
    notes: list[str] = list(by_ends.notes)
    pairs = _pair_optimizers(held_a, held_b, of_b, by_ends.partner, _classes(a), _classes(b), notes)
    if not pairs:
        raise CompareError(_nothing_common(a, b, all_a, all_b, by_ends.doubts))
    cells = []
    for number, pair in enumerate(pairs):
        there = held_b[pair.b]
        names = by_ends.names.get(pair.a, of_b)
        for name, row in held_a[pair.a].items():
            other = there.get(names.get(name, ""))
            if other is not None:
                cells.append(_cell(number, row, other))
    done_a, done_b = {(pairs[c.pair].a, c.param_a) for c in cells}, {(pairs[c.pair].b, c.param_b) for c in cells}
    paired_a, paired_b = {pair.a for pair in pairs}, {pair.b for pair in pairs}
    own_a, own_b = (
        _without_delegates(rows_a, paired_a, "{A}", notes),
        _without_delegates(rows_b, paired_b, "{B}", notes),
    )
    left_a = _left_over(b, own_a, done_a, paired_a, renaming.name)
    left_b = _left_over(a, own_b, done_b, paired_b, str)
    notes.extend(_moved(cells))
    elsewhere = tuple(
        (name, of_b[name])
        for word in left_a
        if word.startswith("param ") and f"param {of_b.get(name := word[6:], '')}" in left_b
    )
    return Matching(tuple(pairs), tuple(cells), left_a, left_b, tuple(notes), elsewhere)


def one_class(a: Source, b: Source, pair: Pair) -> bool:
    """Whether both optimizers of a pair are of one class: two libraries may both have a Lion."""
    modules = set()
    for source, index in ((a, pair.a), (b, pair.b)):
        listed = source.trace.rank_info.get("optimizers") or ()
        modules |= {e.get("module") for e in listed if isinstance(e, Mapping) and e.get("index") == index}
    return pair.class_a == pair.class_b and len(modules - {None, ""}) < 2


def told_to_skip(source: Source, kind: str, name: str) -> bool:
    """Whether the recorder of a source was told not to record a name; `kind` is `params` or `quantities`."""
    settings = source.trace.info.get("settings") or {}
    patterns: Iterable[str] = settings.get(kind) or ()
    patterns = list(patterns)
    return bool(patterns) and not any(fnmatchcase(name, pattern) for pattern in patterns)


def _held(rows: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, Mapping[str, Any]]]:
    held: dict[int, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        held.setdefault(row["optimizer"], {}).setdefault(row["param"], row)
    return held


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["param"] for row in rows))


def _classes(source: Source) -> dict[int, str]:
    return dict(source.trace.optimizers)


def _pair_optimizers(
    held_a: Mapping[int, Mapping[str, Any]],
    held_b: Mapping[int, Mapping[str, Any]],
    of_b: Mapping[str, str],
    known: Mapping[int, int],
    classes_a: Mapping[int, str],
    classes_b: Mapping[int, str],
    notes: list[str],
) -> list[Pair]:
    holders: dict[str, list[int]] = {}
    for index, params in held_b.items():
        for name in params:
            holders.setdefault(name, []).append(index)
    shared: Counter[tuple[int, int]] = Counter()
    in_shape: Counter[tuple[int, int]] = Counter()
    for i, params in held_a.items():
        for name, row in params.items():
            other = of_b.get(name, "")
            for j in holders.get(other, ()):
                shared[i, j] += 1
                in_shape[i, j] += _shape(row.get("shape")) == _shape(held_b[j][other].get("shape"))

    def merit(choice: tuple[int, int]) -> tuple[int, int, bool]:
        return -shared[choice], -in_shape[choice], classes_a.get(choice[0]) != classes_b.get(choice[1])

    taken_a: dict[int, int] = dict(known)
    taken_b: set[int] = set(known.values())
    tied = set()
    choices = sorted(shared, key=lambda choice: (*merit(choice), *choice))
    for i, j in choices:
        if i in taken_a or j in taken_b:
            continue
        rivals = [c for c in choices if c != (i, j) and merit(c) == merit((i, j)) and (c[0] == i or c[1] == j)]
        if any(c[0] not in taken_a and c[1] not in taken_b for c in rivals):
            tied.add(i)
        taken_a[i] = j
        taken_b.add(j)
    if tied:
        which = ", ".join(f"{i} with {taken_a[i]}" for i in sorted(taken_a))
        notes.append(f"several optimizers hold the same parameters; compared in order of their first step: {which}")
    return [Pair(i, j, classes_a.get(i, ""), classes_b.get(j, "")) for i, j in sorted(taken_a.items())]


def _cell(pair: int, a: Mapping[str, Any], b: Mapping[str, Any]) -> Cell:
    return Cell(
        pair,
        a["param"],
        b["param"],
        int(a["group"]),
        int(b["group"]),
        _shape(a.get("shape")),
        _shape(b.get("shape")),
        str(a.get("dtype") or ""),
        str(b.get("dtype") or ""),
    )


def _shape(shape: Any) -> tuple[int, ...] | None:
    return None if shape is None else tuple(int(size) for size in shape)


def _without_delegates(
    rows: Sequence[Mapping[str, Any]], paired: set[int], side: str, notes: list[str]
) -> list[Mapping[str, Any]]:
    """The rows without those of optimizers that only hand their steps on to one that is compared."""
    compared = {row["param"] for row in rows if row["optimizer"] in paired}
    kept = []
    for row in rows:
        name = row.get("optimizer_class")
        if row["optimizer"] in paired or name not in _DELEGATES or row["param"] not in compared:
            kept.append(row)
        elif (note := f"{side}'s {name} hands its steps on to the optimizer that is compared") not in notes:
            notes.append(note)
    return kept


def _left_over(
    other: Source,
    rows: Sequence[Mapping[str, Any]],
    matched: set[tuple[int, str]],
    paired: set[int],
    name_there: Any,
) -> tuple[str, ...]:
    """What the rows hold and `other` lacks, leaving out what the other's recorder was told to skip."""
    words: dict[str, None] = {}
    seen = {name for _, name in matched}
    for row in rows:
        name, optimizer = row["param"], row["optimizer"]
        if (optimizer, name) in matched or told_to_skip(other, "params", name_there(name)):
            continue
        if optimizer not in paired and name in seen:
            words[f"optimizer {optimizer} ({row.get('optimizer_class')})"] = None
        else:
            words[f"param {name}"] = None
    return tuple(words)


def _moved(cells: Sequence[Cell]) -> list[str]:
    """Notes on parameters that are grouped otherwise on the two sides; which index a group has does not matter."""
    notes = []
    for pair in sorted({cell.pair for cell in cells}):
        own = [cell for cell in cells if cell.pair == pair]
        links = Counter((cell.group_a, cell.group_b) for cell in own)
        groups_a, groups_b = len({a for a, _ in links}), len({b for _, b in links})
        if len(links) == groups_a == groups_b:
            continue
        home = {group_a: group_b for (group_a, group_b), _ in reversed(links.most_common())}
        moved = [cell for cell in own if home[cell.group_a] != cell.group_b]
        if moved:
            few = ", ".join(cell.param_a for cell in moved[:3]) + (", ..." if len(moved) > 3 else "")
            notes.append(f"grouped otherwise: {few} (group {moved[0].group_a} in {{A}}, {moved[0].group_b} in {{B}})")
        else:
            notes.append(f"{{A}} has {count_words(groups_a, 'group')} where {{B}} has {groups_b}")
    return notes


def _nothing_common(a: Source, b: Source, names_a: Sequence[str], names_b: Sequence[str], doubts: Sequence[str]) -> str:
    def some(names: Sequence[str]) -> str:
        return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "no parameter"

    if doubts:
        several = ", ".join(doubts[:4]).replace("{A}", a.spec).replace("{B}", b.spec)
        return (
            f"{a.name} and {b.name} have no parameter in common by name, and by how names end several optimizers may be"
            f" the same; compare one by one, and with --map '^PREFIX='; of these pairs: {several}"
        )
    for source, names in ((b, names_b), (a, names_a)):
        if nameless(names) and without_grad(source, names):
            return (
                f"{a.name} and {b.name} have no parameter in common: those of {source.name}'s optimizer (like"
                f" {names[0]}) belong to no module or variable of it, and none has a gradient at any step; make the"
                f" optimizer of {source.name} for the model that is trained: it was copied, rebuilt or replaced after"
                " the optimizer was made"
            )
    rule = suggest_rule(names_a, names_b)
    advice = f"; try {rule}" if rule else "; name their counterparts with --map OLD=NEW" if names_a and names_b else ""
    return f"{a.name} and {b.name} have no parameter in common: {some(names_a)} against {some(names_b)}{advice}"
