"""Following a trace while it is being written: finished rows as they come."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from optrace.errors import TraceError
from optrace.trace.arrays import booleans, elements
from optrace.trace.schema import TABLES

if TYPE_CHECKING:
    import pandas as pd

    from optrace.trace.reader import Trace


def follow(trace: Trace, name: str, interval: float) -> Iterator[pd.DataFrame]:
    """Frames of a table's rows that were finished since the last frame; what `Trace.follow` returns."""
    if name not in TABLES:
        raise TraceError(f"{name!r} cannot be followed; choose one of {', '.join(TABLES)}")
    after: dict[int, int] = {}
    seen = np.zeros(0, np.int64)
    while True:
        over = _over(trace)
        trace.refresh()
        if trace.ranks:
            if name == "events":
                rows = trace.arrow(name)
                numbers = elements(rows.column("seq"))
                rows, seen = rows.filter(booleans(~np.isin(numbers, seen))), numbers
            else:
                rows = trace.arrow(name, after=after)
                after = trace.last_steps
            if rows.num_rows:
                yield trace.frame(name, rows)
        if over:
            return
        time.sleep(interval)


def _over(trace: Trace) -> bool:
    """Whether nothing more will be written: the recording has ended, or its process is gone from this machine."""
    trace.refresh()
    info: dict[str, Any] = trace.rank_info
    if "end" in info:
        return True
    pid = info.get("pid")
    if type(pid) is not int or pid <= 0 or info.get("host") != platform.node() or os.name != "posix":
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False
