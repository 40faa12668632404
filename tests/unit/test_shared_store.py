"""What a store on an engine does beyond the suite of stores: stored before shown, read anywhere, taken over, told."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from app import errors
from app.streams.interface import Binding, Piece, new_stream_id
from app.streams.readership import Readership
from app.streams.shared import copies, scripts
from app.streams.shared import store as shared
from app.streams.shared.log import SharedLog
from app.streams.shared.state import State
from tests.harness.chaos import BlackholeAfter, ChaosProxy, CutAfter, Late, Pass
from tests.harness.engine import Database, Engine
from tests.harness.engines import EACH_KIND
from tests.unit.ends import end_with, terminal_of
from tests.unit.shared import LEASE_SECONDS, ORIGIN, PATIENCE_SECONDS, Worker, wait_until, workers

KEY = Binding("k" * 64, "f" * 64)
LONG = 30.0
"""The lease of workers that are not to be taken for dead, though the engine is away for longer than usual."""


@pytest.fixture(params=EACH_KIND)
def database(request: pytest.FixtureRequest) -> Database:
    """Give each test that does the engine no harm one of each kind."""
    database: Database = request.getfixturevalue(f"{request.param}_database")
    return database


def take_over(worker: Worker, log: Any) -> SharedLog:
    """Have another worker's log read here until it has ended."""
    copy = worker.store.find(log.stream_id)
    assert copy.is_foreign
    assert copy.settle(PATIENCE_SECONDS)
    return copy


# Stored before shown


def test_chunk_is_shown_when_the_engine_has_it_and_not_before(own_engine: Engine) -> None:
    with workers(own_engine.url(), 1) as (worker,):
        log = worker.begin()
        assert log.append("a")
        wait_until(lambda: log.head == 1, "the first chunk")
        shown: list[Piece] = []
        with log.reader(1) as reader:
            reader._asleep = True
            reader.deliver = lambda piece: shown.append(piece) or True  # type: ignore[func-returns-value]
            own_engine.freeze()
            try:
                assert log.append("b", "é")
                assert log.append("c")
                time.sleep(0.3)
                assert (log.head, log.text(), shown) == (1, "a", [])
                assert not log.is_unresumable
            finally:
                own_engine.thaw()
            wait_until(lambda: log.head == 4, "the chunks")
            assert "".join(piece.text for piece in shown) == "béc"
            assert shown[-1].sequence == 4


def test_end_is_shown_when_the_engine_has_it_and_not_before(own_engine: Engine) -> None:
    with workers(own_engine.url(), 1) as (worker,):
        log = worker.begin()
        own_engine.freeze()
        try:
            assert log.append("a")
            assert log.finish(end_with())
            assert not log.finish(end_with("failed")), "it is decided"
            assert not log.append("b")
            assert not log.settle(0.3)
            assert log.end is None
        finally:
            own_engine.thaw()
        assert log.settle(PATIENCE_SECONDS)
        assert (terminal_of(log).event, log.text(), log.end_read) == ("done", "a", True)


def test_append_never_waits_for_the_engine(own_engine: Engine) -> None:
    with workers(own_engine.url(), 1) as (worker,):
        log = worker.begin()
        own_engine.freeze()
        began = time.monotonic()
        for number in range(500):
            assert log.append(f"{number} ")
        took = time.monotonic() - began
        own_engine.thaw()
        assert took < 0.9, "the engine stood still all the while"
        wait_until(lambda: log.head == 500, "all of them")
        assert log.text() == "".join(f"{number} " for number in range(500))


def test_chunks_keep_their_places_in_the_engine_and_every_key_expires(database: Database) -> None:
    with workers(database.url, 2) as (one, two):
        log, _ = one.store.create(ORIGIN, KEY)
        hash_key, entries_key = one.store.keys(log.stream_id)
        assert -1 not in database.engine.keys(database.number).values(), "already now"
        log.append("He", "llo", "", "😀")
        wait_until(lambda: log.head == 4, "the chunks")
        two.store.find(log.stream_id)
        two.store.cancel(log.stream_id)
        keys = database.engine.keys(database.number)
        assert all(0 < left <= (60 + 60 + 60) * 1000 for left in keys.values()), keys
        assert {hash_key, entries_key} < set(keys)
        log.finish(end_with())
        assert log.settle(PATIENCE_SECONDS)

        entries = database.client.xrange(entries_key)
        keys = database.engine.keys(database.number)

    assert [entry_id for entry_id, _ in entries] == [f"{number}-0".encode() for number in range(1, 6)]
    assert [fields[b"t"].decode() for _, fields in entries[:-1]] == ["He", "llo", "", "😀"]
    assert json.loads(entries[-1][1][b"e"])["event"] == "done"
    assert 59_000 < keys[entries_key] <= 60_000
    assert keys[hash_key] > 86_000_000
    assert all("{chatwait}" in key for key in keys)


def test_large_backlog_is_stored_in_parts(own_engine: Engine) -> None:
    with workers(own_engine.url(), 2) as (one, two):
        log = one.begin()
        own_engine.freeze()
        for number in range(3000):
            log.append(f"{number} " * 20)
        log.finish(end_with())
        own_engine.thaw()
        assert log.settle(PATIENCE_SECONDS)
        copy = two.store.find(log.stream_id)
        assert (copy.head, copy.text()) == (3000, log.text())
        assert copy.end == log.end


# Read anywhere


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


def test_key_is_used_once_by_two_workers_at_the_same_moment(database: Database) -> None:
    with workers(database.url, 2) as (one, two), ThreadPoolExecutor(2) as pool:
        for number in range(50):
            binding = Binding(f"{number:064}", "f")
            barrier = threading.Barrier(2)

            def create(
                worker: Worker, binding: Binding = binding, barrier: threading.Barrier = barrier
            ) -> tuple[SharedLog, bool]:
                barrier.wait(PATIENCE_SECONDS)
                return worker.store.create(ORIGIN, binding)

            results = [
                future.result(PATIENCE_SECONDS) for future in [pool.submit(create, worker) for worker in (one, two)]
            ]
            assert sorted(created for _, created in results) == [False, True]
            assert len({log.stream_id for log, _ in results}) == 1


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


# Booked


def booked(log: SharedLog) -> list[tuple[str, int]]:
    """Have a log's end booked, and give the list that it is written to: the line's name, and the resumes."""
    lines: list[tuple[str, int]] = []
    log.book(lambda name: lines.append((name, log.resumes)))
    return lines


def test_resumes_are_counted_at_every_worker_when_the_end_is_booked(database: Database) -> None:
    with workers(database.url, 3) as (one, two, three):
        log = one.begin()
        with log.reader(0), log.reader(0):
            pass
        copies = [worker.store.find(log.stream_id) for worker in (two, three)]
        for copy in copies:
            with copy.reader(0), copy.reader(0):
                pass
        for worker in (one, two, three):
            worker.store.flush()
        assert log.finish(end_with())
        lines = booked(log)
        assert log.settle(PATIENCE_SECONDS)
        wait_until(lambda: lines, "the line")
        assert lines == [("response_complete", 5)]
        with two.store.find(log.stream_id).reader(0):
            pass
        two.store.flush()
        assert database.client.hget(one.store.keys(log.stream_id)[0], "attached") == b"6", "it has ended"
        assert len(one.store.unbooked) == 0


def test_resumes_of_a_log_whose_worker_died_are_those_of_all(database: Database) -> None:
    with workers(database.url, 2) as (dying, heir):
        log = dying.begin()
        with log.reader(0):
            dying.store.flush()
        copy = heir.store.find(log.stream_id)
        lines: list[tuple[str, int]] = []
        with copy.reader(0), copy.reader(0):
            lost, heir.store._lost = heir.store._lost, lambda log, error: (lost(log, error), lines.append(booked(log)))
            dying.crash()
            assert copy.settle(PATIENCE_SECONDS)
        wait_until(lambda: lines and lines[0], "the line")
        assert lines == [[("response_complete", 2)]]


def test_log_that_was_taken_over_is_booked_by_its_heir_alone(database: Database) -> None:
    """Its end was decided here, and could not be stored any more."""
    with workers(database.url, 2) as (stopped, other):
        log = stopped.begin()
        log.append("a")
        wait_until(lambda: log.head == 1, "the chunk")
        heirs_lines: list[list[tuple[str, int]]] = []
        lost = other.store._lost
        other.store._lost = lambda log, error: (lost(log, error), heirs_lines.append(booked(log)))
        copy = other.store.find(log.stream_id)
        database.client.delete(stopped.store._commands.life_key(stopped.store.worker))
        stopped._ticks = False  # gives no sign of life
        assert copy.settle(PATIENCE_SECONDS)
        assert log.finish(end_with()), "it does not know it yet"
        lines = booked(log)
        wait_until(lambda: log.end is not None, "the end that the other one wrote")
        assert (terminal_of(log).event, lines, len(stopped.store.unbooked)) == ("failed", [], 0)
        wait_until(lambda: heirs_lines and heirs_lines[0], "the line")
        assert heirs_lines == [[("response_complete", 0)]]


def test_log_that_goes_on_for_its_own_readers_alone_is_booked_under_another_name(own_engine: Engine) -> None:
    """Whether its end came before it heard that another worker had taken it over, or after."""
    with (
        ChaosProxy("127.0.0.1", own_engine.port) as proxy,
        workers(own_engine.url(port=proxy.port), 1) as (one,),
        workers(own_engine.url(), 1) as (two,),
    ):
        before, after = one.begin(), one.begin()
        copies = [two.store.find(log.stream_id) for log in (before, after)]
        proxy.refuse()
        proxy.cut_all()
        for log in (before, after):
            log.append("a")
            wait_until(lambda log=log: log.head == 1, "it is shown all the same")
        assert before.finish(end_with())
        lines = booked(before)
        assert before.settle(PATIENCE_SECONDS)
        assert lines == [], "whose end it is, nobody here knows"
        assert all(copy.settle(PATIENCE_SECONDS) for copy in copies)
        proxy.accept()
        wait_until(lambda: before.state is State.CUT_OFF and after.state is State.CUT_OFF, "it knows")
        assert after.finish(end_with())
        assert lines == booked(after) == [("response_cut_off", 0)]


def test_log_whose_end_is_stored_late_is_booked_then_or_when_its_worker_ends(own_engine: Engine) -> None:
    with (
        ChaosProxy("127.0.0.1", own_engine.port) as proxy,
        workers(own_engine.url(port=proxy.port), 1, lease_seconds=LONG) as (one,),
    ):
        for comes_back in (True, False):
            log = one.begin()
            proxy.refuse()
            proxy.cut_all()
            log.append("a")
            assert log.finish(end_with())
            lines = booked(log)
            assert log.settle(PATIENCE_SECONDS)
            assert lines == []
            if comes_back:
                proxy.accept()
                wait_until(lambda lines=lines: lines, "the line")
                wait_until(one.store.ready, "the engine is back")
            else:
                one.store.close()
            assert lines == [("response_complete", 0)]


def test_log_that_is_read_elsewhere_is_not_unread(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    with workers(database.url, 2) as (one, two):
        two.store._note_seconds = 0.2
        log = one.begin()
        copy = two.store.find(log.stream_id)
        with copy.reader(0):
            began = log.unread_since
            assert began is not None
            wait_until(lambda: (log.unread_since or 0.0) > began + 1.0, "it is heard of again and again")
        left = time.monotonic()
        wait_until(lambda: (log.unread_since or 0.0) >= left, "the last one's leaving is heard of")


def test_copy_that_nobody_reads_is_dropped_and_made_again(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "IDLE_SECONDS", 0.3)
    with workers(database.url, 2) as (one, two):
        log = one.begin()
        log.append("a")
        wait_until(lambda: log.head == 1, "the chunk")
        copy = two.store.find(log.stream_id)
        with copy.reader(0):
            time.sleep(0.6)
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


def test_connections_are_two_a_worker_however_many_logs_are_followed(database: Database) -> None:
    with workers(database.url, 2) as (one, two):
        names = [f"chatwait-{worker.store.worker}{end}" for worker in (one, two) for end in ("", "-tail")]

        def connections() -> list[str]:
            return sorted(
                connection["name"]
                for connection in database.engine.connections()
                if any(worker.store.worker in connection["name"] for worker in (one, two))
            )

        wait_until(lambda: connections() == sorted(names), "two connections a worker")
        logs = [one.begin() for _ in range(90)]
        copies = [two.store.find(log.stream_id) for log in logs]
        for log in logs:
            log.append("a")
        wait_until(lambda: all(copy.head == 1 for copy in copies), "all are followed")
        assert connections() == sorted(names)


# Taken over


def test_log_whose_worker_dies_is_ended_by_one_of_those_who_read_it(database: Database) -> None:
    with workers(database.url, 4) as all_workers:
        dying, *others = all_workers
        logs = [dying.begin() for _ in range(5)]
        for log in logs:
            log.append("a", "é")
        wait_until(lambda: all(log.head == 2 for log in logs), "the chunks")
        copies = [worker.store.find(log.stream_id) for worker in others for log in logs]
        dying.crash()
        for copy in copies:
            assert copy.settle(PATIENCE_SECONDS)
            assert (terminal_of(copy).event, copy.head, copy.text()) == ("failed", 2, "aé")
        for log in logs:
            entries = database.client.xrange(others[0].store.keys(log.stream_id)[1])
            assert len(entries) == 3, "one end, though three noticed"
        dying.store._tail.stop()


def test_worker_that_was_stopped_and_goes_on_changes_nothing(database: Database) -> None:
    """SIGSTOP and SIGCONT: its lease has lapsed meanwhile, and what it had on its way is refused."""
    with workers(database.url, 2) as (stopped, other):
        log = stopped.begin()
        log.append("a")
        wait_until(lambda: log.head == 1, "the chunk")
        copy = other.store.find(log.stream_id)
        database.client.delete(stopped.store._commands.life_key(stopped.store.worker))
        stopped._ticks = False  # gives no sign of life
        assert copy.settle(PATIENCE_SECONDS)

        assert log.append("b"), "it does not know it yet"
        wait_until(lambda: log.end is not None, "the end that the other one wrote")
        assert (terminal_of(log).event, log.text(), log.is_foreign) == ("failed", "a", True)
        assert not log.append("c")
        assert not log.finish(end_with())
        assert stopped.aborted == [log.stream_id]
        assert copy.text() == "a"
        assert len(database.client.xrange(other.store.keys(log.stream_id)[1])) == 2


def test_worker_whose_sign_of_life_is_missing_once_is_not_taken_for_dead(database: Database) -> None:
    """The engine may have lost it: only who is silent at two looks in a row is gone."""
    with workers(database.url, 2) as (one, two):
        log = one.begin()
        log.append("a")
        wait_until(lambda: log.head == 1, "the chunk")
        copy = two.store.find(log.stream_id)
        for worker in (one, two):
            worker._ticks = False
            worker._clock.join()
        life = one.store._commands.life_key(one.store.worker)
        wait_until(two.store._leases._may_judge, "it may judge others")

        def look(*, signs: bool) -> bool:
            """Have it look once; True when it takes the log over."""
            if signs:
                database.client.set(life, "1", px=60_000)
            else:
                database.client.delete(life)
            two.store._leases.look_at_owners()
            two.store.flush()
            wait_until(lambda: not two.store._leases._is_adopting, "it has asked")
            return not copy.is_foreign

        for signs in (False, True, False, True):
            assert not look(signs=signs)
        assert not look(signs=False)
        assert look(signs=False)
        assert copy.settle(PATIENCE_SECONDS)
        assert terminal_of(copy).event == "failed"


def test_worker_that_could_not_reach_the_engine_waits_before_it_judges_others(own_engine: Engine) -> None:
    with (
        ChaosProxy("127.0.0.1", own_engine.port) as proxy,
        workers(own_engine.url(), 1) as (one,),
        workers(own_engine.url(port=proxy.port), 1) as (two,),
    ):
        log = one.begin()
        copy = two.store.find(log.stream_id)
        proxy.refuse()
        proxy.cut_all()
        wait_until(lambda: two.store._committer.contact_since is None, "it has lost the engine")
        own_engine.client().delete(one.store._commands.life_key(one.store.worker))
        one._ticks = False
        own_engine.client().set(one.store._commands.life_key(one.store.worker), "1", px=1)
        time.sleep(0.1)
        back = time.monotonic()
        proxy.accept()
        assert copy.settle(PATIENCE_SECONDS)
        assert time.monotonic() - back >= LEASE_SECONDS


# The engine's faults


def told(log: SharedLog) -> list[bool]:
    """Write down what readers are told of it from now on."""
    seen = [log.is_unresumable]

    def watch() -> None:
        until = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < until and log.end is None:
            if seen[-1] is not log.is_unresumable:
                seen.append(log.is_unresumable)
            time.sleep(0.001)

    threading.Thread(target=watch, daemon=True).start()
    return seen


def test_readers_go_on_while_the_engine_is_away_and_the_log_is_completed_afterwards(own_engine: Engine) -> None:
    with (
        ChaosProxy("127.0.0.1", own_engine.port) as proxy,
        workers(own_engine.url(port=proxy.port), 1, lease_seconds=LONG) as (one,),
        workers(own_engine.url(), 1, lease_seconds=LONG) as (two,),
    ):
        log = one.begin()
        seen = told(log)
        log.append("a")
        wait_until(lambda: log.head == 1, "the chunk")
        proxy.refuse()
        proxy.cut_all()
        log.append("b")
        wait_until(lambda: log.head == 2, "it is shown all the same")
        assert (log.is_unresumable, log.stored, one.store.ready()) == (True, 1, False)
        with pytest.raises(errors.StoreUnavailable):
            one.store.create(ORIGIN)
        log.append("c")
        assert log.head == 3, "at once now"
        assert two.store.find(log.stream_id).text() == "a"

        proxy.accept()

        wait_until(lambda: not log.is_unresumable, "it is completed")
        assert (log.stored, one.store.ready()) == (3, True)
        assert two.store.find(log.stream_id, reach=3).text() == "abc"
        log.append("d")
        log.finish(end_with())
        assert log.settle(PATIENCE_SECONDS)
        assert seen == [False, True, False]


def test_cursor_of_a_reader_whose_worker_alone_is_cut_off_from_the_engine_is_waited_for(own_engine: Engine) -> None:
    """The worker that is asked has lost nothing itself, and cannot know: it waits, no longer than a lease."""
    with (
        ChaosProxy("127.0.0.1", own_engine.port) as proxy,
        workers(own_engine.url(port=proxy.port), 1, lease_seconds=LONG) as (one,),
        workers(own_engine.url(), 1, lease_seconds=LONG) as (two,),
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
        time.sleep(0.3)
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


def test_end_that_comes_while_the_engine_is_away_is_shown_and_stored_afterwards(own_engine: Engine) -> None:
    with (
        ChaosProxy("127.0.0.1", own_engine.port) as proxy,
        workers(own_engine.url(port=proxy.port), 1, lease_seconds=LONG) as (one,),
        workers(own_engine.url(), 1, lease_seconds=LONG) as (two,),
    ):
        log = one.begin()
        proxy.refuse()
        proxy.cut_all()
        log.append("a")
        log.finish(end_with())
        assert log.settle(PATIENCE_SECONDS)
        assert (log.text(), log.is_unresumable) == ("a", True)
        proxy.accept()
        wait_until(lambda: two.store.find(log.stream_id).end is not None, "it is stored")
        assert two.store.find(log.stream_id).end == log.end


@pytest.mark.parametrize("answers", [True, False], ids=["cut", "silent"])
def test_batch_whose_answer_is_lost_is_written_once(own_engine: Engine, answers: bool) -> None:
    """It has arrived, and is sent again."""
    lost = CutAfter(0) if answers else BlackholeAfter(0)
    with (
        ChaosProxy("127.0.0.1", own_engine.port, default=Pass()) as proxy,
        workers(own_engine.url(port=proxy.port), 1) as (one,),
    ):
        log = one.begin()
        log.append("a", "b")
        wait_until(lambda: log.head == 2, "the chunks")
        commands = int(own_engine.client().info("stats")["total_commands_processed"])
        for _ in range(3):
            proxy.plan(lost, Pass())
            proxy.cut_all()
            log.append("c", "d")
            time.sleep(0.05)
        wait_until(lambda: log.head == 8 and not log.is_unresumable, "all of them", 30.0)
        assert commands
        entries = own_engine.client().xrange(one.store.keys(log.stream_id)[1])
        assert [entry_id for entry_id, _ in entries] == [f"{number}-0".encode() for number in range(1, 9)]
        assert b"".join(fields[b"t"] for _, fields in entries) == b"abcdcdcd"


def test_engine_that_lost_everything_is_given_it_again_by_those_who_live(own_engine: Engine) -> None:
    with workers(own_engine.url(), 2) as (one, two):
        quiet, busy = one.begin(), one.begin()
        bound, _ = one.store.create(ORIGIN, KEY)
        for log in (quiet, busy, bound):
            log.append("a", "é")
        wait_until(lambda: quiet.head == busy.head == bound.head == 2, "the chunks")
        ended = one.begin()
        ended.append("x")
        ended.finish(end_with())
        assert ended.settle(PATIENCE_SECONDS)
        own_engine.kill()
        own_engine.start()
        busy.append("c")
        wait_until(lambda: one.has_engine_back() and two.has_engine_back(), "the engine is back")
        for log, text in ((quiet, "aé"), (busy, "aéc"), (bound, "aé"), (ended, "x")):
            wait_until(
                lambda log=log: own_engine.client().exists(one.store.keys(log.stream_id)[1]), "it is written anew"
            )
            copy = two.store.find(log.stream_id, reach=len(text))
            assert copy.text() == text
        assert (two.store.create(ORIGIN, KEY)[0].stream_id) == bound.stream_id
        assert two.store.find(ended.stream_id).end == ended.end
        assert -1 not in own_engine.keys().values()


def test_engine_that_lost_a_part_of_a_log_is_given_it_again(database: Database) -> None:
    with workers(database.url, 2) as (one, two):
        log = one.begin()
        log.append("a", "b")
        wait_until(lambda: log.head == 2, "the chunks")
        database.client.delete(one.store.keys(log.stream_id)[1])
        log.append("c")
        wait_until(lambda: log.head == 3, "the chunk")
        assert two.store.find(log.stream_id).text() == "abc"


def test_engine_that_was_taken_over_by_an_older_copy_of_it_is_brought_up_to_date(database: Database) -> None:
    """A failover that lost the last writes: there is less than was acknowledged."""
    with workers(database.url, 2) as (one, two):
        log = one.begin()
        hash_key, entries_key = one.store.keys(log.stream_id)
        log.append("a", "b", "c")
        wait_until(lambda: log.head == 3, "the chunks")
        database.client.delete(entries_key)
        database.client.xadd(entries_key, {"t": "a"}, "1-0")
        database.client.hset(hash_key, mapping={"head": 1, "bytes": 1})
        log.append("d")
        wait_until(lambda: log.head == 4, "the chunk")
        assert two.store.find(log.stream_id).text() == "abcd"


@pytest.mark.parametrize(
    "setting", [{"maxmemory": "1"}, {"min_replicas_to_write": "1"}], ids=["out of memory", "takes no writes"]
)
def test_engine_that_refuses_writes_is_one_that_is_away(own_engine: Engine, setting: dict[str, str]) -> None:
    with workers(own_engine.url(), 2) as (one, two):
        log = one.begin()
        log.append("a")
        wait_until(lambda: log.head == 1, "the chunk")
        with own_engine.configured(**setting):
            log.append("b")
            wait_until(lambda: log.head == 2, "it is shown all the same")
            assert log.is_unresumable
            assert not one.store.ready()
            with pytest.raises(errors.StoreUnavailable):
                one.store.create(ORIGIN, KEY)
        wait_until(lambda: not log.is_unresumable and two.store.ready(), "it is completed")
        assert two.store.find(log.stream_id, reach=2).text() == "ab"
        one.store.create(ORIGIN, KEY)


def test_engine_that_forgot_the_scripts_is_given_them_again(database: Database) -> None:
    with workers(database.url, 1) as (one,):
        log = one.begin()
        database.client.script_flush()
        log.append("a")
        wait_until(lambda: log.head == 1, "the chunk")
        assert not log.is_unresumable
        database.client.script_flush()
        wait_until(lambda: _creates(one), "a new one")


def _creates(worker: Worker) -> bool:
    try:
        worker.begin()
    except errors.StoreUnavailable:
        return False
    return True


@pytest.mark.parametrize("arrives", [True, False])
def test_log_whose_beginning_was_not_acknowledged_ends_and_leaves_its_key_free(
    own_engine: Engine, arrives: bool
) -> None:
    """Nobody knows whether it is there; another worker, asked with its key, may read it already."""
    with (
        ChaosProxy("127.0.0.1", own_engine.port) as proxy,
        workers(own_engine.url(port=proxy.port), 1, lease_seconds=LONG) as (one,),
        workers(own_engine.url(), 1, lease_seconds=LONG) as (two,),
    ):
        if arrives:
            proxy.default = BlackholeAfter(0)
        else:
            proxy.refuse()
        proxy.cut_all()
        with pytest.raises(errors.StoreUnavailable):
            one.store.create(ORIGIN, KEY)
        reading = two.store.create(ORIGIN, KEY)[0]
        proxy.default = Pass()
        proxy.accept()
        proxy.cut_all()
        wait_until(one.store.ready, "the engine is back")
        if reading.is_foreign:
            assert reading.settle(PATIENCE_SECONDS), "whoever reads it is told"
            assert terminal_of(reading).event == "failed"
            log, created = two.store.create(ORIGIN, KEY)
            assert created
        else:
            log = reading
            assert two.store.create(ORIGIN, KEY) == (log, False), (
                "its key is its own, whatever the other one clears away"
            )
        wait_until(lambda: one.store.live == 0, "it has ended")
        assert two.store.create(ORIGIN, KEY) == (log, False)


def test_readers_that_have_more_than_was_stored_go_on_when_their_worker_was_taken_for_dead(
    own_engine: Engine,
) -> None:
    with (
        ChaosProxy("127.0.0.1", own_engine.port) as proxy,
        workers(own_engine.url(port=proxy.port), 1) as (one,),
        workers(own_engine.url(), 1) as (two,),
    ):
        log = one.begin()
        log.append("a")
        wait_until(lambda: log.head == 1, "the chunk")
        copy = two.store.find(log.stream_id)
        proxy.refuse()
        proxy.cut_all()
        log.append("b")
        wait_until(lambda: log.head == 2, "it is shown all the same")
        assert copy.settle(PATIENCE_SECONDS)
        proxy.accept()
        wait_until(lambda: log.state is State.CUT_OFF, "it knows")
        assert log.append("c")
        assert log.finish(end_with())
        assert (log.text(), terminal_of(log).event, log.is_unresumable) == ("abc", "done", True)
        assert (copy.text(), terminal_of(copy).event) == ("a", "failed")
        assert one.aborted == []


# What a reader of the code found


def test_worker_without_work_notices_that_its_engine_takes_no_writes_any_more(own_engine: Engine) -> None:
    """A primary that became a replica keeps its connections; only writes are refused."""
    with (
        Engine(replica_of=own_engine) as replica,
        ChaosProxy("127.0.0.1", own_engine.port) as proxy,
        workers(own_engine.url(port=proxy.port), 1) as (one,),
    ):
        wait_until(lambda: replica.client().info("replication")["master_link_status"] == "up", "it follows")
        proxy.lead_to(replica.port)
        replica.client().execute_command("REPLICAOF", "NO", "ONE")
        own_engine.client().execute_command("REPLICAOF", "127.0.0.1", str(replica.port))
        name = f"chatwait-{one.store.worker}"
        wait_until(
            lambda: any(client["name"] == name for client in replica.connections(name)), "it has found the new one"
        )
        wait_until(one.store.ready, "it answers")
        log = one.begin()
        assert log.append("a")
        wait_until(lambda: log.head == 1, "the chunk")


def test_writes_refused_for_longer_than_a_lease_make_nobody_pass_for_dead(own_engine: Engine) -> None:
    with workers(own_engine.url(), 2) as (one, two):
        log = one.begin()
        log.append("a")
        wait_until(lambda: log.head == 1, "the chunk")
        copy = two.store.find(log.stream_id)
        with own_engine.configured(min_replicas_to_write="1"):
            time.sleep(3 * LEASE_SECONDS)
        wait_until(lambda: one.store.ready() and two.store.ready(), "writes are taken again")
        time.sleep(2 * LEASE_SECONDS)
        assert (log.end, copy.end) == (None, None)
        log.append("b")
        log.finish(end_with())
        assert copy.settle(PATIENCE_SECONDS)
        assert (copy.text(), terminal_of(copy).event) == ("ab", "done")


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
            time.sleep(0.001)
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


def test_adoption_whose_answer_is_lost_is_finished_in_the_next_round(own_engine: Engine) -> None:
    with workers(own_engine.url(), 2) as (dying, heir):
        logs = [dying.begin() for _ in range(3)]
        for log in logs:
            log.append("a")
        wait_until(lambda: all(log.head == 1 for log in logs), "the chunks")
        copies = [heir.store.find(log.stream_id) for log in logs]
        asked: list[int] = []
        ask = heir.store._committer.ask

        def lose_the_first(*commands: Any) -> list[Any]:
            told = ask(*commands)
            if not asked:
                asked.append(1)
                raise errors.StoreUnavailable
            return told

        heir.store._committer.ask = lose_the_first  # type: ignore[method-assign]
        dying.crash()
        for copy in copies:
            assert copy.settle(PATIENCE_SECONDS)
            assert (copy.text(), terminal_of(copy).event) == ("a", "failed")
        assert asked
        assert len(own_engine.client().xrange(heir.store.keys(logs[0].stream_id)[1])) == 2


def test_log_that_died_and_was_lost_gets_one_end_though_two_write_it_anew(own_engine: Engine) -> None:
    with workers(own_engine.url(), 3) as (dying, second, third):
        log = dying.begin()
        log.append("a", "b")
        wait_until(lambda: log.head == 2, "the chunks")
        copies = [worker.store.find(log.stream_id) for worker in (second, third)]
        dying.crash()
        own_engine.client().flushdb()
        for copy in copies:
            assert copy.settle(PATIENCE_SECONDS)
            assert (copy.text(), terminal_of(copy).event) == ("ab", "failed")
        entries = own_engine.client().xrange(second.store.keys(log.stream_id)[1])
        assert [name for _, fields in entries for name in fields] == [b"t", b"t", b"e"]


def test_end_of_an_older_stream_leaves_the_key_of_a_newer_one_alone(database: Database) -> None:
    with workers(database.url, 1) as (one,):
        old, _ = one.store.create(ORIGIN, KEY)
        key = f"{{chatwait}}:key:{KEY.key}"
        database.client.delete(key)
        new, created = one.store.create(ORIGIN, KEY)
        assert created
        old.finish(end_with("failed", frees_key=True))
        assert old.settle(PATIENCE_SECONDS)
        assert one.store.create(ORIGIN, KEY) == (new, False)


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


def test_log_whose_adopter_does_not_know_of_it_is_ended_by_it_all_the_same(database: Database) -> None:
    """The answer to its adoption was lost, and so was the copy; the next reader finds it."""
    with workers(database.url, 2) as (one, two):
        log = one.begin()
        log.append("a")
        wait_until(lambda: log.head == 1, "the chunk")
        one.crash()
        life = one.store._commands.life_key(one.store.worker)
        wait_until(lambda: not database.client.exists(life), "it gives no sign of life")
        hash_key = two.store.keys(log.stream_id)[0]
        adopted = database.client.eval(scripts.ADOPT, 2, hash_key, life, one.store.worker, 1, two.store.worker)
        assert adopted == 1
        copy = two.store.find(log.stream_id)
        assert copy.settle(PATIENCE_SECONDS)
        assert (copy.text(), terminal_of(copy).event) == ("a", "failed")


def test_stream_that_the_engine_lost_is_not_unknown_while_its_worker_may_write_it_again(own_engine: Engine) -> None:
    with (
        ChaosProxy("127.0.0.1", own_engine.port) as proxy,
        workers(own_engine.url(port=proxy.port), 1, lease_seconds=LONG) as (one,),
        workers(own_engine.url(), 1, lease_seconds=LONG) as (two,),
    ):
        log = one.begin()
        log.append("a", "b")
        wait_until(lambda: log.head == 2, "the chunks")
        with pytest.raises(errors.StreamUnknown):
            two.store.find(new_stream_id())
        proxy.refuse()
        proxy.cut_all()
        own_engine.kill()
        own_engine.start()
        wait_until(two.has_engine_back, "it has the engine back")
        for lost in (two.store.find, two.store.cancel):
            with pytest.raises(errors.StoreUnavailable):
                lost(log.stream_id)
        proxy.accept()
        wait_until(lambda: own_engine.client().exists(one.store.keys(log.stream_id)[0]), "it is written again")
        assert two.store.find(log.stream_id, reach=2).text() == "ab"
        two.store._committer.back_at -= 2 * LONG
        with pytest.raises(errors.StreamUnknown):
            two.store.find(new_stream_id())


def test_tokens_faster_than_the_engine_answers_are_resumable_again_soon_after_it_is_back(own_engine: Engine) -> None:
    with (
        ChaosProxy("127.0.0.1", own_engine.port, default=Late(0.05)) as proxy,
        workers(own_engine.url(port=proxy.port), 1, lease_seconds=LONG) as (one,),
    ):
        log = one.begin()
        ends = threading.Event()

        def generate() -> None:
            while not ends.wait(0.005):
                log.append("a")

        with ThreadPoolExecutor(1) as pool:
            generating = pool.submit(generate)
            try:
                own_engine.freeze()
                wait_until(lambda: log.is_unresumable, "the engine is away")
                own_engine.thaw()
                wait_until(lambda: not log.is_unresumable, "all that was shown is stored", 3.0)
            finally:
                own_engine.thaw()
                ends.set()
            generating.result()


def test_log_that_is_cut_off_keeps_nothing_for_the_engine(database: Database) -> None:
    with workers(database.url, 1) as (one,):
        log = one.begin()
        log.cut_off()
        for _ in range(100):
            log.append("a")
        assert (log.owned._unsent, log.head) == (None, 100)


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
    """To end an answer may mean to count its tokens; the engine's answers are for all."""
    with workers(database.url, 2) as (one, two):
        slow, other = one.begin(), one.begin()
        ends = threading.Event()
        one.store._cancel = lambda stream_id, reason: ends.wait(PATIENCE_SECONDS)
        try:
            two.store.cancel(slow.stream_id)
            slow.append("a")
            time.sleep(0.3)
            other.append("a")
            wait_until(lambda: other.head == 1, "the other's chunk", 5.0)
        finally:
            ends.set()


def test_readers_are_told_of_what_is_not_stored_when_the_engine_answers_in_that_moment(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread finds that the engine is late, another takes its answer."""
    with workers(database.url, 1) as (one,):
        log = one.begin()
        log.append("a")
        wait_until(lambda: log.head == 1, "the chunk")
        one.pause()
        log.append("b")
        monkeypatch.setattr(Readership, "nudge", lambda self: monkeypatch.undo() or log.owned._has_written(1))

        log.show_late()

        assert (log.head, log.stored, log.is_unresumable) == (2, 1, True)
        one.go_on()
        wait_until(lambda: not log.is_unresumable, "it is stored")
        assert log.stored == 2


@pytest.mark.parametrize("ends", [False, True])
def test_log_that_is_given_up_shows_no_more_of_its_own_in_that_moment(
    database: Database, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    """One thread hears that it has been taken over, another finds that the engine is late."""
    with workers(database.url, 2) as (one, two):
        log = one.begin()
        log.append("a")
        wait_until(lambda: log.head == 1, "the chunk")
        copy = two.store.find(log.stream_id)
        one.pause()
        database.client.delete(one.store._commands.life_key(one.store.worker))
        assert copy.settle(PATIENCE_SECONDS)
        log.append("b")
        if ends:
            log.finish(end_with())
        monkeypatch.setattr(shared, "tell", lambda _: log.show_late())

        log.owned._fenced(1)

        assert (log.is_foreign, log.head, log.is_unresumable) == (True, 1, False)
        one.go_on()
        assert log.settle(PATIENCE_SECONDS)
        assert log.end == copy.end


def test_log_that_is_written_anew_is_never_there_without_its_workers_sign_of_life(database: Database) -> None:
    """Others would take it for a dead worker's."""
    with workers(database.url, 1) as (one,):
        log = one.begin()
        log.append("a")
        wait_until(lambda: log.head == 1, "the chunk")
        one.store._next_round = float("inf")
        one.store.flush()
        database.client.flushdb()
        log.append("b")
        wait_until(lambda: log.head == 2, "it is written anew")
        one.store.flush()
        assert database.client.exists(one.store._commands.life_key(one.store.worker))
