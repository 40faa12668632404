"""Test how an answer's bytes are taken as they come (`Body.receive`), against real sockets, plain and with TLS.

`test_patched` runs this file again where gevent's loop is what takes them.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest

from app import errors
from app.upstream import body as bodies
from app.upstream.body import BODY, Body
from app.upstream.call import Call, current_call
from app.upstream.transport import Transport
from tests.harness.certificates import Certificate, make_certificate
from tests.unit.fakes import PATIENCE_SECONDS
from tests.unit.rawserver import (
    CHUNKED,
    HEAD,
    LAST,
    Serve,
    Step,
    chunk,
    read_request,
    reset,
    saying,
)
from tests.unit.transports import ask

pytestmark = pytest.mark.usefixtures("no_proxies", "no_rest")


SOON_SECONDS = 5.0
"""How long a test waits for what was sent a moment ago."""


class Reading:
    """Take one answer, in a thread of its own, and tell what came."""

    def __init__(self, transport: Transport, url: str, *, enough: Callable[[bytes], bool] | None = None) -> None:
        self.call = Call()
        self.pieces: list[bytes] = []
        self._enough = enough or (lambda _: False)
        token = current_call.set(self.call)
        try:
            self.response = transport.handle_request(httpx2.Request("POST", url, content=b"{}"))
        finally:
            current_call.reset(token)
        self.body: Body = self.response.extensions[BODY]

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, *_: object) -> None:
        self.body.close()

    @property
    def came(self) -> bytes:
        return b"".join(self.pieces)

    def take(self, data: bytes) -> bool:
        self.pieces.append(data)
        return not self._enough(self.came)

    def receive(self) -> bool:
        """Receive in another thread, so that what hangs fails the test."""
        with ThreadPoolExecutor(1) as threads:
            future = threads.submit(self.body.receive, self.take)
            try:
                return future.result(PATIENCE_SECONDS)
            except TimeoutError:
                self.call.cancel()
                raise

    def wait_for(self, data: bytes) -> None:
        until = time.monotonic() + SOON_SECONDS
        while self.came != data:
            assert time.monotonic() < until, f"{len(self.came)} bytes came, not {len(data)}"
            time.sleep(0.002)


# What comes


@pytest.mark.parametrize("together", [True, False])
def test_body_is_given_piece_by_piece_as_it_comes_and_its_end_is_told(
    serve: Serve, transport: Transport, together: bool
) -> None:
    steps = [threading.Event() for _ in range(3)]
    begin = CHUNKED + chunk(b"one ")
    server = serve(
        saying(
            [
                *([begin] if together else [CHUNKED, lambda _: steps[0].wait(PATIENCE_SECONDS), chunk(b"one ")]),
                lambda _: steps[1].wait(PATIENCE_SECONDS),
                chunk(b"two "),
                lambda _: steps[2].wait(PATIENCE_SECONDS),
                chunk(b"three") + LAST,
            ]
        )
    )
    with Reading(transport, server.url) as reading, ThreadPoolExecutor(1) as threads:
        receiving = threads.submit(reading.receive)
        for step, until in zip(steps, (b"one ", b"one two ", b"one two three"), strict=True):
            step.set()
            reading.wait_for(until)
        assert receiving.result(PATIENCE_SECONDS) is False


def test_bytes_of_which_nothing_is_the_bodys_are_told_of_all_the_same(serve: Serve, transport: Transport) -> None:
    """They are a sign of life."""
    go = threading.Event()
    server = serve(saying([CHUNKED, lambda _: go.wait(PATIENCE_SECONDS), b"5;a=b", lambda _: None]))
    with Reading(transport, server.url) as reading, ThreadPoolExecutor(1) as threads:
        receiving = threads.submit(reading.receive)
        go.set()
        with pytest.raises(httpx2.RemoteProtocolError):
            receiving.result(PATIENCE_SECONDS)
        assert reading.pieces == [b""]


@pytest.mark.parametrize("ends", [True, False])
def test_rest_of_the_heads_packet_is_given_before_anything_is_waited_for(
    serve: Serve, transport: Transport, ends: bool
) -> None:
    go = threading.Event()
    body = b"".join(b"%d " % number for number in range(1000))  # less than what http.client reads at once
    server = serve(saying([CHUNKED + chunk(body) + (LAST if ends else b""), lambda _: go.wait(PATIENCE_SECONDS), LAST]))
    with Reading(transport, server.url) as reading, ThreadPoolExecutor(1) as threads:
        receiving = threads.submit(reading.receive)
        reading.wait_for(body)
        if ends:
            assert receiving.result(PATIENCE_SECONDS) is False
        go.set()
        assert receiving.result(PATIENCE_SECONDS) is False


def test_body_larger_than_any_buffer_is_whole(serve: Serve, transport: Transport) -> None:
    body = b"".join(b"%07d\n" % number for number in range(100_000))
    pieces = [chunk(body[start : start + 9973]) for start in range(0, len(body), 9973)]
    server = serve(saying([CHUNKED + b"".join(pieces) + LAST]))

    with Reading(transport, server.url) as reading:
        assert reading.receive() is False
        assert reading.came == body


@pytest.mark.parametrize("end", [b"", LAST], ids=["more follows", "that was all"])
def test_take_that_says_no_is_given_nothing_more_until_it_is_asked_for(
    serve: Serve, transport: Transport, end: bytes
) -> None:
    go = threading.Event()
    server = serve(
        saying([CHUNKED, lambda _: go.wait(PATIENCE_SECONDS), chunk(b"a") + end, *([] if end else [chunk(b"b"), LAST])])
    )
    with Reading(transport, server.url, enough=lambda came: came == b"a") as reading:
        go.set()
        more = reading.receive()

        assert reading.came.startswith(b"a")
        if end:
            assert more is False
        elif reading.came == b"a":  # else the kernel gave both in one piece
            assert more is True
            assert reading.receive() is False
            assert reading.came == b"ab"


def test_take_that_says_no_to_what_came_with_the_head_goes_on_behind_it(serve: Serve, transport: Transport) -> None:
    go = threading.Event()
    server = serve(saying([CHUNKED + chunk(b"a"), lambda _: go.wait(PATIENCE_SECONDS), chunk(b"b") + LAST]))

    with Reading(transport, server.url, enough=lambda came: came == b"a") as reading:
        assert reading.receive() is True
        go.set()
        assert reading.receive() is False
        assert reading.came == b"ab"


# Its connection


@pytest.mark.parametrize("piecewise", [True, False])
def test_connection_of_a_body_taken_to_its_end_is_kept_and_waits_as_before(
    serve: Serve, transport: Transport, piecewise: bool
) -> None:
    answer = [CHUNKED, chunk(b"a"), chunk(b"b"), LAST] if piecewise else [CHUNKED + chunk(b"ab") + LAST]
    late = [lambda _: threading.Event().wait(0.05), *answer]  # the client waits for its head by then
    server = serve(saying(answer, late, answer))

    with Reading(transport, server.url) as first:
        assert first.receive() is False
    ((kept,),) = transport._pool._idle.values()
    assert kept.sock.gettimeout() is None
    second = Reading(transport, server.url)  # its head is waited for
    assert b"".join(second.body) == b"ab", "and read in the other way"
    second.body.close()
    with Reading(transport, server.url) as third:
        assert third.receive() is False

    assert (first.came, third.came, server.connections) == (b"ab", b"ab", 1)


def test_connection_of_a_body_not_taken_to_its_end_is_closed(serve: Serve, transport: Transport) -> None:
    closed = threading.Event()

    def watch(connection: socket.socket) -> None:
        assert connection.recv(1) == b""
        closed.set()

    server = serve(saying([CHUNKED + chunk(b"a"), watch]))
    with Reading(transport, server.url, enough=bool) as reading:
        assert reading.receive() is True

    assert closed.wait(PATIENCE_SECONDS)
    assert not any(transport._pool._idle.values())


def test_call_cancelled_while_its_answer_is_taken_ends_at_once(serve: Serve, transport: Transport) -> None:
    closed = threading.Event()

    def watch(connection: socket.socket) -> None:
        assert connection.recv(1) == b""
        closed.set()

    server = serve(saying([CHUNKED + chunk(b"a"), watch]))
    with Reading(transport, server.url) as reading, ThreadPoolExecutor(1) as threads:
        receiving = threads.submit(reading.receive)
        reading.wait_for(b"a")

        reading.call.cancel()

        with pytest.raises(httpx2.TransportError):
            receiving.result(PATIENCE_SECONDS)
    assert closed.wait(PATIENCE_SECONDS)
    assert not any(transport._pool._idle.values())


# What breaks


@pytest.mark.parametrize(
    "head",
    [
        HEAD + b"\r\n",
        HEAD.replace(b"1.1", b"1.0") + b"\r\n",
        HEAD + b"Connection: close\r\n\r\n",
        HEAD + b"Connection: close\r\nContent-Length: 8\r\n\r\n",
    ],
    ids=["no length", "HTTP/1.0", "close", "close, counted"],
)
@pytest.mark.parametrize("together", [True, False])
def test_body_that_ends_with_its_connection_is_taken_too(
    serve: Serve, transport: Transport, head: bytes, together: bool
) -> None:
    server = serve(saying([head + b"one two " if together else head, *([] if together else [b"one ", b"two "])]))

    with Reading(transport, server.url) as reading:
        assert reading.receive() is False
        assert reading.came == b"one two "
    assert not any(transport._pool._idle.values())


@pytest.mark.parametrize(
    ("steps", "kind"),
    [
        ([CHUNKED, chunk(b"a"), b"5\r\nab"], httpx2.RemoteProtocolError),
        ([CHUNKED, chunk(b"a")], httpx2.RemoteProtocolError),
        ([CHUNKED, chunk(b"a") + b"no size\r\n"], httpx2.RemoteProtocolError),
        ([CHUNKED + chunk(b"a") + b"no size\r\n"], httpx2.RemoteProtocolError),
        ([HEAD + b"Content-Length: 50\r\n\r\n", b"a"], httpx2.RemoteProtocolError),
        ([CHUNKED, "reset"], httpx2.ReadError),
        ([CHUNKED + chunk(b"a"), "reset"], httpx2.ReadError),
    ],
    ids=["in a chunk", "between chunks", "no chunk", "no chunk at once", "counted", "reset at once", "reset"],
)
def test_body_that_breaks_off_raises_after_what_came(
    serve: Serve, transport: Transport, steps: list[Any], kind: type[Exception]
) -> None:
    go = threading.Event()
    steps = [step for step in steps if step != "reset"] + (
        [lambda _: go.wait(PATIENCE_SECONDS), reset] if steps[-1] == "reset" else []
    )
    server = serve(saying(steps))

    with Reading(transport, server.url) as reading:
        go.set()
        with pytest.raises(kind) as raised:
            reading.receive()
        assert type(raised.value) is kind
        assert kind is httpx2.ReadError or reading.came in (b"a", b"aab", b"")
    assert not any(transport._pool._idle.values())


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("kind", [RuntimeError, errors.Overloaded, ValueError, AttributeError, OSError])
def test_what_take_raises_is_no_failure_of_the_connection(
    serve: Serve, transport: Transport, kind: type[Exception], at_once: bool
) -> None:
    server = serve(saying([CHUNKED + chunk(b"a")] if at_once else [CHUNKED, chunk(b"a"), lambda c: c.recv(1)]))

    def fail(_: bytes) -> bool:
        raise kind("words")

    with Reading(transport, server.url) as reading:
        reading.take = fail  # type: ignore[method-assign]
        with pytest.raises(kind) as raised:
            reading.receive()
        assert not isinstance(raised.value, httpx2.TransportError)


def test_body_of_an_error_that_is_all_framing_is_bounded_and_lets_others_run(
    serve: Serve, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = 0

    def crumbs(connection: socket.socket, _: int) -> None:
        nonlocal sent
        read_request(connection)
        connection.sendall(b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n")
        crumb = b"1;" + b"x" * 1000 + b"\r\na\r\n"
        while True:
            connection.sendall(crumb)
            sent += len(crumb)

    turns: list[float] = []
    monkeypatch.setattr(bodies, "time", SimpleNamespace(sleep=turns.append, monotonic=time.monotonic))
    assert len(ask(transport, serve(crumbs).url, whole=True)) <= bodies.ERROR_BODY_BYTES // 1000
    assert sent < 64 << 20
    assert turns
    assert set(turns) == {0}


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"), "IP:127.0.0.1")


class Secure:
    """Serve over TLS, and ask such servers."""

    def __init__(self, certificate: Certificate, serve: Serve) -> None:
        self.transport = Transport(verify=ssl.create_default_context(cafile=certificate.public))
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate.public, certificate.private)
        self._serve = serve

    def says(self, *answers: Sequence[Step]) -> str:
        return self._serve(saying(*answers, tls=self._context)).url.replace("http:", "https:")


@pytest.fixture
def secure(certificate: Certificate, serve: Serve) -> Iterator[Secure]:
    made = Secure(certificate, serve)
    yield made
    made.transport.close()


TOKEN = b'data: {"choices":[{"delta":{"content":"Hello"}}]}\n\n'


@pytest.mark.parametrize("with_head", [True, False])
@pytest.mark.parametrize("count", [1, 100, 280], ids=["one", "half a record", "a record"])
def test_record_that_holds_many_tokens_is_given_whole_without_another_one(
    secure: Secure, count: int, with_head: bool
) -> None:
    """What has been decrypted makes no socket readable."""
    go = threading.Event()
    body = chunk(TOKEN) * count
    assert len(CHUNKED + body) < 16_384, "the premise: one record"
    url = secure.says(
        [*([CHUNKED + body] if with_head else [CHUNKED, body]), lambda _: go.wait(PATIENCE_SECONDS), LAST]
    )
    with Reading(secure.transport, url) as reading, ThreadPoolExecutor(1) as threads:
        receiving = threads.submit(reading.receive)
        try:
            reading.wait_for(TOKEN * count)
        finally:
            go.set()
        assert receiving.result(PATIENCE_SECONDS) is False


def test_record_larger_than_what_is_asked_for_at_once_is_given_whole(
    secure: Secure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "RECEIVE_BYTES", 100)
    sent, go = threading.Event(), threading.Event()
    url = secure.says(
        [
            CHUNKED + chunk(b"a"),
            lambda _: sent.wait(PATIENCE_SECONDS),
            chunk(TOKEN) * 50,
            lambda _: go.wait(PATIENCE_SECONDS),
            LAST,
        ]
    )
    with Reading(secure.transport, url) as reading, ThreadPoolExecutor(1) as threads:
        receiving = threads.submit(reading.receive)
        reading.wait_for(b"a")
        sent.set()
        try:
            reading.wait_for(b"a" + TOKEN * 50)
        finally:
            go.set()
        assert receiving.result(PATIENCE_SECONDS) is False


def test_records_that_cut_tokens_and_characters_are_put_together_as_they_come(secure: Secure) -> None:
    body = ("ab😀é\n" * 60).encode()
    stream = chunk(body)
    pieces = [stream[start : start + 7] for start in range(0, len(stream), 7)]
    url = secure.says([CHUNKED, *pieces, LAST], [CHUNKED, *pieces, LAST])

    for _ in range(2):
        with Reading(secure.transport, url) as reading:
            assert reading.receive() is False
            assert reading.came == body
    ((kept,),) = secure.transport._pool._idle.values()
    assert kept.sock.gettimeout() is None


def test_record_cut_on_its_way_is_waited_for_and_given_when_it_is_whole(certificate: Certificate, serve: Serve) -> None:
    """The socket is readable then, and there is nothing to read yet."""
    made = Secure(certificate, serve)
    url = made.says([CHUNKED, chunk(TOKEN) * 3, LAST])
    port = int(url.split(":")[2].split("/")[0])

    def forward(client: socket.socket, _: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as there:

            def up() -> None:
                with contextlib.suppress(OSError):
                    while data := client.recv(65_536):
                        there.sendall(data)

            thread = threading.Thread(target=up, daemon=True)
            thread.start()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := there.recv(65_536):
                for start in range(0, len(data), 150):
                    client.sendall(data[start : start + 150])
                    threading.Event().wait(0.001)  # each piece comes by itself
            client.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE_SECONDS)

    cutting = serve(forward)
    with Reading(made.transport, cutting.url.replace("http:", "https:")) as reading:
        assert reading.receive() is False
        assert reading.came == TOKEN * 3
    made.transport.close()


def test_connection_over_tls_broken_off_is_an_error(secure: Secure) -> None:
    url = secure.says([CHUNKED, chunk(TOKEN), reset])

    with Reading(secure.transport, url) as reading, pytest.raises(httpx2.TransportError):
        reading.receive()


def test_call_over_tls_cancelled_while_its_answer_is_taken_ends_at_once(secure: Secure) -> None:
    def wait_for_the_end(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.recv(1)

    url = secure.says([CHUNKED + chunk(TOKEN), wait_for_the_end])
    with Reading(secure.transport, url) as reading, ThreadPoolExecutor(1) as threads:
        receiving = threads.submit(reading.receive)
        reading.wait_for(TOKEN)

        reading.call.cancel()

        with pytest.raises(httpx2.TransportError):
            receiving.result(PATIENCE_SECONDS)
