"""One recording of this process: `record`, `start`, `stop`, `event`, and the files and events behind them."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optrace.errors import OptraceError, RecordError
from optrace.recorder import place
from optrace.recorder.attach import say
from optrace.recorder.events_data import clean_json
from optrace.recorder.settings import Settings, parse_size, parse_steps

if TYPE_CHECKING:
    from optrace.recorder.capture import Finished
    from optrace.recorder.steps import Track

_Pending = tuple[int, int, str, int, dict[str, Any], "weakref.ref[Any] | None"]
"""seq, step, kind, optimizer, data; a reference to an optimizer whose index is not known yet."""

_PENDING = 256
"""So many events wait for the next step; more are written without it."""
_WAITING = 10_000
"""So many are kept while there are no files yet."""
_RARE = frozenset(
    {"step_skipped", "step_failed", "state_init", "load_state_dict", "add_param_group", "recorder", "user"}
)


class StoppedAfter(SystemExit):
    """Ends the program cleanly after the step that `stop_after` named; its status is 0."""


class Session:
    """One recording: sees every optimizer step of the process from `begin` to `end`.

    It has no files until the first step has been completed. Nothing that goes wrong in it reaches the program, unless
    the settings are strict.
    """

    def __init__(self, settings: Settings, *, from_python: bool = True) -> None:
        """`from_python`: started by the program itself rather than by `optrace record`."""
        from optrace.recorder.context import StepContext
        from optrace.recorder.price import Price
        from optrace.recorder.steps import Steps

        self.settings = settings
        self.from_python = from_python
        self.active = False
        """Whether steps are being recorded."""
        self.stopping: StoppedAfter | None = None
        """What ends the program once `stop_after` is reached."""
        self.failure: str | None = None
        """Why the recording stopped before its end; None if it did not."""
        self.context = StepContext(_sight)
        self.price = Price()
        self._steps = Steps(self)
        self._hooks: Any = None
        self._place: place.Place | None = None
        self._rank: Any = None
        self._rank_info: dict[str, Any] = {}
        self._params: dict[int, list[dict[str, Any]]] = {}
        self._optimizers: dict[int, dict[str, Any]] = {}
        self._seq = count(1)
        self._pending: list[_Pending] = []
        self._lock = threading.RLock()
        self._n_backward = 0
        self._last_step = 0

    # ---- life ----

    @property
    def path(self) -> Path | None:
        """The run's folder; None before the first step."""
        return None if self._place is None else self._place.run

    def begin(self) -> None:
        """Start seeing steps and events."""
        from optrace.recorder import wrappers
        from optrace.recorder.hooks import StepHooks

        self.active = True
        self._hooks = StepHooks(self._steps)
        self._hooks.install()
        wrappers.install(self)

    def end(self, how: str = "clean") -> None:
        """Stop: finish the files and take everything off; a second call does nothing."""
        from optrace.recorder import wrappers

        if self._hooks is None:
            return
        try:
            if self.active:
                self._hooks.settle()
                self.flush()
        except Exception as error:
            self.fail(error)
        finally:
            was_active, self.active = self.active, False
            self._hooks.remove()
            self._hooks = None
            wrappers.remove(self)
        if was_active:
            try:
                if self._rank is not None:
                    self._rank.close(how)
            except Exception as error:
                self._failed(error)
            else:
                self._say_end()

    def stop(self) -> None:
        """End this recording (`optrace.start` returned it); a second call does nothing."""
        _stop(self, "clean")

    def fail(self, error: Exception) -> None:
        """Stop recording because of `error`: one line on stderr, a word in the trace; strict: OptraceError."""
        if not self.active:
            return
        self.active = False
        self._failed(error)

    def _failed(self, error: Exception) -> None:
        from optrace.trace.writer import TraceFull

        text = str(error) or type(error).__name__
        if not isinstance(error, OptraceError):
            text = f"{type(error).__name__}: {text}"
        self.failure = text
        full = isinstance(error, TraceFull)
        try:
            if self._rank is not None:
                self._rank.close(f"error: {text}")
        except Exception as second:
            text += f" (and the trace could not be closed: {second})"
        say(f"recording stopped, the program goes on: {text}")
        if self.settings.strict and not full:
            raise error if isinstance(error, OptraceError) else RecordError(f"the recorder failed: {text}") from error

    def end_program(self) -> None:
        """End the process, or the `with optrace.record(...)` block, cleanly: `stop_after` is reached."""
        self.stopping = StoppedAfter(0)
        raise self.stopping

    def forked(self) -> None:
        """This is a child now: forget the parent's files and steps; an own step begins a run of its own."""
        from optrace.recorder.context import StepContext
        from optrace.recorder.price import Price
        from optrace.recorder.steps import Steps

        if self._rank is not None:
            self._rank.close()
        self._lock = threading.RLock()
        self._rank, self._place, self._params, self._optimizers = None, None, {}, {}
        self._seq, self._pending, self._n_backward, self._last_step = count(1), [], 0, 0
        self.price = Price()
        self.context = StepContext(_sight)
        if self._hooks is not None:
            self._hooks.remove()
            self._steps = Steps(self)
            self.begin()

    # ---- events ----

    def emit(self, kind: str, optimizer: Any, data: dict[str, Any]) -> None:
        """Take an event; it is on disk with the next step, or at once if its kind is rare."""
        if not self.active:
            return
        index, step, reference = -1, 0, None
        if optimizer is not None:
            track = self._steps.find(optimizer)
            if track is not None and track.index >= 0:
                index, step = track.index, track.completed
            else:
                reference = _reference(optimizer)
        self._n_backward += kind == "backward"
        with self._lock:
            self._pending.append((next(self._seq), step, kind, index, data, reference))
            if self._rank is None:
                if len(self._pending) > _WAITING:
                    del self._pending[: _WAITING // 2]
            elif kind in _RARE or len(self._pending) > _PENDING:
                self.flush()

    def tell(self, what: str, line: str | None = None, *, optimizer: Any = None, **data: Any) -> None:
        """Say something about the recording itself: in the trace, and on stderr if there is a line."""
        if line is not None and not self.settings.quiet:
            say(line)
        self.emit("recorder", optimizer, {"what": what, **data})

    def flush(self) -> None:
        """Write the events that wait, if there are files."""
        with self._lock:
            if self._rank is not None:
                events = self._take_events()
                if events:
                    self._rank.write_events(events)

    def _take_events(self) -> list[Any]:
        """The waiting events, ready to be written; those of optimizers that have not stepped yet go on waiting."""
        from optrace.trace.writer import Event

        pending, self._pending = self._pending, []
        events = []
        for entry in pending:
            seq, step, kind, index, data, reference = entry
            if reference is not None:
                optimizer = reference()
                track = None if optimizer is None else self._steps.find(optimizer)
                if track is not None and track.index >= 0:
                    index = track.index
                elif optimizer is not None and self.active and len(self._pending) < _PENDING // 2:
                    self._pending.append(entry)
                    continue
            events.append(Event(seq, step, kind, index, _json_of(data) if data else data))
        return events

    # ---- steps ----

    def write_world(self, track: Track, optimizer: Any, world: Finished) -> None:
        """Write step 0 of an optimizer; its first step makes the files."""
        if self._rank is None:
            self._open()
        with self._lock:
            self._note_optimizer(track, optimizer)
            data = {
                "what": "begin",
                "class": track.class_name,
                "rows": 0 if world.tensors is None else len(world.tensors[1]),
            }
            self._write(track, optimizer, 0, world, None, "recorder", data)

    def write_step(self, track: Track, optimizer: Any, finished: Finished, taken: dict[str, Any]) -> None:
        """Write one finished step with the events before it."""
        with self._lock:
            self._write(track, optimizer, track.completed, finished, taken, "step", {})
            self._last_step = max(self._last_step, track.completed)
            self._last_step = max(self._last_step, track.completed)

    def _write(
        self,
        track: Track,
        optimizer: Any,
        step: int,
        finished: Finished,
        taken: dict[str, Any] | None,
        kind: str,
        data: dict[str, Any],
    ) -> None:
        from optrace.trace.writer import Event

        if self._rank is None:
            return
        if track.capture is not None and track.capture.params_changed:
            track.capture.params_changed = False
            self._params[track.index] = track.capture.params_table(track.class_name)
            self._rank.write_params([row for index in sorted(self._params) for row in self._params[index]])
        if finished.values:
            self._rank.write_values(step, finished.values)
        events = self._take_events() if self._pending else []
        events.append(Event(next(self._seq), step, kind, track.index, data))
        self._rank.write_step(
            step, track.index, groups=finished.groups, tensors=finished.tensors, steps=taken, events=events
        )
        if finished.tensors is not None:
            self.price.rows += len(finished.tensors[1])

    def _open(self) -> None:
        """Make the folder and the files."""
        from optrace.recorder.provenance import environment, run_info
        from optrace.trace.writer import RankWriter, RunWriter

        settings = self.settings
        if settings.output is not None and os.path.abspath(settings.output) in _recorded_here:
            settings = replace(settings, force=True)
        self._place = place.claim(settings)
        _recorded_here.add(str(self._place.run))
        RunWriter.create(self._place.run, run_info(self.settings))
        self._rank = RankWriter(self._place.rank, self.settings.max_size)
        self._rank_info = {**environment(), "rank": self._place.rank_number, "optimizers": []}
        self._rank.write_rank(self._rank_info)
        if self.from_python and not self.settings.quiet and self._place.rank_number == 0:
            say(f"recording to {_shown(self._place.run)}")
        _end_with_process(self)

    def _note_optimizer(self, track: Track, optimizer: Any) -> None:
        """Add an optimizer to rank.json: its class, where it comes from, how it is implemented."""
        from optrace.recorder.implementation import optimizer_facts

        self._optimizers[track.index] = {"index": track.index, **optimizer_facts(optimizer)}
        self._rank_info["optimizers"] = [self._optimizers[index] for index in sorted(self._optimizers)]
        self._rank.write_rank(self._rank_info)

    # ---- words ----

    def tell_price(self, now: float) -> None:
        """Say once what recording costs, as soon as it can be told."""
        if self._rank is not None and self.price.step_ended(now, self._rank.bytes_written):
            self._say_price()

    def _say_price(self) -> None:
        line = self.price.line(self._steps.held)
        if line is not None and not self.settings.quiet and self._speaks():
            say(line)

    def _say_end(self) -> None:
        if self.settings.quiet:
            return
        if self._place is None:
            if self._n_backward and not _is_worker():
                say("no optimizer step seen: nothing was recorded")
            return
        if not self._speaks():
            return
        if not self.price.told:
            self._say_price()
        steps = f"{self._last_step} steps are" if self._last_step != 1 else "1 step is"
        shown = _shown(self._place.run)
        say(f"{steps} in {shown}; see them with: optrace show {shown}")

    def _speaks(self) -> bool:
        return self._place is not None and self._place.rank_number == 0


# ---- the recording of this process ----

_current: Session | None = None
_recorded_here: set[str] = set()
"""Runs that this process has recorded: recording to one of them again moves it out of the way."""


@contextmanager
def record(path: str | os.PathLike[str] | None = None, **settings: Any) -> Iterator[Session]:
    """Record every optimizer that steps inside the `with` block.

    Args:
        path: the run's folder; None makes one under ./optrace-runs/.
        **settings: as the options of `optrace record`: values, every, steps ("100:200"), params, quantities, micro,
            stop_after, memory, max_size ("2GB"), overwrite, strict, quiet.

    Yields the Session; its `path` is the run's folder once a step has been made. With `stop_after` the block ends after
    that step, and the program goes on behind it.

    Raises:
        RecordError: a setting makes no sense, or the folder holds another run.
    """
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
        _stop(session, how)


def start(path: str | os.PathLike[str] | None = None, **settings: Any) -> Session:
    """Record every optimizer step from now on, until `stop()`; a recording that runs already is ended first.

    For notebooks: a cell with `optrace.start("run_a")` may run any number of times. Arguments and errors as `record`.
    """
    made = settings_from(path, settings)
    output = made.output
    if output is not None and not made.force:
        if _is_interactive() or os.path.abspath(output) in _recorded_here:
            made = replace(made, force=True)
        else:
            place.check(output, False, place.new_launch(os.environ, is_python=True), os.environ)
    return _start(Session(place.settle(made)))


def stop() -> None:
    """End the recording that `start` began; nothing happens where none runs."""
    if _current is not None:
        _stop(_current, "clean")


def event(kind: str, **data: Any) -> None:
    """Note an event of your own in the trace: `optrace.event("eval", loss=0.25)`.

    It is kept as an event of kind `user` with data {"name": kind, ...}; values are numbers, strings, lists, dicts and
    0-d tensors. Nothing happens where nothing is recorded. RecordError for other values.
    """
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
        _stop(_current, f"error: {type(error).__name__}" if died else "clean")


def settings_from(path: str | os.PathLike[str] | None, options: dict[str, Any]) -> Settings:
    """Settings from the arguments of `record`; RecordError for one that is unknown or makes no sense.

    >>> settings_from("run_a", {"steps": "5:20", "params": "*.weight", "max_size": "2MB"}).max_size
    2097152
    """
    given = dict(options)
    if "overwrite" in given:
        given["force"] = bool(given.pop("overwrite"))
    known = {field.name for field in fields(Settings)} - {"output"}
    unknown = sorted(set(given) - known)
    if unknown:
        raise RecordError(f"optrace.record has no setting {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    for name in ("memory", "max_size"):
        if isinstance(given.get(name), str):
            given[name] = parse_size(given[name])
    for name in ("params", "quantities"):
        value = given.get(name)
        if value is None:
            given.pop(name, None)
        else:
            given[name] = tuple(value.split(",")) if isinstance(value, str) else tuple(value)
    steps = given.get("steps")
    if isinstance(steps, str):
        given["steps"] = parse_steps(steps)
    elif isinstance(steps, int):
        given["steps"] = (steps, steps)
    elif isinstance(steps, Sequence):
        first, last = steps
        given["steps"] = (first, last)
    return Settings(output=None if path is None else os.fspath(path), **given)


def _start(session: Session) -> Session:
    global _current
    if _current is not None:
        _stop(_current, "clean")
    if not _fork_watched:
        os.register_at_fork(after_in_child=_after_fork)
        _fork_watched.append(True)
    session.begin()
    _current = session
    atexit.register(stop_at_exit)
    return session


def _stop(session: Session, how: str) -> None:
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


def _end_with_process(session: Session) -> None:
    """A child that multiprocessing forked ends without atexit: have its recording ended by multiprocessing."""
    process = sys.modules.get("multiprocessing.process")
    if process is None or process.parent_process() is None or os.getpid() in _finalized:
        return
    from multiprocessing import util

    _finalized.append(os.getpid())
    util.Finalize(None, stop_at_exit, exitpriority=-100)


def _is_worker() -> bool:
    process = sys.modules.get("multiprocessing.process")
    return process is not None and process.parent_process() is not None


def _is_interactive() -> bool:
    return hasattr(sys, "ps1") or "ipykernel" in sys.modules


def _sight() -> None:
    from optrace.recorder import wrappers

    wrappers.sight()


def _reference(thing: Any) -> weakref.ref[Any] | None:
    try:
        return weakref.ref(thing)
    except TypeError:
        return None


def _json_of(data: dict[str, Any]) -> dict[str, Any]:
    try:
        cleaned: dict[str, Any] = clean_json(data)
    except RecordError as error:
        cleaned = {"unreadable": str(error)}
    return cleaned


def _shown(path: Path) -> str:
    """A path as the user would write it: relative where it lies below the working directory."""
    try:
        relative = os.path.relpath(path)
    except ValueError:
        return str(path)
    return str(path) if relative.startswith("..") else relative
