"""Opening a trace and reading its tables: `optrace.open` and what it returns."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from optrace.errors import TraceError
from optrace.trace.locate import child_runs, find_run, rank_folders, read_run_info, unrecorded
from optrace.trace.rank import RankFolder
from optrace.trace.schema import DERIVED, TABLES, arrow_schema
from optrace.trace.select import Names, Selection, Steps, matches

if TYPE_CHECKING:
    import pandas as pd

    from optrace.trace.values import ValuesFile

ALL_TABLES = ("params", *TABLES)
T = TypeVar("T")

_OPEN_STEPS = 4
"""Steps whose files of whole tensors are kept open."""


def open_trace(path: str | os.PathLike[str] = "latest") -> Trace:
    """Open a run folder for reading; `latest` is the newest run below ./optrace-runs/.

    The frames of a run of many ranks are those of the run as a whole (`optrace.trace.logical`); `Trace.rank` gives what
    one rank recorded. Nothing in the folder is executed or
    trusted. TraceError when there is no trace, when it is damaged, or when a newer optrace wrote it.
    """
    if not isinstance(path, str | os.PathLike):
        raise TraceError(f"a run is named by its folder, not by {path!r}")
    folder = find_run(Path(os.path.expanduser(path)))
    info = read_run_info(folder)
    if sum(restart == 0 for _, restart in rank_folders(folder)) > 1:
        from optrace.trace.logical import LogicalTrace

        return LogicalTrace(folder, info)
    return Trace(folder, info)


class Trace:
    """One rank of a recorded run, as pandas frames. What was read stays as it is until `refresh`."""

    def __init__(self, path: Path, info: dict[str, Any], rank: tuple[int, int] | None = None) -> None:
        """Use `open_trace`; `rank` is (number, restart), None the lowest."""
        self.path = path
        """The run's folder."""
        self.info = info
        """The content of trace.json."""
        self._ranks = rank_folders(path)
        self._rank = rank
        self._folder: RankFolder | None = None
        self._cache: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"Trace({str(self.path)!r}, rank={self.rank_number})"

    @property
    def ranks(self) -> list[int]:
        """Numbers of the ranks that recorded steps; empty while none has."""
        return sorted({number for number, _ in self._ranks})

    @property
    def rank_number(self) -> int | None:
        """The rank that the frames are of; None when the run has none."""
        return self._key[0] if self._key is not None else None

    def rank(self, number: int, restart: int = 0) -> Trace:
        """The trace of one rank, or of its n-th restart; TraceError if there is no such rank."""
        if (number, restart) not in self._ranks:
            known = ", ".join(path.name for path in self._ranks.values()) or "none"
            raise TraceError(f"{self.path} has no rank {number}{f'.{restart}' if restart else ''}; it has {known}")
        return Trace(self.path, self.info, (number, restart))

    def restarts(self, number: int) -> int:
        """The number of the last start of a rank into the same run: 0 where it was never started again."""
        return max((restart for rank, restart in self._ranks if rank == number), default=0)

    def restart(self, number: int) -> Trace:
        """The run as its ranks recorded it after they were started again for the n-th time; TraceError if never."""
        ranks = [rank for rank, restart in self._ranks if restart == number]
        if not ranks:
            most = max((restart for _, restart in self._ranks), default=0)
            raise TraceError(f"{self.path} was not started again {number} times; it was {most} times")
        if len(ranks) == 1:
            return Trace(self.path, self.info, (ranks[0], number))
        from optrace.trace.logical import LogicalTrace

        return LogicalTrace(self.path, self.info, number)

    def parts(self) -> list[Trace]:
        """Every rank and restart of the run; only itself when this is the trace of one rank."""
        return [self] if self._rank is not None else [Trace(self.path, self.info, key) for key in self._ranks]

    @property
    def rank_path(self) -> Path | None:
        """The rank's folder; None when the run has no rank."""
        return self._ranks[self._key] if self._key is not None else None

    @property
    def rank_info(self) -> dict[str, Any]:
        """The content of rank.json: environment, pid, and `end` once the recording has ended."""
        return self._cached("rank_info", lambda: self._json("rank.json", dict))

    @property
    def children(self) -> list[Path]:
        """Folders of the runs of other processes that this one started."""
        return child_runs(self.path)

    @property
    def params(self) -> pd.DataFrame:
        """One row per optimizer and parameter."""
        return self._cached("params frame", lambda: self.table("params"))

    @property
    def groups(self) -> pd.DataFrame:
        """Hyper-parameters: one row per step, optimizer and group, one column per option."""
        return self._cached("groups", lambda: self.table("groups"))

    @property
    def steps(self) -> pd.DataFrame:
        """One row per step and optimizer."""
        return self._cached("steps", lambda: self.table("steps"))

    @property
    def tensors(self) -> pd.DataFrame:
        """One row per step, optimizer, parameter and quantity."""
        return self._cached("tensors", lambda: self.table("tensors"))

    @property
    def events(self) -> pd.DataFrame:
        """One row per event, in order; `data` holds dicts."""
        return self._cached("events", lambda: self.table("events"))

    def table(
        self,
        name: str,
        *,
        step: Steps = None,
        optimizer: int | None = None,
        param: Names = None,
        quantity: Names = None,
        columns: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """Rows of a table as a pandas frame; only what is selected is read from disk.

        Args:
            name: params, groups, steps, tensors or events.
            step: a number, or (first, last) with both included and None for an open side.
            optimizer: an optimizer's index.
            param: a name, a glob (`encoder.*`), or several of them.
            quantity: the same for quantities (`state.*`).
            columns: names of the columns wanted, in their order; None gives all.

        Raises:
            TraceError: no such table or column, nothing to select by, or a damaged file.
        """
        if name == "params":
            if step is not None or quantity is not None:
                raise TraceError("params has no step or quantity to select by")
            frame = self._params_frame(optimizer, param)
        else:
            # The wide groups need every stored column; the order of tensors needs what it is made of.
            needed = None if name == "groups" else columns
            if needed is not None and name == "tensors":
                needed = list(dict.fromkeys([*needed, "step", "optimizer", "param", "quantity"]))
            rows = self.arrow(name, step=step, optimizer=optimizer, param=param, quantity=quantity, columns=needed)
            frame = self.frame(name, rows)
        if columns is None:
            return frame
        return frame[_known(columns, frame.columns, name)]

    def arrow(
        self,
        name: str,
        *,
        step: Steps = None,
        optimizer: int | None = None,
        param: Names = None,
        quantity: Names = None,
        columns: Sequence[str] | None = None,
        after: Mapping[int, int] | None = None,
        coded: bool = False,
    ) -> Any:
        """The same as `table` as a `pyarrow.Table`, without pandas and in the order of the files.

        Sealed segments of `tensors` are each sorted by (optimizer, param, quantity, step) and follow each other in the
        order of steps; open ones and the other tables are in the order of recording. `groups` has its stored long form,
        `data` of events is text. `after` gives only rows beyond that step of each optimizer. With `coded` the names in
        `tensors` may come as dictionaries, which spares making words of them.
        """
        if name == "params":
            from optrace.trace import frames

            frame = self.table(name, step=step, optimizer=optimizer, param=param, quantity=quantity)
            rows = frames.params_arrow(frame)
            return rows if columns is None else rows.select(_known(columns, rows.column_names, name))
        if name not in TABLES:
            raise TraceError(f"there is no table {name!r} to read; a trace has {', '.join(ALL_TABLES)}")
        selection = Selection.of(step, optimizer, param, quantity)
        absmax = name in DERIVED and (columns is None or "absmax" in columns)
        stored = columns
        if columns is not None and absmax:
            stored = list(dict.fromkeys([column for column in columns if column != "absmax"] + ["min", "max"]))
        if self._key is None:
            from optrace.trace.arrays import no_rows

            rows = no_rows(arrow_schema(name)).select(stored or arrow_schema(name).names)
        else:
            rows = self.stored(name, selection, stored, after, coded and name == "tensors")
        if absmax:
            rows = _with_absmax(rows)
        return rows if columns is None else rows.select(list(columns))

    def stored(
        self,
        name: str,
        selection: Selection,
        columns: Sequence[str] | None,
        after: Mapping[int, int] | None = None,
        coded: bool = False,
    ) -> Any:
        """Rows of a stored table (all but params) as they lie in the rank's folder; `columns` None for all."""
        return self._read().read(name, selection, columns, after, coded)

    def segment_ends(self, name: str) -> list[int]:
        """The last step in each sealed segment of a table, in order: what is read up to one is read without waste."""
        return self._read().segment_ends(name) if self._key is not None else []

    def frame(self, name: str, rows: Any) -> pd.DataFrame:
        """The pandas frame of rows that `arrow` returned for the table `name`."""
        from optrace.trace import frames

        if name == "groups":
            return frames.groups_frame(rows)
        if name == "tensors":
            return frames.tensors_frame(rows, self._cached("places", self._places))
        return frames.events_frame(rows) if name == "events" else frames.steps_frame(rows)

    def value(self, step: int, param: str, quantity: str, optimizer: int = 0) -> npt.NDArray[Any]:
        """The whole tensor of a step as it was stored: read-only, mapped where it can be; bf16 and float8 as float32.

        TraceError when it was not stored, naming the recording that would have it.
        """
        from optrace.trace.whole import stored_value

        return stored_value(self, step, param, quantity, optimizer)

    def value_in_files(self, step: int, param: str, quantity: str, optimizer: int) -> npt.NDArray[Any] | None:
        """The same where a values file has it (for a shard this rank's own block); None where none has."""
        key = f"{optimizer}/{quantity}/{param}"
        return next((file.read(key) for file in self.values_at(step) if key in file), None)

    def bits_in_files(
        self, step: int, param: str, quantity: str, optimizer: int
    ) -> tuple[str, npt.NDArray[Any]] | None:
        """The same with torch's name of its dtype and nothing widened: bf16 and float8 as their bits."""
        key = f"{optimizer}/{quantity}/{param}"
        return next(((file.dtype(key), file.raw(key)) for file in self.values_at(step) if key in file), None)

    def values_at(self, step: int) -> list[ValuesFile]:
        """The files of whole tensors of a step; those of the last few steps that were asked for stay open."""
        from optrace.trace.values import ValuesFile
        from optrace.trace.whole import values_files

        path = self.rank_path
        if path is None:
            return []
        paths = self._cached("values", lambda: values_files(path)).get(step)
        if paths is None:  # a running process may have written them since
            self._cache.pop("values", None)
            paths = self._cached("values", lambda: values_files(path)).get(step, [])
        files: dict[int, list[ValuesFile]] = self._cached("open values", dict)
        if step not in files or len(files[step]) != len(paths):
            while len(files) >= _OPEN_STEPS:
                del files[next(iter(files))]
            files[step] = [ValuesFile(path) for path in paths]
        return files[step]

    @property
    def optimizers(self) -> list[tuple[int, str]]:
        """Index and class name of each optimizer, in order of first step."""
        found: dict[int, str] = {}
        for row in self.params_rows():
            if isinstance(row, dict) and type(row.get("optimizer")) is int:
                found.setdefault(row["optimizer"], str(row.get("optimizer_class")))
        return sorted(found.items())

    @property
    def last_steps(self) -> dict[int, int]:
        """The last finished step of every optimizer that has finished one (0: the world before step 1)."""
        return dict(self._read().whole()) if self._key is not None else {}

    def last_step(self, optimizer: int = 0) -> int:
        """The last finished step of an optimizer; 0 before its first. TraceError if there is no such optimizer."""
        whole = self.last_steps
        if optimizer not in whole and optimizer not in dict(self.optimizers):
            known = ", ".join(f"{index} ({name})" for index, name in self.optimizers) or "none"
            raise TraceError(f"{self.path} has no optimizer {optimizer}; it has {known}")
        return whole.get(optimizer, 0)

    @property
    def problems(self) -> list[str]:
        """What was dropped, torn or is missing, in words; empty when all is well."""
        if self._key is None:
            return ["no process of this run has recorded a step"]
        found = self._read().problems()
        unsealed = self.rank_info.get("unsealed")
        if isinstance(unsealed, list):
            found += [f"could not be sealed: {text}" for text in unsealed]
        number = self._key[0]
        if self._rank is None:
            found += unrecorded(self.rank_info, [rank for rank, restart in self._ranks if restart == 0])
        if self._rank is None and self.restarts(number):
            found.append(f"rank {number} was started again: {self.path.name}@restart=1 is what it recorded then")
        return found

    def verify(self) -> list[str]:
        """Read every file to its last byte and check it against the others; what is wrong, in words."""
        from optrace.trace.verify import verify

        return verify(self)

    def refresh(self) -> None:
        """Look again at what a running process has written since."""
        self._cache.clear()
        self._ranks = rank_folders(self.path)
        if self._folder is not None:
            self._folder.refresh()

    def follow(self, name: str, *, interval: float = 0.5) -> Iterator[pd.DataFrame]:
        """Frames of a table's rows that were finished since the last frame; the first holds what is there already.

        Refreshes the trace each time. Ends when the recording has ended or its process is gone; `interval` is the pause
        between two looks, in seconds. TraceError for `params`, which is not appended to.
        """
        from optrace.trace.follow import follow

        return follow(self, name, interval)

    @property
    def _key(self) -> tuple[int, int] | None:
        return self._rank if self._rank is not None else min(self._ranks, default=None)

    def _read(self) -> RankFolder:
        path = self.rank_path
        assert path is not None
        if self._folder is None or self._folder.path != path:
            self._folder = RankFolder(path)
        return self._folder

    def _json(self, name: str, kind: type[T]) -> T:
        return cast("T", self._read().json(name, kind)) if self._key is not None else kind()

    def params_rows(self) -> list[Any]:
        """The rows of params.json as they are."""
        return self._cached("params", lambda: self._json("params.json", list))

    def _params_frame(self, optimizer: int | None, param: Names) -> pd.DataFrame:
        from optrace.trace import frames

        patterns = None if param is None else (param,) if isinstance(param, str) else tuple(param)
        frame = frames.params_frame(self.params_rows())
        if optimizer is not None:
            frame = frame[frame["optimizer"] == optimizer]
        if patterns is not None:
            frame = frame[[matches(str(name), patterns) for name in frame["param"]]]
        return frame.reset_index(drop=True)

    def _places(self) -> dict[tuple[int, str], int]:
        return {
            (row["optimizer"], row["param"]): place
            for place, row in enumerate(self.params_rows())
            if isinstance(row, dict) and type(row.get("optimizer")) is int and isinstance(row.get("param"), str)
        }

    def _cached(self, name: str, make: Callable[[], T]) -> T:
        if name not in self._cache:
            self._cache[name] = make()
        return cast("T", self._cache[name])


def _known(columns: Sequence[str], known: Iterable[str], table: str) -> list[str]:
    """The columns as a list; TraceError if the table lacks one."""
    names = list(known)
    for column in columns:
        if column not in names:
            raise TraceError(f"{table} has no column {column!r}; it has {', '.join(map(str, names))}")
    return list(columns)


def _with_absmax(rows: Any) -> Any:
    """The rows with the derived column `absmax` after `max`."""
    import pyarrow as pa

    from optrace.trace.arrays import elements, numbers

    absmax = np.maximum(np.abs(elements(rows.column("min"))), np.abs(elements(rows.column("max"))))
    return rows.add_column(rows.column_names.index("max") + 1, "absmax", pa.chunked_array([numbers(absmax)]))
