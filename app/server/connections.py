"""The connections of clients to one worker: how many, which of them goes when there are too many, and which are gone.

gunicorn accepts no more connections than its pool has room for; whoever comes then waits unseen. So what waits here
for nothing makes room for who comes. Standard library only; the functions that are wrapped are gunicorn's worker's.
"""

from __future__ import annotations

import socket
import time
from typing import Any

from app.platform.sockets import progress, shut

__all__ = ["Connections"]

LOOK_SECONDS = 2.0
GONE_SECONDS = 30.0
"""A peer that acknowledges nothing, or takes nothing of an answer that is no stream, is gone after this."""

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
    """The open connections. Each waits for a request (or for the rest of one), or is being answered."""

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
        """There are as many as may be: what has been answered is to be closed."""
        return self.count >= self._most

    def watch(self, worker: Any, *, most: int | None = None) -> None:
        """Wrap a gunicorn worker's handling of connections and of requests, before it accepts any. `most` is how many
        there may be, where that is less than what the limits need."""
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
        """Note that a connection is a reader's: it is bounded as such, and makes room for nobody."""
        if look := self._answered.get(client):
            look.is_reader = True

    def has_read(self, client: socket.socket) -> None:
        """Note that a connection is a reader's no more: what is left of its answer is as any other's."""
        if look := self._answered.pop(client, None):
            look.is_reader = False
            look.taken_at = time.monotonic()
            self._answered[client] = look  # the youngest of those

    def linger(self, client: socket.socket) -> None:
        """Have a connection closed with care: the client is still sending what nobody reads."""
        self._lingering.add(client)

    def _make_room(self) -> None:
        """Shut the oldest connection without a complete request; else the oldest whose answer is not read."""
        if self.count > self._most:
            oldest = next(iter(self._waiting))  # there is one: who has just come
            if len(self._waiting) == 1:
                oldest = next((client for client, look in self._answered.items() if not look.is_reader), oldest)
            shut(oldest)
            # Not counted from here on: it has its end, and only its own greenlet is missing.
            self._waiting.pop(oldest, None)
            self._answered.pop(oldest, None)

    def check(self, now: float) -> None:
        """End what is gone without a word: the kernel itself would try for a quarter of an hour. And, of what is no
        reader, what takes nothing: readers have a bound of their own.

        Not TCP_USER_TIMEOUT, which also ends who reads slowly through a small window. Units: monotonic seconds.
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
    """Take what a client is still sending after its answer: left unread, it would reset the connection under the
    answer. Bounded in bytes and in time."""
    until = time.monotonic() + LINGER_SECONDS
    left = LINGER_BYTES
    try:
        client.shutdown(socket.SHUT_WR)
        client.settimeout(LINGER_QUIET_SECONDS)
        while left > 0 and time.monotonic() < until and (received := client.recv(PIECE_BYTES)):
            left -= len(received)
            time.sleep(0)
    except OSError:
        pass  # nothing more for a while, or the client is gone
