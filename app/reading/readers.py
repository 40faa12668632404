"""The readers of one worker: their limits, their heartbeats, and the connections that stall."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable

from app import errors
from app.streams.interface import Reader, StreamLog

__all__ = ["LOOK_SECONDS", "Place", "Readers", "is_foreign"]

LOOK_SECONDS = 1.0
"""How often the worker looks whether a reader's client has left."""

STALLED_SECONDS = 30.0
"""A connection that has taken nothing for so long is dropped. Its client can come back."""


def is_foreign(reader: Reader) -> bool:
    """Tell whether another worker generates what a reader reads."""
    sharing = reader.log.sharing
    return sharing is not None and sharing.is_foreign


class Place:
    """A place for a reader that is about to begin. The place is kept for as long as this object is held."""

    __slots__ = ("__weakref__",)


class Readers:
    """All readers of this worker. Their number is bounded, and each is woken for its heartbeats."""

    def __init__(self, *, limit: int, most_attached: int | None = None, heartbeat_seconds: float) -> None:
        """`most_attached` is the limit for readers that attach by an idempotency key."""
        self.heartbeat_seconds = heartbeat_seconds
        self._limit = limit
        self._most_attached = most_attached or limit
        self._due: dict[Reader, float] = {}
        self._drops: dict[Reader, Callable[[], None]] = {}
        self._cuts: dict[Reader, Callable[[], None]] = {}
        self._looks: dict[Reader, tuple[float, Callable[[], bool]]] = {}
        self._departed: dict[Reader, None] = {}
        self._places: weakref.WeakSet[Place] = weakref.WeakSet()
        self._leaving = False

    @property
    def count(self) -> int:
        return len(self._due)

    @property
    def present(self) -> int:
        """How many readers have a client that, as far as is known, has not left."""
        return len(self._due) - len(self._departed)

    def admit(self, *, attaching: bool = False) -> Place:
        """Keep a place for one more reader, for as long as the returned object is held.

        Readers whose clients have left do not count. Raises: Overloaded when the limit is reached.
        """
        if self.present + len(self._places) >= (self._most_attached if attaching else self._limit):
            raise errors.Overloaded("Too many clients are reading answers.", retry_after_seconds=2)
        place = Place()
        self._places.add(place)
        return place

    def add(
        self,
        reader: Reader,
        *,
        every_seconds: float | None = None,
        drop: Callable[[], None] | None = None,
        cut: Callable[[], None] | None = None,
        departed: Callable[[], bool] | None = None,
    ) -> None:
        """Count a reader, and wake it whenever it has had no frame for a heartbeat or for `every_seconds` (0: each
        tick).

        `drop` is called when the reader takes nothing for STALLED_SECONDS, or when its client has `departed` and
        another reader needs the place. `cut` is called when the log is erased."""
        if drop is not None:
            self._drops[reader] = drop
        if cut is not None:
            self._cuts[reader] = cut
        if departed is not None:
            self._looks[reader] = time.monotonic(), departed
        if len(self._due) >= self._most_attached and self._departed:
            oldest = next(iter(self._departed))
            if drop := self._drops.get(oldest):
                drop()
            self.remove(oldest)
            oldest.release()
        self._due[reader] = self.heartbeat_seconds if every_seconds is None else every_seconds
        if self._leaving:
            reader.release()

    @property
    def is_leaving(self) -> bool:
        """All readers are being sent away."""
        return self._leaving

    @property
    def has_foreign(self) -> bool:
        """A reader here reads what another worker generates."""
        return any(is_foreign(reader) for reader in self._due)

    def release_foreign(self, share: float) -> None:
        """Send away a share of the readers of other workers' logs. Their clients can read those logs elsewhere."""
        foreign = [reader for reader in self._due if is_foreign(reader) and not reader.is_released]
        for reader in foreign[: math.ceil(share * len(foreign))]:
            reader.release()

    def release_all(self) -> None:
        """Send all readers away, and each later one at once. They still get what their logs have by now."""
        self._leaving = True
        for reader in list(self._due):
            reader.release()

    def cut(self, log: StreamLog) -> None:
        """Break the connections of all readers of a log that was erased."""
        for reader, cut in list(self._cuts.items()):
            if reader.log is log:
                cut()

    def remove(self, reader: Reader) -> None:
        for kept in (self._due, self._drops, self._cuts, self._looks, self._departed):
            kept.pop(reader, None)

    def check(self, now: float) -> None:
        """Look for clients that have left, wake readers whose heartbeat is due, and drop stalled connections.

        Units: `now` is monotonic seconds.
        """
        for reader, (looked_at, departed) in list(self._looks.items()):
            if now - looked_at < LOOK_SECONDS:
                continue
            if departed():
                del self._looks[reader]
                self._departed[reader] = None
                reader.depart()
            else:
                self._looks[reader] = now, departed
        for reader, seconds in list(self._due.items()):
            idle = now - reader.frame_at
            if idle >= seconds:
                reader.nudge()
            # The frame that began at `frame_at` is still being written, so the connection takes nothing.
            if idle >= STALLED_SECONDS and reader.sending and (drop := self._drops.get(reader)):
                drop()
