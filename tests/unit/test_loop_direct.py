"""Test frames that are written by whoever appends them, past the server that owns the connection.

Only gevent's loop does that (`direct_writer`), where nothing else runs meanwhile; here each step is waited for.
`test_patched` runs this file again in such a loop, and `patched_cases` leaves the order of things to it.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any, Self

import pytest

from app.dialects.interface import Dialect
from app.dialects.native.frames import NativeFrames
from app.platform.sockets import shut
from app.reading import loop
from app.reading.loop import frames
from app.reading.readers import Readers
from app.server.direct import DirectWriter
from app.streams import readership
from app.streams.interface import Piece
from load.events import Event, EventParser
from tests.unit.fakes import PATIENCE_SECONDS
from tests.unit.readings import finish, new_log


def wait_until(fact: Any, what: str) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not fact():
        assert time.monotonic() < until, what
        time.sleep(0.001)


class Served:
    """What gunicorn does with the frames of one reader, in a thread, and the client's end of its connection."""

    def __init__(
        self,
        log: Any,
        after: int = 0,
        *,
        chunked: bool = True,
        small: bool = False,
        heartbeat_seconds: float = 1000.0,
        dialect: Dialect | None = None,
    ) -> None:
        self.log = log
        self.readers = Readers(limit=10, heartbeat_seconds=heartbeat_seconds)
        self.yielded: list[bytes] = []
        self.left: list[int] = []
        self.failure: OSError | None = None
        self._chunked = chunked
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.client = socket.socket()
            if small:
                self.client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            self.client.connect(listener.getsockname())
            self.sock, _ = listener.accept()
        if small:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        for sock in (self.sock, self.client):
            sock.settimeout(PATIENCE_SECONDS)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.writer = DirectWriter(self.sock, chunked=chunked)
        self._loop: Any = frames(
            log,
            after,
            dialect or NativeFrames(log.stream_id, log.origin),
            self.readers,
            left=self.left.append,
            drop=partial(shut, self.sock),
            connection=self.writer,
        )
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            for piece in self._loop:
                self.yielded.append(piece)
                self.sock.sendall(b"%x\r\n%b\r\n" % (len(piece), piece) if self._chunked else piece)
            if self._chunked:
                self.sock.sendall(b"0\r\n\r\n")
        except OSError as failure:
            self.failure = failure
        finally:
            self._loop.close()
            self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.log.end:
            finish(self.log)
        self.client.close()
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive(), "the reader goes on"

    @property
    def reader(self) -> Any:
        (reader,) = self.readers._due
        return reader

    def wait_asleep(self) -> None:
        wait_until(lambda: self.readers.count and self.reader._asleep, "the reader does not sleep")

    def join(self) -> None:
        self._thread.join(PATIENCE_SECONDS)

    def read_rest(self) -> bytes:
        """Read to the end of the connection, and take the chunks apart. Raises: AssertionError."""
        data = b""
        while piece := self.client.recv(65_536):
            data += piece
        if not self._chunked:
            return data
        body = b""
        while True:
            size, _, data = data.partition(b"\r\n")
            body += data[: int(size, 16)]
            assert data[int(size, 16) :][:2] == b"\r\n", "chunks are torn"
            data = data[int(size, 16) + 2 :]
            if size == b"0":
                assert not data
                return body


def events_of(body: bytes) -> list[Event]:
    return EventParser().feed(body)


def assert_whole(body: bytes, log: Any, after: int = 0) -> list[Event]:
    """Check that a stream has each token once and in order, and its end."""
    events = events_of(body)
    assert [event.event for event in events if event.event not in ("token", "ping")] == ["start"] * (not after) + [
        "done"
    ]
    assert events[-1].event == "done"
    place = after
    for token in (event.json for event in events if event.event == "token"):
        place += token["count"]
        assert token["sequence"] == place
    assert place == log.head
    text = "".join(event.json["content"] for event in events if event.event == "token")
    assert text == "".join(log.read(number, 1).text for number in range(after, log.head))
    return events


@pytest.mark.parametrize("chunked", [True, False])
def test_frame_for_a_sleeping_reader_is_on_its_way_when_append_returns(chunked: bool) -> None:
    log = new_log()
    with Served(log, chunked=chunked) as served:
        served.wait_asleep()
        for number, text in enumerate(("a", "é\n", "b")):
            before = time.monotonic()
            log.append(text)
            assert served.reader._asleep, "not woken"
            assert served.reader.after == number + 1
            assert served.reader.frame_at >= before
        assert len(served.yielded) == 1, "the start alone came from the loop"
        finish(log)
        body = served.read_rest()
        served.join()

    assert [event.json["count"] for event in assert_whole(body, log) if event.event == "token"] == [1, 1, 1]
    assert len(served.yielded) == 2
    assert served.left == [3]
    assert body.count(b"\n\n") == 5


def test_frames_written_directly_are_byte_for_byte_what_the_loop_writes() -> None:
    log = new_log()
    with Served(log, chunked=False) as served:
        served.wait_asleep()
        log.append("a")
        log.append("é\n", "\x01😀")
        finish(log)
        body = served.read_rest()

    tokens = (
        b'event: token\ndata: {"sequence":1,"count":1,"content":"a","is_final":false}\nid: %b.1\n\n'
        b'event: token\ndata: {"sequence":3,"count":2,"content":"\\u00e9\\n\\u0001\\ud83d\\ude00","is_final":false}\n'
        b"id: %b.3\n\n"
    ) % ((log.stream_id.encode(),) * 2)
    assert body == served.yielded[0] + tokens + served.yielded[1]


def test_chunks_that_came_together_are_one_frame_and_what_is_too_much_for_one_comes_from_the_loop() -> None:
    log = new_log()
    with Served(log) as served:
        served.wait_asleep()
        log.append("a", "b", "c")
        assert served.reader.after == 3
        assert served.reader._asleep
        many = ["x" * 500] * 100
        log.append(*many)
        wait_until(lambda: served.reader.after == 103 and served.reader._asleep, "the rest is not sent")
        log.append("d")
        assert served.reader.after == 104
        finish(log)
        body = served.read_rest()

    counts = [event.json["count"] for event in assert_whole(body, log) if event.event == "token"]
    assert (counts[0], counts[-1]) == (3, 1)
    assert len(counts) > 7
    assert len(served.yielded) == 1 + len(counts) - 2 + 1, "all but two frames, the start and the end"


def test_piece_that_does_not_follow_the_readers_place_is_left_to_the_loop() -> None:
    log = new_log()
    log.append("a")
    log.append("b")
    with Served(log, 2) as served:
        served.wait_asleep()
        reader = log.reader(0)

        assert not loop._deliver(None, NativeFrames(log.stream_id, log.origin), reader, served.writer, Piece(2, 1, "b"))

        assert reader.after == 0
        finish(log)
        assert [event.event for event in events_of(served.read_rest())] == ["ping", "done"]


@pytest.mark.parametrize("size", [1, 50, 7000])
def test_connection_that_is_full_gets_the_rest_from_the_loop_and_the_frames_after_it_in_order(size: int) -> None:
    log = new_log()
    with Served(log, small=True) as served:
        served.wait_asleep()
        direct = 0
        for number in range(100_000):
            log.append(f"{number} " * size)
            if not served.reader._asleep:
                break
            direct += 1
        assert direct or size == 7000, "the premise: some were written directly, the largest not even once whole"
        for number in range(20):
            log.append(f"later {number} " * size)
        finish(log)
        body = served.read_rest()
        served.join()

    assert_whole(body, log)
    assert served.failure is None
    assert served.left == [log.head]


def test_connection_that_was_full_is_written_to_directly_again() -> None:
    log = new_log()
    with Served(log, small=True) as served:
        served.wait_asleep()
        received = b""
        for _ in range(3):
            while served.reader._asleep:
                log.append("x" * 700)
            got: list[bytes] = []
            stop = threading.Event()

            def read(got: list[bytes] = got, stop: threading.Event = stop) -> None:
                served.client.settimeout(0.01)
                while not stop.is_set():
                    with contextlib.suppress(TimeoutError):
                        got.append(served.client.recv(65_536))

            thread = threading.Thread(target=read)
            thread.start()
            served.wait_asleep()
            stop.set()
            thread.join()
            received += b"".join(got)
            before = len(served.yielded)
            log.append("directly")
            assert served.reader.after == log.head
            assert len(served.yielded) == before
        served.client.settimeout(PATIENCE_SECONDS)
        finish(log)
        rest: list[bytes] = []
        while piece := served.client.recv(65_536):
            rest.append(piece)
        served.join()

    again = Served.__new__(Served)
    again._chunked = True
    again.client = Replayed(received + b"".join(rest))  # type: ignore[assignment]
    assert_whole(again.read_rest(), log)


class Replayed:
    """A socket that gives what was read before."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def recv(self, _: int) -> bytes:
        data, self._data = self._data, b""
        return data


@pytest.mark.parametrize("how", ["reset", "closed"])
def test_reader_that_vanished_ends_and_the_other_one_misses_nothing(how: str) -> None:
    log = new_log()
    with Served(log) as gone, Served(log) as there:
        gone.wait_asleep()
        there.wait_asleep()
        log.append("a")
        if how == "reset":
            gone.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        gone.client.close()
        until = time.monotonic() + PATIENCE_SECONDS
        while not gone.left:
            assert time.monotonic() < until
            assert log.append("b")
            there.wait_asleep()
            time.sleep(0.001)
        assert log.readers == 1
        log.append("c")
        finish(log)
        body = there.read_rest()

    assert isinstance(gone.failure, ConnectionError)
    assert_whole(body, log)


def test_reader_that_takes_nothing_is_dropped_while_its_rest_waits_for_room() -> None:
    """It counts as sending, since its last frame was begun."""
    log = new_log()
    with Served(log, small=True) as served:
        served.wait_asleep()
        while served.reader._asleep:
            log.append("x" * 700)
        wait_until(lambda: served.reader.sending, "the rest is not being sent")
        served.readers.check(served.reader.frame_at + 29.0)
        time.sleep(0.01)  # a drop that came too early would be noticed now
        assert served.failure is None
        served.readers.check(served.reader.frame_at + 31.0)
        served.join()

    assert isinstance(served.failure, OSError)
    assert served.readers.count == 0
    assert served.left


class Clock:
    """Stand for the clock of every module that looks at it: two clocks differ by the age of the machine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        for module in (loop, readership):
            monkeypatch.setattr(module, "time", self)

    def monotonic(self) -> float:
        return self.now


def test_heartbeats_count_from_the_last_frame_whoever_wrote_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    log = new_log()
    with Served(log, heartbeat_seconds=10.0) as served:
        served.wait_asleep()

        def pass_seconds(seconds: float) -> None:
            clock.now += seconds
            served.readers.check(clock.now)
            time.sleep(0.005)  # a ping that is not due would be written now
            served.wait_asleep()

        pass_seconds(9.0)
        log.append("a")
        assert served.reader.frame_at == clock.now
        pass_seconds(9.0)
        assert [piece[:11] for piece in served.yielded[1:]] == [], "no ping so soon after a token"
        pass_seconds(1.0)
        wait_until(lambda: len(served.yielded) == 2, "no ping")
        served.wait_asleep()
        log.append("b")
        pass_seconds(10.0)
        wait_until(lambda: len(served.yielded) == 3, "no second ping")
        served.wait_asleep()
        finish(log)
        body = served.read_rest()

    assert [event.event for event in assert_whole(body, log)] == ["start", "token", "ping", "token", "ping", "done"]
    assert [event.json["tokens"] for event in events_of(body) if event.event == "ping"] == [1, 2]


def test_reader_that_comes_back_is_served_from_its_place_on() -> None:
    log = new_log()
    log.append("a", "b", "c")
    with Served(log, 2) as served:
        served.wait_asleep()
        log.append("d")
        assert served.reader.after == 4
        finish(log)
        body = served.read_rest()

    assert [event.event for event in assert_whole(body, log, after=2)] == ["ping", "token", "token", "done"]


@pytest.fixture
def two() -> Iterator[tuple[Served, Served]]:
    log = new_log()
    with Served(log) as first, Served(log, chunked=False) as second:
        yield first, second


def test_readers_of_one_log_are_each_served_in_their_own_framing(two: tuple[Served, Served]) -> None:
    log = two[0].log
    for served in two:
        served.wait_asleep()
    for number in range(50):
        log.append(f"{number} ")
    finish(log)

    for served in two:
        assert_whole(served.read_rest(), log)
        assert len(served.yielded) == 2


@pytest.mark.parametrize(("is_unresumable", "delivered"), [(True, False), (False, True)])
def test_chunk_is_not_written_before_the_reader_is_told_that_its_stream_is_unresumable(
    is_unresumable: bool, delivered: bool
) -> None:
    """The log may have changed a moment ago, and its reader may still sleep."""
    log = new_log()
    written: list[bytes] = []
    writer: Any = SimpleNamespace(write=lambda data: bool(written.append(data)) or True, is_clear=True)
    sharing: Any = SimpleNamespace(is_unresumable=is_unresumable)
    with log.reader(0) as reader:
        dialect = NativeFrames(log.stream_id, log.origin)

        assert loop._deliver(sharing, dialect, reader, writer, Piece(1, 1, "a")) is delivered
        assert (len(written), reader.after) == ((1, 1) if delivered else (0, 0))
