"""Test how long a body may take. What clients see is in live/test_bodies.py."""

from __future__ import annotations

import contextlib
import io
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from app import errors
from app.server.body import Bodies
from app.server.connections import Connections

SECONDS = 30.0
LATER = 2 * SECONDS


@pytest.fixture
def bodies() -> Bodies:
    return Bodies(budget_bytes=100_000_000, connections=Connections(most=10), seconds=SECONDS)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


def request(body: io.BytesIO, connection: socket.socket) -> dict[str, Any]:
    return {"CONTENT_LENGTH": "3", "wsgi.input": body, "gunicorn.socket": connection}


def test_connection_whose_body_came_in_time_is_left_alone_when_that_time_is_over(
    bodies: Bodies, pair: tuple[socket.socket, socket.socket]
) -> None:
    """Its next request, and a stream that it reads, may come later than that."""
    ours, theirs = pair
    with bodies.read(request(io.BytesIO(b"abc"), ours), at_most=10) as body:
        assert body == b"abc"

    bodies.check(time.monotonic() + LATER)

    theirs.sendall(b"next")
    assert ours.recv(10) == b"next"


def test_connection_whose_body_is_late_is_read_no_further(
    bodies: Bodies, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, _ = pair

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            bodies.check(time.monotonic() + LATER)
            return super().read(size)

    with pytest.raises(BlockingIOError):
        ours.recv(10)
    with bodies.read(request(Slow(b"abc"), ours), at_most=10):
        assert ours.recv(10) == b"", "what waits for the rest of the body is told that there is no more"


@pytest.mark.parametrize(("size", "more"), [(1_048_576, 0), (2_097_152, 4), (33_554_432, 124)])
def test_large_body_has_a_second_more_for_each_quarter_of_a_mebibyte(
    bodies: Bodies, pair: tuple[socket.socket, socket.socket], size: int, more: int
) -> None:
    due: list[float] = []

    class Noting(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            due.extend(bodies._due.values())
            return super().read(size)

    for declared in (str(size), ""):  # a body in chunks may be as large as any
        environ = {**request(Noting(), pair[0]), "CONTENT_LENGTH": declared}
        began = time.monotonic()
        with contextlib.suppress(errors.InvalidJson), bodies.read(environ, at_most=size):
            pass
        assert due.pop() - began == pytest.approx(SECONDS + more, abs=1.9)
