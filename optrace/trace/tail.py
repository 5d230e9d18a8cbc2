"""Reading a table's open segment while it grows: whole batches only, from where the last reading ended."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

from optrace.errors import TraceError
from optrace.trace.arrays import no_rows
from optrace.trace.decode import decode
from optrace.trace.schema import arrow_schema
from optrace.trace.stream import END_OF_STREAM


class StreamTail:
    """One `.arrows` file: `read()` takes in what has been appended; a torn or damaged end is described, not raised."""

    def __init__(self, path: Path, table: str, *, closed: bool = False) -> None:
        """`closed`: the caller knows that the file will not change, so it is mapped, which spares memory."""
        self.path = path
        self.closed = closed
        self.offset = 0
        """Bytes of the file that have been taken in: whole messages."""
        self.ended = False
        """The writer has closed the segment."""
        self.problem: str | None = None
        """What follows the last whole batch, in words."""
        self._schema = arrow_schema(table)
        self._rows = no_rows(self._schema)

    def read(self) -> None:
        """Take in the batches that have been finished since; TraceError if the file is of something else, OSError."""
        import pyarrow as pa

        if self.ended:
            return
        self.problem = None
        data: bytes | mmap.mmap
        with self.path.open("rb", buffering=0) as file:
            if self.closed:
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            else:
                file.seek(self.offset)
                data = file.read()
        start = self._schema_length(data) if self.offset == 0 else 0
        if start is None:
            self.problem = f"{self.path.name} has no whole header yet ({len(data)} bytes dropped)"
            return
        found = decode(data, self._schema, start)
        if found.rows.num_rows:
            self._rows = pa.concat_tables([self._rows, found.rows])
        left = len(data) - found.end
        self.ended = found.ended and not left
        self.offset += found.end
        if found.ended and left:  # the mark is where the next batch will be, and beyond it is room for more
            self.offset -= len(END_OF_STREAM)
            if not data[found.end :].strip(b"\0"):
                return
        if left:
            self.problem = (
                f"{self.path.name} is incomplete or damaged from byte {self.offset} on ({left} bytes dropped)"
            )

    def rows(self) -> Any:
        """The rows of all whole batches read so far, as a `pyarrow.Table`."""
        if self._rows.num_rows and self._rows.column(0).num_chunks > 1:
            self._rows = self._rows.combine_chunks()
        return self._rows

    def _schema_length(self, data: bytes | mmap.mmap) -> int | None:
        """Bytes of the schema at the start; None if it is not whole, TraceError if it is another table's."""
        import pyarrow as pa

        reader = pa.BufferReader(data)
        try:
            found = pa.ipc.read_schema(reader)
        except (pa.ArrowException, OSError, ValueError, EOFError, MemoryError):
            if len(data) > 64 * 2**10:  # far beyond what a schema takes: not torn
                raise TraceError(f"{self.path} is damaged: it does not start with the columns of a table") from None
            return None
        if not found.equals(self._schema):
            raise TraceError(f"{self.path} does not hold the columns of this table; was it written by another program?")
        return int(reader.tell())
