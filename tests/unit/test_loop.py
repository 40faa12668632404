"""Test the loop that reads a log for one client, in ChatWait's own dialect."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import pytest

from app.reading import loop as module
from app.reading.readers import Readers
from app.streams.interface import End, Origin, Piece, Totals
from tests.unit.ends import end_with
from tests.unit.readings import PATIENCE_SECONDS, Time, finish, ignore, log_of, parse, read, stream


class ScriptedReader:
    """A reader whose log and clock move only when it waits."""

    def __init__(self, time: Time, waits: list[Callable[[], None]]) -> None:
        self.after = 0
        self.frame_at = time.now
        self.sending = False
        self.knows_unresumable = self.is_released = False
        self.pieces: list[Piece] = []
        self.entered = self.exited = 0
        self._waits = waits

    def __enter__(self) -> Self:
        self.entered += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.exited += 1

    def read(self, max_bytes: int) -> Piece | None:
        return self.pieces.pop(0) if self.pieces else None

    def wait(self) -> None:
        self._waits.pop(0)()

    def nudge(self) -> None: ...


class ScriptedLog:
    stream_id = "cw_x"
    origin = Origin("c-1", "m", "2026-11-21T09:00:00.000Z")
    head = 0
    end: End | None = None
    is_erased = False
    sharing = None

    def __init__(self, reader: ScriptedReader) -> None:
        self._reader = reader

    def reader(self, after: int, **_: object) -> Any:
        self._reader.after = after
        return self._reader


def test_stream_pings_after_a_heartbeat_without_a_frame_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time()
    monkeypatch.setattr(module, "time", time)

    def pass_seconds(seconds: float) -> None:
        time.now += seconds

    def append() -> None:
        log.head += 1
        reader.pieces.append(Piece(log.head, 1, "a"))

    def end() -> None:
        log.end = end_with()(Totals(log.head, 0, "", ""))

    waits: list[Callable[[], None]] = [
        lambda: pass_seconds(9.75),  # woken for nothing: no ping yet
        lambda: pass_seconds(0.25),
        lambda: pass_seconds(5),
        append,
        lambda: pass_seconds(9.75),
        lambda: pass_seconds(0.25),
        end,
    ]
    reader = ScriptedReader(time, waits)
    log: Any = ScriptedLog(reader)

    events = parse(list(stream(log, 0, Readers(limit=1, heartbeat_seconds=10.0), left=ignore, drop=ignore)))

    assert [event.event for event in events] == ["start", "ping", "token", "ping", "done"]
    assert [event.json for event in events if event.event == "ping"] == [
        {"phase": "waiting", "tokens": 0},
        {"phase": "generating", "tokens": 1},
    ]
    assert [event.id for event in events if event.event == "ping"] == [None, None]
    assert waits == []
    assert (reader.entered, reader.exited) == (1, 1)


def test_stream_resumed_gives_its_later_pings_no_id(monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time()
    monkeypatch.setattr(module, "time", time)

    def beat() -> None:
        time.now += 10

    def end() -> None:
        log.end = end_with()(Totals(2, 0, "", ""))

    log: Any = ScriptedLog(ScriptedReader(time, [beat, end]))
    log.head = 2

    events = parse(list(stream(log, 2, Readers(limit=1, heartbeat_seconds=10.0), left=ignore, drop=ignore)))

    assert [(event.event, event.id and event.id.rpartition(".")[2]) for event in events] == [
        ("ping", "2"),
        ("ping", None),
        ("done", "3"),
    ]


def test_stream_marks_the_reader_as_sending_exactly_while_a_frame_is_out() -> None:
    log = log_of("a", end=False)
    readers = Readers(limit=1, heartbeat_seconds=10.0)
    loop = stream(log, 0, readers, left=ignore, drop=ignore)
    next(loop)
    (reader,) = readers._due

    assert reader.sending
    next(loop)
    assert reader.sending
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(next, loop)
        while not reader._asleep:  # type: ignore[attr-defined]
            threading.Event().wait(0.001)
        assert not reader.sending
        reader.frame_at -= 100.0
        before = time.monotonic()
        finish(log)
        assert waiting.result(PATIENCE_SECONDS).startswith(b"event: done")
    assert reader.sending, "the last frame may get stuck like any other"
    assert reader.frame_at >= before
    loop.close()


def test_stream_closed_early_detaches_its_reader_and_tells_where_it_left() -> None:
    log = log_of("a", "b", end=False)
    readers = Readers(limit=10, heartbeat_seconds=10.0)
    left: list[int] = []
    loop = stream(log, 0, readers, left=left.append, drop=ignore)
    next(loop)
    next(loop)
    assert (log.readers, readers.count) == (1, 1)

    loop.close()  # type: ignore[attr-defined]

    assert (log.readers, readers.count, left) == (0, 0, [2])
    assert readers._drops == {}


def test_stream_read_to_its_end_detaches_its_reader() -> None:
    log = log_of("a")
    readers = Readers(limit=10, heartbeat_seconds=10.0)

    read(log, 0, readers)

    assert (log.readers, readers.count) == (0, 0)


def test_stream_that_never_began_counts_no_reader() -> None:
    log = log_of("a")
    readers = Readers(limit=10, heartbeat_seconds=10.0)
    left: list[int] = []

    stream(log, 0, readers, left=left.append, drop=ignore).close()  # type: ignore[attr-defined]

    assert (log.readers, readers.count, left) == (0, 0, [])


def test_stream_given_a_last_chunk_and_the_end_at_once_delivers_them_in_order() -> None:
    log = log_of("a", end=False)
    readers = Readers(limit=10, heartbeat_seconds=10.0)
    loop = stream(log, 1, readers, left=ignore, drop=ignore)
    next(loop)
    log.append("b")
    finish(log)

    assert [event.event for event in parse(list(loop))] == ["token", "done"]


@pytest.mark.parametrize("moment", ["terminal", "read"])
def test_stream_given_the_last_chunk_and_the_end_between_its_two_looks_delivers_both(moment: str) -> None:
    log = log_of("a", end=False)
    late: Any = LateLog(log, moment)

    events = parse(list(stream(late, 1, Readers(limit=10, heartbeat_seconds=10.0), left=ignore, drop=ignore)))

    assert [event.event for event in events] == ["ping", "token", "done"]
    assert log.text() == "ab"


class LateLog:
    """A log that gets its last chunk and its end right after one of its two looks, which saw nothing of it."""

    def __init__(self, log: Any, moment: str) -> None:
        self._log = log
        self._moments = [moment]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def _pass(self, moment: str) -> None:
        if self._moments == [moment]:
            self._moments.clear()
            self._log.append("b")
            finish(self._log)

    @property
    def end(self) -> End | None:
        end: End | None = self._log.end
        self._pass("terminal")
        return end

    def reader(self, after: int) -> Any:
        reader = self._log.reader(after)
        reader.log = self
        return reader

    def read(self, after: int, max_bytes: int) -> Piece | None:
        piece: Piece | None = self._log.read(after, max_bytes)
        self._pass("read")
        return piece
