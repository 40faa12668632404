"""The suite of stores: what every store must do, run over each of them (app/streams/interface.py says it)."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import random
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app import errors
from app.streams import readership, retention
from app.streams.interface import Binding, End, Origin, Piece, Reader, StreamLog, Totals, log_name, new_stream_id
from app.streams.memory import log as memory_log
from app.streams.memory import store as memory
from app.streams.memory.store import MemoryStore
from app.streams.retention import LOG_OVERHEAD_BYTES
from app.streams.shared import committer, copies
from app.streams.shared import log as shared_log
from app.streams.shared import store as shared
from app.streams.shared.log import SharedLog
from app.streams.shared.store import SharedStore
from tests.harness.engine import Database
from tests.harness.engines import EACH_KIND
from tests.unit.ends import end_with
from tests.unit.shared import wait_until

PATIENCE_SECONDS = 20.0
BUDGET_BYTES = 1_048_576
RETENTION_SECONDS = 60.0
KEY = Binding("k" * 64, "f" * 64)
OTHER_REQUEST = Binding(KEY.key, "e" * 64)


class Time:
    """Stand for the clock that the stores read; what waits for the engine's own clock is told how far it goes."""

    def __init__(self) -> None:
        self.passed: list[Callable[[float], None]] = []
        self._now = 1000.0

    @property
    def now(self) -> float:
        return self._now

    @now.setter
    def now(self, now: float) -> None:
        for passed in self.passed:
            passed(now - self._now)
        self._now = now

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


@pytest.fixture
def clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    for module in (retention, readership, memory_log, shared_log):
        monkeypatch.setattr(module, "time", clock)
    if (kind := request.getfixturevalue("kind")) != "memory":
        clock.passed.append(database_of(kind, request).let_pass)
    return clock


Factory = Callable[..., Any]


@pytest.fixture(params=["memory", *EACH_KIND])
def kind(request: pytest.FixtureRequest) -> str:
    """Name the kind of store that the suite runs over."""
    return str(request.param)


def database_of(kind: str, request: pytest.FixtureRequest) -> Database:
    """Give the test's database of one kind of engine."""
    database: Database = request.getfixturevalue(f"{kind}_database")
    return database


@pytest.fixture
def factory(kind: str, request: pytest.FixtureRequest) -> Iterator[Factory]:
    if kind == "memory":
        yield memory_store
        return
    # Each chunk of the suite is waited for, and would wait for others to come with it.
    request.getfixturevalue("monkeypatch").setattr(committer, "SPACING_SECONDS", 0.0)
    with shared_stores(database_of(kind, request)) as make:
        yield make


def memory_store(*, max_active: int = 1000, budget_bytes: int = BUDGET_BYTES) -> MemoryStore:
    return MemoryStore(max_active=max_active, budget_bytes=budget_bytes, retention_seconds=RETENTION_SECONDS)


class SettledLog(SharedLog):
    """A log whose chunks and end are stored, and so shown, when it is looked at next."""

    def append(self, *chunks: str) -> bool:
        taken = super().append(*chunks)
        self._keeper.flush()
        return taken

    def finish(self, end: Callable[[Totals], End]) -> bool:
        ended = super().finish(end)
        assert not ended or self.settle(PATIENCE_SECONDS)
        return ended


@contextlib.contextmanager
def shared_stores(database: Database) -> Iterator[Factory]:
    """Make stores that share an engine's database, each another worker's."""
    made: list[SharedStore] = []

    def make(*, max_active: int = 1000, budget_bytes: int = BUDGET_BYTES) -> SharedStore:
        store = SharedStore(
            database.url,
            max_active=max_active,
            budget_bytes=budget_bytes,
            retention_seconds=RETENTION_SECONDS,
            generation_seconds=600.0,
            abandoned_seconds=300.0,
        )
        store.start(cancel=lambda *_: None, abort=lambda _: None, lost=lambda *_: None)
        wait_until(store.ready, "the engine")  # on a machine that is busy its first answer may be late
        made.append(store)
        return store

    with pytest.MonkeyPatch.context() as patch:
        for module in (shared, copies):
            patch.setattr(module, "SharedLog", SettledLog)
        try:
            yield make
        finally:
            for store in made:
                store.close()


@pytest.fixture
def store(factory: Factory) -> Any:
    return factory()


ORIGIN = Origin("c-1", "m", "2026-11-21T09:00:00.000Z")


def begin(store: Any, binding: Binding | None = None) -> Any:
    log, created = store.create(ORIGIN, binding)
    assert created
    return log


def finished(store: Any, *chunks: str, binding: Binding | None = None, frees_key: bool = False) -> Any:
    log = begin(store, binding)
    for chunk in chunks:
        assert log.append(chunk)
    assert log.finish(end_with("failed" if frees_key else "done", frees_key=frees_key))
    return log


def totals_of(log: StreamLog) -> tuple[int, int, str]:
    """Tell what the end of a log says of its text."""
    assert log.end is not None
    return log.end.records, log.end.characters, log.end.sha256


def read_all(log: StreamLog, after: int = 0, max_bytes: int = 1_000_000) -> list[Piece]:
    reader = log.reader(after)
    pieces = []
    while (piece := reader.read(max_bytes)) is not None:
        pieces.append(piece)
        reader.after = piece.sequence
    return pieces


def follow(log: StreamLog, after: int = 0, max_bytes: int = 64) -> tuple[list[Piece], End]:
    """Read as the frames' loop does: to the terminal event."""
    pieces = []
    with log.reader(after) as reader:
        while True:
            terminal = log.end
            piece = reader.read(max_bytes)
            if piece is not None:
                pieces.append(piece)
                reader.after = piece.sequence
            elif terminal is not None:
                return pieces, terminal
            else:
                reader.wait()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as pool:
        yield pool


# Chunks


def test_log_when_created_is_empty_and_found_by_its_id(store: Any) -> None:
    log = begin(store)

    assert (log.head, log.end, log.text(), log.readers, log.resumes) == (0, None, "", 0, 0)
    assert log.origin == ORIGIN
    assert store.find(log.stream_id) is log
    assert read_all(log) == []


def test_log_given_chunks_reads_exactly_what_follows_every_cursor(store: Any) -> None:
    chunks = ["He", "llo", " ", "\r\n", "\0", "é", "😀", "\u2028", "data: x", "."]
    log = begin(store)
    for chunk in chunks:
        assert log.append(chunk)

    assert log.head == len(chunks)
    assert log.text() == "".join(chunks)
    for after in range(len(chunks)):
        (piece,) = read_all(log, after)
        assert piece == Piece(len(chunks), len(chunks) - after, "".join(chunks[after:]))
    assert read_all(log, len(chunks)) == []
    assert read_all(log, len(chunks) + 5) == []


def test_log_read_without_moving_on_gives_the_same_piece_again(store: Any) -> None:
    log = begin(store)
    log.append("a")
    reader = log.reader(0)

    assert reader.read(10) == reader.read(10) == Piece(1, 1, "a")
    assert reader.after == 0


def test_log_read_in_bounded_pieces_splits_only_between_chunks(store: Any) -> None:
    log = begin(store)
    for chunk in ("abc", "de", "é", "f"):
        log.append(chunk)

    assert read_all(log, max_bytes=5) == [Piece(2, 2, "abcde"), Piece(4, 2, "éf")]
    assert read_all(log, max_bytes=6) == [Piece(2, 2, "abcde"), Piece(4, 2, "éf")]
    assert read_all(log, max_bytes=7) == [Piece(3, 3, "abcdeé"), Piece(4, 1, "f")]


def test_log_given_a_chunk_larger_than_the_bound_returns_it_alone(store: Any) -> None:
    log = begin(store)
    for chunk in ("a", "x" * 100, "b", "c"):
        log.append(chunk)

    assert read_all(log, max_bytes=10) == [Piece(1, 1, "a"), Piece(2, 1, "x" * 100), Piece(4, 2, "bc")]
    assert read_all(log, max_bytes=0) == [Piece(i + 1, 1, text) for i, text in enumerate(("a", "x" * 100, "b", "c"))]


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(chunks=st.lists(TEXTS, max_size=20), data=st.data())
def test_log_given_any_chunks_any_cursor_and_any_bound_reads_them_exactly(
    factory: Factory, chunks: list[str], data: st.DataObject
) -> None:
    log = begin(factory())
    for chunk in chunks:
        log.append(chunk)
    after = data.draw(st.integers(0, len(chunks)))
    max_bytes = data.draw(st.integers(0, 60))
    log.finish(end_with())

    pieces = read_all(log, after, max_bytes)

    assert "".join(piece.text for piece in pieces) == "".join(chunks[after:])
    place = after
    for piece in pieces:
        assert piece.records >= 1
        assert piece.sequence == place + piece.records
        assert piece.text == "".join(chunks[place : piece.sequence])
        assert piece.records == 1 or len(piece.text.encode()) <= max_bytes
        place = piece.sequence
    assert place == len(chunks)
    text = "".join(chunks)
    assert totals_of(log) == (len(chunks), len(text), hashlib.sha256(text.encode()).hexdigest())


# The end


def test_log_when_finished_keeps_its_first_end_and_takes_nothing_more(store: Any) -> None:
    log = finished(store, "a", "é")
    terminal = log.end

    assert log.finish(end_with("failed")) is False
    assert log.append("b") is False
    assert log.end is terminal
    assert (log.head, log.text()) == (2, "aé")
    assert totals_of(log) == (2, 2, hashlib.sha256("aé".encode()).hexdigest())


def test_log_finished_without_chunks_has_the_totals_of_nothing(store: Any) -> None:
    assert totals_of(finished(store)) == (0, 0, hashlib.sha256(b"").hexdigest())


def test_log_whose_end_cannot_be_written_has_not_ended(store: Any) -> None:
    log = begin(store)

    def fail(_: Totals) -> End:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        log.finish(fail)
    assert log.end is None
    assert log.append("a")
    assert log.finish(end_with())


def test_log_finished_by_eight_threads_while_another_appends_ends_once_with_exact_totals(
    store: Any, threads: ThreadPoolExecutor
) -> None:
    for _ in range(20):
        log = begin(store)
        barrier = threading.Barrier(9)
        asked: list[Totals] = []

        def end(totals: Totals, asked: list[Totals] = asked) -> End:
            asked.append(totals)
            return end_with()(totals)

        def finish(log: Any = log, barrier: threading.Barrier = barrier, end: Any = end) -> bool:
            barrier.wait(PATIENCE_SECONDS)
            return bool(log.finish(end))

        def append(log: Any = log, barrier: threading.Barrier = barrier) -> int:
            barrier.wait(PATIENCE_SECONDS)
            taken = 0
            while log.append("é"):
                taken += 1
            return taken

        ends = [threads.submit(finish) for _ in range(8)]
        taken = threads.submit(append).result(PATIENCE_SECONDS)

        assert sorted(end.result(PATIENCE_SECONDS) for end in ends) == [False] * 7 + [True]
        assert len(asked) == 1
        text = "é" * taken
        assert asked[0] == Totals(taken, taken, hashlib.sha256(text.encode()).hexdigest(), text)
        assert (log.head, log.text()) == (taken, text)


# Readers


def test_reader_at_the_head_wakes_for_a_chunk_and_for_the_end(store: Any, threads: ThreadPoolExecutor) -> None:
    log = begin(store)
    got = [threads.submit(follow, log) for _ in range(3)]
    while log.readers < 3:
        threading.Event().wait(0.001)

    log.append("a")
    log.append("b")
    log.finish(end_with())

    for future in got:
        pieces, terminal = future.result(PATIENCE_SECONDS)
        assert "".join(piece.text for piece in pieces) == "ab"
        assert terminal is log.end


class Interposed:
    """Stand before one attribute of a reader's lock: what happens between looking and sleeping happens here."""

    def __init__(self, lock: Any, between: Callable[[], None]) -> None:
        self._lock = lock
        self._between: Callable[[], None] | None = between

    def acquire(self, *arguments: Any) -> bool:
        between, self._between = self._between, None
        if between is not None:
            between()
        return bool(self._lock.acquire(*arguments))

    def release(self) -> None:
        self._lock.release()


@pytest.mark.parametrize("what", ["token", "terminal", "both"])
def test_reader_paused_between_looking_and_sleeping_gets_what_came_in_between(
    store: Any, threads: ThreadPoolExecutor, what: str
) -> None:
    log = begin(store)
    log.append("a")
    happened = threading.Event()

    def between() -> None:
        if what in ("token", "both"):
            assert log.append("b")
        if what in ("terminal", "both"):
            assert log.finish(end_with())
        happened.set()

    def read() -> tuple[str, End | None]:
        with log.reader(1) as reader:
            assert reader.read(100) is None  # looked: at the head
            assert log.end is None
            reader._wake = Interposed(reader._wake, between)
            reader.wait()
            text = ""
            while (piece := reader.read(100)) is not None:
                text += piece.text
                reader.after = piece.sequence
            return text, log.end

    text, terminal = threads.submit(read).result(PATIENCE_SECONDS)

    assert happened.is_set()
    assert text == ("b" if what in ("token", "both") else "")
    assert (terminal is not None) == (what in ("terminal", "both"))


class Looked:
    """Stand before a log: something happens to it right after it was looked at, which saw nothing of it yet."""

    def __init__(self, log: Any, then: Callable[[], None]) -> None:
        self._log = log
        self._seen = (log.end, log.head)
        self._then = [then]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    @property
    def end(self) -> End | None:
        while self._then:
            self._then.pop()()
        return self._seen[0]  # type: ignore[no-any-return]

    @property
    def head(self) -> int:
        return self._seen[1]  # type: ignore[no-any-return]


@pytest.mark.parametrize("only_end", [False, True])
@pytest.mark.parametrize("what", ["token", "terminal"])
def test_reader_about_to_sleep_wakes_for_what_came_right_after_its_last_look(
    store: Any, threads: ThreadPoolExecutor, what: str, only_end: bool
) -> None:
    log = begin(store)
    happened = threading.Event()

    def happen() -> None:
        assert log.append("a") if what == "token" and not only_end else log.finish(end_with())
        happened.set()

    with log.reader(0, only_end=only_end) as reader:
        reader.log = Looked(log, happen)
        waiting = threads.submit(reader.wait)
        try:
            waiting.result(PATIENCE_SECONDS)
        except TimeoutError:
            while not waiting.done():
                reader.nudge()  # so that its thread ends
            pytest.fail("it slept through what came between its look and its sleep")
        finally:
            reader.log = log
    assert happened.is_set()


@pytest.mark.parametrize("what", ["token", "terminal"])
def test_reader_looking_before_what_comes_does_not_sleep_through_it(store: Any, what: str) -> None:
    log = begin(store)
    with log.reader(0) as reader:
        assert reader.read(100) is None  # looked, and before it waits:
        assert log.append("a") if what == "token" else log.finish(end_with())

        reader.wait()  # returns: the timeout of the test would end it else

        assert (reader.read(100) is not None) == (what == "token")


def test_reader_nudged_from_another_thread_wakes_for_nothing(store: Any, threads: ThreadPoolExecutor) -> None:
    log = begin(store)
    asleep = threading.Event()

    with log.reader(0) as reader:
        reader._wake = Interposed(reader._wake, asleep.set)
        waiting = threads.submit(reader.wait)
        assert asleep.wait(PATIENCE_SECONDS)
        reader.nudge()
        waiting.result(PATIENCE_SECONDS)
        assert reader.read(10) is None

        for _ in range(3):
            reader.nudge()  # nobody sleeps: harmless


def test_reader_nudged_by_many_threads_at_once_sleeps_again_afterwards(store: Any, threads: ThreadPoolExecutor) -> None:
    log = begin(store)
    rounds = 20
    with log.reader(0) as reader:
        stop = threading.Event()

        def nudge() -> None:
            while not stop.is_set():
                reader.nudge()

        nudging = [threads.submit(nudge) for _ in range(2)]
        for _ in range(rounds):
            reader.wait()
        stop.set()
        for future in nudging:
            future.result(PATIENCE_SECONDS)
        log.append("a")
        reader.wait()
        assert reader.read(10) == Piece(1, 1, "a")


def test_reader_that_wants_only_the_end_sleeps_through_chunks(store: Any, threads: ThreadPoolExecutor) -> None:
    log = begin(store)
    asleep = threading.Event()
    woken = threading.Event()

    def wait() -> End | None:
        with log.reader(log.head, only_end=True) as reader:
            reader._wake = Interposed(reader._wake, asleep.set)
            reader.wait()
            woken.set()
            terminal: End | None = log.end
            return terminal

    waiting = threads.submit(wait)
    assert asleep.wait(PATIENCE_SECONDS)
    for _ in range(100):
        log.append("a")
    assert not woken.is_set()
    log.finish(end_with())

    assert waiting.result(PATIENCE_SECONDS) is log.end


def test_readers_attached_a_thousand_times_at_random_moments_get_the_log_exactly(factory: Factory, kind: str) -> None:
    attaches, to_the_end = 1000 if kind == "memory" else 100, 4  # there each chunk takes a round trip
    log = begin(factory(budget_bytes=256 * BUDGET_BYTES))
    seed = random.Random(7)
    distances = [int(3000 * seed.random() ** 3) for _ in range(attaches)]
    live = threading.Semaphore(0)
    switch = sys.getswitchinterval()

    def produce() -> int:
        """Append as fast as it goes, for as long as somebody is to attach to the live log."""
        number = left = 0
        while left < attaches - to_the_end:
            number += 1
            assert log.append(f"{number}é ")
            left += live.acquire(blocking=False)
        log.finish(end_with())
        return number

    def attach(distance: int, goes_on: bool) -> None:
        after = max(0, log.head - distance)
        enough = log.head + 30  # past the seam of replay and live tail
        text, place = "", after
        with log.reader(after) as reader:
            while goes_on or place < enough:
                terminal = log.end
                piece = reader.read(4096)
                if piece is not None:
                    place += piece.records
                    assert piece.sequence == place
                    reader.after = place
                    text += piece.text
                elif terminal is not None:
                    break
                else:
                    reader.wait()
        assert text == "".join(f"{number}é " for number in range(after + 1, place + 1))
        if goes_on:
            assert place == log.head
        else:
            assert terminal is None, "the premise: the log was live all the while"
            live.release()

    threads = ThreadPoolExecutor(1 + 2 * to_the_end)
    try:
        sys.setswitchinterval(1e-4)
        producing = threads.submit(produce)
        results = [threads.submit(attach, distance, number < to_the_end) for number, distance in enumerate(distances)]
        for result in results:
            result.result(60)
        assert producing.result(60) == log.head
    finally:
        sys.setswitchinterval(switch)
        threads.shutdown()
    assert log.readers == 0
    assert log.resumes == attaches - 1


@pytest.mark.requirement("chatwait entity Stream Connection")
def test_log_counts_its_readers_and_since_when_there_is_none(store: Any, clock: Time) -> None:
    log = begin(store)
    assert log.unread_since == 1000.0

    clock.now = 1010.0
    with log.reader(0):
        assert (log.readers, log.resumes, log.unread_since) == (1, 0, None)
        with log.reader(0):
            assert (log.readers, log.resumes) == (2, 1)
        clock.now = 1020.0
        assert log.unread_since is None
    assert (log.readers, log.resumes, log.unread_since) == (0, 1, 1020.0)


def test_reader_that_was_never_entered_is_not_counted(store: Any) -> None:
    log = begin(store)
    log.reader(0)

    assert (log.readers, log.resumes) == (0, 0)


# Idempotency


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


# Bounds


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


def is_kept(store: Any, log: Any) -> bool:
    """Tell whether the store still has a log in memory; one that is shared is found again, by another object."""
    if isinstance(store, SharedStore):
        return store._copies.table.get(log.stream_id) is log or store._retention.kept(log.stream_id) is log
    try:
        return bool(store.find(log.stream_id) is log)
    except errors.StreamExpired:
        return False


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


# Retention


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


# What is gone


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


def test_reader_leaves_when_its_loop_raises(store: Any) -> None:
    log = begin(store)

    def read(reader: Reader) -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError), log.reader(0) as reader:
        read(reader)
    assert log.readers == 0


# What comes together


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=9), max_size=6), max_size=8))
def test_log_given_chunks_together_reads_them_as_if_each_had_come_alone(
    factory: Factory, batches: list[list[str]]
) -> None:
    together, alone = begin(factory()), begin(factory())
    for batch in batches:
        assert together.append(*batch)
        for chunk in batch:
            assert alone.append(chunk)

    assert together.head == alone.head == sum(map(len, batches))
    for after in range(together.head + 1):
        for bound in (1, 5, 1000):
            assert together.read(after, bound) == alone.read(after, bound)
    together.finish(end_with())
    alone.finish(end_with())
    assert together.end == alone.end


def test_log_given_chunks_together_wakes_its_readers_once(store: Any) -> None:
    log = begin(store)
    told: list[tuple[Piece, int]] = []
    with log.reader(0) as reader:
        reader._asleep = True
        reader.deliver = lambda piece: told.append((piece, log.head)) or True  # type: ignore[func-returns-value]
        log.append("a", "é", "c")
        log.append("d")

    assert log.sizes(1, 4) == [1, 2, 1, 1]
    assert (log.sizes(2, 3), log.sizes(4, 4), log.sizes(1, 1)) == ([2, 1], [1], [1])
    assert told == [(Piece(3, 3, "aéc"), 3), (Piece(4, 1, "d"), 4)], "when all of them are there"
    assert log.read(0, 1000) == Piece(4, 4, "aécd")


def test_log_without_memory_for_all_chunks_takes_none_of_them(factory: Factory) -> None:
    store = factory(budget_bytes=3 * LOG_OVERHEAD_BYTES)
    log = begin(store)
    assert log.append("a", "b")
    used, asked = store.used_bytes, []
    with log.reader(2) as reader:
        reader._asleep = True
        reader.deliver = lambda _: asked.append(1) or True  # type: ignore[func-returns-value]

        with pytest.raises(errors.Overloaded):
            log.append("c", "x" * 4 * LOG_OVERHEAD_BYTES, "d")

    assert (log.head, log.text(), store.used_bytes, asked) == (2, "ab", used, [])
    assert log.append("c", "d")
    assert log.text() == "abcd"
    assert log.finish(end_with())
    assert totals_of(log) == (4, 4, hashlib.sha256(b"abcd").hexdigest())


def test_log_whose_end_is_being_written_takes_nothing_and_makes_nobody_wait(
    store: Any, threads: ThreadPoolExecutor
) -> None:
    """The end may be long in the making: it counts tokens. Who appends may be the loop that everybody waits for."""
    log = begin(store)
    log.append("a")
    taken: list[bool] = []

    def end(totals: Totals) -> End:
        taken.append(threads.submit(log.append, "b", "c").result(1.0))
        return end_with()(totals)

    assert log.finish(end)

    assert taken == [False]
    assert (log.text(), totals_of(log)[0]) == ("a", 1)


def test_log_whose_end_could_not_be_written_goes_on_and_ends_later(store: Any, threads: ThreadPoolExecutor) -> None:
    log = begin(store)
    taken: list[bool] = []

    def fail(_: Totals) -> End:
        taken.append(threads.submit(log.append, "a").result(1.0))
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            log.finish(fail)
        assert log.append("b", "c")
    assert taken == [False, False]
    assert log.finish(end_with())
    assert (log.text(), totals_of(log)[0], store.live) == ("bcbc", 4, 0)


def test_log_whose_end_fails_while_another_one_ends_it_is_ended_by_that(
    store: Any, threads: ThreadPoolExecutor
) -> None:
    log = begin(store)
    inside, go = threading.Event(), threading.Event()

    def fail(_: Totals) -> End:
        inside.set()
        assert go.wait(PATIENCE_SECONDS)
        raise KeyboardInterrupt

    first = threads.submit(log.finish, fail)
    assert inside.wait(PATIENCE_SECONDS)
    second = threads.submit(log.finish, end_with())
    time.sleep(0.05)
    assert not second.done()
    go.set()

    with pytest.raises(KeyboardInterrupt):
        first.result(PATIENCE_SECONDS)
    assert second.result(PATIENCE_SECONDS)
    assert log.end is not None


# Readers that are served where they sleep


@pytest.mark.parametrize("takes", [True, False])
def test_reader_asleep_is_woken_only_when_it_could_not_be_served(
    store: Any, threads: ThreadPoolExecutor, takes: bool
) -> None:
    log = begin(store)
    asleep, asked = threading.Event(), []

    def deliver(piece: Piece) -> bool:
        asked.append((piece, reader._asleep))
        return takes

    with log.reader(0) as reader, contextlib.ExitStack() as last:
        last.callback(reader.nudge)  # a failure must not leave its thread asleep
        reader.deliver = deliver
        reader._wake = Interposed(reader._wake, asleep.set)
        waiting = threads.submit(reader.wait)
        assert asleep.wait(PATIENCE_SECONDS)
        log.append("a")
        log.append("b")
        if takes:
            assert not waiting.done()
            assert asked == [(Piece(1, 1, "a"), True), (Piece(2, 1, "b"), True)]
            log.finish(end_with())
        waiting.result(PATIENCE_SECONDS)
        assert takes or asked == [(Piece(1, 1, "a"), True)], "and is not asked again once it is woken"


def test_reader_awake_is_not_served(store: Any) -> None:
    """It might be writing at the same moment."""
    log = begin(store)
    asked: list[int] = []
    with log.reader(0) as reader:
        reader.deliver = lambda _: asked.append(1) or True  # type: ignore[func-returns-value]
        log.append("a")
        assert asked == []
        reader.wait()  # there is something: does not sleep
        log.append("b")
        assert asked == []


def test_reader_nudged_is_not_served_before_it_has_slept_again(store: Any, threads: ThreadPoolExecutor) -> None:
    log = begin(store)
    asleep, asked = threading.Event(), []
    with log.reader(0) as reader, contextlib.ExitStack() as last:
        last.callback(reader.nudge)
        reader.deliver = lambda _: asked.append(1) or True  # type: ignore[func-returns-value]
        reader._wake = Interposed(reader._wake, asleep.set)
        waiting = threads.submit(reader.wait)
        assert asleep.wait(PATIENCE_SECONDS)
        reader.nudge()
        log.append("a")
        waiting.result(PATIENCE_SECONDS)
        assert asked == []


def test_reader_that_wants_only_the_end_is_not_served(store: Any) -> None:
    log = begin(store)
    asked: list[int] = []
    with log.reader(0, only_end=True) as reader:
        reader.deliver = lambda _: asked.append(1) or True  # type: ignore[func-returns-value]
        reader._asleep = True
        log.append("a")
        assert asked == []
        assert reader._asleep


def test_reader_that_cannot_be_served_keeps_no_other_from_it(store: Any) -> None:
    log = begin(store)
    asked: list[str] = []
    with log.reader(0) as first, log.reader(0) as second:
        for name, reader, takes in (("first", first, False), ("second", second, True)):
            reader._asleep = True
            reader.deliver = lambda _, name=name, takes=takes: asked.append(name) or takes
        log.append("a")

    assert asked == ["first", "second"]
    assert (first._asleep, second._asleep) == (False, True)
