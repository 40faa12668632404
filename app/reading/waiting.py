"""Wait mode: a reader that sleeps until the log ends."""

from __future__ import annotations

import time
from collections.abc import Callable

from app import errors
from app.reading.readers import LOOK_SECONDS, Readers, is_foreign
from app.streams.interface import End, StreamLog

__all__ = ["wait", "wait_for_first"]


def wait(
    log: StreamLog,
    readers: Readers,
    *,
    seconds: float | None,
    gone: Callable[[], bool],
    departed: Callable[[], bool] | None = None,
) -> End | None:
    """Wait for the end of a log, for at most `seconds`. None when the end has not come, or when the client is `gone`.

    A client that has `departed` has sent its last byte and may still read, so the wait goes on. Both functions are
    called once a second.

    Raises: ShuttingDown when the client must wait at another worker; StreamUnknown when the log is erased; Overloaded
    when the client has departed and another one needs the place.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    asked_at = time.monotonic()
    with log.reader(log.head, only_end=True) as reader:
        readers.add(reader, every_seconds=0.0, departed=departed)
        try:
            while log.end is None and (deadline is None or time.monotonic() < deadline):
                reader.wait()
                if reader.is_released and log.end is None:
                    if log.is_erased:
                        raise errors.StreamUnknown
                    if reader.is_departed and not readers.is_leaving and not is_foreign(reader):
                        raise errors.Overloaded(retry_after_seconds=2)
                    raise errors.ShuttingDown(retry_after_seconds=1)
                now = time.monotonic()
                if now - asked_at >= LOOK_SECONDS:
                    asked_at = now
                    if gone():
                        break
            return log.end
        finally:
            readers.remove(reader)


def wait_for_first(log: StreamLog, readers: Readers, *, seconds: float, gone: Callable[[], bool]) -> None:
    """Wait for the first record of a log or for its end, for at most `seconds`, and no longer than the client is there.
    The reader that follows is the one that counts.

    Raises: ShuttingDown when the client must wait at another worker; StreamUnknown when the log is erased.
    """
    deadline = time.monotonic() + seconds
    with log.reader(0, is_counted=False) as reader:
        readers.add(reader, every_seconds=0.0)
        try:
            while not log.head and log.end is None:
                if reader.is_released:
                    raise errors.StreamUnknown if log.is_erased else errors.ShuttingDown(retry_after_seconds=1)
                reader.wait()
                if time.monotonic() >= deadline or gone():
                    return
        finally:
            readers.remove(reader)
