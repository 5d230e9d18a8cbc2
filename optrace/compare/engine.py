"""Reads the table `tensors` on a Dask cluster: each worker reads and merges the ranks' rows of some parameters."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from optrace.compare.source import Source, param_rows
from optrace.errors import CompareError
from optrace.trace.reader import Trace, open_trace

ENGINES = ("dask",)
_TASKS = 32
"""Parts into which one reading is cut at most."""


def on_engine(source: Source, engine: str) -> Source:
    """The same source with its tensors read by `engine`: on the cluster of the current `dask.distributed.Client`.

    Without a client Dask uses the threads of this process. Workers must see the run's folder under the same path.
    Goldens and other files that are no recorded run are read here as ever.

    Raises:
        CompareError: an unknown engine, or Dask is not installed.
    """
    if engine not in ENGINES:
        raise CompareError(f"there is no engine {engine!r}; there is {', '.join(ENGINES)}, or leave it out")
    try:
        import dask
    except ImportError:
        raise CompareError("the engine dask needs Dask; install torch-optrace[dask]") from None
    trace = source.trace
    if not isinstance(trace, Trace):
        return source
    names = list(dict.fromkeys(row["param"] for row in param_rows(source)))
    path = str(trace.path.resolve())

    def arrow(name: str, **selection: Any) -> Any:
        asked = selection.get("param")
        wanted: list[str] = [*names, ""] if asked is None else [asked] if isinstance(asked, str) else list(asked)
        if name != "tensors" or len(wanted) < 2:
            return Trace.arrow(trace, name, **selection)
        import pyarrow as pa

        each = -(-len(wanted) // _TASKS)
        parts: list[Sequence[str]] = [wanted[i : i + each] for i in range(0, len(wanted), each)]
        start = source.rank, source.restart
        tasks = [dask.delayed(_read)(path, *start, {**selection, "param": part}) for part in parts]
        return pa.concat_tables(dask.compute(*tasks))

    distributed = copy.copy(trace)
    setattr(distributed, "arrow", arrow)  # noqa: B010 - of this one object
    return replace(source, trace=distributed)


def _read(path: str, rank: int | None, restart: int, selection: dict[str, Any]) -> Any:
    """Rows of some parameters, on a worker."""
    return _opened(path, rank, restart).arrow("tensors", **selection)


@lru_cache(maxsize=8)
def _opened(path: str, rank: int | None, restart: int) -> Trace:
    trace = open_trace(Path(path))
    trace = trace.restart(restart) if restart else trace
    return trace if rank is None else trace.rank(rank)
