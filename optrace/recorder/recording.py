"""The recording that runs in this process: `optrace.record`, `start`, `stop`, `event`, and its end with the process."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from optrace.errors import RecordError
from optrace.recorder import identity, place
from optrace.recorder.events_data import clean_json
from optrace.recorder.session import Session, StoppedAfter, recorded_here
from optrace.recorder.settings import Settings, parse_names, parse_size, parse_steps

if TYPE_CHECKING:
    from contextlib import _GeneratorContextManager  # a context manager that also decorates

_current: Session | None = None


def record(path: str | os.PathLike[str] | None = None, **settings: Any) -> _GeneratorContextManager[Session]:
    """Record every optimizer that steps inside the `with` block, or each call of a function that it decorates.

    Args:
        path: the run's folder; None makes one under ./optrace-runs/.
        **settings: as the options of `optrace record`: values, every, steps ("100:200"), params, quantities, micro,
            stop_after, memory, staging, max_size ("2GB"), overwrite, strict, quiet.

    Yields the Session; its `path` is the run's folder once a step has been made. With `stop_after` the block ends after
    that step, and the program goes on behind it.

    Raises:
        RecordError: a setting makes no sense, or the folder holds another run.
    """
    settings_from(path, settings)  # a mistake is told where it stands
    return _recorded(path, settings)


@contextmanager
def _recorded(path: str | os.PathLike[str] | None, settings: dict[str, Any]) -> Iterator[Session]:
    session = start(path, **settings)
    how = "clean"
    try:
        yield session
    except StoppedAfter as error:
        if error is not session.stopping:
            raise
    except SystemExit:
        raise
    except BaseException as error:
        how = f"error: {type(error).__name__}"
        raise
    finally:
        finish(session, how)


def start(path: str | os.PathLike[str] | None = None, **settings: Any) -> Session:
    """Record every optimizer step from now on, until `stop()`; a recording that runs already is ended first.

    For notebooks: a cell with `optrace.start("run_a")` may run any number of times. Arguments and errors as `record`.
    """
    made = settings_from(path, settings)
    output = made.output
    if output is not None and not made.force:
        if _is_interactive() or os.path.abspath(output) in recorded_here:
            made = replace(made, force=True)
        else:
            place.check(output, False, identity.new_launch(os.environ, is_python=True), os.environ)
    return _start(Session(place.settle(made)))


def stop() -> None:
    """End the recording that `start` began; nothing happens where none runs."""
    if _current is not None:
        finish(_current, "clean")


def event(kind: str, **data: Any) -> None:
    """Note an event of your own in the trace: `optrace.event("eval", loss=0.25)`.

    It is kept as an event of kind `user` with data {"name": kind, ...}; values are numbers, strings, lists, dicts and
    0-d tensors. Nothing happens where nothing is recorded. RecordError for other values, and for a kind that is no
    text.
    """
    if not isinstance(kind, str):
        raise RecordError(f"the kind of an event is a word, like 'eval', not {kind!r}")
    cleaned = clean_json(data)
    if _current is not None and _current.active:
        _current.emit("user", None, {"name": kind, **cleaned})


def current() -> Session | None:
    """The recording that runs in this process."""
    return _current


def start_from_settings(settings: Settings) -> Session:
    """Start the recording that `optrace record` asked for."""
    return _start(Session(settings, from_python=False))


def stop_at_exit() -> None:
    """End the recording with the process; how it ended is told by the exception that ended the program, if one did."""
    if _current is not None:
        error = getattr(sys, "last_value", None)
        died = isinstance(error, BaseException) and not isinstance(error, SystemExit) and not _is_interactive()
        finish(_current, f"error: {type(error).__name__}" if died else "clean")


def settings_from(path: str | os.PathLike[str] | None, options: dict[str, Any]) -> Settings:
    """Settings from the arguments of `record`; RecordError for one that is unknown or makes no sense.

    >>> settings_from("run_a", {"steps": "5:20", "params": "*.weight", "max_size": "2MB"}).max_size
    2097152
    """
    given = dict(options)
    if "overwrite" in given:
        given["force"] = given.pop("overwrite")
    known = {field.name for field in fields(Settings)} - {"output"}
    unknown = sorted(set(given) - known)
    if unknown:
        names = ", ".join(sorted({"overwrite", *known} - {"force"}))
        raise RecordError(f"optrace.record has no setting {', '.join(unknown)}; it has {names}")
    for name in ("micro", "force", "strict", "quiet"):
        if given.get(name, False) not in (False, True):
            raise RecordError(f"{name.replace('force', 'overwrite')} is {given[name]!r}; give True or False")
        given[name] = bool(given.get(name, False))
    for name in ("memory", "staging", "max_size"):
        if isinstance(given.get(name), str):
            given[name] = parse_size(given[name])
    for name in ("params", "quantities"):
        value = given.get(name)
        if value is None:
            given.pop(name, None)
        elif isinstance(value, str):
            given[name] = parse_names(value)
        elif isinstance(value, Iterable):
            given[name] = tuple(value)
        else:
            raise RecordError(f"{name} is {value!r}; give a name or a glob, or a list of them")
    steps = given.get("steps")
    if isinstance(steps, str):
        given["steps"] = parse_steps(steps)
    elif isinstance(steps, int):
        given["steps"] = (steps, steps)
    elif isinstance(steps, tuple | list) and len(steps) == 2:
        given["steps"] = tuple(steps)
    elif steps is not None:
        raise RecordError(f"steps {steps!r} is no range of steps; give FIRST and LAST, like (100, 200) or '100:200'")
    return Settings(output=_folder(path), **given)


def _folder(path: str | os.PathLike[str] | None) -> str | None:
    """The run's folder as text, `~` written out; RecordError for what names none."""
    if path is None:
        return None
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise RecordError(f"a run's folder is a path, not {path!r}; name one, like 'run_a'")
    if not os.fspath(path).strip() or "\0" in os.fspath(path):
        raise RecordError(f"{os.fspath(path)!r} is no name for a run's folder; name one, like 'run_a'")
    return os.path.expanduser(path)


def _start(session: Session) -> Session:
    global _current
    if _current is not None:
        finish(_current, "clean")
    if not _fork_watched:
        os.register_at_fork(after_in_child=_after_fork)
        _fork_watched.append(True)
    session.begin()
    _current = session
    atexit.register(stop_at_exit)
    return session


def finish(session: Session, how: str) -> None:
    """End a recording, `how` being what rank.json says of its end; a second call does nothing."""
    global _current
    try:
        session.end(how)
    finally:
        if _current is session:
            _current = None
            atexit.unregister(stop_at_exit)


_fork_watched: list[bool] = []
_finalized: list[int] = []


def _after_fork() -> None:
    if _current is not None:
        _current.forked()


def end_with_process(session: Session) -> None:
    """Prepare, at the first step, for the recording to end with the process, however that ends.

    What sealing needs is imported now. An import at exit may `exec` source text (a namedtuple, a dataclass), and then
    CPython forgets that an unhandled Ctrl-C ended the program and changes its status (Python/pythonrun.c,
    run_eval_code_obj). A child that multiprocessing forked ends without atexit: multiprocessing ends its recording.
    """
    import pyarrow.compute
    import pyarrow.parquet  # noqa: F401

    process = sys.modules.get("multiprocessing.process")
    if process is None or process.parent_process() is None or os.getpid() in _finalized:
        return
    from multiprocessing import util

    _finalized.append(os.getpid())
    util.Finalize(None, stop_at_exit, exitpriority=-100)


def _is_interactive() -> bool:
    return hasattr(sys, "ps1") or "ipykernel" in sys.modules
