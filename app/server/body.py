"""Request bodies, read within bounds of bytes and of time."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from app import errors
from app.platform.sockets import shut_reading
from app.server import body_failures
from app.server.body_room import PIECE_BYTES, Arriving, Room
from app.server.chunks import chunks_of, unreader_of
from app.server.connections import Connections

__all__ = ["Bodies"]

BODY_SECONDS = 30.0
USUAL_BYTES = 1_048_576
SLOWEST_BYTES = 262_144
"""A body has a second more for each of so many bytes beyond USUAL_BYTES."""

DISCARD_BYTES = 16 * 1_048_576
DISCARD_SECONDS = 1.0
DISCARD_QUIET_SECONDS = 0.25

READ = "chatwait.body_read"
"""How much of a body has been read: "part" or "whole". "unreadable" during a read, and after a read that failed."""


class Bodies:
    """Reads the bodies of requests within `budget_bytes` for all of them, and ends those that take too long."""

    def __init__(
        self, *, budget_bytes: int, connections: Connections, seconds: float = BODY_SECONDS, largest_bytes: int = 0
    ) -> None:
        """`largest_bytes` is the largest body that any route takes."""
        self._room = Room(budget_bytes=budget_bytes)
        self._discard_bytes = max(DISCARD_BYTES, largest_bytes)
        self._connections = connections
        self._seconds = seconds
        self._due: dict[socket.socket, float] = {}

    @contextmanager
    def read(self, environ: dict[str, Any], *, at_most: int) -> Iterator[bytes]:
        """Give the whole body, which counts as it arrives and until the block ends. A large one may take longer.
        Units: bytes.

        Raises: BodyTooLarge, as soon as the size is announced or seen; Overloaded, when others' bodies leave no room;
        RequestTimeout, also when the body stalls and others need its room; InvalidJson, when the body broke off or is
        encoded; InvalidRequest, when the body is cut into too many chunks.
        """
        declared = int(environ.get("CONTENT_LENGTH") or 0)
        if declared > at_most:
            raise body_failures.too_large(at_most)
        pieces: list[bytes] = []
        size = 0
        arriving = Arriving(environ.get("gunicorn.socket"), declared)
        with self._room.kept(arriving):
            with self._counted(environ, arriving, lambda: size):
                seconds = self._seconds + max(0, (declared or at_most) - USUAL_BYTES) // SLOWEST_BYTES
                for piece in self._pieces(environ, at_most=at_most, seconds=seconds, arriving=arriving):
                    if size + len(piece) > at_most:
                        raise body_failures.too_large(at_most)
                    size += len(piece)
                    self._room.hold(arriving, max(arriving.held, size))
                    pieces.append(piece)
            if size < declared:
                raise body_failures.too_short()
            self._room.is_complete(arriving)
            body = b"".join(pieces)
            pieces.clear()
            yield body

    @contextmanager
    def held(self, size: int) -> Iterator[None]:
        """Count so many bytes of an answer's body, which is in memory as requests' bodies are. Raises: Overloaded."""
        kept = Arriving(None, size)
        with self._room.kept(kept):
            self._room.hold(kept, size)
            self._room.is_complete(kept)
            yield

    @contextmanager
    def _counted(self, environ: dict[str, Any], arriving: Arriving, size: Callable[[], int]) -> Iterator[None]:
        """Count the bytes of a body as soon as gunicorn receives them. gunicorn holds up to a piece until the rest of
        it comes.

        `size` tells how many bytes of the body have been read. Raises: see `Room.hold`.
        """
        unreader = unreader_of(environ)
        if unreader is None:
            yield
            return
        receive = unreader.chunk

        def arrived(data: bytes) -> None:
            arriving.arrives(len(data))
            # The lines around chunks arrive too, and are not kept. Less than two pieces wait.
            self._room.hold(arriving, max(arriving.held, min(arriving.arrived, size() + 2 * PIECE_BYTES)))

        def chunk(size_hint: int | None = None) -> bytes:
            data: bytes = receive(size_hint)
            arrived(data)
            return data

        arrived(unreader.buf.getvalue()[: arriving.declared or None])  # these bytes came with the head
        unreader.chunk = chunk
        try:
            yield
        finally:
            del unreader.chunk

    def discard(self, environ: dict[str, Any]) -> bool:
        """Read the rest of a body that nobody wants. Unread bytes would reset the connection under the answer.

        False when the rest does not come at once: then the connection must end.
        """
        if not _has_body(environ) or environ.get(READ) == "whole":
            return True
        if environ.get(READ) == "unreadable" or int(environ.get("CONTENT_LENGTH") or 0) > self._discard_bytes:
            return False
        connection = environ.get("gunicorn.socket")
        if connection is not None:
            connection.settimeout(DISCARD_QUIET_SECONDS)
        try:
            for _ in self._pieces(environ, at_most=self._discard_bytes, seconds=DISCARD_SECONDS):
                pass
        except errors.ChatError:
            return False
        finally:
            if connection is not None:
                connection.settimeout(None)
        return bool(environ[READ] == "whole")

    def _pieces(
        self, environ: dict[str, Any], *, at_most: int, seconds: float, arriving: Arriving | None = None
    ) -> Iterator[bytes]:
        """Read a body piece by piece, and note in `environ` how much of it has been read. Raises: see `read`."""
        source = environ["wsgi.input"]
        environ[READ] = "unreadable"
        if environ.get("HTTP_TRANSFER_ENCODING", "chunked").strip().lower() != "chunked":
            raise body_failures.encoded()
        if chunks := chunks_of(environ):
            chunks.begin(at_most)
        left = at_most
        with self._timed(environ, seconds) as overdue:

            def check() -> None:
                if arriving is not None and arriving.is_displaced:
                    raise body_failures.displaced()
                if overdue():
                    raise body_failures.late(seconds)

            while left >= 0:
                try:
                    piece = source.read(PIECE_BYTES)
                except errors.ChatError:  # there is no room for the piece
                    raise
                except Exception as error:  # noqa: BLE001 - gunicorn's parser has exceptions of its own
                    check()  # a read that was ended from outside fails too
                    raise body_failures.unreadable(error) from None
                check()
                if not piece and chunks is not None and chunks.is_over:
                    environ[READ] = "part"
                    raise body_failures.too_large(at_most)
                if not piece:
                    environ[READ] = "whole"
                    return
                left -= len(piece)
                time.sleep(0)  # gevent's recv lets nobody else run while there is something to receive
                environ[READ] = "part"
                yield piece
                environ[READ] = "unreadable"

    @contextmanager
    def _timed(self, environ: dict[str, Any], seconds: float) -> Iterator[Callable[[], bool]]:
        """Have `check` end the reading after `seconds`. Gives a function that tells whether they have passed."""
        connection = environ.get("gunicorn.socket")
        deadline = time.monotonic() + seconds
        if connection is not None:
            self._due[connection] = deadline
            self._connections.waits(connection)
        try:
            yield lambda: time.monotonic() >= deadline
        finally:
            if connection is not None:
                self._due.pop(connection, None)
                self._connections.is_answered(connection)

    def check(self, now: float) -> None:
        """End the reading of every body that is overdue. Units: monotonic seconds."""
        for connection, deadline in list(self._due.items()):
            if now >= deadline:
                shut_reading(connection)


def _has_body(environ: dict[str, Any]) -> bool:
    return environ.get("CONTENT_LENGTH", "0") not in ("", "0") or "HTTP_TRANSFER_ENCODING" in environ
