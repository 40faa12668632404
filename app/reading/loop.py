"""The loop that reads a log for one client, whatever the dialect and wherever the client begins.

A first reader, a resume and a second reader run this same loop. The loop decides when something is sent. The dialect
decides what that looks like.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

from app.dialects.interface import Dialect
from app.reading.readers import Readers
from app.server.direct import DirectWriter
from app.streams.interface import ErasedMeanwhile, Piece, Reader, Sharing, StreamLog

__all__ = ["frames"]


FRAMES_A_TURN = 4
"""How many frames one reader gets before others run."""


def frames(
    log: StreamLog,
    after: int,
    dialect: Dialect,
    readers: Readers,
    *,
    left: Callable[[int], None],
    drop: Callable[[], None],
    cut: Callable[[], None] | None = None,
    ends: Callable[[], None] = lambda: None,
    departed: Callable[[], bool] | None = None,
    connection: DirectWriter | None = None,
) -> Iterator[bytes]:
    """Yield the frames that follow the record `after`, up to the log's end.

    `left` is called once with the last record that was sent. `drop` breaks the connection when the connection takes
    nothing. `cut` breaks it when the loop leaves before the log's end although the dialect's bodies may not end early,
    when the log is erased, and when another reader needs the place. `ends` hears that the log's end was written.
    `departed` tells whether the client has sent its last byte. The reader is counted inside the generator, because the
    `finally` of a generator that never began never runs.

    While the loop sleeps at the head, the log's `append` writes the next frames to `connection` itself. The loop wakes
    when the connection does not take all of them at once.
    """
    sharing = log.sharing
    cut = cut or drop
    with log.reader(after) as reader:
        has_left = False

        def leave() -> None:
            nonlocal has_left
            if not has_left:
                left(reader.after)
            has_left = True

        def look() -> bool:
            if departed is None or not departed():
                return False
            leave()
            return True

        readers.add(reader, drop=drop, cut=cut, departed=look)
        if connection is not None:
            reader.deliver = partial(_deliver, sharing, dialect, reader, connection)
        reader.sending = True
        frames_since_rest = 0
        try:
            yield dialect.opening(after=after, head=log.head, heartbeat_seconds=readers.heartbeat_seconds)
            reader.sending = False
            while True:
                # The end is looked at before the log is read. If it is there, all records are there too.
                end = log.end
                if log.is_erased:
                    cut()
                    return
                sent: bytes | None
                if sharing is not None and sharing.is_unresumable is not reader.knows_unresumable:
                    reader.knows_unresumable = not reader.knows_unresumable
                    sent = dialect.notice(is_unresumable=sharing.is_unresumable, stored=sharing.stored)
                else:
                    sent = dialect.next_frames(reader)
                if sent is None:
                    if end is not None:
                        reader.frame_at = time.monotonic()
                        try:
                            last = dialect.end(end)
                        except ErasedMeanwhile:
                            cut()
                            return
                        reader.sending = True
                        yield last
                        ends()
                        log.end_read = True
                        return
                    if reader.is_released:
                        if not dialect.may_end_early:
                            cut()
                        return
                    frames_since_rest = 0
                    if time.monotonic() - reader.frame_at < readers.heartbeat_seconds:
                        reader.wait()
                        if connection is not None and not connection.is_clear:
                            reader.sending = True
                            connection.finish()
                            reader.sending = False
                        continue
                    sent = dialect.heartbeat(head=log.head)
                reader.frame_at = time.monotonic()
                reader.sending = True
                yield sent
                reader.sending = False
                frames_since_rest += 1
                if frames_since_rest >= FRAMES_A_TURN:  # a connection that takes everything at once never waits
                    frames_since_rest = 0
                    time.sleep(0)
        finally:
            readers.remove(reader)
            leave()


def _deliver(sharing: Sharing | None, dialect: Dialect, reader: Reader, connection: DirectWriter, piece: Piece) -> bool:
    """Write an appended piece to the connection of a reader that sleeps. False when the loop must write the piece, or
    the rest of it."""
    if reader.after != piece.sequence - piece.records:
        return False
    if sharing is not None and sharing.is_unresumable is not reader.knows_unresumable:
        return False
    data = dialect.frame_of(piece)
    if data is None or not connection.write(data):
        return False
    reader.after = piece.sequence
    reader.frame_at = time.monotonic()
    return connection.is_clear
