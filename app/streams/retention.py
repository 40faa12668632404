"""What a process keeps in memory: live logs, finished ones in the order of their last use, and a budget for all.

Live logs are never evicted. A finished log that is being read is not evicted either: its reader would keep the memory
alive all the same, but uncounted.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from app import errors

__all__ = ["LOG_OVERHEAD_BYTES", "Keeper", "Retained", "Retention"]

LOG_OVERHEAD_BYTES = 2048
"""How much an empty log counts, with its end and its entries in the tables."""

RESERVED_BYTES = 4096
"""Live logs are counted in steps of this size, so that the budget is not asked at every record."""


class Retained(Protocol):
    """A log as it is counted. Units: bytes, monotonic seconds."""

    stream_id: str
    cost: int
    """What is counted for it."""
    prompt_bytes: int
    """How much of `cost` is the question."""
    used_at: float

    @property
    def size(self) -> int:
        """What it takes without its question."""

    @property
    def readers(self) -> int: ...


Log = TypeVar("Log", bound=Retained)
Kept = TypeVar("Kept", contravariant=True)


class Keeper(Protocol[Kept]):
    """The store of a log, as the log knows it."""

    def make_room_for(self, log: Kept, size: int) -> None:
        """Count more for a log that grows to `size` bytes, which is more than its `cost`. Raises: Overloaded."""

    def release_prompt(self, log: Kept) -> None:
        """Count a log's question no more. May be called again."""

    def ended(self, log: Kept) -> None:
        """Hear that readers have a log's end."""

    def used(self, log: Kept) -> None:
        """Hear that a reader has left."""


class Retention(Generic[Log]):
    """Counts logs, keeps them for a time, and evicts the least recently used finished ones when there is no room."""

    def __init__(
        self,
        *,
        max_active: int,
        budget_bytes: int,
        retention_seconds: float,
        forgotten: Callable[[Log], None] = lambda log: None,
    ) -> None:
        """`forgotten` hears, with the lock held, which finished log has expired or was evicted."""
        self.lock = threading.RLock()
        self.live: dict[str, Log] = {}
        self.finished: OrderedDict[str, Log] = OrderedDict()
        self.used_bytes = 0
        self._prompt_bytes = 0
        self._max_active = max_active
        self._budget_bytes = budget_bytes
        self._retention_seconds = retention_seconds
        self._forgotten = forgotten
        self._admitting = True

    def stop_admitting(self) -> None:
        self._admitting = False

    def admit(self) -> None:
        """Raises: ShuttingDown, Overloaded, when no log can be begun now."""
        if not self._admitting:
            raise errors.ShuttingDown(retry_after_seconds=5)
        if len(self.live) >= self._max_active:
            raise errors.Overloaded(retry_after_seconds=2)

    def admit_prompt(self, prompt_bytes: int) -> int:
        """Return how much of a question is counted. Raises: Overloaded.

        All questions together have half of the budget: answers that go on must not break off for questions that wait.
        """
        most = self._budget_bytes // 2
        counted = min(prompt_bytes, most)
        if self._prompt_bytes + counted > most:
            raise errors.Overloaded("The server has no memory left for another question.", retry_after_seconds=5)
        return counted

    def begin(self, log: Log) -> None:
        """Count a new log, and keep it as a live one. Raises: Overloaded."""
        with self.lock:
            self.count(log)
            self._prompt_bytes += log.prompt_bytes
            self.live[log.stream_id] = log

    def count(self, log: Log) -> None:
        """Count a log that somebody else keeps. Raises: Overloaded."""
        with self.lock:
            self._make_room(log.cost)
            self.used_bytes += log.cost

    def discount(self, log: Log) -> None:
        """Stop counting a log that has not ended."""
        with self.lock:
            if self.live.get(log.stream_id) is log:
                del self.live[log.stream_id]
            self.release_prompt(log)
            self.used_bytes -= log.cost

    def remove(self, log: Log) -> None:
        """Forget a log at once, whether it goes on, has ended, or is here no more."""
        with self.lock:
            if self.live.get(log.stream_id) is log:
                self.discount(log)
            elif self.finished.get(log.stream_id) is log:
                del self.finished[log.stream_id]
                self.used_bytes -= log.cost

    def kept(self, stream_id: str) -> Log | None:
        """Return a log, which counts as used now. None when it is not here, or has expired."""
        with self.lock:
            log = self.live.get(stream_id)
            if log is not None:
                return log
            log = self.finished.get(stream_id)
            if log is None:
                return None
            if self._expired(log, time.monotonic()):
                self._forget(log)
                return None
            self.finished.move_to_end(stream_id)
            return log

    def make_room_for(self, log: Log, size: int) -> None:
        """Count more for a log that grows to `size` bytes, which is more than is counted. Raises: Overloaded."""
        self._grow(log, max(size - log.cost, RESERVED_BYTES))

    def _grow(self, log: Log, size: int) -> None:
        with self.lock:
            if size > 0:
                self._make_room(size)
            log.cost += size
            self.used_bytes += size

    def release_prompt(self, log: Log) -> None:
        """Count a log's question no more. May be called again."""
        with self.lock:
            released, log.prompt_bytes = log.prompt_bytes, 0
            log.cost -= released
            self.used_bytes -= released
            self._prompt_bytes -= released

    def ended(self, log: Log) -> None:
        """Count what a log takes now, and keep the log among those that may be evicted."""
        self.release_prompt(log)
        self._grow(log, log.size - log.cost)
        with self.lock:
            self.live.pop(log.stream_id, None)
            self.finished[log.stream_id] = log

    def used(self, log: Log) -> None:
        with self.lock:
            if log.stream_id in self.finished:
                self.finished.move_to_end(log.stream_id)

    def sweep(self, now: float) -> None:
        """Drop what has expired. Units: monotonic seconds."""
        with self.lock:
            # The logs are in the order of their last use, so the first one that has not expired ends the walk. A log
            # that is being read has not expired, however old its last use is: it moves to the young end.
            for _ in range(len(self.finished)):
                log = next(iter(self.finished.values()))
                if log.readers:
                    self.finished.move_to_end(log.stream_id)
                elif self._expired(log, now):
                    self._forget(log)
                else:
                    return

    def _expired(self, log: Log, now: float) -> bool:
        return not log.readers and now - log.used_at > self._retention_seconds

    def _make_room(self, size: int) -> None:
        for _ in range(len(self.finished)):
            if self.used_bytes + size <= self._budget_bytes:
                return
            log = next(iter(self.finished.values()))
            if log.readers:
                self.finished.move_to_end(log.stream_id)
            else:
                self._forget(log)
        if self.used_bytes + size > self._budget_bytes:
            raise errors.Overloaded("The server has no memory left for another answer.", retry_after_seconds=5)

    def _forget(self, log: Log) -> None:
        del self.finished[log.stream_id]
        self.used_bytes -= log.cost
        self._forgotten(log)
