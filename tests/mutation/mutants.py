"""Applies the edits of a mutant to the source of a right implementation."""

from __future__ import annotations

from typing import Any


def mutant(source: str, edits: list[tuple[str, str]], name: str) -> Any:
    """The class called `name` in the edited source; each edit must find its text."""
    for old, new in edits:
        assert old in source, f"the right source has no {old!r}"
        source = source.replace(old, new)
    names: dict[str, Any] = {}
    exec(compile(source, f"<{name}>", "exec"), names)
    return names[name]
