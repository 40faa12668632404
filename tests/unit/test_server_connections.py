"""Test which connection goes when there are too many, and which are taken for gone."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from app.platform.sockets import Progress
from app.server import connections
from app.server.connections import GONE_SECONDS, Connections


class Worker:
    """A gunicorn worker whose connections end when the test says so."""

    def __init__(self, most: int) -> None:
        self.ours = Connections(most=most)
        self.during: Any = None
        self.handle: Any = lambda listener, client, address: self.during()
        self.handle_request: Any = lambda listener, request, client, address: True
        self.ours.watch(self)


@pytest.fixture
def shut(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    found: list[object] = []
    monkeypatch.setattr(connections, "shut", found.append)
    return found


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def fill(ours: Connections, *names: str) -> list[Any]:
    clients = [SimpleNamespaceKey(name=name) for name in names]
    for client in clients:
        ours.waits(client)  # type: ignore[arg-type]
    return clients


class SimpleNamespaceKey(SimpleNamespace):
    __hash__ = object.__hash__  # type: ignore[assignment]


def test_oldest_without_a_complete_request_makes_room_for_who_comes(shut: list[object]) -> None:
    worker = Worker(3)
    first, second, third = fill(worker.ours, "first", "second", "third")
    worker.ours.is_answered(first)  # it asks: now the second is the oldest
    seen: list[int] = []
    worker.during = lambda: seen.append(worker.ours.count)

    worker.handle(None, SimpleNamespaceKey(name="fourth"), None)

    assert (shut, seen, worker.ours.count) == ([second], [3], 2)
    worker.ours.waits(first)
    worker.during = lambda: worker.handle(None, SimpleNamespaceKey(name="sixth"), None) if len(shut) < 2 else None
    worker.handle(None, SimpleNamespaceKey(name="fifth"), None)
    assert shut == [second, third], "a connection that was answered is younger than one that never asked"


def test_answer_that_nobody_reads_makes_room_where_all_have_asked_and_a_reader_never_does(shut: list[object]) -> None:
    worker = Worker(2)
    reader, other = fill(worker.ours, "reader", "other")
    for client in (reader, other):
        worker.ours.is_answered(client)
    worker.ours.reads(reader)
    worker.during = lambda: None

    worker.handle(None, SimpleNamespaceKey(name="new"), None)

    assert shut == [other]
    newest = SimpleNamespaceKey(name="newest")
    worker.during = lambda: None
    worker.ours.is_answered(other)
    worker.ours.reads(other)
    worker.handle(None, newest, None)
    assert shut == [other, newest], "where all are readers, who comes last goes"


def test_reader_that_has_read_makes_room_after_those_that_came_before(shut: list[object]) -> None:
    worker = Worker(2)
    reader, other = fill(worker.ours, "reader", "other")
    for client in (reader, other):
        worker.ours.is_answered(client)
    worker.ours.reads(reader)
    worker.ours.has_read(reader)
    worker.during = lambda: None

    worker.handle(None, SimpleNamespaceKey(name="new"), None)
    assert shut == [other]
    worker.ours.is_answered(other)
    worker.ours.reads(other)
    worker.handle(None, SimpleNamespaceKey(name="newest"), None)
    assert shut == [other, reader]


def test_request_that_was_answered_ends_its_connection_only_where_there_are_as_many_as_may_be(
    shut: list[object],
) -> None:
    worker = Worker(2)
    one, two = fill(worker.ours, "one", "two")
    with pytest.raises(StopIteration):
        worker.handle_request(None, None, one, None)
    worker.ours._waiting.pop(two)
    assert worker.handle_request(None, None, one, None) is True
    assert (worker.ours.count, shut) == (1, [])


def test_client_that_is_still_sending_is_heard_out_before_its_connection_closes(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """Else the bytes that nobody read would reset the connection under the answer."""
    ours, theirs = pair
    worker = Worker(2)
    theirs.sendall(b"x" * 50_000)
    theirs.shutdown(socket.SHUT_WR)

    def refuse(listener: object, request: object, client: socket.socket, address: object) -> bool:
        worker.ours.linger(client)
        raise StopIteration

    worker.handle_request = refuse
    worker.ours.watch(worker)
    with pytest.raises(StopIteration):
        worker.handle_request(None, None, ours, None)

    assert ours.recv(1) == b"", "all of it has been taken"
    assert theirs.recv(1) == b"", "and the client sees the end"


# Who is gone


@pytest.mark.parametrize(
    ("seen", "reads", "is_gone"),
    [
        (lambda now: None, False, False),  # everything has arrived
        (lambda now: Progress(9, now, 0), False, True),  # nothing is acknowledged
        (lambda now: Progress(9, now, 0), True, True),
        (lambda now: Progress(9, 0.2, 0), True, False),  # probes are: a window that is small, or closed
        (lambda now: Progress(9, 0.2, 0), False, True),  # but no answer takes half a minute for nothing
        (lambda now: Progress(9, 0.2, int(now)), False, False),  # it reads slowly
    ],
    ids=["arrived", "silent", "a silent reader", "a slow reader", "deaf", "slow"],
)
def test_peer_that_acknowledges_nothing_or_takes_nothing_is_gone(
    monkeypatch: pytest.MonkeyPatch, shut: list[object], seen: Any, *, reads: bool, is_gone: bool
) -> None:
    ours, now = Connections(most=9), 0.0
    monkeypatch.setattr(connections.time, "monotonic", lambda: 0.0)
    monkeypatch.setattr(connections, "progress", lambda client: seen(now))
    (client,) = fill(ours, "client")
    ours.is_answered(client)
    if reads:
        ours.reads(client)
    while now < GONE_SECONDS - 2:
        now += 1.0
        ours.check(now)
    assert shut == []
    for _ in range(8):
        now += 1.0
        ours.check(now)
    assert bool(shut) is is_gone


def test_reader_that_has_read_has_half_a_minute_for_what_it_takes_nothing_of(
    monkeypatch: pytest.MonkeyPatch, shut: list[object]
) -> None:
    ours, now = Connections(most=9), 0.0
    monkeypatch.setattr(connections.time, "monotonic", lambda: now)
    monkeypatch.setattr(connections, "progress", lambda client: Progress(9, 0.2, 0))
    (client,) = fill(ours, "client")
    ours.is_answered(client)
    ours.reads(client)
    while now < 100:
        now += 1.0
        ours.check(now)
    ours.has_read(client)
    while now < 100 + GONE_SECONDS - 1:
        now += 1.0
        ours.check(now)
    assert shut == []
    while now < 100 + GONE_SECONDS + 3:
        now += 1.0
        ours.check(now)
    assert shut[:1] == [client]


def test_peer_that_was_idle_for_long_has_its_time_for_what_is_sent_then(
    monkeypatch: pytest.MonkeyPatch, shut: list[object]
) -> None:
    """Its last acknowledgement is older than what waits for the next."""
    ours, now = Connections(most=9), 0.0
    monkeypatch.setattr(connections.time, "monotonic", lambda: 0.0)
    monkeypatch.setattr(connections, "progress", lambda client: Progress(9, now, 0) if now > 100 else None)
    (client,) = fill(ours, "client")
    ours.is_answered(client)
    ours.reads(client)
    while now < 100 + GONE_SECONDS:
        now += 1.0
        ours.check(now)
    assert shut == []
