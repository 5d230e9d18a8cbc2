"""What a user may name as one side of a comparison, and how it becomes something that reads like a trace."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from optrace.errors import CompareError, TraceError

Stretch = tuple[int | None, int | None]


class TraceLike(Protocol):
    """The part of `optrace.trace.reader.Trace` that comparing needs; goldens offer the same."""

    @property
    def info(self) -> Mapping[str, Any]:
        """What trace.json holds."""

    @property
    def rank_info(self) -> Mapping[str, Any]:
        """What rank.json holds."""

    @property
    def ranks(self) -> Sequence[int]:
        """Ranks that left a record."""

    @property
    def optimizers(self) -> Sequence[tuple[int, str]]:
        """Index and class name of each optimizer."""

    @property
    def problems(self) -> Sequence[str]:
        """What was dropped or torn, in words."""

    def arrow(self, name: str, **selection: Any) -> Any:
        """A table (`params`, `groups`, `steps`, `tensors`, `events`) as pyarrow.Table, groups in their long form."""

    def value(self, step: int, param: str, quantity: str, optimizer: int = 0) -> Any:
        """A stored whole tensor as ndarray; TraceError when it is not stored."""


@dataclass(frozen=True)
class Source:
    """One side of a comparison: a trace and the part of it that was asked for."""

    spec: str
    """As the user wrote it."""
    name: str
    """Short name for reports."""
    trace: TraceLike
    optimizers: tuple[int, ...]
    """Indices of the optimizers that take part."""
    steps: Stretch
    """First and last step that take part, both included; None leaves a side open."""
    path: Path | None
    """Folder or file on disk; None when there is none."""
    rank: int | None = None
    """The rank that was asked for; None: the run as a whole."""
    restart: int = 0
    """Which start of the run was asked for; 0 the first."""

    @property
    def recorded(self) -> bool:
        """Whether it is a recorded run, as opposed to a golden or a file of another program."""
        return self.path is None or self.path.is_dir()

    def covers(self, step: int) -> bool:
        """Whether a step lies in the stretch."""
        low, high = self.steps
        return (low is None or step >= low) and (high is None or step <= high)


OTHER_KINDS = "optrace.goldens.source"
"""Module that opens what is no recorded run: its `open_source(spec) -> TraceLike` takes `golden:NAME` and paths of CSV
and safetensors files. It is found by name, because goldens are built upon this room and not the other way round."""

_RANK = re.compile(r"rank=(\d+)")
_RESTART = re.compile(r"restart=(\d+)")
_STEPS = re.compile(r"(\d*):(\d*)")


def open_source(spec: Any) -> Source:
    """Resolve `RUN`, `RUN@1`, `RUN@SGD`, `RUN@rank=3`, `RUN@restart=1`, `RUN@500:600`, several, a golden, or a file.

    A Trace, or anything that reads like one, is taken as it is. CompareError for a suffix that fits nothing, TraceError
    for a run that is missing or unreadable.
    """
    if not isinstance(spec, str | Path):
        path = getattr(spec, "path", None)
        return Source(str(path or spec), _short(path or "trace"), spec, _all(spec), (None, None), path)
    text = str(spec)
    base, suffixes = _split(text)
    trace, path = _open(base)
    name, optimizers, steps = _short(path or base), _all(trace), cast(Stretch, (None, None))
    rank, restart = None, 0
    for suffix in suffixes:
        if (match := _RESTART.fullmatch(suffix)) and hasattr(trace, "restart"):
            restart = int(match[1])
            trace = cast(TraceLike, trace.restart(restart))
            optimizers = _all(trace)
    for suffix in suffixes:
        if match := _RANK.fullmatch(suffix):
            rank = int(match[1])
            trace = _rank(trace, rank, text)
            optimizers = _all(trace)
    for suffix in suffixes:
        if _RANK.fullmatch(suffix) or _RESTART.fullmatch(suffix):
            pass
        elif (match := _STEPS.fullmatch(suffix)) and suffix != ":":
            steps = (int(match[1]) if match[1] else None, int(match[2]) if match[2] else None)
            if None not in steps and cast(int, steps[0]) > cast(int, steps[1]):
                raise CompareError(f"{text!r} holds no step; write FIRST:LAST, like {base}@500:600")
        else:
            optimizers = _optimizer(trace, optimizers, suffix, text)
        name += f"@{suffix}"
    return Source(text, name, trace, optimizers, steps, path, rank, restart)


def distinct_names(a: Source, b: Source) -> tuple[str, str]:
    """Short names of two sides that differ: as much of the paths as it takes."""
    if a.name != b.name:
        return a.name, b.name
    if a.path is not None and b.path is not None and a.path.resolve() != b.path.resolve():
        left, right = a.path.resolve().parts, b.path.resolve().parts
        for depth in range(2, max(len(left), len(right)) + 1):
            names = "/".join(left[-depth:]), "/".join(right[-depth:])
            if names[0] != names[1]:
                return names
    return f"{a.name} (A)", f"{b.name} (B)"


def _split(text: str) -> tuple[str, list[str]]:
    """The path and the suffixes behind it; a path that exists and holds an @ is left whole."""
    parts = text.split("@")
    for count in range(len(parts), 1, -1):
        base = "@".join(parts[:count])
        if Path(base).exists() and not base.startswith("golden:"):
            return base, parts[count:]
    return parts[0], parts[1:]


def _open(base: str) -> tuple[TraceLike, Path | None]:
    path = Path(base)
    if base.startswith("golden:") or path.is_file():
        _refuse_other_files(path)
        return _other_kinds()(base), None if base.startswith("golden:") else path
    from optrace.trace.reader import open_trace

    trace = open_trace(base)
    return cast(TraceLike, trace), Path(trace.path)


def _refuse_other_files(path: Path) -> None:
    """TraceError for files that people name where the run is meant: a part of it, or the program."""
    if path.suffix in (".json", ".parquet", ".arrows"):
        for folder in path.parents[:2]:
            if (folder / "trace.json").is_file():
                raise TraceError(f"{path} is a file of a run; name the run's folder, {folder}")
    if path.suffix in (".py", ".sh", ".ipynb"):
        advice = f"record it first: optrace record {path}" if path.suffix == ".py" else "name what it recorded"
        raise TraceError(f"{path} is a program, not a run; {advice}")


def _other_kinds() -> Callable[[str], TraceLike]:
    try:
        module = importlib.import_module(OTHER_KINDS)
    except ModuleNotFoundError as error:
        if error.name is None or not OTHER_KINDS.startswith(error.name):
            raise
        raise CompareError("this optrace has no goldens; compare two recorded runs") from None
    return cast(Callable[[str], TraceLike], module.open_source)


def _rank(trace: TraceLike, number: int, text: str) -> TraceLike:
    if number not in trace.ranks:
        raise CompareError(f"{text!r}: the run has no rank {number}; it has {_listed(trace.ranks)}")
    return cast(TraceLike, cast(Any, trace).rank(number))


def _optimizer(trace: TraceLike, among: tuple[int, ...], suffix: str, text: str) -> tuple[int, ...]:
    classes = {index: name for index, name in trace.optimizers if index in among}
    known = _listed([f"{index} ({name})" for index, name in classes.items()])
    if suffix.isdigit():
        if int(suffix) not in classes:
            raise CompareError(f"{text!r}: the run has no optimizer {suffix}; it has {known}")
        return (int(suffix),)
    found = tuple(index for index, name in classes.items() if name == suffix)
    if not found:
        found = tuple(index for index, name in classes.items() if name.lower() == suffix.lower())
    if not found:
        raise CompareError(
            f"{text!r}: {suffix!r} is no optimizer of the run, which has {known}; nor a rank (@rank=0) or steps (@1:9)"
        )
    return found


def _all(trace: TraceLike) -> tuple[int, ...]:
    return tuple(index for index, _ in trace.optimizers)


def _short(path: Any) -> str:
    text = str(path)
    return text if text.startswith("golden:") else Path(text).resolve().name or text


def _listed(items: Sequence[Any]) -> str:
    return ", ".join(str(item) for item in items) if len(items) else "none"


def param_rows(source: Source) -> list[dict[str, Any]]:
    """Rows of the table `params` that take part, by optimizer, group and index; TraceError when they make no sense.

    Of a recorded run they are read from its params.json, so that no frame is made.
    """
    read = getattr(source.trace, "params_rows", None)
    if read is not None:
        rows = [row for row in read() if isinstance(row, dict)]
    else:
        rows = source.trace.arrow("params").to_pylist() if hasattr(source.trace, "arrow") else []
    try:
        rows = [
            {**row, "optimizer": int(row["optimizer"]), "group": int(row["group"]), "index": int(row["index"])}
            for row in rows
            if isinstance(row["param"], str)
        ]
    except (KeyError, TypeError, ValueError):
        raise TraceError(f"the table params of {source.spec} lacks an optimizer, group, index or param") from None
    rows = [row for row in rows if row["optimizer"] in source.optimizers]
    return sorted(rows, key=lambda row: (row["optimizer"], row["group"], row["index"]))
