"""How many bytes of request bodies one worker holds at a time, and which body makes room when there are too many."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from app import errors
from app.platform.sockets import shut_reading
from app.server.body_failures import displaced

__all__ = ["Arriving", "Room"]

SMALL_BYTES = 65_536
"""A body of up to this size has room of its own beside larger bodies."""

STALLED_SECONDS = 1.0
"""A body that has brought no piece for so long makes room for others."""

PIECE_BYTES = 16_384
"""A body that has brought less than this has not brought a piece."""


LARGE_BYTES = 1_048_576
LARGE_PIECE_BYTES = 262_144
"""A body that holds more than LARGE_BYTES has to bring so much: otherwise a few slow ones would keep all others out."""


class Arriving:
    """A body that is being received. Units: bytes, monotonic seconds."""

    __slots__ = ("arrived", "connection", "declared", "held", "is_displaced", "piece_at")

    def __init__(self, connection: socket.socket | None, declared: int) -> None:
        """`declared` is the body's length, 0 where the length is not known."""
        self.connection = connection
        self.declared = declared
        self.arrived = 0
        self.held = 0
        self.piece_at = time.monotonic()
        self.is_displaced = False

    def arrives(self, size: int) -> None:
        """Note that so many bytes more were received."""
        piece = PIECE_BYTES if self.arrived <= LARGE_BYTES else LARGE_PIECE_BYTES
        before = self.arrived // piece
        self.arrived += size
        if self.arrived // piece > before:
            self.piece_at = time.monotonic()


class Room:
    """`budget_bytes` for all bodies together, and an eighth of that for small bodies alone.

    When there is no room for a body, the body that has stalled for longest is ended. When none has stalled, the body
    that needs the room is refused.
    """

    def __init__(self, *, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._arriving: dict[Arriving, None] = {}
        self._held_bytes = 0

    @contextmanager
    def kept(self, arriving: Arriving) -> Iterator[None]:
        """Count a body for as long as this lasts."""
        self._arriving[arriving] = None
        try:
            yield
        finally:
            self._arriving.pop(arriving, None)
            self._held_bytes -= arriving.held

    def is_complete(self, arriving: Arriving) -> None:
        """Note that a body is there. It makes room for no other body from now on."""
        self._arriving.pop(arriving, None)

    def hold(self, arriving: Arriving, held: int) -> None:
        """Count so many bytes for a body. Raises: Overloaded, RequestTimeout (the body has made room for another)."""
        if arriving.is_displaced:
            raise displaced()
        more = held - arriving.held
        is_small = max(arriving.declared, held) <= SMALL_BYTES
        most = self._budget_bytes + (self._budget_bytes // 8 if is_small else 0)
        while more > 0 and self._held_bytes + more > most:
            if not self._displace(arriving):
                raise errors.Overloaded("Too many requests are arriving at the same time.", retry_after_seconds=2)
        arriving.held = held
        self._held_bytes += more

    def _displace(self, comes: Arriving) -> bool:
        """End the body that has stalled for longest. False when no other body than `comes` has stalled."""
        since = time.monotonic() - STALLED_SECONDS
        stalled = [late for late in self._arriving if late.held and late.piece_at <= since and late is not comes]
        if not stalled:
            return False
        late = min(stalled, key=lambda one: one.piece_at)
        late.is_displaced = True
        self._held_bytes -= late.held
        late.held = 0
        del self._arriving[late]
        if late.connection is not None:
            shut_reading(late.connection)
        return True
