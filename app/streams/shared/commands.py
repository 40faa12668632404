"""The names of the keys on Valkey, and the commands that more than one file sends there."""

from __future__ import annotations

from app.streams.interface import Binding
from app.streams.shared import records, scripts
from app.streams.shared.connection import Command, script
from app.streams.shared.records import Stream

__all__ = ["PAGE_ENTRIES", "Commands", "bound_text"]

PAGE_ENTRIES = 500
"""How many entries of a stream are read at a time."""

REMEMBERED_SECONDS = 86_400
"""How long a stream whose text is gone is still answered with 410 instead of 404."""


TOLD_MS = 60_000
"""How long workers that follow a stream can still hear that it was erased."""


def bound_text(stream_id: str, binding: Binding | None) -> str:
    """Write what stands under an idempotency key: the stream and the fingerprint of its request."""
    return "" if binding is None else f"{stream_id} {binding.fingerprint}"


class Commands:
    """The keys and commands of one deployment, as one worker uses them."""

    def __init__(self, *, tag: str, worker: str, live_seconds: float, kept_seconds: float) -> None:
        """`tag` stands in every key as its hash tag, so that one script may touch several of a deployment's keys.

        A stream that goes on lives for `live_seconds` at least, and one that has ended for `kept_seconds`.
        """
        self.worker = worker
        self.live_ms = int(live_seconds * 1000)
        self.kept_ms = int(kept_seconds * 1000)
        self._tag = "{" + tag + "}"

    # Keys

    def keys(self, stream_id: str) -> tuple[str, str]:
        """Name a stream's hash and its entries."""
        return f"{self._tag}:{stream_id}", f"{self._tag}:{stream_id}:log"

    def tombstone_key(self, stream_id: str) -> str:
        """Name what stands where a stream was erased. The scripts know this name too (`guarded.lua`)."""
        return f"{self.keys(stream_id)[0]}:erased"

    def binding_key(self, key: str) -> str:
        return f"{self._tag}:key:{key}"

    def files_key(self, name: str) -> str:
        return f"{self._tag}:files:{name}"

    def wake_key(self, worker: str) -> str:
        """Name where messages for a worker are left."""
        return f"{self._tag}:wake:{worker}"

    def stops_key(self, worker: str) -> str:
        """Name the set of streams that a worker is asked to end."""
        return f"{self._tag}:stops:{worker}"

    def life_key(self, worker: str) -> str:
        """Name a worker's sign of life."""
        return f"{self._tag}:worker:{worker}"

    def _all_keys(self, stream: Stream) -> tuple[str, ...]:
        binding = stream.binding
        return (*self.keys(stream.stream_id), *(() if binding is None else (self.binding_key(binding.key),)))

    # Commands

    def create(self, stream: Stream, *, is_admitted: bool) -> Command:
        hash_key, _, *binding_keys = self._all_keys(stream)
        bound = bound_text(stream.stream_id, stream.binding)
        fields = records.write_stream(stream)
        return script(scripts.CREATE, (hash_key, *binding_keys), int(is_admitted), self.live_ms, bound, *fields)

    def restore(self, stream: Stream) -> Command:
        bound = bound_text(stream.stream_id, stream.binding)
        fields = records.write_stream(stream)
        return script(scripts.RESTORE, self._all_keys(stream), stream.fence, self.live_ms, bound, *fields)

    def finish(self, stream: Stream, count: int, end: bytes, kind: str, *, frees_key: bool) -> Command:
        """Write the command that ends a stream of `count` records."""
        remembered_ms = self.kept_ms + REMEMBERED_SECONDS * 1000
        return script(
            scripts.FINISH,
            self._all_keys(stream),
            *(stream.fence, count, end, kind, self.kept_ms, remembered_ms),
            *(int(frees_key), bound_text(stream.stream_id, stream.binding)),
        )

    def erase(self, stream_id: str, binding: Binding | None) -> Command:
        """Erase a stream. The tombstone stands for longer than anything that could bring the stream back."""
        hash_key, entries_key = self.keys(stream_id)
        binding_keys = () if binding is None else (self.binding_key(binding.key),)
        keys = (hash_key, entries_key, self.tombstone_key(stream_id), *binding_keys)
        stands_ms = self.live_ms + self.kept_ms + REMEMBERED_SECONDS * 1000
        return script(scripts.ERASE, keys, stream_id, stands_ms, TOLD_MS, f"{records.LARGEST}-0")

    def page(self, stream_id: str, after: int) -> Command:
        """Read entries behind a sequence number, PAGE_ENTRIES at most."""
        return ("XRANGE", self.keys(stream_id)[1], f"({after}-0", "+", "COUNT", PAGE_ENTRIES)

    def wake(self, worker: str, what: str, which: str) -> Command:
        """Leave a message for a worker."""
        return script(scripts.WAKE, (self.wake_key(worker),), what, which, self.live_ms)

    def cancel(self, owner: str, stream_id: str) -> Command:
        """Ask a stream's owner to end it."""
        keys = (self.keys(stream_id)[0], self.wake_key(owner), self.stops_key(owner))
        return script(scripts.CANCEL, keys, owner, stream_id, self.live_ms)

    def attach(self, stream_id: str) -> Command:
        return script(scripts.ATTACH, self.keys(stream_id)[:1])

    def adopt(self, stream_id: str, owner: str, fence: int) -> Command:
        keys = (self.keys(stream_id)[0], self.life_key(owner))
        return script(scripts.ADOPT, keys, owner, fence, self.worker)
