"""Files written past the page cache hold what they were given, wherever they lie."""

from __future__ import annotations

import errno
import fcntl
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from optrace.trace import direct

SHARED = Path("/dev/shm")


@pytest.fixture(params=["disk", "memory"])
def folder(request, tmp_path):
    """On a disk, and in memory, where a file system may know no O_DIRECT."""
    if request.param == "disk":
        yield tmp_path
    elif not SHARED.is_dir():
        pytest.skip("no /dev/shm here")
    else:
        here = SHARED / f"optrace-{os.getpid()}"
        here.mkdir()
        yield here
        for file in here.iterdir():
            file.unlink()
        here.rmdir()


@pytest.mark.parametrize("size", [0, 1, direct.LEAST - 1, direct.LEAST, direct.LEAST + 1, 2 * direct.LEAST + 4095])
def test_a_file_holds_its_buffers(folder, size):
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    cuts = sorted({0, min(size, 13), size // 3, size - size // 5, size})
    buffers = [data[start:end].data for start, end in pairwise(cuts)]
    for _ in range(2):  # the second writes over the first
        direct.write_file(folder / "file", [b"", *buffers], size)
        assert (folder / "file").read_bytes() == data.tobytes()


def on_a_page(data):
    memory = np.empty(len(data) + direct.BLOCK, np.uint8)
    start = -memory.ctypes.data % direct.BLOCK
    memory[start : start + len(data)] = data
    return memory[start : start + len(data)]


@pytest.mark.parametrize(
    "sizes",
    [
        (direct.BLOCK, direct.LEAST, direct.BLOCK * 100, direct.LEAST + 17),
        (direct.BLOCK * 64 + 5, direct.LEAST, 3),
        (9, direct.LEAST, direct.BLOCK * 64),
        (direct.LEAST,),
    ],
)
def test_buffers_that_begin_with_a_page_are_written_where_they_lie(folder, sizes, monkeypatch):
    random = np.random.default_rng(len(sizes))
    parts = [on_a_page(random.integers(0, 256, size, np.uint8)) for size in sizes]
    places, write = [], direct.write_aligned
    address = lambda data: np.frombuffer(data, np.uint8).ctypes.data if len(data) else 0  # noqa: E731
    monkeypatch.setattr(direct, "write_aligned", lambda fd, data: places.append(address(data)) or write(fd, data))
    direct.write_file(folder / "file", [part.data for part in parts], sum(sizes))
    assert (folder / "file").read_bytes() == b"".join(part.tobytes() for part in parts)
    if places:  # the file system knows O_DIRECT
        assert (parts[-1].ctypes.data in places) == (sizes[0] % direct.BLOCK == 0)


def test_a_large_file_on_a_disk_goes_past_the_page_cache(tmp_path, monkeypatch):
    try:
        os.close(os.open(tmp_path / "probe", os.O_WRONLY | os.O_CREAT | os.O_DIRECT))
    except OSError as error:
        assert error.errno in (errno.EINVAL, errno.EOPNOTSUPP)
        pytest.skip("this file system knows no O_DIRECT")
    seen, write = [], direct.write_aligned
    monkeypatch.setattr(direct, "write_aligned", lambda fd, data: seen.append(direct.is_direct(fd)) or write(fd, data))
    direct.write_file(tmp_path / "file", [bytes(direct.LEAST + 5)], direct.LEAST + 5)
    assert seen == [True, True]


def test_what_the_file_system_refuses_goes_through_the_cache(tmp_path):
    """An address that is no multiple of anything, which O_DIRECT refuses on most disks."""
    data = np.arange(3 * direct.BLOCK + 1, dtype=np.uint8)[1:]
    fd = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_DIRECT)
    except OSError as error:
        assert error.errno == errno.EINVAL
    try:
        direct.write_aligned(fd, data.data)
    finally:
        os.close(fd)
    assert (tmp_path / "file").read_bytes() == data.tobytes()


def test_a_full_disk_is_told_as_it_is():
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(OSError) as told:
        direct.write_file(Path("/dev/full"), [bytes(direct.LEAST)], direct.LEAST)
    assert told.value.errno == errno.ENOSPC
