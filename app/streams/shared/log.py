"""One generation's log as one of several workers has it.

Readers hold the log. Its role says what may happen to the log: `Owned` where this worker writes it, `Copy` where
another worker does. The role changes inside the log. The state says which records readers may have (`state.py`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from app.platform.gevent_loop import plain_lock
from app.streams.chunk import Chunk
from app.streams.chunk_text import ChunkText, text_for
from app.streams.finishing import finish_once
from app.streams.interface import End, Piece, Totals
from app.streams.readable import ReadableLog
from app.streams.readership import LogReader, Readership
from app.streams.retention import LOG_OVERHEAD_BYTES, Keeper
from app.streams.shared import state
from app.streams.shared.copy import Copy
from app.streams.shared.owned import Desk, Owned
from app.streams.shared.records import Stream
from app.streams.shared.state import Arrow, State, step
from app.streams.shared.unshown import Unshown, written

__all__ = ["SharedLog", "SharingKeeper"]


class SharingKeeper(Keeper["SharedLog"], Protocol):
    """The store of a log that several workers share."""

    def attached(self, log: SharedLog) -> None:
        """Hear that a reader has attached to a log that has not ended."""

    def erased(self, log: SharedLog) -> None:
        """Hear that another worker has erased the log."""


class SharedLog(ReadableLog):
    """The log of one stream. Only a store builds logs."""

    __slots__ = (
        "_has_end",
        "_keeper",
        "_read_elsewhere_at",
        "_readership",
        "_unshown",
        "attached_elsewhere",
        "binding",
        "copy",
        "cost",
        "end",
        "end_read",
        "head",
        "is_erased",
        "lock",
        "noted",
        "origin",
        "owned",
        "prompt_bytes",
        "records",
        "state",
        "stream_id",
    )

    def __init__(self, keeper: SharingKeeper, stream: Stream, *, prompt_bytes: int = 0) -> None:
        self.stream_id = stream.stream_id
        self.origin = stream.origin
        self.binding = stream.binding
        self.head = 0
        self.end: End | None = None
        self.end_read = False
        self.is_erased = False
        self.prompt_bytes = prompt_bytes
        self.cost = LOG_OVERHEAD_BYTES + prompt_bytes
        self.used_at = time.monotonic()
        self.state = State.STORED
        self.owned: Owned | None = None
        self.copy: Copy | None = None
        self.noted = 0
        """How many of the readers that attached here Valkey knows of."""
        self.attached_elsewhere = 0
        self._keeper = keeper
        self.records = text_for(stream.origin.kind)
        self._has_end = threading.Event()
        self._unshown = Unshown()
        self._read_elsewhere_at = 0.0
        self.lock = plain_lock()
        self._readership = Readership(self.lock)

    @classmethod
    def begun(cls, keeper: SharingKeeper, desk: Desk, stream: Stream, *, prompt_bytes: int) -> SharedLog:
        """Build a log that this worker begins."""
        log = cls(keeper, stream, prompt_bytes=prompt_bytes)
        log.owned = Owned(log, desk, stream.fence, written=0)
        return log

    @classmethod
    def copied(cls, keeper: SharingKeeper, stream: Stream) -> SharedLog:
        """Build an empty copy of another worker's log."""
        log = cls(keeper, stream)
        log.copy = Copy(stream.owner, stream.fence)
        log.state = State.FOLLOWED
        return log

    # What several workers need to know

    @property
    def sharing(self) -> SharedLog:
        return self

    @property
    def is_foreign(self) -> bool:
        return self.copy is not None

    @property
    def is_followed(self) -> bool:
        """The log is a copy that has not ended."""
        return self.state is State.FOLLOWED

    @property
    def is_dropped(self) -> bool:
        return self.state is State.DROPPED

    @property
    def is_unresumable(self) -> bool:
        return self.state.is_unresumable

    @property
    def stored(self) -> int:
        return self.head if self.owned is None else self.owned.written

    def settle(self, seconds: float) -> bool:
        return self._has_end.wait(seconds)

    # What is appended

    def append(self, *records: str) -> bool:
        data = "".join(records).encode()
        with self.lock:
            owned = self.owned
            if owned is None or owned.is_closed:
                return False
            self._add(records, data)
            owned.append(records, data)
            piece = self._raise_head(len(self.records)) if self.state.shows_ahead else None
        if piece is not None:
            self._readership.tell(piece)
        owned.changed()
        return True

    def append_chunks(self, chunks: Sequence[Chunk]) -> bool:
        with self.lock:
            owned = self.owned
            if owned is None or owned.is_closed:
                return False
            first = len(self.records) + 1
            self._add_chunks(chunks)
            self._unshown.add(chunks)
            if owned.is_sending:
                owned.append_entries(written(self.records, chunks, first))
            piece = self._raise_head(len(self.records)) if self.state.shows_ahead else None
        if piece is not None:
            self._readership.tell(piece)
        owned.changed()
        return True

    def _add_chunks(self, chunks: Sequence[Chunk]) -> None:
        """Keep records without showing them. Called with the lock held."""
        records = self.records
        assert isinstance(records, ChunkText)
        data = "".join([chunk.text for chunk in chunks]).encode()
        size = records.size_with_chunks(chunks, data) + LOG_OVERHEAD_BYTES
        if size > self.cost:
            self._keeper.make_room_for(self, size)
        records.add_chunks(chunks, data)

    def _add(self, records: Sequence[str], data: bytes) -> None:
        """Keep records, whose UTF-8 together is `data`, without showing them. Called with the lock held."""
        text = self.records
        size = text.size_with(data, len(records)) + LOG_OVERHEAD_BYTES
        if size > self.cost:
            self._keeper.make_room_for(self, size)
        text.add(records, data)

    def release_prompt(self) -> None:
        self._keeper.release_prompt(self)

    def _raise_head(self, head: int) -> Piece | None:
        """Let readers have the records up to `head`, and return those that are new to them. Called with the lock held,
        under which the caller has found that readers may have these records."""
        piece = self._unshown.take(self.records, self.head, head)
        if piece is not None:
            self.head = head
        return piece

    # Its end

    def finish(self, write: Callable[[Totals], End]) -> bool:
        owned = self.owned
        return owned is not None and finish_once(owned, write)

    def show_decided(self, end: End) -> None:
        """Hear that the end is decided. Readers that get records before they are stored get the end too."""
        if self.state.shows_ahead:
            self._show_end(end)

    def book(self, write: Callable[[str], None]) -> None:
        owned = self.owned
        if owned is not None:  # otherwise another worker has taken the log over, and books its end
            owned.booking.by(write)

    def _show_end(self, end: End) -> None:
        """Give readers the end, and free what is no longer needed."""
        with self.lock:
            if self.end is not None:
                return
            self.end = end
        self.records.pack()
        self.used_at = time.monotonic()
        self._keeper.ended(self)
        self._readership.nudge()
        self._has_end.set()

    # Steps from state to state

    def show_stored(self, head: int) -> None:
        """Hear that Valkey has the records up to `head`. Readers may have these, and wait for the others."""
        with self.lock:
            owned = self.owned
            if owned is None:
                return
            if self.state is State.AHEAD:
                self._go(state.ANSWERED)
            piece = self._raise_head(head)
            # A decided end may reach readers at any moment, so the end must be stored too.
            is_resumable = self.state is State.CATCHING_UP and head >= self.head and owned.end is None
            if is_resumable:
                self._go(state.CAUGHT_UP)
        if piece is not None:
            self._readership.tell(piece)
        if is_resumable:
            self._readership.nudge()

    def show_late(self) -> None:
        """Valkey is away: readers are told so, and have what is there."""
        if self.end is None:
            self._show_all(state.LATE)

    def cut_off(self) -> None:
        """Go on to the end for the readers here alone."""
        self._show_all(state.CUT_OFF)

    def _show_all(self, arrow: Arrow) -> None:
        with self.lock:
            owned = self.owned
            if owned is None or self.state not in arrow.sources:
                return
            was_told = self.is_unresumable
            self._go(arrow)
            if not self.state.is_written:
                owned.stop()
            piece, end = self._raise_head(len(self.records)), owned.end
        if not was_told:
            self._readership.nudge()  # readers are told that they have more than is stored before they get it
        if piece is not None:
            self._readership.tell(piece)
        if end is not None:
            self._show_end(end)

    def end_stored(self, end: End) -> None:
        """Hear that Valkey has the end and all records. Readers get the end."""
        with self.lock:
            if self.owned is not None and self.state in state.END_STORED.sources:
                self._go(state.END_STORED)
        self._show_end(end)
        self.end_read = True  # a client that has not read the end can do so at any worker
        self._readership.nudge()

    def hand_over(self, head: int) -> bool:
        """Become a copy: another worker has taken the log over, and has the records up to `head`. Records that readers
        have not seen are dropped here. The copy gets them back from Valkey, if they are there.

        False when that is not possible: readers have more than `head`, or have the end, or may get the end at any
        moment.
        """
        with self.lock:
            owned = self.owned
            if owned is None or self.state not in state.TAKEN_OVER.sources or self.head > head or self.end is not None:
                return False
            if self.is_unresumable and owned.end is not None:
                return False
            self._go(state.TAKEN_OVER)
            self.records.cut(self.head)
            self._unshown.clear()
            self.owned = None
            self.copy = Copy("", 0)  # the owner and its fence are not known yet
        owned.booking.leave()
        self._readership.nudge()
        return True

    def adopt(self, desk: Desk, fence: int, *, is_lost: bool) -> bool:
        """Become this worker's log, because the producer is gone. `is_lost`: Valkey has lost the stream too.

        False when the log is no longer followed."""
        with self.lock:
            if self.state not in state.ADOPTED.sources:
                return False
            self._go(state.ADOPTED)
            self.copy = None
            self.owned = Owned(self, desk, fence, written=None if is_lost else self.head)
            return True

    def take(self, entries: list[Any]) -> None:
        """Take entries that the producer has stored, and pass over known ones. Do nothing when the log is no longer
        followed.

        Raises: Overloaded; Damaged when an entry is malformed or missing, or when the end does not fit the text.
        """
        with self.lock:  # the tail and a request that catches up may call this at the same time
            copy = self.copy
            if copy is None or self.state is not State.FOLLOWED:
                return
            found, end = copy.read(entries, self.head, self.records)
            if found.texts:
                if found.chunks:
                    self._add_chunks(found.chunks)
                else:
                    self._add(found.texts, found.text.encode())
                self.head = len(self.records)
            if end is not None:
                self._go(state.END_READ)
        if found.is_erased:
            self._keeper.erased(self)
        if found.texts:
            self._readership.tell(Piece(self.head, len(found.texts), found.text, found.chunks or None))
        if end is not None:
            self._show_end(end)

    def drop(self) -> bool:
        """Note that the store keeps the log no longer. False when the log has ended."""
        with self.lock:
            if self.state not in state.DROPPED.sources:
                return False
            self._go(state.DROPPED)
            return True

    def erase(self) -> None:
        """Forget the records for good, and send the readers away."""
        with self.lock:
            if self.is_erased:
                return
            self.is_erased = True
            if self.owned is not None:
                self.owned.is_closed = True
                self.owned.stop()
            self.state = state.State.DROPPED
            self.head = 0
            self.records = text_for(self.origin.kind)
            self._unshown.clear()
        self._has_end.set()
        self._readership.release()

    def _go(self, arrow: Arrow) -> None:
        """Change the state. Called with the lock held."""
        self.state = step(self.state, arrow)

    # Its readers

    def attach(self, reader: LogReader) -> None:
        self._readership.add(reader)
        if self.is_dropped:
            reader.release()
        elif self.end is None and self.state is not State.CUT_OFF and reader.is_counted:
            self._keeper.attached(self)

    def release(self) -> None:
        """Send all readers away without an end. They may come back."""
        self._readership.release()

    def read_elsewhere(self) -> None:
        """Note that somebody reads the log at another worker."""
        self._read_elsewhere_at = time.monotonic()

    @property
    def unread_since(self) -> float | None:
        """Readers at other workers count too. Those workers report them now and then."""
        since = self._readership.unread_since
        return None if since is None else max(since, self._read_elsewhere_at)

    @property
    def resumes(self) -> int:
        return max(0, self._readership.attached + self.attached_elsewhere - 1)
