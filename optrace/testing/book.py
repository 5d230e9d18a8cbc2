"""Where baselines lie, when they are compared, made and made anew: the one place that decides it."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

FOLDER = "optrace_baselines"
MODES = ("new", "failed", "all")


class Baseline(Protocol):
    """One stored thing and what it is compared with."""

    path: Path

    def exists(self) -> bool:
        """Whether something is stored."""

    def write(self) -> None:
        """Store what there is now."""

    def changed(self) -> bool:
        """Whether any bit of a passing baseline differs."""

    def compare(self, folder: Path) -> str | None:
        """Why they differ; the actual run is kept in `folder`."""


@dataclass
class Book:
    """What the tests of this process did with their baselines; plain data, so that xdist's workers can send it."""

    used: set[str] = field(default_factory=set)
    """Files that a test looked at."""
    written: set[str] = field(default_factory=set)
    stems: dict[str, set[str]] = field(default_factory=dict)
    """Folder of a test module's baselines -> stems of the collected tests that could use it."""
    partial: set[str] = field(default_factory=set)
    """Folders of modules of which some tests were deselected or not asked for."""
    passed: set[str] = field(default_factory=set)
    """Folder/stem of the tests that ran to their end."""

    def as_data(self) -> dict[str, Any]:
        """Lists and strings only."""
        return {
            "used": sorted(self.used),
            "written": sorted(self.written),
            "stems": {folder: sorted(stems) for folder, stems in self.stems.items()},
            "partial": sorted(self.partial),
            "passed": sorted(self.passed),
        }

    def add(self, data: dict[str, Any]) -> None:
        """Take in what another process did."""
        self.used |= set(data["used"])
        self.written |= set(data["written"])
        self.partial |= set(data["partial"])
        self.passed |= set(data["passed"])
        for folder, stems in data["stems"].items():
            self.stems.setdefault(folder, set()).update(stems)

    def unused(self) -> list[str]:
        """Stored files that no test looks at any more: their test is gone, or ran to its end without them."""
        found = []
        for folder, stems in self.stems.items():
            if folder in self.partial or not Path(folder).is_dir():
                continue
            for path in sorted(Path(folder).iterdir()):
                stem = stem_of_file(path.name)
                if stem is None or str(path) in self.used:
                    continue
                if stem not in stems or f"{folder}/{stem}" in self.passed:
                    found.append(str(path))
        for parent in {Path(folder).parent for folder in self.stems}:
            if parent.is_dir():
                modules = [path for path in sorted(parent.iterdir()) if path.is_dir()]
                found += [str(path) for path in modules if not (parent.parent / f"{path.name}.py").exists()]
        return found


def folder_of(test_file: Path) -> Path:
    """Where the baselines of a test module lie: beside it."""
    return test_file.parent / FOLDER / test_file.stem


def stem_of(class_name: str | None, test_name: str) -> str:
    """A file name for a test: what file systems refuse is replaced, and told apart by a digest."""
    name = f"{class_name}.{test_name}" if class_name else test_name
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.")[:100]
    digest = hashlib.sha256(name.encode()).hexdigest()[:6]
    return safe.replace(".", "-") if safe == name and "." not in name else f"{safe.replace('.', '-')}-{digest}"


def stem_of_file(name: str) -> str | None:
    """The test's stem in the name of a stored file or folder; None for other files."""
    return name.partition(".")[0] if name.endswith((".csv", ".trace")) else None


def settle(baseline: Baseline, mode: str | None, book: Book, folder: Path, command: str) -> str | None:
    """Compare with what is stored, or store it where the mode says so; why the test fails, or None.

    Args:
        baseline: what to compare.
        mode: `new`: write what is missing; `failed`: also what fails; `all`: also what passes and has other bits.
        book: notes what was used and written.
        folder: where the actual run is kept when the two differ.
        command: how this test is run alone, without the option.
    """
    book.used.add(str(baseline.path))
    if not baseline.exists():
        if mode is None:
            return (
                f"there is no baseline {short(baseline.path)}; make it on your machine and commit it:\n\n"
                f"    {command} --optrace-regen=new\n"
            )
        _write(baseline, book)
        return None
    failure = baseline.compare(folder)
    if (failure is not None and mode in ("failed", "all")) or (
        failure is None and mode == "all" and baseline.changed()
    ):
        _write(baseline, book)
        return None
    if failure is None:
        return None
    stored = short(baseline.path)
    lines = [failure, f"stored: {stored}"]  # the first line is what pytest's summary has room for
    if folder.is_dir():
        lines += [f"actual: {folder}   (optrace show {folder} tensors)"]
        lines += [f"both:   optrace diff {stored} {folder} --details"]
    return "\n".join([*lines, f"if it is meant: {command} --optrace-regen=failed"])


def short(path: str | Path) -> str:
    """A path as seen from the working directory."""
    try:
        return os.path.relpath(path)
    except ValueError:  # another drive
        return str(path)


def _write(baseline: Baseline, book: Book) -> None:
    baseline.write()
    book.written.add(str(baseline.path))
    book.used.add(str(baseline.path))
