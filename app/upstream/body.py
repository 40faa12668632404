"""The body of one answer, read in the pieces that the kernel has, and what becomes of its connection afterwards."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from functools import partial

import httpx2

from app.platform.gevent_loop import each_arrival
from app.upstream.connection import Connection
from app.upstream.framing import BadFraming, UntilClose
from app.upstream.head import Head
from app.upstream.pool import Origin, Pool

__all__ = ["BODY", "ERROR_BODY_BYTES", "Body"]

BODY = "chatwait.body"
"""The extension of a response under which its `Body` is found."""

RECEIVE_BYTES = 16_384
"""How much is received at once. Other threads run in between."""
ERROR_BODY_BYTES = 65_536
ERROR_BODY_SECONDS = 2.0
"""How long the text of an error is waited for. The status says enough."""


class Body(httpx2.SyncByteStream):
    """The body of one answer, in the pieces the kernel has."""

    def __init__(self, pool: Pool, origin: Origin, connection: Connection, head: Head, sock: socket.socket) -> None:
        """Raises: BadFraming when the end of an answer is unclear. The end of an error may be unclear, because its
        status is enough."""
        self._pool = pool
        self._origin = origin
        self._connection: Connection | None = connection
        self._head = head
        self._sock = sock
        self._is_clear = True
        try:
            self._framing = head.framing()
        except BadFraming:
            if head.status < 300:
                raise
            self._is_clear = False
            self._framing = UntilClose()
        self._rest = head.rest()  # the bytes that came together with the head
        self._has_surplus = self._framing.ended and bool(self._rest)
        self._bytes_left = ERROR_BODY_BYTES if head.status >= 300 else None

    def __iter__(self) -> Iterator[bytes]:
        """Yield the body as it arrives.

        Raises: httpx2.ReadError when the connection broke, httpx2.RemoteProtocolError when the body ended
        before its announced end.
        """
        framing = self._framing
        received, self._rest = self._rest, b""
        due = time.monotonic() + ERROR_BODY_SECONDS
        while not framing.ended and self._is_clear:
            try:
                if self._bytes_left is not None:
                    if (left := due - time.monotonic()) <= 0:
                        return
                    self._sock.settimeout(left)
                received = received or self._sock.recv(RECEIVE_BYTES)
            except (OSError, ValueError, AttributeError) as error:
                # A socket that was closed under its reader raises ValueError or AttributeError.
                raise httpx2.ReadError(type(error).__name__) from error
            if self._bytes_left is not None:
                self._bytes_left -= len(received)  # Framing counts too: there may be far more framing than text.
                if self._bytes_left < 0:
                    return  # This text is enough for an error. `close` discards the rest.
            if data := self._unframed(received):
                yield data
            received = b""
            time.sleep(0)  # Bytes that are here are read without a wait, and may go on for ever.

    def receive(self, take: Callable[[bytes], bool]) -> bool:
        """Give the body to `take` as it arrives, until `take` returns False.

        The bytes are empty when only framing arrived. `take` must not wait (see `each_arrival`).
        Returns False when the body has ended, True when more may follow.
        Raises: as `__iter__`, and what `take` raises.
        """
        framing, sock = self._framing, self._sock
        with contextlib.suppress(OSError):  # The bytes that a closed socket has can still be read.
            sock.setblocking(False)
        here, self._rest = self._rest, b""
        if isinstance(sock, ssl.SSLSocket) and sock.pending():
            here += self._received(sock.recv) or b""
        if here and not take(self._unframed(here)):
            return not framing.ended

        descriptor = sock.fileno()
        # A plain socket is read without the layers that it has in Python.
        receive = sock.recv if isinstance(sock, ssl.SSLSocket) else partial(os.read, descriptor)

        def arrived() -> bool:
            received = self._received(receive)
            return received is None or (take(self._unframed(received)) and not framing.ended)

        if not framing.ended:
            if descriptor < 0:
                raise httpx2.ReadError("closed")
            each_arrival(sock, arrived)
        return not framing.ended

    def _received(self, receive: Callable[[int], bytes | None]) -> bytes | None:
        """Read the bytes that are here, without a wait. None when there are none, empty at the end. Raises:
        httpx2.ReadError."""
        try:
            received = receive(RECEIVE_BYTES)
            # Bytes that TLS has already decrypted make no socket readable.
            while received and isinstance(self._sock, ssl.SSLSocket) and self._sock.pending():
                received += self._sock.recv(RECEIVE_BYTES)
            return received
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None
        except (OSError, ValueError, AttributeError) as error:
            raise httpx2.ReadError(type(error).__name__) from error

    def _unframed(self, received: bytes) -> bytes:
        """Raises: httpx2.RemoteProtocolError."""
        try:
            return self._framing.feed(received) if received else self._framing.end()
        except BadFraming as error:
            raise httpx2.RemoteProtocolError(str(error)) from None

    def close(self) -> None:
        """Keep the connection if the answer was read to its end and nothing came behind it, else close it."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        framing, head = self._framing, self._head
        has_surplus = framing.surplus or self._has_surplus
        is_whole = framing.ended and self._is_clear and not has_surplus
        reusable = is_whole and head.leaves_connection_usable and not connection.call.cancelled
        connection.call.release()
        head.close()
        if reusable:
            connection.sock.setblocking(True)
            self._pool.keep(self._origin, connection)
        else:
            connection.close()
        if has_surplus:
            self._pool.distrust(self._origin, "surplus")
