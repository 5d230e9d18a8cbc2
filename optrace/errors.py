"""The errors that optrace raises on purpose: each message says what was wrong and what to do."""

from __future__ import annotations


class OptraceError(Exception):
    """Something the user can mend; commands print it as one sentence and exit with `exit_status`."""

    exit_status = 2


class TraceError(OptraceError):
    """A trace is missing, unreadable, damaged, or of a format that this optrace does not know."""


class RecordError(OptraceError):
    """A recording cannot start or go on."""


class CompareError(OptraceError):
    """Two traces cannot be compared as asked."""


class GoldenError(OptraceError):
    """A golden or a candidate for one cannot be used as asked."""


class NothingCovered(GoldenError):
    """A candidate lacks what every chosen case of a golden asks for, so that nothing could be judged."""


class OptionError(OptraceError, ValueError):
    """A reference optimizer or schedule was given an option outside its domain."""
