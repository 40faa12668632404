"""Frames of OpenAI's chat completions. Shapes: contracts/events.md.

No blank line may follow a comment. Once it has seen an id, openai-python takes every blank line for the end of an
event, and an event without data ends its stream with an error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from json.encoder import encode_basestring_ascii

from app.dialects.completions.answer import as_chunk, finish_reason_of
from app.dialects.completions.errors import error_body, failure_of
from app.dialects.completions.models import completion_id
from app.dialects.interface import Source
from app.streams.chunk import Chunk, Envelope
from app.streams.interface import End, Origin, Piece

__all__ = ["DIRECT_BYTES", "FRAMES_BYTES", "CompletionsFrames"]

FRAMES_BYTES = 16_384
"""How much JSON is written together."""

DIRECT_BYTES = 65_536
"""The most bytes of several frames that are written past the loop."""

_DATA = "data: "
_ROLE = {"role": "assistant"}


class CompletionsFrames:
    """One log as OpenAI's clients read it: every record is one frame with one chunk.

    `created` is in seconds since 1970. The end tells the SHA-256 of all records as this dialect writes them. A reader
    that resumed has not been written all of them, so at its end, and only then, `from_start` is called with the number
    of the last record. It gives all records up to that one. Those of a log of text must come one by one, because its
    pieces have no boundaries inside. Writing takes about 1 µs a record, so `from_start` should let others run.
    """

    may_end_early = False
    """Most clients take a proper end for a complete answer, also without `[DONE]`."""

    __slots__ = (
        "_around",
        "_created",
        "_envelope",
        "_from_start",
        "_hash",
        "_hashed",
        "_id",
        "_id_line",
        "_origin",
        "_shapes",
        "_stream_id",
    )

    def __init__(
        self, stream_id: str, origin: Origin, created: int, from_start: Callable[[int], Iterator[Piece]]
    ) -> None:
        self._stream_id = stream_id
        self._origin = origin
        self._created = created
        self._from_start = from_start
        self._id = f"\nid: {stream_id}."
        self._id_line = len(self._id) - 1 + len("\n\n")
        self._hash = hashlib.sha256()
        self._hashed = 0
        self._envelope: Envelope | None = None
        self._around = self._around_text({})
        self._shapes: dict[Envelope, tuple[str, str]] = {}

    def opening(self, *, after: int, head: int, heartbeat_seconds: float) -> bytes:
        return self.heartbeat(head=head)

    def next_frames(self, source: Source) -> bytes | None:
        if self._origin.kind != "text":
            piece = source.read_chunks(FRAMES_BYTES)
            if piece is None:
                return None
            source.after = piece.sequence
            return self._frames(piece)
        written = b""
        while len(written) < FRAMES_BYTES and (piece := source.read(0)) is not None:
            source.after = piece.sequence
            written += self._frames(piece)
        return written or None

    def frame_of(self, piece: Piece) -> bytes | None:
        if piece.chunks is None:
            return self._frames(piece) if piece.records == 1 else None
        if piece.records == 1:
            return self._frame(piece.sequence, piece.chunks[0])
        frames = self._frames(piece)
        return frames if len(frames) <= DIRECT_BYTES else None

    def heartbeat(self, *, head: int) -> bytes:
        return b": keepalive\n"

    def notice(self, *, is_unresumable: bool, stored: int) -> bytes:
        return b": unresumable\n" if is_unresumable else b": resumable\n"

    def end(self, end: End) -> bytes:
        failure = failure_of(end)
        first = ""
        if failure is not None:
            first = f"{_DATA}{_compact(error_body(failure, self._origin.correlation_id))}\n\n"
        elif self._origin.kind == "text":
            first = f"{_DATA}{self._chunk({} if end.records else _ROLE, finish_reason_of(end))}\n\n"
        last = f"{_DATA}[DONE]{self._id}{end.records + 1}\n"
        return f"{first}{last}: records={end.records} sha256={self._sha256(end.records)}\n\n".encode("ascii")

    def _frames(self, piece: Piece) -> bytes:
        """Write the records of a piece, of which one of a log of text is one."""
        if piece.chunks is None:
            return self._frame(piece.sequence, piece.text)
        first = piece.sequence - piece.records + 1
        return b"".join([self._frame(first + place, chunk) for place, chunk in enumerate(piece.chunks)])

    def _frame(self, sequence: int, record: Chunk | str) -> bytes:
        """Write a record, which is a text or a chunk. Hash it if it is the first one that is not hashed."""
        if isinstance(record, str):
            before, after = self._around if sequence > 1 else self._around_text(_ROLE)
            value = encode_basestring_ascii(record)
        elif (envelope := record.envelope) is None:
            before, after = _DATA, self._id
            value = as_chunk(record.value) if self._origin.kind == "json" else record.value
        else:
            if envelope is not self._envelope:
                self._envelope = envelope
                self._around = self._around_string(envelope)
            before, after = self._around
            value = encode_basestring_ascii(record.value)
        number = str(sequence)
        frame = f"{before}{value}{after}{number}\n\n".encode("ascii")
        if sequence == self._hashed + 1:
            self._hash.update(frame[len(_DATA) : -self._id_line - len(number)])
            self._hashed = sequence
        return frame

    def _around_string(self, envelope: Envelope) -> tuple[str, str]:
        """Return what stands before and after an envelope's string, which brings its own quotes."""
        around = self._shapes.get(envelope)
        if around is None:
            around = self._shapes[envelope] = f"{_DATA}{envelope.prefix[:-1]}", f"{envelope.suffix[1:]}{self._id}"
        return around

    def _around_text(self, delta: dict[str, str]) -> tuple[str, str]:
        """Return what stands before and after the text of a record, whose chunk also has a delta's members."""
        before, _, after = self._chunk({**delta, "content": "\0"}, None).rpartition(r'"\u0000"')
        return f"{_DATA}{before}", f"{after}{self._id}"

    def _chunk(self, delta: dict[str, str], finish_reason: str | None) -> str:
        """Write a chunk that no upstream has sent."""
        return _compact(
            {
                "id": completion_id(self._stream_id),
                "object": "chat.completion.chunk",
                "created": self._created,
                "model": self._origin.model,
                "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
            }
        )

    def _sha256(self, records: int) -> str:
        """Return the SHA-256 of all records, in hex."""
        if self._hashed != records:
            self._hash = hashlib.sha256()
            self._hashed = 0
            for piece in self._from_start(records):
                self._frames(piece)  # hashes them, too
            if self._hashed != records:
                raise ValueError("`from_start` has not given every record, or not one by one")
        return self._hash.hexdigest()


def _compact(content: object) -> str:
    return json.dumps(content, separators=(",", ":"))
