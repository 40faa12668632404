"""The connections of clients to one worker: which one makes room when there are too many, and which are gone.

gunicorn accepts no more connections than its pool has room for. A client that comes then waits unseen. So an idle
connection is closed for a new one. Standard library only: the functions that are wrapped belong to gunicorn's worker.
"""

from __future__ import annotations

import socket
import time
from typing import Any

from app.platform.sockets import progress, shut

__all__ = ["Connections"]

LOOK_SECONDS = 2.0
GONE_SECONDS = 30.0
"""A client that acknowledges nothing for so long is gone. A client that takes nothing of an answer that is no stream is
gone too."""

LINGER_SECONDS = 5.0
LINGER_QUIET_SECONDS = 1.0
LINGER_BYTES = 16 * 1_048_576
PIECE_BYTES = 65_536


class _Look:
    """What was seen of a connection that is being answered. Units: monotonic seconds, bytes."""

    __slots__ = ("heard_at", "is_reader", "looked_at", "taken", "taken_at")

    def __init__(self, now: float) -> None:
        self.looked_at = self.heard_at = self.taken_at = now
        self.taken = -1
        self.is_reader = False


class Connections:
    """The open connections. Each waits for a request or for the rest of one, or is being answered."""

    def __init__(self, *, most: int) -> None:
        self._most = most
        self._waiting: dict[socket.socket, None] = {}
        self._answered: dict[socket.socket, _Look] = {}
        self._lingering: set[socket.socket] = set()

    @property
    def count(self) -> int:
        return len(self._waiting) + len(self._answered)

    @property
    def is_crowded(self) -> bool:
        """There are as many connections as there may be. Then a connection is closed after its answer."""
        return self.count >= self._most

    def watch(self, worker: Any, *, most: int | None = None) -> None:
        """Wrap how a gunicorn worker handles connections and requests. Call this before the worker accepts any.

        `most` is how many connections there may be, if that is fewer than the limits need.
        """
        self._most = self._most if most is None else most
        handle, handle_request = worker.handle, worker.handle_request

        def connected(listener: Any, client: socket.socket, address: Any) -> None:
            self.waits(client)
            self._make_room()
            try:
                handle(listener, client, address)
            finally:
                self._waiting.pop(client, None)
                self._answered.pop(client, None)
                self._lingering.discard(client)

        def requested(listener: Any, request: Any, client: socket.socket, address: Any) -> Any:
            self.is_answered(client)
            try:
                goes_on = handle_request(listener, request, client, address)
            finally:
                self.waits(client)
                if client in self._lingering:
                    linger(client)
            if self.is_crowded:
                raise StopIteration  # gunicorn's way to close a connection without a word
            return goes_on

        worker.handle, worker.handle_request = connected, requested

    def waits(self, client: socket.socket) -> None:
        """Note that a connection waits for a request, or for the rest of one."""
        self._answered.pop(client, None)
        self._waiting[client] = None

    def is_answered(self, client: socket.socket) -> None:
        """Note that a request is complete."""
        self._waiting.pop(client, None)
        self._answered[client] = _Look(time.monotonic())

    def reads(self, client: socket.socket) -> None:
        """Note that a reader has this connection. `Readers` bounds readers, so the connection makes room for nobody."""
        if look := self._answered.get(client):
            look.is_reader = True

    def has_read(self, client: socket.socket) -> None:
        """Note that a connection has no reader any more. The rest of its answer is treated like any other."""
        if look := self._answered.pop(client, None):
            look.is_reader = False
            look.taken_at = time.monotonic()
            self._answered[client] = look  # at the end: it is the youngest of those that are no readers

    def linger(self, client: socket.socket) -> None:
        """Have a connection closed with care, because its client is still sending bytes that nobody reads."""
        self._lingering.add(client)

    def _make_room(self) -> None:
        """Shut the oldest connection that has no complete request, or else the oldest that has no reader."""
        if self.count > self._most:
            oldest = next(iter(self._waiting))  # never empty: the connection that has just come waits
            if len(self._waiting) == 1:
                oldest = next((client for client, look in self._answered.items() if not look.is_reader), oldest)
            shut(oldest)
            # The connection counts no more: it has ended, although its greenlet has not seen that yet.
            self._waiting.pop(oldest, None)
            self._answered.pop(oldest, None)

    def check(self, now: float) -> None:
        """End the connections of clients that vanished. The kernel would keep trying for a quarter of an hour.

        Connections that take nothing of an answer are ended too, except readers, which have a bound of their own.
        TCP_USER_TIMEOUT would also end slow readers with a small window. Units: monotonic seconds.
        """
        for client, look in list(self._answered.items()):
            if now - look.looked_at < LOOK_SECONDS:
                continue
            seen = progress(client)
            if seen is None:
                look.heard_at = look.taken_at = now
            else:
                if seen.quiet_seconds < now - look.looked_at:
                    look.heard_at = now
                if seen.taken != look.taken:
                    look.taken, look.taken_at = seen.taken, now
                if now - look.heard_at > GONE_SECONDS or (not look.is_reader and now - look.taken_at > GONE_SECONDS):
                    shut(client)
            look.looked_at = now


def linger(client: socket.socket) -> None:
    """Read what a client still sends after its answer, within bounds of bytes and time.

    Unread bytes would reset the connection under the answer.
    """
    until = time.monotonic() + LINGER_SECONDS
    left = LINGER_BYTES
    try:
        client.shutdown(socket.SHUT_WR)
        client.settimeout(LINGER_QUIET_SECONDS)
        while left > 0 and time.monotonic() < until and (received := client.recv(PIECE_BYTES)):
            left -= len(received)
            time.sleep(0)
    except OSError:
        pass  # nothing more came for a while, or the client is gone
