"""Test who is given the way past the server to a request's connection."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from app.platform.sockets import DirectWriter
from app.web import access as gate
from app.web.access import RESPONSE, direct_writer


@pytest.fixture
def ours() -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours


@pytest.fixture
def looping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "in_loop", lambda: True)


def environ(sock: object, chunked: object = True) -> dict[str, Any]:
    return {RESPONSE: SimpleNamespace(chunked=chunked), "gunicorn.socket": sock}


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.usefixtures("looping")
def test_writer_is_given_for_a_plain_connection_in_the_framing_of_its_answer(
    ours: socket.socket, *, chunked: bool
) -> None:
    writer = direct_writer(environ(ours, chunked))

    assert isinstance(writer, DirectWriter)
    assert writer._chunked is chunked


@pytest.mark.usefixtures("looping")
def test_writer_is_not_given_where_the_server_is_not_gunicorn_or_speaks_tls(ours: socket.socket) -> None:
    assert direct_writer({}) is None
    assert direct_writer({"gunicorn.socket": ours}) is None
    assert direct_writer({RESPONSE: None, "gunicorn.socket": ours}) is None
    assert direct_writer({RESPONSE: SimpleNamespace(), "gunicorn.socket": ours}) is None
    assert direct_writer(environ(None)) is None
    with ssl.create_default_context().wrap_socket(socket.socket(), server_hostname="x") as secure:
        assert direct_writer(environ(secure)) is None


def test_writer_is_not_given_where_threads_run_at_the_same_moment(ours: socket.socket) -> None:
    """This process is not gevent's."""
    assert direct_writer(environ(ours)) is None
