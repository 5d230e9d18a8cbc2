"""Puts observers around functions of a library so that the program cannot tell, and takes them off again."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from types import FunctionType, ModuleType, TracebackType
from typing import Any, NamedTuple, TypeVar

from optrace.recorder.uncompiled import leave_uncompiled

UNSEEN = "<optrace: importlib._bootstrap>"
"""File name of the frames that we add.

Python's warnings skip frames whose file name holds `importlib` and `_bootstrap` when they count `stacklevel`, so a
warning of the function that we observe names the program's line and is shown as often as without us.
"""

F = TypeVar("F", bound=Callable[..., Any])
Begin = Callable[[tuple[Any, ...], dict[str, Any]], Any]
End = Callable[[Any, Any], None]
Fail = Callable[[Any], None]


class Observer(NamedTuple):
    """What is called around a function."""

    begin: Begin
    """begin(args, kwargs) -> (args, kwargs, note), before the call."""
    end: End
    """end(note, result), after it."""
    fail: Fail | None = None
    """fail(note), instead of `end` where the call raised."""
    traced: bool = False
    """Whether the function may be called in compiled code, which it is left alone in."""
    quick: Callable[[Any, Fail | None, Callable[[Exception], None]], Any] | None = None
    """quick(function, fail, failed) -> call(args, kwargs): begins, calls and ends at once, but may not be traced."""


class Observers:
    """The observed functions of one library; inactive ones pass calls straight on.

    `failed` is called with an exception of an observer: it never reaches the program (unless `failed` raises it).
    `compiling` tells whether a compiler traces the call; observers keep out of compiled code. `tracing` tells the same
    of TorchDynamo alone, at less cost.
    """

    def __init__(
        self, failed: Callable[[Exception], None], compiling: Callable[[], bool], tracing: Callable[[], bool]
    ) -> None:
        self.active = False
        self._failed = failed
        self._compiling = compiling
        self._tracing = tracing
        self._made: dict[tuple[int, str], tuple[Any, Any]] = {}
        self._ours: set[int] = set()
        self._put: list[tuple[Any, str, Any, Any]] = []

    def put(self, owner: Any, name: str, kind: str, observer: Observer) -> bool:
        """Observe the function `name` of a class or module, if it has one of its own that is not observed yet.

        `kind` tells apart observers of one function. Returns whether it was put on.
        """
        raw = vars(owner).get(name)
        if raw is None or id(raw) in self._ours or not callable(raw) or isinstance(raw, staticmethod | classmethod):
            return False
        observed = self._observed(raw, kind, observer)
        _set(owner, name, observed)
        self._put.append((owner, name, raw, observed))
        return True

    def spread(self) -> None:
        """Observe the functions of modules also under the names by which other modules have already imported them."""
        wanted = {id(raw): (raw, observed) for owner, _, raw, observed in self._put if isinstance(owner, ModuleType)}
        for module in list(sys.modules.values()):
            names = getattr(module, "__dict__", None)
            if type(names) is not dict or not isinstance(module, ModuleType):
                continue
            for alias in [key for key, value in list(names.items()) if id(value) in wanted]:
                raw, observed = wanted[id(names[alias])]
                names[alias] = observed
                self._put.append((module, alias, raw, observed))

    def remove(self) -> None:
        """Put every attribute back to the object that it was; one that somebody has replaced since is left alone."""
        while self._put:
            owner, name, raw, observed = self._put.pop()
            if vars(owner).get(name) is observed:
                _set(owner, name, raw)

    def _observed(self, raw: Any, kind: str, observer: Observer) -> Any:
        """The observing function of `raw`: the same one each time, so that a name kept from an earlier time works."""
        made = self._made.get((id(raw), kind))
        if made is not None and made[0] is raw:
            return made[1]
        observed = self._make(raw, observer)
        self._made[id(raw), kind] = (raw, observed)
        self._ours.add(id(observed))
        return observed

    def _make(self, raw: Any, observer: Observer) -> Any:
        begin, end, fail, traced, quick = observer
        observers, compiling, failed = self, self._compiling if traced else None, self._failed
        tracing = self._tracing
        call = None if quick is None else quick(raw, fail, failed)

        @functools.wraps(raw)
        def observed(*args: Any, **kwargs: Any) -> Any:
            if compiling is not None and compiling():
                return raw(*args, **kwargs)
            if call is not None and observers.active and not tracing():
                try:
                    return call(args, kwargs)
                except BaseException as error:
                    error.__traceback__ = _without_ours(error.__traceback__)
                    raise
            begun = False
            note: Any = None
            if observers.active:
                try:
                    args, kwargs, note = begin(args, kwargs)
                    begun = True
                except Exception as error:
                    failed(error)
            try:
                result = raw(*args, **kwargs)
            except BaseException as error:
                # leaves our frames out of the traceback; the bare `raise` adds none
                error.__traceback__ = _without_ours(error.__traceback__)
                if begun and fail is not None:
                    try:
                        fail(note)
                    except Exception as own:
                        failed(own)
                raise
            if begun:
                try:
                    end(note, result)
                except Exception as error:
                    failed(error)
            return result

        function: Any = unseen(observed)
        leave_uncompiled(function, calls_too=False)
        for own in (begin, end, fail, failed):
            leave_uncompiled(own, calls_too=True)
        return function


def unseen(function: F) -> F:
    """Have the frames of a function of ours left out of the tracebacks that pass through an observer."""
    assert isinstance(function, FunctionType)
    function.__code__ = function.__code__.replace(co_filename=UNSEEN)
    return function


def _without_ours(trace: TracebackType | None) -> TracebackType | None:
    while trace is not None and trace.tb_frame.f_code.co_filename == UNSEEN:
        trace = trace.tb_next
    link = trace
    while link is not None:
        following = link.tb_next
        while following is not None and following.tb_frame.f_code.co_filename == UNSEEN:
            following = following.tb_next
        link.tb_next = following
        link = following
    return trace


def _set(owner: Any, name: str, value: Any) -> None:
    if isinstance(owner, ModuleType):
        vars(owner)[name] = value
    else:
        setattr(owner, name, value)


class OpenCalls(list[Any]):
    """Keys of the calls that are open in one thread, the innermost last."""

    __slots__ = ("told",)

    def __init__(self) -> None:
        self.told = 0
        """Events that this thread has told."""


class Calls(threading.local):
    """The observed calls that are open in this thread, so that what a call makes of itself is not told twice."""

    def __init__(self) -> None:
        self.open = OpenCalls()
        self.clipping: Any = None
        """Parameters of the clip that is open; of a generator those that it has yielded."""
