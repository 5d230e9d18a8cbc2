"""Finding the parts of a trace on disk by exact names: the run folder, its ranks, its children."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from optrace.errors import TraceError
from optrace.trace.jsonfile import read_json
from optrace.trace.schema import CHILD_NAME, FORMAT, RANK_NAME

RUNS = Path("optrace-runs")
"""Where runs go when no folder is named, below the working directory."""


def find_run(path: Path) -> Path:
    """The run folder that `path` means; `latest` is the newest below ./optrace-runs/. TraceError if there is none."""
    if str(path) == "latest" and not path.exists():
        path = RUNS / "latest"
        if not path.exists():
            raise TraceError(f"there is no latest run: {RUNS}/ has none in {Path.cwd()}; name a run folder")
    if path.name == "latest" and path.is_file():  # where links are not allowed it is a file that names the run
        try:
            path = path.parent / path.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise TraceError(f"cannot read {path}: {error}") from None
    try:
        if not path.exists():
            raise TraceError(f"there is no trace at {path}{_part_of_a_run(path)}")
        if not path.is_dir():
            raise TraceError(f"{path} is a file; a trace is a folder with a trace.json")
        if not (path / "trace.json").exists():
            whole = path.resolve()
            match = RANK_NAME.fullmatch(whole.name)
            if match and (whole.parent / "trace.json").exists():
                one = f"{path.parent}@rank={int(match[1])}" + (f"@restart={match[2]}" if match[2] else "")
                raise TraceError(f"{path} is one rank of a run; name the run, {path.parent}, or {one}")
            raise TraceError(f"{path} is no trace: it has no trace.json{_runs_inside(path)}")
    except (OSError, ValueError) as error:  # a name too long, a folder that may not be entered, a NUL
        raise TraceError(f"cannot read {str(path)!r}: {error}") from None
    return path


def _part_of_a_run(path: Path) -> str:
    """What to give instead of `RUN@1`, which commands and reports take; empty for other paths."""
    run = path.with_name(path.name.partition("@")[0] or path.name)
    if run == path or not (run / "trace.json").exists():
        return ""
    return (
        f"; give {run}, and optimizer=1 for one of its optimizers, or a rank of it: optrace.open({str(run)!r}).rank(1)"
    )


def _runs_inside(folder: Path) -> str:
    """What to name instead of a folder that holds runs; empty where it holds none."""
    runs = sorted(file.parent for file in folder.glob("*/trace.json") if not file.parent.is_symlink())
    if not runs:
        return ""
    newest = max(runs, key=lambda run: (run / "trace.json").stat().st_mtime)
    return f"; it holds {len(runs)} runs, the newest is {newest}" if len(runs) > 1 else f"; it holds the run {newest}"


def read_run_info(folder: Path) -> dict[str, Any]:
    """The content of trace.json; TraceError when it is damaged or of a format that this version does not know."""
    info: dict[str, Any] = read_json(folder / "trace.json", dict)
    number = info.get("format")
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise TraceError(f"{folder / 'trace.json'} says format {number!r}, which is none of optrace's")
    if number > FORMAT:
        raise TraceError(f"{folder} is a trace of format {number}; this optrace reads up to {FORMAT}: upgrade it")
    return info


def rank_folders(run: Path) -> dict[tuple[int, int], Path]:
    """(rank, restart) to its folder, in order."""
    found = {}
    for name in _names(run):
        match = RANK_NAME.fullmatch(name)
        if match and (run / name).is_dir():
            found[int(match[1]), int(match[2] or 0)] = run / name
    return dict(sorted(found.items()))


def unrecorded(rank_info: dict[str, Any], ranks: Collection[int]) -> list[str]:
    """In words which ranks of the job left no record, from the rank.json of one that did; empty where all have."""
    distributed = rank_info.get("distributed")
    world = distributed.get("world_size") if isinstance(distributed, dict) else None
    missing = sorted(set(range(world)) - set(ranks)) if isinstance(world, int) and 0 < world <= 1 << 20 else []
    if not missing:
        return []
    few = ", ".join(str(rank) for rank in missing[:8]) + (" ..." if len(missing) > 8 else "")
    return [f"rank{'s' if len(missing) > 1 else ''} {few} of {world} left no record: no optimizer step there"]


def child_runs(run: Path) -> list[Path]:
    """Runs of other processes that stepped below this one, in order of their number."""
    found = []
    for name in _names(run):
        match = CHILD_NAME.fullmatch(name)
        if match and (run / name / "trace.json").exists():
            found.append((int(match[1]), run / name))
    return [path for _, path in sorted(found)]


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError as error:
        raise TraceError(f"cannot read {folder}: {error.strerror or error}") from None
