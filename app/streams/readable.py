"""What the logs of every store have in common: the records up to the head, and their readers."""

from __future__ import annotations

import time
from typing import Any

from app.streams.chunk_text import ChunkText
from app.streams.interface import Origin, Piece
from app.streams.readership import LogReader, Readership
from app.streams.retention import LOG_OVERHEAD_BYTES
from app.streams.text import Text

__all__ = ["ReadableLog"]


class ReadableLog:
    """The part of a log that its readers use. `head` is raised last, so every record up to `head` is complete."""

    __slots__ = ("used_at",)

    head: int
    origin: Origin
    records: Text
    _keeper: Any
    _readership: Readership

    def reader(self, after: int, *, only_end: bool = False, is_counted: bool = True) -> LogReader:
        return LogReader(self, after, only_end=only_end, is_counted=is_counted)  # type: ignore[arg-type]

    def read(self, after: int, max_bytes: int) -> Piece | None:
        return self.records.piece(after, self.head, max_bytes)

    def read_chunks(self, after: int, max_bytes: int) -> Piece | None:
        assert isinstance(self.records, ChunkText)
        return self.records.chunks(after, self.head, max_bytes)

    def text(self) -> str:
        return self.records.until(self.head)

    def sizes(self, first: int, last: int) -> list[int]:
        return self.records.sizes(first, last)

    def detach(self, reader: LogReader) -> None:
        if self._readership.remove(reader):
            self.used_at = time.monotonic()
        self._readership.departed()
        self._keeper.used(self)

    def departed(self) -> None:
        self._readership.departed()

    @property
    def readers(self) -> int:
        return len(self._readership)

    @property
    def size(self) -> int:
        return self.records.size + LOG_OVERHEAD_BYTES
