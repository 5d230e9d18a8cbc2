"""A trace on one screen: what ran, its optimizers and their groups, the losses, the parameters, how it ended."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optrace.compare.arrow import coded, integers, known, numbers
from optrace.compare.hyper import SCHEDULER_KEYS, STRUCTURE
from optrace.compare.source import Source, param_rows
from optrace.compare.words import count_words
from optrace.trace.logical import LogicalTrace
from optrace.views.cells import hyper_text
from optrace.views.ranks import own_lines, rank_lines
from optrace.views.style import Style
from optrace.views.tables import Table, printable, render

_PARAMS_SHOWN = 12
_GROUPS_SHOWN = 8
_OPTIMIZERS_SHOWN = 8


def overview(source: Source, color: bool = False) -> str:
    """The trace on one screen, ending in a newline.

    A hyper-parameter that changes is shown as `first -> last`.
    """
    style = Style(color)
    lines = [style.strong(printable(source.name)), *_facts(source, style)]
    shown = source.optimizers[: _OPTIMIZERS_SHOWN if len(source.optimizers) > _OPTIMIZERS_SHOWN + 1 else None]
    for index in shown:
        lines += ["", *_optimizer(source, index, style)]
    lines += _further(source, source.optimizers[len(shown) :])
    lines += ["", *_params(source, style)]
    problems = list(source.trace.problems)
    if problems:
        lines += ["", style.bad("problems")]
        lines += [f"  {printable(problem)}" for problem in problems[:6]]
        if len(problems) > 6:
            lines.append(f"  {len(problems) - 6} more")
    spec = shlex.quote(source.spec)
    lines += ["", f"  {style.label('next   ')} optrace show {spec} steps", f"          optrace show {spec} groups"]
    if source.rank is None and len(list(source.trace.ranks)) > 1:
        lines.append(f"          optrace lint {spec}   (do the ranks agree?)")
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _facts(source: Source, style: Style) -> Iterator[str]:
    info, rank = source.trace.info, source.trace.rank_info
    facts: list[tuple[str, str]] = []
    command = info.get("command")
    if isinstance(command, list) and command:
        words = [str(word) for word in command]
        words[0] = Path(words[0]).name
        facts.append(("ran", shlex.join(words)))
    kept = _asked(info.get("settings"))
    if kept:
        facts.append(("with", shlex.join(kept)))
    if info.get("started"):
        facts.append(("when", str(info["started"]).replace("T", " ").replace("+00:00", " UTC")))
    machine = [f"torch {_at(rank, 'torch', 'version')}" if _at(rank, "torch", "version") else ""]
    machine += [str(_at(rank, "cpu", "model") or ""), str(_at(rank, "cpu_capability") or "")]
    devices = _at(rank, "gpu", "devices")
    if isinstance(devices, list):
        machine += sorted({str(_at(device, "model")) for device in devices})
    if _at(rank, "threads", "intra"):
        machine.append(count_words(int(_at(rank, "threads", "intra")), "thread"))
    machine = [word for word in machine if word]
    if machine:
        facts.append(("on", ", ".join(machine)))
    facts.append(("ended", _end(source)))
    ranks = list(source.trace.ranks)
    if len(ranks) > 1 and (source.rank is not None or isinstance(source.trace, LogicalTrace)):
        facts.append(
            ("ranks", f"{len(ranks)}, read as one run; one of them alone is {source.spec}@rank={ranks[-1]}")
            if source.rank is None
            else ("rank", f"{source.rank} alone, of {len(ranks)}")
        )
    if source.rank is None and isinstance(source.trace, LogicalTrace):
        facts += [("", line) for line in rank_lines(source.trace)]
        facts += [("" if number else "own", line) for number, line in enumerate(own_lines(source.trace))]
    children = getattr(source.trace, "children", [])
    if children:
        facts.append(("runs in", ", ".join(path.name for path in children[:4]) + (" ..." if len(children) > 4 else "")))
    events = _events(source)
    if events:
        facts.append(("events", events))
    for label, text in facts:
        yield f"  {style.label(f'{label:<7}')} {printable(text)}"


def _asked(settings: Any) -> list[str]:
    """The options that decided what was kept, as they are written on the command line; empty for the defaults."""
    words: list[str] = []
    for name, default in (("values", "sample"), ("every", 1), ("steps", None), ("stop_after", None)):
        value = _at(settings, name)
        if value not in (None, default):
            sides = value if isinstance(value, list) else [value]
            words += [f"--{name.replace('_', '-')}", ":".join("" if side is None else str(side) for side in sides)]
    for pattern in _patterns(settings, "params"):
        words += ["--params", pattern]
    quantities = _patterns(settings, "quantities")
    words += ["--quantities", ",".join(quantities)] if quantities else []
    return words + (["--micro"] if _at(settings, "micro") is True else [])


def _patterns(settings: Any, name: str) -> list[str]:
    listed = _at(settings, name)
    return [str(pattern) for pattern in listed] if isinstance(listed, list) else []


def _end(source: Source) -> str:
    end = source.trace.rank_info.get("end")
    if end is None:
        return "not yet: it is running, or was killed"
    return "cleanly" if end == "clean" else str(end)


def _events(source: Source) -> str:
    if source.trace.rank_info == {} and not list(source.trace.ranks):
        return ""
    codes, words = coded(source.trace.arrow("events", columns=["kind"]).column("kind"))
    counts = Counter({words[code]: int(count) for code, count in enumerate(np.bincount(codes)) if count})
    listed = [f"{count:,} {kind}" for kind, count in counts.most_common() if kind != "recorder"]
    return ", ".join(listed)


def _optimizer(source: Source, index: int, style: Style) -> Iterator[str]:
    classes = dict(source.trace.optimizers)
    steps = source.trace.arrow("steps", optimizer=index, columns=["step", "loss", "seconds"])
    own = integers(steps.column("step"))
    inside = np.array([source.covers(int(step)) for step in own], bool) if len(own) else np.empty(0, bool)
    words = [f"optimizer {index}: {classes.get(index, '')}"]
    for entry in source.trace.rank_info.get("optimizers") or ():
        if _at(entry, "index") == index and _at(entry, "implementation"):
            words[0] += f" ({entry['implementation']})"
    kept = own[inside].tolist()
    if not len(own):  # a golden has no such table
        trace: Any = source.trace
        kept = [step for step in range(1, trace.last_step(index) + 1) if source.covers(step)]
    words.append(count_words(len(kept), "step") + (f" ({kept[0]} to {kept[-1]})" if len(kept) and kept[0] != 1 else ""))
    losses = numbers(steps.column("loss"))[known(steps.column("loss")) & inside]
    if len(losses):
        words.append(f"loss {_loss(losses[0])}" + (f" -> {_loss(losses[-1])}" if len(losses) > 1 else ""))
    seconds = numbers(steps.column("seconds"))[known(steps.column("seconds")) & inside]
    if len(seconds):
        words.append(f"{np.median(seconds) * 1e3:.3g} ms a step")
    yield style.strong(", ".join(words))
    yield from (f"  {line}" for line in _groups(source, index, style))


def _further(source: Source, indices: Sequence[int]) -> list[str]:
    """One line about the optimizers that have no room: how many of which class, and how to see one."""
    if not indices:
        return []
    classes = dict(source.trace.optimizers)
    counts = Counter(classes.get(index, "") for index in indices).most_common()
    listed = ", ".join(f"{count:,} {name}" for name, count in counts)
    spec = shlex.quote(f"{source.spec}@{indices[0]}")
    return ["", f"{len(indices):,} more optimizers ({printable(listed)}): optrace show {spec}, and so on"]


def _loss(value: float) -> str:
    return f"{value:.6g}"


def _groups(source: Source, index: int, style: Style) -> list[str]:
    """One row a group; options that only say how the rule is carried out are left out unless they are set."""
    values = _options(source, index)
    counts = Counter(row["group"] for row in param_rows(source) if row["optimizer"] == index)
    keys = list(dict.fromkeys(key for options in values.values() for key in options))
    shown = [key for key in keys if key not in SCHEDULER_KEYS and (key not in STRUCTURE or _is_set(key, values))]
    rows = []
    for group in sorted(values)[:_GROUPS_SHOWN]:
        cells = [values[group].get(key, "") for key in shown]
        rows.append([str(group), str(counts.get(group, 0)), *cells])
    if not rows:
        return []
    lines = render(Table(["group", "params", *shown], rows), style, 98)
    if len(values) > _GROUPS_SHOWN:
        lines.append(
            f"{len(values) - _GROUPS_SHOWN} more groups: optrace show {shlex.quote(source.spec)} groups --step 1"
        )
    return lines


def _is_set(key: str, values: Mapping[int, Mapping[str, str]]) -> bool:
    return any(options.get(key, "None") not in ("None", "False") for options in values.values())


def _options(source: Source, index: int) -> dict[int, dict[str, str]]:
    """By group and option the value as text, `first -> last` where it changes."""
    last = source.trace.arrow("steps", optimizer=index, columns=["step"])
    steps = integers(last.column("step"))
    if not len(steps):
        return {}
    low, high = source.steps
    steps = steps[(steps >= (low or 0)) & (steps <= (high if high is not None else steps.max()))]
    if not len(steps):
        return {}
    table = source.trace.arrow("groups", step=(int(steps.min()), int(steps.max())), optimizer=index)
    step, group, number = (
        integers(table.column("step")),
        integers(table.column("group")),
        numbers(table.column("number")),
    )
    key, keys = coded(table.column("key"))
    kind, kinds = coded(table.column("kind"))
    text, texts = coded(table.column("text"))
    found: dict[int, dict[str, str]] = {}
    for one in np.unique(group):
        for code in dict.fromkeys(key[group == one].tolist()):
            rows = np.flatnonzero((group == one) & (key == code))
            rows = rows[np.argsort(step[rows], kind="stable")]
            moved = _changes(number[rows], kind[rows], text[rows])
            first, final = (_value(kinds[kind[r]], number[r], texts[text[r]]) for r in (rows[0], rows[-1]))
            shown = f"{first} -> {final}" if moved else first
            found.setdefault(int(one), {})[keys[code]] = shown
    return found


def _changes(number: Any, kind: Any, text: Any) -> bool:
    same = (number[1:] == number[:-1]) | (np.isnan(number[1:]) & np.isnan(number[:-1]))
    return bool((~same | (kind[1:] != kind[:-1]) | (text[1:] != text[:-1])).any())


def _value(kind: str, number: float, text: str) -> str:
    if kind == "float":
        return hyper_text(float(number))
    if kind == "int":
        return str(int(text, 16)) if text else str(int(number))
    if kind == "bool":
        return str(bool(number))
    return "None" if kind == "none" else text


def _params(source: Source, style: Style) -> Iterator[str]:
    rows = param_rows(source)
    total = sum(_numel(row) for row in rows)
    dtypes = sorted({str(row.get("dtype")) for row in rows})
    devices = sorted({str(row.get("device")) for row in rows})
    words = f"{count_words(len(rows), 'parameter')}, {total:,} elements"
    if len(dtypes) == 1 and len(devices) == 1:
        words += f", {dtypes[0]}, {devices[0]}"
    yield style.strong(words)
    if not rows:
        return
    several = len({row["optimizer"] for row in rows}) > 1
    cells = [
        [
            str(row["optimizer"]) if several else "",
            str(row["group"]),
            str(row["param"]),
            _shape(row.get("shape")),
            str(row.get("dtype")) if len(dtypes) > 1 else "",
            str(row.get("device")) if len(devices) > 1 else "",
        ]
        for row in rows[:_PARAMS_SHOWN]
    ]
    columns = ("opt", "group", "param", "shape", "dtype", "device")
    yield from (f"  {line}" for line in render(Table(columns, cells), style, 98))
    if len(rows) > _PARAMS_SHOWN:
        yield f"  {len(rows) - _PARAMS_SHOWN:,} more: optrace show {shlex.quote(source.spec)} params"


def _numel(row: Mapping[str, Any]) -> int:
    shape = row.get("shape")
    return math.prod(int(size) for size in shape) if isinstance(shape, Sequence) else int(row.get("numel") or 0)


def _shape(shape: Any) -> str:
    return "x".join(str(size) for size in shape) if shape else "()"


def _at(info: Any, *path: str) -> Any:
    for name in path:
        info = info.get(name) if isinstance(info, Mapping) else None
    return info
