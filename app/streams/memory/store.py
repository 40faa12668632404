"""Logs in the memory of one process, the least recently used finished ones evicted under a budget of bytes.

Live logs are never evicted. Text is kept as UTF-8 with an offset for each sequence number, so that any cursor
is exact and a finished answer costs its text and four bytes a token.
"""

from __future__ import annotations

import hashlib
import threading
import time
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise
from types import TracebackType
from typing import Self

from app import errors
from app.platform.gevent_loop import plain_lock
from app.streams.interface import Binding, End, Origin, Piece, StreamLog, Totals, new_stream_id

__all__ = ["MemoryLog", "MemoryReader", "MemoryStore"]

LOG_OVERHEAD_BYTES = 2048
"""What an empty log with its terminal event and its entries in the store is counted as."""

RESERVED_BYTES = 4096
"""Live logs are counted in steps of this size, so that the store is not asked at every token."""

REMEMBERED = 100_000
"""How many streams that are gone are still answered with 410 instead of 404."""


class MemoryReader:
    """A sequence number and a lock to sleep on; nothing is queued for a reader."""

    __slots__ = (
        "_asleep",
        "_log",
        "_wake",
        "after",
        "deliver",
        "frame_at",
        "is_departed",
        "is_released",
        "knows_unresumable",
        "only_end",
        "sending",
    )

    def __init__(self, log: MemoryLog, after: int, *, only_end: bool) -> None:
        self.after = after
        self.only_end = only_end
        self.sending = False
        self.is_released = False
        self.is_departed = False
        self.knows_unresumable = False
        self.deliver: Callable[[Piece], bool] | None = None
        self.frame_at = time.monotonic()
        self._log = log
        self._asleep = False
        self._wake = threading.Lock()
        self._wake.acquire()

    def __enter__(self) -> Self:
        self._log.attach(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._log.detach(self)
        self.deliver = None  # which knows this reader, and so its log and its connection

    def read(self, max_bytes: int) -> Piece | None:
        return self._log.read(self.after, max_bytes)

    def wait(self) -> None:
        self._asleep = True
        log = self._log
        # Looked at after `_asleep` is set: what is appended from here on calls `nudge`, which then sees it.
        # The other order would sleep through a chunk, or the terminal event, that came in between.
        if log.end is not None or (log.head > self.after and not self.only_end) or self.is_released:
            self._asleep = False
            return
        self._wake.acquire()

    def tell(self, piece: Piece) -> None:
        """Hear of what was appended."""
        deliver = self.deliver
        if self._asleep and not self.only_end and (deliver is None or not deliver(piece)):
            self.nudge()

    @property
    def is_foreign(self) -> bool:
        return self._log.is_foreign

    def release(self) -> None:
        self.is_released = True
        self.nudge()

    def depart(self) -> None:
        self.is_departed = True
        self._log.departed()

    def nudge(self) -> None:
        if self._asleep:
            self._asleep = False
            try:
                self._wake.release()
            except RuntimeError:
                pass  # another thread nudged in the same moment


class MemoryLog:
    """One generation in memory. Built by `MemoryStore` alone."""

    is_unresumable = False

    __slots__ = (
        "_ending",
        "_lock",
        "_offsets",
        "_readers",
        "_store",
        "_text",
        "_unread_since",
        "attached",
        "binding",
        "cost",
        "end",
        "end_read",
        "head",
        "origin",
        "prompt_bytes",
        "stream_id",
        "used_at",
    )

    def __init__(
        self, store: MemoryStore, stream_id: str, origin: Origin, binding: Binding | None, *, prompt_bytes: int = 0
    ) -> None:
        self.stream_id = stream_id
        self.origin = origin
        self.binding = binding
        self.head = 0
        self.end: End | None = None
        self.attached = 0
        self.prompt_bytes = prompt_bytes
        self.cost = LOG_OVERHEAD_BYTES + prompt_bytes
        self.end_read = False
        self.used_at = time.monotonic()
        self._unread_since: float | None = self.used_at
        self._store = store
        self._text = bytearray()
        self._offsets = array("I")
        self._ending = False
        self._readers: list[MemoryReader] = []
        self._lock = plain_lock()

    @property
    def is_foreign(self) -> bool:
        return False

    @property
    def stored(self) -> int:
        return self.head

    @property
    def readers(self) -> int:
        return len(self._readers)

    @property
    def unread_since(self) -> float | None:
        return self._unread_since

    @property
    def resumes(self) -> int:
        return max(0, self.attached - 1)

    def _size(self) -> int:
        """Units: bytes."""
        return len(self._text) + 4 * len(self._offsets) + LOG_OVERHEAD_BYTES

    def append(self, *chunks: str) -> bool:
        added = "".join(chunks)
        with self._lock:
            if self._ending:
                return False
            self._add(chunks, added.encode())
            head = self.head = len(self._offsets)
        self._tell(Piece(head, len(chunks), added))
        return True

    def _add(self, chunks: Sequence[str], data: bytes) -> None:
        """Keep chunks, whose text together is `data`, without showing them. Called with the lock held."""
        text, ends = self._text, self._offsets
        end = len(text)
        missing = end + len(data) + 4 * (len(ends) + len(chunks)) + LOG_OVERHEAD_BYTES - self.cost
        if missing > 0:
            self._store.grow(self, max(missing, RESERVED_BYTES))
        text += data
        for chunk in chunks:
            end += len(chunk.encode())
            ends.append(end)

    def _tell(self, piece: Piece) -> None:
        for reader in self._readers:
            reader.tell(piece)

    def finish(self, end: Callable[[Totals], End]) -> bool:
        while not self._begin_end():
            if self._is_decided():
                return False
            time.sleep(0.001)  # another is at it; should it fail, the end is ours
        try:
            text = self._text.decode()
            ended = end(Totals(len(self._offsets), len(text), hashlib.sha256(self._text).hexdigest(), text))
        except BaseException:
            self._ending = False
            raise
        self._decided(ended)
        return True

    def _is_decided(self) -> bool:
        """Tell whether it is known how the log ends, so that no other end is wanted."""
        return self.end is not None

    def _decided(self, end: End) -> None:
        self._close(end)

    def _close(self, end: End) -> None:
        """Show the end, and keep no more than is needed from here on."""
        self.end = end
        # A growing buffer is up to an eighth larger than its text; a finished one is kept for an hour.
        self._text = bytearray(bytes(self._text))
        self._offsets = array("I", self._offsets.tobytes())
        self.used_at = time.monotonic()
        self.release_prompt()
        self._store.grow(self, self._size() - self.cost)
        self._store.ended(self)
        for reader in tuple(self._readers):
            reader.nudge()

    def release_prompt(self) -> None:
        self._store.release_prompt(self)

    def settle(self, seconds: float) -> bool:
        return self.end is not None

    def book(self, write: Callable[[str], None]) -> None:
        write("response_complete")

    def _begin_end(self) -> bool:
        with self._lock:
            if self._ending:
                return False
            self._ending = True  # nothing is appended from here on, so the rest needs no lock, and may wait
            return True

    def reader(self, after: int, *, only_end: bool = False) -> MemoryReader:
        return MemoryReader(self, after, only_end=only_end)

    def read(self, after: int, max_bytes: int) -> Piece | None:
        # `head` is raised last by `append`, so whatever lies at or below it is complete.
        head = self.head
        if after >= head:
            return None
        ends = self._offsets
        start = ends[after - 1] if after else 0
        last = head
        if ends[last - 1] - start > max_bytes:
            last = max(after + 1, bisect_right(ends, start + max_bytes, after, head))
        return Piece(last, last - after, self._text[start : ends[last - 1]].decode())

    def text(self) -> str:
        head = self.head
        return self._text[: self._offsets[head - 1]].decode() if head else ""

    def sizes(self, first: int, last: int) -> list[int]:
        ends = self._offsets[first - 2 : last] if first > 1 else (0, *self._offsets[:last])
        return [end - start for start, end in pairwise(ends)]

    def attach(self, reader: MemoryReader) -> None:
        with self._lock:
            # A new list, because `append` walks the old one without the lock.
            self._readers = [*self._readers, reader]
            self.attached += 1
            self._unread_since = None

    def detach(self, reader: MemoryReader) -> None:
        with self._lock:
            self._readers = [other for other in self._readers if other is not reader]
            if not self._readers:
                self.used_at = time.monotonic()
        self.departed()
        self._store.used(self)

    def departed(self) -> None:
        """Hear that a reader has left, or probably has."""
        with self._lock:
            if self._unread_since is None and all(reader.is_departed for reader in self._readers):
                self._unread_since = time.monotonic()


class MemoryStore:
    """Every log of this process by id, finished ones in the order of their last use."""

    def __init__(self, *, max_active: int, budget_bytes: int, retention_seconds: float) -> None:
        self._max_active = max_active
        self._budget_bytes = budget_bytes
        self._retention_seconds = retention_seconds
        self._lock = threading.RLock()
        self._live: dict[str, MemoryLog] = {}
        self._finished: OrderedDict[str, MemoryLog] = OrderedDict()
        self._keys: dict[str, tuple[str, str]] = {}
        # What is gone, oldest first, as hashes: 100,000 ids would take ten times the memory.
        self._gone: OrderedDict[int, int | None] = OrderedDict()
        self._gone_keys: dict[int, int] = {}
        self._bytes = 0
        self._prompt_bytes = 0
        self._admitting = True

    @property
    def live(self) -> int:
        return len(self._live)

    @property
    def used_bytes(self) -> int:
        return self._bytes

    def ready(self) -> bool:
        return True

    def start(
        self,
        *,
        cancel: Callable[[str, str], object],
        abort: Callable[[str], object],
        lost: Callable[[StreamLog, errors.ChatError], object],
    ) -> None:
        """There is nothing to begin, and no other worker whose logs to see to."""

    def close(self) -> None:
        """Nothing is held open."""

    def cancel(self, stream_id: str) -> tuple[End | None, int]:
        """There are no other workers."""
        raise errors.StreamUnknown

    def publish(self, name: str, content: bytes) -> None:
        """There is nobody to publish it to."""

    def published(self, name: str) -> bytes | None:
        return None

    def stop_admitting(self) -> None:
        self._admitting = False

    def admit(self) -> None:
        if not self._admitting:
            raise errors.ShuttingDown(retry_after_seconds=5)
        if len(self._live) >= self._max_active:
            raise errors.Overloaded(retry_after_seconds=2)

    def knows(self, key: str) -> bool:
        with self._lock:
            return key in self._keys or hash(key) in self._gone_keys

    def create(
        self, origin: Origin, binding: Binding | None = None, *, prompt_bytes: int = 0
    ) -> tuple[MemoryLog, bool]:
        with self._lock:
            if binding is not None:
                bound = self._bound(binding)
                if bound is not None:
                    return bound, False
            self.admit()
            log = MemoryLog(self, new_stream_id(), origin, binding, prompt_bytes=self._counted(prompt_bytes))
            self._make_room(log.cost)
            self._bytes += log.cost
            self._prompt_bytes += log.prompt_bytes
            self._live[log.stream_id] = log
            if binding is not None:
                self._keys[binding.key] = (log.stream_id, binding.fingerprint)
            return log, True

    def _counted(self, prompt_bytes: int) -> int:
        """Judge how much of a question is counted. Questions have half of the budget together: what is being answered
        must not break off for what waits. Raises: Overloaded."""
        most = self._budget_bytes // 2
        counted = min(prompt_bytes, most)
        if self._prompt_bytes + counted > most:
            raise errors.Overloaded("There is no memory left for another question.", retry_after_seconds=5)
        return counted

    def _bound(self, binding: Binding) -> MemoryLog | None:
        """Return the log that this key began, if it did."""
        known = self._keys.get(binding.key)
        if known is None:
            gone = self._gone_keys.get(hash(binding.key))
            if gone is None:
                return None
            if gone != hash(binding.fingerprint):
                raise errors.IdempotencyKeyReused
            raise errors.StreamExpired
        stream_id, fingerprint = known
        if fingerprint != binding.fingerprint:
            raise errors.IdempotencyKeyReused
        return self.find(stream_id)

    def find(self, stream_id: str, *, reach: int = 0) -> MemoryLog:
        with self._lock:
            log = self._kept(stream_id)
            if log is not None:
                return log
            if hash(stream_id) in self._gone:
                raise errors.StreamExpired
            raise errors.StreamUnknown

    def _kept(self, stream_id: str) -> MemoryLog | None:
        """Return a log that is in memory, used from now on; drop it when it has expired. Called with the lock held."""
        log = self._live.get(stream_id)
        if log is not None:
            return log
        log = self._finished.get(stream_id)
        if log is None:
            return None
        if self._expired(log, time.monotonic()):
            self._forget(log)
            return None
        self._finished.move_to_end(stream_id)
        return log

    def grow(self, log: MemoryLog, size: int) -> None:
        """Count `size` more bytes (or fewer, when negative) for a log, evicting finished ones for them.

        Raises: Overloaded when there is nothing left to evict; nothing is counted then.
        """
        with self._lock:
            if size > 0:
                self._make_room(size)
            log.cost += size
            self._bytes += size

    def release_prompt(self, log: MemoryLog) -> None:
        with self._lock:
            released, log.prompt_bytes = log.prompt_bytes, 0
            log.cost -= released
            self._bytes -= released
            self._prompt_bytes -= released

    def ended(self, log: MemoryLog) -> None:
        """Move a log from the live ones to those that may be evicted."""
        with self._lock:
            self._live.pop(log.stream_id, None)
            self._finished[log.stream_id] = log
            if log.binding is not None and log.end is not None and log.end.frees_key:
                self._keys.pop(log.binding.key, None)

    def used(self, log: MemoryLog) -> None:
        with self._lock:
            if log.stream_id in self._finished:
                self._finished.move_to_end(log.stream_id)

    def sweep(self, now: float) -> None:
        with self._lock:
            # In the order of last use, so the first that has not expired ends the walk; one that is being
            # read has not expired, however long ago it was found, and steps aside to the young end.
            for _ in range(len(self._finished)):
                log = next(iter(self._finished.values()))
                if log.readers:
                    self._finished.move_to_end(log.stream_id)
                elif self._expired(log, now):
                    self._forget(log)
                else:
                    return

    def _expired(self, log: MemoryLog, now: float) -> bool:
        return not log.readers and now - log.used_at > self._retention_seconds

    def _make_room(self, size: int) -> None:
        """Drop finished logs, least recently used first. One that is being read stays: its reader would keep
        its memory alive all the same, only uncounted."""
        for _ in range(len(self._finished)):
            if self._bytes + size <= self._budget_bytes:
                return
            log = next(iter(self._finished.values()))
            if log.readers:
                self._finished.move_to_end(log.stream_id)
            else:
                self._forget(log)
        if self._bytes + size > self._budget_bytes:
            raise errors.Overloaded("There is no memory left for another answer.", retry_after_seconds=5)

    def _forget(self, log: MemoryLog) -> None:
        del self._finished[log.stream_id]
        self._bytes -= log.cost
        key = log.binding.key if log.binding is not None else None
        if key is not None and self._keys.get(key, ("", ""))[0] == log.stream_id:
            _, fingerprint = self._keys.pop(key)
            self._gone_keys[hash(key)] = hash(fingerprint)
        else:
            key = None
        self._gone[hash(log.stream_id)] = None if key is None else hash(key)
        while len(self._gone) > REMEMBERED:
            _, old_key = self._gone.popitem(last=False)
            if old_key is not None:
                self._gone_keys.pop(old_key, None)
