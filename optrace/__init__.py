"""optrace records what an optimizer really did, step by step, and says where and why two training runs part."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optrace.compare.lint.run import lint as lint
    from optrace.compare.repro import repro as repro
    from optrace.compare.run import diff as diff
    from optrace.goldens.check import check_golden as check_golden
    from optrace.recorder.recording import event as event
    from optrace.recorder.recording import record as record
    from optrace.recorder.recording import start as start
    from optrace.recorder.recording import stop as stop
    from optrace.recorder.watching import watch as watch
    from optrace.replayer.identify import identify as identify
    from optrace.replayer.rebuild import value as value
    from optrace.replayer.run import replay as replay
    from optrace.trace.reader import Trace as Trace
    from optrace.trace.reader import open_trace as open
    from optrace.views.html.write import report as report

__version__ = "0.1.0"

_PUBLIC = {
    "record": ("optrace.recorder.recording", "record"),
    "start": ("optrace.recorder.recording", "start"),
    "stop": ("optrace.recorder.recording", "stop"),
    "watch": ("optrace.recorder.watching", "watch"),
    "event": ("optrace.recorder.recording", "event"),
    "open": ("optrace.trace.reader", "open_trace"),
    "Trace": ("optrace.trace.reader", "Trace"),
    "diff": ("optrace.compare.run", "diff"),
    "check_golden": ("optrace.goldens.check", "check_golden"),
    "identify": ("optrace.replayer.identify", "identify"),
    "lint": ("optrace.compare.lint.run", "lint"),
    "replay": ("optrace.replayer.run", "replay"),
    "report": ("optrace.views.html.write", "report"),
    "repro": ("optrace.compare.repro", "repro"),
    "value": ("optrace.replayer.rebuild", "value"),
    "OptraceError": ("optrace.errors", "OptraceError"),
}

__all__ = [  # resolved by __getattr__ (PEP 562): nothing heavy is imported until used
    "OptraceError",
    "Trace",
    "__version__",
    "check_golden",
    "diff",
    "event",
    "identify",
    "lint",
    "open",
    "record",
    "replay",
    "report",
    "repro",
    "start",
    "stop",
    "value",
    "watch",
]


_ROOMS = ("reference",)


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"optrace.{name}")
    try:
        module, attribute = _PUBLIC[name]
    except KeyError:
        raise AttributeError(f"module 'optrace' has no attribute {name!r}") from None
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_PUBLIC) | set(_ROOMS))
