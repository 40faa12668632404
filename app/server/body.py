"""Request bodies, read within bounds of bytes and of time."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from app import errors
from app.server.connections import Connections

__all__ = ["Bodies"]

BODY_SECONDS = 30.0
DISCARD_BYTES = 16 * 1_048_576
DISCARD_SECONDS = 1.0
DISCARD_QUIET_SECONDS = 0.25
PIECE_BYTES = 16_384
SMALL_BYTES = 65_536
"""A body of up to so much has room of its own beside larger ones."""

STALLED_SECONDS = 1.0
"""A body of which no piece has come for so long makes room for others."""

FREE_CHUNKS = 2048
MEAN_CHUNK_BYTES = 512
CHUNKS_AT_A_TIME = 256

READ = "chatwait.body_read"
CHUNKS = "chatwait.chunks"


class _Coming:
    """A body that is being received. Units: bytes, monotonic seconds."""

    __slots__ = ("arrived", "connection", "declared", "held", "is_displaced", "piece_at")

    def __init__(self, connection: socket.socket | None, declared: int) -> None:
        self.connection = connection
        self.declared = declared
        self.arrived = 0
        self.held = 0
        self.piece_at = time.monotonic()
        self.is_displaced = False


class Bodies:
    """Reads the bodies of requests within `budget_bytes` for all of them, and ends those that take too long.

    Small ones have an eighth of that beside it. Where there is no room, the body makes some that has stalled for
    longest; who comes is refused where none has.
    """

    def __init__(self, *, budget_bytes: int, connections: Connections, seconds: float = BODY_SECONDS) -> None:
        self._budget_bytes = budget_bytes
        self._connections = connections
        self._seconds = seconds
        self._due: dict[socket.socket, float] = {}
        self._coming: dict[_Coming, None] = {}
        self._held_bytes = 0

    @contextmanager
    def read(self, environ: dict[str, Any], *, at_most: int) -> Iterator[bytes]:
        """Give the whole body, which counts as it arrives and for as long as it is looked at.

        Raises: BodyTooLarge, as soon as it is announced or seen; Overloaded, when others' bodies leave no room;
        RequestTimeout (also when it stalls and others need its room), InvalidJson (it broke off, or is encoded),
        InvalidRequest (its chunks).
        """
        declared = int(environ.get("CONTENT_LENGTH") or 0)
        if declared > at_most:
            raise _too_large(at_most)
        pieces: list[bytes] = []
        size = 0
        coming = _Coming(environ.get("gunicorn.socket"), declared)
        self._coming[coming] = None
        try:
            with self._counted(environ, coming, lambda: size):
                for piece in self._pieces(environ, at_most=at_most, seconds=self._seconds, coming=coming):
                    if size + len(piece) > at_most:
                        raise _too_large(at_most)
                    size += len(piece)
                    self._hold(coming, max(coming.held, size))
                    pieces.append(piece)
            if size < declared:
                raise errors.InvalidJson("The body ended before its announced length.")
            self._coming.pop(coming, None)
            body = b"".join(pieces)
            pieces.clear()
            yield body
        finally:
            self._coming.pop(coming, None)
            self._held_bytes -= coming.held

    @contextmanager
    def _counted(self, environ: dict[str, Any], coming: _Coming, size: Callable[[], int]) -> Iterator[None]:
        """Count what the server receives of a body at once: up to a piece of it waits there for the rest of it."""
        unreader = _unreader(environ)
        if unreader is None:
            yield
            return
        receive = unreader.chunk

        def arrived(data: bytes) -> None:
            coming.arrived += len(data)
            if coming.arrived // PIECE_BYTES > (coming.arrived - len(data)) // PIECE_BYTES:
                coming.piece_at = time.monotonic()
            # Of chunks their lines arrive as well, and are not kept; what waits is less than two pieces.
            self._hold(coming, max(coming.held, min(coming.arrived, size() + 2 * PIECE_BYTES)))

        def chunk(size_hint: int | None = None) -> bytes:
            data: bytes = receive(size_hint)
            arrived(data)
            return data

        arrived(unreader.buf.getvalue()[: coming.declared or None])  # what came with the head
        unreader.chunk = chunk
        try:
            yield
        finally:
            del unreader.chunk

    def _hold(self, coming: _Coming, held: int) -> None:
        """Count what is held of a body. Raises: Overloaded, RequestTimeout (it has made room)."""
        if coming.is_displaced:
            raise _displaced()
        more = held - coming.held
        is_small = max(coming.declared, held) <= SMALL_BYTES
        most = self._budget_bytes + (self._budget_bytes // 8 if is_small else 0)
        while more > 0 and self._held_bytes + more > most:
            if not self._displace(coming):
                raise errors.Overloaded("Too many requests are being received.", retry_after_seconds=2)
        coming.held = held
        self._held_bytes += more

    def _displace(self, comes: _Coming) -> bool:
        """End the body that has stalled for longest; False when there is none but the one that comes."""
        since = time.monotonic() - STALLED_SECONDS
        stalled = [late for late in self._coming if late.held and late.piece_at <= since and late is not comes]
        if not stalled:
            return False
        late = min(stalled, key=lambda one: one.piece_at)
        late.is_displaced = True
        self._held_bytes -= late.held
        late.held = 0
        del self._coming[late]
        if late.connection is not None:
            _end_reading(late.connection)
        return True

    def discard(self, environ: dict[str, Any]) -> bool:
        """Read the rest of a body that nobody wants; False when it does not come at once, and the connection must end.

        Bytes left unread would reset the connection under the answer.
        """
        if not has_body(environ) or environ.get(READ) == "whole":
            return True
        if environ.get(READ) == "unreadable" or int(environ.get("CONTENT_LENGTH") or 0) > DISCARD_BYTES:
            return False
        connection = environ.get("gunicorn.socket")
        if connection is not None:
            connection.settimeout(DISCARD_QUIET_SECONDS)
        try:
            for _ in self._pieces(environ, at_most=DISCARD_BYTES, seconds=DISCARD_SECONDS):
                pass
        except errors.ChatError:
            return False
        finally:
            if connection is not None:
                connection.settimeout(None)
        return bool(environ[READ] == "whole")

    def _pieces(
        self, environ: dict[str, Any], *, at_most: int, seconds: float, coming: _Coming | None = None
    ) -> Iterator[bytes]:
        source = environ["wsgi.input"]
        environ[READ] = "unreadable"
        if environ.get("HTTP_TRANSFER_ENCODING", "chunked").strip().lower() != "chunked":
            raise errors.InvalidJson("The body is encoded for its transfer, in a way that this server does not read.")
        if chunks := _chunks(environ):
            chunks.begin(at_most)
        left = at_most
        with self._timed(environ, seconds) as overdue:

            def check() -> None:
                if coming is not None and coming.is_displaced:
                    raise _displaced()
                if overdue():
                    raise _late(seconds)

            while left >= 0:
                try:
                    piece = source.read(PIECE_BYTES)
                except errors.ChatError:  # there is no room for it
                    raise
                except Exception as error:  # noqa: BLE001 - the server's parser has exceptions of its own
                    check()  # the shutdown that ends a read breaks it too
                    raise _unreadable(error) from None
                check()
                if not piece and chunks is not None and chunks.is_over:
                    environ[READ] = "part"
                    raise _too_large(at_most)
                if not piece:
                    environ[READ] = "whole"
                    return
                left -= len(piece)
                time.sleep(0)  # gevent's recv lets nobody else run while there is something to receive
                environ[READ] = "part"
                yield piece
                environ[READ] = "unreadable"

    @contextmanager
    def _timed(self, environ: dict[str, Any], seconds: float) -> Iterator[Any]:
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
        """End the reading of what is overdue: whoever waits for more of it gets nothing."""
        for connection, deadline in list(self._due.items()):
            if now >= deadline:
                _end_reading(connection)


def _end_reading(connection: socket.socket) -> None:
    """Have whoever waits for more of a connection get nothing."""
    with suppress(OSError):  # gone meanwhile
        connection.shutdown(socket.SHUT_RD)


def _unreader(environ: dict[str, Any]) -> Any:
    """Give what receives for a request's body; None where the server is another."""
    reader = getattr(environ["wsgi.input"], "reader", None)
    found = getattr(reader, "unreader", None) or getattr(getattr(reader, "req", None), "unreader", None)
    return found if hasattr(found, "chunk") and hasattr(found, "buf") else None


class _Crumbs(Exception):
    """A chunked body has far more chunks than its size needs."""


def _too_large(at_most: int) -> errors.BodyTooLarge:
    return errors.BodyTooLarge(f"It is larger than {at_most} bytes, the most this server takes.")


def _displaced() -> errors.RequestTimeout:
    return errors.RequestTimeout("It had stopped coming, and others needed its room.")


def _late(seconds: float) -> errors.RequestTimeout:
    return errors.RequestTimeout(f"It was not complete after {seconds:g} seconds.")


_REASONS = {
    "NoMoreData": "The body broke off.",
    "InvalidChunkSize": "The body cannot be read: a chunk's size is not a hexadecimal number.",
    "InvalidChunkExtension": "The body cannot be read: what follows a chunk's size is malformed.",
    "ChunkMissingTerminator": "The body cannot be read: a chunk is not as long as it says, or the last one is missing.",
    "InvalidHeader": "The body cannot be read: its trailers are malformed.",
    "InvalidHeaderName": "The body cannot be read: its trailers are malformed.",
    "LimitRequestHeaders": "The body cannot be read: its trailers are too long.",
}
"""By the names of the server's own exceptions: importing them would load the server."""


def _unreadable(error: Exception) -> errors.ChatError:
    if not isinstance(error, _Crumbs):
        is_connection = isinstance(error, OSError)
        reason = "The connection broke off in the body." if is_connection else "The body could not be read."
        return errors.InvalidJson(_REASONS.get(type(error).__name__, reason))
    needed = f"Needs a Content-Length, or chunks of {MEAN_CHUNK_BYTES} bytes or more."
    return errors.InvalidRequest("The body is cut into too many small chunks.", fields={"body": [needed]})


class _Chunks:
    """The chunks of a body as the server's parser finds them: bounded in number and in what they announce, and with
    room for others between them.

    A chunk costs it some 6 µs, be it a single byte: a few megabytes of such chunks held everybody up for seconds. Who
    announces too much is told so at once, which ends them; they may be gone on with, for what can be discarded.
    """

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self._found = reader.parser
        self._parse_size = reader.parse_chunk_size
        self._at_most = 0
        self._announced = 0
        self._size = 0
        self._number = 0
        self._pieces = 0
        self.is_over = False
        """They were ended because more was announced than is taken."""
        reader.parse_chunk_size = self._sized

    def begin(self, at_most: int) -> None:
        """Take so many bytes, those of before among them."""
        self._at_most = at_most
        self.is_over = False
        self._reader.parser = self

    def _sized(self, *arguments: Any, **named: Any) -> Any:
        found = self._parse_size(*arguments, **named)
        self._announced += found[0]
        self._number += 1
        return found

    def __next__(self) -> bytes:
        chunk: bytes = next(self._found)
        if self._announced > self._at_most:
            self.is_over = True
            raise StopIteration
        self._size += len(chunk)
        self._pieces += 1
        if self._number > FREE_CHUNKS + self._size // MEAN_CHUNK_BYTES:
            raise _Crumbs
        if self._pieces % CHUNKS_AT_A_TIME == 0:
            time.sleep(0)
        return chunk


def _chunks(environ: dict[str, Any]) -> _Chunks | None:
    """Bound the chunks of a request's body; None where its length is known, or the server is another."""
    reader = getattr(environ["wsgi.input"], "reader", None)
    if getattr(reader, "parser", None) is None or not hasattr(reader, "parse_chunk_size"):
        return environ.get(CHUNKS)
    if environ.get(CHUNKS) is None:
        environ[CHUNKS] = _Chunks(reader)
    found: _Chunks = environ[CHUNKS]
    return found


def has_body(environ: dict[str, Any]) -> bool:
    return environ.get("CONTENT_LENGTH", "0") not in ("", "0") or "HTTP_TRANSFER_ENCODING" in environ
