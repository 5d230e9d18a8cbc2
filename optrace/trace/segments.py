"""Sealing: a closed stream becomes a sorted, compressed Parquet file for selective reading, then goes away."""

from __future__ import annotations

import os
import threading
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from optrace.errors import TraceError
from optrace.trace.arrays import elements, numbers
from optrace.trace.schema import COLUMNS, arrow_schema
from optrace.trace.tail import StreamTail

ROW_GROUP = 16_384
"""Rows of a sealed segment that are read together: what a selection costs at least."""


class Sealer:
    """Seals the segments handed to it, in a thread that lives only while there are any."""

    def __init__(self) -> None:
        self.size = 0
        """Bytes of all segments handed over: sealed ones as they are now, others as streams."""
        self.problems: list[str] = []
        """Segments that could not be sealed and why; their streams are still there."""
        self._waiting: deque[Path] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, path: Path | None) -> None:
        """Take over a closed stream, to be sealed by `close` or by the thread."""
        if path is not None:
            with self._lock:
                self.size += _size(path)
                self._waiting.append(path)

    def start(self, path: Path | None) -> None:
        """Take over a closed stream and have it sealed in the background."""
        self.add(path)
        with self._lock:
            if self._thread is None and self._waiting:
                thread = threading.Thread(target=self._work, name="optrace-seal", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the interpreter is ending, or no thread is to be had: `close` seals it
                    return
                self._thread = thread

    def close(self) -> None:
        """Seal whatever is left and return when all is done."""
        thread = self._thread
        if thread is not None:
            thread.join()
        self._work()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                path = self._waiting.popleft()
            self._seal(path)

    def _seal(self, path: Path) -> None:
        before = _size(path)
        try:
            after = _size(seal(path))
        except Exception as error:  # whatever went wrong, the stream is still whole: say so and keep it
            with self._lock:
                self.problems.append(f"{path.name}: {type(error).__name__}: {error}")
            return
        with self._lock:
            self.size += after - before


def seal(path: Path) -> Path:
    """Turn the closed stream at `path` (.arrows) into Parquet beside it and unlink the stream; the new file's path.

    The Parquet file appears by rename after fsync, so that at any moment one of the two is whole. TraceError when the
    stream is damaged: then it is kept as it is; OSError, ArrowException when writing fails.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = path.name.partition("-")[0]
    rows = _read(path, name)
    target = path.with_suffix(".parquet")
    temporary = path.with_suffix(".parquet.tmp")
    schema = arrow_schema(name)
    order = _order(rows) if name == "tensors" else None
    try:
        with temporary.open("wb") as file:
            with pq.ParquetWriter(file, schema, **_options(name)) as writer:
                for start in range(0, max(rows.num_rows, 1), ROW_GROUP):
                    part = (
                        rows.slice(start, ROW_GROUP)
                        if order is None
                        else rows.take(numbers(order[start : start + ROW_GROUP]))
                    )
                    writer.write_table(part, row_group_size=ROW_GROUP)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    path.unlink()
    pa.default_memory_pool().release_unused()  # else Arrow keeps some 60 MB for its next time
    return target


def _size(path: Path) -> int:
    """Bytes of a file; 0 when it is gone, which is for the reader to notice."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _read(path: Path, name: str) -> Any:
    tail = StreamTail(path, name, closed=True)
    tail.read()
    if tail.problem is not None:
        raise TraceError(tail.problem)
    return tail.rows()


def _options(table: str) -> dict[str, Any]:
    columns = COLUMNS[table]
    floats = [column.name for column in columns if column.type == "double"]
    if table == "tensors":
        floats.append("sample.list.element")
    repeated = [column.name for column in columns if column.type in ("string", "int32") and column.name != "data"]
    if table != "events":
        repeated.append("step")
    return {
        "compression": "zstd",
        "use_dictionary": repeated,
        "use_byte_stream_split": floats,
        "write_page_checksum": True,
        "write_statistics": [column.name for column in columns if column.name not in ("sample", "data", "text")],
        "version": "2.6",
    }


def _order(rows: Any) -> npt.NDArray[np.int64]:
    """Positions that sort the rows by (optimizer, param, quantity, step); strings by their UTF-8 bytes."""
    columns = [elements(rows.column("step"))]
    columns += [_ranks(rows.column(name)) for name in ("quantity", "param")]
    columns.append(elements(rows.column("optimizer")))
    order: npt.NDArray[np.int64] = np.lexsort(columns)
    return order


def _ranks(column: Any) -> npt.NDArray[np.int64]:
    import pyarrow as pa

    encoded = column.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.chunk(0) if encoded.num_chunks == 1 else encoded.combine_chunks()
    words = [word.encode() for word in encoded.dictionary.to_pylist()]
    ranks = np.empty(len(words), np.int64)
    ranks[sorted(range(len(words)), key=words.__getitem__)] = np.arange(len(words))
    result: npt.NDArray[np.int64] = ranks[elements(encoded.indices)]
    return result


def sync_folder(folder: Path) -> None:
    """Have the kernel write a folder's entries to disk, where folders can be synced."""
    try:
        fd = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    except OSError:
        return
    try:
        os.fsync(fd)
    except OSError:
        pass
    finally:
        os.close(fd)
