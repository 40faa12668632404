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
