"""One generation's log in the memory of one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from app.platform.gevent_loop import plain_lock
from app.streams.chunk import Chunk
from app.streams.chunk_text import ChunkText, text_for
from app.streams.finishing import finish_once
from app.streams.interface import Binding, End, Origin, Piece, Totals
from app.streams.readable import ReadableLog
from app.streams.readership import LogReader, Readership
from app.streams.retention import LOG_OVERHEAD_BYTES, Keeper
from app.streams.text import Text

__all__ = ["MemoryLog"]


class MemoryLog(ReadableLog):
    """The log of one stream. Only a store builds logs."""

    sharing = None

    __slots__ = (
        "_is_closed",
        "_keeper",
        "_lock",
        "_readership",
        "binding",
        "cost",
        "end",
        "end_read",
        "head",
        "is_erased",
        "origin",
        "prompt_bytes",
        "records",
        "stream_id",
    )

    def __init__(
        self, keeper: Keeper[MemoryLog], stream_id: str, origin: Origin, binding: Binding | None, *, prompt_bytes: int
    ) -> None:
        self.stream_id = stream_id
        self.origin = origin
        self.binding = binding
        self.head = 0
        self.end: End | None = None
        self.end_read = False
        self.is_erased = False
        self.prompt_bytes = prompt_bytes
        self.cost = LOG_OVERHEAD_BYTES + prompt_bytes
        self.used_at = time.monotonic()
        self._keeper = keeper
        self.records = text_for(origin.kind)
        self._is_closed = False
        self._lock = plain_lock()
        self._readership = Readership(self._lock)

    # What is appended

    def append(self, *records: str) -> bool:
        added = "".join(records)
        data = added.encode()
        text: Text = self.records
        with self._lock:
            if self._is_closed:
                return False
            size = text.size_with(data, len(records)) + LOG_OVERHEAD_BYTES
            if size > self.cost:
                self._keeper.make_room_for(self, size)
            text.add(records, data)
            head = self.head = len(text)
        self._readership.tell(Piece(head, len(records), added))
        return True

    def append_chunks(self, chunks: Sequence[Chunk]) -> bool:
        added = "".join([chunk.text for chunk in chunks])
        data = added.encode()
        text = self.records
        assert isinstance(text, ChunkText)
        with self._lock:
            if self._is_closed:
                return False
            size = text.size_with_chunks(chunks, data) + LOG_OVERHEAD_BYTES
            if size > self.cost:
                self._keeper.make_room_for(self, size)
            text.add_chunks(chunks, data)
            head = self.head = len(text)
        self._readership.tell(Piece(head, len(chunks), added, chunks))
        return True

    def release_prompt(self) -> None:
        self._keeper.release_prompt(self)

    # Its end

    def finish(self, write: Callable[[Totals], End]) -> bool:
        return finish_once(self, write)

    def begin_end(self) -> bool:
        with self._lock:
            if self._is_closed:
                return False
            self._is_closed = True  # nothing is appended from now on, so the rest needs no lock and may wait
            return True

    def go_on(self) -> None:
        self._is_closed = False

    def is_decided(self) -> bool:
        return self.end is not None or self.is_erased

    def totals(self) -> Totals:
        return self.records.totals()

    def decide(self, end: End) -> bool:
        self.end = end
        self.records.pack()
        self.used_at = time.monotonic()
        self._keeper.ended(self)
        self._readership.nudge()
        return True

    def erase(self) -> None:
        """Forget the records, and send the readers away."""
        with self._lock:
            self._is_closed = self.is_erased = True
            self.head = 0
            self.records = text_for(self.origin.kind)
        self._readership.release()

    def book(self, write: Callable[[str], None]) -> None:
        write("response_complete")

    # Its readers

    def attach(self, reader: LogReader) -> None:
        self._readership.add(reader)

    @property
    def unread_since(self) -> float | None:
        return self._readership.unread_since

    @property
    def resumes(self) -> int:
        return max(0, self._readership.attached - 1)
