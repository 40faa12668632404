"""Frames of an event stream, and the loop that reads a log into them.

First reader, resume, second reader: this loop, whatever the cursor. `wait` is how wait mode reads
the same log.
"""

from __future__ import annotations

import json
import math
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from json.encoder import encode_basestring_ascii

from app import errors
from app.dialects.native.answer import end_data
from app.server.direct import DirectWriter
from app.settings import plain
from app.streams.interface import End, Piece, Reader, StreamLog

__all__ = ["FRAME_BYTES", "Readers", "frame", "frames", "wait", "whole"]

FRAME_BYTES = 8192
"""The most data of a token frame that holds more than one chunk: line-limited clients live, bad links progress."""

PIECE_BYTES = FRAME_BYTES - 128
"""UTF-8 asked of a log for one frame; what grows over FRAME_BYTES when escaped is asked for again, smaller."""

RETRY_MS = 1000

LOOK_SECONDS = 1.0
"""How often it is asked whether a reader's client has left."""

STALLED_SECONDS = 30.0
"""A connection that has taken nothing for so long is dropped; its reader can come back."""


def frame(event: str, content: object, event_id: str | None = None) -> bytes:
    """Write one frame. The id is its last line: a client that stores ids as they come, and is cut before the
    blank line, must not skip the frame."""
    text = f"event: {event}\ndata: {json.dumps(content, separators=(',', ':'))}\n"
    return (text + (f"id: {event_id}\n\n" if event_id else "\n")).encode("ascii")


def _token(stream_id: str, piece: Piece) -> tuple[str, int]:
    """Write a token frame; also return the size of its data. ASCII, so characters are bytes."""
    data = (
        f'{{"sequence":{piece.sequence},"count":{piece.chunks},'
        f'"content":{encode_basestring_ascii(piece.text)},"is_final":false}}'
    )
    return f"event: token\ndata: {data}\nid: {stream_id}.{piece.sequence}\n\n", len(data)


def _start(log: StreamLog, heartbeat_seconds: float) -> bytes:
    content = {
        "stream_id": log.stream_id,
        "correlation_id": log.origin.correlation_id,
        "model": log.origin.model,
        "created": log.origin.created,
        "heartbeat_seconds": plain(heartbeat_seconds),
    }
    return f"retry: {RETRY_MS}\n".encode() + frame("start", content, f"{log.stream_id}.0")


def _ping(log: StreamLog, event_id: str | None = None) -> bytes:
    head = log.head
    return frame("ping", {"phase": "generating" if head else "waiting", "tokens": head}, event_id)


def _resumability(log: StreamLog) -> bytes:
    """Say whether what follows can be read again anywhere."""
    return frame("unresumable" if log.is_unresumable else "resumable", {"tokens": log.stored})


def _end(log: StreamLog, end: End) -> bytes:
    name = "done" if end.status == "complete" else end.status
    return frame(name, end_data(log.origin, end), f"{log.stream_id}.{end.records + 1}")


def next_token_frame(log: StreamLog, reader: Reader) -> bytes | None:
    """Write what follows the reader's place as one frame, and move it on; None at the head."""
    piece = reader.read(PIECE_BYTES)
    if piece is None:
        return None
    text, size = _token(log.stream_id, piece)
    limit = PIECE_BYTES
    while size > FRAME_BYTES and piece.chunks > 1:
        limit = min(limit // 2, limit * FRAME_BYTES // size)
        piece = reader.read(limit) or piece
        text, size = _token(log.stream_id, piece)
    reader.after = piece.sequence
    return text.encode("ascii")


class Place:
    """The place of a reader who is about to begin. To hold it is to have it."""

    __slots__ = ("__weakref__",)


class Readers:
    """Who is reading right now: bounded, and woken for their heartbeats."""

    def __init__(self, *, limit: int, most_attached: int | None = None, heartbeat_seconds: float) -> None:
        """`most_attached` is the limit for who attaches by an idempotency key."""
        self.heartbeat_seconds = heartbeat_seconds
        self._limit = limit
        self._most_attached = most_attached or limit
        self._due: dict[Reader, float] = {}
        self._drops: dict[Reader, Callable[[], None]] = {}
        self._looks: dict[Reader, tuple[float, Callable[[], bool]]] = {}
        self._departed: dict[Reader, None] = {}
        self._places: weakref.WeakSet[Place] = weakref.WeakSet()
        self._leaving = False

    @property
    def count(self) -> int:
        return len(self._due)

    @property
    def present(self) -> int:
        """How many there are whose clients have not left, as far as is known."""
        return len(self._due) - len(self._departed)

    def admit(self, *, attaching: bool = False) -> Place:
        """Keep a place for one more, as long as what is returned is held.

        Raises: Overloaded when there are as many readers as there may be, those whose clients have left apart.
        """
        if self.present + len(self._places) >= (self._most_attached if attaching else self._limit):
            raise errors.Overloaded("Too many connections are reading.", retry_after_seconds=2)
        place = Place()
        self._places.add(place)
        return place

    def add(
        self,
        reader: Reader,
        *,
        every_seconds: float | None = None,
        drop: Callable[[], None] | None = None,
        departed: Callable[[], bool] | None = None,
    ) -> None:
        """Wake a reader whenever it has had no frame for a heartbeat, or for `every_seconds` (0: each tick);
        `drop` one that takes nothing for STALLED_SECONDS, or that has `departed` when its place is needed."""
        if drop is not None:
            self._drops[reader] = drop
        if departed is not None:
            self._looks[reader] = time.monotonic(), departed
        if len(self._due) >= self._most_attached and self._departed:
            oldest = next(iter(self._departed))
            if drop := self._drops.get(oldest):
                drop()
            self.remove(oldest)
            oldest.release()
        self._due[reader] = self.heartbeat_seconds if every_seconds is None else every_seconds
        if self._leaving:
            reader.release()

    @property
    def is_leaving(self) -> bool:
        """Everybody is sent away."""
        return self._leaving

    @property
    def has_foreign(self) -> bool:
        """Somebody reads what another worker generates."""
        return any(reader.is_foreign for reader in self._due)

    def release_foreign(self, share: float) -> None:
        """Send a share of those away who read what other workers generate: they can do so elsewhere."""
        foreign = [reader for reader in self._due if reader.is_foreign and not reader.is_released]
        for reader in foreign[: math.ceil(share * len(foreign))]:
            reader.release()

    def release_all(self) -> None:
        """Send everybody away, at once who comes from now on: with what there is, and an answer that is whole."""
        self._leaving = True
        for reader in list(self._due):
            reader.release()

    def remove(self, reader: Reader) -> None:
        for kept in (self._due, self._drops, self._looks, self._departed):
            kept.pop(reader, None)

    def check(self, now: float) -> None:
        for reader, (looked_at, departed) in list(self._looks.items()):
            if now - looked_at < LOOK_SECONDS:
                continue
            if departed():
                del self._looks[reader]
                self._departed[reader] = None
                reader.depart()
            else:
                self._looks[reader] = now, departed
        for reader, seconds in list(self._due.items()):
            idle = now - reader.frame_at
            if idle >= seconds:
                reader.nudge()
            # A frame that is still being written was begun then: its reader takes nothing.
            if idle >= STALLED_SECONDS and reader.sending and (drop := self._drops.get(reader)):
                drop()


def frames(
    log: StreamLog,
    after: int,
    readers: Readers,
    *,
    left: Callable[[int], None],
    drop: Callable[[], None],
    departed: Callable[[], bool] | None = None,
    connection: DirectWriter | None = None,
) -> Iterator[bytes]:
    """Yield the frames that follow a sequence number, to the terminal one. `left` hears where the reader left, `drop`
    ends a connection that takes nothing, `departed` tells whether its client has sent its last byte. They and the
    counting stand in here, because the `finally` of a generator that never began never runs.

    While this sleeps at the head, `connection` is given the next token frames by whoever appends them, as far as it
    takes them at once; what it does not take, wakes this up.
    """
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

        readers.add(reader, drop=drop, departed=look)
        if connection is not None:
            reader.deliver = partial(_deliver, log, reader, connection)
        reader.sending = True
        try:
            # The reader's own cursor as its id: a decoder that begins anew with each connection would show
            # a first event without one as having the id "" (DESIGN.md, 19).
            yield _ping(log, f"{log.stream_id}.{after}") if after else _start(log, readers.heartbeat_seconds)
            reader.sending = False
            while True:
                # Looked at before the log is read: once it is there, what is read next is the last.
                end = log.end
                sent: bytes | None
                if log.is_unresumable is not reader.knows_unresumable:
                    reader.knows_unresumable = not reader.knows_unresumable
                    sent = _resumability(log)
                else:
                    sent = next_token_frame(log, reader)
                if sent is None:
                    if end is not None:
                        reader.frame_at = time.monotonic()
                        reader.sending = True
                        yield _end(log, end)
                        log.end_read = True
                        return
                    if reader.is_released:
                        return
                    if time.monotonic() - reader.frame_at < readers.heartbeat_seconds:
                        reader.wait()
                        if connection is not None and not connection.is_clear:
                            reader.sending = True
                            connection.finish()
                            reader.sending = False
                        continue
                    sent = _ping(log)
                reader.frame_at = time.monotonic()
                reader.sending = True
                yield sent
                reader.sending = False
        finally:
            readers.remove(reader)
            leave()


def _deliver(log: StreamLog, reader: Reader, connection: DirectWriter, piece: Piece) -> bool:
    """Write what was appended to a sleeping reader's connection; False when its loop must see to it, or to the rest."""
    if reader.after != piece.sequence - piece.chunks or log.is_unresumable is not reader.knows_unresumable:
        return False
    text, size = _token(log.stream_id, piece)
    if (size > FRAME_BYTES and piece.chunks > 1) or not connection.write(text.encode("ascii")):
        return False
    reader.after = piece.sequence
    reader.frame_at = time.monotonic()
    return connection.is_clear


def wait(
    log: StreamLog,
    readers: Readers,
    *,
    seconds: float | None,
    gone: Callable[[], bool],
    departed: Callable[[], bool] | None = None,
) -> End | None:
    """Wait for the end of a log, for at most `seconds`; None when it has not come or the client is `gone`. Who has only
    sent its last byte (`departed`) may still read, and is waited for.

    Units: both are asked about once a second. Raises: ShuttingDown when it is to be waited for at another worker,
    Overloaded when others need the place of one that has departed.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    asked_at = time.monotonic()
    with log.reader(log.head, only_end=True) as reader:
        readers.add(reader, every_seconds=0.0, departed=departed)
        try:
            while log.end is None and (deadline is None or time.monotonic() < deadline):
                reader.wait()
                if reader.is_released and log.end is None:
                    if reader.is_departed and not readers.is_leaving and not reader.is_foreign:
                        raise errors.Overloaded(retry_after_seconds=2)
                    raise errors.ShuttingDown(retry_after_seconds=1)
                now = time.monotonic()
                if now - asked_at >= LOOK_SECONDS:
                    asked_at = now
                    if gone():
                        break
            return log.end
        finally:
            readers.remove(reader)


def whole(log: StreamLog, before: str, after: str, readers: Readers, *, drop: Callable[[], None]) -> Iterator[bytes]:
    """Yield a JSON text that holds the text of a log which has ended, piece by piece: what stands before the text's
    characters, and after them. Nothing of it is kept, and its connection counts as a reader until it is written.
    """
    with log.reader(0) as reader:
        readers.add(reader, drop=drop)
        reader.sending = True
        try:
            reader.frame_at = time.monotonic()
            yield before.encode("ascii")
            while (piece := reader.read(PIECE_BYTES)) is not None:
                reader.after = piece.sequence
                reader.frame_at = time.monotonic()
                yield encode_basestring_ascii(piece.text)[1:-1].encode("ascii")
            reader.frame_at = time.monotonic()
            yield after.encode("ascii")
        finally:
            readers.remove(reader)
