"""Files of pages on a Valkey: any worker finds what another one published, for a while, and again after a loss."""

from __future__ import annotations

from app.streams.memory.store import MemoryStore
from app.streams.shared import trees
from tests.harness.valkey import Database
from tests.unit.shared import PATIENCE_SECONDS, wait_until, workers

NAME, CONTENT = "0123456789abcdef", bytes(range(256)) * 300


def test_files_are_found_by_other_workers_and_outlive_their_own(valkey_database: Database) -> None:
    with workers(valkey_database.url, 1) as (two,):
        with workers(valkey_database.url, 1) as (one,):
            assert one.store.published(NAME) is None
            one.store.publish(NAME, CONTENT)
            wait_until(lambda: two.store.published(NAME) == CONTENT, "the files", PATIENCE_SECONDS)
        assert two.store.published(NAME) == CONTENT
        assert two.store.published("0" * 16) is None
        (key,) = valkey_database.client.keys("*:files:*")
        assert 0 < valkey_database.client.ttl(key) <= trees.KEPT_SECONDS


def test_files_stay_as_long_as_somebody_has_them_and_come_back_to_a_valkey_that_lost_them(
    valkey_database: Database,
) -> None:
    with workers(valkey_database.url, 1) as (one,):
        one.store.publish(NAME, CONTENT)
        wait_until(lambda: one.store.published(NAME) == CONTENT, "the files", PATIENCE_SECONDS)
        (key,) = valkey_database.client.keys("*:files:*")
        valkey_database.client.expire(key, 1_000)
        one.store._trees.look_again()
        wait_until(lambda: valkey_database.client.ttl(key) > 1_000, "more time", PATIENCE_SECONDS)
        valkey_database.client.delete(key)
        one.store._look_again()
        wait_until(lambda: one.store.published(NAME) == CONTENT, "the files again", PATIENCE_SECONDS)


def test_memory_store_has_nobody_to_publish_to() -> None:
    store = MemoryStore(max_active=1, budget_bytes=1 << 20, retention_seconds=1.0)
    assert store.elsewhere is None


def test_files_whose_key_holds_something_else_are_not_there_and_come_back(valkey_database: Database) -> None:
    with workers(valkey_database.url, 1) as (one,):
        one.store.publish(NAME, CONTENT)
        wait_until(lambda: one.store.published(NAME) == CONTENT, "the files", PATIENCE_SECONDS)
        (key,) = valkey_database.client.keys("*:files:*")
        valkey_database.client.delete(key)
        valkey_database.client.sadd(key, "x")
        assert one.store.published(NAME) is None
        one.store._trees.look_again()
        wait_until(lambda: one.store.published(NAME) == CONTENT, "the files again", PATIENCE_SECONDS)
