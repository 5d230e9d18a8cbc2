"""Writing a trace: the recorder hands over finished steps, and each is in the kernel when the call returns."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from optrace.errors import TraceError
from optrace.trace.background import BackgroundWriter
from optrace.trace.batches import EventBatches, StepBatches, TensorLayout
from optrace.trace.group_batches import GroupBatches
from optrace.trace.jsonfile import read_json, write_json
from optrace.trace.schema import FORMAT, SEGMENT_BYTES, TABLES, Event
from optrace.trace.segments import Sealer
from optrace.trace.standing import FULL, StandingOrder, can_stand
from optrace.trace.stream import TableStream
from optrace.trace.values import pack_values, write_packed

__all__ = ["Event", "RankWriter", "RunWriter", "TensorLayout", "TraceFull"]


_KNOWN = 64
"""Optimizers whose last rows are kept to know them again; a program that steps more in turn writes at more cost."""


class TraceFull(TraceError):
    """The trace has reached the size that it was allowed (`--max-size`)."""


class RunWriter:
    """A run's folder and its trace.json, which the first process of a job writes and all others join."""

    def __init__(self, folder: Path, info: dict[str, Any], joined: bool) -> None:
        self.folder = folder
        self.info = info
        """What trace.json holds."""
        self.joined = joined
        """True when another process had written trace.json before."""

    @classmethod
    def create(cls, folder: str | os.PathLike[str], info: Mapping[str, Any]) -> RunWriter:
        """Make the folder and put trace.json there, once: whoever comes later gets what the first one wrote.

        `info` is any JSON object; `format` is added. TraceError when the folder cannot be made or written to, or holds
        a trace.json that this version cannot read.
        """
        path = Path(folder)
        file = path / "trace.json"
        try:
            path.mkdir(parents=True, exist_ok=True)
            written = write_json(file, {"format": FORMAT, **info}, exclusive=True)
        except OSError as error:
            raise TraceError(f"cannot write a trace to {path}: {error.strerror or error}") from error
        for pause in (0.01, 0.1, 0.5, 1.0):
            try:
                return cls(path, read_json(file, dict), joined=not written)
            except TraceError:  # without hard links the first process may still be writing it
                time.sleep(pause)
        return cls(path, read_json(file, dict), joined=not written)


class RankWriter:
    """One process's part of a run. Safe to call from several threads; a forked child's calls are refused.

    Every write either lands whole or is taken back: after an error (OSError, TraceError) the files end with the last
    finished step.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        max_bytes: int | None = None,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        staging_bytes: int | None = None,
    ) -> None:
        """`folder` exists and is this process's alone; `max_bytes` bounds all that is written below it.

        `staging_bytes` bounds the whole tensors that wait to be written in the background (None: 512 MB).
        """
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        self.segment_bytes = segment_bytes
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._busy = False
        self._late: list[Event] = []
        self._closed = False
        self._info: dict[str, Any] = {}
        self._value_bytes = 0
        self._streams = {table: TableStream(self.folder, table) for table in TABLES}
        self._tables = tuple(self._streams.values())
        self._groups = GroupBatches()
        self._steps = StepBatches()
        self._events = EventBatches()
        self.orders: dict[int, StandingOrder] = {}
        """By optimizer; always the same dict. None where the last two steps were not laid out alike."""
        self._before: dict[int, Any] = {}
        """By optimizer: the rows and options of its last step."""
        self._sealer = Sealer()
        self._background = BackgroundWriter(staging_bytes)

    @property
    def bytes_written(self) -> int:
        """Bytes below the folder: open and sealed segments and whole values (the small JSON files apart)."""
        return sum(stream.size for stream in self._streams.values()) + self._sealer.size + self._value_bytes

    def write_rank(self, info: Mapping[str, Any]) -> None:
        """Write rank.json; each call replaces what the last one said."""
        with self._lock:
            self._check()
            self._info = dict(info)
            write_json(self.folder / "rank.json", self._info)

    def write_params(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write params.json: the whole list each time, keys as in `schema.PARAM_COLUMNS`."""
        with self._lock:
            self._check()
            write_json(self.folder / "params.json", list(rows))

    def write_step(
        self,
        step: int,
        optimizer: int,
        *,
        groups: Sequence[tuple[int, Mapping[str, Any]]] = (),
        tensors: tuple[TensorLayout, npt.NDArray[np.void], npt.NDArray[np.bool_]] | None = None,
        steps: Mapping[str, Any] | None = None,
        events: Sequence[Event] = (),
    ) -> None:
        """Write one finished step; on return every byte of it has been taken by the kernel.

        Args:
            step: its number; 0 is the world before step 1.
            optimizer: the optimizer's index.
            groups: (group index, {option: value}) in order, as read before the step; values are copied.
            tensors: layout, `measure.ROW` rows [n] and present [n] (bool), n = len(layout); copied.
            steps: the step's row in the table `steps` without its keys; None writes no row.
            events: what happened since the last write, in order of `seq`; the last one is the step's own, without
                which a reader drops the step.

        Raises:
            TraceFull: `max_bytes` is reached; nothing was written.
            TraceError, OSError: the step was taken back.
        """
        with self._lock:
            self._check()
            if self._busy:
                raise TraceError(f"step {step} was finished by a signal handler while another step was being written")
            self._busy = True
            self.orders.pop(optimizer, None)
            in_groups, in_tensors, in_steps, in_events = self._tables
            marks = [(stream, stream.size) for stream in self._tables]
            try:
                if groups:
                    batch = self._groups.fill(step, optimizer, groups)
                    if batch is not None:
                        in_groups.append(batch)
                if tensors is not None and len(tensors[0]):
                    layout, rows, present = tensors
                    in_tensors.append(layout.fill(step, rows, present))
                if steps is not None:
                    in_steps.append(self._steps.fill(step, optimizer, steps))
                if events:
                    in_events.append(self._events.fill(events))
                if self.max_bytes is not None:
                    self._check_size()
            except BaseException:
                self._take_back(marks)
                raise
            finally:
                self._busy = False
            self._after_write()
            self._stand_ready(optimizer, groups, tensors, steps is not None and bool(events))

    def write_again(
        self,
        step: int,
        optimizer: int,
        groups: Sequence[tuple[int, Mapping[str, Any]]],
        tensors: tuple[TensorLayout, npt.NDArray[np.void], npt.NDArray[np.bool_]] | None,
        steps: Mapping[str, Any],
        events: list[Event],
    ) -> bool:
        """Write a step as `write_step` does, in a fraction of its time, if it is laid out as the last two were.

        Whether it was: else nothing has been written. Rows are known again by being the same objects.
        """
        with self._lock:
            order = self.orders.get(optimizer)
            if order is None or self._busy or self._closed or os.getpid() != self._pid:
                return False
            try:
                done = order.write(step, groups, tensors, steps, events, self.segment_bytes)
            except BaseException:
                self.take_back()
                raise
            if done & FULL:
                self._after_write()
            return bool(done)

    def write_events(self, events: Sequence[Event]) -> None:
        """Write events that belong to no finished step. From a signal handler amid a write they come right after it."""
        if not events:
            return
        with self._lock:
            self._check()
            if self._busy:
                self._late.extend(events)
                return
            self._busy = True
            stream = self._streams["events"]
            size = stream.size
            try:
                stream.append(self._events.fill(events))
                if self.max_bytes is not None:
                    self._check_size()
            except BaseException:
                self._take_back([(stream, size)])
                raise
            finally:
                self._busy = False
            self._after_write()

    def write_values(
        self,
        step: int,
        values: Mapping[str, tuple[str, Sequence[int], Any]],
        done: Callable[[], None] | None = None,
    ) -> None:
        """Write whole tensors of a step, before its `write_step`.

        `values` maps `<optimizer>/<quantity>/<param>` to (dtype name, shape, C-contiguous buffer of the elements in
        this machine's little-endian order). With `done` they are written by a thread while the caller goes on: the
        buffers must stay as they are until `done` is called. The call waits when too much is waiting to be written.
        TraceFull, TraceError, OSError (also of an earlier call's values): no file is left.
        """
        with self._lock:
            self._check()
            packed = pack_values(values)
            if self.max_bytes is not None and packed.size > self.max_bytes - self.bytes_written:
                raise self._full()
            if done is None:
                write_packed(self.folder, step, packed)
            else:
                self._background.put(packed.size, partial(write_packed, self.folder, step, packed), done)
            self._value_bytes += packed.size

    def close(self, end: str = "clean") -> None:
        """Seal what is open and write `end` ("clean", or "error: ...") to rank.json; a second call does nothing.

        A segment that cannot be sealed stays as the stream that it is, as readable as before, and rank.json says why.
        OSError when rank.json or values that waited cannot be written. In a forked child only the files are closed.
        """
        if os.getpid() != self._pid:
            for stream in self._streams.values():
                stream.abandon()
            self._closed = True
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
            problem: BaseException | None = None
            try:
                self._background.close()
            except Exception as error:  # the tables are finished all the same
                problem = error
            for stream in self._streams.values():
                self._sealer.add(stream.finish())
            self._sealer.close()
            info = {**self._info, "end": end}
            if self._sealer.problems:
                info["unsealed"] = self._sealer.problems
            write_json(self.folder / "rank.json", info)
            if problem is not None:
                raise problem

    def _stand_ready(self, optimizer: int, groups: Any, tensors: Any, whole: bool) -> None:
        """Have the next step of an optimizer written in one call, if this one was laid out as the one before it."""
        group_part = self._groups.part(optimizer) if groups else None
        known = (group_part and group_part[0], *(tensors if tensors is not None else (None, None, None)))
        before = self._before.get(optimizer)
        if before is None and len(self._before) >= _KNOWN:  # those of optimizers that are gone hold memory
            self._before.clear()
            self.orders.clear()
        self._before[optimizer] = known
        if not whole or self.max_bytes is not None or not can_stand():
            return
        if before is None or any(old is not new for old, new in zip(before, known, strict=True)):
            return
        tensor_part = None
        if tensors is not None and len(tensors[0]):
            tensor_part = tensors[0].part(*tensors[1:])
            if tensor_part is None:
                return
        parts = (group_part, tensor_part, self._steps.part(), self._events.part())
        if parts[2] is None or parts[3] is None:
            return
        pairs = list(zip(self._tables, parts, strict=True))
        if all(part is None or stream.is_open for stream, part in pairs):
            self.orders[optimizer] = StandingOrder(optimizer, groups, known[1:], self._groups, pairs)

    def _check(self) -> None:
        if os.getpid() != self._pid:
            raise TraceError(f"{self.folder} belongs to process {self._pid}; a forked child writes a run of its own")
        if self._closed:
            raise TraceError(f"the trace in {self.folder} has been closed")

    def _check_size(self) -> None:
        assert self.max_bytes is not None
        if self.bytes_written > self.max_bytes:
            raise self._full()

    def _full(self) -> TraceFull:
        return TraceFull(
            f"{self.folder} has reached its {self.max_bytes} bytes;"
            " record fewer steps or quantities, or raise --max-size"
        )

    def take_back(self) -> None:
        """Drop what a write that failed has left of a step; OSError when even that fails."""
        with self._lock:
            self._take_back([(stream, stream.size) for stream in self._tables])

    def _take_back(self, marks: Sequence[tuple[TableStream, int]]) -> None:
        self.orders.clear()
        for stream, size in reversed(marks):
            stream.cut(size)  # also one whose size seems right: an interrupt may have come right after its write

    def _after_write(self) -> None:
        """Start sealing streams that have grown full, and write the events that a signal handler left."""
        limit = self.segment_bytes
        for stream in self._tables:
            if stream.size > limit:
                self.orders.clear()
                self._sealer.start(stream.finish())
        if self._late:
            late, self._late = self._late, []
            self.write_events(late)
