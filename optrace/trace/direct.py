"""Writes large files past the page cache where the file system can.

Filling pages of the cache takes processor time that training would have.
A file opened with O_DIRECT is written in whole blocks: from where the bytes lie, if that is at the start of a page and
so is their place in the file, else from one kept buffer; the last block is padded, and cut off again.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from optrace.trace.stream import write_all

LEAST = 8 * 2**20
"""Bytes of a file that is worth it."""
BLOCK = 4096
"""Writes are multiples of it; it is one of every device's own."""
_CHUNK = 8 * 2**20
IN_PLACE = 64 * BLOCK
"""Bytes that are worth a write of their own."""
_O_DIRECT: int = getattr(os, "O_DIRECT", 0)
_kept = threading.local()


def write_file(path: Path, buffers: Sequence[memoryview | bytes], size: int) -> None:
    """Make a file of buffers that are `size` bytes together. OSError as the system gives it."""
    fd = _open(path, _O_DIRECT if size >= LEAST else 0)
    try:
        if is_direct(fd):
            _write_blocks(fd, buffers, size)
        else:
            for buffer in buffers:
                write_all(fd, buffer)
    finally:
        os.close(fd)


def is_direct(fd: int) -> bool:
    """Whether writes to a file go past the page cache."""
    return bool(_O_DIRECT) and bool(_flags(fd) & _O_DIRECT)


def _flags(fd: int, new: int | None = None) -> int:
    import fcntl  # no such module where there is no O_DIRECT

    return fcntl.fcntl(fd, fcntl.F_GETFL) if new is None else fcntl.fcntl(fd, fcntl.F_SETFL, new)


def _open(path: Path, direct: int) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        return os.open(path, flags | direct, 0o666)
    except OSError as error:
        if not direct or error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        return os.open(path, flags, 0o666)


def _write_blocks(fd: int, buffers: Sequence[memoryview | bytes], size: int) -> None:
    chunk = _kept_chunk()
    filled = 0
    for buffer in buffers:
        rest = np.frombuffer(buffer, np.uint8)
        if len(rest) >= IN_PLACE and filled % BLOCK == 0 and rest.ctypes.data % BLOCK == 0:
            write_aligned(fd, chunk[:filled].data)
            whole, filled = len(rest) // BLOCK * BLOCK, 0
            write_aligned(fd, rest[:whole].data)
            rest = rest[whole:]
        while len(rest):
            part = min(len(rest), len(chunk) - filled)
            chunk[filled : filled + part] = rest[:part]
            rest, filled = rest[part:], filled + part
            if filled == len(chunk):
                write_aligned(fd, chunk.data)
                filled = 0
    if filled:
        whole = -(-filled // BLOCK) * BLOCK
        chunk[filled:whole] = 0
        write_aligned(fd, chunk[:whole].data)
        os.ftruncate(fd, size)


def write_aligned(fd: int, data: memoryview) -> None:
    """Write whole blocks; through the page cache from where on the file system refuses them."""
    rest = data
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except OSError as error:
            if error.errno != errno.EINVAL or not is_direct(fd):
                raise
            _flags(fd, _flags(fd) & ~_O_DIRECT)


def _kept_chunk() -> npt.NDArray[Any]:
    """This thread's buffer, on a page of its own."""
    if not hasattr(_kept, "chunk"):
        _kept.chunk = np.frombuffer(mmap.mmap(-1, _CHUNK), np.uint8)
    chunk: npt.NDArray[Any] = _kept.chunk
    return chunk
