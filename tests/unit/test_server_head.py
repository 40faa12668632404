"""Test the bounds of a request's head, on gunicorn's own parser with a connection that says what a test wants."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from gunicorn.config import Config
from gunicorn.http.errors import ParseException
from gunicorn.http.parser import RequestParser

from app.server import head as heads

HEAD = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"


class Connection:
    """Give one piece for each recv, and never be late by itself."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self.received = 0
        self.timeouts: list[float | None] = []

    def recv(self, size: int) -> bytes:
        piece = next(self._pieces, b"")
        self.received += len(piece)
        return piece

    def settimeout(self, seconds: float | None) -> None:
        self.timeouts.append(seconds)


@pytest.fixture(autouse=True)
def bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RequestParser, "mesg_class", RequestParser.mesg_class)
    heads.bound()


def parse(connection: Connection) -> list[str]:
    """Read requests until the connection gives none, and list their paths."""
    parser = RequestParser(Config(), connection, ("127.0.0.1", 1))
    return [request.path for request in parser]


def bytewise(data: bytes) -> Iterator[bytes]:
    return (bytes([byte]) for byte in data)


def test_head_in_pieces_is_read_and_the_connection_waits_again_without_a_deadline() -> None:
    connection = Connection(bytewise(HEAD + b"\r\n"))

    assert parse(connection) == ["/health"]
    assert connection.timeouts[-1] is None
    deadlines = [seconds for seconds in connection.timeouts if seconds is not None]
    assert deadlines and max(deadlines) <= heads.HEAD_SECONDS


def test_head_that_trickles_ends_after_so_many_reads() -> None:
    connection = Connection(bytewise(HEAD + b"X: " + b"a" * 1_000_000))

    assert parse(connection) == []
    assert connection.received <= heads.HEAD_READS + 2


def test_head_that_is_late_ends_though_every_read_finds_something(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count(100.0, 1.0)
    monkeypatch.setattr(heads.time, "monotonic", lambda: next(seconds))
    connection = Connection(bytewise(HEAD + b"X: " + b"a" * 1_000_000))

    assert parse(connection) == []
    assert connection.received <= heads.HEAD_SECONDS + 5


def test_head_that_is_too_large_is_refused() -> None:
    connection = Connection(iter([HEAD, *[b"X: " + b"a" * 4000 + b"\r\n"] * 1000]))

    with pytest.raises(ParseException):
        parse(connection)
    assert connection.received < 2 * heads.HEAD_BYTES
