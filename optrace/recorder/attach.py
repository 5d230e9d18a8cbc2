"""Start the recording of a process that `optrace record` launched, called once torch has been imported."""

from __future__ import annotations

import sys

from optrace.errors import OptraceError
from optrace.recorder import identity
from optrace.recorder.settings import Settings


def begin() -> None:
    """Start recording as OPTRACE_SETTINGS says; the session ends itself with the process.

    A failure is one line on stderr and no recording; with `strict` it is raised in the program.
    """
    global _launched
    settings = Settings.from_environment()
    if settings is None:
        return
    _launched = True
    try:
        from optrace.recorder import recording

        identity.note_member()
        recording.start_from_settings(settings)
    except Exception as error:
        if settings.strict:
            raise
        ours = isinstance(error, OptraceError)
        say(f"not recording: {error if ours else f'{type(error).__name__}: {error} ({sys.executable})'}")


_launched = False


def say(line: str) -> None:
    """Write one line of ours on stderr; nothing happens where stderr is closed.

    Below `optrace record` it is the process's own: what the program redirects into a buffer or a file stays its own.
    """
    stream = sys.__stderr__ if _launched else sys.stderr
    if stream is None:
        return
    try:
        stream.write(f"optrace: {line}\n")
        stream.flush()
    except (OSError, ValueError):
        pass
