"""Finds the installed distributions of which this process has imported something, without importing more."""

from __future__ import annotations

import re
import sys
from importlib import metadata


def imported_distributions() -> dict[str, str]:
    """Return {name: version} of every distribution one of whose top-level modules is imported, sorted by name.

    The standard library is not a distribution; neither are modules that lie beside the script.
    """
    tops = {name for name in list(sys.modules) if "." not in name and not name.startswith("__")}
    tops -= sys.stdlib_module_names
    found: dict[str, str] = {}
    waiting: list[tuple[str, str, metadata.Distribution]] = []
    for distribution in metadata.distributions():
        name, version = _name_and_version(distribution)
        if not isinstance(name, str) or name in found:  # a damaged or a shadowed one
            continue
        declared = distribution.read_text("top_level.txt")
        modules = set(declared.split()) if declared else {_module_of(name)}
        if modules & tops:
            found[name] = version
            tops -= modules
        elif not declared:
            waiting.append((name, version, distribution))
    for name, version, distribution in waiting:  # whose module has another name: only their list of files tells
        if not tops:
            break
        modules = _listed_modules(distribution)
        if modules & tops:
            found[name] = version
            tops -= modules
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def _name_and_version(distribution: metadata.Distribution) -> tuple[str, str]:
    """Both of them by the first lines of the metadata: the parser of `metadata` reads all of it, and takes longer."""
    head = (distribution.read_text("METADATA") or "").partition("\n\n")[0]
    known = {key: value.strip() for key, _, value in (line.partition(":") for line in head.splitlines())}
    if "Name" in known and "Version" in known:
        return known["Name"], known["Version"]
    return distribution.name, distribution.version


def _module_of(name: str) -> str:
    return re.sub(r"[-.]+", "_", name).lower()


def _listed_modules(distribution: metadata.Distribution) -> set[str]:
    """Top-level modules by the installer's list of files; big lists are read only this once."""
    listed = (distribution.read_text("RECORD") or "").splitlines()
    firsts = {line.partition(",")[0].strip('"').partition("/")[0] for line in listed}
    ours = (".dist-info", ".data", ".pth")
    return {first.partition(".")[0] for first in firsts if first not in ("", "..") and not first.endswith(ours)}
