"""Which step of B is which step of A: the same number, or the one at which a resumed run picked up."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from optrace.compare.arrow import integers, lists, numbers, texts
from optrace.compare.match import Matching
from optrace.compare.source import Source
from optrace.errors import CompareError

_CANDIDATES = 8


@dataclass(frozen=True)
class Alignment:
    """For each matched optimizer what is added to B's step numbers to give A's, and the sentence that says so."""

    offsets: tuple[int, ...]
    note: str | None


def align_steps(a: Source, b: Source, matching: Matching, align: str | tuple[int, int] | None) -> Alignment:
    """Offsets from `--align I:J` (step I of A is step J of B), or from how the two runs started.

    A run whose step 0 already has state with a step counter continues another one: its counter gives the offset, and
    its start values confirm it where A recorded them. Without a counter, start values that are bitwise those after a
    later step of A give it. CompareError when `align` is malformed.
    """
    if align is not None:
        step_a, step_b = _parse(align)
        offset = step_a - step_b
        words = f"aligned as asked: step {step_b} of {{B}} is step {step_a} of {{A}}"
        return Alignment((offset,) * len(matching.pairs), words)
    starts_a, starts_b = _starts(a), _starts(b)
    found = [
        _start_offset(a, matching, number, starts_a.get(pair.a, _NOTHING), starts_b.get(pair.b, _NOTHING))
        for number, pair in enumerate(matching.pairs)
    ]
    notes = list(dict.fromkeys(note for _, note in found if note))
    return Alignment(tuple(offset for offset, _ in found), "; ".join(notes) or None)


def _parse(align: str | tuple[int, int]) -> tuple[int, int]:
    if not isinstance(align, str):
        return int(align[0]), int(align[1])
    match = re.fullmatch(r"(\d+):(\d+)", align.strip())
    if match is None:
        raise CompareError(
            f"--align {align!r} is no I:J; write the step of A, a colon, the step of B that it belongs to"
        )
    return int(match[1]), int(match[2])


@dataclass(frozen=True)
class _Start:
    """One optimizer's world before step 1."""

    params: Mapping[str, int]
    """Fingerprint by name."""
    has_state: bool
    counter: int


_NOTHING = _Start({}, False, 0)


def _start_offset(
    a: Source, matching: Matching, number: int, start_a: _Start, start_b: _Start
) -> tuple[int, str | None]:
    pair = matching.pairs[number]
    cells = [cell for cell in matching.cells if cell.pair == number and cell.param_b in start_b.params]
    if not cells or not start_a.params:
        return 0, None
    wanted = {cell.param_a: start_b.params[cell.param_b] for cell in cells}
    if all(start_a.params.get(name) == fingerprint for name, fingerprint in wanted.items()):
        return 0, None
    by_counter = start_b.counter - start_a.counter
    by_values = _same_params(a, pair.a, wanted, start_a)
    if by_counter and by_counter in by_values:
        return by_counter, _resumed(by_counter, f"{{B}} starts with step counter {start_b.counter}")
    if len(by_values) == 1:
        offset = by_values[0]
        why = f"{{B}} starts with the parameters of {{A}} after step {offset}"
        if start_b.has_state and start_b.counter and by_counter != offset:
            why += f", though with step counter {start_b.counter}"
        return offset, _resumed(offset, why)
    if by_counter and (start_b.has_state or start_a.has_state):
        which = f"{{B}} starts with step counter {start_b.counter}"
        if start_a.counter:
            which += f", {{A}} with {start_a.counter}"
        return by_counter, _resumed(by_counter, which)
    return 0, None


def _resumed(offset: int, why: str) -> str:
    if offset > 0:
        return f"step 1 of {{B}} is taken for step {offset + 1} of {{A}}: {why}"
    return f"step {1 - offset} of {{B}} is taken for step 1 of {{A}}: {why}"


def _starts(source: Source) -> dict[int, _Start]:
    """The world before step 1 of every optimizer that recorded one."""
    columns = ["optimizer", "param", "quantity", "fingerprint", "sample"]
    table = source.trace.arrow("tensors", step=0, columns=columns)
    optimizer, fingerprint = integers(table.column("optimizer")), integers(table.column("fingerprint"))
    names, quantities = texts(table.column("param")), texts(table.column("quantity"))
    first = lists(table.column("sample"))[:, 0]
    found: dict[int, _Start] = {}
    for index in np.unique(optimizer).tolist():
        rows = np.flatnonzero(optimizer == index).tolist()
        params = {names[row]: int(fingerprint[row]) for row in rows if quantities[row] == "param"}
        counts = [float(first[row]) for row in rows if quantities[row] == "state.step" and np.isfinite(first[row])]
        has_state = any(quantities[row].startswith("state.") for row in rows)
        found[index] = _Start(params, has_state, int(max(counts, default=0)))
    return found


def _same_params(a: Source, optimizer: int, wanted: Mapping[str, int], start: _Start) -> list[int]:
    """Steps of A after which every wanted parameter has the wanted fingerprint."""
    probe = next((name for name, fingerprint in wanted.items() if start.params.get(name) != fingerprint), None)
    if probe is None:
        return []
    history = a.trace.arrow(
        "tensors", optimizer=optimizer, param=probe, quantity="param", columns=["step", "fingerprint"]
    )
    hits = numbers(history.column("step"))[numbers(history.column("fingerprint")) == wanted[probe]]
    return [
        int(step) for step in sorted(hits)[:_CANDIDATES] if step > 0 and _all_equal(a, optimizer, int(step), wanted)
    ]


def _all_equal(a: Source, optimizer: int, step: int, wanted: Mapping[str, int]) -> bool:
    columns = ["param", "fingerprint"]
    table = a.trace.arrow("tensors", step=step, optimizer=optimizer, quantity="param", columns=columns)
    there = dict(zip(texts(table.column("param")), numbers(table.column("fingerprint")).tolist(), strict=True))
    return all(there.get(name) == fingerprint for name, fingerprint in wanted.items())
