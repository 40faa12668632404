"""Test that an answer which comes before its request has been sent is nobody's.

`test_patched` runs this file again where gevent's loop reads the answers.
"""

from __future__ import annotations

import select
import socket
import threading
from typing import Any

import httpx2
import pytest

from app.upstream.connection import Connection
from app.upstream.transport import Transport
from tests.unit.conftest import Events
from tests.unit.fakes import PATIENCE_SECONDS
from tests.unit.rawserver import (
    MINE,
    STRANGER,
    Serve,
    read_request,
    saying,
)
from tests.unit.transports import ask, ask_new, behind, wait_for_bytes

pytestmark = pytest.mark.usefixtures("no_proxies", "no_rest")


@pytest.mark.parametrize("later", [False, True], ids=["at once", "in the middle of the request"])
def test_answer_on_a_new_connection_that_comes_before_the_request_is_nobodys(
    serve: Serve, transport: Transport, monkeypatch: pytest.MonkeyPatch, later: bool
) -> None:
    """Also when it comes while a large request is still on its way, to a server that reads slowly."""
    sent, over = threading.Event(), threading.Event()
    looks = Connection.look

    def look(connection: Any, **begun: bool) -> Any:
        if not later:
            assert sent.wait(PATIENCE_SECONDS)
        return looks(connection, **begun)

    monkeypatch.setattr(Connection, "look", look)

    def answer(connection: socket.socket, number: int) -> None:
        if later:
            connection.recv(10)
        connection.sendall(STRANGER)
        sent.set()
        assert over.wait(PATIENCE_SECONDS)  # what is not read fills the buffers, and is not acknowledged
        read_request(connection)

    server = serve(answer)
    server.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

    try:
        with pytest.raises(httpx2.TransportError):
            ask(transport, server.url, content=b"x" * (300_000 if later else 2))
    finally:
        over.set()


def test_answer_that_comes_while_a_request_is_sent_on_a_kept_connection_is_not_its_own(
    serve: Serve, transport: Transport, monkeypatch: pytest.MonkeyPatch, events: Events
) -> None:
    """The last byte is held back until then, so the server has not been asked."""
    asked: list[bytes] = []

    def answer(connection: socket.socket, number: int) -> None:
        asked.append(read_request(connection))
        connection.sendall(MINE)
        if number == 1:
            connection.recv(10)
            connection.sendall(STRANGER)
            asked.append(read_request(connection))

    server = serve(answer)
    assert ask(transport, server.url) == b"mine"
    ((first,),) = transport._pool._idle.values()
    looks = first.look
    number = 0

    def look(**begun: bool) -> Any:
        nonlocal number
        number += 1
        if number == 2:  # behind all of the request but its last byte
            poll = select.poll()
            poll.register(first.sock, select.POLLIN)
            assert poll.poll(PATIENCE_SECONDS * 1000)
        return looks(**begun)

    monkeypatch.setattr(first, "look", look)

    assert ask(transport, server.url) == b"mine"
    assert number == 2
    server.close()
    assert sum(map(bool, asked)) == 2, "the first connection never had a whole second request"
    assert len(events.of("upstream_distrusted")) == 1


@pytest.mark.parametrize("status", [b"400 Bad Request", b"413 Too Large", b"503 Busy"])
def test_error_that_comes_while_a_request_is_sent_on_a_kept_connection_costs_no_trust(
    serve: Serve, transport: Transport, monkeypatch: pytest.MonkeyPatch, events: Events, status: bytes
) -> None:
    """What a server may do that has read the head. It is asked anew, and its answer is taken then."""

    def answer(connection: socket.socket, number: int) -> None:
        if number == 1:
            read_request(connection)
            connection.sendall(MINE)
        connection.recv(10)
        connection.sendall(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\nno")
        while connection.recv(65_536):
            pass

    server = serve(answer)
    assert ask(transport, server.url) == b"mine"
    looks = Connection.look

    def look(connection: Any, *, begun: bool = False) -> Any:
        if begun:
            poll = select.poll()
            poll.register(connection.sock, select.POLLIN)
            assert poll.poll(PATIENCE_SECONDS * 1000)
        return looks(connection, begun=begun)

    monkeypatch.setattr(Connection, "look", look)

    response = transport.handle_request(httpx2.Request("POST", server.url, content=b"x" * 1000))

    assert (response.status_code, response.read()) == (int(status[:3]), b"no")
    response.close()
    assert server.connections == 2
    assert events.of("upstream_distrusted") == []


def test_error_that_comes_between_two_requests_is_what_nobody_asked_for(
    serve: Serve, transport: Transport, events: Events
) -> None:
    read = threading.Event()
    server = serve(saying([*behind(b"HTTP/1.1 400 Bad Request\r\n\r\n", read), lambda it: it.recv(1)]))
    assert ask(transport, server.url) == b"mine"
    read.set()
    wait_for_bytes(transport)

    assert ask_new(transport, server) == b"mine"
    assert len(events.of("upstream_distrusted")) == 1


def test_error_may_come_before_the_end_of_a_request(serve: Serve, transport: Transport) -> None:
    """As a proxy says that a body is too large, when it has read the head."""

    def refuse(connection: socket.socket, _: int) -> None:
        connection.recv(10)
        connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        while connection.recv(65_536):
            pass

    response = transport.handle_request(httpx2.Request("POST", serve(refuse).url, content=b"x" * 1_000_000))
    assert (response.status_code, response.read()) == (413, b"no")
    response.close()
