"""Every log of this process, found by its id or by the idempotency key that began it."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

from app import errors
from app.streams.interface import Binding, Origin, StreamLog, belongs_to, bound_to, new_stream_id
from app.streams.memory.log import MemoryLog
from app.streams.retention import Retention

__all__ = ["MemoryStore"]

REMEMBERED = 100_000
"""How many streams that are gone are still answered with 410 instead of 404."""


class MemoryStore:
    """Owns the logs' retention, the table of idempotency keys, and the memory of streams that are gone."""

    elsewhere = None

    def __init__(self, *, max_active: int, budget_bytes: int, retention_seconds: float) -> None:
        self._retention: Retention[MemoryLog] = Retention(
            max_active=max_active,
            budget_bytes=budget_bytes,
            retention_seconds=retention_seconds,
            forgotten=self._forgotten,
        )
        self._keys: dict[str, tuple[str, str]] = {}
        # Streams that are gone are kept as hashes, the oldest first. 100,000 ids would take ten times the memory.
        # Of one that was bound to a client, so is the client.
        self._gone: OrderedDict[int, tuple[int | None, str | None]] = OrderedDict()
        self._gone_keys: dict[int, int] = {}

    @property
    def live(self) -> int:
        return len(self._retention.live)

    @property
    def used_bytes(self) -> int:
        return self._retention.used_bytes

    def ready(self) -> bool:
        return True

    def admit(self) -> None:
        self._retention.admit()

    def stop_admitting(self) -> None:
        self._retention.stop_admitting()

    def sweep(self, now: float) -> None:
        self._retention.sweep(now)

    def close(self) -> None:
        """Nothing is held open."""

    def knows(self, key: str) -> bool:
        with self._retention.lock:
            return key in self._keys or hash(key) in self._gone_keys

    def create(
        self, origin: Origin, binding: Binding | None = None, *, prompt_bytes: int = 0, credential: str | None = None
    ) -> tuple[MemoryLog, bool]:
        with self._retention.lock:
            if binding is not None:
                bound = self._bound(binding, credential or "")
                if bound is not None:
                    return bound, False
            self.admit()
            counted = self._retention.admit_prompt(prompt_bytes)
            stream_id = new_stream_id(origin.kind)
            if credential is not None:
                origin = replace(origin, client=bound_to(stream_id, credential))
            log = MemoryLog(self, stream_id, origin, binding, prompt_bytes=counted)
            self._retention.begin(log)
            if binding is not None:
                self._keys[binding.key] = (log.stream_id, binding.fingerprint)
            return log, True

    def _bound(self, binding: Binding, credential: str) -> MemoryLog | None:
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
        return self.find(stream_id, credential=credential)

    def find(self, stream_id: str, *, reach: int = 0, credential: str = "") -> MemoryLog:
        with self._retention.lock:
            log = self._retention.kept(stream_id)
            if log is not None:
                if not belongs_to(log.origin, stream_id, credential):
                    raise errors.StreamUnknown
                return log
            # Expired streams return 410, unknown ones 404.
            gone = self._gone.get(hash(stream_id))
            if gone is None or gone[1] not in (None, bound_to(stream_id, credential)):
                raise errors.StreamUnknown
            raise errors.StreamExpired

    def erase(self, log: StreamLog) -> None:
        assert isinstance(log, MemoryLog)
        with self._retention.lock:
            self._retention.remove(log)
            if log.binding is not None and self._keys.get(log.binding.key, ("", ""))[0] == log.stream_id:
                del self._keys[log.binding.key]
            log.erase()

    # What a log tells

    def make_room_for(self, log: MemoryLog, size: int) -> None:
        self._retention.make_room_for(log, size)

    def release_prompt(self, log: MemoryLog) -> None:
        self._retention.release_prompt(log)

    def used(self, log: MemoryLog) -> None:
        self._retention.used(log)

    def ended(self, log: MemoryLog) -> None:
        with self._retention.lock:
            self._retention.ended(log)
            if log.binding is not None and log.end is not None and log.end.frees_key:
                self._keys.pop(log.binding.key, None)

    def _forgotten(self, log: MemoryLog) -> None:
        """Remember a stream that is gone, and its key if the key still stands for this stream."""
        key = log.binding.key if log.binding is not None else None
        if key is not None and self._keys.get(key, ("", ""))[0] == log.stream_id:
            _, fingerprint = self._keys.pop(key)
            self._gone_keys[hash(key)] = hash(fingerprint)
        else:
            key = None
        self._gone[hash(log.stream_id)] = None if key is None else hash(key), log.origin.client
        while len(self._gone) > REMEMBERED:
            _, (old_key, _) = self._gone.popitem(last=False)
            if old_key is not None:
                self._gone_keys.pop(old_key, None)
