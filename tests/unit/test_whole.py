"""Test a whole answer in one body: it is written piece by piece, and its connection counts as a reader meanwhile."""

from __future__ import annotations

import pytest

from app.reading import whole as reading
from app.reading.readers import STALLED_SECONDS, Readers
from app.reading.whole import whole
from tests.unit.readings import Time, log_of


def test_whole_answer_that_is_taken_slowly_is_dropped_only_when_a_piece_is_not_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    time = Time()
    monkeypatch.setattr(reading, "time", time)
    readers = Readers(limit=10, heartbeat_seconds=1000.0)
    drops: list[float] = []
    log = log_of(*["x" * 6000] * 4)
    pieces = whole(log, b"[", b"]", readers, write=str.encode, drop=lambda: drops.append(time.now))

    taken = b""
    for piece in pieces:
        taken += piece
        assert readers.count == 1
        time.now += STALLED_SECONDS - 1  # each piece is taken just in time
        readers.check(time.now)
        assert drops == []
    assert taken == b"[" + b"x" * 24_000 + b"]"
    assert readers.count == 0


def test_whole_answer_of_which_a_piece_is_not_taken_is_dropped_and_counts_no_more_once_it_is_closed() -> None:
    readers = Readers(limit=10, heartbeat_seconds=1000.0)
    drops: list[int] = []
    log = log_of(*["x" * 6000] * 4)
    pieces = whole(log, b"[", b"]", readers, write=str.encode, drop=lambda: drops.append(1))
    assert next(pieces) == b"["

    (reader,) = readers._due
    readers.check(reader.frame_at + STALLED_SECONDS)
    assert drops == [1]
    pieces.close()
    assert (readers.count, log.readers) == (0, 0)
