"""The role of a log that this worker writes: what Valkey has of it, and what Valkey is still to be given.

The committer calls `commit`, writes what it returns, and reports the result. No method may wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Final, Protocol

from app.streams.interface import Binding, End, Kind, Origin, Totals
from app.streams.shared.booking import BOOKED, CUT_OFF_BOOKED, Booking, Unbooked
from app.streams.shared.committer import Commit
from app.streams.shared.connection import Command
from app.streams.shared.records import field_of
from app.streams.shared.replies import (
    Behind,
    CommitReply,
    Done,
    Ended,
    Erased,
    Fenced,
    FinishReply,
    Missing,
    Written,
)
from app.streams.shared.state import State
from app.streams.shared.unshown import entries_of
from app.streams.text import Text

__all__ = ["Desk", "Owned", "OwnedLog"]

MOST_REPAIRS = 3
"""How often a damaged stream is written anew. After that the log goes on for the readers here alone."""

MOST_RECORDS = 512
"""How many records of a log one batch takes."""


FIRST_RECORDS: Final[dict[Kind, int]] = {"text": 1, "chunks": 2, "json": 1}
"""With so many records an answer has begun. OpenAI's first chunk tells the role alone."""


class Desk(Protocol):
    """What an owned log asks of its store."""

    unbooked: Unbooked

    def changed(self, owned: Owned) -> None:
        """Have what the log has written, soon."""

    def keys(self, stream_id: str) -> tuple[str, str]: ...

    def restoring(self, owned: Owned) -> Command: ...

    def finishing(self, owned: Owned, end: End) -> Command: ...

    def missed(self) -> None:
        """Hear that Valkey has lost a stream."""

    def cancel_asked(self, stream_id: str) -> None:
        """Hear that another worker was asked to end this one's stream."""

    def damaged(self, stream_id: str, what: str) -> None: ...

    def given_up(self, stream_id: str) -> None:
        """Hear that this worker stops writing a stream that no other worker writes."""

    def taken_over(self, log: OwnedLog, *, is_followed: bool) -> None:
        """Hear that another worker writes the stream. `is_followed`: the log is a copy now. Else the log is cut off."""

    def end_stored(self, stream_id: str) -> None: ...

    def erased(self, stream_id: str) -> None:
        """Hear that another worker has erased the stream."""


class OwnedLog(Protocol):
    """The log, as this role knows it."""

    stream_id: str
    origin: Origin
    binding: Binding | None
    state: State
    owned: Owned | None
    is_erased: bool
    records: Text
    lock: AbstractContextManager[object]
    noted: int
    attached_elsewhere: int

    def show_decided(self, end: End) -> None: ...

    def show_stored(self, head: int) -> None: ...

    def end_stored(self, end: End) -> None: ...

    def hand_over(self, head: int) -> bool: ...

    def cut_off(self) -> None: ...


class Owned:
    """The role of a log that this worker writes. `fence` is the worker's right to write the stream."""

    __slots__ = ("_desk", "_repairs", "_unsent", "_written", "booking", "end", "fence", "is_closed", "log")

    def __init__(self, log: OwnedLog, desk: Desk, fence: int, *, written: int | None) -> None:
        """`written` is the number of records that Valkey has, or None when it has not even the stream."""
        self.log = log
        self.fence = fence
        self.end: End | None = None
        """The end, from the moment when it is decided. Readers may get it later."""
        self.booking = Booking(desk.unbooked)
        self.is_closed = False
        """No record is appended any more: the end is being written, or is decided."""
        self._desk = desk
        self._written = written
        self._unsent: list[bytes] | None = [] if written is not None else None
        """The records that Valkey has not been given. None: the next commit reads them from the log's text."""
        self._repairs = 0

    @property
    def written(self) -> int:
        """How many records Valkey has."""
        return self._written or 0

    @property
    def is_awaited(self) -> bool:
        """Readers have nothing of the answer yet, or wait for its end. False while Valkey has lost the stream."""
        written = self._written
        return written is not None and (self.end is not None or written < FIRST_RECORDS[self.log.origin.kind])

    def append(self, records: Sequence[str], data: bytes) -> None:
        """Hear of new records, whose UTF-8 together is `data`. Called with the log's lock held."""
        unsent = self._unsent
        if unsent is None:
            return
        if len(records) == 1:
            unsent.append(data)
        else:
            unsent += [record.encode() for record in records]

    @property
    def is_sending(self) -> bool:
        """New records are kept for the next commit. False: the commit reads them from the log."""
        return self._unsent is not None

    def append_entries(self, entries: list[bytes]) -> None:
        """Hear of new records as Valkey keeps them. Called with the log's lock held."""
        if self._unsent is not None:
            self._unsent += entries

    def stop(self) -> None:
        """Keep nothing more for Valkey."""
        self._unsent = None

    def changed(self) -> None:
        """Have new records written, unless the log is no longer written."""
        if self.log.state.is_written:
            self._desk.changed(self)

    # How the end is decided

    def begin_end(self) -> bool:
        with self.log.lock:
            if self.is_closed:
                return False
            self.is_closed = True
            return True

    def go_on(self) -> None:
        self.is_closed = False

    def is_decided(self) -> bool:
        return self.end is not None or self.log.owned is not self or self.log.is_erased

    def totals(self) -> Totals:
        return self.log.records.totals()

    def decide(self, end: End) -> bool:
        with self.log.lock:
            if self.log.owned is not self:
                return False  # another worker has taken the log over while the end was written
            self.end = end
        self.log.show_decided(end)
        self.changed()
        return True

    # What the committer asks and tells

    def commit(self) -> Commit | None:
        log = self.log
        with log.lock:
            if not self._is_written():
                return None
            total, end = len(log.records), self.end
            is_lost, first = self._written is None, self.written + 1
            if self._unsent is not None and len(self._unsent) <= MOST_RECORDS:
                records, self._unsent = self._unsent, []
            else:
                last = min(total, first - 1 + MOST_RECORDS)
                records = entries_of(log.records, first, last)
                self._unsent = [] if last == total else None
            is_all = self._unsent is not None
            if is_lost:
                self._written = 0
        if not is_all:
            self.changed()
        commit = Commit(self._desk.keys(log.stream_id), self.fence, first, records, field=field_of(log.origin.kind))
        if is_lost:
            commit.restore = self._desk.restoring(self)
        if is_all and end is not None:
            commit.finish = self._desk.finishing(self, end)
        return commit

    def committed(self, reply: CommitReply) -> None:
        if isinstance(reply, Written):
            self._has_written(reply.head)
            if reply.is_cancelled:
                self._desk.cancel_asked(self.log.stream_id)
        elif isinstance(reply, Ended) and self.end is not None:
            self._has_written(len(self.log.records))
        else:
            self._not_written(reply)

    def finished(self, reply: FinishReply) -> None:
        if not isinstance(reply, Done | Ended):
            self._not_written(reply)
        elif self.end is not None and self.log.owned is self:
            log = self.log
            log.attached_elsewhere = max(0, reply.attached - log.noted)
            self.booking.under(BOOKED)
            log.end_stored(self.end)
            self._desk.end_stored(log.stream_id)

    def not_committed(self) -> None:
        """Hear that Valkey did not answer. The records are sent again, because Valkey may not have them. Sending twice
        is idempotent."""
        self._unsent = None

    def not_committable(self) -> None:
        """Write a damaged stream anew. After MOST_REPAIRS give it up."""
        if not self._is_written():
            return
        self._desk.damaged(self.log.stream_id, "its record")
        self._repairs += 1
        if self._repairs > MOST_REPAIRS:
            self._desk.given_up(self.log.stream_id)
            self._cut_off(BOOKED)
        else:
            self._send_again(None)

    # What becomes of it

    def _is_written(self) -> bool:
        """Tell whether this is still the log's role, and whether the log is still written."""
        return self.log.owned is self and self.log.state.is_written

    def _has_written(self, head: int) -> None:
        if self.log.owned is not self:
            return
        if head > len(self.log.records):
            self.not_committable()  # nobody else writes the stream, so it is damaged
            return
        self._written = head
        self.log.show_stored(head)

    def _not_written(self, reply: CommitReply | FinishReply) -> None:
        is_lost = self._written is None  # as another reply of the same batch has said
        if isinstance(reply, Erased):
            self._desk.erased(self.log.stream_id)
        elif isinstance(reply, Missing):
            self._send_again(None)
            self._desk.missed()
        elif isinstance(reply, Fenced):
            if self._is_written():
                self._fenced(reply.head)
        elif isinstance(reply, Behind) and not is_lost:
            self._send_again(reply.head)
        elif not is_lost:
            self.not_committable()

    def _send_again(self, written: int | None) -> None:
        self._written = written
        self._unsent = None
        self.changed()

    def _fenced(self, head: int) -> None:
        """Another worker took this one for dead."""
        if self.log.hand_over(head):
            self._desk.taken_over(self.log, is_followed=True)
        else:
            self._desk.taken_over(self.log, is_followed=False)
            self._cut_off(CUT_OFF_BOOKED)  # the other worker books the log's end

    def _cut_off(self, name: str) -> None:
        self.log.cut_off()
        self.booking.under(name)
