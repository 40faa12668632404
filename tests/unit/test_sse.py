"""Test frames byte by byte, and the loop that reads a log into them."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import errors
from app.reading import loop as sse
from app.reading.loop import FRAME_BYTES, Readers, frame, frames, next_token_frame
from app.streams.interface import End, Origin, Piece, Totals
from app.streams.memory.store import MemoryStore
from tests.harness.events import Event, EventParser
from tests.unit.ends import end_with

PATIENCE_SECONDS = 20.0


def new_log() -> Any:
    store = MemoryStore(max_active=10, budget_bytes=100_000_000, retention_seconds=60)
    return store.create(Origin("c-1", "m", "2026-11-21T09:00:00.000Z"))[0]


def log_of(*chunks: str, end: bool = True) -> Any:
    log = new_log()
    for chunk in chunks:
        log.append(chunk)
    if end:
        finish(log)
    return log


def finish(log: Any) -> None:
    log.finish(end_with())


def ignore(*_: object) -> None: ...


def read(log: Any, after: int = 0, readers: Readers | None = None) -> list[bytes]:
    readers = readers or Readers(limit=10, heartbeat_seconds=10.0)
    return list(frames(log, after, readers, left=ignore, drop=ignore))


def parse(pieces: list[bytes]) -> list[Event]:
    parser = EventParser()
    return [event for piece in pieces for event in parser.feed(piece)]


# Frames


@pytest.mark.requirement("tasks T015", "tasks pattern 1")
def test_frame_is_lines_of_lf_with_its_id_last_and_a_blank_one() -> None:
    assert frame("done", {"b": 1, "a": "é"}, "cw_x.3") == b'event: done\ndata: {"b":1,"a":"\\u00e9"}\nid: cw_x.3\n\n'
    assert frame("ping", {}) == b"event: ping\ndata: {}\n\n"


@pytest.mark.requirement("core entity StreamChunk", "tasks T012", "tasks checklist 6", "tasks stop 1")
def test_stream_from_the_beginning_is_start_tokens_and_terminal_byte_by_byte() -> None:
    log = log_of("He", "llo")
    stream_id = log.stream_id

    assert read(log) == [
        b'retry: 1000\nevent: start\ndata: {"stream_id":"%s","correlation_id":"c-1","model":"m",'
        b'"created":"2026-11-21T09:00:00.000Z","heartbeat_seconds":10}\nid: %s.0\n\n'
        % (stream_id.encode(), stream_id.encode()),
        b'event: token\ndata: {"sequence":2,"count":2,"content":"Hello","is_final":false}\nid: %s.2\n\n'
        % stream_id.encode(),
        b'event: done\ndata: {"sequence":3,"is_final":true,"status":"complete","finish_reason":null,"model":"m",'
        b'"tokens":2,"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9,"source":"estimated"},"first_token_ms":null,'
        b'"duration_ms":1,"characters":5,"sha256":"%s","correlation_id":"c-1"}\nid: %s.3\n\n'
        % (hashlib.sha256(b"Hello").hexdigest().encode(), stream_id.encode()),
    ]


@pytest.mark.parametrize("after", [1, 2])
def test_stream_resumed_begins_with_a_ping_that_has_the_cursor_and_never_with_start(after: int) -> None:
    log = log_of("He", "llo")
    first, *rest = parse(read(log, after))

    assert (first.event, first.id) == ("ping", f"{log.stream_id}.{after}")
    assert first.json == {"phase": "generating", "tokens": 2}
    assert [event.event for event in rest] == ["token"] * (2 - after) + ["done"]


NASTY = [
    "\r\n",
    "\r",
    "\n",
    "\u2028",
    "\u2029",
    "\u0085",
    "\x0b",
    "\x0c",
    "\0",
    "data: x\n\n",
    '"\\',
    "é",
    "😀",
    "\x7f",
]


@pytest.mark.parametrize("text", NASTY)
def test_frame_of_any_text_is_one_line_of_ascii_data(text: str) -> None:
    (_, token, _) = read(log_of(text))

    assert re.fullmatch(rb"event: token\ndata: [\x20-\x7f]+\nid: [\x21-\x7e]+\n\n", token)
    (event,) = parse([token])
    assert event.json["content"] == text


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


@settings(deadline=None)
@given(st.lists(TEXTS, max_size=30), st.data())
@pytest.mark.requirement("chatwait resilience 2")
def test_stream_of_any_chunks_from_any_cursor_adds_up(chunks: list[str], data: st.DataObject) -> None:
    after = data.draw(st.integers(0, len(chunks)))

    events = parse(read(log_of(*chunks), after))

    tokens = [event.json for event in events if event.event == "token"]
    assert "".join(token["content"] for token in tokens) == "".join(chunks[after:])
    place = after
    for token in tokens:
        assert list(token) == ["sequence", "count", "content", "is_final"]
        place += token["count"]
        assert token["sequence"] == place
    assert place == len(chunks)
    assert [event.event for event in events if event.event != "token"] == ["ping" if after else "start", "done"]


@pytest.mark.parametrize("chunk", ["a", "\x01", "é", "\u2028", "😀", '"', "\x01" * 7, "ab\x01", "\x01" * 1300])
def test_frames_of_many_chunks_hold_at_most_8_kib_however_they_are_escaped(chunk: str) -> None:
    log = log_of(*[chunk] * 20_000 if len(chunk) < 100 else [chunk] * 200)

    tokens = [piece for piece in read(log) if piece.startswith(b"event: token")]

    sizes = [len(piece.split(b"\n")[1]) - len("data: ") for piece in tokens]
    assert len(tokens) > 1, "the premise: more than one frame"
    assert max(sizes) <= FRAME_BYTES
    assert all(size > FRAME_BYTES / 8 for size in sizes[:-1]), "and frames are not needlessly small"
    assert "".join(event.json["content"] for event in parse(tokens)) == log.text()


def test_frame_of_a_single_larger_chunk_holds_it_alone() -> None:
    events = parse(read(log_of("a", "\x01" * 50_000, "b")))

    assert [event.json["count"] for event in events if event.event == "token"] == [1, 1, 1]


def test_frames_of_chunks_that_escape_differently_lose_nothing() -> None:
    chunks = [("\x01" if number % 7 else "a" * 900) * (number % 90 + 1) for number in range(400)]
    log = log_of(*chunks)

    tokens = [piece for piece in read(log) if piece.startswith(b"event: token")]

    for event, piece in zip(parse(tokens), tokens, strict=True):
        assert event.json["count"] == 1 or len(piece.split(b"\n")[1]) - len("data: ") <= FRAME_BYTES
    assert "".join(event.json["content"] for event in parse(tokens)) == log.text()


def test_token_frame_at_the_head_is_none_and_does_not_move_the_reader() -> None:
    log = log_of("a", end=False)
    reader = log.reader(1)

    assert next_token_frame(log, reader) is None
    assert reader.after == 1


# The loop


class Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


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
    is_unresumable = False

    def __init__(self, reader: ScriptedReader) -> None:
        self._reader = reader

    def reader(self, after: int, **_: object) -> Any:
        self._reader.after = after
        return self._reader


def test_stream_pings_after_a_heartbeat_without_a_frame_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time()
    monkeypatch.setattr(sse, "time", time)

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

    events = parse(list(frames(log, 0, Readers(limit=1, heartbeat_seconds=10.0), left=ignore, drop=ignore)))

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
    monkeypatch.setattr(sse, "time", time)

    def beat() -> None:
        time.now += 10

    def end() -> None:
        log.end = end_with()(Totals(2, 0, "", ""))

    log: Any = ScriptedLog(ScriptedReader(time, [beat, end]))
    log.head = 2

    events = parse(list(frames(log, 2, Readers(limit=1, heartbeat_seconds=10.0), left=ignore, drop=ignore)))

    assert [(event.event, event.id and event.id.rpartition(".")[2]) for event in events] == [
        ("ping", "2"),
        ("ping", None),
        ("done", "3"),
    ]


def test_stream_marks_the_reader_as_sending_exactly_while_a_frame_is_out() -> None:
    log = log_of("a", end=False)
    readers = Readers(limit=1, heartbeat_seconds=10.0)
    loop = frames(log, 0, readers, left=ignore, drop=ignore)
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
    loop = frames(log, 0, readers, left=left.append, drop=ignore)
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

    frames(log, 0, readers, left=left.append, drop=ignore).close()  # type: ignore[attr-defined]

    assert (log.readers, readers.count, left) == (0, 0, [])


def test_stream_given_a_last_chunk_and_the_end_at_once_delivers_them_in_order() -> None:
    log = log_of("a", end=False)
    readers = Readers(limit=10, heartbeat_seconds=10.0)
    loop = frames(log, 1, readers, left=ignore, drop=ignore)
    next(loop)
    log.append("b")
    finish(log)

    assert [event.event for event in parse(list(loop))] == ["token", "done"]


@pytest.mark.parametrize("moment", ["terminal", "read"])
def test_stream_given_the_last_chunk_and_the_end_between_its_two_looks_delivers_both(moment: str) -> None:
    log = log_of("a", end=False)
    late: Any = LateLog(log, moment)

    events = parse(list(frames(late, 1, Readers(limit=10, heartbeat_seconds=10.0), left=ignore, drop=ignore)))

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
        reader._log = self
        return reader

    def read(self, after: int, max_bytes: int) -> Piece | None:
        piece: Piece | None = self._log.read(after, max_bytes)
        self._pass("read")
        return piece


# Who reads


class FakeReader:
    def __init__(self, frame_at: float, *, sending: bool = False) -> None:
        self.frame_at = frame_at
        self.sending = sending
        self.nudges = 0

    def nudge(self) -> None:
        self.nudges += 1


def test_readers_checked_nudge_those_whose_heartbeat_is_due() -> None:
    readers = Readers(limit=10, heartbeat_seconds=10.0)
    due, young, waiting = FakeReader(0.0), FakeReader(1.0), FakeReader(10.0)
    readers.add(due)  # type: ignore[arg-type]
    readers.add(young)  # type: ignore[arg-type]
    readers.add(waiting, every_seconds=0.0)  # type: ignore[arg-type]

    readers.check(10.0)

    assert (due.nudges, young.nudges, waiting.nudges) == (1, 0, 1)


@pytest.mark.parametrize(("idle", "sending", "dropped"), [(29.9, True, 0), (30.0, True, 1), (300.0, False, 0)])
def test_readers_checked_drop_one_that_takes_nothing(idle: float, sending: bool, dropped: int) -> None:
    readers = Readers(limit=10, heartbeat_seconds=300.0)
    drops: list[int] = []
    reader = FakeReader(0.0, sending=sending)
    readers.add(reader, drop=lambda: drops.append(1))  # type: ignore[arg-type]

    readers.check(idle)

    assert len(drops) == dropped


def test_readers_removed_are_neither_nudged_nor_dropped() -> None:
    readers = Readers(limit=10, heartbeat_seconds=10.0)
    drops: list[int] = []
    reader = FakeReader(0.0, sending=True)
    readers.add(reader, drop=lambda: drops.append(1))  # type: ignore[arg-type]
    readers.remove(reader)  # type: ignore[arg-type]
    readers.remove(reader)  # type: ignore[arg-type]

    readers.check(1000.0)

    assert (reader.nudges, drops, readers.count) == (0, [], 0)


def test_readers_at_their_limit_admit_no_more() -> None:
    readers = Readers(limit=1, heartbeat_seconds=10.0)
    readers.admit()
    readers.add(FakeReader(0.0))  # type: ignore[arg-type]

    with pytest.raises(errors.Overloaded) as refused:
        readers.admit()
    assert refused.value.retry_after_seconds


def test_readers_keep_a_place_for_as_long_as_it_is_held() -> None:
    readers = Readers(limit=2, heartbeat_seconds=10.0)
    places = [readers.admit() for _ in range(2)]
    with pytest.raises(errors.Overloaded):
        readers.admit()
    places.pop()
    readers.add(FakeReader(0.0))  # type: ignore[arg-type]
    with pytest.raises(errors.Overloaded):
        readers.admit()
    places.pop()
    assert readers.admit() is not None


# Waiting for the end


def test_wait_for_no_time_returns_at_once() -> None:
    log = log_of("a", end=False)
    readers = Readers(limit=10, heartbeat_seconds=10.0)  # which nobody checks: nothing would wake who sleeps

    assert sse.wait(log, readers, seconds=0.0, gone=lambda: False) is None
    assert (log.readers, readers.count) == (0, 0)


def test_wait_returns_the_end_of_a_finished_log_at_once() -> None:
    log = log_of("a")
    readers = Readers(limit=10, heartbeat_seconds=10.0)

    assert sse.wait(log, readers, seconds=None, gone=lambda: False) is log.end
    assert (log.readers, readers.count) == (0, 0)


def test_wait_returns_when_the_log_ends() -> None:
    log = log_of("a", end=False)
    readers = Readers(limit=10, heartbeat_seconds=10.0)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(sse.wait, log, readers, seconds=None, gone=lambda: False)
        while not log.readers:
            threading.Event().wait(0.001)
        finish(log)
        assert waiting.result(PATIENCE_SECONDS) is log.end


@pytest.fixture
def ticking() -> Iterator[Readers]:
    """Readers that are looked at all the time, as the clock does."""
    readers = Readers(limit=10, heartbeat_seconds=10.0)
    stop = threading.Event()

    def tick() -> None:
        while not stop.wait(0.005):
            readers.check(1e12)

    thread = threading.Thread(target=tick)
    thread.start()
    yield readers
    stop.set()
    thread.join()


@pytest.mark.parametrize("seconds", [0.0, 0.02])
def test_wait_gives_up_after_its_seconds(ticking: Readers, seconds: float) -> None:
    log = log_of("a", end=False)

    assert sse.wait(log, ticking, seconds=seconds, gone=lambda: False) is None
    assert log.readers == 0


def test_wait_gives_up_on_a_client_that_is_gone(ticking: Readers, monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time()
    monkeypatch.setattr(sse, "time", time)
    log = log_of("a", end=False)
    asked: list[float] = []

    def gone() -> bool:
        asked.append(time.now)
        return len(asked) == 2

    class Moving:
        def monotonic(self) -> float:
            time.now += 0.25
            return time.now

    monkeypatch.setattr(sse, "time", Moving())

    assert sse.wait(log, ticking, seconds=None, gone=gone) is None
    assert len(asked) == 2
    assert asked[1] - asked[0] >= 1.0, "asked about once a second"
    assert log.readers == 0
