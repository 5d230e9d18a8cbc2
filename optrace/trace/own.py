"""Tells parameters that are each rank's own from replicas of one that the ranks call by the same name.

Stages of a pipeline and experts often do: `0.weight` is another layer on each rank. Nothing in a trace says so, but
values do. Ranks hold **the same** parameter if their start values agree, or later a gradient or the values do, in any
of the first steps. They hold **different** ones if the shapes differ. Where start values differ and no gradient agrees
they are read as different ones, and may also be replicas that nothing was ever broadcast to or reduced over: then
`Own.certain` is false, and whoever shows the run says so. Start values that are one number (biases, norms) tell
nothing: such a parameter goes with those around it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optrace.trace.blocks import Block, pieces_of
from optrace.trace.reader import Trace
from optrace.trace.select import Selection

Key = tuple[int, str]
"""Optimizer and recorded name of a parameter."""

Camps = tuple[tuple[int, ...], ...]
"""Ranks that hold the same one stand together; by their lowest rank."""

STEPS = 16
"""Steps with gradients that are looked at, at most."""

_COLUMNS = ("step", "optimizer", "param", "quantity", "min", "max", "fingerprint")


@dataclass(frozen=True)
class Own:
    """Parameters of an optimizer that are read as different ones on different ranks, though the name is the same.

    The lowest camp's are read under the name itself, those of rank 3's camp as `NAME@rank3`.
    """

    optimizer: int
    params: tuple[str, ...]
    camps: Camps
    certain: bool
    """Whether the layouts of the ranks leave no other reading: other shapes, or parameters that only some have."""
    first: int
    last: int
    """Steps between which gradients were compared; 0 and 0 where none was."""


def renamed(own: Iterable[Own], rank: int) -> dict[Key, str]:
    """What a rank's parameters are called in the run as a whole, where that is not the recorded name."""
    found = {}
    for one in own:
        camp = next((camp for camp in one.camps if rank in camp), one.camps[0])
        if camp != one.camps[0]:
            found.update({(one.optimizer, name): f"{name}@rank{camp[0]}" for name in one.params})
    return found


def own_words(own: Own) -> str:
    """One sentence: which parameters are read as different ones, why, and what they are called."""
    names = ", ".join(own.params[:2]) + (f" and {len(own.params) - 2} more" if len(own.params) > 2 else "")
    rank = own.camps[1][0]
    why = "their layouts differ" if own.certain else "apart since step 0, and no gradient agrees"
    return (
        f"read as parameters of the ranks' own ({why}): {names};"
        f" {own.params[0]}@rank{rank} is {own.params[0]} of rank {rank}"
    )


@dataclass(frozen=True)
class _Held:
    """What a rank holds of a parameter."""

    shape: str
    """Of the whole."""
    block: Block | None
    """None for all of it."""
    atom: int
    """The lowest of the ranks that hold it together: those of one DTensor; of a whole tensor the rank alone."""


class Joined:
    """Sets of numbers that grow together (union-find)."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self._above = {number: number for number in numbers}

    def find(self, number: int) -> int:
        """The least number of a set stands for it."""
        while self._above[number] != number:
            number = self._above[number]
        return number

    def join(self, numbers: Iterable[int]) -> None:
        """Make one set of those that hold them."""
        found = sorted({self.find(number) for number in numbers})
        self._above.update(dict.fromkeys(found, found[0]) if found else {})


class _Name:
    """One name that several ranks use, and what is known so far of who holds the same."""

    def __init__(self, held: Mapping[int, _Held]) -> None:
        self.held = held
        atoms = {one.atom for one in held.values()}
        self.later, self.ever = Joined(atoms), Joined(atoms)
        """Who agrees once there were steps; who agrees then or at the start."""
        self.start = ""
        """`told` where start values were compared, `one number` where they are, on some rank."""
        self.looked: list[int] = []
        """Steps at which gradients were compared."""

    def compare(self, quantity: str, step: int, told: Mapping[int, tuple[int, bool]]) -> None:
        """Take note of a row of each rank: its fingerprint, and whether its elements are more than one number."""
        alike: dict[tuple[Any, ...], list[int]] = {}
        compared: dict[tuple[Any, ...], set[int]] = {}
        for rank, (bits, tells) in told.items():
            one = self.held[rank]
            if tells:
                alike.setdefault((one.shape, one.block, bits), []).append(one.atom)
                compared.setdefault((one.shape, one.block), set()).add(one.atom)
            elif step == 0:
                self.start = "one number"
        for atoms in alike.values():
            self.ever.join(atoms)
            if step:
                self.later.join(atoms)
        if any(len(atoms) > 1 for atoms in compared.values()):
            if step == 0:
                self.start = self.start or "told"
            elif quantity == "grad":
                self.looked.append(step)

    def shapes(self) -> Camps:
        """Ranks by the shape of the whole."""
        return self._by(lambda one: one.shape)

    def camps(self, joined: Joined) -> Camps:
        """Ranks by shape and by who agrees; by shape alone where a few ranks stand against many: that is no design."""
        camps = self._by(lambda one: (one.shape, joined.find(one.atom)))
        sizes: dict[str, set[int]] = {}
        for camp in camps:
            sizes.setdefault(self.held[camp[0]].shape, set()).add(len(camp))
        return camps if all(len(size) == 1 for size in sizes.values()) else self.shapes()

    def _by(self, kind: Callable[[_Held], Any]) -> Camps:
        found: dict[Any, list[int]] = {}
        for rank, one in sorted(self.held.items()):
            found.setdefault(kind(one), []).append(rank)
        return tuple(sorted(tuple(ranks) for ranks in found.values()))


def find_own(members: Mapping[int, Trace]) -> list[Own]:
    """What is to be read as different parameters on different ranks; `members` are the ranks' own traces."""
    names = _shared_names(members)
    if names:
        _look(members, names, (0, 0), ("param",))
    waiting = names
    for steps in _first_steps(members) if names else ():
        waiting = {key: name for key, name in waiting.items() if len(name.camps(name.later)) > len(name.shapes())}
        if waiting:
            _look(members, waiting, steps, ("grad", "param", "param_in"))
    found: dict[tuple[int, Camps, bool], list[str]] = {}
    looked: dict[int, list[int]] = {}
    for (optimizer, name), (camps, certain) in _judge(names, _layouts(members)).items():
        found.setdefault((optimizer, camps, certain), []).append(name)
        looked.setdefault(optimizer, []).extend(names[optimizer, name].looked)
    return [
        Own(optimizer, tuple(params), camps, certain, *(pick(looked[optimizer], default=0) for pick in (min, max)))
        for (optimizer, camps, certain), params in found.items()
    ]


def _judge(
    names: Mapping[Key, _Name], layouts: Mapping[tuple[int, int], frozenset[Any]]
) -> dict[Key, tuple[Camps, bool]]:
    """Of each name that stands for different parameters the camps, and whether the layouts alone say so."""

    def apart(optimizer: int, camps: Camps) -> bool:
        kinds = [{layouts[optimizer, rank] for rank in camp} for camp in camps]
        return sum(map(len, kinds)) == len(set().union(*kinds))

    found: dict[Key, tuple[Camps, bool] | None] = {}
    silent: list[Key] = []
    for key, name in names.items():
        shapes, later, ever = name.shapes(), name.camps(name.later), name.camps(name.ever)
        one = (shapes, True) if len(shapes) > 1 else None
        if len(later) > len(shapes) and name.looked and apart(key[0], later):
            one = later, True
        elif len(ever) > len(shapes) and name.start == "told" and (name.looked or apart(key[0], ever)):
            one = ever, apart(key[0], ever)
        elif len(ever) > len(shapes) and name.start == "one number" and name.looked:
            silent.append(key)
        found[key] = one
    around = {key: one for key, one in found.items() if key not in silent}
    for key in silent:
        found[key] = _as_around(key, names[key].camps(names[key].ever), around)
    return {key: one for key, one in found.items() if one is not None}


def _as_around(key: Key, camps: Camps, around: Mapping[Key, tuple[Camps, bool] | None]) -> tuple[Camps, bool] | None:
    """What the nearest parameters are (in the same module, else in the one around it), if it is the same of all."""
    optimizer, name = key
    parts = name.split(".")
    for length in range(len(parts) - 1, -1, -1):
        prefix = "".join(f"{part}." for part in parts[:length])
        near = [one for (index, other), one in around.items() if index == optimizer and other.startswith(prefix)]
        if near:
            same = all(one is not None and one[0] == camps for one in near)
            return (camps, all(one is not None and one[1] for one in near)) if same else None
    return None


def _shared_names(members: Mapping[int, Trace]) -> dict[Key, _Name]:
    """Names under which several ranks hold tensors that are not known to be parts of one."""
    held: dict[Key, dict[int, _Held]] = {}
    for rank, member in members.items():
        for row in rows_of(member.params_rows()):
            block, atom = pieces_of(row).get("param", (None, rank))
            held.setdefault((row["optimizer"], row["param"]), {})[rank] = _Held(str(row.get("shape")), block, atom)
    atoms = {key: {(one.shape, one.atom) for one in ranks.values()} for key, ranks in held.items()}
    return {key: _Name(ranks) for key, ranks in held.items() if len(atoms[key]) > 1}


def _layouts(members: Mapping[int, Trace]) -> dict[tuple[int, int], frozenset[Any]]:
    """(optimizer, rank) to the names and shapes of the parameters that it has there."""
    found: dict[tuple[int, int], set[Any]] = {}
    for rank, member in members.items():
        for row in rows_of(member.params_rows()):
            found.setdefault((row["optimizer"], rank), set()).add((row["param"], str(row.get("shape"))))
    return {key: frozenset(entries) for key, entries in found.items()}


def rows_of(params: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """The rows of a params.json that make sense."""
    for row in params:
        if isinstance(row, dict) and type(row.get("optimizer")) is int and isinstance(row.get("param"), str):
            yield row


def _look(
    members: Mapping[int, Trace], names: Mapping[Key, _Name], steps: tuple[int, int], quantities: Sequence[str]
) -> None:
    """Compare what ranks hold at those steps."""
    told: dict[tuple[int, str, str, int], dict[int, tuple[int, bool]]] = {}
    selection = Selection.of(steps, None, sorted({name for _, name in names}), quantities)
    for rank, member in members.items():
        rows = member.stored("tensors", selection, _COLUMNS)
        columns = (rows.column(name).to_pylist() for name in _COLUMNS)
        for step, optimizer, param, quantity, least, most, bits in zip(*columns, strict=True):
            if (optimizer, param) in names:
                told.setdefault((optimizer, param, quantity, step), {})[rank] = bits, least < most
    for (optimizer, param, quantity, step), rows in told.items():
        name = names[optimizer, param]
        # A step can make equal values from one number and different gradients.
        if quantity == "grad" or step == 0 or name.start == "told":
            name.compare(quantity, step, rows)


def _first_steps(members: Mapping[int, Trace]) -> Iterator[tuple[int, int]]:
    """Spans of the first recorded steps that are looked at, a short one first."""
    selection = Selection.of((1, None), None, None, None)
    tables = (member.stored("steps", selection, ["step"]) for member in members.values())
    steps = sorted({step for table in tables for step in table.column("step").to_pylist()})[:STEPS]
    if steps:
        yield steps[0], steps[0]
    if len(steps) > 1:
        yield steps[1], steps[-1]
