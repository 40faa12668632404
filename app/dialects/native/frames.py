"""Frames of ChatWait's own event stream. Shapes: contracts/events.md."""

from __future__ import annotations

import json
from json.encoder import encode_basestring_ascii

from app.dialects.interface import Source
from app.dialects.native.answer import end_data
from app.settings import plain
from app.streams.interface import End, Origin, Piece

__all__ = ["FRAME_BYTES", "NativeFrames", "frame"]

FRAME_BYTES = 8192
"""The most data of a token frame that holds more than one record. Some clients limit lines, and bad links need
progress."""

PIECE_BYTES = FRAME_BYTES - 128
"""How much UTF-8 is asked of a log for one frame. Where escaping makes the frame too large, less is asked for."""

RETRY_MS = 1000


def frame(event: str, content: object, event_id: str | None = None) -> bytes:
    """Write one frame, with the id as its last line. A client may store an id at once and be cut off before the blank
    line. That client must not skip the frame."""
    text = f"event: {event}\ndata: {json.dumps(content, separators=(',', ':'))}\n"
    return (text + (f"id: {event_id}\n\n" if event_id else "\n")).encode("ascii")


def _token(stream_id: str, piece: Piece) -> tuple[str, int]:
    """Write a token frame. Also return the size of its data in bytes, which are ASCII characters."""
    data = (
        f'{{"sequence":{piece.sequence},"count":{piece.records},'
        f'"content":{encode_basestring_ascii(piece.text)},"is_final":false}}'
    )
    return f"event: token\ndata: {data}\nid: {stream_id}.{piece.sequence}\n\n", len(data)


class NativeFrames:
    """One log as ChatWait's own clients read it. A token frame merges records that came together."""

    may_end_early = True
    """A client takes a stream without a terminal event for a broken stream."""

    __slots__ = ("_origin", "_stream_id")

    def __init__(self, stream_id: str, origin: Origin) -> None:
        self._stream_id = stream_id
        self._origin = origin

    def opening(self, *, after: int, head: int, heartbeat_seconds: float) -> bytes:
        # A resume begins with the reader's own cursor: a decoder that begins anew with each connection would show a
        # first event without an id as having the id "" (DESIGN.md, 19).
        if after:
            return self._ping(head, f"{self._stream_id}.{after}")
        content = {
            "stream_id": self._stream_id,
            "correlation_id": self._origin.correlation_id,
            "model": self._origin.model,
            "created": self._origin.created,
            "heartbeat_seconds": plain(heartbeat_seconds),
        }
        return f"retry: {RETRY_MS}\n".encode() + frame("start", content, f"{self._stream_id}.0")

    def next_frames(self, source: Source) -> bytes | None:
        piece = source.read(PIECE_BYTES)
        if piece is None:
            return None
        text, size = _token(self._stream_id, piece)
        limit = PIECE_BYTES
        while size > FRAME_BYTES and piece.records > 1:
            limit = min(limit // 2, limit * FRAME_BYTES // size)
            piece = source.read(limit) or piece
            text, size = _token(self._stream_id, piece)
        source.after = piece.sequence
        return text.encode("ascii")

    def frame_of(self, piece: Piece) -> bytes | None:
        text, size = _token(self._stream_id, piece)
        return None if size > FRAME_BYTES and piece.records > 1 else text.encode("ascii")

    def heartbeat(self, *, head: int) -> bytes:
        return self._ping(head)

    def notice(self, *, is_unresumable: bool, stored: int) -> bytes:
        return frame("unresumable" if is_unresumable else "resumable", {"tokens": stored})

    def end(self, end: End) -> bytes:
        name = "done" if end.status == "complete" else end.status
        return frame(name, end_data(self._origin, end), f"{self._stream_id}.{end.records + 1}")

    def _ping(self, head: int, event_id: str | None = None) -> bytes:
        return frame("ping", {"phase": "generating" if head else "waiting", "tokens": head}, event_id)
