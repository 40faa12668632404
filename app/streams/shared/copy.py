"""The role of a log that another worker writes: whose it is, and what this copy is given of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from app.streams.chunk import Chunk
from app.streams.chunk_text import ChunkText
from app.streams.interface import End
from app.streams.shared import records
from app.streams.shared.records import Damaged
from app.streams.text import Text

__all__ = ["Copy", "Found"]


class Found(NamedTuple):
    """The records that entries hold: their texts, the chunks of a log of chunks, and all text together."""

    texts: Sequence[str]
    chunks: Sequence[Chunk]
    text: str
    is_erased: bool = False
    """The stream was erased for good."""


class Copy:
    """What this worker knows of the log's owner. Units: monotonic seconds."""

    __slots__ = ("fence", "missed_since", "owner", "spoiled_since")

    def __init__(self, owner: str, fence: int) -> None:
        self.owner = owner
        """The worker that writes the log. Empty while that is not known; `Leases` looks it up."""
        self.fence = fence
        """The fence that this owner holds, as far as is known."""
        self.missed_since: float | None = None
        """Since when Valkey has had no such stream."""
        self.spoiled_since: float | None = None
        """Since when the stream's hash has been unusable although its owner lives."""

    def read(self, entries: list[Any], head: int, text: Text) -> tuple[Found, End | None]:
        """Read entries behind a sequence number, and check an end against the text before it.

        Raises: Damaged.
        """
        try:
            return self._read(entries, head, text)
        except records.Erased:
            return Found((), (), "", is_erased=True), None

    def _read(self, entries: list[Any], head: int, text: Text) -> tuple[Found, End | None]:
        chunks: list[Chunk] = []
        if isinstance(text, ChunkText):
            chunks, end = records.read_chunk_entries(entries, head, text.envelopes)
            texts = [chunk.text for chunk in chunks]
        else:
            texts, end = records.read_entries(entries, head)
        found = Found(texts, chunks, "".join(texts))
        if end is not None:
            measured = records.damage("the text that its end tells of", lambda: text.measured_with(found.text.encode()))
            if measured != (end.characters, end.sha256):
                raise Damaged("the text that its end tells of")
        return found, end
