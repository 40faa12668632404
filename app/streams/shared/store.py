"""A worker's view of the logs that many workers share through Valkey: its own, copies of others', and what is beyond.

Each worker reads logs from its own memory. It shows a record of a log that it generates, and above all the end, only
once Valkey has it. Copies of other workers' logs are filled by the tail. So nothing that a reader has seen is unknown
elsewhere, unless the reader was told so: while Valkey is away, a worker's own readers go on, unresumable.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections import deque
from collections.abc import Callable

from app import errors
from app.observability import facts
from app.observability.observer import tell
from app.streams.interface import Binding, End, Origin, StreamLog, log_name, new_stream_id
from app.streams.retention import Retention
from app.streams.shared import records
from app.streams.shared.booking import BOOKED, Unbooked
from app.streams.shared.commands import Commands, bound_text
from app.streams.shared.committer import Committer
from app.streams.shared.connection import Answer, Command, Connection, Refusal
from app.streams.shared.copies import Copies
from app.streams.shared.damage import Damage
from app.streams.shared.leases import LEASE_SECONDS, Leases
from app.streams.shared.log import SharedLog
from app.streams.shared.mailbox import Mailbox, ignore
from app.streams.shared.owned import Owned, OwnedLog
from app.streams.shared.records import Stream
from app.streams.shared.tail import Tail
from app.streams.shared.trees import Trees

__all__ = ["SharedStore"]

TAG = "chatwait"

ROUND_SECONDS = 0.5
"""How often a worker gives its sign of life, and looks at those of others."""

RECENT_SECONDS = 60.0
"""Ends so young are written again when Valkey comes back: another machine may have taken over without them."""

MOST_RECENT = 1000
"""How many of these ends are known."""


class SharedStore:
    """Owns the logs' retention and the rooms that know Valkey, and is what logs ask and tell."""

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
        """Raises: ValueError when the URL is none."""
        self.worker = secrets.token_hex(8)
        self.unbooked = Unbooked()
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
        self._mailbox = Mailbox(self._committer, self._commands, live=self._retention.live, is_read=self._look_at)
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
        self._trees = Trees(self._committer, self._commands)
        self._recent: deque[tuple[float, str]] = deque(maxlen=MOST_RECENT)
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
        self.flush()  # so that a worker whose Valkey is there is ready when it listens

    def close(self) -> None:
        """Let go of Valkey, once it has what was appended, if it answers."""
        self._tail.stop()
        self._mailbox.nudge()
        self.flush()
        self.unbooked.book_all(BOOKED)
        self._committer.stop()
        self._committer.join()
        self._tail.join()

    def flush(self) -> None:
        """Wait until Valkey has what was appended before. Does not wait when it is away."""
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
        """Look at all that is ours and young: while Valkey was away it may have lost what it had."""
        self._trees.look_again()
        for log in list(self._retention.live.values()):
            self._look_at(log)
        since = time.monotonic() - RECENT_SECONDS
        recent, self._recent = self._recent, deque(maxlen=MOST_RECENT)
        for ended_at, stream_id in recent:
            ended = self._retention.finished.get(stream_id)
            if ended_at > since and ended is not None:
                self._look_at(ended)

    def _look_at(self, log: SharedLog) -> None:
        """Compare what Valkey has of a log of ours with what it should have."""
        owned = log.owned
        if owned is not None:
            self._committer.changed(owned)

    # Logs

    def knows(self, key: str) -> bool:
        return self._committer.read(("EXISTS", self._commands.binding_key(key))) != [0]

    def create(
        self, origin: Origin, binding: Binding | None = None, *, prompt_bytes: int = 0
    ) -> tuple[SharedLog, bool]:
        if self._committer.is_late(time.monotonic()):
            raise errors.StoreUnavailable(retry_after_seconds=2)
        log: SharedLog | None = None
        refusal: errors.ChatError | None = None
        try:
            log = self._begin(origin, binding, prompt_bytes)
        except errors.ChatError as error:
            if binding is None:
                raise
            refusal = error.with_traceback(None)  # which would know this frame
        stream = Stream(new_stream_id() if log is None else log.stream_id, origin, binding, self.worker, 1)
        try:
            (answer,) = self._committer.ask(self._commands.create(stream, is_admitted=log is not None))
        except errors.StoreUnavailable as error:
            if log is not None:
                self._lost(log, error)  # it may be there, and others may read it by its key by now
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
                refusal = None  # it knows this frame, which must not know it: they would keep all that called alive
        assert binding is not None
        return self._bound(binding, answer), False

    def _begin(self, origin: Origin, binding: Binding | None, prompt_bytes: int) -> SharedLog:
        """Count a new log. Raises: ShuttingDown, Overloaded."""
        with self._retention.lock:
            self.admit()
            counted = self._retention.admit_prompt(prompt_bytes)
            log = SharedLog.begun(self, self, new_stream_id(), origin, binding, prompt_bytes=counted)
            self._retention.begin(log)
            return log

    def _bound(self, binding: Binding, answer: Answer) -> SharedLog:
        """Return the log that an idempotency key began. Raises: IdempotencyKeyReused, StreamExpired."""
        with self._damage.is_gone(binding.key):
            stream_id, fingerprint = records.read_binding(answer)
        if fingerprint != binding.fingerprint:
            raise errors.IdempotencyKeyReused
        try:
            return self.find(stream_id)
        except errors.StreamUnknown:
            raise errors.StreamExpired from None

    def find(self, stream_id: str, *, reach: int = 0) -> SharedLog:
        log = self._copies.find(stream_id)
        if log.head < reach and log.is_followed:
            self._copies.catch_up(log, reach)
            if log.is_dropped:
                raise errors.Overloaded(retry_after_seconds=2)
        return log

    def cancel(self, stream_id: str) -> tuple[End | None, int]:
        with self._damage.is_gone(stream_id):
            return self._cancelled(stream_id)

    def _cancelled(self, stream_id: str) -> tuple[End | None, int]:
        hash_key, entries_key = self._commands.keys(stream_id)
        (told,) = self._committer.read(("HGET", hash_key, "owner"))
        if told is None:
            raise self._copies.unknown()
        _, (told_head, end), last = self._committer.read(
            self._commands.cancel(records.read_owner(told), stream_id),
            ("HMGET", hash_key, "head", "end"),
            ("XREVRANGE", entries_key, "+", "-", "COUNT", 1),
        )
        head = records.read_number(told_head, "head")
        if end is None:
            return None, head
        if not last:
            raise errors.StreamExpired
        return records.read_end(records.damage("an entry", lambda: last[0][1][1]), head + 1), head

    def drop(self, log: SharedLog) -> None:
        """Forget a log that has not ended. Its readers are sent away."""
        with self._retention.lock:
            is_kept = log.stream_id in self._retention.live or self._copies.table.get(log.stream_id) is log
            if not is_kept or not log.drop():
                return
            self._copies.remove(log)
            self._retention.discount(log)
        log.release()

    def _adopt(self, log: SharedLog, fence: int, is_lost: bool) -> bool:
        """Make a copy ours, and end it: its producer is gone."""
        if not log.adopt(self, fence, is_lost=is_lost):
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

    # What a log of ours asks and tells

    def changed(self, owned: Owned) -> None:
        self._committer.changed(owned)

    def keys(self, stream_id: str) -> tuple[str, str]:
        return self._commands.keys(stream_id)

    def restoring(self, owned: Owned) -> Command:
        return self._commands.restore(self._stream(owned))

    def finishing(self, owned: Owned, end: End) -> Command:
        return self._commands.finish(
            self._stream(owned),
            end.records,
            records.write_end(owned.log.origin, end),
            records.end_kind(end),
            frees_key=end.frees_key,
        )

    def _stream(self, owned: Owned) -> Stream:
        log = owned.log
        return Stream(log.stream_id, log.origin, log.binding, self.worker, owned.fence, log.noted)

    def missed(self) -> None:
        self._leases.renew()  # our sign of life is probably lost too, and nobody may find a stream without it

    def cancel_asked(self, stream_id: str) -> None:
        self._mailbox.stop(stream_id)

    def damaged(self, stream_id: str, what: str) -> None:
        self._damage.found(stream_id, what)

    def given_up(self, stream_id: str) -> None:
        # A stream without a fence is nobody's, and readers elsewhere are told. If another worker had taken it over,
        # that one writes it anew.
        self._committer.post([("HDEL", self.keys(stream_id)[0], "fence")], ignore)

    def taken_over(self, log: OwnedLog, *, is_followed: bool) -> None:
        name, correlation_id = log_name(log.stream_id), log.origin.correlation_id
        if not is_followed:
            tell(facts.StreamCutOff(stream=name, correlation_id=correlation_id))
            return
        tell(facts.StreamFenced(stream=name, correlation_id=correlation_id))
        with self._retention.lock:
            copy = self._retention.live.pop(log.stream_id, None)
            if copy is not None:
                self._copies.add(copy)
        self._abort(log.stream_id)

    def end_stored(self, stream_id: str) -> None:
        self._recent.append((time.monotonic(), stream_id))
