"""What a resumed run took over and what it lost: its world before step 1 against the other run's at that step."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from optrace.compare.arrow import integers, lists, numbers, texts
from optrace.compare.match import Matching
from optrace.compare.random_states import HOSTS, torch_half
from optrace.compare.source import Source


@dataclass(frozen=True)
class Resumed:
    """One thing that a resumed run should have taken over."""

    what: str
    """params, state.<key>, counter, lr of group N, scheduler, random state, data."""
    status: str
    """equal, differs, not restored, unknown."""
    a: Any
    """The value at that point, where it is a single number."""
    b: Any
    tensors: bool
    """Whether it is values of parameters or state, as opposed to a setting or a generator."""
    lost: str | None
    """Where it was lost, as far as the events tell: saved, load or after."""


def resume_table(a: Source, b: Source, matching: Matching, offsets: tuple[int, ...]) -> tuple[Resumed, ...]:
    """What B, whose step 1 is step k+1 of A, has of A's world after step k; empty where B resumes nothing."""
    rows: list[Resumed] = []
    several = len(matching.pairs) > 1
    for number, (pair, offset) in enumerate(zip(matching.pairs, offsets, strict=True)):
        if offset <= 0:
            continue
        names = {cell.param_b: cell.param_a for cell in matching.cells if cell.pair == number}
        prefix = f"optimizer {pair.a}: " if several else ""
        found = _of_pair(a, b, pair.a, pair.b, offset, names, dict(matching.groups(number)))
        rows.extend(replace(row, what=prefix + row.what) for row in found)
    return tuple(rows)


def resume_words(rows: tuple[Resumed, ...], same: bool = False) -> list[str]:
    """The table as short sentences, what is equal together in the last one.

    `same` says that the two runs are: tensors that differ then do so within the tolerance, and nothing was lost.
    """
    lines = []
    rounded = [row.what for row in rows if same and row.status == "differs" and row.tensors and row.a == row.b]
    if rounded:
        lines.append(f"within tolerance, as the steps before it: {', '.join(rounded)}")
    for row in rows:
        if row.status in ("equal", "unknown") or row.what in rounded:
            continue
        known = row.a is not None or row.b is not None
        values = f": {_shown(row.a)} in {{A}}, {_shown(row.b)} in {{B}}" if known else ""
        where = {
            "saved": " (was not in what was saved)",
            "load": " (lost at load: no state of an optimizer with it was loaded)",
            "after": " (it was loaded, and lost after)",
            None: "",
        }[row.lost]
        lines.append(f"{row.what} {row.status}{values}{where}")
    for status, words in (("equal", "equal"), ("unknown", "not recorded")):
        names = [row.what for row in rows if row.status == status]
        if names:
            lines.append(f"{words}: {', '.join(names)}")
    return lines


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else repr(value)


def _of_pair(
    a: Source, b: Source, index_a: int, index_b: int, step: int, names: Mapping[str, str], groups: Mapping[int, int]
) -> Iterator[Resumed]:
    there = _world(a, index_a, step)
    here = {(names.get(param, param), q): row for (param, q), row in _world(b, index_b, 0).items()}
    if not any(quantity == "param" for _, quantity in there):
        return
    saved = _keys_of_event(a, index_a, "state_dict", step)
    loaded = _keys_of_event(b, index_b, "load_state_dict", 0)
    quantities = dict.fromkeys(q for _, q in there if q == "param" or q.startswith("state."))
    for quantity in quantities:
        status = _status(there, here, quantity)
        value_a = value_b = None
        if quantity == "state.step" and status != "equal":
            value_a, value_b = _number(there, quantity), _number(here, quantity)
        lost = None
        if quantity != "param" and status != "equal":
            lost = _lost(quantity.removeprefix("state."), saved, loaded)
        name = {"param": "params", "state.step": "step counter"}.get(quantity, quantity)
        yield Resumed(name, status, value_a, value_b, True, lost)
    yield from _rates(a, b, index_a, index_b, step, groups)
    yield from _scheduler(a, b, step)
    yield from _surroundings(a, b, index_a, index_b, step)


def _world(source: Source, optimizer: int, step: int) -> dict[tuple[str, str], tuple[int, float]]:
    """Fingerprint and first sampled element of parameters and state after a step, by param and quantity."""
    table = source.trace.arrow(
        "tensors", step=step, optimizer=optimizer, columns=["param", "quantity", "fingerprint", "sample"]
    )
    if not table.num_rows:
        return {}
    keys = zip(texts(table.column("param")), texts(table.column("quantity")), strict=True)
    prints, firsts = integers(table.column("fingerprint")).tolist(), lists(table.column("sample"))[:, 0].tolist()
    return {
        key: value
        for key, value in zip(keys, zip(prints, firsts, strict=True), strict=True)
        if key[1] == "param" or key[1].startswith("state.")
    }


def _status(there: Mapping[Any, Any], here: Mapping[Any, Any], quantity: str) -> str:
    wanted = [key for key in there if key[1] == quantity]
    if not any(key in here for key in wanted):
        return "not restored"
    return "equal" if all(key in here and here[key][0] == there[key][0] for key in wanted) else "differs"


def _number(world: Mapping[Any, Any], quantity: str) -> float | None:
    found = {value for (_, q), (_, value) in world.items() if q == quantity}
    return found.pop() if len(found) == 1 else None


def _lost(key: str, saved: set[str] | None, loaded: set[str] | None) -> str | None:
    if saved is not None and key not in saved:
        return "saved"
    if loaded is None or key not in loaded:
        return "load"
    return "after"


def _keys_of_event(source: Source, optimizer: int, kind: str, step: int) -> set[str] | None:
    """State keys of the last such event of an optimizer after a step and before the next; None where none was seen."""
    found = None
    for at, index, data in _events(source, kind):
        if at == step and index in (optimizer, -1) and isinstance(data.get("state"), dict):
            found = set(data["state"])
    return found


def _events(source: Source, kind: str) -> Iterator[tuple[int, int, dict[str, Any]]]:
    table = source.trace.arrow("events", columns=["step", "kind", "optimizer", "data"])
    steps, indices = integers(table.column("step")).tolist(), integers(table.column("optimizer")).tolist()
    kinds, data = texts(table.column("kind")), texts(table.column("data"))
    for at, index, name, text in zip(steps, indices, kinds, data, strict=True):
        if name == kind:
            yield at, index, json.loads(text)


def _rates(a: Source, b: Source, index_a: int, index_b: int, step: int, groups: Mapping[int, int]) -> Iterator[Resumed]:
    rates_a, rates_b = _lr(a, index_a, step + 1), _lr(b, index_b, 1)
    for group_a, group_b in groups.items():
        if group_a in rates_a and group_b in rates_b:
            name = "lr" if len(groups) == 1 else f"lr of group {group_a}"
            yield _compared(name, rates_a[group_a], rates_b[group_b])


def _compared(what: str, one: Any, other: Any) -> Resumed:
    """Two numbers, shown where they are not the same."""
    return (
        Resumed(what, "equal", None, None, False, None)
        if one == other
        else Resumed(what, "differs", one, other, False, None)
    )


def _lr(source: Source, optimizer: int, step: int) -> dict[int, float]:
    table = source.trace.arrow("groups", step=step, optimizer=optimizer, columns=["group", "key", "number"])
    rows = zip(
        integers(table.column("group")).tolist(),
        texts(table.column("key")),
        numbers(table.column("number")),
        strict=True,
    )
    return {group: float(value) for group, key, value in rows if key == "lr"}


def _scheduler(a: Source, b: Source, step: int) -> Iterator[Resumed]:
    """The epoch of the scheduler's first step after the point of resumption."""
    one = next((data.get("last_epoch") for at, _, data in _events(a, "scheduler_step") if at == step + 1), None)
    other = next((data.get("last_epoch") for at, _, data in _events(b, "scheduler_step") if at == 1), None)
    if one is not None and other is not None:
        yield _compared("scheduler", one, other)


def _surroundings(a: Source, b: Source, index_a: int, index_b: int, step: int) -> Iterator[Resumed]:
    for column, name in (("rng", "random state"), ("batch", "data")):
        one, other = _of_steps(a, index_a, step + 1, column), _of_steps(b, index_b, 1, column)
        if one is None or other is None:
            yield Resumed(name, "unknown", None, None, False, None)
        elif column == "rng" and (one != other) and torch_half(one) == torch_half(other):
            yield Resumed("torch's random state", "equal", None, None, False, None)
            yield Resumed(f"random state ({HOSTS})", "differs", None, None, False, None)
        else:
            yield Resumed(name, "equal" if one == other else "differs", None, None, False, None)


def _of_steps(source: Source, optimizer: int, step: int, column: str) -> int | None:
    values = source.trace.arrow("steps", step=step, optimizer=optimizer, columns=[column]).column(column).to_pylist()
    return values[0] if values else None
