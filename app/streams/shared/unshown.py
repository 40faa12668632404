"""Records of a log on their way from its memory to Valkey and to its readers."""

from __future__ import annotations

from collections.abc import Sequence

from app.streams.chunk import Chunk
from app.streams.chunk_text import ChunkText
from app.streams.interface import Piece
from app.streams.shared.chunk_entries import write_chunk
from app.streams.text import Text

__all__ = ["Unshown", "entries_of", "piece_behind", "written"]

MOST_UNSHOWN = 512
"""How many chunks are kept until they are shown."""

ALL_BYTES = 1 << 40
"""More than the JSON of any log."""


class Unshown:
    """The chunks behind the shown ones, as they were appended. To make them anew of the records takes longer. When
    there are too many, they are not kept."""

    __slots__ = ("_chunks",)

    def __init__(self) -> None:
        self._chunks: list[Chunk] = []

    def add(self, chunks: Sequence[Chunk]) -> None:
        if len(self._chunks) < MOST_UNSHOWN:
            self._chunks += chunks

    def clear(self) -> None:
        self._chunks.clear()

    def take(self, records: Text, shown: int, head: int) -> Piece | None:
        """Return the records behind the shown ones, up to `head`. None for none."""
        chunks, count = self._chunks, head - shown
        if count <= 0:
            return None
        if not chunks or len(chunks) != len(records) - shown:
            chunks.clear()
            return piece_behind(records, shown, head)
        taken = chunks[:count]
        del chunks[:count]
        return Piece(head, count, "".join([chunk.text for chunk in taken]), taken)


def piece_behind(records: Text, after: int, head: int) -> Piece | None:
    """Return all records behind `after`, up to `head`. None for none."""
    if not isinstance(records, ChunkText):
        return records.piece(after, head, records.size)
    pieces: list[Piece] = []
    while (piece := records.chunks(after, head, ALL_BYTES)) is not None:
        pieces.append(piece)
        after = piece.sequence
    if len(pieces) < 2:
        return pieces[0] if pieces else None
    chunks = [chunk for piece in pieces for chunk in piece.chunks or ()]
    return Piece(after, len(chunks), "".join([piece.text for piece in pieces]), chunks)


def entries_of(records: Text, first: int, last: int) -> list[bytes]:
    """Return the records from `first` to `last` as Valkey keeps them."""
    if not isinstance(records, ChunkText):
        return records.records(first, last)
    piece = piece_behind(records, first - 1, last)
    return [] if piece is None else written(records, piece.chunks or (), first)


def written(records: Text, chunks: Sequence[Chunk], first: int) -> list[bytes]:
    """Write records as Valkey keeps them. `first` is the number of the first one."""
    assert isinstance(records, ChunkText)
    return [write_chunk(chunk, *records.form_of(chunk, number)) for number, chunk in enumerate(chunks, first)]
