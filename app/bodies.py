"""Request bodies, read within bounds of bytes and of time."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from app import errors

__all__ = ["Bodies"]

BODY_SECONDS = 30.0
DISCARD_BYTES = 16 * 1_048_576
PIECE_BYTES = 65_536
DRAIN_SECONDS = 1.0
FREE_CHUNKS = 2048
MEAN_CHUNK_BYTES = 512
CHUNKS_AT_A_TIME = 256

READ = "chatwait.body_read"


class Bodies:
    """Reads the bodies of requests, and ends those that take too long."""

    def __init__(self, *, seconds: float = BODY_SECONDS) -> None:
        self._seconds = seconds
        self._due: dict[socket.socket, float] = {}

    def read(self, environ: dict[str, Any], *, at_most: int) -> bytes:
        """Return the whole body.

        Raises: BodyTooLarge, RequestTimeout, InvalidJson (it broke off), InvalidRequest (its chunks). What is too large
        is read to its end within bounds all the same: bytes left unread would reset the connection under the answer.
        """
        pieces: list[bytes] = []
        size = 0
        for piece in self._pieces(environ):
            size += len(piece)
            if size <= at_most:
                pieces.append(piece)
        if size > at_most:
            raise errors.BodyTooLarge(f"It is larger than {at_most} bytes, the most this server takes.")
        declared = environ.get("CONTENT_LENGTH")
        if declared and size < int(declared):
            raise errors.InvalidJson("The body ended before its announced length.")
        return b"".join(pieces)

    def discard(self, environ: dict[str, Any]) -> bool:
        """Read a body that nobody wants to its end; False when it could not be, and the connection must end."""
        if environ.get(READ):
            return bool(environ[READ] == "whole")
        if not has_body(environ):
            return True
        try:
            for _ in self._pieces(environ):
                pass
        except errors.ChatError:
            return False
        return bool(environ[READ] == "whole")

    def _pieces(self, environ: dict[str, Any]) -> Iterator[bytes]:
        source = environ["wsgi.input"]
        _bound_chunks(source)
        environ[READ] = "part"
        left = DISCARD_BYTES
        with self._timed(environ) as overdue:
            while left > 0:
                try:
                    piece = source.read(PIECE_BYTES)
                except Exception as error:  # noqa: BLE001 - the server's parser has exceptions of its own
                    if overdue():  # the shutdown that ends a read that is overdue breaks it too
                        raise self._late() from None
                    _drain(environ.get("gunicorn.socket"))
                    raise _unreadable(error) from None
                if overdue():
                    raise self._late()
                if not piece:
                    environ[READ] = "whole"
                    return
                left -= len(piece)
                yield piece

    def _late(self) -> errors.RequestTimeout:
        return errors.RequestTimeout(f"It was not complete after {self._seconds:g} seconds.")

    @contextmanager
    def _timed(self, environ: dict[str, Any]) -> Iterator[Any]:
        connection = environ.get("gunicorn.socket")
        deadline = time.monotonic() + self._seconds
        if connection is not None:
            self._due[connection] = deadline
        try:
            yield lambda: time.monotonic() >= deadline
        finally:
            if connection is not None:
                self._due.pop(connection, None)

    def check(self, now: float) -> None:
        """End the reading of what is overdue: whoever waits for more of it gets nothing."""
        for connection, deadline in list(self._due.items()):
            if now >= deadline:
                try:
                    connection.shutdown(socket.SHUT_RD)
                except OSError:
                    pass  # gone meanwhile


class _Crumbs(Exception):
    """A chunked body has far more chunks than its size needs."""


def _unreadable(error: Exception) -> errors.ChatError:
    if not isinstance(error, _Crumbs):
        return errors.InvalidJson("The body could not be read.")
    needed = f"Needs a Content-Length, or chunks of {MEAN_CHUNK_BYTES} bytes or more."
    return errors.InvalidRequest("The body is cut into too many small chunks.", fields={"body": [needed]})


def _bound_chunks(source: Any) -> None:
    """Bound the number of chunks that the server's parser takes, and let others run between them.

    A chunk costs it some 6 µs, be it a single byte: a few megabytes of such chunks held everybody up for seconds.
    """
    reader = getattr(source, "reader", None)
    chunks = getattr(reader, "parser", None)  # of gunicorn's ChunkedReader; a body of known length has none
    if reader is None or chunks is None:
        return

    def counted() -> Iterator[bytes]:
        size = 0
        for number, chunk in enumerate(chunks, 1):
            size += len(chunk)
            if number > FREE_CHUNKS + size // MEAN_CHUNK_BYTES:
                raise _Crumbs
            if number % CHUNKS_AT_A_TIME == 0:
                time.sleep(0)
            yield chunk

    reader.parser = counted()


def _drain(connection: socket.socket | None) -> None:
    """Take what a client whose body cannot be read has sent on: left unread, it would reset the connection under
    the answer. Bounded in bytes and in time."""
    if connection is None:
        return
    until = time.monotonic() + DRAIN_SECONDS
    left = DISCARD_BYTES
    try:
        connection.settimeout(DRAIN_SECONDS / 4)
        while left > 0 and time.monotonic() < until and (received := connection.recv(PIECE_BYTES)):
            left -= len(received)
    except OSError:
        pass  # nothing more for a while, or the client is gone
    finally:
        connection.settimeout(None)


def has_body(environ: dict[str, Any]) -> bool:
    return environ.get("CONTENT_LENGTH", "0") not in ("", "0") or "HTTP_TRANSFER_ENCODING" in environ
