"""Writes whole tensors from a thread, so that training goes on meanwhile; what waits to be written is bounded."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

STAGING = 512 * 2**20
"""Bytes that may wait to be written, by default."""

Write = Callable[[], None]


class BackgroundWriter:
    """Runs writes one after the other in a thread of its own, which begins with the first.

    When as many bytes wait as are allowed, `put` waits for the disk: nothing is ever dropped. A single write that is
    bigger than that goes through alone. The first failure is raised by the next `put` or `close`; what waits then is
    given up.
    """

    def __init__(self, limit: int | None = None) -> None:
        """`limit` in bytes; None: `STAGING`."""
        self.limit = STAGING if limit is None else limit
        self.waiting = 0
        """Bytes that are not on disk yet."""
        self.most = 0
        """The most that have waited at one time."""
        self._queue: deque[tuple[int, Write, Callable[[], None]]] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._problem: BaseException | None = None
        self._closing = False

    def put(self, size: int, write: Write, done: Callable[[], None]) -> None:
        """Have `write` called, then `done` whatever came of it; waits while too many bytes do.

        Raises what an earlier write has raised (OSError), after `done`.
        """
        with self._changed:
            while self._problem is None and self.waiting and self.waiting + size > self.limit:
                self._changed.wait()
            if self._problem is not None:
                done()
                raise self._problem
            self.waiting += size
            self.most = max(self.most, self.waiting)
            self._queue.append((size, write, done))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="optrace values", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def close(self) -> None:
        """Wait until all is written and end the thread; raises what a write has raised and nobody was told yet."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._problem is not None:
            raise self._problem

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._closing:
                    self._changed.wait()
                if not self._queue:
                    return
                size, write, done = self._queue.popleft()
            try:
                if self._problem is None:
                    write()
            except BaseException as error:
                self._problem = error
            finally:
                done()
            with self._changed:
                self.waiting -= size
                self._changed.notify_all()
