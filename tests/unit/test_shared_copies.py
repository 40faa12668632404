"""Copies of other workers' logs: made once, followed to the end, brought up to a cursor, dropped when nobody reads."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from app import errors
from app.streams.interface import new_stream_id
from app.streams.shared import copies
from app.streams.shared.log import SharedLog
from tests.harness.chaos import ChaosProxy
from tests.harness.valkey import Database, Valkey
from tests.harness.valkey_fixtures import EACH_KIND
from tests.unit.ends import end_with, terminal_of
from tests.unit.shared import LEASE_SECONDS, ORIGIN, PATIENCE_SECONDS, wait_until, workers

LONG = 30.0
"""The lease of workers that are not to be taken for dead, though Valkey is away for longer than usual."""


@pytest.fixture(params=EACH_KIND)
def database(request: pytest.FixtureRequest) -> Database:
    """Give each test that does Valkey no harm one of each kind."""
    database: Database = request.getfixturevalue(f"{request.param}_database")
    return database


def test_copy_follows_its_log_to_the_end(database: Database) -> None:
    with workers(database.url, 2) as (one, two):
        log = one.begin()
        log.append("a", "b")
        wait_until(lambda: log.head == 2, "the chunks")
        copy = two.store.find(log.stream_id)
        assert (copy.head, copy.text(), copy.origin, copy.is_foreign) == (2, "ab", ORIGIN, True)
        assert not copy.append("x"), "it is another's to write"
        assert not copy.finish(end_with("failed"))
        for number in range(300):
            log.append(f"{number} ")
        log.finish(end_with())
        assert copy.settle(PATIENCE_SECONDS)
        assert log.settle(PATIENCE_SECONDS)  # its own worker may hear of what is stored a moment later
        assert (copy.head, copy.text()) == (302, log.text())
        assert (terminal_of(copy).event, terminal_of(copy).content) == (
            terminal_of(log).event,
            terminal_of(log).content,
        )
        assert two.store.find(log.stream_id) is copy


def test_log_found_by_many_at_once_is_copied_once(database: Database) -> None:
    with workers(database.url, 2) as (one, two), ThreadPoolExecutor(16) as pool:
        log = one.begin()
        log.append(*["x"] * 2000)
        wait_until(lambda: log.head == 2000, "the chunks")
        barrier = threading.Barrier(16)

        def find() -> SharedLog:
            barrier.wait(PATIENCE_SECONDS)
            return two.store.find(log.stream_id)

        found = [future.result(PATIENCE_SECONDS) for future in [pool.submit(find) for _ in range(16)]]
        assert len({id(copy) for copy in found}) == 1
        assert found[0].head == 2000


def test_cursor_that_came_from_the_other_worker_a_moment_ago_is_never_ahead(database: Database) -> None:
    with workers(database.url, 2) as (one, two):
        log = one.begin()
        assert two.store.find(log.stream_id).head == 0
        for number in range(1, 200):
            log.append("x")
            wait_until(lambda number=number: log.head == number, "the chunk")
            assert two.store.find(log.stream_id, reach=number).head >= number


def test_cursor_that_was_made_up_is_waited_for_no_longer_than_a_lease_with_few_questions(database: Database) -> None:
    with workers(database.url, 2, lease_seconds=2.0) as (one, two), ThreadPoolExecutor(40) as pool:
        log = one.begin()
        two.store.find(log.stream_id)
        asked, ask = [], two.store._committer.ask
        two.store._committer.ask = lambda *commands: asked.append(commands) or ask(*commands)
        began = time.monotonic()
        found = [pool.submit(two.store.find, log.stream_id, reach=1000) for _ in range(40)]
        assert [finding.result(PATIENCE_SECONDS).head for finding in found] == [0] * 40
        assert 2.0 <= time.monotonic() - began < 10.0  # on any machine, however busy
        assert len(asked) <= 40 * 9


def test_cursors_that_were_made_up_for_one_stream_leave_room_for_those_of_others(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "MOST_WAITING", 12)
    monkeypatch.setattr(copies, "MOST_WAITING_FOR_ONE", 8)
    with workers(database.url, 2, lease_seconds=LONG) as (one, two), ThreadPoolExecutor(30) as pool:
        logs = [one.begin() for _ in range(3)]
        for log in logs:
            two.store.find(log.stream_id)
        found = [pool.submit(two.store.find, logs[0].stream_id, reach=1000) for _ in range(20)]
        wait_until(lambda: sum(finding.done() for finding in found) == 12, "who has no room is told at once", 10.0)
        for finding in found:
            if finding.done():
                with pytest.raises(errors.StoreUnavailable):
                    finding.result()
        others = [pool.submit(two.store.find, log.stream_id, reach=1) for log in logs[1:] for _ in range(2)]
        wait_until(lambda: two.store._copies._waiting.total() == 12, "the others wait")
        with pytest.raises(errors.StoreUnavailable):
            two.store.find(logs[1].stream_id, reach=1)
        for log in logs[1:]:
            log.append("a")
        assert [finding.result(PATIENCE_SECONDS).head for finding in others] == [1] * 4
        logs[0].finish(end_with())
        assert sum(finding.exception(PATIENCE_SECONDS) is None for finding in found) == 8
        assert not two.store._copies._waiting


def test_copy_that_nobody_reads_is_dropped_and_made_again(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "IDLE_SECONDS", 0.3)
    with workers(database.url, 2) as (one, two):
        log = one.begin()
        log.append("a")
        wait_until(lambda: log.head == 1, "the chunk")
        copy = two.store.find(log.stream_id)
        with copy.reader(0):
            two.store._copies.drop_idle(time.monotonic() + 1000.0)
            assert two.store.find(log.stream_id) is copy
        wait_until(lambda: two.store.used_bytes == 0, "its memory is given back")
        log.append("b")
        wait_until(lambda: log.head == 2, "the chunk")
        again = two.store.find(log.stream_id)
        assert (again is copy, again.text()) == (False, "ab")


def test_copy_without_memory_sends_its_readers_away_and_leaves_nothing(database: Database) -> None:
    with workers(database.url, 2) as (one, two):
        two.store._retention._budget_bytes = 100_000
        log = one.begin()
        copy = two.store.find(log.stream_id)
        with copy.reader(0) as reader:
            log.append("x" * 200_000)
            reader.wait()
            assert reader.is_released
        assert copy.end is None
        wait_until(lambda: two.store.used_bytes == 0, "its memory is given back")
        with pytest.raises(errors.Overloaded):
            two.store.find(log.stream_id)
        assert two.store.used_bytes == 0


def test_cursor_of_a_reader_whose_worker_alone_is_cut_off_from_valkey_is_waited_for(own_valkey: Valkey) -> None:
    """The worker that is asked has lost nothing itself, and cannot know: it waits, no longer than a lease."""
    with (
        ChaosProxy("127.0.0.1", own_valkey.port) as proxy,
        workers(own_valkey.url(port=proxy.port), 1, lease_seconds=LONG) as (one,),
        workers(own_valkey.url(), 1, lease_seconds=LONG) as (two,),
        ThreadPoolExecutor(1) as pool,
    ):
        log = one.begin()
        log.append("a")
        wait_until(lambda: log.head == 1, "the chunk")
        assert two.store.find(log.stream_id).text() == "a"
        proxy.refuse()
        proxy.cut_all()
        log.append("b", "c")
        wait_until(lambda: log.head == 3, "they are shown all the same")
        assert not two.store._copies._may_be_behind()
        finding = pool.submit(two.store.find, log.stream_id, reach=3)
        wait_until(lambda: two.store._copies._waiting[log.stream_id] == 1, "it waits")
        two.store.flush()
        two.store.flush()
        assert not finding.done()
        proxy.accept()
        assert finding.result(PATIENCE_SECONDS).text() == "abc"
        two.store._copies._lease_seconds = LEASE_SECONDS
        began = time.monotonic()
        assert two.store.find(log.stream_id, reach=99).head == 3, "nobody has had that"
        assert time.monotonic() - began >= LEASE_SECONDS
        log.finish(end_with())
        assert log.settle(PATIENCE_SECONDS)
        began = time.monotonic()
        two.store._copies._lease_seconds = LONG
        assert two.store.find(log.stream_id, reach=99).head == 3
        assert time.monotonic() - began < LONG / 2, "what has ended has no more to come"


def test_copies_dropped_while_their_tokens_are_on_the_way_leave_no_memory_behind(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "IDLE_SECONDS", 0.0)
    with workers(database.url, 2) as (one, two):
        log = one.begin()
        for number in range(300):
            log.append("x" * 100)
            if number % 3 == 0:
                two.store.find(log.stream_id)
            time.sleep(0.001)  # copies come and go between two tokens
        log.finish(end_with())
        assert log.settle(PATIENCE_SECONDS)
        monkeypatch.setattr(copies, "IDLE_SECONDS", 30.0)
        copy = two.store.find(log.stream_id)
        assert copy.settle(PATIENCE_SECONDS)
        assert (copy.text(), terminal_of(copy).event) == (log.text(), "done")
        two.store._retention.finished.clear()
        assert two.store.used_bytes == copy.cost, "what was dropped is counted no more"


def test_reader_of_a_copy_that_was_dropped_is_sent_away(database: Database) -> None:
    with workers(database.url, 2) as (one, two):
        log = one.begin()
        copy = two.store.find(log.stream_id)
        two.store.drop(copy)
        with copy.reader(0) as reader:
            assert reader.is_released
            reader.wait()  # returns: the timeout of the test would end it else
        again = two.store.find(log.stream_id)
        log.append("a")
        log.finish(end_with())
        assert again.settle(PATIENCE_SECONDS)
        assert again.text() == "a"


def test_copy_dropped_while_it_catches_up_is_waited_for_no_longer(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with workers(database.url, 2) as (one, two):
        log = one.begin()
        log.append("a")
        wait_until(lambda: log.head == 1, "the chunk")
        monkeypatch.setattr(two.store._tail, "follow", lambda key, log: None)
        copy = two.store.find(log.stream_id)
        log.append("b")
        wait_until(lambda: log.head == 2, "the chunk")
        answers = two.store._committer.read

        def drop_meanwhile(*commands: Any) -> list[Any]:
            told = answers(*commands)
            two.store.drop(copy)
            return told

        monkeypatch.setattr(two.store._committer, "read", drop_meanwhile)
        with ThreadPoolExecutor(1) as pool:
            finding = pool.submit(two.store.find, log.stream_id, reach=2)
            with pytest.raises(errors.Overloaded):
                finding.result(5.0)
        assert two.store.used_bytes == 0


def test_stream_that_valkey_lost_is_not_unknown_while_its_worker_may_write_it_again(own_valkey: Valkey) -> None:
    with (
        ChaosProxy("127.0.0.1", own_valkey.port) as proxy,
        workers(own_valkey.url(port=proxy.port), 1, lease_seconds=LONG) as (one,),
        workers(own_valkey.url(), 1, lease_seconds=LONG) as (two,),
    ):
        log = one.begin()
        log.append("a", "b")
        wait_until(lambda: log.head == 2, "the chunks")
        with pytest.raises(errors.StreamUnknown):
            two.store.find(new_stream_id())
        proxy.refuse()
        proxy.cut_all()
        own_valkey.kill()
        own_valkey.start()
        wait_until(two.has_valkey_back, "it has Valkey back")
        for lost in (two.store.find, two.store.cancel):
            with pytest.raises(errors.StoreUnavailable):
                lost(log.stream_id)
        proxy.accept()
        wait_until(
            lambda: own_valkey.client().exists(one.store._commands.keys(log.stream_id)[0]), "it is written again"
        )
        assert two.store.find(log.stream_id, reach=2).text() == "ab"
        two.store._committer.back_at -= 2 * LONG
        with pytest.raises(errors.StreamUnknown):
            two.store.find(new_stream_id())
