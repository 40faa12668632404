"""Writes lines to stdout. A slow reader of the log never blocks the worker.

A full pipe (a log collector that is slow or stopped) would stop the whole worker with all of its streams. So a pipe or
a terminal is opened once more without blocking. A socket is told in each call not to block. The descriptor that other
processes share stays as it is. Lines that stdout does not take are kept within bounds and sent later. Lines beyond the
bounds are dropped and counted, and the count is logged when there is room again. A file takes all lines.

A pipe takes up to 4,096 bytes whole or not at all. Lines of another process could tear a longer line. Nothing here
may be called in a signal handler.
"""

from __future__ import annotations

import _socket
import contextlib
import logging
import os
import select
import stat
import time
from collections import deque
from collections.abc import Callable, Mapping

__all__ = ["Event", "LineHandler", "Lines"]

MOST_WAITING_BYTES = 4_194_304
LAST_SECONDS = 1.0
MOST_A_SECOND = 20
"""How many equal lines a second may have. Events have no such limit, because each stands for a request or a stream."""


class Lines:
    """The lines of one descriptor, in order, each whole."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._own = -1
        self._connection: _socket.socket | None = None
        self._send: Callable[[bytes], int] = lambda data: os.write(self._fd, data)
        try:
            kind = os.fstat(fd).st_mode
        except OSError:
            kind, self._fd = 0, -1  # stdout is closed, and another file may get its number
        if stat.S_ISFIFO(kind) or stat.S_ISCHR(kind):
            with contextlib.suppress(OSError):  # another user's pipe cannot be opened, so writing to it may block
                self._fd = self._own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        elif stat.S_ISSOCK(kind):
            self._fd = self._own = os.dup(fd)
            # gevent's socket.socket would make the shared descriptor non-blocking for all processes.
            self._connection = connection = _socket.socket(fileno=self._own)
            self._send = lambda data: connection.send(data, _socket.MSG_DONTWAIT)
        self._process = os.getpid()
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self.lost = 0
        """Lines that found no room since `take_lost` was last called."""

    def write(self, line: bytes) -> None:
        """Send one line, its end included, or keep it for later, or count it as lost. Raises: OSError."""
        if self._process != os.getpid():  # the parent process sends its own lines
            self._process = os.getpid()
            self._drop()
        if self._waiting_bytes + len(line) > MOST_WAITING_BYTES:
            self.lost += 1
            return
        self._waiting.append(line)
        self._waiting_bytes += len(line)
        self.send()

    def send(self) -> None:
        """Send waiting lines, as far as there is room. Raises: OSError when nobody will ever read them."""
        while self._waiting and self._process == os.getpid():
            line = self._waiting[0]
            try:
                sent = self._send(line)
            except BlockingIOError:
                return
            except OSError:
                self._drop()
                raise
            self._waiting_bytes -= sent
            if sent == len(line):
                self._waiting.popleft()
            else:
                self._waiting[0] = line[sent:]

    @property
    def is_clear(self) -> bool:
        """Tell whether nothing waits."""
        return not self._waiting

    def take_lost(self) -> int:
        """Return how many lines were lost since the last call."""
        lost, self.lost = self.lost, 0
        return lost

    def close(self) -> None:
        """Give the log's reader a moment to take the waiting lines, then drop them. May be called again."""
        if self._waiting and self._process == os.getpid():  # the parent process sends its own lines
            poll = select.poll()
            poll.register(self._fd, select.POLLOUT)
            until = time.monotonic() + LAST_SECONDS
            with contextlib.suppress(OSError):
                while self._waiting and (left := until - time.monotonic()) > 0 and poll.poll(left * 1000):
                    self.send()
        self._drop()
        self._fd = -1  # another file may get its number at once
        if self._connection is not None:
            self._connection.detach()  # otherwise its collection would close that number once more
        if self._own >= 0:
            os.close(self._own)
            self._own = -1

    def _drop(self) -> None:
        self._waiting.clear()
        self._waiting_bytes = 0


class Event(logging.LogRecord):
    """A record of our own, with its fields apart.

    Logging looks up the caller of every record, which is half of a line's cost. No line shows the caller, so this
    record leaves it out.
    """

    def __init__(self, name: str, level: int, fields: Mapping[str, object]) -> None:
        self.name = "app"
        self.msg = self.event = name
        self.args = ()
        self.levelno = level
        self.levelname = logging.getLevelName(level)
        self.created = time.time()
        self.fields = fields
        self.exc_info = self.exc_text = self.stack_info = None
        self.pathname = self.filename = self.module = self.funcName = ""
        self.lineno = 0


class LineHandler(logging.Handler):
    """Sends every record to stdout as one line. `log_lines_dropped` tells how many lines found no room."""

    def __init__(self, fd: int = 1) -> None:
        super().__init__()
        self._lines = Lines(fd)
        self._said: dict[tuple[str, str], int] = {}
        self._since = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        if not self._admits(record):
            return
        with contextlib.suppress(OSError):  # nobody will ever read stdout again
            self._tell_lost()
            self._lines.write(self.format(record).encode() + b"\n")

    def _admits(self, record: logging.LogRecord) -> bool:
        """Tell whether a line may be written. An error that repeats in a loop must not fill the disk."""
        if isinstance(record, Event):
            return True
        self._tell_left_out(time.monotonic())
        kind = (record.name, record.msg[:200] if type(record.msg) is str else "")
        said = self._said[kind] = self._said.get(kind, 0) + 1
        return said <= MOST_A_SECOND

    def _tell_left_out(self, now: float) -> None:
        """Count anew each second, and log how many lines of the second before were left out."""
        if now - self._since < 1.0:
            return
        said, self._said, self._since = self._said, {}, now
        if lines := sum(max(0, count - MOST_A_SECOND) for count in said.values()):
            with contextlib.suppress(OSError):
                record = Event("log_lines_left_out", logging.WARNING, {"lines": lines})
                self._lines.write(self.format(record).encode() + b"\n")

    def flush(self) -> None:
        """Send waiting lines, as far as there is room."""
        with self.lock, contextlib.suppress(OSError):  # type: ignore[union-attr]
            self._tell_left_out(time.monotonic())
            self._lines.send()
            self._tell_lost()

    def close(self) -> None:
        self.flush()
        self._lines.close()
        super().close()

    def _tell_lost(self) -> None:
        if self._lines.lost and self._lines.is_clear:
            record = Event("log_lines_dropped", logging.WARNING, {"lines": self._lines.take_lost()})
            self._lines.write(self.format(record).encode() + b"\n")
