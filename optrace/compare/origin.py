"""How the two sides came to be: what differs in it, and whether rounding can explain anything between them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optrace.compare.match import Matching
from optrace.compare.report import Difference
from optrace.compare.source import Source, param_rows

_OF_THE_RUN = frozenset({"format", "run", "job", "started", "command", "settings", "optrace"})
_OF_THE_PROCESS = frozenset({"pid", "host", "rank", "end", "unsealed", "optimizers", "distributions"})
_SETTINGS = ("values", "every", "steps", "params", "quantities")
"""Settings that say what was recorded, not where."""


@dataclass(frozen=True)
class Origin:
    """Provenance of both sides, compared."""

    equal: bool
    """Same implementation, torch, device, layout, CPU capability and threads: then rounding explains nothing."""
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]


def compare_origins(a: Source, b: Source, matching: Matching) -> Origin:
    """Compare what trace.json, rank.json and params.json say; a fact that either side does not tell is not equal."""
    flat_a, flat_b = dict(_flat(a, matching, left=True)), dict(_flat(b, matching, left=False))
    differences = [
        Difference(key, flat_a.get(key), flat_b.get(key))
        for key in dict.fromkeys([*flat_a, *flat_b])
        if flat_a.get(key) != flat_b.get(key)
    ]
    facts_a, facts_b = _rounding(a, matching, left=True), _rounding(b, matching, left=False)
    unknown = [name for name, value in facts_a.items() if value is None or facts_b[name] is None]
    other = [name for name, value in facts_a.items() if name not in unknown and value != facts_b[name]]
    if not unknown and not other:
        note = "judged to the bit: same implementation, torch, device, CPU capability and threads"
    elif other:
        reasons = [f"other {name} ({_word(facts_a[name])}, {_word(facts_b[name])})" for name in other]
        note = f"judged within tolerance: {', '.join(reasons)}"
    else:
        note = f"judged within tolerance: not known to be of the same {', '.join(unknown)}"
    notes = [note]
    if _is_one_run(a, b):
        notes.append("{A} and {B} are one and the same run")
    elif not differences and _told_code(a) and a.path != b.path:
        notes.append("both ran the same code with the same arguments in the same environment")
    return Origin(not unknown and not other, tuple(differences), tuple(notes))


def _rounding(source: Source, matching: Matching, *, left: bool) -> dict[str, Any]:
    """What decides how numbers are rounded; None where it is not told."""
    info = source.trace.rank_info
    order = [pair.a if left else pair.b for pair in matching.pairs]
    entries = _optimizers(source)
    rows = [row for row in param_rows(source) if row["optimizer"] in order]
    kinds = sorted({str(row.get("device") or "").partition(":")[0] for row in rows})
    models = [device.get("model") for device in _find(info, "gpu", "devices") or () if isinstance(device, Mapping)]
    placements = sorted({str(row["placement"]) for row in rows if row.get("placement")})
    world = _find(info, "distributed", "world_size") or 1
    return {
        "implementation": _implementations([entries.get(index, {}) for index in order]),
        "torch": _find(info, "torch", "version"),
        "device": [*kinds, *dict.fromkeys(models)] if kinds and all(kinds) else None,
        "dtype": sorted({str(row.get("dtype")) for row in rows}) or None,
        "layout": [f"{world} ranks" if world != 1 else "1 rank", *placements] if rows else None,
        "CPU capability": _find(info, "cpu_capability"),
        "threads": _find(info, "threads", "intra"),
    }


def _implementations(entries: list[Mapping[str, Any]]) -> list[str] | None:
    """Which code each optimizer ran: torch's own by class and implementation, any other by its source as well."""
    words = []
    for entry in entries:
        if not entry.get("implementation") or not entry.get("class"):
            return None
        word = f"{entry['class']} {entry['implementation']}"
        if not _is_torchs(entry):
            source = entry.get("source")
            word += f" of {entry.get('module')} {str(source)[:8] if source else 'without source'}"
        words.append(word)
    return words


def _is_torchs(entry: Mapping[str, Any]) -> bool:
    return str(entry.get("module", "")).startswith("torch.")


def _optimizers(source: Source) -> dict[int, Mapping[str, Any]]:
    listed = source.trace.rank_info.get("optimizers")
    entries = [entry for entry in listed if isinstance(entry, Mapping)] if isinstance(listed, list) else []
    return {entry["index"]: entry for entry in entries if isinstance(entry.get("index"), int)}


def _find(info: Mapping[str, Any], *path: str) -> Any:
    found: Any = info
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _flat(source: Source, matching: Matching, *, left: bool) -> Iterator[tuple[str, Any]]:
    """Facts about a side under dotted names, the weightiest first, without those that differ between any two runs."""
    info, rank = source.trace.info, source.trace.rank_info
    command = info.get("command")
    if isinstance(command, list) and command:
        yield "command", shlex.join([Path(str(command[0])).name, *(str(word) for word in command[1:])])
    for key, value in info.items():
        if key not in _OF_THE_RUN:
            yield from _leaves(key, value)
    entries = _optimizers(source)
    for pair in matching.pairs:
        entry = entries.get(pair.a if left else pair.b, {})
        for key, value in entry.items():
            if key != "index" and not (key == "source" and _is_torchs(entry)):
                yield f"optimizer.{pair.a}.{key}", value
    for key, value in rank.items():
        if key not in _OF_THE_PROCESS:
            yield from _leaves(key, value)
    settings = info.get("settings")
    if isinstance(settings, Mapping):
        yield from ((f"settings.{name}", settings.get(name)) for name in _SETTINGS)
    yield from _leaves("distributions", rank.get("distributions") or {})


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(f"{key}.{name}", item)
    elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        for number, item in enumerate(value):
            yield from _leaves(f"{key}.{number}", item)
    else:
        yield key, value


def _is_one_run(a: Source, b: Source) -> bool:
    if a.trace is b.trace:
        return True
    same_place = a.path is not None and b.path is not None and a.path.resolve() == b.path.resolve()
    return same_place and a.optimizers == b.optimizers and a.steps == b.steps and a.rank == b.rank


def _told_code(source: Source) -> bool:
    return bool(_find(source.trace.info, "code", "script") or _find(source.trace.info, "code", "git"))


def _word(value: Any) -> str:
    return "/".join(str(item) for item in value) if isinstance(value, list) else str(value)
