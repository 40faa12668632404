"""Logs on an engine (Valkey, Redis) that many workers share: any of them serves any cursor of any stream.

Each worker reads logs from its own memory. Of those it generates it shows a chunk, and above all the end, only once
the engine has it; those of others are copies that the tail fills (`app.streams.tail`). So nothing that a reader has
seen is unknown elsewhere, unless it was told so: while the engine is away its own readers go on, `is_unresumable`.

Whose a log is, its fence says: 0 here means another worker's.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import secrets
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from app import errors
from app.observability import facts
from app.observability.observer import tell
from app.streams.interface import Binding, End, Origin, Piece, StreamLog, log_name, new_stream_id
from app.streams.memory.store import MemoryLog, MemoryReader, MemoryStore
from app.streams.shared import records, scripts
from app.streams.shared.committer import Commit, Committer
from app.streams.shared.connection import Answer, Command, Connection, Refusal, script
from app.streams.shared.records import Damaged
from app.streams.shared.tail import Tail

__all__ = ["LEASE_SECONDS", "SharedLog", "SharedStore"]

TAG = "chatwait"
"""In every key, as its hash tag: one step of the engine may touch several of a deployment's keys."""

LEASE_SECONDS = 3.0
"""A worker that gave no sign of life for so long is taken for dead."""

ROUND_SECONDS = 0.5
"""How often a worker gives its sign of life, and looks at those of others."""

REMEMBERED_SECONDS = 86_400
"""How long a stream whose text is gone is still answered with 410 instead of 404."""

BOOKED = "response_complete"

IDLE_COPY_SECONDS = 30.0
"""A copy of a live log that nobody reads is dropped after this."""

PUBLISHED_SECONDS, PUBLISH_SECONDS = 86_400, 60.0
"""How long a page's files are there after their last instance has gone, and how often that is put off."""

RECENT_SECONDS = 60.0
"""Ends so young are written again when the engine comes back: another machine may have taken over without them."""

MOST_REPAIRS = 3
"""So often a log of ours whose record is damaged is written anew; then it goes on for its own readers alone."""

MOST_STOPS = 1000
"""How many of the stops that are asked for are looked at in one round."""

MOST_WAITING, MOST_WAITING_FOR_ONE = 256, 64
"""How many may wait for copies to get as far as their cursors, of all streams and of one."""

MOST_RECENT = 1000
MOST_CHUNKS = 512
MOST_ADOPTED = 256
PAGE_ENTRIES = 500
CATCH_UP_SECONDS, CATCH_UP_AT_MOST_SECONDS = 0.05, 0.5
"""Between two looks of who waits for a copy, at first and later: many may wait, for cursors that were made up."""


class SharedLog(MemoryLog):
    """One generation: ours, stored before it is shown; or a copy of another worker's. Built by `SharedStore` alone."""

    __slots__ = (
        "_booking",
        "_elsewhere",
        "_last",
        "_noted",
        "_outcome",
        "_read_elsewhere_at",
        "_repairs",
        "_shared",
        "_shows_ahead",
        "_stored",
        "_unsent",
        "ended",
        "fence",
        "is_cut_off",
        "is_dropped",
        "is_lost",
        "is_unresumable",
        "missed_since",
        "owner",
        "spoiled_since",
        "their_fence",
    )

    def __init__(
        self, store: SharedStore, stream_id: str, origin: Origin, binding: Binding | None, *, prompt_bytes: int = 0
    ) -> None:
        self._read_elsewhere_at = 0.0
        super().__init__(store, stream_id, origin, binding, prompt_bytes=prompt_bytes)
        self.owner = store.worker
        self.fence = 1
        self.their_fence = 0
        self.is_unresumable = False
        self._shows_ahead = False
        """The engine is away: what is appended is shown though it is not stored."""
        self.is_cut_off = False
        """Its readers have more than the engine will ever have: it has been taken for dead meanwhile."""
        self.is_lost = False
        """The engine has lost it, or a part."""
        self.is_dropped = False
        """It is kept no more, and goes on no more."""
        self.missed_since: float | None = None
        """Since when a copy's own place in the engine has been found empty."""
        self.spoiled_since: float | None = None
        """Since when a copy whose owner lives has had no record that leads to its end."""
        self.ended = threading.Event()
        self._shared = store
        self._stored = 0
        self._unsent: list[bytes] | None = []  # None: to be taken from the text
        self._last: End | None = None
        self._repairs = 0
        self._noted = 0
        """How many of those who began to read it here the engine knows of."""
        self._elsewhere = 0
        """How many more it knows of."""
        self._booking: Callable[[str], None] | None = None
        self._outcome: str | None = None
        """What the line that books it is called; None while it may still become another's to book."""

    @property
    def is_foreign(self) -> bool:
        return self.fence == 0

    def is_copied(self) -> bool:
        """Tell whether it is a copy, and goes on."""
        return self.is_foreign and not self.is_dropped and self.end is None

    @property
    def stored(self) -> int:
        return self.head if self.is_foreign else self._stored

    @property
    def unread_since(self) -> float | None:
        """Readers at other workers count too; we hear of them now and then."""
        since = self._unread_since
        return None if since is None else max(since, self._read_elsewhere_at)

    @property
    def resumes(self) -> int:
        return max(0, self.attached + self._elsewhere - 1)

    @property
    def noted(self) -> int:
        return self._noted

    def attach_noted(self) -> None:
        """Hear that the engine knows of one more of our readers."""
        self._noted += 1

    def read_elsewhere(self) -> None:
        """Note that somebody reads it at another worker."""
        self._read_elsewhere_at = time.monotonic()

    # Ours: what is appended

    def append(self, *chunks: str) -> bool:
        data = "".join(chunks).encode()
        with self._lock:
            if self._ending:
                return False
            self._add(chunks, data)
            if self._unsent is not None:
                if len(chunks) == 1:
                    self._unsent.append(data)
                else:
                    self._unsent += [chunk.encode() for chunk in chunks]
            piece = self._raise_head(len(self._offsets)) if self._shows_ahead else None
        if piece is not None:
            self._tell(piece)
        if not self.is_cut_off:
            self._shared.changed(self)
        return True

    def _is_decided(self) -> bool:
        return self._last is not None or self.end is not None or self.is_foreign

    def _decided(self, end: End) -> None:
        with self._lock:
            if self.is_foreign:
                return  # it has been taken over while its end was written
            self._last = end
            is_shown = self._shows_ahead
        if is_shown:
            self._close(end)
        if not self.is_cut_off:
            self._shared.changed(self)

    def _close(self, end: End) -> None:
        with self._lock:
            if self.end is not None:
                return
            self.end = end
        super()._close(end)
        self.ended.set()

    def book(self, write: Callable[[str], None]) -> None:
        if self.is_foreign:
            return  # it has been taken over since its end was decided
        self._booking = write
        self._shared.unbooked.add(self)
        self._book()

    def book_as(self, outcome: str) -> None:
        """Let its end be booked under that name, when it is there."""
        if self._outcome is None:
            self._outcome = outcome
        self._book()

    def _book(self) -> None:
        with self._lock:
            if self._booking is None or self._outcome is None:
                return
            write, self._booking = self._booking, None
        self._shared.unbooked.discard(self)
        write(self._outcome)

    def _book_nothing(self) -> None:
        """Leave it to another worker, whose it is now."""
        self._booking = None
        self._shared.unbooked.discard(self)

    def _raise_head(self, head: int) -> Piece | None:
        """Let readers have what is there up to a sequence number; return what they are to be told of.

        Called with the lock held, in which it was found that they may have it.
        """
        shown = self.head
        if head <= shown:
            return None
        start = self._offsets[shown - 1] if shown else 0
        text = self._text[start : self._offsets[head - 1]].decode()
        self.head = head
        return Piece(head, head - shown, text)

    # Ours: what becomes of it

    def commit(self) -> Commit | None:
        if self.is_foreign or self.is_cut_off or self.is_dropped:
            return None
        with self._lock:
            total, last_event = len(self._offsets), self._last
            first = self._stored + 1
            if self._unsent is not None and len(self._unsent) <= MOST_CHUNKS:
                chunks, self._unsent = self._unsent, []
            else:
                last = min(total, self._stored + MOST_CHUNKS)
                ends = [self._offsets[first - 2] if first > 1 else 0, *self._offsets[first - 1 : last]]
                chunks = [bytes(self._text[start:end]) for start, end in pairwise(ends)]
                self._unsent = [] if last == total else None
        is_all = self._unsent is not None
        if not is_all:
            self._shared.changed(self)
        commit = Commit(self._shared.keys(self.stream_id), self.fence, first, chunks)
        if self.is_lost:
            commit.restore = self._shared.restoring(self)
            self.is_lost = False
        if is_all and last_event is not None:
            commit.finish = self._shared.finishing(self, total, last_event)
        return commit

    def committed(self, answer: Answer) -> None:
        if type(answer) is int:
            self._has_stored(answer)
            return
        kind = answer[0]
        if kind == b"cancel":
            self._has_stored(answer[1])
            self._shared.cancel_asked(self.stream_id)
        elif kind == b"ended" and self._last is not None:
            self._has_stored(len(self._offsets))
        else:
            self._not_written(answer)

    def finished(self, answer: Answer) -> None:
        last = self._last
        if answer[0] in (b"done", b"ended"):
            if last is not None:
                self._elsewhere = max(0, answer[1] - self._noted)
                self.book_as(BOOKED)
                self._close(last)
                self._shared.end_stored(self)
            self._is_resumable(has_end=True)
        else:
            self._not_written(answer)

    def _not_written(self, answer: Answer) -> None:
        kind = answer[0]
        if kind == b"behind":
            self._resend(answer[1])
        elif kind == b"missing":
            self.is_lost = True
            self._resend(0)
            self._shared.missed()
        elif kind == b"fenced":
            if not self.is_foreign and not self.is_cut_off:
                self._shared.fenced(self, answer[1])
        elif not self.is_lost:  # another answer of the same batch may have said so already
            self.not_committable()

    def not_committable(self) -> None:
        if self.is_foreign or self.is_cut_off or self.is_dropped:
            return
        self._shared.damaged(self.stream_id, "its record")
        self._repairs += 1
        if self._repairs > MOST_REPAIRS:
            self._shared.given_up(self)
            self.cut_off()
            self.book_as(BOOKED)
            return
        self.is_lost = True
        self._resend(0)

    def _resend(self, stored: int) -> None:
        self._stored = stored
        self._unsent = None
        self._shared.changed(self)

    def not_committed(self) -> None:
        self._unsent = None

    def _has_stored(self, head: int) -> None:
        if head > len(self._offsets):
            self.not_committable()  # nobody else writes it
            return
        with self._lock:
            self._stored = head
            self._shows_ahead = self.is_cut_off  # it answers again: readers wait until what they have is stored
            piece = self._raise_head(head)
        if piece is not None:
            self._tell(piece)
        self._is_resumable()

    def _is_resumable(self, *, has_end: bool = False) -> None:
        """Tell readers, if everything that they have is stored: an end that is known they may have at any moment."""
        with self._lock:
            if not self.is_unresumable or self._stored < self.head or self.is_cut_off:
                return
            if self._last is not None and not has_end:
                return
            self.is_unresumable = False
        self._nudge()

    def go_on_unstored(self) -> None:
        """Show what is there though the engine is away; readers are told first."""
        with self._lock:
            if self.is_foreign or (self.end is not None and not self.is_cut_off):
                return  # it has become another's, or ended, since it was looked at
            is_told = self.is_unresumable
            self._shows_ahead = self.is_unresumable = True
            piece = self._raise_head(len(self._offsets))
            last = self._last
        if not is_told:
            self._nudge()
        if piece is not None:
            self._tell(piece)
        if last is not None:
            self._close(last)

    def cut_off(self) -> None:
        """Go on to its end for its own readers alone."""
        self.is_cut_off = True
        self._unsent = None  # for nobody
        self.go_on_unstored()

    def _nudge(self) -> None:
        for reader in tuple(self._readers):
            reader.nudge()

    # Another's

    def give_up(self, head: int) -> bool:
        """Become a copy: another worker has taken it over. What was not shown is taken from there, if it got there.

        False when it cannot: its readers have more than the engine's head, or its end, or are about to.
        """
        with self._lock:
            if self.head > head or self.end is not None or (self.is_unresumable and self._last is not None):
                return False
            self._ending = True
            self.fence = 0
            self._last = None
            del self._text[self._offsets[self.head - 1] if self.head else 0 :]
            del self._offsets[self.head :]
            self._unsent = None
            self.owner = ""  # nobody's sign of life: it is looked up
            self.is_unresumable = self._shows_ahead = False
        self._book_nothing()
        self._nudge()
        return True

    def adopt(self, fence: int, owner: str) -> None:
        """Become ours: its producer is gone."""
        with self._lock:
            self.fence, self.owner = fence, owner
            self._stored = self.head
            self._unsent = []
            self._last = None
            self._outcome = None
            self._ending = False

    def take(self, entries: list[Any]) -> None:
        """Take entries of the engine's, what is known already among them.

        Shape: [[id, [name, value]], ...]. Raises: Overloaded; Damaged when one is none of a log's, or is missing, or
        when the end tells of another text.
        """
        chunks: list[str] = []
        ended: End | None = None
        with self._lock:  # the tail and who catches up may be at it together
            if self.is_dropped or not self.is_foreign:
                return
            head = self.head
            try:
                for entry_id, (name, value) in entries:
                    place, _, part = entry_id.partition(b"-")
                    if part != b"0":
                        raise Damaged("the place of an entry")
                    sequence = int(place)
                    if sequence <= head:
                        continue
                    if sequence != head + 1 or ended is not None:
                        raise Damaged("the order of its entries")
                    if name == b"t":
                        chunks.append(value.decode())
                        head += 1
                    elif name == b"e":
                        ended = records.read_end(value, sequence)
                    else:
                        raise Damaged("the name of an entry")
                if ended is not None:
                    self._judge(ended, "".join(chunks))
            except (ValueError, TypeError) as error:
                raise Damaged("an entry") from error
            text = "".join(chunks)
            if chunks:
                self._add(chunks, text.encode())
                self.head = head
        if chunks:
            self._tell(Piece(head, len(chunks), text))
        if ended is not None:
            self._ending = True
            self._close(ended)

    def _judge(self, end: End, rest: str) -> None:
        """Compare an end with the text that it tells of: what is here, and the rest. Raises: Damaged."""
        data = self._text + rest.encode()
        if (end.characters, end.sha256) != (len(data.decode()), hashlib.sha256(data).hexdigest()):
            raise Damaged("the text that its end tells of")

    def take_page(self, entries: list[Any], after: int) -> None:
        """Take what the engine has after a sequence number. Raises: Overloaded; Damaged also when it leads no further,
        so that who reads on until there is no more comes to an end."""
        self.take(entries)
        if entries and self.head <= after and self.is_copied():
            raise Damaged("the places of its entries")

    def attach(self, reader: MemoryReader) -> None:
        super().attach(reader)
        if self.is_dropped:
            reader.release()
        elif self.end is None and not self.is_cut_off:
            self._shared.attached(self)

    def release(self) -> None:
        """Send every reader away without an end; they may come back."""
        for reader in tuple(self._readers):
            reader.release()

    def settle(self, seconds: float) -> bool:
        return self.ended.wait(seconds)


class SharedStore(MemoryStore):
    """This worker's view of what all of them keep: its own logs, copies of others', and the engine beyond."""

    log_type = SharedLog

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
        super().__init__(max_active=max_active, budget_bytes=budget_bytes, retention_seconds=retention_seconds)
        self.worker = secrets.token_hex(8)
        self._tag = "{" + tag + "}"
        self._lease_seconds = lease_seconds
        self._read_note_seconds = min(5.0, abandoned_seconds / 3)
        self._kept_ms = int(retention_seconds * 1000)
        self._live_ms = int((generation_seconds + retention_seconds + 60) * 1000)
        self._copies: dict[str, SharedLog] = {}
        self._loading: dict[str, threading.Event] = {}
        self._recent: deque[tuple[float, str]] = deque(maxlen=MOST_RECENT)
        self._cancel: Callable[[str, str], object] = lambda stream_id, reason: None
        self._abort: Callable[[str], object] = lambda stream_id: None
        self._lost: Callable[[StreamLog, errors.ChatError], object] = lambda log, error: None
        self._adopting = False
        self._silent: set[str] = set()
        self._cancels: set[str] = set()
        self.unbooked: set[SharedLog] = set()
        self._waiting: Counter[str] = Counter()
        self._said_damaged: OrderedDict[str, None] = OrderedDict()
        self._next_round = 0.0
        self._next_note = 0.0
        self._next_publishing = 0.0
        self._published: dict[str, bytes] = {}
        name = f"chatwait-{self.worker}"
        self._committer = Committer(
            Connection(url, name=name, timeout_seconds=lease_seconds / 2), live_ms=self._live_ms, back=self._look_again
        )
        self._tail = Tail(
            Connection(url, name=f"{name}-tail", timeout_seconds=lease_seconds / 2),
            wake=self._wake_key(self.worker),
            woken=self._woken,
            broken=self._broken,
            nudge=self._nudge_tail,
        )

    def start(
        self,
        *,
        cancel: Callable[[str, str], object],
        abort: Callable[[str], object],
        lost: Callable[[StreamLog, errors.ChatError], object],
    ) -> None:
        self._cancel, self._abort, self._lost = cancel, abort, lost
        self._renew()
        self._committer.start()
        self._tail.start()
        self.flush()  # so that a worker whose engine is there is ready when it listens

    def close(self) -> None:
        """Let go of the engine, once it has what was appended, if it answers."""
        self._tail.stop()
        self._nudge_tail()
        self.flush()
        for log in list(self.unbooked):
            log.book_as(BOOKED)  # whose it will be, nobody here will hear any more
        self._committer.stop()
        self._committer.join()
        self._tail.join()

    def flush(self) -> None:
        """Wait until the engine has what was appended before; not when it is away."""
        with contextlib.suppress(errors.StoreUnavailable):
            self._committer.ask(("PING",))

    def ready(self) -> bool:
        return self._committer.is_answered

    # Keys

    def keys(self, stream_id: str) -> tuple[str, str]:
        """Name a stream's hash and its entries."""
        return f"{self._tag}:{stream_id}", f"{self._tag}:{stream_id}:log"

    def _binding_keys(self, log: MemoryLog) -> tuple[str, ...]:
        return () if log.binding is None else (f"{self._tag}:key:{log.binding.key}",)

    def _files_key(self, name: str) -> str:
        return f"{self._tag}:files:{name}"

    def _wake_key(self, worker: str) -> str:
        return f"{self._tag}:wake:{worker}"

    def _stops_key(self, worker: str) -> str:
        return f"{self._tag}:stops:{worker}"

    def _life_key(self, worker: str) -> str:
        return f"{self._tag}:worker:{worker}"

    # What the engine is told of a log

    def _fields(self, log: SharedLog) -> tuple[str | int, ...]:
        origin = log.origin
        return (
            *("owner", self.worker, "fence", log.fence, "head", 0, "bytes", 0, "attached", log.noted),
            *("correlation_id", origin.correlation_id, "model", origin.model, "created", origin.created),
            *("prompt_tokens", origin.prompt_tokens),
            *(() if log.binding is None else ("key", log.binding.key, "fingerprint", log.binding.fingerprint)),
        )

    @staticmethod
    def _bound_text(log: MemoryLog) -> str:
        return "" if log.binding is None else f"{log.stream_id} {log.binding.fingerprint}"

    def restoring(self, log: SharedLog) -> Command:
        keys = (*self.keys(log.stream_id), *self._binding_keys(log))
        return script(scripts.RESTORE, keys, log.fence, self._live_ms, self._bound_text(log), *self._fields(log))

    def finishing(self, log: SharedLog, count: int, end: End) -> Command:
        keys = (*self.keys(log.stream_id), *self._binding_keys(log))
        text = records.write_end(log.origin, end)
        remembered_ms = self._kept_ms + REMEMBERED_SECONDS * 1000
        return script(
            scripts.FINISH,
            keys,
            *(log.fence, count, text, records.end_kind(end), self._kept_ms, remembered_ms),
            *(int(end.frees_key), self._bound_text(log)),
        )

    # What logs tell

    def changed(self, log: SharedLog) -> None:
        self._committer.changed(log)

    def end_stored(self, log: SharedLog) -> None:
        """Hear that a log's end is stored."""
        log.end_read = True  # whoever has not read it can do so at any worker
        self._recent.append((time.monotonic(), log.stream_id))

    def missed(self) -> None:
        """Hear that the engine has lost a log of ours, and probably our sign of life: nobody may find one alone."""
        self._renew()

    def cancel_asked(self, stream_id: str) -> None:
        """Have one of ours ended with the next tick: to end one may take a while, and others wait for who says so."""
        self._cancels.add(stream_id)

    def attached(self, log: SharedLog) -> None:
        """Hear that somebody begins to read a log that goes on; who ends it counts the readers of all workers."""

        def heard(answers: list[Answer]) -> None:
            if answers[0] and type(answers[0]) is int:
                log.attach_noted()

        self._committer.post([script(scripts.ATTACH, self.keys(log.stream_id)[:1])], heard)

    def damaged(self, stream_id: str, what: str) -> None:
        """Say that what the engine holds of a stream is damaged: once, of those that were met last."""
        with self._lock:
            is_known = stream_id in self._said_damaged
            self._said_damaged[stream_id] = None
            if len(self._said_damaged) > MOST_RECENT:
                self._said_damaged.popitem(last=False)
        if not is_known:
            tell(facts.StreamDamaged(stream=log_name(stream_id), what=what))

    def given_up(self, log: SharedLog) -> None:
        """Hear that a log of ours is written no more. Without a fence it is nobody's: those elsewhere are told. Had
        another taken it over, that one writes it anew."""
        self._committer.post([("HDEL", self.keys(log.stream_id)[0], "fence")], _nothing)

    @contextlib.contextmanager
    def _gone_if_damaged(self, stream_id: str) -> Iterator[None]:
        """Raises: StreamExpired for Damaged."""
        try:
            yield
        except Damaged as error:
            self.damaged(stream_id, str(error))
            raise errors.StreamExpired("What is kept of it cannot be read any more.") from error

    def drop(self, log: SharedLog) -> None:
        """Forget a log that has not ended; whoever still holds it is sent away."""
        with self._lock:
            for kept in (self._live, self._copies):
                if kept.get(log.stream_id) is log:
                    del kept[log.stream_id]
                    break
            else:
                return  # it has ended meanwhile, or been dropped
            log.is_dropped = True
            log.release_prompt()
            self._bytes -= log.cost
            self._tail.unfollow(self.keys(log.stream_id)[1], log)
        log.release()

    def fenced(self, log: SharedLog, head: int) -> None:
        """Hear that a log of ours has been taken over: we were taken for dead."""
        name = log_name(log.stream_id)
        if not log.give_up(head):
            tell(facts.StreamCutOff(stream=name, correlation_id=log.origin.correlation_id))
            log.cut_off()
            log.book_as("response_cut_off")  # who has taken it over books it
            return
        tell(facts.StreamFenced(stream=name, correlation_id=log.origin.correlation_id))
        with self._lock:
            self._live.pop(log.stream_id, None)
            self._copies[log.stream_id] = log
        self._tail.follow(self.keys(log.stream_id)[1], log)
        self._abort(log.stream_id)

    def ended(self, log: MemoryLog) -> None:
        with self._lock:
            if self._copies.get(log.stream_id) is log:
                del self._copies[log.stream_id]
                self._tail.unfollow(self.keys(log.stream_id)[1], log)
            super().ended(log)

    def used(self, log: MemoryLog) -> None:
        super().used(log)
        assert isinstance(log, SharedLog)
        if log.end is not None:
            entries = self.keys(log.stream_id)[1]
            self._committer.post([("PEXPIRE", entries, self._kept_ms)], _nothing)
        elif log.is_foreign and not log.readers:
            self._note_reading([log])

    # Logs

    def knows(self, key: str) -> bool:
        return self._answers(("EXISTS", f"{self._tag}:key:{key}")) != [0]

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
        asking = log or self.log_type(self, new_stream_id(), origin, binding)
        keys = (self.keys(asking.stream_id)[0], *self._binding_keys(asking))
        arguments = (int(log is not None), self._live_ms, self._bound_text(asking), *self._fields(asking))
        try:
            (answer,) = self._committer.ask(script(scripts.CREATE, keys, *arguments))
        except errors.StoreUnavailable as error:
            if log is not None:
                self._lost(log, error)  # it may be there, and others may read it by its key by now
            raise
        if log is not None and (answer == 1 or answer == self._bound_text(log).encode()):
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
        with self._gone_if_damaged(binding.key):
            stream_id, fingerprint = records.read_binding(answer)
        if fingerprint != binding.fingerprint:
            raise errors.IdempotencyKeyReused
        try:
            return self.find(stream_id), False
        except errors.StreamUnknown:
            raise errors.StreamExpired from None

    def _begin(self, origin: Origin, binding: Binding | None, prompt_bytes: int) -> SharedLog:
        """Count a new log. Raises: ShuttingDown, Overloaded."""
        with self._lock:
            self.admit()
            log = self.log_type(self, new_stream_id(), origin, binding, prompt_bytes=self._counted(prompt_bytes))
            self._make_room(log.cost)
            self._bytes += log.cost
            self._prompt_bytes += log.prompt_bytes
            self._live[log.stream_id] = log
            return log

    def find(self, stream_id: str, *, reach: int = 0) -> SharedLog:
        log = self._known(stream_id)
        while log is None:
            log = self._load(stream_id)
        if log.head < reach and log.is_copied():
            self._catch_up(log, reach)
            if log.is_dropped:
                raise errors.Overloaded(retry_after_seconds=2)
        return log

    def _known(self, stream_id: str) -> SharedLog | None:
        """Return a log that is here; one that has expired here may still be there, where others have used it."""
        with self._lock:
            log = self._copies.get(stream_id) or self._kept(stream_id)
            assert log is None or isinstance(log, SharedLog)
            return log

    def _load(self, stream_id: str) -> SharedLog | None:
        """Make a copy of a log; None when another thread has been at it, and may have it now.

        Raises: StreamUnknown, StreamExpired, Overloaded, StoreUnavailable.
        """
        if not records.STREAM_ID.fullmatch(stream_id):
            raise errors.StreamUnknown
        with self._lock:
            loading = self._loading.get(stream_id)
            if loading is None:
                done = self._loading[stream_id] = threading.Event()
        if loading is not None:
            loading.wait(self._lease_seconds)
            return self._known(stream_id)
        try:
            with self._gone_if_damaged(stream_id):
                return self._copied(stream_id)
        finally:
            with self._lock:
                self._loading.pop(stream_id, None)
            done.set()

    def _copied(self, stream_id: str) -> SharedLog:
        hash_key, entries_key = self.keys(stream_id)
        known, page = self._answers(("HGETALL", hash_key), self._page(entries_key, 0))
        if not known:
            raise self._unknown()
        told = records.read_stream(known)
        if not page and told.is_ended:
            raise errors.StreamExpired
        log = self.log_type(self, stream_id, told.origin, told.binding)
        log.fence, log.owner, log.their_fence = 0, told.owner, told.fence
        log._ending = True
        with self._lock:
            self._make_room(log.cost)
            self._bytes += log.cost
            self._copies[stream_id] = log
        try:
            log.take_page(page, 0)
            while len(page) >= PAGE_ENTRIES and log.is_copied():
                after = log.head
                (page,) = self._answers(self._page(entries_key, after))
                log.take_page(page, after)
        except BaseException:
            if log.is_foreign:
                self.drop(log)
            raise
        if log.is_copied():
            self._tail.follow(entries_key, log)
        return log

    def _page(self, entries_key: str, after: int) -> Command:
        return ("XRANGE", entries_key, f"({after}-0", "+", "COUNT", PAGE_ENTRIES)

    def _answers(self, *commands: Command) -> list[Any]:
        """Raises: StoreUnavailable, Damaged."""
        answers = self._committer.ask(*commands)
        for answer in answers:
            if isinstance(answer, Refusal):
                if answer.is_of_a_record:
                    raise Damaged("the kind of a key")
                raise errors.StoreUnavailable(retry_after_seconds=2)
        return answers

    def _catch_up(self, log: SharedLog, reach: int) -> None:
        """Wait until a copy holds what a cursor says there is, or its log has ended, for a lease at most.

        It came from there a moment ago; or its worker shows what it could not store yet, which nobody here can know;
        or it is made up, and then this is all that it costs. Not many may wait for one stream, whose id may be known
        to somebody who means harm, and who has no room comes back. Raises: StoreUnavailable, StreamExpired.
        """
        with self._lock:
            waiting = self._waiting
            if waiting[log.stream_id] >= MOST_WAITING_FOR_ONE or waiting.total() >= MOST_WAITING:
                raise errors.StoreUnavailable(retry_after_seconds=1)
            waiting[log.stream_id] += 1
        try:
            with self._gone_if_damaged(log.stream_id):
                self._wait_for(log, reach)
        except errors.StreamExpired:
            self.drop(log)
            raise
        finally:
            with self._lock:
                waiting[log.stream_id] -= 1
                if not waiting[log.stream_id]:
                    del waiting[log.stream_id]

    def _wait_for(self, log: SharedLog, reach: int) -> None:
        until = time.monotonic() + self._lease_seconds
        pause = CATCH_UP_SECONDS
        while log.head < reach and log.is_copied():
            after = log.head
            told, page = self._answers(
                ("HGET", self.keys(log.stream_id)[0], "head"), self._page(self.keys(log.stream_id)[1], after)
            )
            if page:
                log.take_page(page, after)
                continue
            if told is None and not self._may_be_behind():
                return
            now = time.monotonic()
            if now >= until:
                if told is None:
                    raise errors.StoreUnavailable(retry_after_seconds=1)
                return
            time.sleep(min(pause, until - now))
            pause = min(2 * pause, CATCH_UP_AT_MOST_SECONDS)

    def _unknown(self) -> errors.ChatError:
        """What the engine does not know, it may have lost a moment ago, and be given again by who generates it."""
        return errors.StoreUnavailable(retry_after_seconds=1) if self._may_be_behind() else errors.StreamUnknown()

    def _may_be_behind(self) -> bool:
        """The engine was away not long ago: its producer may still have to store what its readers have."""
        back_at = self._committer.back_at
        return self._committer.contact_since is None or (
            back_at is not None and time.monotonic() - back_at < 2 * self._lease_seconds
        )

    def cancel(self, stream_id: str) -> tuple[End | None, int]:
        with self._gone_if_damaged(stream_id):
            return self._cancelled(stream_id)

    def _cancelled(self, stream_id: str) -> tuple[End | None, int]:
        hash_key, entries_key = self.keys(stream_id)
        (told,) = self._answers(("HGET", hash_key, "owner"))
        if told is None:
            raise self._unknown()
        owner = records.read_owner(told)
        keys = (hash_key, self._wake_key(owner), self._stops_key(owner))
        _, (told_head, end), last = self._answers(
            script(scripts.CANCEL, keys, owner, stream_id, self._live_ms),
            ("HMGET", hash_key, "head", "end"),
            ("XREVRANGE", entries_key, "+", "-", "COUNT", 1),
        )
        head = records.read_number(told_head, "head")
        if end is None:
            return None, head
        if not last:
            raise errors.StreamExpired
        return records.read_end(records.damage("an entry", lambda: last[0][1][1]), head + 1), head

    # Now and then

    def sweep(self, now: float) -> None:
        super().sweep(now)
        cancels, self._cancels = self._cancels, set()
        for stream_id in cancels:
            self._cancel(stream_id, "client")
        if self._committer.is_late(now):
            for log in list(self._live.values()):
                assert isinstance(log, SharedLog)
                log.go_on_unstored()
        real = time.monotonic()
        if real >= self._next_round:
            self._next_round = real + min(ROUND_SECONDS, self._lease_seconds / 7)
            self._renew()
            self._committer.post([("SRANDMEMBER", self._stops_key(self.worker), MOST_STOPS)], self._heard_stops)
            self._look_at_owners()
            self._drop_idle(real)
        if real >= self._next_note:
            self._next_note = real + self._read_note_seconds
            read = [log for log in list(self._copies.values()) if log.unread_since is None]
            self._note_reading(read)
            self._look_at_records(read)
        if real >= self._next_publishing:
            self._next_publishing = real + PUBLISH_SECONDS
            for name in self._published:
                self._republish(name)

    def _renew(self) -> None:
        """Give a sign of life. Where the last one is gone before its time, the engine has lost what it had."""
        key, lease_ms = self._life_key(self.worker), int(self._lease_seconds * 1000)

        def heard(answers: list[Answer]) -> None:
            if answers[0] == 0:
                self._look_again()

        # To expire later is not refused by an engine that has no memory left.
        self._committer.post([("PEXPIRE", key, lease_ms), ("SET", key, "1", "PX", lease_ms)], heard)

    def _heard_stops(self, answers: list[Answer]) -> None:
        """End what others have asked for, and forget what is over."""
        key, (told,) = self._stops_key(self.worker), answers
        if isinstance(told, Refusal):
            if told.is_of_a_record:
                self._committer.post([("DEL", key)], _nothing)
            return
        over: list[bytes] = []
        for member in told:
            stream_id = member.decode(errors="replace")
            if stream_id in self._live:
                self.cancel_asked(stream_id)
            else:
                over.append(member)
        if over:
            self._committer.post([("SREM", key, *over)], _nothing)

    def _drop_idle(self, now: float) -> None:
        for log in list(self._copies.values()):
            since = log.unread_since
            if since is not None and not log.readers and now - since > IDLE_COPY_SECONDS:
                self.drop(log)

    def _note_reading(self, logs: list[SharedLog]) -> None:
        """Tell producers elsewhere who is read here: nobody reads is why they would cancel."""
        by_owner: dict[str, list[str]] = {}
        for log in logs:
            by_owner.setdefault(log.owner, []).append(log.stream_id)
        commands: list[Command] = []
        for owner, ids in by_owner.items():
            commands.append(self._waking(owner, "reads", " ".join(ids)))
        if commands:
            self._committer.post(commands, _nothing)

    def _look_at_records(self, logs: list[SharedLog]) -> None:
        """Send readers away whose stream has had no record that leads to its end for a while, though its owner lives.

        It has given the stream up, for it looks at its own whenever it hears that somebody reads it.
        """

        def heard(answers: list[Answer]) -> None:
            now = time.monotonic()
            for log, told in zip(logs, answers, strict=True):
                if _leads_to_its_end(told) or log.missed_since or not self._has_long_reached_the_engine():
                    log.spoiled_since = None
                    continue
                log.spoiled_since = log.spoiled_since or now
                if now - log.spoiled_since > 2 * self._lease_seconds and log.is_copied():
                    self._broken(log, Damaged("its record"))

        if logs:
            commands = [("HMGET", self.keys(log.stream_id)[0], "owner", "fence", "end") for log in logs]
            self._committer.post(commands, heard)

    def _woken(self, entries: list[Any]) -> None:
        """Hear what other workers want of ours."""
        for _, fields in entries:
            for name, value in zip(fields[::2], fields[1::2], strict=True):
                if name == b"cancel":
                    self.cancel_asked(value.decode(errors="replace"))
                elif name == b"reads":
                    for stream_id in value.decode(errors="replace").split():
                        log = self._live.get(stream_id)
                        if isinstance(log, SharedLog):
                            log.read_elsewhere()
                            self._committer.changed(log)  # its record may be damaged, and it silent

    def _nudge_tail(self) -> None:
        self._committer.post([self._waking(self.worker, "follow", "")], _nothing)

    def _waking(self, worker: str, what: str, which: str) -> Command:
        return script(scripts.WAKE, (self._wake_key(worker),), what, which, self._live_ms)

    def _broken(self, log: Any, error: Exception) -> None:
        """A copy cannot go on: its readers come back, here or elsewhere."""
        if isinstance(error, Damaged):
            self.damaged(log.stream_id, str(error))
        self.drop(log)

    def _look_again(self) -> None:
        """After the engine was away it may have lost what it had: look at all that is ours and young."""
        self._next_publishing = 0.0
        for log in list(self._live.values()):
            assert isinstance(log, SharedLog)
            self._committer.changed(log)
        since = time.monotonic() - RECENT_SECONDS
        recent, self._recent = self._recent, deque(maxlen=MOST_RECENT)
        for ended_at, stream_id in recent:
            ended = self._finished.get(stream_id)
            if ended_at > since and isinstance(ended, SharedLog):
                self._committer.changed(ended)

    # Files of pages

    def publish(self, name: str, content: bytes) -> None:
        self._published[name] = content
        self._next_publishing = 0.0

    def published(self, name: str) -> bytes | None:
        content: bytes | None = None
        try:
            (content,) = self._answers(("GET", self._files_key(name)))
        except Damaged:
            self._committer.post([("DEL", self._files_key(name))], _nothing)  # who has the files gives them anew
        return content

    def _republish(self, name: str) -> None:
        """Put off its end; where the engine has not got it (at first, or after it was empty), give it the whole."""
        key = self._files_key(name)

        def heard(answers: list[Answer]) -> None:
            if answers[0] == 0:
                self._committer.post([("SET", key, self._published[name], "EX", PUBLISHED_SECONDS)], _nothing)

        self._committer.post([("EXPIRE", key, PUBLISHED_SECONDS)], heard)

    # Producers that are gone

    def _look_at_owners(self) -> None:
        if not self._has_long_reached_the_engine():
            return
        owners = list({log.owner for log in list(self._copies.values())})

        def heard(answers: list[Answer]) -> None:
            if not self._has_long_reached_the_engine():
                return  # the question has waited for the engine to come back
            silent = {owner for owner, answer in zip(owners, answers, strict=True) if answer == 0}
            gone = silent & self._silent  # twice: the engine may have lost the sign, and not its worker
            self._silent = silent
            gone.add(self.worker)  # a copy of what is ours: it was given to us, and we did not hear of it
            orphans = [log for log in list(self._copies.values()) if log.owner in gone]
            if orphans and not self._adopting:
                self._adopting = True
                threading.Thread(target=self._adopt, args=(orphans,), name="adoption", daemon=True).start()

        if owners:
            self._committer.post([("EXISTS", self._life_key(owner)) for owner in owners], heard)

    def _has_long_reached_the_engine(self) -> bool:
        """Who could not reach the engine itself cannot say who else could not; every lease may have lapsed."""
        since = self._committer.contact_since
        return since is not None and time.monotonic() - since >= self._lease_seconds

    def _adopt(self, logs: list[SharedLog]) -> None:
        try:
            for begin in range(0, len(logs), MOST_ADOPTED):
                some = logs[begin : begin + MOST_ADOPTED]
                commands: list[Command] = []
                for log in some:
                    hash_key, life_key = self.keys(log.stream_id)[0], self._life_key(log.owner)
                    commands.append(
                        script(scripts.ADOPT, (hash_key, life_key), log.owner, log.their_fence, self.worker)
                    )
                    commands.append(("HMGET", hash_key, "owner", "fence", "end", "head"))
                answers = self._committer.ask(*commands)
                for log, told in zip(some, answers[1::2], strict=True):
                    self._try_to_adopt(log, told)
        except errors.ChatError:
            pass  # the next round goes on with it
        finally:
            self._adopting = False

    def _try_to_adopt(self, log: SharedLog, told: Answer) -> None:
        """Go on with one of many; what it fails at is not the others' fault."""
        if isinstance(told, Refusal) and not told.is_of_a_record:
            return
        try:
            with self._gone_if_damaged(log.stream_id):
                if isinstance(told, Refusal):
                    raise Damaged("the kind of a key")
                self._adopt_one(log, *told)
        except errors.StreamExpired:
            self.drop(log)  # its readers come back, and are told
        except errors.ChatError:
            pass  # the next round goes on with it
        except Exception:
            logging.getLogger(__name__).exception("a log could not be taken over")
            self.drop(log)

    def _adopt_one(
        self, log: SharedLog, owner: bytes | None, fence: bytes | None, end: bytes | None, head: bytes | None
    ) -> None:
        """Go on with a log as the engine has it now: ours to end, or another's, or not there."""
        reach = records.read_number(head, "head") if owner is not None else 0
        if not log.is_copied():
            if owner == self.worker.encode() and end is None and log.is_dropped:
                self.find(log.stream_id)  # it is ours to end now: the next round does it
            return
        if owner is None:
            # The engine has lost it. Its producer, if it lives, writes it anew; else what is here is all there is.
            now = time.monotonic()
            log.missed_since = log.missed_since or now
            if now - log.missed_since < self._lease_seconds:
                return
            log.adopt(log.their_fence + 1 + secrets.randbelow(1 << 30), self.worker)  # others may be at it too
            log.is_lost = True
        elif owner != self.worker.encode() or end is not None:
            log.owner = records.read_owner(owner)
            log.their_fence, log.missed_since = records.read_number(fence, "fence", least=1), None
            return
        else:
            while log.head < reach and log.is_copied():
                after = log.head
                (page,) = self._answers(self._page(self.keys(log.stream_id)[1], after))
                if not page:
                    break
                log.take_page(page, after)
            if not log.is_copied():
                return
            log.adopt(records.read_number(fence, "fence", least=1), self.worker)
        with self._lock:
            if self._copies.get(log.stream_id) is log:
                del self._copies[log.stream_id]
            self._live[log.stream_id] = log
            self._tail.unfollow(self.keys(log.stream_id)[1], log)
        self._lost(log, errors.ProducerLost())


def _leads_to_its_end(told: Answer) -> bool:
    """Judge a hash's owner, fence and end as a copy that has not ended finds them."""
    if isinstance(told, Refusal):
        return not told.is_of_a_record
    owner, fence, end = told
    try:
        records.read_owner(owner)
        records.read_number(fence, "fence", least=1)
    except Damaged:
        return False
    return end is None


def _nothing(_: list[Answer]) -> None:
    """Stand for somebody who does not care."""
