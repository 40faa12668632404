"""Test the writer past the server: what it writes without a wait, and which connections get one."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from app.platform.gevent_loop import in_loop
from app.platform.sockets import shut
from app.server import direct
from app.server.direct import RESPONSE, DirectWriter, direct_writer
from tests.live.rawhttp import chunks
from tests.unit.fakes import PATIENCE_SECONDS
from tests.unit.shared import wait_until

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """The server's end, which never blocks the kernel's way, and the client's, with buffers as small as they get."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    ours.settimeout(PATIENCE_SECONDS)
    theirs.settimeout(PATIENCE_SECONDS)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def tcp() -> Iterator[Pair]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    ours.settimeout(PATIENCE_SECONDS)
    theirs.settimeout(PATIENCE_SECONDS)
    with ours, theirs:
        yield ours, theirs


def read_all(sock: socket.socket) -> bytes:
    data = b""
    while piece := sock.recv(65_536):
        data += piece
    return data


def fill(writer: DirectWriter, data: bytes) -> int:
    """Write until no more is taken, and count the pieces that were."""
    count = 0
    while writer.write(data):
        count += 1
        if not writer.is_clear:
            return count
    return count


@pytest.mark.parametrize("chunked", [True, False])
def test_pieces_are_written_as_the_response_is_framed(pair: Pair, chunked: bool) -> None:
    ours, theirs = pair
    writer = DirectWriter(ours, chunked=chunked)
    pieces = [b"a", b"event: token\n\n" * 20, "é😀".encode()]

    assert all(writer.write(piece) for piece in pieces)

    assert writer.is_clear
    ours.shutdown(socket.SHUT_WR)
    assert read_all(theirs) == (chunks(*pieces).removesuffix(b"0\r\n\r\n") if chunked else b"".join(pieces))


@pytest.mark.parametrize("chunked", [True, False])
def test_piece_that_is_taken_in_part_is_finished_later_byte_for_byte(tcp: Pair, chunked: bool) -> None:
    ours, theirs = tcp
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    writer = DirectWriter(ours, chunked=chunked)
    piece = b"".join(b"%07d\n" % number for number in range(60_000))

    assert writer.write(piece)
    assert not writer.is_clear
    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(read_all, theirs)
        writer.finish()
        assert writer.is_clear
        writer.finish()  # nothing is left, so nothing is written
        wait_until(lambda: writer.write(b"last"), "the kernel's buffer has room again")
        ours.shutdown(socket.SHUT_WR)
        assert reading.result(PATIENCE_SECONDS) == (
            chunks(piece, b"last").removesuffix(b"0\r\n\r\n") if chunked else piece + b"last"
        )


def test_piece_for_a_full_connection_is_refused_without_a_wait_and_leaves_nothing_behind(pair: Pair) -> None:
    ours, theirs = pair
    writer = DirectWriter(ours, chunked=True)
    count = fill(writer, b"x" * 100)
    assert writer.is_clear, "the premise: a datagram-like pair takes all or nothing"

    assert not writer.write(b"y" * 100)

    assert writer.is_clear
    ours.shutdown(socket.SHUT_WR)
    assert read_all(theirs) == (b"64\r\n" + b"x" * 100 + b"\r\n") * count


def test_piece_for_a_connection_that_is_gone_is_refused(tcp: Pair) -> None:
    ours, theirs = tcp
    writer = DirectWriter(ours, chunked=True)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    theirs.close()

    assert not writer.write(b"a")

    assert writer.is_clear


def test_rest_for_a_connection_that_is_gone_raises_and_is_dropped(tcp: Pair) -> None:
    ours, theirs = tcp
    writer = DirectWriter(ours, chunked=False)
    fill(writer, b"x" * 1_000_003)
    assert not writer.is_clear
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    theirs.close()

    with pytest.raises(ConnectionError):
        writer.finish()
    assert writer.is_clear


def test_connection_shut_wakes_who_waits_for_room_in_it(tcp: Pair) -> None:
    ours, _ = tcp
    writer = DirectWriter(ours, chunked=False)
    fill(writer, b"x" * 1_000_003)
    with ThreadPoolExecutor(1) as threads:
        finishing = threads.submit(writer.finish)
        threading.Event().wait(0.02)  # one that does not wait would be done now
        assert not finishing.done()

        shut(ours)
        shut(ours)

        with pytest.raises(OSError, match="Errno"):
            finishing.result(PATIENCE_SECONDS)


# Which connections get one


@pytest.fixture
def ours() -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours


@pytest.fixture
def looping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "in_loop", lambda: True)


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


@pytest.mark.skipif(in_loop(), reason="needs a process that gevent has not patched")
def test_writer_is_not_given_where_threads_run_at_the_same_moment(ours: socket.socket) -> None:
    assert direct_writer(environ(ours)) is None
