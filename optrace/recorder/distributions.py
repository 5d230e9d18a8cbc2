"""Finds the installed distributions of which this process has imported something, without importing more."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import PurePosixPath


def imported_distributions() -> dict[str, str]:
    """Return {name: version} of every distribution one of whose top-level modules is imported, sorted by name.

    The standard library is not a distribution; neither are modules that lie beside the script.
    """
    tops = {name for name in list(sys.modules) if "." not in name and not name.startswith("__")}
    tops -= sys.stdlib_module_names
    found: dict[str, str] = {}
    waiting: list[metadata.Distribution] = []
    for distribution in metadata.distributions():
        name = distribution.name
        if not isinstance(name, str) or name in found:  # a damaged or a shadowed one
            continue
        declared = distribution.read_text("top_level.txt")
        modules = set(declared.split()) if declared else {_module_of(name)}
        if modules & tops:
            found[name] = distribution.version
            tops -= modules
        elif not declared:
            waiting.append(distribution)
    for distribution in waiting:  # whose module is not called as they are: only their list of files tells
        if not tops:
            break
        modules = _listed_modules(distribution)
        if modules & tops:
            found[distribution.name] = distribution.version
            tops -= modules
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def _module_of(name: str) -> str:
    return re.sub(r"[-.]+", "_", name).lower()


def _listed_modules(distribution: metadata.Distribution) -> set[str]:
    """Top-level modules by the installer's list of files; big lists are read only this once."""
    modules = set()
    for line in (distribution.read_text("RECORD") or "").splitlines():
        parts = PurePosixPath(line.partition(",")[0].strip('"')).parts
        if not parts or parts[0] in ("..", "/") or parts[0].endswith((".dist-info", ".data", ".pth")):
            continue
        modules.add(parts[0].partition(".")[0])
    return modules
