"""Test what is asked of the kernel about a connection, and what is written to it without a wait."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.platform.sockets import DirectWriter, is_connected, is_dead, is_quiet, progress, shut
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
        threading.Event().wait(0.02)
        assert not finishing.done()

        shut(ours)
        shut(ours)

        with pytest.raises(OSError, match="Errno"):
            finishing.result(PATIENCE_SECONDS)


def test_connection_is_told_to_be_there_or_gone_and_quiet_or_not(tcp: Pair) -> None:
    ours, theirs = tcp
    assert (is_connected(ours), is_quiet(ours)) == (True, True)
    theirs.sendall(b"a")
    assert not is_quiet(ours)
    ours.recv(1)
    theirs.shutdown(socket.SHUT_WR)
    assert not is_connected(ours)
    ours.close()
    assert not is_connected(ours)


def test_connection_tells_how_far_what_was_sent_has_got() -> None:
    """Of a peer that reads nothing: its kernel takes some, and goes on acknowledging the probes."""
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        theirs.connect(listening.getsockname())
        ours, _ = listening.accept()
        with ours:
            assert progress(ours) is None, "nothing was sent"
            ours.setblocking(False)
            sent = 0
            with pytest.raises(BlockingIOError):
                while True:
                    sent += ours.send(b"x" * 65_536)
            told = progress(ours)
            assert told is not None
            assert (told.unacknowledged + told.taken - sent) in (0, 1), "the handshake's one byte may be counted"
            assert 0 < told.taken < sent
            assert 0 <= told.quiet_seconds < 20
            theirs.settimeout(10)
            left = sent
            while left:
                left -= len(theirs.recv(min(left, 65_536)))
            until = time.monotonic() + 10
            while progress(ours) is not None:
                assert time.monotonic() < until, "not all of it is acknowledged"


def test_connection_that_was_reset_is_dead_and_one_that_is_half_closed_is_not() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()) as theirs,
    ):
        ours, _ = listening.accept()
        with ours:
            theirs.shutdown(socket.SHUT_WR)
            assert ours.recv(1) == b""
            assert (is_connected(ours), is_dead(ours)) == (False, False)
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            theirs.close()
            until = time.monotonic() + 10
            while not is_dead(ours):
                assert time.monotonic() < until, "a reset is the end"
