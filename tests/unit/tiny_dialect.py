"""A dialect that no client speaks, unlike ChatWait's own in all that a dialect may choose."""

from __future__ import annotations

from app.dialects.interface import Source
from app.streams.interface import End, Piece

__all__ = ["TinyDialect"]


class TinyDialect:
    """One frame a record, the last ones without a number, and no body that ends early."""

    may_end_early = False

    def opening(self, *, after: int, head: int, heartbeat_seconds: float) -> bytes:
        return b"open %d %d %g\n" % (after, head, heartbeat_seconds)

    def next_frames(self, source: Source) -> bytes | None:
        piece = source.read(0)
        if piece is None:
            return None
        source.after = piece.sequence
        return _record(piece)

    def frame_of(self, piece: Piece) -> bytes | None:
        return _record(piece) if piece.records == 1 else None

    def heartbeat(self, *, head: int) -> bytes:
        return b"alive %d\n" % head

    def notice(self, *, is_unresumable: bool, stored: int) -> bytes:
        return b"%s %d\n" % (b"here only" if is_unresumable else b"everywhere", stored)

    def end(self, end: End) -> bytes:
        return f"total {end.records}\nover {end.status}\n".encode()


def _record(piece: Piece) -> bytes:
    return f"{piece.sequence} {piece.text!r}\n".encode()
