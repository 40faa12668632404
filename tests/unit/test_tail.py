"""The tail follows other workers' logs in one read that blocks, and hears this worker's own messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from app import errors
from app.streams.shared import tail as room
from app.streams.shared.connection import Connection
from app.streams.shared.records import Damaged
from app.streams.shared.tail import Tail
from tests.harness.valkey import Database, Valkey
from tests.unit.shared import wait_until

WAKE = "wake"
LONG_BLOCK_SECONDS = 60.0
"""A read that nobody wakes blocks for longer than a test waits."""


class Following:
    """A copy that takes what it is given."""

    def __init__(self, fails: Exception | None = None) -> None:
        self.head = 0
        self.texts: list[bytes] = []
        self.fails = fails

    def take(self, entries: list[Any]) -> None:
        if self.fails is not None:
            raise self.fails
        for entry_id, (_, text) in entries:
            place = int(entry_id.partition(b"-")[0])
            if place > self.head:
                self.head = place
                self.texts.append(text)


class Running:
    """A tail, and what stands around it."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.heard: list[bytes] = []
        self.broken: list[tuple[Any, Exception]] = []
        self.nudges = 0
        self.reads = 0
        self.reads_when_heard = 0
        self.settled = 0
        self.keys: dict[int, str] = {}
        connection = Connection(database.url, name="tailing", timeout_seconds=5.0)
        self._ask = connection.ask
        connection.ask = self.ask  # type: ignore[method-assign]
        self.tail = Tail(connection, wake=WAKE, woken=self.hear, broken=self.drop, nudge=self.nudge)

    def ask(self, commands: Any, **more: Any) -> list[Any]:
        if commands[0][0] == "XREAD":
            self.reads += 1
        return self._ask(commands, **more)

    def hear(self, entries: list[Any]) -> None:
        self.reads_when_heard = self.reads
        self.heard += [value for _, fields in entries for value in fields[1::2]]

    def drop(self, log: Any, error: Exception) -> None:
        self.broken.append((log, error))
        self.tail.unfollow(self.keys[id(log)], log)

    def nudge(self) -> None:
        self.nudges += 1
        self.message("follow")

    def message(self, text: str, place: str = "*") -> None:
        self.database.client.xadd(WAKE, {"m": text}, place)

    def follow(self, key: str, fails: Exception | None = None) -> Following:
        log = Following(fails)
        self.keys[id(log)] = key
        self.tail.follow(key, log)
        return log

    def add(self, key: str, place: int, text: str) -> None:
        self.database.client.xadd(key, {"t": text}, f"{place}-0")

    def start(self) -> Running:
        """Start, and wait until the read blocks that knows of all that is followed."""
        self.tail.start()
        self.settle()
        return self

    def settle(self) -> None:
        """Wait until the read has begun that knows of all that is followed now."""
        self.settled += 1
        text = f"settled {self.settled}".encode()
        self.message(text.decode())
        wait_until(lambda: text in self.heard, "it reads")
        wait_until(lambda: self.reads > self.reads_when_heard, "and reads again")

    def end(self) -> None:
        self.tail.stop()

        def has_ended() -> bool:
            for client in self.database.valkey.connections("tailing"):
                self.database.client.client_kill_filter(_id=client["id"])
            return not self.tail._thread or not self.tail._thread.is_alive()

        wait_until(has_ended, "its thread ends")


@pytest.fixture
def running(valkey_database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setattr(room, "BLOCK_SECONDS", LONG_BLOCK_SECONDS)
    running = Running(valkey_database).start()
    yield running
    running.end()


def test_log_that_is_followed_while_the_read_blocks_gets_what_is_there_and_what_comes(running: Running) -> None:
    running.add("a", 1, "one")
    log = running.follow("a")
    wait_until(lambda: log.texts == [b"one"], "what was there")
    running.add("a", 2, "two")
    running.add("a", 3, "three")
    wait_until(lambda: log.texts == [b"one", b"two", b"three"], "what came")
    assert running.nudges == 1


def test_log_is_given_what_comes_behind_its_head(running: Running) -> None:
    for place in (1, 2, 3):
        running.add("a", place, str(place))
    given: list[bytes] = []
    log = Following()
    log.head = 2
    log.take = lambda entries: given.extend(entry_id for entry_id, _ in entries) or Following.take(log, entries)
    running.tail.follow("a", log)
    wait_until(lambda: log.head == 3, "the third")
    assert given == [b"3-0"]


def test_many_that_are_followed_before_the_next_read_wake_it_once(valkey_database: Database) -> None:
    running = Running(valkey_database)
    logs = [running.follow(f"key {number}") for number in range(5)]
    assert running.nudges == 1
    for number in range(5):
        running.add(f"key {number}", 1, str(number))
    running.tail.start()
    wait_until(lambda: all(log.head == 1 for log in logs), "all are read")
    assert [log.texts for log in logs] == [[str(number).encode()] for number in range(5)]
    running.end()


def test_log_that_is_followed_no_more_is_given_nothing(running: Running) -> None:
    left, kept = running.follow("a"), running.follow("b")
    running.settle()
    running.tail.unfollow("a", kept)  # is none of that key: changes nothing
    running.add("a", 1, "one")
    wait_until(lambda: left.head == 1, "it is followed still")
    running.tail.unfollow("a", left)
    running.settle()
    running.add("a", 2, "two")
    running.add("b", 1, "one")
    wait_until(lambda: kept.head == 1, "the other's")
    assert left.texts == [b"one"]


def test_log_that_is_followed_anew_under_the_same_key_takes_the_others_place(running: Running) -> None:
    first = running.follow("a")
    second = running.follow("a")
    running.tail.unfollow("a", first)
    running.add("a", 1, "one")
    wait_until(lambda: second.head == 1, "the entry")
    assert first.texts == []


@pytest.mark.parametrize(
    "error", [errors.Overloaded(), Damaged("entries"), IndexError()], ids=lambda e: type(e).__name__
)
def test_log_that_cannot_take_what_it_is_given_is_told_and_harms_no_other(running: Running, error: Exception) -> None:
    well, ill = running.follow("a"), running.follow("b", error)
    running.settle()
    for place in (1, 2, 3):
        running.add("b", place, "x")
        running.add("a", place, "x")
        wait_until(lambda place=place: well.head == place, "the other's")
    wait_until(lambda: running.broken, "it is told")
    assert running.broken == [(ill, error)]


def test_damaged_key_among_many_is_found_and_told_alone(running: Running) -> None:
    """The whole read is refused for one."""
    logs = {key: running.follow(key) for key in ("a", "b", "c")}
    running.settle()
    running.database.client.set("b", "no entries")
    running.message("look")
    wait_until(lambda: running.broken, "it is found")
    ((log, error),) = running.broken
    assert (log, type(error), str(error)) == (logs["b"], Damaged, "entries")
    for key in ("a", "c"):
        running.add(key, 1, "one")
    wait_until(lambda: logs["a"].head == logs["c"].head == 1, "the others go on")
    running.message("heard")
    wait_until(lambda: b"heard" in running.heard, "and so do messages")
    assert len(running.broken) == 1


def test_wake_key_of_another_kind_is_begun_anew(running: Running) -> None:
    log = running.follow("a")
    running.settle()
    running.database.client.set(WAKE, "no entries")
    running.add("a", 1, "one")  # wakes the read, and the next one is refused
    wait_until(lambda: log.head == 1, "what is followed")
    wait_until(lambda: not running.database.client.exists(WAKE), "it is gone")
    running.message("heard")
    wait_until(lambda: b"heard" in running.heard, "messages are heard again")
    assert running.broken == []


@pytest.mark.parametrize("place", ["9999999999999-5", f"{2**64 - 1}-{2**64 - 2}"])
def test_message_of_a_later_time_is_heard_and_keeps_no_later_one_from_being_heard(running: Running, place: str) -> None:
    running.message("of tomorrow", place)
    wait_until(lambda: b"of tomorrow" in running.heard, "it is heard")
    wait_until(lambda: not running.database.client.exists(WAKE), "the key is begun anew")
    for number in range(3):
        running.message(f"today {number}")
    wait_until(lambda: running.heard[-3:] == [b"today 0", b"today 1", b"today 2"], "so are those of today")
    assert running.database.client.xlen(WAKE) == 3


def test_messages_are_heard_once_and_in_order(running: Running) -> None:
    for number in range(20):
        running.message(str(number))
    wait_until(lambda: running.heard[-1:] == [b"19"], "the last one")
    assert [text for text in running.heard if text.isdigit()] == [b"%d" % number for number in range(20)]


def test_place_counts_as_later_by_valkeys_own_time(running: Running) -> None:
    """What is ahead by less than a minute may be another clock's."""
    seconds, _ = running.database.client.time()
    running.message("of a moment from now", f"{(seconds + 30) * 1000}-0")
    wait_until(lambda: b"of a moment from now" in running.heard, "it is heard")
    assert running.database.client.xlen(WAKE) >= 1
    assert running.tail._last == b"%d-0" % ((seconds + 30) * 1000)


def test_valkey_that_is_away_is_read_again_from_where_each_log_is(
    own_valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "LONGEST_PAUSE_SECONDS", 0.05)
    running = Running(own_valkey.database()).start()
    log = running.follow("a")
    running.add("a", 1, "one")
    wait_until(lambda: log.head == 1, "the first one")
    assert running.tail._last != b"0-0"
    own_valkey.kill()
    wait_until(lambda: running.tail._last == b"0-0", "its place among the messages is forgotten")
    own_valkey.start()
    running.add("a", 1, "one")
    running.add("a", 2, "two")
    running.message("of a clock that is behind", "5-0")
    wait_until(lambda: log.texts == [b"one", b"two"], "the next one")
    wait_until(lambda: b"of a clock that is behind" in running.heard, "the message")
    assert running.broken == []
    running.end()


def test_connection_that_is_killed_loses_nothing(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "LONGEST_PAUSE_SECONDS", 0.01)
    log = running.follow("a")
    for place in range(1, 6):
        for client in running.database.valkey.connections("tailing"):
            running.database.client.client_kill_filter(_id=client["id"])
        running.add("a", place, str(place))
        wait_until(lambda place=place: log.head == place, "the entry")
    assert log.texts == [b"1", b"2", b"3", b"4", b"5"]


def test_read_is_bounded_and_what_is_left_is_read_next(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MOST_ENTRIES", 3)
    for place in range(1, 11):
        running.add("a", place, str(place))
    sizes: list[int] = []
    log = Following()
    log.take = lambda entries: sizes.append(len(entries)) or Following.take(log, entries)
    running.tail.follow("a", log)
    wait_until(lambda: log.head == 10, "all of them")
    assert max(sizes) <= 3
    assert len(log.texts) == 10


def test_large_read_is_followed_by_a_rest_in_which_others_work(
    valkey_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    rests: list[float] = []
    now = [0.0]

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return now[0]

        @staticmethod
        def sleep(seconds: float) -> None:
            rests.append(seconds)

    class Slow(Following):
        def take(self, entries: list[Any]) -> None:
            super().take(entries)
            now[0] += 2.0  # what is read takes a while

    monkeypatch.setattr(room, "time", Clock)
    running = Running(valkey_database)
    log = Slow()
    running.tail.follow("a", log)
    answer: Callable[[], Any] = running.tail._read

    def last() -> Any:
        running.tail.stop()
        return answer()

    monkeypatch.setattr(running.tail, "_read", last)
    running.add("a", 1, "one")
    running.tail._run()
    assert (log.texts, rests) == ([b"one"], [room.BUSY_SHARE * 2.0 - 2.0])
