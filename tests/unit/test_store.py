"""The suite of stores, their tables and bounds: what every store must do (app/streams/interface.py says it)."""

from __future__ import annotations

import gc
import hashlib
import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from app import errors
from app.streams.interface import Binding, log_name, new_stream_id
from app.streams.memory import store as memory
from app.streams.retention import LOG_OVERHEAD_BYTES
from tests.harness.valkey_fixtures import EACH_KIND
from tests.unit.ends import end_with
from tests.unit.stores import (
    BUDGET_BYTES,
    KEY,
    ORIGIN,
    OTHER_REQUEST,
    PATIENCE_SECONDS,
    RETENTION_SECONDS,
    Factory,
    Time,
    begin,
    clock_of,
    factory_of,
    finished,
    is_kept,
)


@pytest.fixture(params=["memory", *EACH_KIND])
def kind(request: pytest.FixtureRequest) -> str:
    """Name the kind of store that the suite runs over."""
    return str(request.param)


@pytest.fixture
def factory(kind: str, request: pytest.FixtureRequest) -> Iterator[Factory]:
    with factory_of(kind, request) as make:
        yield make


@pytest.fixture
def store(factory: Factory) -> Any:
    return factory()


@pytest.fixture
def clock(kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Time:
    return clock_of(kind, request, monkeypatch)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as pool:
        yield pool


def test_store_given_the_same_key_and_request_attaches_live_and_finished(store: Any) -> None:
    log = begin(store, KEY)

    assert store.create(ORIGIN, KEY) == (log, False)
    log.append("a")
    log.finish(end_with())
    assert store.create(ORIGIN, KEY) == (log, False)


def test_store_given_the_same_key_and_another_request_refuses_it(store: Any) -> None:
    log = begin(store, KEY)

    with pytest.raises(errors.IdempotencyKeyReused):
        store.create(ORIGIN, OTHER_REQUEST)
    log.finish(end_with())
    with pytest.raises(errors.IdempotencyKeyReused):
        store.create(ORIGIN, OTHER_REQUEST)


def test_store_given_no_key_or_another_one_begins_anew(store: Any) -> None:
    logs = [begin(store), begin(store), begin(store, KEY), begin(store, Binding("l" * 64, KEY.fingerprint))]

    assert len({log.stream_id for log in logs}) == 4


def test_store_whose_log_ended_freeing_its_key_begins_anew_and_keeps_the_old_log(store: Any) -> None:
    failed = finished(store, binding=KEY, frees_key=True)

    again = begin(store, OTHER_REQUEST)

    assert again.stream_id != failed.stream_id
    assert store.find(failed.stream_id) is failed
    assert store.create(ORIGIN, OTHER_REQUEST) == (again, False)


def test_store_that_forgets_a_log_whose_key_was_freed_leaves_the_new_owner_alone(store: Any, clock: Time) -> None:
    failed = finished(store, binding=KEY, frees_key=True)
    again = begin(store, KEY)
    clock.now += RETENTION_SECONDS + 1

    store.sweep(clock.now)

    with pytest.raises(errors.StreamExpired):
        store.find(failed.stream_id)
    assert store.create(ORIGIN, KEY) == (again, False)


@pytest.mark.parametrize("swept", [False, True])
def test_store_given_the_key_of_an_expired_log_says_that_it_expired(store: Any, clock: Time, swept: bool) -> None:
    finished(store, binding=KEY)
    clock.now += RETENTION_SECONDS + 1
    if swept:
        store.sweep(clock.now)

    with pytest.raises(errors.StreamExpired):
        store.create(ORIGIN, KEY)
    with pytest.raises(errors.IdempotencyKeyReused):
        store.create(ORIGIN, OTHER_REQUEST)
    with pytest.raises(errors.StreamExpired):
        store.create(ORIGIN, KEY)


def test_store_asked_by_two_threads_at_once_with_one_key_begins_once(store: Any, threads: ThreadPoolExecutor) -> None:
    for number in range(50):
        binding = Binding(f"{number:064}", "f")
        barrier = threading.Barrier(8)

        def create(binding: Binding = binding, barrier: threading.Barrier = barrier) -> tuple[Any, bool]:
            barrier.wait(PATIENCE_SECONDS)
            result: tuple[Any, bool] = store.create(ORIGIN, binding)
            return result

        results = [future.result(PATIENCE_SECONDS) for future in [threads.submit(create) for _ in range(8)]]

        assert sorted(created for _, created in results) == [False] * 7 + [True]
        assert len({log.stream_id for log, _ in results}) == 1


def test_store_at_its_limit_of_live_logs_refuses_until_one_ends(factory: Factory) -> None:
    store = factory(max_active=2)
    log = begin(store, KEY)
    begin(store)

    with pytest.raises(errors.Overloaded) as refused:
        store.create(ORIGIN)
    assert refused.value.retry_after_seconds
    assert store.create(ORIGIN, KEY) == (log, False), "attaching is exempt"

    log.finish(end_with())
    begin(store)


def test_store_that_stopped_admitting_refuses_new_logs_and_serves_old_ones(store: Any) -> None:
    log = begin(store, KEY)
    store.stop_admitting()

    with pytest.raises(errors.ShuttingDown) as refused:
        store.create(ORIGIN)
    assert refused.value.retry_after_seconds
    assert store.create(ORIGIN, KEY) == (log, False)
    assert store.find(log.stream_id) is log
    assert log.append("a")
    assert log.finish(end_with())


def test_store_refusing_a_log_does_not_bind_its_key(factory: Factory) -> None:
    store = factory(max_active=1)
    log = begin(store)
    with pytest.raises(errors.Overloaded):
        store.create(ORIGIN, KEY)

    log.finish(end_with())

    begin(store, OTHER_REQUEST)


BIG = "x" * 200_000


def test_store_over_its_budget_evicts_the_least_recently_used_finished_logs(store: Any) -> None:
    logs = [finished(store, BIG) for _ in range(4)]
    store.find(logs[0].stream_id)

    finished(store, BIG, BIG, BIG)

    assert [is_kept(store, log) for log in logs] == [True, False, False, True]


def test_store_over_its_budget_never_evicts_a_live_log(store: Any) -> None:
    live = begin(store)
    live.append(BIG)
    for _ in range(20):
        finished(store, BIG)

    assert store.find(live.stream_id) is live
    assert live.text() == BIG


def test_store_over_its_budget_keeps_a_finished_log_that_is_being_read(store: Any) -> None:
    read, unread = finished(store, BIG), finished(store, BIG)
    with read.reader(0) as reader:
        for _ in range(20):
            finished(store, BIG)
        assert is_kept(store, read)
        assert not is_kept(store, unread)
        assert reader.read(1_000_000).text == BIG
    for _ in range(20):
        finished(store, BIG)
    assert not is_kept(store, read)


def test_store_whose_logs_are_all_live_refuses_more(store: Any) -> None:
    logs = [begin(store) for _ in range(5)]
    for log in logs:
        log.append("x" * 205_000)

    with pytest.raises(errors.Overloaded) as refused:
        logs[0].append(BIG)
    assert refused.value.retry_after_seconds
    assert (logs[0].head, logs[0].text()) == (1, "x" * 205_000), "what was refused left no trace"
    with pytest.raises(errors.Overloaded):
        for _ in range(1000):
            store.create(ORIGIN)

    for log in logs[1:]:
        assert log.finish(end_with()), "a log ends though there is no memory left"
    assert logs[0].append(BIG)


def test_store_accounts_for_every_byte_and_gives_all_back(store: Any, clock: Time) -> None:
    assert store.used_bytes == 0
    empty = begin(store)
    assert store.used_bytes == LOG_OVERHEAD_BYTES
    empty.append("é" * 1000)
    assert store.used_bytes >= LOG_OVERHEAD_BYTES + 2000
    empty.finish(end_with())
    assert LOG_OVERHEAD_BYTES + 2000 < store.used_bytes <= LOG_OVERHEAD_BYTES + 2000 + 8
    finished(store, *["token "] * 5000)
    assert store.used_bytes <= 2 * LOG_OVERHEAD_BYTES + 2008 + 5000 * (6 + 8)

    clock.now += RETENTION_SECONDS + 1
    store.sweep(clock.now)

    assert store.used_bytes == 0
    assert store.live == 0


def test_store_counts_a_question_until_it_is_answered(store: Any, clock: Time) -> None:
    kept = finished(store, BIG)
    log, _ = store.create(ORIGIN, prompt_bytes=300_000)
    held = store.used_bytes
    assert held > 500_000
    log.release_prompt()
    log.release_prompt()
    assert store.used_bytes == held - 300_000
    log.append("Hello")
    ended, _ = store.create(ORIGIN, prompt_bytes=300_000)
    assert ended.finish(end_with())
    ended.release_prompt()
    live = begin(store)
    live.append("x" * 400_000)
    waiting, _ = store.create(ORIGIN, prompt_bytes=300_000)
    assert is_kept(store, kept)
    store.create(ORIGIN, prompt_bytes=200_000)
    assert not is_kept(store, kept), "a question takes the place of finished answers"
    with pytest.raises(errors.Overloaded):
        store.create(ORIGIN, prompt_bytes=200_000)
    assert live.append("x" * 100_000), "what is answered does not break off for questions that wait"
    waiting.release_prompt()
    store.create(ORIGIN, prompt_bytes=200_000)
    assert store.used_bytes <= BUDGET_BYTES
    for live in list(store._retention.live.values()):
        live.finish(end_with())
    clock.now += RETENTION_SECONDS + 1
    store.sweep(clock.now)
    assert (store.used_bytes, store.live) == (0, 0)


def test_store_that_is_empty_takes_the_largest_question(store: Any) -> None:
    store.create(ORIGIN, prompt_bytes=10 * BUDGET_BYTES)
    assert store.used_bytes <= BUDGET_BYTES // 2 + LOG_OVERHEAD_BYTES


def test_store_given_ten_thousand_short_logs_stays_within_its_budget(store: Any, kind: str) -> None:
    live = begin(store)
    live.append("a")
    largest = 0
    for _ in range(10_000 if kind == "memory" else 1000):
        finished(store, "Hello", ", world")
        largest = max(largest, store.used_bytes)

    assert BUDGET_BYTES * 0.9 < largest <= BUDGET_BYTES
    assert store.find(live.stream_id) is live


def test_store_with_appends_and_ends_from_many_threads_accounts_exactly(
    store: Any, clock: Time, threads: ThreadPoolExecutor
) -> None:
    def work(number: int) -> None:
        for _ in range(20):
            try:
                log = begin(store)
                for _ in range(number):
                    log.append("x" * 997)
            except errors.Overloaded:
                pass
            log.finish(end_with())

    for future in [threads.submit(work, number) for number in range(16)]:
        future.result(PATIENCE_SECONDS)
    assert 0 < store.used_bytes <= BUDGET_BYTES
    clock.now += RETENTION_SECONDS + 1
    store.sweep(clock.now)
    assert (store.used_bytes, store.live) == (0, 0)


def test_store_keeps_a_finished_answer_in_its_text_and_little_more(factory: Factory) -> None:
    tokens, logs = 2000, 10
    chunks = [f"{number:04} " for number in range(tokens)]
    store = factory(budget_bytes=64 * BUDGET_BYTES)
    finished(store, *chunks)
    kept = []
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(logs):
            log = begin(store, Binding(new_stream_id(), new_stream_id()))
            log.append(*chunks)
            log.finish(end_with())
            kept.append(log.stream_id)
        del log
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    text_bytes = 5 * tokens
    assert (after - before) / logs <= text_bytes + 8 * tokens + 2048 + 500


def test_store_keeps_a_finished_log_for_its_retention_judged_at_access(store: Any, clock: Time) -> None:
    log = begin(store)
    clock.now += 10 * RETENTION_SECONDS
    log.finish(end_with())

    clock.now += RETENTION_SECONDS
    assert store.find(log.stream_id) is log
    clock.now += 0.001
    for _ in range(2):
        with pytest.raises(errors.StreamExpired):
            store.find(log.stream_id)
    assert store.used_bytes == 0


def test_store_keeps_a_log_for_its_retention_after_its_last_reader_left(store: Any, clock: Time) -> None:
    log = finished(store, "a")
    with log.reader(0):
        clock.now += 5 * RETENTION_SECONDS
        store.sweep(clock.now)
        assert store.find(log.stream_id) is log
    clock.now += RETENTION_SECONDS
    store.sweep(clock.now)
    assert store.find(log.stream_id) is log
    clock.now += 1

    store.sweep(clock.now)

    assert store.used_bytes == 0
    with pytest.raises(errors.StreamExpired):
        store.find(log.stream_id)


def test_store_sweeping_drops_only_what_has_expired(store: Any, clock: Time) -> None:
    live, old = begin(store), finished(store, "a")
    clock.now += RETENTION_SECONDS
    young = finished(store, "b")
    clock.now += 1

    store.sweep(clock.now)

    assert store.find(live.stream_id) is live
    assert store.find(young.stream_id) is young
    with pytest.raises(errors.StreamExpired):
        store.find(old.stream_id)


def test_store_sweeping_past_logs_that_are_read_drops_those_behind_them(store: Any, clock: Time) -> None:
    logs = [finished(store, "a") for _ in range(4)]
    with logs[0].reader(0), logs[2].reader(0):
        clock.now += RETENTION_SECONDS + 1
        store.sweep(clock.now)

        assert [is_kept(store, log) for log in logs] == [True, False, True, False]


def test_store_asked_for_an_unknown_id_says_so_and_creates_nothing(store: Any) -> None:
    for stream_id in ("cw_unknown", "", "x" * 10_000, new_stream_id(), "\ud800"):
        for _ in range(2):
            with pytest.raises(errors.StreamUnknown):
                store.find(stream_id)
    assert (store.live, store.used_bytes) == (0, 0)


@pytest.mark.parametrize("kind", ["memory"], indirect=True)
def test_store_remembers_so_many_of_the_gone_and_their_keys(
    store: Any, clock: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "REMEMBERED", 3)
    bindings = [Binding(f"{number:064}", "f") for number in range(5)]
    logs = [finished(store, binding=binding) for binding in bindings]
    clock.now += RETENTION_SECONDS + 1
    store.sweep(clock.now)

    for log, binding in list(zip(logs, bindings, strict=True))[:2]:
        with pytest.raises(errors.StreamUnknown):
            store.find(log.stream_id)
        begin(store, binding)
    for log, binding in list(zip(logs, bindings, strict=True))[2:]:
        with pytest.raises(errors.StreamExpired):
            store.find(log.stream_id)
        with pytest.raises(errors.StreamExpired):
            store.create(ORIGIN, binding)


def test_store_remembers_a_hundred_thousand() -> None:
    assert memory.REMEMBERED == 100_000


def test_stream_id_is_url_safe_has_no_dot_and_never_comes_twice() -> None:
    ids = {new_stream_id() for _ in range(1000)}

    assert len(ids) == 1000
    for stream_id in ids:
        assert "." not in stream_id
        assert stream_id.replace("_", "").replace("-", "").isalnum()
        assert stream_id.isascii()
        assert len(stream_id.removeprefix("cw_")) * 6 >= 120


def test_log_name_tells_nothing_of_the_id_and_takes_anything() -> None:
    stream_id = new_stream_id()

    assert log_name(stream_id) == hashlib.sha256(stream_id.encode()).hexdigest()[:12]
    assert len(log_name("\ud800")) == 12


def test_store_is_ready(store: Any) -> None:
    assert store.ready() is True
