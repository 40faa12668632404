"""What the reading loop asks of a dialect: the bytes of one log's event stream, for one reader.

A dialect is pure: it computes bytes from a log's origin, its records and its end. It has no network, no clock and
no Flask. One dialect object serves one reader of one log.

A piece has the text that its records add. A dialect that shows every chunk asks for the chunks. A dialect that shows
text alone writes a record without text as a frame without text, because every reader must count the same records. The
loop passes pieces on without a look inside.
"""

from __future__ import annotations

from typing import Protocol

from app.streams.interface import End, Piece

__all__ = ["Dialect", "Source"]


class Source(Protocol):
    """The records of a log from a place on. The loop gives its reader."""

    after: int
    """The sequence number of the last record that was sent."""

    def read(self, max_bytes: int) -> Piece | None:
        """Return the records that follow `after`: at most `max_bytes` of UTF-8 together, or one larger record alone.
        None at the head. `read(0)` returns one record."""

    def read_chunks(self, max_bytes: int) -> Piece | None:
        """Return the records that follow `after` in a log of chunks, chunk by chunk: at most `max_bytes` of JSON
        together, or one larger record alone. None at the head."""


class Dialect(Protocol):
    """One log as one reader gets it. Every method but `frame_of` returns whole frames."""

    may_end_early: bool
    """Whether a body may end properly before the log's end, which happens when the worker drains.

    False: clients take a proper end for a complete answer, so the connection must be broken instead.
    """

    def opening(self, *, after: int, head: int, heartbeat_seconds: float) -> bytes:
        """Write the beginning of a connection. `after` is the last record that the reader has, 0 for none."""

    def next_frames(self, source: Source) -> bytes | None:
        """Write the records behind a place, and move the place (`source.after`) behind them. None at the head.

        The dialect decides how many records it reads at once, and how many frames it makes of them.
        """

    def frame_of(self, piece: Piece) -> bytes | None:
        """Write a piece that was appended just now. None when `next_frames` must write the piece, in several parts."""

    def heartbeat(self, *, head: int) -> bytes:
        """Write a frame that keeps a silent connection alive."""

    def notice(self, *, is_unresumable: bool, stored: int) -> bytes:
        """Say whether other workers can give all records of the log. `stored` is the last record that they can give."""

    def end(self, end: End) -> bytes:
        """Write how the log ended. Nothing follows."""
