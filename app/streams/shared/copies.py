"""The copies of other workers' logs that this worker has: made when somebody asks, followed by the tail, dropped when
nobody reads them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

from app import errors
from app.streams.interface import belongs_to, is_bound
from app.streams.retention import Retention
from app.streams.shared import records
from app.streams.shared.commands import PAGE_ENTRIES, Commands
from app.streams.shared.committer import Committer
from app.streams.shared.connection import Answer, Refusal
from app.streams.shared.damage import Damage
from app.streams.shared.log import SharedLog, SharingKeeper
from app.streams.shared.records import Damaged
from app.streams.shared.tail import Tail

__all__ = ["Copies"]

IDLE_SECONDS = 30.0
"""A copy of a log that goes on is dropped when nobody has read it for so long."""

MOST_WAITING, MOST_WAITING_FOR_ONE = 256, 64
"""How many requests may wait until copies reach their cursors: for all streams together, and for one."""

LOOK_SECONDS, LOOK_AT_MOST_SECONDS = 0.05, 0.5
"""The time between two looks of a request that waits for a copy, at first and at most. Made-up cursors may let many
wait."""


class Copies:
    """The table of copies that go on, and what is done with them."""

    def __init__(
        self,
        *,
        keeper: SharingKeeper,
        retention: Retention[SharedLog],
        committer: Committer,
        commands: Commands,
        tail: Tail,
        damage: Damage,
        lease_seconds: float,
        drop: Callable[[SharedLog], None],
    ) -> None:
        """`drop` forgets a log that has not ended."""
        self.table: dict[str, SharedLog] = {}
        self._keeper = keeper
        self._retention = retention
        self._committer = committer
        self._commands = commands
        self._tail = tail
        self._damage = damage
        self._lease_seconds = lease_seconds
        self._drop = drop
        self._loading: dict[str, threading.Event] = {}
        self._waiting: Counter[str] = Counter()

    # The table

    def remove(self, log: SharedLog) -> bool:
        """Forget a copy, and follow it no more. False when the log is not in the table."""
        with self._retention.lock:
            if self.table.get(log.stream_id) is not log:
                return False
            del self.table[log.stream_id]
            self._tail.unfollow(self._commands.keys(log.stream_id)[1], log)
            return True

    def follow(self, log: SharedLog) -> None:
        self._tail.follow(self._commands.keys(log.stream_id)[1], log)

    def all(self) -> list[SharedLog]:
        return list(self.table.values())

    # A new one

    def find(self, stream_id: str, credential: str | None) -> SharedLog:
        """Return a copy, made now if it is not here. No credential: for this worker's own use.

        Raises: StreamUnknown, also when the log is bound to another credential; StreamExpired, Overloaded,
        StoreUnavailable.
        """
        if not records.STREAM_ID.fullmatch(stream_id):
            raise errors.StreamUnknown
        while True:
            with self._retention.lock:
                log = self.table.get(stream_id) or self._retention.kept(stream_id)
                if log is not None:
                    if credential is not None and not belongs_to(log.origin, stream_id, credential):
                        raise self.unknown()
                    return log
                loading = self._loading.get(stream_id)
                if loading is None:
                    done = self._loading[stream_id] = threading.Event()
            if loading is not None:
                loading.wait(self._lease_seconds)  # another thread is loading the copy
                continue
            try:
                with self._damage.is_gone(stream_id):
                    return self._load(stream_id, credential)
            finally:
                with self._retention.lock:
                    self._loading.pop(stream_id, None)
                done.set()

    def _load(self, stream_id: str, credential: str | None) -> SharedLog:
        hash_key, _ = self._commands.keys(stream_id)
        asked = ("HGETALL", hash_key), self._commands.page(stream_id, 0)
        if is_bound(stream_id):  # the records are loaded for their own client alone
            (told,), page = self._committer.read(asked[0]), None
        else:
            told, page = self._committer.read(*asked)
        if not told:
            raise self.unknown()
        stream = records.read_stream(stream_id, told)
        if credential is not None and not belongs_to(stream.origin, stream_id, credential):
            raise self.unknown()
        if page is None:
            (page,) = self._committer.read(asked[1])
        if not page and stream.is_ended:
            raise errors.StreamExpired
        log = SharedLog.copied(self._keeper, stream)
        with self._retention.lock:
            self._retention.count(log)
            self.table[stream_id] = log
        try:
            take_page(log, page, 0)
            while len(page) >= PAGE_ENTRIES and log.is_followed:
                page = self.read_on(log)
        except BaseException:
            if log.is_foreign:
                self._drop(log)
            raise
        if log.is_followed:
            self.follow(log)
        return log

    def read_on(self, log: SharedLog) -> list[Answer]:
        """Take what Valkey has behind a copy, and return it. Raises: StoreUnavailable, Overloaded, Damaged."""
        after = log.head
        (page,) = self._committer.read(self._commands.page(log.stream_id, after))
        take_page(log, page, after)
        return page  # type: ignore[no-any-return]

    def unknown(self) -> errors.ChatError:
        """Choose the error for a stream that Valkey does not know. After an outage the producer may still have to store
        that stream again."""
        return errors.StoreUnavailable(retry_after_seconds=1) if self._may_be_behind() else errors.StreamUnknown()

    def _may_be_behind(self) -> bool:
        """Valkey was away not long ago: producers may still have to store what their readers have."""
        back_at = self._committer.back_at
        return self._committer.contact_since is None or (
            back_at is not None and time.monotonic() - back_at < 2 * self._lease_seconds
        )

    # One that is behind a cursor

    def catch_up(self, log: SharedLog, reach: int) -> None:
        """Wait until a copy has the record that a cursor names, or its log has ended, for a lease at most.

        Valkey may have the record, and the copy has not read it yet. Or the producer has shown a record that it could
        not store yet. Or the cursor is made up, and costs no more than this wait. Few requests may wait for one stream,
        because an attacker may know its id. Raises: StoreUnavailable, StreamExpired.
        """
        with self._retention.lock:
            waiting = self._waiting
            if waiting[log.stream_id] >= MOST_WAITING_FOR_ONE or waiting.total() >= MOST_WAITING:
                raise errors.StoreUnavailable(retry_after_seconds=1)
            waiting[log.stream_id] += 1
        try:
            with self._damage.is_gone(log.stream_id):
                self._wait_for(log, reach)
        except errors.StreamExpired:
            self._drop(log)
            raise
        finally:
            with self._retention.lock:
                waiting[log.stream_id] -= 1
                if not waiting[log.stream_id]:
                    del waiting[log.stream_id]

    def _wait_for(self, log: SharedLog, reach: int) -> None:
        until = time.monotonic() + self._lease_seconds
        pause = LOOK_SECONDS
        while log.head < reach and log.is_followed:
            after = log.head
            told, page = self._committer.read(
                ("HGET", self._commands.keys(log.stream_id)[0], "head"), self._commands.page(log.stream_id, after)
            )
            if page:
                take_page(log, page, after)
                continue
            if told is None and not self._may_be_behind():
                return
            now = time.monotonic()
            if now >= until:
                if told is None:
                    raise errors.StoreUnavailable(retry_after_seconds=1)
                return
            time.sleep(min(pause, until - now))
            pause = min(2 * pause, LOOK_AT_MOST_SECONDS)

    # Now and then

    def drop_idle(self, now: float) -> None:
        """Units: monotonic seconds."""
        for log in self.all():
            since = log.unread_since
            if since is not None and not log.readers and now - since > IDLE_SECONDS:
                self._drop(log)

    def look_at_records(self, logs: list[SharedLog]) -> None:
        """Send readers away when a stream's hash has been unusable for a while although its owner lives.

        An owner checks its stream whenever it hears of readers elsewhere. So this owner has given the stream up.
        """

        def heard(answers: list[Answer]) -> None:
            now = time.monotonic()
            for log, told in zip(logs, answers, strict=True):
                copy = log.copy
                if copy is None:
                    continue
                if (
                    _leads_to_its_end(told)
                    or copy.missed_since
                    or not self._committer.has_long_answered(self._lease_seconds)
                ):
                    copy.spoiled_since = None
                    continue
                copy.spoiled_since = copy.spoiled_since or now
                if now - copy.spoiled_since > 2 * self._lease_seconds and log.is_followed:
                    self.broken(log, Damaged("its record"))

        if logs:
            commands = [("HMGET", self._commands.keys(log.stream_id)[0], "owner", "fence", "end") for log in logs]
            self._committer.post(commands, heard)

    def broken(self, log: SharedLog, error: Exception) -> None:
        """Drop a copy that cannot go on: its readers come back, here or elsewhere."""
        if isinstance(error, Damaged):
            self._damage.found(log.stream_id, str(error))
        self._drop(log)


def take_page(log: SharedLog, entries: list[Answer], after: int) -> None:
    """Give a log the entries that Valkey has behind a sequence number. Raises: Overloaded; Damaged, also when the
    entries bring the log no further: a caller that reads on to the last entry must come to an end."""
    log.take(entries)
    if entries and log.head <= after and log.is_followed:
        raise Damaged("the places of its entries")


def _leads_to_its_end(told: Answer) -> bool:
    if isinstance(told, Refusal):
        return not told.is_of_a_record
    return records.leads_to_its_end(*told)
