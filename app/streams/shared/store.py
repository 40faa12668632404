"""The logs that many workers share through Valkey, as one worker has them: its own logs, and copies of others'.

Each worker reads logs from its own memory. A worker shows a record of its own log, and above all the end, only once
Valkey has it. The tail fills the copies of other workers' logs. So every worker can give what a reader has seen. While
Valkey is away there is one exception: a worker's own readers go on, and are told that their stream is unresumable.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable
from dataclasses import replace

from app import errors
from app.streams.interface import Binding, End, Origin, StreamLog, bound_to, new_stream_id
from app.streams.retention import Retention
from app.streams.shared import records
from app.streams.shared.booking import BOOKED
from app.streams.shared.commands import Commands, bound_text
from app.streams.shared.committer import Committer
from app.streams.shared.connection import Answer, Connection, Refusal
from app.streams.shared.copies import Copies
from app.streams.shared.damage import Damage
from app.streams.shared.desk import WritersDesk
from app.streams.shared.erasure import Erasure
from app.streams.shared.leases import LEASE_SECONDS, Leases
from app.streams.shared.log import SharedLog
from app.streams.shared.mailbox import Mailbox, ignore
from app.streams.shared.records import Stream
from app.streams.shared.tail import Tail
from app.streams.shared.trees import Trees

__all__ = ["SharedStore"]

TAG = "chatwait"

ROUND_SECONDS = 0.5
"""How often a worker gives its sign of life, and looks at those of others."""


class SharedStore:
    """Owns the logs' retention and the parts that know Valkey. Logs report to the store."""

    def __init__(
        self,
        url: str,
        *,
        max_active: int,
        budget_bytes: int,
        retention_seconds: float,
        generation_seconds: float,
        abandoned_seconds: float,
        lease_seconds: float = LEASE_SECONDS,
        tag: str = TAG,
    ) -> None:
        """Raises: ValueError when `url` is no URL of Valkey."""
        self.worker = secrets.token_hex(8)
        self._retention: Retention[SharedLog] = Retention(
            max_active=max_active, budget_bytes=budget_bytes, retention_seconds=retention_seconds
        )
        self._commands = Commands(
            tag=tag,
            worker=self.worker,
            live_seconds=generation_seconds + retention_seconds + 60,
            kept_seconds=retention_seconds,
        )
        name = f"chatwait-{self.worker}"
        self._committer = Committer(
            Connection(url, name=name, timeout_seconds=lease_seconds / 2),
            live_ms=self._commands.live_ms,
            back=self._look_again,
        )
        self._mailbox = Mailbox(
            self._committer,
            self._commands,
            live=self._retention.live,
            is_read=self._look_at,
            erased=lambda stream_id: self._erasure.heard(stream_id),
        )
        self._tail = Tail(
            Connection(url, name=f"{name}-tail", timeout_seconds=lease_seconds / 2),
            wake=self._commands.wake_key(self.worker),
            woken=self._mailbox.hear,
            broken=lambda log, error: self._copies.broken(log, error),
            nudge=self._mailbox.nudge,
        )
        self._damage = Damage()
        self._copies = Copies(
            keeper=self,
            retention=self._retention,
            committer=self._committer,
            commands=self._commands,
            tail=self._tail,
            damage=self._damage,
            lease_seconds=lease_seconds,
            drop=self.drop,
        )
        self._leases = Leases(
            copies=self._copies,
            committer=self._committer,
            commands=self._commands,
            damage=self._damage,
            lease_seconds=lease_seconds,
            look_again=self._look_again,
            adopt=self._adopt,
            drop=self.drop,
        )
        self._desk = WritersDesk(
            committer=self._committer,
            commands=self._commands,
            damage=self._damage,
            mailbox=self._mailbox,
            missed=self._leases.renew,  # without the sign of life, which is probably lost too, others would adopt it
            followed=self._follow,
            erased=lambda stream_id: self._erasure.heard(stream_id),
        )
        self._erasure = Erasure(
            committer=self._committer,
            commands=self._commands,
            copies=self._copies,
            damage=self._damage,
            mailbox=self._mailbox,
            retention=self._retention,
            abort=lambda stream_id: self._abort(stream_id),
        )
        self._trees = Trees(self._committer, self._commands)
        self._cancel: Callable[[str, str], object] = lambda stream_id, reason: None
        self._abort: Callable[[str], object] = lambda stream_id: None
        self._lost: Callable[[StreamLog, errors.ChatError], object] = lambda log, error: None
        self._round_seconds = min(ROUND_SECONDS, lease_seconds / 7)
        self._note_seconds = min(5.0, abandoned_seconds / 3)
        self._next_round = 0.0
        self._next_note = 0.0

    @property
    def elsewhere(self) -> SharedStore:
        return self

    @property
    def live(self) -> int:
        return len(self._retention.live)

    @property
    def used_bytes(self) -> int:
        return self._retention.used_bytes

    # Its life

    def start(
        self,
        *,
        cancel: Callable[[str, str], object],
        abort: Callable[[str], object],
        lost: Callable[[StreamLog, errors.ChatError], object],
    ) -> None:
        self._cancel, self._abort, self._lost = cancel, abort, lost
        self._leases.renew()
        self._committer.start()
        self._tail.start()
        self.flush()  # so that the worker is ready when it listens, if Valkey is there

    def close(self) -> None:
        """Close the connections to Valkey. If Valkey answers, wait first until it has every record."""
        self._tail.stop()
        self._mailbox.nudge()
        self.flush()
        self._desk.unbooked.book_all(BOOKED)
        self._committer.stop()
        self._committer.join()
        self._tail.join()

    def flush(self) -> None:
        """Wait until Valkey has what was appended before. Does not wait while Valkey is away."""
        with contextlib.suppress(errors.StoreUnavailable):
            self._committer.ask(("PING",))

    def ready(self) -> bool:
        return self._committer.is_answered

    def admit(self) -> None:
        self._retention.admit()

    def stop_admitting(self) -> None:
        self._retention.stop_admitting()

    def sweep(self, now: float) -> None:
        self._retention.sweep(now)
        for stream_id in self._mailbox.take_stops():
            self._cancel(stream_id, "client")
        if self._committer.is_late(now):
            for log in list(self._retention.live.values()):
                log.show_late()
        real = time.monotonic()
        if real >= self._next_round:
            self._next_round = real + self._round_seconds
            self._leases.renew()
            self._mailbox.look_at_stops()
            self._leases.look_at_owners()
            self._copies.drop_idle(real)
        if real >= self._next_note:
            self._next_note = real + self._note_seconds
            read = [log for log in self._copies.all() if log.unread_since is None]
            self._mailbox.note_reading(read)
            self._copies.look_at_records(read)
        self._trees.sweep(real)

    def _look_again(self) -> None:
        """Check this worker's live logs, its recent ends and its files: Valkey may have lost them."""
        self._trees.look_again()
        for log in list(self._retention.live.values()):
            self._look_at(log)
        for stream_id in self._desk.take_recent():
            ended = self._retention.finished.get(stream_id)
            if ended is not None:
                self._look_at(ended)

    def _look_at(self, log: SharedLog) -> None:
        """Compare what Valkey has of a log of this worker with what Valkey should have."""
        owned = log.owned
        if owned is not None:
            self._committer.changed(owned)

    # Logs

    def knows(self, key: str) -> bool:
        return self._committer.read(("EXISTS", self._commands.binding_key(key))) != [0]

    def create(
        self, origin: Origin, binding: Binding | None = None, *, prompt_bytes: int = 0, credential: str | None = None
    ) -> tuple[SharedLog, bool]:
        if self._committer.is_late(time.monotonic()):
            raise errors.StoreUnavailable(retry_after_seconds=2)
        log: SharedLog | None = None
        refusal: errors.ChatError | None = None
        stream_id = new_stream_id(origin.kind)
        if credential is not None:
            origin = replace(origin, client=bound_to(stream_id, credential))
        stream = Stream(stream_id, origin, binding, self.worker, 1)
        try:
            log = self._begin(stream, prompt_bytes)
        except errors.ChatError as error:
            if binding is None:
                raise
            refusal = error.with_traceback(None)  # a traceback would keep this frame alive
        try:
            (answer,) = self._committer.ask(self._commands.create(stream, is_admitted=log is not None))
        except errors.StoreUnavailable as error:
            if log is not None:
                self._lost(log, error)  # Valkey may have the stream, and others may read it by its key by now
            raise
        if log is not None and (answer == 1 or answer == bound_text(stream.stream_id, binding).encode()):
            return log, True
        if log is not None:
            self.drop(log)
        if isinstance(answer, Refusal):
            raise errors.StoreUnavailable(retry_after_seconds=5)
        if answer == 0:
            assert refusal is not None
            try:
                raise refusal
            finally:
                refusal = None  # an error and a frame that know each other would keep all callers alive
        assert binding is not None
        return self._bound(binding, answer, credential or ""), False

    def _begin(self, stream: Stream, prompt_bytes: int) -> SharedLog:
        """Count a new log. Raises: ShuttingDown, Overloaded."""
        with self._retention.lock:
            self.admit()
            counted = self._retention.admit_prompt(prompt_bytes)
            log = SharedLog.begun(self, self._desk, stream, prompt_bytes=counted)
            self._retention.begin(log)
            return log

    def _bound(self, binding: Binding, answer: Answer, credential: str) -> SharedLog:
        """Return the log that an idempotency key began. Raises: IdempotencyKeyReused, StreamExpired."""
        with self._damage.is_gone(binding.key):
            stream_id, fingerprint = records.read_binding(answer)
        if fingerprint != binding.fingerprint:
            raise errors.IdempotencyKeyReused
        try:
            return self.find(stream_id, credential=credential)
        except errors.StreamUnknown:
            raise errors.StreamExpired from None

    def find(self, stream_id: str, *, reach: int = 0, credential: str = "") -> SharedLog:
        log = self._copies.find(stream_id, credential)
        if log.is_erased:  # meanwhile
            raise errors.StreamUnknown
        if log.end is not None and (log.is_foreign or log.origin.kind != "text"):
            self._erasure.look_for_tombstone(log)
        if log.head < reach and log.is_followed:
            self._copies.catch_up(log, reach)
            if log.is_dropped:
                raise errors.Overloaded(retry_after_seconds=2)
        return log

    def erase(self, log: StreamLog) -> None:
        self._erasure.erase(log)

    def erase_unread(self, stream_id: str) -> None:
        self._erasure.erase_unread(stream_id)

    def erased(self, log: SharedLog) -> None:
        self._erasure.forget(log)

    def cancel(self, stream_id: str) -> tuple[End | None, int]:
        with self._damage.is_gone(stream_id):
            return self._cancelled(stream_id)

    def _cancelled(self, stream_id: str) -> tuple[End | None, int]:
        hash_key, entries_key = self._commands.keys(stream_id)
        (told,) = self._committer.read(("HGET", hash_key, "owner"))
        if told is None:
            raise self._copies.unknown()
        _, (owner, told_head, end), last = self._committer.read(
            self._commands.cancel(records.read_owner(told), stream_id),
            ("HMGET", hash_key, "owner", "head", "end"),
            ("XREVRANGE", entries_key, "+", "-", "COUNT", 1),
        )
        if owner is None:  # another worker has erased it in between
            raise self._copies.unknown()
        head = records.read_number(told_head, "head")
        if end is None:
            return None, head
        if not last:
            raise errors.StreamExpired
        return records.read_end(records.damage("an entry", lambda: last[0][1][1]), head + 1), head

    def drop(self, log: SharedLog) -> None:
        """Forget a log that has not ended. Its readers are sent away."""
        with self._retention.lock:
            is_kept = log in (self._retention.live.get(log.stream_id), self._copies.table.get(log.stream_id))
        # Not with the store's lock held: an append takes the log's lock first, and then the store's.
        if not is_kept or not log.drop():
            return
        with self._retention.lock:
            self._copies.remove(log)
            self._retention.discount(log)
        log.release()

    def _follow(self, stream_id: str) -> None:
        """Keep a log of this worker as a copy, and stop its generation: another worker has taken the log over."""
        with self._retention.lock:
            copy = self._retention.live.pop(stream_id, None)
            if copy is not None:
                self._copies.table[stream_id] = copy
        if copy is not None:
            self._copies.follow(copy)
        self._abort(stream_id)

    def _adopt(self, log: SharedLog, fence: int, is_lost: bool) -> bool:
        """Make a copy this worker's log, and end it: its producer is gone."""
        if not log.adopt(self._desk, fence, is_lost=is_lost):
            return False
        with self._retention.lock:
            self._copies.remove(log)
            self._retention.live[log.stream_id] = log
        self._lost(log, errors.ProducerLost())
        return True

    # Files of pages

    def publish(self, name: str, content: bytes) -> None:
        self._trees.publish(name, content)

    def published(self, name: str) -> bytes | None:
        return self._trees.published(name)

    # What a log tells, whatever its role

    def make_room_for(self, log: SharedLog, size: int) -> None:
        self._retention.make_room_for(log, size)

    def release_prompt(self, log: SharedLog) -> None:
        self._retention.release_prompt(log)

    def ended(self, log: SharedLog) -> None:
        with self._retention.lock:
            self._copies.remove(log)
            self._retention.ended(log)

    def used(self, log: SharedLog) -> None:
        self._retention.used(log)
        if log.end is not None:
            entries = self._commands.keys(log.stream_id)[1]
            self._committer.post([("PEXPIRE", entries, self._commands.kept_ms)], ignore)
        elif log.is_foreign and not log.readers:
            self._mailbox.note_reading([log])

    def attached(self, log: SharedLog) -> None:
        """Tell Valkey of a reader: the worker that ends the log counts the readers of all workers."""

        def heard(answers: list[Answer]) -> None:
            if answers[0] and type(answers[0]) is int:
                log.noted += 1

        self._committer.post([self._commands.attach(log.stream_id)], heard)
