"""Reading a table's open segment while it grows: whole batches only, from where the last reading ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optrace.errors import TraceError
from optrace.trace.schema import arrow_schema


class StreamTail:
    """One `.arrows` file: `read()` takes in what has been appended; a torn or damaged end is described, not raised."""

    def __init__(self, path: Path, table: str) -> None:
        self.path = path
        self._batches: list[Any] = []
        self.offset = 0
        """Bytes of the file that these take."""
        self.ended = False
        """The writer has closed the segment."""
        self.problem: str | None = None
        """What follows the last whole batch, in words."""
        self._schema = arrow_schema(table)

    def read(self) -> None:
        """Take in the batches that have been finished since; TraceError if the file is of something else."""
        import pyarrow as pa

        if self.ended:
            return
        self.problem = None
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset)
            data = file.read()
        buffer = pa.py_buffer(data)
        position = 0
        try:
            if self.offset == 0:
                position = self._read_schema(buffer)
            while position < len(data):
                if data[position : position + 8] == b"\xff\xff\xff\xff\x00\x00\x00\x00":
                    position += 8
                    self.ended = True
                    break
                reader = pa.BufferReader(buffer.slice(position))
                batch = pa.ipc.read_record_batch(pa.ipc.read_message(reader), self._schema)
                batch.validate(full=True)
                self._batches.append(batch)
                position += reader.tell()
        except (pa.ArrowException, OSError, ValueError, EOFError, MemoryError, OverflowError):
            self.problem = (
                f"{self.path.name} is incomplete or damaged from byte {self.offset + position} on"
                f" ({len(data) - position} bytes dropped)"
            )
        self.offset += position
        if self.ended and position < len(data):
            self.problem = f"{self.path.name} goes on after its end ({len(data) - position} bytes dropped)"

    def rows(self) -> Any:
        """The rows of all whole batches read so far, as a `pyarrow.Table`."""
        import pyarrow as pa

        rows = pa.Table.from_batches(self._batches, self._schema)
        if len(self._batches) > 1:
            rows = rows.combine_chunks()
            self._batches = rows.to_batches()
        return rows

    def _read_schema(self, buffer: Any) -> int:
        import pyarrow as pa

        reader = pa.BufferReader(buffer)
        found = pa.ipc.read_schema(reader)
        if not found.equals(self._schema):
            raise TraceError(f"{self.path} does not hold the columns of this table; was it written by another program?")
        return int(reader.tell())
