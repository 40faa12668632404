"""Test how much of bodies is held at a time, and which body makes room. What clients see is in live/test_bodies.py."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from app import errors
from app.server import body_room
from app.server.body_room import LARGE_PIECE_BYTES, PIECE_BYTES, SMALL_BYTES, STALLED_SECONDS, Arriving, Room

BUDGET_BYTES = 800_000
LARGE_BYTES = 100_000


class Bodies:
    """A room, the bodies in it, and a clock that the test turns."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stack: contextlib.ExitStack) -> None:
        self.now = 100.0
        self.room = Room(budget_bytes=BUDGET_BYTES)
        self._stack = stack
        monkeypatch.setattr(body_room.time, "monotonic", lambda: self.now)

    def arriving(self, held: int = 0, *, connection: socket.socket | None = None) -> Arriving:
        """Begin a body whose length is not known, and hold so many bytes of it."""
        body = Arriving(connection, 0)
        self._stack.enter_context(self.room.kept(body))
        self.room.hold(body, held)
        return body

    def has_room_for(self, size: int) -> bool:
        """Tell whether another body finds room. It does not stay."""
        body = Arriving(None, 0)
        with self.room.kept(body):
            try:
                self.room.hold(body, size)
            except errors.Overloaded:
                return False
        return True


@pytest.fixture
def bodies(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bodies]:
    with contextlib.ExitStack() as stack:
        yield Bodies(monkeypatch, stack)


def test_room_is_full_at_its_budget_and_gives_back_what_a_body_held(bodies: Bodies) -> None:
    bodies.arriving(BUDGET_BYTES - 2 * LARGE_BYTES)
    body = Arriving(None, 0)
    with bodies.room.kept(body):
        bodies.room.hold(body, LARGE_BYTES)
        assert bodies.has_room_for(LARGE_BYTES)
        bodies.room.hold(body, LARGE_BYTES + 1)
        assert not bodies.has_room_for(LARGE_BYTES)

    assert bodies.has_room_for(2 * LARGE_BYTES)
    assert not bodies.has_room_for(2 * LARGE_BYTES + 1)


def test_small_bodies_have_an_eighth_beside_the_budget(bodies: Bodies) -> None:
    bodies.arriving(BUDGET_BYTES)
    assert not bodies.has_room_for(SMALL_BYTES + 1)
    assert bodies.has_room_for(SMALL_BYTES)

    bodies.arriving(SMALL_BYTES)

    assert bodies.has_room_for(BUDGET_BYTES // 8 - SMALL_BYTES)
    assert not bodies.has_room_for(BUDGET_BYTES // 8 - SMALL_BYTES + 1)


def test_body_that_is_announced_as_large_is_not_small_at_its_beginning(bodies: Bodies) -> None:
    bodies.arriving(BUDGET_BYTES)
    announced = Arriving(None, LARGE_BYTES)

    with bodies.room.kept(announced), pytest.raises(errors.Overloaded):
        bodies.room.hold(announced, 1)


def test_body_that_has_stalled_for_longest_makes_room_and_its_reader_goes_on(bodies: Bodies) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        first = bodies.arriving(BUDGET_BYTES - LARGE_BYTES, connection=ours)
        bodies.now += 0.1
        second = bodies.arriving(LARGE_BYTES)
        bodies.now += STALLED_SECONDS

        bodies.arriving(LARGE_BYTES)

        assert (first.is_displaced, second.is_displaced) == (True, False)
        assert ours.recv(1) == b"", "a read of the rest ends"
    with pytest.raises(errors.RequestTimeout):
        bodies.room.hold(first, BUDGET_BYTES)
    assert bodies.has_room_for(BUDGET_BYTES - 2 * LARGE_BYTES)


def test_body_that_brings_pieces_or_is_complete_or_holds_nothing_makes_no_room(bodies: Bodies) -> None:
    coming, complete = bodies.arriving(BUDGET_BYTES - LARGE_BYTES), bodies.arriving(LARGE_BYTES)
    empty = bodies.arriving(0)
    bodies.room.is_complete(complete)
    bodies.now += STALLED_SECONDS
    coming.arrives(PIECE_BYTES)
    assert not bodies.has_room_for(LARGE_BYTES)
    assert not empty.is_displaced

    bodies.now += STALLED_SECONDS
    coming.arrives(PIECE_BYTES - 1)  # which is not a piece

    assert bodies.has_room_for(LARGE_BYTES)
    assert coming.is_displaced


def test_body_makes_no_room_for_itself(bodies: Bodies) -> None:
    body = bodies.arriving(BUDGET_BYTES)
    bodies.now += STALLED_SECONDS

    with pytest.raises(errors.Overloaded):
        bodies.room.hold(body, BUDGET_BYTES + 1)


@pytest.mark.parametrize(
    ("arrived", "brought", "makes_room"),
    [(100_000, PIECE_BYTES, False), (2_000_000, PIECE_BYTES, True), (2_000_000, LARGE_PIECE_BYTES, False)],
)
def test_large_body_that_brings_little_makes_room_as_if_it_had_stalled(
    bodies: Bodies, arrived: int, brought: int, makes_room: bool
) -> None:
    """A few bodies that trickle would otherwise keep all others out until their time is over."""
    body = bodies.arriving(BUDGET_BYTES)
    body.arrives(arrived)
    bodies.now += STALLED_SECONDS
    body.arrives(brought)
    assert bodies.has_room_for(LARGE_BYTES) is makes_room
