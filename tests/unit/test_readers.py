"""Test who may read, who is woken, and which connections are dropped."""

from __future__ import annotations

import time

import pytest

from app import errors
from app.reading.readers import LOOK_SECONDS, Readers


class FakeReader:
    def __init__(self, frame_at: float, *, sending: bool = False) -> None:
        self.frame_at = frame_at
        self.sending = sending
        self.nudges = 0
        self.releases = 0

    def depart(self) -> None:
        """Nothing here depends on it."""

    def nudge(self) -> None:
        self.nudges += 1

    def release(self) -> None:
        self.releases += 1


def test_readers_checked_nudge_those_whose_heartbeat_is_due() -> None:
    readers = Readers(limit=10, heartbeat_seconds=10.0)
    due, young, waiting = FakeReader(0.0), FakeReader(1.0), FakeReader(10.0)
    readers.add(due)  # type: ignore[arg-type]
    readers.add(young)  # type: ignore[arg-type]
    readers.add(waiting, every_seconds=0.0)  # type: ignore[arg-type]

    readers.check(10.0)

    assert (due.nudges, young.nudges, waiting.nudges) == (1, 0, 1)


@pytest.mark.parametrize(("idle", "sending", "dropped"), [(29.9, True, 0), (30.0, True, 1), (300.0, False, 0)])
def test_readers_checked_drop_one_that_takes_nothing(idle: float, sending: bool, dropped: int) -> None:
    readers = Readers(limit=10, heartbeat_seconds=300.0)
    drops: list[int] = []
    reader = FakeReader(0.0, sending=sending)
    readers.add(reader, drop=lambda: drops.append(1))  # type: ignore[arg-type]

    readers.check(idle)

    assert len(drops) == dropped


def test_readers_removed_are_neither_nudged_nor_dropped() -> None:
    readers = Readers(limit=10, heartbeat_seconds=10.0)
    drops: list[int] = []
    reader = FakeReader(0.0, sending=True)
    readers.add(reader, drop=lambda: drops.append(1))  # type: ignore[arg-type]
    readers.remove(reader)  # type: ignore[arg-type]
    readers.remove(reader)  # type: ignore[arg-type]

    readers.check(1000.0)

    assert (reader.nudges, drops, readers.count) == (0, [], 0)


@pytest.mark.parametrize(("sending", "ended"), [(True, "drop"), (False, "cut")])
def test_readers_end_a_departed_one_for_another_that_comes(sending: bool, ended: str) -> None:
    """One that waits leaves by itself, so that the end of its connection is its own."""
    readers = Readers(limit=1, most_attached=1, heartbeat_seconds=300.0)
    ends: list[str] = []
    departed = FakeReader(time.monotonic(), sending=sending)
    told = {"drop": lambda: ends.append("drop"), "cut": lambda: ends.append("cut"), "departed": lambda: True}
    readers.add(departed, **told)  # type: ignore[arg-type]
    readers.check(time.monotonic() + LOOK_SECONDS)

    readers.add(FakeReader(0.0))  # type: ignore[arg-type]

    assert (ends, departed.releases, readers.count) == ([ended], 1, 1)


def test_readers_at_their_limit_admit_no_more() -> None:
    readers = Readers(limit=1, heartbeat_seconds=10.0)
    readers.admit()
    readers.add(FakeReader(0.0))  # type: ignore[arg-type]

    with pytest.raises(errors.Overloaded) as refused:
        readers.admit()
    assert refused.value.retry_after_seconds


def test_readers_keep_a_place_for_as_long_as_it_is_held() -> None:
    readers = Readers(limit=2, heartbeat_seconds=10.0)
    places = [readers.admit() for _ in range(2)]
    with pytest.raises(errors.Overloaded):
        readers.admit()
    places.pop()
    readers.add(FakeReader(0.0))  # type: ignore[arg-type]
    with pytest.raises(errors.Overloaded):
        readers.admit()
    places.pop()
    assert readers.admit() is not None


def test_readers_sent_away_leave_and_so_does_one_that_comes_later() -> None:
    readers = Readers(limit=10, heartbeat_seconds=10.0)
    early, late = FakeReader(0.0), FakeReader(0.0)
    readers.add(early)  # type: ignore[arg-type]
    assert (early.releases, readers.is_leaving) == (0, False)

    readers.release_all()
    readers.add(late)  # type: ignore[arg-type]

    assert (early.releases, late.releases, readers.is_leaving) == (1, 1, True)
