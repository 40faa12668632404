"""Test that an answer is never another request's: bytes that nobody asked for, connections that rest.

`test_patched` runs this file again where gevent's loop reads the answers.
"""

from __future__ import annotations

import contextlib
import json
import random
import select
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from app.upstream import head as heads
from app.upstream import pool as pools
from app.upstream import transport as transports
from app.upstream.body import BODY
from app.upstream.call import Call, current_call
from app.upstream.pool import Pool
from app.upstream.transport import Transport
from tests.harness.certificates import Certificate, make_certificate
from tests.unit.conftest import Events
from tests.unit.fakes import PATIENCE_SECONDS
from tests.unit.rawserver import (
    CHUNKED,
    HEAD,
    HINTS,
    LAST,
    MINE,
    STRANGER,
    TIMED_OUT,
    RawServer,
    Serve,
    chunk,
    counted,
    read_request,
    saying,
)
from tests.unit.transports import ask, ask_new, behind, kept, wait_for_bytes

pytestmark = pytest.mark.usefixtures("no_proxies")


# Bytes that nobody asked for


BEHIND = {
    "a longer body than announced": counted(b"mine and more", length=4),
    "a body where none was announced": b"HTTP/1.1 204 No Content\r\n\r\nmine",
    "a body of length 0": counted(b"mine", length=0),
    "a second answer": MINE + STRANGER,
    "a counted answer and a second one": counted(b"mine") + STRANGER,
    "an interim answer": MINE + HINTS,
    "an empty line": MINE + b"\r\n",
    "one byte": counted(b"mine") + b"x",
}


@pytest.mark.parametrize("told", BEHIND.values(), ids=BEHIND)
@pytest.mark.parametrize("whole", [False, True])
def test_surplus_in_one_piece_with_an_answer_ends_its_connection_and_the_trust_in_its_origin(
    serve: Serve, transport: Transport, events: Events, told: bytes, whole: bool
) -> None:
    server = serve(saying([told], [STRANGER]))

    assert ask(transport, server.url, whole=whole) in (b"mine", b"")
    assert ask(transport, server.url, whole=whole) in (b"mine", b"")

    assert server.connections == 2
    assert kept(transport) == 0
    assert len(events.of("upstream_distrusted")) == 1, "told once"


@pytest.mark.parametrize("surplus", [STRANGER, HINTS, b"\r\n", b"x", TIMED_OUT[:8]])
def test_surplus_that_comes_between_two_requests_is_seen_before_the_second_is_sent(
    serve: Serve, transport: Transport, events: Events, surplus: bytes
) -> None:
    asked: Counter[int] = Counter()
    read = threading.Event()

    def answer(connection: socket.socket, number: int) -> None:
        while read_request(connection):
            asked[number] += 1
            for step in behind(surplus, read) if number == 1 else [MINE]:
                step(connection) if callable(step) else connection.sendall(step)

    server = serve(answer)
    assert ask(transport, server.url) == b"mine"
    assert kept(transport) == 1
    read.set()
    wait_for_bytes(transport)

    for _ in range(3):
        assert ask(transport, server.url) == b"mine"

    assert asked == {1: 1, 2: 1, 3: 1, 4: 1}, "nothing was asked of the first connection again, and none was kept"
    assert [line["seen"] for line in events.of("upstream_distrusted")] == ["idle"]


def test_urgent_bytes_hide_nothing_behind_them(serve: Serve, transport: Transport, events: Events) -> None:
    read = threading.Event()

    def hide(connection: socket.socket) -> None:
        connection.send(b"!", socket.MSG_OOB)
        connection.sendall(STRANGER)

    server = serve(saying([*behind(b"", read), hide, lambda it: it.recv(1)]))
    assert ask(transport, server.url) == b"mine"
    read.set()
    wait_for_bytes(transport)

    assert ask_new(transport, server) == b"mine"
    assert len(events.of("upstream_distrusted")) == 1


def test_surplus_of_an_idle_connection_is_seen_by_the_sweep_and_ends_all_that_are_kept(
    serve: Serve, transport: Transport, events: Events
) -> None:
    read, together = threading.Event(), threading.Barrier(2)

    def answer(connection: socket.socket, number: int) -> None:
        read_request(connection)
        together.wait(PATIENCE_SECONDS)
        connection.sendall(MINE)
        if number == 1:
            read.wait(PATIENCE_SECONDS)
            connection.sendall(STRANGER)
        connection.recv(1)

    server = serve(answer)
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(lambda _: ask(transport, server.url), range(2))) == [b"mine"] * 2
    assert kept(transport) == 2
    read.set()
    ((one, other),) = transport._pool._idle.values()
    poll = select.poll()
    for connection in (one, other):
        poll.register(connection.sock, select.POLLIN)
    assert poll.poll(PATIENCE_SECONDS * 1000)

    transport.sweep(time.monotonic() + 10)

    assert kept(transport) == 0
    assert one.sock is None
    assert other.sock is None
    assert [line["seen"] for line in events.of("upstream_distrusted")] == ["idle"]


def test_answer_that_is_none_on_a_kept_connection_ends_the_trust_too(
    serve: Serve, transport: Transport, events: Events
) -> None:
    """It may be the surplus of the one before, which came a moment after the request was sent."""

    def answer(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(MINE)
        if number == 1:
            read_request(connection)
            connection.sendall(b"half an answer\r\n" + STRANGER)

    server = serve(answer)

    assert [ask(transport, server.url) for _ in range(3)] == [b"mine"] * 3
    assert len(events.of("upstream_distrusted")) == 1
    assert kept(transport) == 0


@pytest.mark.parametrize("last", [b"", TIMED_OUT], ids=["closed", "timed out"])
def test_idle_connection_that_the_upstream_ends_costs_no_trust(
    serve: Serve, transport: Transport, events: Events, last: bytes
) -> None:
    """Some say 408 before they close it."""

    read = threading.Event()

    def answer(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(MINE)
        if number == 1:
            read.wait(PATIENCE_SECONDS)
            connection.sendall(last)
            return
        while read_request(connection):
            connection.sendall(MINE)

    server = serve(answer)
    assert ask(transport, server.url) == b"mine"
    read.set()
    wait_for_bytes(transport)

    assert [ask(transport, server.url) for _ in range(3)] == [b"mine"] * 3
    assert server.connections == 2
    assert events.of("upstream_distrusted") == []


def test_origin_that_is_not_trusted_costs_no_other_its_connections(
    serve: Serve, transport: Transport, events: Events
) -> None:
    odd, even = serve(saying([MINE + b"x"])), serve(saying([MINE], [MINE]))
    assert ask(transport, odd.url) == b"mine"

    assert [ask(transport, even.url) for _ in range(2)] == [b"mine"] * 2

    assert even.connections == 1


def test_kept_connection_that_fails_late_is_not_asked_again(
    serve: Serve, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transports, "STALE_SECONDS", 0.0)
    server = serve(saying([MINE], []))
    assert ask(transport, server.url) == b"mine"

    with pytest.raises(httpx2.TransportError):
        ask(transport, server.url)
    assert server.connections == 1


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"), "IP:127.0.0.1", "DNS:model.test")


@pytest.fixture
def trusting(certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> Iterator[Transport]:
    monkeypatch.setattr(Pool, "_rest_seconds", lambda *_: 0.0)
    context = ssl.create_default_context(cafile=certificate.public)
    context.post_handshake_auth = True  # so that a server can send something of TLS's own when it likes
    made = Transport(verify=context)
    yield made
    made.close()


def secured(certificate: Certificate) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.public, certificate.private)
    return context


def tls_url(server: RawServer) -> str:
    return server.url.replace("http:", "https:")


@pytest.mark.parametrize("later", [False, True], ids=["at once", "later"])
@pytest.mark.parametrize("surplus", [STRANGER, b"x", STRANGER * 2000], ids=["an answer", "a byte", "many"])
def test_surplus_over_tls_is_seen_in_its_buffer_and_in_the_kernels(
    serve: Serve, trusting: Transport, certificate: Certificate, events: Events, surplus: bytes, later: bool
) -> None:
    read = threading.Event()
    told = behind(surplus, read) if later else [MINE[:-1], MINE[-1:] + surplus]
    server = serve(saying([*told, lambda it: it.recv(1)], tls=secured(certificate)))
    assert ask(trusting, tls_url(server)) == b"mine"
    read.set()
    if later:
        wait_for_bytes(trusting)
        assert ask(trusting, tls_url(server)) == b"mine"
    else:
        assert ask(trusting, tls_url(server)) == b"mine"

    assert server.connections == 2
    assert kept(trusting) == 0
    assert [line["seen"] for line in events.of("upstream_distrusted")] == ["idle" if later else "surplus"]


def test_surplus_that_tls_has_decrypted_already_is_seen(
    serve: Serve, trusting: Transport, certificate: Certificate, events: Events
) -> None:
    """Head and body fill what is read of a record at once; the rest of the record lies in TLS's own buffer."""
    size = heads.READ_BYTES
    start = HEAD + b"Content-Length: %d\r\n\r\n"
    body = b"m" * (size - len(start % size))
    answer = start % len(body) + body
    assert len(answer) == size
    server = serve(saying([answer + STRANGER], [counted(b"next")], tls=secured(certificate)))

    assert ask(trusting, tls_url(server), whole=True) == body
    with contextlib.suppress(httpx2.TransportError):
        assert b"stranger" not in ask(trusting, tls_url(server), whole=True)
    assert server.connections == 2
    assert len(events.of("upstream_distrusted")) == 1


def test_half_a_record_of_tls_on_an_idle_connection_is_the_end_of_its_use(
    serve: Serve, trusting: Transport, certificate: Certificate
) -> None:
    """What it will be cannot be known; the other half would come as the next request's answer."""
    read = threading.Event()

    def answer(connection: socket.socket, number: int) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        secure = secured(certificate).wrap_bio(incoming, outgoing, server_side=True)

        def pump(step: Callable[[], Any]) -> Any:
            while True:
                try:
                    return step()
                except ssl.SSLWantReadError:
                    connection.sendall(outgoing.read())
                    received = connection.recv(65_536)
                    incoming.write(received) if received else incoming.write_eof()
                finally:
                    if outgoing.pending:
                        connection.sendall(outgoing.read())

        pump(secure.do_handshake)
        asked = b""
        while not asked.endswith(b"{}"):
            asked += pump(lambda: secure.read(65_536))
        pump(lambda: secure.write(MINE))
        if number == 1:
            read.wait(PATIENCE_SECONDS)
            secure.write(STRANGER)
            record = outgoing.read()
            connection.sendall(record[:40])
            if connection.recv(1):  # the next request
                connection.sendall(record[40:])
        connection.recv(1)

    server = serve(answer)
    assert ask(trusting, tls_url(server)) == b"mine"
    read.set()
    wait_for_bytes(trusting)

    trusting.sweep(time.monotonic() + 10)

    assert kept(trusting) == 0
    assert ask(trusting, tls_url(server)) == b"mine"


def test_what_tls_sends_for_itself_costs_the_connection_and_no_trust(
    serve: Serve, trusting: Transport, certificate: Certificate, events: Events
) -> None:
    sent = threading.Event()

    def serve_tls(connection: socket.socket, _: int) -> None:
        context = secured(certificate)
        context.verify_mode = ssl.CERT_OPTIONAL
        context.load_verify_locations(certificate.public)
        context.post_handshake_auth = True
        with context.wrap_socket(connection, server_side=True) as secure:
            read_request(secure)
            secure.sendall(MINE)
            if secure.version() == "TLSv1.3":
                secure.verify_client_post_handshake()
                with contextlib.suppress(ssl.SSLWantReadError):
                    secure.setblocking(False)
                    secure.do_handshake()  # asks; the answer comes with the next request
                secure.setblocking(True)
            sent.set()
            secure.recv(1)

    server = serve(serve_tls)
    assert ask(trusting, tls_url(server)) == b"mine"
    assert sent.wait(PATIENCE_SECONDS)
    wait_for_bytes(trusting)

    assert ask(trusting, tls_url(server)) == b"mine"

    assert server.connections == 2
    assert events.of("upstream_distrusted") == []


# Rest


@pytest.fixture
def resting() -> Iterator[Transport]:
    made = Transport(secure=False)
    yield made
    made.close()


def test_connection_rests_for_a_tenth_of_a_second_and_as_long_as_heads_take(resting: Transport) -> None:
    """So long may an answer be on its way that nobody waits for, because another one came in its place."""
    origin = ("http", "127.0.0.1", 1)
    assert resting._pool._rest_seconds(origin) == 0.1
    resting._pool.note_head(origin, 3.0)
    assert resting._pool._rest_seconds(origin) == 3.0
    for _ in range(50):
        resting._pool.note_head(origin, 0.2)
    assert 0.5 < resting._pool._rest_seconds(origin) < 2.0, "it fades"
    for _ in range(200):
        resting._pool.note_head(origin, 0.01)
    assert resting._pool._rest_seconds(origin) == 0.1
    assert resting._pool._rest_seconds(("http", "127.0.0.1", 2)) == 0.1


def test_stray_answer_does_not_shift_the_answers_of_all_who_come_later(
    serve: Serve, resting: Transport, events: Events
) -> None:
    """One user may get it; the next ones get their own, though that user's own answer is still on its way."""
    left = threading.Event()

    def answer(connection: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError):
            while request := read_request(connection):
                user = json.loads(request.partition(b"\r\n\r\n")[2])
                if user == 1:
                    connection.sendall(STRANGER)  # as if it had been sent behind user 0's answer, and come late
                    left.wait(PATIENCE_SECONDS)
                connection.sendall(CHUNKED + chunk(b"answer %d" % user) + LAST)

    server = serve(answer)
    resting._pool.note_head(("http", "127.0.0.1", server.port), 10.0)
    assert ask(resting, server.url, content=b"0") == b"answer 0"
    ((first,),) = resting._pool._idle.values()
    first.idle_since -= 20.0  # it has rested
    assert ask(resting, server.url, content=b"1") == b"a stranger's"

    first.idle_since -= 5.0  # which is long, but not as long as heads take here
    assert ask(resting, server.url, content=b"2") == b"answer 2"
    left.set()
    poll = select.poll()
    poll.register(first.sock, select.POLLIN)
    assert poll.poll(PATIENCE_SECONDS * 1000)
    for connection in resting._pool._idle[("http", "127.0.0.1", server.port)]:
        connection.idle_since = first.idle_since - 20.0
    resting.sweep(time.monotonic() + 10)

    assert ask(resting, server.url, content=b"3") == b"answer 3"
    assert len(events.of("upstream_distrusted")) == 1


def test_connection_rests_before_it_is_used_again(
    serve: Serve, resting: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(saying([MINE], [MINE], [MINE]))
    monkeypatch.setattr(pools, "REST_SECONDS", 10.0)
    assert [ask(resting, server.url) for _ in range(3)] == [b"mine"] * 3
    assert (server.connections, kept(resting)) == (3, 3)

    ((first, *_),) = resting._pool._idle.values()
    first.idle_since -= 10.0
    assert ask(resting, server.url) == b"mine"
    assert (server.connections, kept(resting)) == (3, 3)


def test_connection_used_last_of_those_that_have_rested_is_taken(
    serve: Serve, resting: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(saying([MINE], [MINE]))
    monkeypatch.setattr(pools, "REST_SECONDS", 10.0)
    for _ in range(4):
        ask(resting, server.url)
    ((*connections,),) = resting._pool._idle.values()
    for connection, seconds in zip(connections, (40.0, 30.0, 20.0, 0.0), strict=True):
        connection.idle_since -= seconds

    with contextlib.closing(resting._pool.take(("http", "127.0.0.1", server.port))) as taken:
        assert taken is connections[2]


@pytest.mark.parametrize("pause", [0.0, 0.001, 0.01, 0.03])
def test_users_beside_an_answer_with_another_behind_it_get_their_own(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, pause: float
) -> None:
    """Eight at a time, sixty in all, and the tenth answer has a stranger's behind it, in a piece of its own."""

    def answer(connection: socket.socket, _: int) -> None:
        while request := read_request(connection):
            number = json.loads(request.partition(b"\r\n\r\n")[2])
            connection.sendall(CHUNKED + chunk(b"answer %d" % number) + LAST)
            if number == 10:
                time.sleep(pause)
                connection.sendall(STRANGER)

    monkeypatch.setattr(pools, "REST_SECONDS", 30.0)  # longer than all of this, however busy the machine
    server = serve(answer)
    transport = Transport(secure=False)
    with contextlib.closing(transport), ThreadPoolExecutor(8) as threads:
        answers = threads.map(lambda number: ask(transport, server.url, content=b"%d" % number), range(60))

        assert list(answers) == [b"answer %d" % number for number in range(60)]


def test_answers_that_are_cancelled_leave_their_descriptors_to_nobody_else(serve: Serve, transport: Transport) -> None:
    """A descriptor that is free is the next connection's; an answer that still read from it would read another's."""
    stop = threading.Event()

    def answer(connection: socket.socket, _: int) -> None:
        while request := read_request(connection):
            number = json.loads(request.partition(b"\r\n\r\n")[2])
            connection.sendall(CHUNKED)
            for _ in range(20):
                connection.sendall(chunk(b"%d." % number))
                stop.wait(0.001)  # cancellations fall between the pieces
            connection.sendall(LAST)

    server = serve(answer)
    dice = random.Random(15)
    problems: list[str] = []

    def user(number: int) -> None:
        call = Call()
        pieces: list[bytes] = []
        leaves_at = dice.randrange(40)

        def take(data: bytes) -> bool:
            pieces.append(data)
            if len(pieces) == leaves_at:
                call.cancel()
            return True

        token = current_call.set(call)
        try:
            response = transport.handle_request(httpx2.Request("POST", server.url, content=b"%d" % number))
            body = response.extensions[BODY]
            try:
                body.receive(take)
            finally:
                body.close()
        except httpx2.TransportError:
            if not call.cancelled:
                problems.append(f"{number} broke off")
        finally:
            current_call.reset(token)
        said = b"".join(pieces)
        if said != b"%d." % number * said.count(b"."):
            problems.append(f"{number} got {said!r}")

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(user, range(200)))

    assert problems == []


# How long they are kept


def test_connections_beyond_those_of_every_day_are_closed_soon_after_a_burst_and_the_others_later() -> None:
    pool, burst = Pool(None), pools.HOT_CONNECTIONS + 4
    with socket.create_server(("127.0.0.1", 0)) as listening, contextlib.ExitStack() as theirs:
        origin = ("http", *listening.getsockname())
        for _ in range(burst):
            connection = pool.new(origin)
            connection.connect()
            theirs.enter_context(listening.accept()[0])
            pool.keep(origin, connection)
        now = time.monotonic()

        def left(seconds: float) -> int:
            pool.sweep(now + seconds)
            return len(pool._idle[origin])

        assert left(0.0) == burst
        assert left(pools.SURPLUS_SECONDS + 1.0) == pools.HOT_CONNECTIONS
        assert left(pools.IDLE_SECONDS - 1.0) == pools.HOT_CONNECTIONS
        assert left(pools.IDLE_SECONDS + pools.SWEEP_SECONDS) == 0
