"""The suite of stores, their logs and readers: what every log must do (app/streams/interface.py says it)."""

from __future__ import annotations

import contextlib
import hashlib
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app import errors
from app.streams.interface import End, Piece, Reader, Totals
from app.streams.retention import LOG_OVERHEAD_BYTES
from tests.harness.valkey_fixtures import EACH_KIND
from tests.unit.ends import end_with
from tests.unit.stores import (
    BUDGET_BYTES,
    ORIGIN,
    PATIENCE_SECONDS,
    Factory,
    Time,
    begin,
    clock_of,
    factory_of,
    finished,
    follow,
    read_all,
    totals_of,
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


def test_reader_leaves_when_its_loop_raises(store: Any) -> None:
    log = begin(store)

    def read(reader: Reader) -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError), log.reader(0) as reader:
        read(reader)
    assert log.readers == 0


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
    time.sleep(0.05)  # one that does not wait for the first would be done now
    assert not second.done()
    go.set()

    with pytest.raises(KeyboardInterrupt):
        first.result(PATIENCE_SECONDS)
    assert second.result(PATIENCE_SECONDS)
    assert log.end is not None


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
