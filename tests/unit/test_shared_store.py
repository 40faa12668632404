"""What a store on Valkey does beyond the suite of stores: stored before shown, and Valkey's faults outlived."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from app import errors
from app.streams.interface import Binding, Piece
from app.streams.shared.log import SharedLog
from app.streams.shared.state import State
from tests.harness.chaos import BlackholeAfter, ChaosProxy, Late, Pass
from tests.harness.valkey import Database, Valkey
from tests.harness.valkey_fixtures import EACH_KIND
from tests.unit.ends import end_with, terminal_of
from tests.unit.shared import ORIGIN, PATIENCE_SECONDS, Worker, wait_until, workers

KEY = Binding("k" * 64, "f" * 64)
LONG = 30.0
"""The lease of workers that are not to be taken for dead, though Valkey is away for longer than usual."""


@pytest.fixture(params=EACH_KIND)
def database(request: pytest.FixtureRequest) -> Database:
    """Give each test that does Valkey no harm one of each kind."""
    database: Database = request.getfixturevalue(f"{request.param}_database")
    return database


def test_chunk_is_shown_when_valkey_has_it_and_not_before(own_valkey: Valkey) -> None:
    with workers(own_valkey.url(), 1) as (worker,):
        log = worker.begin()
        assert log.append("a")
        wait_until(lambda: log.head == 1, "the first chunk")
        shown: list[Piece] = []
        with log.reader(1) as reader:
            reader._asleep = True
            reader.deliver = lambda piece: shown.append(piece) or True  # type: ignore[func-returns-value]
            own_valkey.freeze()
            try:
                assert log.append("b", "é")
                assert log.append("c")
                wait_until(lambda: worker.store._committer._asked_at is not None, "they are on their way")
                assert (log.head, log.text(), shown) == (1, "a", [])
                assert not log.is_unresumable
            finally:
                own_valkey.thaw()
            wait_until(lambda: log.head == 4, "the chunks")
            assert "".join(piece.text for piece in shown) == "béc"
            assert shown[-1].sequence == 4


def test_end_is_shown_when_valkey_has_it_and_not_before(own_valkey: Valkey) -> None:
    with workers(own_valkey.url(), 1) as (worker,):
        log = worker.begin()
        own_valkey.freeze()
        try:
            assert log.append("a")
            assert log.finish(end_with())
            assert not log.finish(end_with("failed")), "it is decided"
            assert not log.append("b")
            assert not log.settle(0.3)
            assert log.end is None
        finally:
            own_valkey.thaw()
        assert log.settle(PATIENCE_SECONDS)
        assert (terminal_of(log).event, log.text(), log.end_read) == ("done", "a", True)


def test_append_never_waits_for_valkey(own_valkey: Valkey) -> None:
    with workers(own_valkey.url(), 1) as (worker,):
        log = worker.begin()
        own_valkey.freeze()
        began = time.monotonic()
        for number in range(500):
            assert log.append(f"{number} ")
        took = time.monotonic() - began
        own_valkey.thaw()
        assert took < 0.9, "Valkey stood still all the while"
        wait_until(lambda: log.head == 500, "all of them")
        assert log.text() == "".join(f"{number} " for number in range(500))


def test_chunks_keep_their_places_in_valkey_and_every_key_expires(database: Database) -> None:
    with workers(database.url, 2) as (one, two):
        log, _ = one.store.create(ORIGIN, KEY)
        hash_key, entries_key = one.store._commands.keys(log.stream_id)
        assert -1 not in database.valkey.keys(database.number).values(), "already now"
        log.append("He", "llo", "", "😀")
        wait_until(lambda: log.head == 4, "the chunks")
        two.store.find(log.stream_id)
        two.store.cancel(log.stream_id)
        keys = database.valkey.keys(database.number)
        assert all(0 < left <= (60 + 60 + 60) * 1000 for left in keys.values()), keys
        assert {hash_key, entries_key} < set(keys)
        log.finish(end_with())
        assert log.settle(PATIENCE_SECONDS)

        entries = database.client.xrange(entries_key)
        keys = database.valkey.keys(database.number)

    assert [entry_id for entry_id, _ in entries] == [f"{number}-0".encode() for number in range(1, 6)]
    assert [fields[b"t"].decode() for _, fields in entries[:-1]] == ["He", "llo", "", "😀"]
    assert json.loads(entries[-1][1][b"e"])["event"] == "done"
    assert 59_000 < keys[entries_key] <= 60_000
    assert keys[hash_key] > 86_000_000
    assert all("{chatwait}" in key for key in keys)


def test_large_backlog_is_stored_in_parts(own_valkey: Valkey) -> None:
    with workers(own_valkey.url(), 2) as (one, two):
        log = one.begin()
        own_valkey.freeze()
        for number in range(3000):
            log.append(f"{number} " * 20)
        log.finish(end_with())
        own_valkey.thaw()
        assert log.settle(PATIENCE_SECONDS)
        copy = two.store.find(log.stream_id)
        assert (copy.head, copy.text()) == (3000, log.text())
        assert copy.end == log.end


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


def test_connections_are_two_a_worker_however_many_logs_are_followed(database: Database) -> None:
    with workers(database.url, 2) as (one, two):
        names = [f"chatwait-{worker.store.worker}{end}" for worker in (one, two) for end in ("", "-tail")]

        def connections() -> list[str]:
            return sorted(
                connection["name"]
                for connection in database.valkey.connections()
                if any(worker.store.worker in connection["name"] for worker in (one, two))
            )

        wait_until(lambda: connections() == sorted(names), "two connections a worker")
        logs = [one.begin() for _ in range(90)]
        copies = [two.store.find(log.stream_id) for log in logs]
        for log in logs:
            log.append("a")
        wait_until(lambda: all(copy.head == 1 for copy in copies), "all are followed")
        assert connections() == sorted(names)


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


def test_readers_go_on_while_valkey_is_away_and_the_log_is_completed_afterwards(own_valkey: Valkey) -> None:
    with (
        ChaosProxy("127.0.0.1", own_valkey.port) as proxy,
        workers(own_valkey.url(port=proxy.port), 1, lease_seconds=LONG) as (one,),
        workers(own_valkey.url(), 1, lease_seconds=LONG) as (two,),
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
        wait_until(lambda: seen == [False, True, False], "its reader is told, once each")


def test_end_that_comes_while_valkey_is_away_is_shown_and_stored_afterwards(own_valkey: Valkey) -> None:
    with (
        ChaosProxy("127.0.0.1", own_valkey.port) as proxy,
        workers(own_valkey.url(port=proxy.port), 1, lease_seconds=LONG) as (one,),
        workers(own_valkey.url(), 1, lease_seconds=LONG) as (two,),
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


def test_valkey_that_lost_everything_is_given_it_again_by_those_who_live(own_valkey: Valkey) -> None:
    with workers(own_valkey.url(), 2) as (one, two):
        quiet, busy = one.begin(), one.begin()
        bound, _ = one.store.create(ORIGIN, KEY)
        for log in (quiet, busy, bound):
            log.append("a", "é")
        wait_until(lambda: quiet.head == busy.head == bound.head == 2, "the chunks")
        ended = one.begin()
        ended.append("x")
        ended.finish(end_with())
        assert ended.settle(PATIENCE_SECONDS)
        own_valkey.kill()
        own_valkey.start()
        busy.append("c")
        wait_until(lambda: one.has_valkey_back() and two.has_valkey_back(), "Valkey is back")
        for log, text in ((quiet, "aé"), (busy, "aéc"), (bound, "aé"), (ended, "x")):
            wait_until(
                lambda log=log: own_valkey.client().exists(one.store._commands.keys(log.stream_id)[1]),
                "it is written anew",
            )
            copy = two.store.find(log.stream_id, reach=len(text))
            assert copy.text() == text
        assert (two.store.create(ORIGIN, KEY)[0].stream_id) == bound.stream_id
        assert two.store.find(ended.stream_id).end == ended.end
        assert -1 not in own_valkey.keys().values()


@pytest.mark.parametrize(
    "setting", [{"maxmemory": "1"}, {"min_replicas_to_write": "1"}], ids=["out of memory", "takes no writes"]
)
def test_valkey_that_refuses_writes_is_one_that_is_away(own_valkey: Valkey, setting: dict[str, str]) -> None:
    with workers(own_valkey.url(), 2) as (one, two):
        log = one.begin()
        log.append("a")
        wait_until(lambda: log.head == 1, "the chunk")
        with own_valkey.configured(**setting):
            log.append("b")
            wait_until(lambda: log.head == 2, "it is shown all the same")
            assert log.is_unresumable
            assert not one.store.ready()
            with pytest.raises(errors.StoreUnavailable):
                one.store.create(ORIGIN, KEY)
        wait_until(lambda: not log.is_unresumable and two.store.ready(), "it is completed")
        assert two.store.find(log.stream_id, reach=2).text() == "ab"
        one.store.create(ORIGIN, KEY)


@pytest.mark.parametrize("arrives", [True, False])
def test_log_whose_beginning_was_not_acknowledged_ends_and_leaves_its_key_free(
    own_valkey: Valkey, arrives: bool
) -> None:
    """Nobody knows whether it is there; another worker, asked with its key, may read it already."""
    with (
        ChaosProxy("127.0.0.1", own_valkey.port) as proxy,
        workers(own_valkey.url(port=proxy.port), 1, lease_seconds=LONG) as (one,),
        workers(own_valkey.url(), 1, lease_seconds=LONG) as (two,),
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
        wait_until(one.store.ready, "Valkey is back")
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
    own_valkey: Valkey,
) -> None:
    with (
        ChaosProxy("127.0.0.1", own_valkey.port) as proxy,
        workers(own_valkey.url(port=proxy.port), 1) as (one,),
        workers(own_valkey.url(), 1) as (two,),
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


def test_tokens_faster_than_valkey_answers_are_resumable_again_soon_after_it_is_back(own_valkey: Valkey) -> None:
    with (
        ChaosProxy("127.0.0.1", own_valkey.port, default=Late(0.05)) as proxy,
        workers(own_valkey.url(port=proxy.port), 1, lease_seconds=LONG) as (one,),
    ):
        log = one.begin()
        ends = threading.Event()

        def generate() -> None:
            while not ends.wait(0.005):
                log.append("a")

        with ThreadPoolExecutor(1) as pool:
            generating = pool.submit(generate)
            try:
                own_valkey.freeze()
                wait_until(lambda: log.is_unresumable, "Valkey is away")
                own_valkey.thaw()
                wait_until(lambda: not log.is_unresumable, "all that was shown is stored", 3.0)
            finally:
                own_valkey.thaw()
                ends.set()
            generating.result()
