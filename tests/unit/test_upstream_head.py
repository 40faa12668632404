"""Test that heads are read for what they are: interim answers, odd framings, a proxy's answer to CONNECT.

`test_patched` runs this file again where gevent's loop reads the answers.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx2
import pytest

from app.upstream import head as heads
from app.upstream.call import Call
from app.upstream.framing import BadFraming
from app.upstream.head import HEAD_BYTES, HEAD_READS, INTERIM_ANSWERS
from app.upstream.transport import Transport
from tests.unit.fakes import PATIENCE_SECONDS
from tests.unit.rawserver import (
    HEAD,
    HINTS,
    LAST,
    MINE,
    STRANGER,
    RawServer,
    Serve,
    Step,
    chunk,
    counted,
    read_request,
    saying,
)
from tests.unit.transports import ask, kept

pytestmark = pytest.mark.usefixtures("no_proxies", "no_rest")


# Interim answers


INTERIM: dict[str, list[Step]] = {
    "103": [HINTS],
    "100": [b"HTTP/1.1 100 Continue\r\n\r\n"],
    "102, without a phrase": [b"HTTP/1.1 102\r\n\r\n"],
    "199, with bare line feeds": [b"HTTP/1.1 199 Odd\nA: b\n\n"],
    "as many as may be": [HINTS * (INTERIM_ANSWERS // 2), b"HTTP/1.1 100 Continue\r\n\r\n" * (INTERIM_ANSWERS // 2)],
    "byte by byte": [HINTS[at : at + 1] for at in range(len(HINTS))],
}


@pytest.mark.parametrize("interim", INTERIM.values(), ids=INTERIM)
@pytest.mark.parametrize("whole", [False, True])
def test_interim_answers_are_skipped_and_their_connection_is_not_used_again(
    serve: Serve, transport: Transport, interim: list[Step], whole: bool
) -> None:
    server = serve(saying([*interim, MINE], [STRANGER]))

    for _ in range(2):
        assert ask(transport, server.url, whole=whole) == b"mine"

    assert server.connections == 2
    assert kept(transport) == 0


def test_interim_answers_in_one_piece_with_the_final_one_are_skipped(serve: Serve, transport: Transport) -> None:
    server = serve(saying([HINTS + HINTS + MINE]))

    assert ask(transport, server.url) == b"mine"


def test_interim_answer_before_an_error_leaves_its_status(serve: Serve, transport: Transport) -> None:
    server = serve(saying([HINTS, b"HTTP/1.1 429 No\r\nRetry-After: 7\r\nContent-Length: 2\r\n\r\nno"]))

    response = transport.handle_request(httpx2.Request("POST", server.url, content=b"{}"))

    assert (response.status_code, response.headers["retry-after"], response.read()) == (429, "7", b"no")
    response.close()


@pytest.mark.parametrize(
    "told",
    [
        [b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: other\r\n\r\n", MINE],
        [HINTS * (INTERIM_ANSWERS + 1), MINE],
        [HINTS.replace(b"\r\n\r\n", b"\r\nA: " + b"x" * 60_000 + b"\r\n\r\n") * 2, MINE],
        [b"HTTP/1.1 103 Early Hints\r\nA: " + b"x" * 2 * HEAD_BYTES],
        [b"HTTP/1.1 103 Early Hints\r\n" + b"A: b\r\n" * HEAD_BYTES],
        [b"HTTP/1.1 100 Continue\r\nContent-Length: %d\r\n\r\n" % len(STRANGER) + STRANGER, MINE],
        [HINTS],
        [HINTS[:20]],
    ],
    ids=["101", "too many", "too large together", "a line", "lines", "with a body", "and nothing", "half of one"],
)
def test_interim_answers_that_are_none_or_too_many_are_a_broken_upstream(
    serve: Serve, transport: Transport, told: list[Step]
) -> None:
    server = serve(saying(told))

    with pytest.raises(httpx2.TransportError):
        ask(transport, server.url)
    assert server.connections == 1


def test_head_in_too_many_pieces_is_a_broken_upstream_and_others_run_in_between(
    serve: Serve, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "HEAD_READS", 20)
    turns: list[float] = []
    monkeypatch.setattr(heads, "time", SimpleNamespace(sleep=turns.append))
    assert HEAD_READS > 100, "an ordinary head takes one or two"

    def drip(connection: socket.socket, _: int) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nA: ")
        while True:
            connection.sendall(b"b")
            time.sleep(0.001)  # each byte comes by itself

    with pytest.raises(httpx2.RemoteProtocolError):
        ask(transport, serve(drip).url)
    assert turns == [0] * (21 - heads.FREE_READS)


def endless(connection: socket.socket, _: int) -> None:
    """Send interim answers for as long as somebody takes them."""
    read_request(connection)
    with contextlib.suppress(OSError):
        while True:
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)


def test_call_cancelled_while_interim_answers_never_end_ends(
    serve: Serve, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the bounds, its deadline holds: others run in between, and the call's end is looked for."""
    for name in ("HEAD_BYTES", "HEAD_READS", "INTERIM_ANSWERS"):
        monkeypatch.setattr(heads, name, 1 << 60)
    server = serve(endless)
    call = Call()
    with ThreadPoolExecutor(1) as threads:
        asking = threads.submit(ask, transport, server.url, call=call)
        for _ in range(6):
            time.sleep(0.005)  # others run meanwhile, or this one never comes back
        assert not asking.done()
        call.cancel()
        with pytest.raises(httpx2.TransportError):
            asking.result(PATIENCE_SECONDS)


# Answers whose end is unclear


UNCLEAR = {
    "two lengths": HEAD + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nmine",
    "two lengths in one": HEAD + b"Content-Length: 4, 5\r\n\r\nmine",
    "a length that is none": HEAD + b"Content-Length: +4\r\n\r\nmine",
    "a length of nothing": HEAD + b"Content-Length:\r\n\r\nmine",
    "a length below 0": HEAD + b"Content-Length: -4\r\n\r\nmine",
    "a length that overflows": HEAD + b"Content-Length: 1" + b"0" * 20 + b"\r\n\r\nmine",
    "chunked twice": HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"mine") + LAST,
    "packed": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + chunk(b"mine") + LAST,
    "unknown, with a length": HEAD + b"Transfer-Encoding: br\r\nContent-Length: 4\r\n\r\nmine",
}


@pytest.mark.parametrize("told", UNCLEAR.values(), ids=UNCLEAR)
def test_answer_whose_end_is_unclear_is_refused(serve: Serve, transport: Transport, told: bytes) -> None:
    with pytest.raises(httpx2.RemoteProtocolError):
        ask(transport, serve(saying([told], [STRANGER])).url)
    assert kept(transport) == 0


@pytest.mark.parametrize(
    "told",
    [*UNCLEAR.values(), b"HTTP/1.1 101 Switching Protocols\r\n\r\n", HINTS * (INTERIM_ANSWERS + 1)],
    ids=[*UNCLEAR, "101", "too many interim ones"],
)
def test_answer_that_is_refused_on_a_kept_connection_is_not_asked_for_again(
    serve: Serve, transport: Transport, told: bytes
) -> None:
    """It is there, and has been paid for."""
    asked = 0

    def answer(connection: socket.socket, _: int) -> None:
        nonlocal asked
        while read_request(connection):
            asked += 1
            connection.sendall(MINE if asked == 1 else told)

    server = serve(answer)
    assert ask(transport, server.url) == b"mine"

    with pytest.raises(httpx2.RemoteProtocolError):
        ask(transport, server.url)
    assert (asked, server.connections) == (2, 1)


def test_connection_of_an_answer_that_is_refused_is_closed_while_its_error_is_still_told(
    serve: Serve, transport: Transport
) -> None:
    closed = threading.Event()

    def answer(connection: socket.socket, _: int) -> None:
        read_request(connection)
        connection.sendall(UNCLEAR["packed"].replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        if connection.recv(1) == b"":
            closed.set()

    with pytest.raises(httpx2.RemoteProtocolError) as raised:
        ask(transport, serve(answer).url)
    assert closed.wait(PATIENCE_SECONDS)
    assert raised.value.__cause__ is not None, "which holds the frames, and what they hold"


DOUBTFUL = {
    "both framings": HEAD + b"Content-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"mine") + LAST,
    "chunks of HTTP/1.0": MINE.replace(b"HTTP/1.1", b"HTTP/1.0").replace(b"\r\n", b"\r\nConnection: keep-alive\r\n", 1),
    "a header that is none": counted(b"mine").replace(b"\r\n\r\n", b"\r\nno header\r\nA: b\r\n\r\n", 1),
}


@pytest.mark.parametrize("told", DOUBTFUL.values(), ids=DOUBTFUL)
def test_answer_that_may_be_misunderstood_is_the_last_of_its_connection(
    serve: Serve, transport: Transport, told: bytes
) -> None:
    server = serve(saying([told]))

    with contextlib.suppress(httpx2.TransportError):
        assert b"mine" in ask(transport, server.url)
    assert kept(transport) == 0


@pytest.mark.parametrize(
    "told",
    [
        MINE,
        counted(b"mine"),
        HEAD + b"Content-Length: 4\r\nContent-Length: 4\r\nTransfer-Encoding: identity\r\n\r\nmine",
    ],
)
def test_answer_that_is_clear_is_read_and_an_ordinary_ones_connection_kept(
    serve: Serve, transport: Transport, told: bytes
) -> None:
    assert ask(transport, serve(saying([told], [MINE])).url) == b"mine"
    assert kept(transport) == (told.count(b"Content-Length") < 2)


def test_framing_that_is_unclear_is_told_as_such() -> None:
    """http.client reads the first of two lengths, and no encoding that is not chunked alone."""
    with pytest.raises(BadFraming):
        heads.announced(200, [], ["1", "2"])
    assert issubclass(BadFraming, ValueError)
    assert not issubclass(http.client.HTTPException, ValueError)


# A proxy's answer to CONNECT


def through(serve: Serve, told: bytes, upstream: RawServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """Put a proxy before a server that answers CONNECT so; give the server's URL."""

    def tunnel(client: socket.socket, _: int) -> None:
        read_request(client)
        client.sendall(told)
        with socket.create_connection(("127.0.0.1", upstream.port)) as there, contextlib.suppress(OSError):
            request = read_request(client)
            if request:
                there.sendall(request)
                while data := there.recv(65_536):
                    client.sendall(data)

    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{serve(tunnel).port}")
    return upstream.url.replace("127.0.0.1", "model.test")


ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


def test_interim_answers_of_a_proxy_are_skipped(
    serve: Serve, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = through(serve, HINTS + b"HTTP/1.1 100 Continue\r\n\r\n" + ESTABLISHED, serve(saying([MINE])), monkeypatch)

    assert ask(transport, url) == b"mine"


@pytest.mark.parametrize(
    "told",
    [
        HINTS * (INTERIM_ANSWERS + 1) + ESTABLISHED,
        ESTABLISHED.replace(b"\r\n\r\n", b"\r\n" + b"A: b\r\n" * HEAD_BYTES + b"\r\n"),
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + ESTABLISHED,
        ESTABLISHED + STRANGER,
        ESTABLISHED + b"x",
    ],
    ids=["too many", "too long", "101", "an answer behind it", "a byte behind it"],
)
def test_proxy_that_says_too_much_is_a_broken_one(
    serve: Serve, transport: Transport, monkeypatch: pytest.MonkeyPatch, told: bytes
) -> None:
    upstream = serve(saying([MINE]))

    with pytest.raises(httpx2.TransportError):
        ask(transport, through(serve, told, upstream, monkeypatch))
    assert upstream.connections <= 1, "and nothing is tried again"
