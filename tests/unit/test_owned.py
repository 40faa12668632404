"""What a log that this worker writes wants written, when, and what it makes of each answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from app.streams.interface import Binding, Kind
from app.streams.shared.committer import Commit
from app.streams.shared.log import SharedLog
from app.streams.shared.owned import MOST_RECORDS, MOST_REPAIRS, Owned
from app.streams.shared.replies import Behind, Done, Ended, Fenced, Missing, Spoiled, Written
from app.streams.shared.state import State
from tests.harness.valkey import Database
from tests.harness.valkey_fixtures import EACH_KIND
from tests.unit.ends import end_with
from tests.unit.shared import PATIENCE_SECONDS, wait_until, workers
from tests.unit.standing import StandingDesk, begun, copied


@pytest.fixture(params=EACH_KIND)
def database(request: pytest.FixtureRequest) -> Database:
    """Give each test that does Valkey no harm one of each kind."""
    database: Database = request.getfixturevalue(f"{request.param}_database")
    return database


@pytest.fixture
def desk() -> StandingDesk:
    return StandingDesk()


def owned_of(log: SharedLog) -> Owned:
    assert log.owned is not None
    return log.owned


def wanted(log: SharedLog) -> Commit:
    """Ask a log what it wants written."""
    commit = owned_of(log).commit()
    assert commit is not None
    return commit


def parts(commit: Commit) -> tuple[int, list[bytes], bool, bool]:
    """Tell where a commit begins, its records, and whether it begins or ends the stream."""
    return commit.first, list(commit.records), commit.restore is not None, commit.finish is not None


# What it gives


def test_commit_gives_what_is_new_once_and_from_its_place(desk: StandingDesk) -> None:
    log = begun(desk)
    log.append("a", "é")
    log.append("c")
    assert desk.take() == ["changed", "changed"]
    commit = wanted(log)
    assert parts(commit) == (1, [b"a", "é".encode(), b"c"], False, False)
    assert (commit.keys, commit.fence) == (desk.keys(log.stream_id), 1)
    assert parts(wanted(log)) == (1, [], False, False), "it is on its way"
    owned_of(log).committed(Written(3, False))
    log.append("d")
    assert parts(wanted(log)) == (4, [b"d"], False, False)
    assert desk.take() == ["changed"]


def test_commit_with_nothing_new_only_looks(desk: StandingDesk) -> None:
    log = begun(desk, "a", "b")
    for _ in range(2):
        assert parts(wanted(log)) == (3, [], False, False)


@pytest.mark.parametrize(("kind", "first"), [("text", 1), ("chunks", 2), ("json", 1)])
def test_what_is_awaited_are_the_first_records_and_the_end(desk: StandingDesk, kind: Kind, first: int) -> None:
    log = begun(desk)
    log.origin = replace(log.origin, kind=kind)
    owned = owned_of(log)
    for written in range(first):
        owned.committed(Written(written, False))
        assert owned.is_awaited
        log.append("a")
        wanted(log)
    owned.committed(Written(first, False))
    log.append("a")
    assert not owned.is_awaited
    log.finish(end_with())
    assert owned.is_awaited
    owned.committed(Missing())
    assert not owned.is_awaited, "what Valkey loses again and again is not written without a rest"


def test_what_was_not_answered_is_given_again_with_what_came_since(desk: StandingDesk) -> None:
    log = begun(desk, "a")
    log.append("b")
    wanted(log)
    log.append("c")
    owned_of(log).not_committed()
    assert parts(wanted(log)) == (2, [b"b", b"c"], False, False)
    log.append("d")
    owned_of(log).committed(Written(3, False))
    assert parts(wanted(log)) == (4, [b"d"], False, False)


def test_end_goes_with_the_last_records_and_again_until_it_is_stored(desk: StandingDesk) -> None:
    log = begun(desk, "a")
    log.append("b")
    desk.take()
    assert log.finish(end_with())
    assert desk.take() == ["changed"]
    commit = wanted(log)
    assert parts(commit) == (2, [b"b"], False, True)
    assert commit.finish == ("FINISH", 1, 2)
    owned_of(log).not_committed()
    assert parts(wanted(log)) == (2, [b"b"], False, True)
    assert log.end is None


@pytest.mark.parametrize("is_anew", [False, True])
def test_many_records_go_in_parts_and_the_end_with_the_last_one(desk: StandingDesk, is_anew: bool) -> None:
    log = begun(desk)
    records = [b"%d" % number for number in range(2 * MOST_RECORDS + 1)]
    log.append(*(record.decode() for record in records))
    log.finish(end_with())
    if is_anew:
        owned_of(log).committed(Missing())
    desk.take()
    sizes, given = [], []
    while True:
        commit = wanted(log)
        assert commit.first == len(given) + 1
        assert (commit.restore is not None) is (is_anew and not given)
        sizes.append(len(commit.records))
        given += commit.records
        owned_of(log).committed(Written(len(given), False))
        if commit.finish is not None:
            break
        assert desk.take()[-1] == "changed", "the rest is asked for"
    assert (sizes, given) == ([MOST_RECORDS, MOST_RECORDS, 1], records)


def test_records_exactly_as_many_as_fit_go_at_once(desk: StandingDesk) -> None:
    log = begun(desk)
    log.append(*["x"] * MOST_RECORDS)
    log.finish(end_with())
    desk.take()
    assert parts(wanted(log))[1:] == ([b"x"] * MOST_RECORDS, False, True)
    assert desk.take() == []


@pytest.mark.parametrize("state", [State.CUT_OFF, State.DROPPED, State.FOLLOWED], ids=lambda state: state.name)
def test_log_that_is_not_written_gives_nothing_and_asks_for_nothing(desk: StandingDesk, state: State) -> None:
    log = begun(desk, "a")
    owned = owned_of(log)
    desk.take()
    leave: dict[State, Callable[[], object]] = {
        State.CUT_OFF: log.cut_off,
        State.DROPPED: log.drop,
        State.FOLLOWED: lambda: log.hand_over(1),
    }
    leave[state]()
    assert log.state is state
    for _ in range(2):
        assert owned.commit() is None
        owned.changed()
        owned.not_committable()
        owned.committed(Missing())
        owned.committed(Behind(0))
        owned.committed(Fenced(1))
    assert log.state is state
    assert set(desk.take()) == {"missed"}


def test_role_of_a_log_that_was_taken_over_and_adopted_again_writes_nothing_any_more(desk: StandingDesk) -> None:
    """Answers to what it had on its way may come late."""
    log = begun(desk, "a")
    before = owned_of(log)
    log.append("b")
    before.commit()
    assert log.hand_over(1)
    assert log.adopt(desk, 3, is_lost=False)
    assert log.append("c")
    before.committed(Written(2, False))
    before.committed(Fenced(1))
    before.not_committable()
    assert before.commit() is None
    assert (log.head, log.stored, log.state) == (1, 1, State.STORED)
    assert parts(wanted(log)) == (2, [b"c"], False, False)


# What it makes of answers


def test_written_shows_the_records_and_tells_of_a_stop(desk: StandingDesk) -> None:
    log = begun(desk)
    log.append("a", "b")
    wanted(log)
    desk.take()
    owned_of(log).committed(Written(2, True))
    assert (log.head, log.stored) == (2, 2)
    assert desk.take() == [("cancel_asked", log.stream_id)]


def test_behind_is_sent_again_from_where_valkey_is(desk: StandingDesk) -> None:
    log = begun(desk, "a", "b", "c")
    log.append("d")
    wanted(log)
    desk.take()
    owned_of(log).committed(Behind(1))
    assert desk.take() == ["changed"]
    assert (log.head, log.stored) == (3, 1), "readers keep what they have"
    assert parts(wanted(log)) == (2, [b"b", b"c", b"d"], False, False)


def test_missing_is_begun_anew_with_all_records(desk: StandingDesk) -> None:
    log = begun(desk, "a", "b")
    log.append("c")
    wanted(log)
    desk.take()
    owned_of(log).committed(Missing())
    assert desk.take() == ["changed", "missed"], "the sign of life is probably lost too"
    commit = wanted(log)
    assert parts(commit) == (1, [b"a", b"b", b"c"], True, False)
    assert commit.restore == ("RESTORE", 1)
    owned_of(log).committed(Written(3, False))
    assert parts(wanted(log)) == (4, [], False, False), "once"


@pytest.mark.parametrize("first", [Spoiled(), Missing()], ids=["spoiled", "missing"])
@pytest.mark.parametrize("second", [Behind(0), Spoiled(), Missing()], ids=["behind", "spoiled", "missing"])
def test_two_answers_of_one_batch_begin_the_stream_anew(desk: StandingDesk, first: Any, second: Any) -> None:
    """One is for the records, the other for the end."""
    log = begun(desk, "a")
    log.finish(end_with())
    assert parts(wanted(log)) == (2, [], False, True)
    desk.take()
    owned_of(log).committed(first)
    owned_of(log).finished(second)
    assert parts(wanted(log)) == (1, [b"a"], True, True)
    assert sum(what == ("damaged", "its record") for what in desk.take()) == isinstance(first, Spoiled), (
        "damage is counted once for a batch"
    )


def test_damage_is_repaired_so_often_and_then_the_log_is_given_up(desk: StandingDesk) -> None:
    log = begun(desk, "a")
    for _ in range(MOST_REPAIRS):
        desk.take()
        owned_of(log).committed(Spoiled())
        assert desk.take() == [("damaged", "its record"), "changed"]
        assert parts(wanted(log)) == (1, [b"a"], True, False)
        owned_of(log).committed(Written(1, False))
    owned_of(log).committed(Spoiled())
    assert desk.take() == [("damaged", "its record"), "given_up"]
    assert (log.state, owned_of(log).commit()) == (State.CUT_OFF, None)
    owned_of(log).not_committable()
    assert desk.take() == []


@pytest.mark.parametrize("reply", [Written(2, False), Ended(0)], ids=["more than there is", "an end that is not there"])
def test_answer_that_cannot_be_is_damage(desk: StandingDesk, reply: Any) -> None:
    log = begun(desk, "a")
    desk.take()
    owned_of(log).committed(reply)
    assert desk.take() == [("damaged", "its record"), "changed"]
    assert (log.head, log.end) == (1, None)
    assert parts(wanted(log)) == (1, [b"a"], True, False)


@pytest.mark.parametrize("reply", [Done(2), Ended(2)], ids=["done", "ended"])
def test_end_that_is_stored_is_shown_and_booked_with_the_readers_of_all(desk: StandingDesk, reply: Any) -> None:
    log = begun(desk)
    lines: list[tuple[str, int]] = []
    with log.reader(0):
        log.noted = 1  # Valkey has heard of this one
        log.append("a")
        log.finish(end_with())
        log.book(lambda name: lines.append((name, log.resumes)))
        assert wanted(log).finish is not None
        owned_of(log).committed(Written(1, False))
        assert (log.end, lines) == (None, [])
        desk.take()
        owned_of(log).finished(reply)
    assert (log.attached_elsewhere, log.end is not None, lines) == (1, True, [("response_complete", 1)])
    assert (desk.take(), len(desk.unbooked)) == (["end_stored"], 0)


def test_end_that_was_stored_before_the_answer_was_lost_is_taken_for_stored(desk: StandingDesk) -> None:
    log = begun(desk, "a")
    log.append("b")
    log.finish(end_with())
    wanted(log)
    owned_of(log).not_committed()
    assert parts(wanted(log)) == (2, [b"b"], False, True)
    owned_of(log).committed(Ended(0))
    assert (log.head, log.stored, log.end) == (2, 2, None)
    owned_of(log).finished(Ended(0))
    assert (log.state, log.end is not None) == (State.ENDED, True)


def test_fenced_role_hands_over_or_goes_on_alone(desk: StandingDesk) -> None:
    for shown, is_followed in ((1, True), (0, False)):
        log = begun(desk, "a")
        owned = owned_of(log)
        desk.take()
        owned.committed(Fenced(shown))
        assert desk.take() == [("taken_over", is_followed)]
        assert (log.copy is not None) is is_followed
        assert (log.state is State.CUT_OFF) is not is_followed
        owned.finished(Fenced(shown))
        assert desk.take() == [], "said once"


def test_log_that_is_cut_off_keeps_nothing_for_valkey(desk: StandingDesk) -> None:
    log = begun(desk)
    log.cut_off()
    for _ in range(100):
        log.append("a")
    assert (owned_of(log)._unsent, log.head) == (None, 100)


def test_adopted_role_knows_what_valkey_has(desk: StandingDesk) -> None:
    log = copied("a", "b")
    assert log.adopt(desk, 9, is_lost=False)
    assert (owned_of(log).written, owned_of(log).fence) == (2, 9)
    assert parts(wanted(log)) == (3, [], False, False)


# Over Valkey


def test_valkey_that_lost_a_part_of_a_log_is_given_it_again(database: Database) -> None:
    with workers(database.url, 2) as (one, two):
        log = one.begin()
        log.append("a", "b")
        wait_until(lambda: log.head == 2, "the records")
        database.client.delete(one.store._commands.keys(log.stream_id)[1])
        log.append("c")
        wait_until(lambda: log.head == 3, "the record")
        assert two.store.find(log.stream_id).text() == "abc"


def test_valkey_that_was_taken_over_by_an_older_copy_of_it_is_brought_up_to_date(database: Database) -> None:
    """A failover that lost the last writes: there is less than was acknowledged."""
    with workers(database.url, 2) as (one, two):
        log = one.begin()
        hash_key, entries_key = one.store._commands.keys(log.stream_id)
        log.append("a", "b", "c")
        wait_until(lambda: log.head == 3, "the records")
        database.client.delete(entries_key)
        database.client.xadd(entries_key, {"t": "a"}, "1-0")
        database.client.hset(hash_key, mapping={"head": 1, "bytes": 1})
        log.append("d")
        wait_until(lambda: log.head == 4, "the record")
        assert two.store.find(log.stream_id).text() == "abcd"


def test_log_with_a_key_that_valkey_lost_is_written_anew_with_its_key_origin_and_readers(database: Database) -> None:
    key = Binding("k" * 64, "f" * 64)
    with workers(database.url, 2) as (one, two):
        log, _ = one.store.create(begun(StandingDesk()).origin, key)
        log.append("a")
        with log.reader(0):
            wait_until(lambda: log.head == log.noted == 1, "the record and its reader")
            hash_key, _ = one.store._commands.keys(log.stream_id)
            before = database.client.hgetall(hash_key)
            database.client.flushdb()
            log.append("b")
            wait_until(lambda: log.head == 2, "it is written anew")
            assert database.client.hgetall(hash_key) == before | {b"head": b"2", b"bytes": b"2"}
            again, created = two.store.create(log.origin, key)
            assert (again.stream_id, created) == (log.stream_id, False)
            log.finish(end_with())
            assert again.settle(PATIENCE_SECONDS)
