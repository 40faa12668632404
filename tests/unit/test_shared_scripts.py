"""Each script of Valkey's alone, every branch, on a Valkey that nobody else uses."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from app.streams.shared import scripts
from tests.harness.valkey import Database, Valkey
from tests.harness.valkey_fixtures import EACH_KIND

HASH, LOG, KEY, WAKE, STOPS, LIFE = "{t}:cw", "{t}:cw:log", "{t}:key", "{t}:wake", "{t}:stops", "{t}:life"
LIVE_MS, KEPT_MS, REMEMBERED_MS = 60_000, 5_000, 90_000
DAMAGED = [b"damaged"]


@pytest.fixture(params=EACH_KIND)
def database(request: pytest.FixtureRequest) -> Database:
    database: Database = request.getfixturevalue(f"{request.param}_database")
    return database


@pytest.fixture
def client(database: Database) -> redis.Redis:
    return database.client


def run(client: redis.Redis, script: str, keys: tuple[str, ...], *arguments: Any) -> Any:
    return client.eval(script, len(keys), *keys, *arguments)


def fields(owner: str = "one", fence: int = 1) -> tuple[Any, ...]:
    return ("owner", owner, "fence", fence, "head", 0, "bytes", 0, "attached", 0)


def create(client: redis.Redis, *, may: int = 1, keys: tuple[str, ...] = (HASH, KEY), bound: str = "cw f") -> Any:
    return run(client, scripts.CREATE, keys, may, LIVE_MS, bound, *fields())


def commit(client: redis.Redis, *chunks: str, first: int = 1, fence: int = 1) -> Any:
    (answer,) = run(client, scripts.COMMIT, (HASH, LOG), LIVE_MS, fence, "t", first, len(chunks), *chunks)
    return answer


def finish(
    client: redis.Redis, tokens: int, *, fence: int = 1, frees: int = 0, bound: str = "cw f", keyed: bool = True
) -> Any:
    keys = (HASH, LOG, KEY) if keyed else (HASH, LOG)
    return run(client, scripts.FINISH, keys, fence, tokens, "{}", "done", KEPT_MS, REMEMBERED_MS, frees, bound)


def restore(client: redis.Redis, *, fence: int = 1, keyed: bool = True) -> Any:
    keys = (HASH, LOG, KEY) if keyed else (HASH, LOG)
    return run(client, scripts.RESTORE, keys, fence, LIVE_MS, "cw f", *fields(fence=fence))


def adopt(client: redis.Redis, *, owner: str = "one", fence: object = 1) -> Any:
    return run(client, scripts.ADOPT, (HASH, LIFE), owner, fence, "two")


def cancel(client: redis.Redis, *, owner: str = "one") -> Any:
    return run(client, scripts.CANCEL, (HASH, WAKE, STOPS), owner, "cw", LIVE_MS)


def attach(client: redis.Redis) -> Any:
    return run(client, scripts.ATTACH, (HASH,))


def state(client: redis.Redis) -> dict[bytes, Any]:
    """Tell all that is kept, and what kind it is of."""
    read = {
        b"hash": client.hgetall,
        b"stream": client.xrange,
        b"string": client.get,
        b"set": client.smembers,
    }
    return {key: read[client.type(key)](key) for key in client.scan_iter()}


def log_of(client: redis.Redis) -> list[tuple[bytes, bytes, bytes]]:
    return [(at, name, value) for at, one in client.xrange(LOG) for name, value in one.items()]


def lives(client: redis.Redis, key: str, milliseconds: int) -> bool:
    return milliseconds - 3_000 < client.pttl(key) <= milliseconds


# CREATE


def test_create_makes_the_stream_and_binds_its_key_for_a_while(client: redis.Redis) -> None:
    assert create(client) == 1
    assert client.hgetall(HASH)[b"owner"] == b"one"
    assert client.get(KEY) == b"cw f"
    assert lives(client, HASH, LIVE_MS)
    assert lives(client, KEY, LIVE_MS)


def test_create_without_a_key_binds_none(client: redis.Redis) -> None:
    assert create(client, keys=(HASH,)) == 1
    assert list(state(client)) == [HASH.encode()]


def test_create_that_may_not_makes_nothing(client: redis.Redis) -> None:
    assert create(client, may=0) == 0
    assert create(client, may=0, keys=(HASH,)) == 0
    assert state(client) == {}


@pytest.mark.parametrize("may", [0, 1])
def test_create_with_a_key_that_stands_for_another_says_which_and_changes_nothing(
    client: redis.Redis, may: int
) -> None:
    client.set(KEY, "cw_other g")
    assert create(client, may=may) == b"cw_other g"
    assert state(client) == {KEY.encode(): b"cw_other g"}


def test_create_with_a_key_that_holds_something_else_says_so_and_changes_nothing(client: redis.Redis) -> None:
    client.sadd(KEY, "x")
    assert create(client) == DAMAGED
    assert state(client) == {KEY.encode(): {b"x"}}


# COMMIT


def test_commit_adds_chunks_at_their_places_and_passes_over_those_that_are_there(client: redis.Redis) -> None:
    create(client)
    assert commit(client, "a", "é") == 2
    assert commit(client, "é", "c", first=2) == 3
    assert commit(client, "a", "é") == 3, "and all of them may be known"
    assert commit(client, first=4) == 3, "only a look"
    assert log_of(client) == [(b"1-0", b"t", b"a"), (b"2-0", b"t", "é".encode()), (b"3-0", b"t", b"c")]
    assert client.hmget(HASH, "head", "bytes") == [b"3", b"4"]
    assert lives(client, LOG, LIVE_MS)


def test_commit_of_several_streams_answers_each_in_its_place(client: redis.Redis) -> None:
    """And what is wrong with one is nothing to the others."""
    keys: list[str] = []
    arguments: list[Any] = [LIVE_MS]
    for number in range(5):
        run(client, scripts.CREATE, (f"{HASH}{number}",), 1, LIVE_MS, "", *fields())
        keys += (f"{HASH}{number}", f"{LOG}{number}")
        arguments += (1, "t", 1, 2, "a", f"{number}")
    client.delete(f"{HASH}0", f"{HASH}2")
    client.set(f"{HASH}2", "x")
    client.sadd(f"{LOG}3", "x")
    assert run(client, scripts.COMMIT, tuple(keys), *arguments) == [[b"missing"], 2, DAMAGED, DAMAGED, 2]
    assert [one[b"t"] for _, one in client.xrange(f"{LOG}4")] == [b"a", b"4"]


@pytest.mark.parametrize("chunks", [(), ("b",)])
def test_commit_by_who_holds_another_fence_writes_nothing_and_says_how_far_it_is(
    client: redis.Redis, chunks: tuple[str, ...]
) -> None:
    create(client)
    commit(client, "a")
    client.hset(HASH, "fence", 2)
    before = state(client)
    assert commit(client, *chunks, first=2) == [b"fenced", 1]
    client.hset(HASH, "end", "done")
    assert commit(client, *chunks, first=2) == [b"fenced", 1], "also when it has ended"
    client.hdel(HASH, "end")
    assert state(client) == before
    client.hdel(HASH, "head")
    assert commit(client, *chunks, first=2) == [b"fenced", 0], "another's, whatever else is wrong"


def test_commit_after_the_end_writes_nothing(client: redis.Redis) -> None:
    create(client)
    commit(client, "a")
    finish(client, 1)
    before = state(client)
    assert commit(client, "b", first=2) == [b"ended"]
    assert state(client) == before


def test_commit_beyond_the_head_says_where_it_is(client: redis.Redis) -> None:
    create(client)
    commit(client, "a")
    assert commit(client, "c", first=3) == [b"behind", 1]
    assert len(log_of(client)) == 1


@pytest.mark.parametrize("chunks", [(), ("b",)])
def test_commit_to_a_stream_that_is_gone_or_has_lost_its_entries_says_so(
    client: redis.Redis, chunks: tuple[str, ...]
) -> None:
    assert commit(client, *chunks) == [b"missing"]
    create(client)
    commit(client, "a")
    client.delete(LOG)
    assert commit(client, *chunks, first=2) == [b"missing"]
    assert client.exists(LOG) == 0
    assert client.hget(HASH, "head") == b"1"


def test_commit_tells_that_a_stop_was_asked_for_and_writes_all_the_same(client: redis.Redis) -> None:
    create(client)
    cancel(client)
    assert commit(client, "a") == [b"cancel", 1]
    assert commit(client, first=2) == [b"cancel", 1]


WRONG = ["", "-1", "1.5", "nan", "inf", "1e3", "0x1", " 1", str(2**60), "9" * 40, "x"]


@pytest.mark.parametrize("field", ["head", "bytes"])
def test_commit_to_a_stream_whose_figures_are_none_says_damaged_and_writes_nothing(
    client: redis.Redis, field: str
) -> None:
    create(client)
    commit(client, "a")
    for wrong in WRONG:
        client.hset(HASH, field, wrong)
        before = state(client)
        assert commit(client, "b", first=2) == DAMAGED, wrong
        assert finish(client, 1) == DAMAGED if field == "head" else True
        assert state(client) == before
    client.hdel(HASH, field)
    assert commit(client, "b", first=2) == DAMAGED


@pytest.mark.parametrize("key", [HASH, LOG])
@pytest.mark.parametrize("chunks", [("a",), ("a", "b")])
def test_commit_and_finish_at_a_key_of_another_kind_say_damaged(
    client: redis.Redis, key: str, chunks: tuple[str, ...]
) -> None:
    create(client)
    client.delete(key)
    client.set(key, "x")
    assert commit(client, *chunks) == DAMAGED
    assert finish(client, 0) == DAMAGED
    assert client.get(key) == b"x"


def test_commit_and_finish_where_an_entry_lies_beyond_the_head_say_damaged(client: redis.Redis) -> None:
    create(client)
    commit(client, "a")
    client.xadd(LOG, {"t": "forged"}, "9-0")
    assert commit(client, "b", first=2) == DAMAGED
    assert finish(client, 1) == DAMAGED
    assert b"end" not in client.hgetall(HASH)


def test_commit_that_valkey_refuses_is_refused_and_not_damaged(own_valkey: Valkey) -> None:
    client = own_valkey.client()
    create(client)
    for setting in ({"maxmemory": "1"}, {"min_replicas_to_write": "1"}):
        with own_valkey.configured(**setting):
            for call in (lambda: commit(client, "a"), lambda: finish(client, 0), lambda: cancel(client)):
                with pytest.raises(redis.ResponseError, match=r"OOM|NOREPLICAS|memory|replicas"):
                    call()
    assert commit(client, "a") == 1


# FINISH


def test_finish_writes_the_end_once_and_lets_things_expire(client: redis.Redis) -> None:
    create(client)
    commit(client, "a")
    assert finish(client, 1) == [b"done", 0]
    assert log_of(client)[1:] == [(b"2-0", b"e", b"{}")]
    assert client.hget(HASH, "end") == b"done"
    assert lives(client, LOG, KEPT_MS)
    assert lives(client, HASH, REMEMBERED_MS)
    assert lives(client, KEY, REMEMBERED_MS)
    before = state(client)
    assert finish(client, 1) == [b"ended", 0]
    assert state(client) == before


def test_finish_by_who_holds_another_fence_writes_nothing(client: redis.Redis) -> None:
    create(client)
    commit(client, "a")
    client.hset(HASH, "fence", 2)
    before = state(client)
    assert finish(client, 1, frees=1) == [b"fenced", 1]
    assert finish(client, 9, frees=1) == [b"fenced", 1], "wherever it thinks that it is"
    client.hset(HASH, "end", "done")
    assert finish(client, 1, frees=1) == [b"fenced", 1], "and when the other one has ended it"
    client.hdel(HASH, "end")
    assert state(client) == before


def test_finish_before_all_chunks_are_there_says_how_far_it_is(client: redis.Redis) -> None:
    create(client)
    commit(client, "a")
    assert finish(client, 2) == [b"behind", 1]
    assert finish(client, 0) == DAMAGED, "more than who holds it has written"
    assert b"end" not in client.hgetall(HASH)
    assert len(log_of(client)) == 1


def test_finish_of_what_is_gone_says_so(client: redis.Redis) -> None:
    assert finish(client, 0) == [b"missing"]
    create(client)
    commit(client, "a")
    client.delete(LOG)
    assert finish(client, 1) == [b"missing"]
    assert client.exists(LOG) == 0
    assert client.get(KEY) == b"cw f"


def test_finish_of_an_empty_stream_is_its_only_entry(client: redis.Redis) -> None:
    create(client)
    assert finish(client, 0) == [b"done", 0]
    assert log_of(client) == [(b"1-0", b"e", b"{}")]


def test_finish_frees_its_own_key_and_no_others(client: redis.Redis) -> None:
    create(client)
    client.set(KEY, "cw_newer f")
    assert finish(client, 0, frees=1) == [b"done", 0]
    assert client.get(KEY) == b"cw_newer f"
    assert client.pttl(KEY) == -1
    client.delete(HASH, LOG, KEY)
    create(client)
    assert finish(client, 0, frees=1) == [b"done", 0]
    assert client.exists(KEY) == 0


def test_finish_without_a_key_and_with_a_damaged_one_ends_all_the_same(client: redis.Redis) -> None:
    create(client)
    client.delete(KEY)
    client.sadd(KEY, "x")
    assert finish(client, 0, frees=1) == [b"done", 0]
    assert client.smembers(KEY) == {b"x"}
    client.delete(HASH, LOG)
    create(client, keys=(HASH,))
    assert finish(client, 0, keyed=False) == [b"done", 0]


def test_finish_tells_how_many_readers_were_noted(client: redis.Redis) -> None:
    create(client)
    assert [attach(client), attach(client)] == [1, 2]
    assert finish(client, 0) == [b"done", 2]
    assert attach(client) == 0, "it has ended"
    assert finish(client, 0) == [b"ended", 2]


# ATTACH


def test_attach_to_what_is_gone_or_damaged_notes_nothing(client: redis.Redis) -> None:
    assert attach(client) == 0
    assert state(client) == {}, "above all no key that never expires"
    create(client)
    client.hset(HASH, "attached", "x")
    assert attach(client) == 0
    assert finish(client, 0) == [b"done", 0]
    client.delete(HASH)
    client.set(HASH, "x")
    assert attach(client) == 0


def test_attach_to_a_stream_of_the_version_before_is_noted(client: redis.Redis) -> None:
    create(client)
    client.hdel(HASH, "attached")
    assert attach(client) == 1
    assert lives(client, HASH, LIVE_MS)


# RESTORE


def test_restore_begins_anew_what_is_gone_or_a_part_of_it(client: redis.Redis) -> None:
    assert restore(client) == 1
    assert (client.hget(HASH, "head"), client.get(KEY)) == (b"0", b"cw f")
    assert lives(client, HASH, LIVE_MS)
    assert lives(client, KEY, LIVE_MS)
    commit(client, "a")
    assert restore(client) == 1
    assert (client.hget(HASH, "head"), client.exists(LOG)) == (b"0", 0)
    assert restore(client, keyed=False) == 1


def test_restore_by_who_holds_another_fence_changes_nothing(client: redis.Redis) -> None:
    create(client)
    commit(client, "a")
    client.hset(HASH, "fence", 2)
    before = state(client)
    assert restore(client) == 0
    assert restore(client, fence=3) == 0
    assert state(client) == before


def test_restore_leaves_a_key_that_is_bound_already_alone(client: redis.Redis) -> None:
    client.set(KEY, "cw_newer f")
    assert restore(client) == 1
    assert client.get(KEY) == b"cw_newer f"


@pytest.mark.parametrize("key", [HASH, LOG, KEY])
def test_restore_takes_the_place_of_what_is_of_another_kind(client: redis.Redis, key: str) -> None:
    client.sadd(key, "x")
    assert restore(client) == 1
    assert commit(client, "a") == 1
    assert finish(client, 1) == [b"done", 0]


# CANCEL


def test_cancel_marks_the_stream_and_tells_its_producer_in_two_ways(client: redis.Redis) -> None:
    create(client)
    for _ in range(150):
        assert cancel(client) == 1
    assert client.hget(HASH, "cancel") == b"1"
    assert client.smembers(STOPS) == {b"cw"}
    messages = client.xrange(WAKE)
    assert {(name, value) for _, one in messages for name, value in one.items()} == {(b"cancel", b"cw")}
    assert len(messages) == 100, "few"
    assert all(lives(client, key, LIVE_MS) for key in (HASH, WAKE, STOPS))


def test_cancel_of_what_is_gone_another_producers_or_over_changes_nothing(client: redis.Redis) -> None:
    assert cancel(client) == 0
    assert state(client) == {}
    create(client)
    before = state(client)
    assert cancel(client, owner="two") == 0
    assert state(client) == before
    finish(client, 0)
    before = state(client)
    assert cancel(client) == 0
    assert state(client) == before


@pytest.mark.parametrize("key", [WAKE, STOPS])
def test_cancel_deletes_what_is_damaged_where_messages_are_left(client: redis.Redis, key: str) -> None:
    create(client)
    client.set(key, "x")
    assert cancel(client) == 1
    assert client.smembers(STOPS) == {b"cw"}
    assert client.xlen(WAKE) == 1


# ADOPT


def test_adopt_takes_a_stream_whose_producer_is_gone_once(client: redis.Redis) -> None:
    create(client)
    commit(client, "a", "b")
    assert adopt(client) == 2
    assert client.hmget(HASH, "owner", "fence") == [b"two", b"2"]
    assert adopt(client) == -1
    assert commit(client, "c", first=3) == [b"fenced", 2], "its former producer writes nothing more"
    assert finish(client, 2) == [b"fenced", 2]
    assert restore(client) == 0
    assert commit(client, "c", first=3, fence=2) == 3


def test_adopt_takes_none_whose_producer_gives_a_sign_of_life(client: redis.Redis) -> None:
    create(client)
    client.set(LIFE, "1")
    before = state(client)
    assert adopt(client) == -1
    assert state(client) == before


@pytest.mark.parametrize("about", [{"fence": 2}, {"fence": "01"}, {"owner": "three"}, {"owner": ""}])
def test_adopt_takes_none_that_has_changed_hands(client: redis.Redis, about: dict[str, Any]) -> None:
    create(client)
    before = state(client)
    assert adopt(client, **about) == -1
    assert state(client) == before


def test_adopt_takes_none_that_has_ended_is_gone_or_is_damaged(client: redis.Redis) -> None:
    assert adopt(client) == -1
    assert state(client) == {}
    create(client)
    for wrong in WRONG:
        client.hset(HASH, "head", wrong)
        assert adopt(client) == -1, wrong
    client.hset(HASH, "head", 0)
    client.hset(HASH, "fence", "x")
    assert adopt(client, fence="x") == -1
    client.hset(HASH, "fence", 1)
    finish(client, 0)
    before = state(client)
    assert adopt(client) == -1
    assert state(client) == before
    client.delete(HASH)
    client.set(HASH, "x")
    assert adopt(client) == -1


def test_adopt_counts_a_large_fence_exactly(client: redis.Redis) -> None:
    create(client)
    client.hset(HASH, "fence", 2**52 + 1)
    assert adopt(client, fence=2**52 + 1) == 0
    assert client.hget(HASH, "fence") == str(2**52 + 2).encode()


# WAKE


def wake(client: redis.Redis) -> Any:
    return run(client, scripts.WAKE, (WAKE,), "reads", "cw", LIVE_MS)


def test_wake_leaves_few_messages_for_a_while(client: redis.Redis) -> None:
    for _ in range(150):
        assert wake(client) == 1
    assert client.xlen(WAKE) == 100
    assert lives(client, WAKE, LIVE_MS)


def test_wake_deletes_what_is_damaged(client: redis.Redis) -> None:
    client.sadd(WAKE, "x")
    assert wake(client) == 1
    client.delete(WAKE)
    client.xadd(WAKE, {"cancel": "x"}, f"{2**64 - 1}-{2**64 - 1}")
    assert wake(client) == 1
    assert client.xlen(WAKE) == 1
