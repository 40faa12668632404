"""The readers of one log: who is counted, who is woken, and who is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from app.streams import readership as room
from app.streams.interface import Piece
from app.streams.readership import LogReader, Readership

PIECE = Piece(1, 1, "a")


class Read:
    """A log as its readers use it."""

    def __init__(self) -> None:
        self.head = 0
        self.end: Any = None
        self.lock = threading.Lock()
        self.readership = Readership(self.lock)
        self.left = 0

    def read(self, after: int, max_bytes: int) -> Piece | None:
        return PIECE if self.head > after else None

    def attach(self, reader: LogReader) -> None:
        self.readership.add(reader)

    def detach(self, reader: LogReader) -> None:
        self.left += self.readership.remove(reader)
        self.readership.departed()

    def departed(self) -> None:
        self.readership.departed()

    def reader(self, *, only_end: bool = False) -> LogReader:
        return LogReader(self, 0, only_end=only_end)  # type: ignore[arg-type]


@pytest.fixture
def log() -> Read:
    return Read()


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]

    class Time:
        @staticmethod
        def monotonic() -> float:
            return now[0]

    monkeypatch.setattr(room, "time", Time)
    return now


@pytest.fixture
def sleeping(log: Read) -> Iterator[list[threading.Thread]]:
    """Threads of readers, each woken with the test."""
    made: list[threading.Thread] = []
    yield made
    log.end = "over"
    log.readership.release()
    for thread in made:
        thread.join(20.0)
        assert not thread.is_alive()


def asleep(reader: LogReader, sleeping: list[threading.Thread]) -> threading.Thread:
    """Have a reader sleep in a thread."""
    inner, sleeps = reader._wake, threading.Event()

    class Told:
        @staticmethod
        def acquire() -> None:
            sleeps.set()
            inner.acquire()

        release = staticmethod(inner.release)

    reader._wake = Told  # type: ignore[assignment]
    thread = threading.Thread(target=reader.wait, daemon=True)
    sleeping.append(thread)
    thread.start()
    assert sleeps.wait(20.0)
    return thread


def test_readers_are_counted_while_they_are_in_and_since_when_there_is_none(log: Read, now: list[float]) -> None:
    log = Read()
    readership = log.readership
    assert (len(readership), readership.attached, readership.unread_since) == (0, 0, 1000.0)
    now[0] = 1010.0
    with log.reader(), log.reader():
        assert (len(readership), readership.attached, readership.unread_since) == (2, 2, None)
        now[0] = 1020.0
    assert (len(readership), readership.attached, readership.unread_since, log.left) == (0, 2, 1020.0, 1)
    now[0] = 1030.0
    readership.departed()
    assert readership.unread_since == 1020.0, "it was unread before"


def test_log_whose_readers_have_all_departed_is_unread_though_they_are_counted(log: Read, now: list[float]) -> None:
    with log.reader() as one, log.reader() as two:
        one.depart()
        assert (one.is_departed, log.readership.unread_since) == (True, None)
        now[0] = 1010.0
        two.depart()
        assert (len(log.readership), log.readership.unread_since) == (2, 1010.0)
        now[0] = 1020.0
        with log.reader():
            assert log.readership.unread_since is None
        assert log.readership.unread_since == 1020.0, "the one that stayed has left"


def test_reader_is_removed_and_no_equal_one(log: Read) -> None:
    one, two = log.reader(), log.reader()
    log.attach(one)
    log.attach(two)
    assert not log.readership.remove(one)
    assert not log.readership.remove(one)
    assert len(log.readership) == 1
    assert log.readership.remove(two)


def test_reader_with_something_to_read_does_not_sleep(log: Read) -> None:
    with log.reader() as reader:
        log.head = 1
        reader.wait()
        assert reader.read(10) is PIECE
        reader.after, log.end = 1, "over"
        reader.wait()
        log.end = None
        reader.release()
        reader.wait()
        assert (reader.is_released, reader._asleep) == (True, False)
    with log.reader(only_end=True) as reader:
        log.head, log.end = 1, "over"
        reader.wait()


def test_reader_asleep_is_woken_by_what_is_told_a_nudge_or_its_release(
    log: Read, sleeping: list[threading.Thread]
) -> None:
    for wake in (
        lambda: log.readership.tell(PIECE),
        log.readership.nudge,
        log.readership.release,
    ):
        with log.reader() as reader:
            thread = asleep(reader, sleeping)
            wake()
            thread.join(20.0)
            assert not thread.is_alive()
            assert not reader._asleep


def test_reader_that_wants_only_the_end_sleeps_through_records(log: Read, sleeping: list[threading.Thread]) -> None:
    asked: list[Piece] = []
    with log.reader(only_end=True) as reader:
        reader.deliver = lambda piece: asked.append(piece) or False  # type: ignore[func-returns-value]
        log.head = 1
        thread = asleep(reader, sleeping)
        log.readership.tell(PIECE)
        assert (asked, reader._asleep) == ([], True)
        log.end = "over"
        log.readership.nudge()
        thread.join(20.0)
        assert not thread.is_alive()


def test_reader_that_is_served_where_it_sleeps_is_not_woken(log: Read, sleeping: list[threading.Thread]) -> None:
    asked: list[Piece] = []
    with log.reader() as reader:
        takes = [True, True, False]
        reader.deliver = lambda piece: asked.append(piece) or takes.pop(0)  # type: ignore[func-returns-value]
        log.readership.tell(PIECE)
        assert asked == [], "awake: it may be writing at this moment"
        thread = asleep(reader, sleeping)
        for _ in range(2):
            log.readership.tell(PIECE)
            assert reader._asleep
        log.readership.tell(PIECE)
        thread.join(20.0)
        assert (asked, thread.is_alive()) == ([PIECE] * 3, False)
    assert reader.deliver is None, "it knows the connection"


def test_reader_is_woken_once_however_often_it_is_nudged(log: Read, sleeping: list[threading.Thread]) -> None:
    with log.reader() as reader:
        for _ in range(3):
            reader.nudge()
        thread = asleep(reader, sleeping)
        for _ in range(3):
            reader.nudge()
        thread.join(20.0)
        again = asleep(reader, sleeping)
        assert again.is_alive(), "no nudge is left over"
        reader.nudge()
        again.join(20.0)
        assert not again.is_alive()


def test_one_that_attaches_or_leaves_while_others_are_told_harms_nobody(log: Read) -> None:
    told: list[str] = []
    with log.reader() as first, log.reader() as second:
        late = log.reader()

        def leave(_: Piece) -> bool:
            told.append("first")
            log.readership.add(late)
            log.readership.remove(first)
            return True

        late.deliver = lambda _: told.append("late") or True  # type: ignore[func-returns-value]
        second.deliver = lambda _: told.append("second") or True  # type: ignore[func-returns-value]
        first.deliver = leave
        for reader in (first, second, late):
            reader._asleep = True
        log.readership.tell(PIECE)
        assert told == ["first", "second"]
        log.readership.tell(PIECE)
        assert told == ["first", "second", "second", "late"]
