"""Appending to a table's open segment: an Arrow IPC stream whose batches are serialised once and then refilled.

A record batch on disk is a header (names no values, only lengths) and a body of plain buffers. Batches of one layout
have the same header, so it is made once by pyarrow; a step only replaces numbers in the body. What write(2) has taken,
or what lies in a shared mapping of the file, survives kill -9.
"""

from __future__ import annotations

import os
from array import array
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from optrace.errors import TraceError
from optrace.trace.measure import kernel
from optrace.trace.schema import arrow_schema, segment_name

_HIGH = 500
"""Few programs have so many files open, and Linux allows more by default; below that limit numbers stay as they are."""
_AHEAD = 256
"""So many batches a window has room for, within its bounds in bytes."""
_LEAST, _MOST = 2**16, 2**20
END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


class BatchTemplate:
    """One serialised record batch, kept writable, with NumPy views of the buffers that change from step to step."""

    def __init__(self, batch: Any) -> None:
        """Serialise `batch` (a `pyarrow.RecordBatch`); its schema must be the table's."""
        import pyarrow as pa

        self.bytes = bytearray(batch.serialize().to_pybytes())
        self._array: npt.NDArray[np.uint8] = np.frombuffer(self.bytes, np.uint8)
        self._back = pa.ipc.read_record_batch(pa.py_buffer(self.bytes), batch.schema)  # aliases self.bytes

    def place(self, column: str) -> tuple[int, int]:
        """Where the data buffer of a column is within `bytes`: offset and size.

        It is where pyarrow finds it when it reads the batch back, so nothing is assumed here about how Arrow lays out
        or pads a batch.
        """
        buffer = self._back.column(column).buffers()[-1]
        start = buffer.address - self._array.ctypes.data
        if start < 0 or start + buffer.size > len(self.bytes):
            raise TraceError(f"pyarrow copied column {column} on reading; this version of pyarrow is not supported")
        return start, buffer.size

    def view(self, column: str, dtype: str) -> npt.NDArray[Any]:
        """The data buffer of a column as a writable array: numbers, bits of a bool, or the bytes of a string column."""
        start, size = self.place(column)
        return self._array[start : start + size].view(dtype)


class TableStream:
    """The open segment of one table: created at the first batch, cut back after a failed write, closed to be sealed.

    Small batches that come quickly go through a window: the part of the file that is written next, allocated ahead and
    mapped into memory, where the C kernel puts them without a call of the system (see _kernel_window.h). Then the file
    ends in a mark of the stream's end and room to write; else at `size`.
    """

    def __init__(self, folder: Path, table: str) -> None:
        self.folder = folder
        self.table = table
        self.number = 1
        self.place = array("q", (-1, 0, 0, 0))
        """For the kernel: descriptor, `size`, when a batch was last written without a window, the window's address."""
        self._window: Any = None
        self._no_windows = kernel is None
        self._torn = False

    @property
    def size(self) -> int:
        """Bytes of whole messages in the open segment; 0 when there is none yet."""
        return self.place[1]

    @property
    def has_window(self) -> bool:
        """Whether batches go through a window."""
        return self._window is not None

    @property
    def is_open(self) -> bool:
        """Whether there is a segment that more may be appended to."""
        return self.place[0] >= 0 and not self._torn

    @property
    def path(self) -> Path:
        """Where the open segment is, or will be."""
        return self.folder / segment_name(self.table, self.number, "arrows")

    def append(self, message: bytearray) -> None:
        """Write a whole batch; OSError (after cutting the file back to `size`) when the system refuses."""
        if self.place[0] < 0:
            self._open()
        elif self._torn:
            raise TraceError(f"{self.path} ends in a torn batch that could not be cut off; nothing more can be written")
        if self.has_window and kernel.append_message(self.place, message):
            return
        size = self.size
        try:
            self._leave_window()
            written = os.pwrite(self.place[0], message, size)
            if written < len(message):  # the disk is nearly full, or the batch is beyond the 2 GB of one write(2)
                write_all(self.place[0], memoryview(message)[written:], size + written)
        except BaseException:
            self.cut(size)
            raise
        self.place[1] += len(message)  # an interrupt just before this is undone by whoever cuts back to an older size

    def look_ahead(self, length: int) -> None:
        """Have the next batches, of some `length` bytes each, go through a (new) window, where the system has that."""
        if self._no_windows or not self.is_open:
            return
        self._close_window()
        self._window = kernel.map_window(self.place, min(max(_AHEAD * length, _LEAST), _MOST))
        if self._window is None:
            self._no_windows = True
            with suppress(OSError):
                os.ftruncate(self.place[0], self.size)

    def cut(self, size: int) -> None:
        """Drop everything beyond `size` bytes; OSError when even that fails, and then no further batch is taken."""
        if self.place[0] < 0 or (size == 0 and self.size == 0):
            return
        self._close_window()
        if size == 0:  # the segment did not exist before: neither does it now
            self._close()
            os.unlink(self.path)
            return
        self._torn = True
        os.ftruncate(self.place[0], size)
        self._torn = False
        self.place[1] = size

    def finish(self) -> Path | None:
        """End the open segment so that it can be sealed, and go on to the next; its path, None if there is none."""
        if self.place[0] < 0:
            return None
        path = self.path
        try:
            self._leave_window()
            write_all(self.place[0], END_OF_STREAM, self.size)
        except OSError:
            os.ftruncate(self.place[0], self.size)  # a stream without its end mark is as readable as one with it
        finally:
            self._close()
            self.number += 1
        return path

    def abandon(self) -> None:
        """Close the file as it is, without a byte more: what a forked child does."""
        if self.place[0] >= 0:
            os.close(self.place[0])
            self.place[0] = -1
            self._close_window()

    def _close(self) -> None:
        os.close(self.place[0])
        self.place[0], self.place[1] = -1, 0

    def _close_window(self) -> None:
        self.place[3] = 0
        self._window = None

    def _leave_window(self) -> None:
        if self.has_window:
            self._close_window()
            os.ftruncate(self.place[0], self.size)

    def _open(self) -> None:
        head = bytes(arrow_schema(self.table).serialize())
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            write_all(fd, head, 0)
        except BaseException:
            os.close(fd)
            os.unlink(self.path)
            raise
        self.place[0], self.place[1] = _out_of_the_way(fd), len(head)


def _out_of_the_way(fd: int) -> int:
    """The same file under a high number, where there is room.

    A program may close every descriptor, as daemons do, and open files of its own: these are given the lowest numbers
    that are free, and what is written to ours must not go into them.
    """
    try:
        import fcntl

        high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    except (ImportError, OSError):  # another system, or a limit below
        return fd
    os.close(fd)
    return high


def write_all(fd: int, data: bytes | bytearray | memoryview, at: int | None = None) -> None:
    """write(2), or pwrite(2) `at` an offset, until all is taken. OSError as the system gives it."""
    rest = memoryview(data)
    while rest:
        if at is None:
            rest = rest[os.write(fd, rest) :]
        else:
            taken = os.pwrite(fd, rest, at)
            rest, at = rest[taken:], at + taken
