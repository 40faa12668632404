"""Test the wait for bytes: in a thread here, and in gevent's loop by `test_patched`, which runs this file again."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.platform.gevent_loop import each_arrival
from tests.unit.fakes import PATIENCE_SECONDS

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def noting(sock: socket.socket, until: Callable[[bytes], bool]) -> tuple[list[bytes], Callable[[], bool]]:
    """Note what comes until something holds."""
    got: list[bytes] = []

    def receive() -> bool:
        got.append(sock.recv(100))  # never waits: it would raise
        return not until(got[-1])

    return got, receive


def test_what_is_there_already_is_taken_at_once(pair: Pair) -> None:
    ours, theirs = pair
    theirs.sendall(b"a")
    got, receive = noting(ours, lambda _: True)

    each_arrival(ours, receive)

    assert got == [b"a"]


def test_receive_is_called_for_every_arrival_and_for_none_besides_until_it_says_no(pair: Pair) -> None:
    ours, theirs = pair
    with ThreadPoolExecutor(1) as threads:
        taken = threading.Semaphore(0)
        got: list[bytes] = []

        def receive() -> bool:
            got.append(ours.recv(100))
            taken.release()
            return got[-1] != b"last"

        waiting = threads.submit(each_arrival, ours, receive)
        for piece in (b"a", b"b", b"last"):
            assert not waiting.done()
            theirs.sendall(piece)
            assert taken.acquire(timeout=PATIENCE_SECONDS)
        waiting.result(PATIENCE_SECONDS)
        theirs.sendall(b"more")

    assert got == [b"a", b"b", b"last"]
    assert ours.recv(100) == b"more", "left for who reads next"


def test_what_is_left_unread_is_an_arrival_again(pair: Pair) -> None:
    ours, theirs = pair
    theirs.sendall(b"abc")
    got: list[bytes] = []

    def receive() -> bool:
        got.append(ours.recv(1))
        return len(got) < 3

    each_arrival(ours, receive)

    assert got == [b"a", b"b", b"c"]


@pytest.mark.parametrize("how", ["closed there", "shut here"])
def test_end_of_the_connection_is_an_arrival(pair: Pair, how: str) -> None:
    ours, theirs = pair
    got, receive = noting(ours, lambda data: not data)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(each_arrival, ours, receive)
        theirs.sendall(b"a")
        while not got:
            threading.Event().wait(0.001)

        if how == "closed there":
            theirs.close()
        else:
            ours.shutdown(socket.SHUT_RDWR)

        waiting.result(PATIENCE_SECONDS)
    assert got == [b"a", b""]


class OfItsOwn(BaseException):
    pass


@pytest.mark.parametrize("kind", [RuntimeError, ConnectionResetError, OfItsOwn])
def test_what_receive_raises_is_raised_to_who_waits_and_nothing_goes_on(pair: Pair, kind: type[BaseException]) -> None:
    ours, theirs = pair
    theirs.sendall(b"a")
    calls: list[int] = []

    def receive() -> bool:
        calls.append(1)
        raise kind("words")

    for _ in range(2):
        with pytest.raises(kind, match="words"):
            each_arrival(ours, receive)
    threading.Event().wait(0.01)  # a receiver that is left would be called by now
    assert len(calls) == 2
    got, take = noting(ours, lambda _: True)
    each_arrival(ours, take)
    assert got == [b"a"]


def test_many_sockets_are_waited_on_at_once(pair: Pair) -> None:
    count = 8
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(count) as threads:
        pairs = [tuple(map(stack.enter_context, socket.socketpair())) for _ in range(count)]
        heard = [noting(ours, lambda data: not data) for ours, _ in pairs]
        waiting = [
            threads.submit(each_arrival, ours, receive) for (ours, _), (_, receive) in zip(pairs, heard, strict=True)
        ]
        for number in range(20):
            for _, theirs in pairs:
                theirs.sendall(b"%d " % number)
        for _, theirs in pairs:
            theirs.shutdown(socket.SHUT_WR)
        for future in waiting:
            future.result(PATIENCE_SECONDS)

    assert {b"".join(got) for got, _ in heard} == {b"".join(b"%d " % number for number in range(20))}
