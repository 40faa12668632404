"""A worker that gives no sign of life is taken for dead, by nobody too early, and its logs get one end."""

from __future__ import annotations

import time
from typing import Any

import pytest

from app import errors
from app.streams.shared import leases, scripts
from tests.harness.chaos import ChaosProxy
from tests.harness.valkey import Database, Valkey
from tests.harness.valkey_fixtures import EACH_KIND
from tests.unit.ends import end_with, terminal_of
from tests.unit.shared import LEASE_SECONDS, PATIENCE_SECONDS, wait_until, workers

LONG = 30.0
"""The lease of workers that are not to be taken for dead, though Valkey is away for longer than usual."""


@pytest.fixture(params=EACH_KIND)
def database(request: pytest.FixtureRequest) -> Database:
    """Give each test that does Valkey no harm one of each kind."""
    database: Database = request.getfixturevalue(f"{request.param}_database")
    return database


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
            entries = database.client.xrange(others[0].store._commands.keys(log.stream_id)[1])
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
        assert len(database.client.xrange(other.store._commands.keys(log.stream_id)[1])) == 2


def test_worker_whose_sign_of_life_is_missing_once_is_not_taken_for_dead(database: Database) -> None:
    """Valkey may have lost it: only who is silent at two looks in a row is gone."""
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


def test_worker_that_could_not_reach_valkey_waits_before_it_judges_others(own_valkey: Valkey) -> None:
    with (
        ChaosProxy("127.0.0.1", own_valkey.port) as proxy,
        workers(own_valkey.url(), 1) as (one,),
        workers(own_valkey.url(port=proxy.port), 1) as (two,),
    ):
        log = one.begin()
        copy = two.store.find(log.stream_id)
        proxy.refuse()
        proxy.cut_all()
        wait_until(lambda: two.store._committer.contact_since is None, "it has lost Valkey")
        own_valkey.client().delete(one.store._commands.life_key(one.store.worker))
        one._ticks = False
        own_valkey.client().set(one.store._commands.life_key(one.store.worker), "1", px=1)
        life = one.store._commands.life_key(one.store.worker)
        wait_until(lambda: not own_valkey.client().exists(life), "it gives no sign of life")
        back = time.monotonic()
        proxy.accept()
        assert copy.settle(PATIENCE_SECONDS)
        assert time.monotonic() - back >= LEASE_SECONDS


def test_writes_refused_for_longer_than_a_lease_make_nobody_pass_for_dead(own_valkey: Valkey) -> None:
    with workers(own_valkey.url(), 2) as (one, two):
        log = one.begin()
        log.append("a")
        wait_until(lambda: log.head == 1, "the chunk")
        copy = two.store.find(log.stream_id)
        with own_valkey.configured(min_replicas_to_write="1"):
            lives = [worker.store._commands.life_key(worker.store.worker) for worker in (one, two)]
            wait_until(lambda: not own_valkey.client().exists(*lives), "no sign of life is left")
            refused = time.monotonic()
            wait_until(lambda: time.monotonic() - refused > 2 * LEASE_SECONDS, "and so it stays")
        wait_until(lambda: one.store.ready() and two.store.ready(), "writes are taken again")
        looks: list[bool] = []
        look = two.store._leases.look_at_owners
        two.store._leases.look_at_owners = lambda: looks.append(two.store._leases._may_judge()) or look()
        wait_until(lambda: looks.count(True) > 3, "it has looked, and may judge")
        assert (log.end, copy.end) == (None, None)
        log.append("b")
        log.finish(end_with())
        assert copy.settle(PATIENCE_SECONDS)
        assert (copy.text(), terminal_of(copy).event) == ("ab", "done")


def test_adoption_whose_answer_is_lost_is_finished_in_the_next_round(own_valkey: Valkey) -> None:
    with workers(own_valkey.url(), 2) as (dying, heir):
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
        assert len(own_valkey.client().xrange(heir.store._commands.keys(logs[0].stream_id)[1])) == 2


def test_log_that_died_and_was_lost_gets_one_end_though_two_write_it_anew(own_valkey: Valkey) -> None:
    with workers(own_valkey.url(), 3) as (dying, second, third):
        log = dying.begin()
        log.append("a", "b")
        wait_until(lambda: log.head == 2, "the chunks")
        copies = [worker.store.find(log.stream_id) for worker in (second, third)]
        dying.crash()
        own_valkey.client().flushdb()
        for copy in copies:
            assert copy.settle(PATIENCE_SECONDS)
            assert (copy.text(), terminal_of(copy).event) == ("ab", "failed")
        entries = own_valkey.client().xrange(second.store._commands.keys(log.stream_id)[1])
        assert [name for _, fields in entries for name in fields] == [b"t", b"t", b"e"]


def test_log_whose_adopter_does_not_know_of_it_is_ended_by_it_all_the_same(database: Database) -> None:
    """The answer to its adoption was lost, and so was the copy; the next reader finds it."""
    with workers(database.url, 2) as (one, two):
        log = one.begin()
        log.append("a")
        wait_until(lambda: log.head == 1, "the chunk")
        one.crash()
        life = one.store._commands.life_key(one.store.worker)
        wait_until(lambda: not database.client.exists(life), "it gives no sign of life")
        hash_key = two.store._commands.keys(log.stream_id)[0]
        adopted = database.client.eval(scripts.ADOPT, 2, hash_key, life, one.store.worker, 1, two.store.worker)
        assert adopted == 1
        copy = two.store.find(log.stream_id)
        assert copy.settle(PATIENCE_SECONDS)
        assert (copy.text(), terminal_of(copy).event) == ("a", "failed")


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


# The sign of life


def test_sign_of_life_lives_for_a_lease_and_is_given_again(database: Database) -> None:
    with workers(database.url, 1, lease_seconds=LONG) as (one,):
        key = one.store._commands.life_key(one.store.worker)
        assert 0 < database.client.pttl(key) <= LONG * 1000
        database.client.pexpire(key, 1000)
        one.store._leases.renew()
        one.store.flush()
        assert database.client.pttl(key) > 1000


def test_sign_of_life_that_is_gone_before_its_time_means_that_valkey_lost_what_it_had(database: Database) -> None:
    with workers(database.url, 1, lease_seconds=LONG) as (one,):
        log = one.begin()
        log.append("a")
        wait_until(lambda: log.head == 1, "the record")
        one.store._next_round = float("inf")
        one.store.flush()
        database.client.delete(*one.store._commands.keys(log.stream_id))
        one.store._leases.renew()
        one.store.flush()
        one.store.flush()
        assert not database.client.exists(one.store._commands.keys(log.stream_id)[0]), "the sign was there"
        database.client.delete(one.store._commands.life_key(one.store.worker))
        one.store._leases.renew()
        wait_until(lambda: database.client.exists(one.store._commands.keys(log.stream_id)[1]), "it is written anew")


def test_owner_that_is_not_known_is_looked_up(database: Database) -> None:
    """A log that was taken over while its worker stood still has no owner that it knows of."""
    with workers(database.url, 2) as (one, two):
        log = one.begin()
        log.append("a")
        wait_until(lambda: log.head == 1, "the record")
        copy = two.store.find(log.stream_id)
        copy.copy.owner, copy.copy.fence = "", 0
        wait_until(lambda: copy.copy.owner == one.store.worker, "it is known")
        assert (copy.copy.fence, copy.is_followed) == (1, True)


def test_stream_of_our_own_that_is_only_a_copy_here_is_ended(database: Database) -> None:
    """It was given to us, and we did not hear of it."""
    with workers(database.url, 2) as (one, two):
        log = one.begin()
        log.append("a", "b")
        wait_until(lambda: log.head == 2, "the records")
        copy = two.store.find(log.stream_id)
        database.client.hset(
            two.store._commands.keys(log.stream_id)[0], mapping={"owner": two.store.worker, "fence": 2}
        )
        copy.copy.owner = two.store.worker
        assert copy.settle(PATIENCE_SECONDS)
        assert (copy.text(), terminal_of(copy).event) == ("ab", "failed")
        assert log.append("c"), "it does not know it yet"
        assert log.settle(PATIENCE_SECONDS)
        assert log.end == copy.end


def test_adoption_waits_until_the_copy_has_all_that_is_stored(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with workers(database.url, 2) as (dying, heir):
        log = dying.begin()
        monkeypatch.setattr(heir.store._tail, "follow", lambda key, log: None)
        copy = heir.store.find(log.stream_id)
        log.append(*["x"] * 1200)
        wait_until(lambda: log.head == 1200, "the records")
        assert copy.head == 0
        dying.crash()
        assert copy.settle(PATIENCE_SECONDS)
        assert (copy.head, terminal_of(copy).event) == (1200, "failed")


def test_many_logs_of_a_dead_worker_are_adopted_in_parts(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "MOST_ADOPTED", 4)
    with workers(database.url, 2) as (dying, heir):
        logs = [dying.begin() for _ in range(10)]
        copies = [heir.store.find(log.stream_id) for log in logs]
        sizes: list[int] = []
        ask = heir.store._committer.ask

        def counted(*commands: Any) -> list[Any]:
            if len(commands) > 1 and commands[0][0] == "EVALSHA":
                sizes.append(len(commands) // 2)
            return ask(*commands)

        monkeypatch.setattr(heir.store._committer, "ask", counted)
        dying.crash()
        for copy in copies:
            assert copy.settle(PATIENCE_SECONDS)
        assert max(sizes) <= 4
        assert sum(sizes) >= 10
