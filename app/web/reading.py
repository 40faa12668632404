"""The connection of a request as a log's reader, in any dialect."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from flask import Response, g, request

from app.dialects.interface import Dialect
from app.observability import facts
from app.observability.observer import tell
from app.platform.sockets import is_connected, is_dead, resets, shut
from app.reading.loop import frames
from app.reading.waiting import wait, wait_for_first
from app.reading.whole import sliced, whole
from app.server.direct import direct_writer
from app.streams.interface import End, StreamLog, log_name
from app.web.closing import to_its_end
from app.web.current import worker

__all__ = ["event_stream", "hold", "keep_place", "wait_for_end", "whole_body", "whole_text"]

STREAM_HEADERS = {
    "Cache-Control": "no-cache, no-store, no-transform",
    "X-Accel-Buffering": "no",
}


def event_stream(
    log: StreamLog, dialect: Dialect, after: int | None, *, location: str, is_admitted: bool = False
) -> Response:
    """Answer with what follows a record, live to the log's end. 204 when `after` is None: the client has seen the end.

    A client that `is_admitted` has been given its place before, and is not refused now.
    """
    if after is None:
        log.end_read = True
        response = Response(status=204)
    else:
        if not is_admitted:
            keep_place()
        response = Response(_frames(log, dialect, after), content_type="text/event-stream; charset=utf-8")
    response.headers.update(STREAM_HEADERS)
    response.headers["X-Stream-Id"] = log.stream_id
    response.headers["Location"] = location
    return response


def keep_place() -> None:
    """Keep a reader's place for this request until its reader begins. A HEAD reads nothing and needs no place.

    Raises: Overloaded.
    """
    if request.method != "HEAD":
        g.place = worker().readers.admit()


def wait_for_end(log: StreamLog, *, seconds: float | None) -> End | None:
    """Wait for a log's end. None when the end has not come after so many seconds, or when the client is gone.

    Raises: ShuttingDown, StreamUnknown, Overloaded.
    """
    client = _Client(log, mode="wait")
    has_left = False

    def leave() -> None:
        nonlocal has_left
        if not has_left:
            client.left(log.head)
        has_left = True

    def departed() -> bool:
        if client.is_there():
            return False
        leave()
        return True

    client.attached(0)
    g.pop("place", None)  # the reader counts itself from here on
    try:
        with client.reading():
            return wait(log, worker().readers, seconds=seconds, gone=client.is_gone, departed=departed)
    finally:
        leave()


def hold(log: StreamLog, *, seconds: float) -> None:
    """Hold the answer back until the log has its first record or its end, for at most so many seconds.

    Raises: ShuttingDown, StreamUnknown.
    """
    g.pop("place", None)  # the reader counts itself from here on
    client = _Client(log, mode="streaming")
    with client.reading():
        wait_for_first(log, worker().readers, seconds=seconds, gone=client.is_gone)


def whole_body(log: StreamLog, body: bytes, held: AbstractContextManager[object]) -> Iterator[bytes]:
    """Return a body that was made of a log which has ended, in slices. `held` counts its memory until it is written."""
    client = _Client(log, mode="wait")
    readers = worker().readers

    def written() -> Iterator[bytes]:
        with held, client.reading():
            yield from sliced(log, body, readers, drop=client.drop)

    return to_its_end(written())


def whole_text(log: StreamLog, before: bytes, after: bytes, *, write: Callable[[str], bytes]) -> Iterator[bytes]:
    """Return a body that holds the text of a log which has ended, in pieces. See `app.reading.whole`."""
    client = _Client(log, mode="wait")
    readers = worker().readers

    def written() -> Iterator[bytes]:
        with client.reading():
            yield from whole(log, before, after, readers, write=write, drop=client.drop)

    return to_its_end(written())


def _frames(log: StreamLog, dialect: Dialect, after: int) -> Iterator[bytes]:
    client = _Client(log, mode="streaming")
    readers, environ = worker().readers, request.environ

    # In HTTP/1.0 a body is over when the connection ends in order.
    is_bounded = dialect.may_end_early or environ.get("SERVER_PROTOCOL") != "HTTP/1.0"

    def written() -> Iterator[bytes]:
        client.attached(after)
        if not is_bounded:
            client.resets(on=True)
        with client.reading():
            yield from frames(
                log,
                after,
                dialect,
                readers,
                left=client.left,
                drop=client.drop,
                cut=client.drop if is_bounded else lambda: None,
                ends=lambda: None if is_bounded else client.resets(on=False),
                departed=lambda: not client.is_there(),
                connection=direct_writer(environ),
            )

    return to_its_end(written())


class _Client:
    """The connection of the current request, once it reads a log. Usable when the request's context is gone."""

    __slots__ = ("_connections", "_correlation_id", "_mode", "_name", "_sock")

    def __init__(self, log: StreamLog, *, mode: str) -> None:
        self._name = log_name(log.stream_id)
        self._correlation_id = g.correlation_id
        self._mode = mode
        self._connections = worker().connections
        self._sock: socket.socket | None = request.environ.get("gunicorn.socket")

    def attached(self, after: int) -> None:
        tell(facts.ReaderAttached(stream=self._name, correlation_id=self._correlation_id, mode=self._mode, after=after))

    def left(self, sequence: int) -> None:
        tell(
            facts.ReaderLeft(stream=self._name, correlation_id=self._correlation_id, mode=self._mode, sequence=sequence)
        )

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Have the connection bounded as a reader's, for as long as the reader counts as one."""
        if self._sock is not None:
            self._connections.reads(self._sock)
        try:
            yield
        finally:
            if self._sock is not None:
                self._connections.has_read(self._sock)

    def drop(self) -> None:
        """Break the connection."""
        if self._sock is not None:
            shut(self._sock)

    def resets(self, *, on: bool) -> None:
        """Have the connection's end, however it comes, break the connection."""
        if self._sock is not None:
            resets(self._sock, on=on)

    def is_there(self) -> bool:
        """Tell whether the client can still send: it has not closed its half of the connection."""
        return self._sock is None or is_connected(self._sock)

    def is_gone(self) -> bool:
        """Tell whether nothing can be sent to the client any more."""
        return self._sock is not None and is_dead(self._sock)
