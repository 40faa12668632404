"""The readers of one log: each is a sequence number and a lock to sleep on. Nothing is queued for a reader."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol, Self

from app.streams.interface import Piece, StreamLog

__all__ = ["LogReader", "ReadLog", "Readership"]


class ReadLog(StreamLog, Protocol):
    """A log as its readers use it."""

    def read(self, after: int, max_bytes: int) -> Piece | None: ...

    def read_chunks(self, after: int, max_bytes: int) -> Piece | None: ...

    def attach(self, reader: LogReader) -> None: ...

    def detach(self, reader: LogReader) -> None: ...

    def departed(self) -> None:
        """Hear that a reader has left, or that its client probably has."""


class LogReader:
    """One reader's place in a log of any store. See `app.streams.interface.Reader`."""

    __slots__ = (
        "_asleep",
        "_wake",
        "after",
        "deliver",
        "frame_at",
        "is_counted",
        "is_departed",
        "is_released",
        "knows_unresumable",
        "log",
        "only_end",
        "sending",
    )

    def __init__(self, log: ReadLog, after: int, *, only_end: bool, is_counted: bool = True) -> None:
        self.log = log
        self.after = after
        self.only_end = only_end
        self.is_counted = is_counted
        self.sending = False
        self.is_released = False
        self.is_departed = False
        self.knows_unresumable = False
        self.deliver: Callable[[Piece], bool] | None = None
        self.frame_at = time.monotonic()
        self._asleep = False
        self._wake = threading.Lock()
        self._wake.acquire()

    def __enter__(self) -> Self:
        self.log.attach(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.log.detach(self)
        self.deliver = None  # the function knows this reader, and so keeps the log and the connection alive

    def read(self, max_bytes: int) -> Piece | None:
        return self.log.read(self.after, max_bytes)

    def read_chunks(self, max_bytes: int) -> Piece | None:
        return self.log.read_chunks(self.after, max_bytes)

    def wait(self) -> None:
        self._asleep = True
        log = self.log
        # `_asleep` is set before the log is looked at. So everything that is appended from now on nudges this reader.
        # In the other order the reader would sleep through a record, or the end, that came in between.
        if log.end is not None or (log.head > self.after and not self.only_end) or self.is_released:
            self._asleep = False
            return
        self._wake.acquire()

    def tell(self, piece: Piece) -> None:
        """Deliver an appended piece, or wake the reader."""
        deliver = self.deliver
        if self._asleep and not self.only_end and (deliver is None or not deliver(piece)):
            self.nudge()

    def release(self) -> None:
        self.is_released = True
        self.nudge()

    def depart(self) -> None:
        self.is_departed = True
        self.log.departed()

    def nudge(self) -> None:
        if self._asleep:
            self._asleep = False
            try:
                self._wake.release()
            except RuntimeError:
                pass  # another thread nudged in the same moment


class Readership:
    """All readers of one log."""

    __slots__ = ("_lock", "_readers", "attached", "unread_since")

    def __init__(self, lock: AbstractContextManager[object]) -> None:
        """`lock` is the log's."""
        self.attached = 0
        """How many have attached so far."""
        self.unread_since: float | None = time.monotonic()
        """When the last reader left, or the log began. None while there is one. Units: monotonic seconds."""
        self._lock = lock
        self._readers: list[LogReader] = []

    def __len__(self) -> int:
        return len(self._readers)

    def add(self, reader: LogReader) -> None:
        with self._lock:
            # The list is a new one, because `tell` walks the old one without the lock.
            self._readers = [*self._readers, reader]
            self.attached += reader.is_counted
            self.unread_since = None

    def remove(self, reader: LogReader) -> bool:
        """Forget a reader. True when that was the last one."""
        with self._lock:
            self._readers = [other for other in self._readers if other is not reader]
            return not self._readers

    def departed(self) -> None:
        """Hear that a reader has left, or that its client probably has."""
        with self._lock:
            if self.unread_since is None and all(reader.is_departed for reader in self._readers):
                self.unread_since = time.monotonic()

    def tell(self, piece: Piece) -> None:
        """Tell all readers what was appended."""
        for reader in self._readers:
            reader.tell(piece)

    def nudge(self) -> None:
        for reader in tuple(self._readers):
            reader.nudge()

    def release(self) -> None:
        """Send all readers away without an end. They may come back."""
        for reader in tuple(self._readers):
            reader.release()
