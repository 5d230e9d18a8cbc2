"""Start the recording of a process that `optrace record` launched, called once torch has been imported."""

from __future__ import annotations

import sys

from optrace.errors import OptraceError
from optrace.recorder import place
from optrace.recorder.settings import Settings


def begin() -> None:
    """Start recording as OPTRACE_SETTINGS says; the session ends itself with the process.

    A failure is one line on stderr and no recording; with `strict` it is raised in the program.
    """
    settings = Settings.from_environment()
    if settings is None:
        return
    try:
        from optrace.recorder import recording

        place.note_member()
        recording.start_from_settings(settings)
    except Exception as error:
        if settings.strict:
            raise
        ours = isinstance(error, OptraceError)
        say(f"not recording: {error if ours else f'{type(error).__name__}: {error} ({sys.executable})'}")


def say(line: str) -> None:
    """Write one line of ours on stderr; nothing happens where stderr is closed."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(f"optrace: {line}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass
