"""Test that ends of generations are made one after the other, each once, and that others run in between."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from app.generation import turns
from app.generation.turns import DueEnds, Turns
from tests.unit.fakes import PATIENCE_SECONDS


def test_turn_gives_others_a_moment_before_the_next_one_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Turns()
    slept: list[tuple[float, bool]] = []
    monkeypatch.setattr(time, "sleep", lambda seconds: slept.append((seconds, one._lock.locked())))

    for _ in range(2):
        with one:
            assert one._lock.locked()

    assert slept == [(turns.BETWEEN_ENDS_SECONDS, True)] * 2
    assert not one._lock.locked()


class Ends:
    """Ends that note their order. The first one waits until the test opens the way."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.opened = threading.Event()
        self.reached = threading.Event()
        self.due = DueEnds(Turns())

    def add(self, name: str, then: Callable[[], object] = lambda: None) -> None:
        def end() -> None:
            self.reached.set()
            assert self.opened.wait(PATIENCE_SECONDS)
            self.made.append(name)
            then()

        self.due.add(name, end)

    def wait_done(self) -> None:
        until = time.monotonic() + PATIENCE_SECONDS
        while self.due.busy:
            assert time.monotonic() < until
            time.sleep(0.001)


def test_end_that_is_due_already_is_not_made_twice_and_may_be_due_again_later() -> None:
    ends = Ends()
    ends.add("a")
    assert ends.reached.wait(PATIENCE_SECONDS)
    for name in ("a", "b", "a", "b"):  # the first one is being made, and the second waits
        ends.add(name)
    assert ends.due.busy
    ends.opened.set()
    ends.wait_done()
    assert ends.made == ["a", "b"]

    ends.add("a")
    ends.wait_done()
    assert ends.made == ["a", "b", "a"]


def test_end_that_fails_keeps_no_other_from_its_end(caplog: pytest.LogCaptureFixture) -> None:
    ends = Ends()
    ends.opened.set()

    def fail() -> None:
        raise ZeroDivisionError

    ends.add("a", fail)
    ends.add("b")
    ends.wait_done()

    assert ends.made == ["a", "b"]
    assert [record.message for record in caplog.records] == ["a generation could not be ended"]
