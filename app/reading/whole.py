"""A whole answer in one body, written piece by piece so that a long answer needs no memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from app.reading.readers import Readers
from app.streams.interface import StreamLog

__all__ = ["sliced", "whole"]

PIECE_BYTES = 8064
"""UTF-8 read from the log at a time."""

SLICE_BYTES = 65_536


def whole(
    log: StreamLog,
    before: bytes,
    after: bytes,
    readers: Readers,
    *,
    write: Callable[[str], bytes],
    drop: Callable[[], None],
) -> Iterator[bytes]:
    """Yield a body that holds the text of a log which has ended: `before`, the text as `write` writes it, `after`.

    The connection counts as a reader until all is written. `drop` breaks a connection that takes nothing.
    """
    with log.reader(0) as reader:
        readers.add(reader, drop=drop)
        reader.sending = True
        try:
            reader.frame_at = time.monotonic()
            yield before
            while (piece := reader.read(PIECE_BYTES)) is not None:
                reader.after = piece.sequence
                reader.frame_at = time.monotonic()
                yield write(piece.text)
            reader.frame_at = time.monotonic()
            yield after
        finally:
            readers.remove(reader)


def sliced(log: StreamLog, body: bytes, readers: Readers, *, drop: Callable[[], None]) -> Iterator[bytes]:
    """Yield a body that was made of a log, slice by slice. The connection counts as a reader, as in `whole`."""
    with log.reader(log.head) as reader:
        readers.add(reader, drop=drop, cut=drop)
        reader.sending = True
        try:
            for begin in range(0, len(body), SLICE_BYTES):
                reader.frame_at = time.monotonic()
                yield body[begin : begin + SLICE_BYTES]
        finally:
            readers.remove(reader)
