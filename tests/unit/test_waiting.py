"""Test wait mode: a reader that sleeps until the log ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from app import errors
from app.reading import waiting as module
from app.reading.readers import Readers
from app.reading.waiting import wait, wait_for_first
from tests.unit.readings import PATIENCE_SECONDS, Time, finish, log_of


def test_wait_for_no_time_returns_at_once() -> None:
    log = log_of("a", end=False)
    readers = Readers(limit=10, heartbeat_seconds=10.0)  # which nobody checks: nothing would wake who sleeps

    assert wait(log, readers, seconds=0.0, gone=lambda: False) is None
    assert (log.readers, readers.count) == (0, 0)


def test_wait_returns_the_end_of_a_finished_log_at_once() -> None:
    log = log_of("a")
    readers = Readers(limit=10, heartbeat_seconds=10.0)

    assert wait(log, readers, seconds=None, gone=lambda: False) is log.end
    assert (log.readers, readers.count) == (0, 0)


def test_wait_returns_when_the_log_ends() -> None:
    log = log_of("a", end=False)
    readers = Readers(limit=10, heartbeat_seconds=10.0)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(wait, log, readers, seconds=None, gone=lambda: False)
        while not log.readers:
            threading.Event().wait(0.001)
        finish(log)
        assert waiting.result(PATIENCE_SECONDS) is log.end


def test_wait_for_a_log_that_is_erased_says_that_it_is_unknown() -> None:
    log = log_of("a", end=False)
    readers = Readers(limit=10, heartbeat_seconds=10.0)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(wait, log, readers, seconds=None, gone=lambda: False)
        while not log.readers:
            threading.Event().wait(0.001)
        log.erase()
        with pytest.raises(errors.StreamUnknown):
            waiting.result(PATIENCE_SECONDS)


@pytest.fixture
def ticking() -> Iterator[Readers]:
    """Readers that are looked at all the time, as the clock does."""
    readers = Readers(limit=10, heartbeat_seconds=10.0)
    stop = threading.Event()

    def tick() -> None:
        while not stop.wait(0.005):
            readers.check(1e12)

    thread = threading.Thread(target=tick)
    thread.start()
    yield readers
    stop.set()
    thread.join()


@pytest.mark.parametrize("seconds", [0.0, 0.02])
def test_wait_gives_up_after_its_seconds(ticking: Readers, seconds: float) -> None:
    log = log_of("a", end=False)

    assert wait(log, ticking, seconds=seconds, gone=lambda: False) is None
    assert log.readers == 0


def test_wait_gives_up_on_a_client_that_is_gone(ticking: Readers, monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time()
    monkeypatch.setattr(module, "time", time)
    log = log_of("a", end=False)
    asked: list[float] = []

    def gone() -> bool:
        asked.append(time.now)
        return len(asked) == 2

    class Moving:
        def monotonic(self) -> float:
            time.now += 0.25
            return time.now

    monkeypatch.setattr(module, "time", Moving())

    assert wait(log, ticking, seconds=None, gone=gone) is None
    assert len(asked) == 2
    assert asked[1] - asked[0] >= 1.0, "asked about once a second"
    assert log.readers == 0


# The first record


@pytest.mark.parametrize("comes", ["record", "end"])
def test_wait_for_the_first_record_returns_with_it_or_with_the_end(comes: str) -> None:
    log = log_of(end=False)
    readers = Readers(limit=10, heartbeat_seconds=10.0)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(wait_for_first, log, readers, seconds=60.0, gone=lambda: False)
        while not readers.count:
            threading.Event().wait(0.001)
        log.append("a") if comes == "record" else finish(log)
        waiting.result(PATIENCE_SECONDS)
    assert (readers.count, log.readers) == (0, 0)


def test_wait_for_the_first_record_gives_up_after_its_seconds(ticking: Readers) -> None:
    wait_for_first(log_of(end=False), ticking, seconds=0.02, gone=lambda: False)


@pytest.mark.parametrize("is_erased", [False, True])
def test_wait_for_the_first_record_is_refused_when_its_reader_is_sent_away(is_erased: bool) -> None:
    log = log_of(end=False)
    readers = Readers(limit=10, heartbeat_seconds=10.0)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(wait_for_first, log, readers, seconds=60.0, gone=lambda: False)
        while not readers.count:
            threading.Event().wait(0.001)
        log.erase() if is_erased else readers.release_all()
        with pytest.raises(errors.StreamUnknown if is_erased else errors.ShuttingDown):
            waiting.result(PATIENCE_SECONDS)
