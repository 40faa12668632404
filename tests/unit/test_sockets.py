"""Test what is asked of the kernel about a connection."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator

import pytest

from app.platform.sockets import is_connected, is_dead, is_quiet, progress, shut, shut_reading
from tests.unit.fakes import PATIENCE_SECONDS

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def tcp() -> Iterator[Pair]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    ours.settimeout(PATIENCE_SECONDS)
    theirs.settimeout(PATIENCE_SECONDS)
    with ours, theirs:
        yield ours, theirs


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
    began = time.monotonic()
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
            while not (told := progress(ours)) or not told.quiet_seconds:  # within a millisecond: it was heard just now
                assert time.monotonic() - began < PATIENCE_SECONDS
            assert 0 < told.quiet_seconds <= time.monotonic() - began + 0.01  # the kernel's clock has steps
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


def test_connection_whose_reading_half_is_ended_can_still_be_answered(tcp: Pair) -> None:
    ours, theirs = tcp

    shut_reading(ours)
    assert ours.recv(1) == b"", "whoever waits for bytes gets the end"
    ours.sendall(b"too late")
    assert theirs.recv(8) == b"too late"

    shut(ours)
    assert theirs.recv(1) == b""
    shut(ours)  # again is harmless
    shut_reading(ours)
