"""The hyper-parameters of recorded steps, put together again as the options that a rule takes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from optrace.trace.arrays import elements
from optrace.trace.merge import coded
from optrace.trace.reader import Trace

_MEMBER = re.compile(r"(.+)\.([0-9]+)")


def options_by_step(
    trace: Trace, optimizer: int, first: int | None = None, last: int | None = None
) -> dict[int, dict[int, dict[str, Any]]]:
    """Options by step and group; `betas.0`, `betas.1` become the tuple `betas`. Equal options share one dict."""
    rows = trace.arrow("groups", step=(first, last), optimizer=optimizer)
    step, group, number = (elements(rows.column(name)) for name in ("step", "group", "number"))
    order = np.lexsort((group, step))
    step, group, number = step[order], group[order], number[order]
    words = [coded(rows.column(name)) for name in ("key", "kind", "text")]
    table = np.stack([number.view(np.int64), *(codes[order] for codes, _ in words)], axis=1)
    starts = np.flatnonzero(np.diff(step, prepend=-1) | np.diff(group, prepend=-1)).tolist()
    found: dict[int, dict[int, dict[str, Any]]] = {}
    taken: dict[bytes, dict[str, Any]] = {}  # by the bytes of their rows: what is the same is taken apart once
    shared: dict[Any, dict[str, Any]] = {}
    for start, end in pairwise([*starts, len(step)]):
        raw = table[start:end].tobytes()
        if raw not in taken:
            key, kind, text = ([names[code] for code in table[start:end, 1 + n]] for n, (_, names) in enumerate(words))
            values = map(scalar, kind, number[start:end].tolist(), text)
            flat = dict(zip(key, values, strict=True))
            alike = tuple(flat.items()), tuple(type(value) for value in flat.values())
            taken[raw] = shared.setdefault(alike, gather(flat))
        found.setdefault(int(step[start]), {})[int(group[start])] = taken[raw]
    return found


def scalar(kind: str, number: float, text: str) -> Any:
    """The stored scalar as Python's own; a kind that no rule reads is its text."""
    if kind == "none":
        return None
    if kind == "bool":
        return bool(number)
    if kind == "int":
        return int(text, 16) if text else int(number)
    return number if kind == "float" else text


def gather(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`{"betas.0": 0.9, "betas.1": 0.99}` as `{"betas": (0.9, 0.99)}`; other keys as they are."""
    gathered: dict[str, Any] = {}
    members: dict[str, dict[int, Any]] = {}
    for key, value in flat.items():
        if match := _MEMBER.fullmatch(key):
            members.setdefault(match[1], {})[int(match[2])] = value
        else:
            gathered[key] = value
    for key, parts in members.items():
        if sorted(parts) == list(range(len(parts))):
            gathered[key] = tuple(parts[i] for i in range(len(parts)))
    return gathered


def unlike(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """Options that a rule cannot read because they are no number where its default is one, or other numbers of them."""
    return [name for name, default in defaults.items() if name in options and not _alike(options[name], default)]


def _alike(value: Any, default: Any) -> bool:
    if isinstance(default, tuple):
        return isinstance(value, tuple) and len(value) == len(default)
    return not isinstance(value, tuple) and (not isinstance(default, int | float) or isinstance(value, int | float))


def text_of(value: Any) -> str:
    """A hyper-parameter as people write it."""
    if isinstance(value, float):
        return repr(int(value)) if value.is_integer() and abs(value) < 1e15 and not math.isinf(value) else repr(value)
    return repr(value)
