"""How the two sides came to be: what differs in it, and whether rounding can explain anything between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from optrace.compare.match import Matching
from optrace.compare.report import Difference
from optrace.compare.source import Source, param_rows

_OF_THE_RUN = frozenset(
    {"format", "run", "run_id", "id", "job", "job_id", "command", "argv", "started", "created", "time", "date", "cwd"}
)
_OF_THE_PROCESS = frozenset(
    {"pid", "ppid", "end", "rank", "host", "hostname", "started", "created", "time", "unsealed"}
)
_SETTINGS = frozenset({"values", "every", "steps", "params", "quantities"})
"""Settings that say what was recorded, not where."""


@dataclass(frozen=True)
class Origin:
    """Provenance of both sides, compared."""

    equal: bool
    """Same implementation, torch, device kind, CPU capability and threads: then rounding explains nothing."""
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]


def compare_origins(a: Source, b: Source, matching: Matching) -> Origin:
    """Compare what trace.json and rank.json say; a fact that either side does not tell counts as different."""
    flat_a, flat_b = dict(_flat(a)), dict(_flat(b))
    differences = [
        Difference(key, flat_a.get(key), flat_b.get(key))
        for key in dict.fromkeys([*flat_a, *flat_b])
        if flat_a.get(key) != flat_b.get(key)
    ]
    facts_a, facts_b = _rounding(a, matching, left=True), _rounding(b, matching, left=False)
    reasons = []
    unknown = []
    for name, value in facts_a.items():
        other = facts_b[name]
        if value is None or other is None:
            unknown.append(name)
        elif value != other:
            reasons.append(f"{name} ({_word(value)}, {_word(other)})")
    equal = not reasons and not unknown
    notes = []
    if equal:
        notes.append("judged to the bit: same implementation, torch, device, CPU capability and threads")
    elif reasons:
        notes.append(f"judged within tolerance: other {', other '.join(reasons)}")
    else:
        notes.append(f"judged within tolerance: not known to be of the same {', '.join(unknown)}")
    if a.path is not None and b.path is not None and a.path.resolve() == b.path.resolve():
        if a.optimizers == b.optimizers and a.steps == b.steps and a.name == b.name:
            notes.append("{A} and {B} are one and the same run")
    elif _same_code(a, b) and not differences:
        notes.append("both runs ran the same code with the same arguments in the same environment")
    return Origin(equal, tuple(differences), tuple(notes))


def _rounding(source: Source, matching: Matching, *, left: bool) -> dict[str, Any]:
    """What decides how numbers are rounded; None where it is not told."""
    info = source.trace.rank_info
    own = {pair.a if left else pair.b for pair in matching.pairs}
    kinds = sorted(
        {str(row.get("device", "")).partition(":")[0] for row in param_rows(source) if row["optimizer"] in own}
    )
    order = [pair.a if left else pair.b for pair in matching.pairs]
    listed = info.get("optimizers")
    entries = (
        {entry.get("index"): entry for entry in listed if isinstance(entry, Mapping)}
        if isinstance(listed, list)
        else {}
    )
    implementations = [entries.get(index, {}).get("implementation") for index in order]
    known = all(implementation is not None for implementation in implementations) and implementations
    return {
        "implementation": implementations if known else None,
        "torch": _find(info, "torch", "version"),
        "device": kinds if kinds and all(kinds) else None,
        "CPU capability": _find(info, "cpu", "capability"),
        "threads": _find(info, "threads"),
    }


def _find(info: Mapping[str, Any], *path: str) -> Any:
    found: Any = info
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _flat(source: Source) -> Iterator[tuple[str, Any]]:
    """Facts about a side under dotted names, without those that differ between any two runs."""
    for key, value in source.trace.info.items():
        if key == "settings" and isinstance(value, Mapping):
            yield from ((f"settings.{name}", value.get(name)) for name in sorted(_SETTINGS))
        elif key not in _OF_THE_RUN:
            yield from _leaves(key, value)
    for key, value in source.trace.rank_info.items():
        if key not in _OF_THE_PROCESS:
            yield from _leaves(key, value)


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(f"{key}.{name}", item)
    elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        for number, item in enumerate(value):
            yield from _leaves(f"{key}.{number}", item)
    else:
        yield key, value


def _same_code(a: Source, b: Source) -> bool:
    codes = [source.trace.info.get("code") for source in (a, b)]
    commands = [source.trace.info.get("command") for source in (a, b)]
    return bool(codes[0]) and codes[0] == codes[1] and commands[0] == commands[1]


def _word(value: Any) -> str:
    return "/".join(str(item) for item in value) if isinstance(value, list) else str(value)
