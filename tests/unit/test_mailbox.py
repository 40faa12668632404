"""What workers tell each other reaches them: stops, and who reads whose streams."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from app import errors
from app.streams.interface import new_stream_id
from app.streams.shared import store as shared
from tests.harness.valkey import Database
from tests.harness.valkey_fixtures import EACH_KIND
from tests.unit.ends import end_with
from tests.unit.shared import PATIENCE_SECONDS, Worker, wait_until, workers


@pytest.fixture(params=EACH_KIND)
def database(request: pytest.FixtureRequest) -> Database:
    """Give each test that does Valkey no harm one of each kind."""
    database: Database = request.getfixturevalue(f"{request.param}_database")
    return database


def stops_asked(database: Database, worker: Worker) -> int:
    """Count the messages in which others ask a worker to stop a stream of its own."""
    messages: Any = database.client.xrange(f"{{{shared.TAG}}}:wake:{worker.store.worker}")
    return sum(b"cancel" in fields for _, fields in messages)


def test_stop_at_another_worker_reaches_the_one_that_generates(database: Database) -> None:
    """And needs no copy of the log there."""
    with workers(database.url, 2, retention_seconds=1.0) as (one, two):
        log = one.begin()
        log.append("a", "b")
        wait_until(lambda: log.head == 2, "the chunks")
        assert two.store.cancel(log.stream_id) == (None, 2)
        wait_until(lambda: log.stream_id in one.cancelled, "the stop", 1.0)
        assert (two.cancelled, two.store.used_bytes) == ([], 0)
        assert log.finish(end_with("cancelled"))
        assert log.settle(PATIENCE_SECONDS)
        asked = stops_asked(database, one)
        assert two.store.cancel(log.stream_id) == (log.end, 2)
        database.let_pass(1.0)
        with pytest.raises(errors.StreamExpired):
            two.store.cancel(log.stream_id)
        with pytest.raises(errors.StreamUnknown):
            two.store.cancel(new_stream_id())
        assert stops_asked(database, one) == asked == 1, "a stream that has ended is not asked to end"


def test_stop_reaches_a_worker_that_stood_still_however_many_others_were_asked_meanwhile(database: Database) -> None:
    """Before a first token nothing but the stop itself leads to it, and a worker's messages are few."""
    with workers(database.url, 2) as (one, two):
        logs = [one.begin() for _ in range(95)]  # max_active of these workers is 100
        one.pause()
        for log in logs:
            assert two.store.cancel(log.stream_id) == (None, 0)
            two.store.cancel(logs[0].stream_id)  # one may be asked again and again
        assert one.cancelled == []
        one.go_on()
        wait_until(lambda: {log.stream_id for log in logs} <= set(one.cancelled), "all the stops", 5.0)
        for log in logs:
            assert log.finish(end_with("cancelled"))
        key = one.store._commands.stops_key(one.store.worker)
        wait_until(lambda: not database.client.exists(key), "and nothing is left of them", 5.0)


def test_stop_that_a_worker_of_the_version_before_asks_for_is_heard(database: Database) -> None:
    """It leaves a message, and no more."""
    with workers(database.url, 1) as (one,):
        log = one.begin()
        database.client.xadd(one.store._commands.wake_key(one.store.worker), {"cancel": log.stream_id})
        wait_until(lambda: log.stream_id in one.cancelled, "the stop", 5.0)


def test_log_that_is_read_elsewhere_is_not_unread(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    with workers(database.url, 2) as (one, two):
        two.store._note_seconds = 0.1
        log = one.begin()
        copy = two.store.find(log.stream_id)
        with copy.reader(0):
            began = log.unread_since
            assert began is not None
            wait_until(lambda: (log.unread_since or 0.0) > began + 0.25, "it is heard of again and again")
        left = time.monotonic()
        wait_until(lambda: (log.unread_since or 0.0) >= left, "the last one's leaving is heard of")


def test_messages_for_a_worker_are_few_and_expire(database: Database) -> None:
    with workers(database.url, 2) as (one, two):
        log = one.begin()
        copy = two.store.find(log.stream_id)
        for _ in range(300):
            two.store._mailbox.note_reading([copy])
        two.store.flush()
        key = two.store._commands.wake_key(one.store.worker)
        assert 0 < database.client.xlen(key) <= 100
        assert database.client.pttl(key) > 0


def test_stop_that_takes_a_while_keeps_no_other_log_waiting(database: Database) -> None:
    """To end an answer may mean to count its tokens; Valkey's answers are for all."""
    with workers(database.url, 2) as (one, two):
        slow, other = one.begin(), one.begin()
        begins, ends = threading.Event(), threading.Event()
        one.store._cancel = lambda stream_id, reason: begins.set() or ends.wait(PATIENCE_SECONDS)
        try:
            two.store.cancel(slow.stream_id)
            slow.append("a")
            assert begins.wait(PATIENCE_SECONDS)
            other.append("a")
            wait_until(lambda: other.head == 1, "the other's chunk", 5.0)
        finally:
            ends.set()


# What is heard


def heard(worker: Worker, *messages: tuple[bytes, bytes]) -> None:
    worker.store._mailbox.hear([[b"1-0", [part for message in messages for part in message]]])


def test_stop_is_given_once_with_the_next_look(database: Database) -> None:
    with workers(database.url, 1) as (one,):
        one.pause()
        heard(one, (b"cancel", b"cw_a"), (b"cancel", b"cw_b"))
        heard(one, (b"cancel", b"cw_a"))
        assert one.cancelled == [], "it is carried out elsewhere"
        assert one.store._mailbox.take_stops() == {"cw_a", "cw_b"}
        assert one.store._mailbox.take_stops() == set()
        one.go_on()


def test_message_that_means_nothing_here_is_passed_over(database: Database) -> None:
    with workers(database.url, 1) as (one,):
        log = one.begin()
        one.pause()
        began = log.unread_since
        heard(one, (b"newer", b"x"), (b"follow", b""), (b"reads", b"cw_nobodys \xff"), (b"reads", b""))
        assert (log.unread_since, one.store._mailbox.take_stops()) == (began, set())
        heard(one, (b"reads", b"cw_nobodys " + log.stream_id.encode()))
        assert (log.unread_since or 0.0) > (began or 0.0)
        one.go_on()


def test_log_that_somebody_reads_elsewhere_is_compared_with_what_valkey_has(database: Database) -> None:
    with workers(database.url, 2) as (one, two):
        log = one.begin()
        log.append("a")
        wait_until(lambda: log.head == 1, "the record")
        copy = two.store.find(log.stream_id)
        database.client.delete(*one.store._commands.keys(log.stream_id))
        two.store._mailbox.note_reading([copy])
        wait_until(lambda: database.client.exists(one.store._commands.keys(log.stream_id)[1]), "it is written anew")


def test_producers_are_told_each_in_one_message_of_all_that_is_read_here(database: Database) -> None:
    with workers(database.url, 3) as (one, two, three):
        logs = [one.begin(), one.begin(), two.begin()]
        copies = [three.store.find(log.stream_id) for log in logs]
        three.store.flush()
        for worker in (one, two):
            database.client.delete(worker.store._commands.wake_key(worker.store.worker))
        one.pause()
        two.pause()
        three.store._mailbox.note_reading(copies)
        three.store._mailbox.note_reading([])
        three.store.flush()
        told: list[list[bytes]] = []
        for worker in (one, two):
            messages: Any = database.client.xrange(worker.store._commands.wake_key(worker.store.worker))
            told.append([fields[b"reads"] for _, fields in messages if b"reads" in fields])
            worker.go_on()
        assert told == [
            [" ".join(log.stream_id for log in logs[:2]).encode()],
            [logs[2].stream_id.encode()],
        ]


def test_set_of_stops_that_is_none_is_begun_anew(database: Database) -> None:
    with workers(database.url, 2) as (one, two):
        key = one.store._commands.stops_key(one.store.worker)
        database.client.set(key, "no set")
        wait_until(lambda: not database.client.exists(key), "it is gone")
        log = one.begin()
        two.store.cancel(log.stream_id)
        wait_until(lambda: log.stream_id in one.cancelled, "the stop")


def test_stop_of_what_is_over_is_forgotten_and_that_of_what_goes_on_stays(database: Database) -> None:
    with workers(database.url, 1) as (one,):
        log = one.begin()
        key = one.store._commands.stops_key(one.store.worker)
        database.client.sadd(key, log.stream_id, "cw_over", b"\xff")
        wait_until(lambda: database.client.smembers(key) == {log.stream_id.encode()}, "what is over")
        wait_until(lambda: one.cancelled.count(log.stream_id) > 1, "it is said again until it is done")
        assert set(one.cancelled) == {log.stream_id}
        log.finish(end_with("cancelled"))
        wait_until(lambda: not database.client.exists(key), "nothing is left")
