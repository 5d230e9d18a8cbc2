"""Start and end the recording of a process that `optrace record` launched, called once torch has been imported."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable

from optrace.errors import OptraceError
from optrace.recorder import place
from optrace.recorder.settings import Settings


def begin() -> None:
    """Start recording as OPTRACE_SETTINGS says, and have the recording ended with the process.

    A failure is one line on stderr and no recording; with `strict` it is raised in the program.
    """
    settings = Settings.from_environment()
    if settings is None:
        return
    try:
        from optrace.recorder import session

        place.note_member()
        session.start_from_settings(settings)
    except Exception as error:
        if settings.strict:
            raise
        known = isinstance(error, OptraceError)
        say(
            f"not recording: {error}" if known else f"not recording: {type(error).__name__}: {error} ({sys.executable})"
        )
        return
    _at_exit(session.stop_at_exit)


def _at_exit(stop: Callable[[], object]) -> None:
    """Call `stop` when this process ends, and when a child that multiprocessing forks from it ends.

    Such a child leaves by `os._exit` after multiprocessing's own finalizers, so `atexit` alone would miss it.
    """
    atexit.register(stop)
    from multiprocessing import util  # torch has imported it

    def in_child(anchor: object) -> None:
        util.Finalize(None, stop, exitpriority=-100)

    util.register_after_fork(in_child, in_child)
    _KEPT_ALIVE.append(in_child)


_KEPT_ALIVE: list[object] = []  # multiprocessing holds what it calls after a fork by weak reference only


def say(line: str) -> None:
    """Write one line of ours on stderr; nothing happens where stderr is closed."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(f"optrace: {line}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass
