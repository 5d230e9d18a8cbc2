"""Where commands put results and progress: results on standard output or in a file, all else on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from optrace.errors import OptraceError, TraceError
from optrace.views.style import wants_color

if TYPE_CHECKING:
    from optrace.compare.source import Source

T = TypeVar("T")

_PATIENCE = 1.0


def colorful() -> bool:
    """Whether results on standard output get colours."""
    return sys.stdout is not None and wants_color(sys.stdout)


def emit(text: str, output: Path | None, error: type[OptraceError]) -> None:
    """Write a result to standard output, or to the file `output`; `error` is raised when the file cannot be written.

    What the terminal's encoding lacks is written as an escape.
    """
    if output is not None:
        try:
            output.write_text(text, encoding="utf-8")
        except OSError as problem:
            raise error(f"cannot write {output}: {problem.strerror or problem}") from None
        return
    if sys.stdout is None:
        return
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()


def each_optimizer(source: Source, judge: Callable[[int], T]) -> tuple[list[T], bool]:
    """What `judge` makes of each optimizer of a run, by index, and whether one of them could not be judged.

    Trouble with one of several is told on standard error and keeps nobody from judging the others.

    Raises:
        OptraceError: none of them could be judged, or there is none.
    """
    if not source.optimizers:
        raise TraceError(f"{source.name} holds no parameter of any optimizer, so there is nothing to judge")
    classes = dict(source.trace.optimizers)
    judged: list[T] = []
    trouble: list[tuple[int, OptraceError]] = []
    for index in source.optimizers:
        try:
            judged.append(judge(index))
        except OptraceError as error:
            trouble.append((index, error))
    if trouble and not judged:
        raise trouble[0][1]
    for index, reason in trouble:
        click.echo(f"optrace: {source.name}@{index} ({classes[index]}): {reason}", err=True)
    return judged, bool(trouble)


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A line on standard error that says how far long work is: on a terminal only, and only after a second."""
    started = time.monotonic()
    shown = False

    def show(done: int, total: int) -> None:
        nonlocal shown
        if sys.stderr is None or not sys.stderr.isatty() or time.monotonic() - started < _PATIENCE:
            return
        shown = True
        filled = 30 * done // max(total, 1)
        sys.stderr.write(f"\r{what} [{'#' * filled}{'.' * (30 - filled)}] {done:,}/{total:,}")
        sys.stderr.flush()

    try:
        yield show
    finally:
        if shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
