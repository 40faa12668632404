"""Test the clock: every check is called, again and again, whatever another one does."""

from __future__ import annotations

import threading

import pytest

from app.platform import clock
from app.platform.clock import Clock


def test_check_that_fails_stops_neither_the_others_nor_the_next_tick(caplog: pytest.LogCaptureFixture) -> None:
    ticks: list[float] = []
    made = Clock()

    def fail(now: float) -> None:
        raise ValueError("words")

    made.add(fail)
    made.add(ticks.append)
    made.tick(1.0)
    made.tick(2.0)

    assert ticks == [1.0, 2.0]
    assert [record.message for record in caplog.records] == ["a deadline check failed"] * 2


def test_clock_ticks_until_it_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "TICK_SECONDS", 0.001)
    made = Clock()
    ticked = threading.Event()
    made.add(lambda now: ticked.set())
    made.start()

    assert ticked.wait(30)
    made.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "clock"]


class Waits:
    """An event that is waited for: each wait lasts as long as was asked, or as long as the process stood still."""

    def __init__(self, *still: float) -> None:
        self.now = 1000.0
        self.waited: list[float] = []
        self._still = list(still)

    def monotonic(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        if not self._still:
            return True
        self.waited.append(seconds)
        self.now += seconds + self._still.pop(0)
        return False


@pytest.mark.parametrize(
    ("still", "waited", "ticks"),
    [
        ([0.0, 0.0], [0.2, 0.2], [1000.2, 1000.4]),
        ([0.5, 0.0], [0.2, 0.2], [1000.7, 1000.9]),
        ([60.0, 0.0, 0.0], [0.2, 1.0, 0.2], [1000.0, 1061.2, 1061.4]),
        ([2.0, 2.0, 2.0, 2.0], [0.2, 1.0, 0.2, 1.0], [1000.0, 1005.2, 1005.2, 1010.4]),
    ],
    ids=["in time", "a little late", "stood still", "always late"],
)
def test_worker_that_stood_still_reads_before_it_judges(
    monkeypatch: pytest.MonkeyPatch, still: list[float], waited: list[float], ticks: list[float]
) -> None:
    """What came meanwhile is not late. A worker that is always late has its deadlines all the same."""
    waits = Waits(*still)
    monkeypatch.setattr(clock, "time", waits)
    made, ticked = Clock(), []
    monkeypatch.setattr(made, "_stopped", waits)
    made.add(ticked.append)
    made._run()
    assert waits.waited == waited
    assert ticked == pytest.approx(ticks)
