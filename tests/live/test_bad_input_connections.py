"""Connections that cost a client nothing: silent, slow, deaf, too many. Bounded, and at nobody's expense."""

from __future__ import annotations

import json
import select
import socket
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from tests.harness.reader import KeptAlive, get, post
from tests.harness.server import ChatWait
from tests.harness.upstream import Done, Finish, Gate, Script, ScriptedUpstream, Token
from tests.live.rawhttp import HOST, JSON, connect, raw, sized, statuses, talk
from tests.live.steps import about, poll, settings, together

HEALTH = raw("GET /health HTTP/1.1")
HEAD_SECONDS = 20
IDLE_SECONDS = 75
HALF_HEAD = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Half: "
HELLO = bytes.fromhex("16030100c8010000c40303") + b"\x5f" * 200


HALF_BODY = raw("POST /chat/wait HTTP/1.1", JSON, "Content-Length: 100", body=b"{")
SMALL = {"MAX_ACTIVE_STREAMS": 5, "MAX_READERS": 10}
SMALL_MOST = 10 + 1 + 5 + 200
"""How many connections such a service has room for: readers, a tenth more, generations, and 200."""


@pytest.fixture(scope="module")
def small(shared_upstream: ScriptedUpstream) -> Iterator[ChatWait]:
    with ChatWait(**settings(shared_upstream, **SMALL)) as chatwait:
        yield chatwait


@contextmanager
def many(port: int, number: int, data: bytes = b"") -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        socks = [stack.enter_context(connect(port)) for _ in range(number)]
        for sock in socks:
            sock.sendall(data)
        yield socks


def median_ms(chatwait: ChatWait) -> float:
    """Tell how long /health takes, on a kept connection."""
    times = []
    with KeptAlive(HOST, chatwait.port) as kept:
        for _ in range(100):
            begun = time.monotonic()
            assert kept.request("GET", "/health").status == 200
            times.append(time.monotonic() - begun)
    return statistics.median(times) * 1000


def test_hundreds_of_silent_connections_slow_nobody(chatwait: ChatWait, record_property: pytest.RecordProperty) -> None:
    """Bad input: connections that send nothing, or half a head."""
    before = chatwait.sockets()
    alone = min(median_ms(chatwait) for _ in range(3))
    with many(chatwait.port, 300), many(chatwait.port, 200, HALF_HEAD):
        poll(lambda: chatwait.sockets() > 500, seconds=10, what="500 connections")
        beside = min(median_ms(chatwait) for _ in range(3))
    poll(lambda: chatwait.sockets() <= before + 2, seconds=10, what="the descriptors back")
    record_property("health_ms", {"alone": round(alone, 2), "beside 500": round(beside, 2)})
    print(f"/health takes {alone:.2f} ms alone and {beside:.2f} ms beside 500 silent connections")
    assert beside < 3 * alone + 5


@pytest.mark.parametrize("data", [b"", HALF_HEAD, HALF_BODY, HEALTH], ids=["nothing", "a head", "a body", "idle"])
def test_connection_that_asks_nothing_makes_room_for_who_comes(small: ChatWait, data: bytes) -> None:
    """Bad input: more connections than the worker's limits need. Nobody waits in the backlog, unseen and unrefused."""
    with many(small.port, SMALL_MOST + 150, data) as socks:
        for _ in range(3):
            assert get(f"{small.base_url}/health").status == 200
        poll(
            lambda: small.sockets() <= SMALL_MOST + 1,
            seconds=10,
            what=lambda: f"the oldest to be shut: {small.sockets()} sockets are open",
        )
        until = time.monotonic() + 10
        while not has_ended(socks[0]):
            assert time.monotonic() < until, "the oldest is still there"
        assert not has_ended(socks[-1]), "not the youngest"


def has_ended(sock: socket.socket) -> bool:
    """Tell whether a connection has ended, past the answers that came on it."""
    sock.setblocking(False)
    try:
        while sock.recv(65_536):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True


def test_reader_keeps_its_place_among_too_many_connections(small: ChatWait, upstream: ScriptedUpstream) -> None:
    """Neither who reads nor who waits makes room; the connection that one of them asks on ends after its answer."""
    first, second = (
        about(upstream, Script(steps=[Token("a"), Gate(gate), Token("b"), Finish(), Done()])) for gate in ("one", "two")
    )
    with KeptAlive(HOST, small.port) as kept, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(post, f"{small.base_url}/chat/wait", second, timeout=30)
        body = json.dumps(first).encode()
        kept.send(sized("POST /chat/streaming HTTP/1.1", JSON, body=body))
        upstream.wait_reached("one")
        upstream.wait_reached("two")
        with many(small.port, SMALL_MOST + 50) as crowd:  # which stay for longer than this takes, however slow it is
            poll(lambda: has_ended(crowd[40]), seconds=10, what="the oldest to make room")
            upstream.open("one")
            reply = kept.read_reply()
            assert (b"event: done" in reply.body, reply.headers["connection"]) == (True, "keep-alive")
            assert kept.closed_by_server()
            upstream.open("two")
            assert waiting.result().json["content"] == "ab"


# Heads


def head(size: int) -> bytes:
    """Write a request whose head has about so many bytes, in fields of a good size."""
    return raw(
        "GET /health HTTP/1.1", "Connection: close", *(f"X-{number}: {'x' * 989}" for number in range(size // 1000))
    )


@pytest.mark.parametrize(("size", "status"), [(50_000, 200), (70_000, 431), (90_000, 431)])
def test_head_is_taken_up_to_its_bound(chatwait: ChatWait, size: int, status: int) -> None:
    """Bad input: 100 fields of 8 kB would be 800 kB, scanned again at every read."""
    assert statuses(talk(chatwait.port, head(size)))[:1] in ([status], [] if status == 431 else [status])
    assert get(f"{chatwait.base_url}/health").status == 200


def test_head_without_an_end_is_cut_off_at_its_bound(chatwait: ChatWait) -> None:
    """Bad input. It is not read on: the client cannot send much more than the bound and the kernel's buffers."""
    sent = 0
    with connect(chatwait.port) as sock, pytest.raises(ConnectionError):
        sock.sendall(HALF_HEAD)
        while sent < 100 << 20:
            sent += sock.send(b"x" * 65_536)
    assert sent < 50 << 20


def test_head_in_single_bytes_is_answered_and_so_are_the_next_ones(
    chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """Bad input: the good side. What bounded the head must bound neither its body nor what comes after."""
    body = b'{"message": "Hi"}'
    with KeptAlive(HOST, chatwait.port) as kept:
        for data in (HEALTH, sized("POST /chat/wait HTTP/1.1", JSON, body=body), HEALTH):
            for byte in data:
                kept.send(bytes([byte]))
            assert kept.read_reply().status == 200
    assert len(upstream.completions) == 1


def is_answered(sock: socket.socket) -> bool:
    received = b""
    while not received.endswith(b"}") and (piece := sock.recv(65_536)):
        received += piece
    return b"healthy" in received


def ended_after(socks: dict[str, socket.socket], drips: set[str], *, most: float) -> dict[str, float]:
    """Wait for the ends of connections, dripping a byte a second into some; tell after how many seconds each came."""
    begun = time.monotonic()
    ended: dict[str, float] = {}
    watch = select.poll()
    names = {sock.fileno(): name for name, sock in socks.items()}
    for name, sock in socks.items():
        watch.register(sock, select.POLLHUP if name == "deaf" else select.POLLIN)
    while len(ended) < len(socks):
        passed = time.monotonic() - begun
        assert passed < most, f"still open after {most} s: {set(socks) - set(ended)}"
        for number, _ in watch.poll(1000):
            ended[names[number]] = time.monotonic() - begun
            watch.unregister(number)
        for name in drips - set(ended):
            try:
                socks[name].send(b"x")  # its pace is the case
            except ConnectionError:
                pass  # it ends in this moment
        time.sleep(max(0.0, passed + 1 - (time.monotonic() - begun)))
    return ended


@pytest.mark.long
@pytest.mark.timeout(300)
def test_connection_that_never_finishes_a_request_is_ended(
    chatwait: ChatWait, record_property: pytest.RecordProperty
) -> None:
    """Bad input: slow heads end after 20 s, idle connections after 75 s, those that do not read after about 30 s."""
    sent = {
        "half a head": HALF_HEAD,
        "a slow head": HALF_HEAD,
        "a slow first line": b"GET /",
        "a TLS hello": HELLO,
        "a slow second head": HEALTH + HALF_HEAD,
        "nothing": b"",
        "idle": HEALTH,
        "deaf": raw("GET /docs HTTP/1.1") * 4000,
    }
    before = chatwait.sockets()
    with ExitStack() as stack:
        socks = {name: stack.enter_context(connect(chatwait.port)) for name in sent}
        for name, data in sent.items():
            socks[name].settimeout(1.0)
            try:
                socks[name].sendall(data)
            except TimeoutError:
                assert name == "deaf"  # it is not read on before its answers are
        for name in ("idle", "a slow second head"):
            assert is_answered(socks[name])
        late = stack.enter_context(connect(chatwait.port))
        late.sendall(HALF_HEAD)
        time.sleep(1.0)  # a slow head, but not too slow
        late.sendall(b"x\r\n\r\n")
        assert is_answered(late)
        drips = {"a slow head", "a slow first line", "a slow second head"}
        slow = {name: socks[name] for name in (*drips, "half a head", "a TLS hello")}
        ended = ended_after(slow, drips, most=60)
        late.sendall(HEALTH)  # after it was idle for longer than a head may take
        assert is_answered(late)
        passed = max(ended.values())
        rest = ended_after({name: socks[name] for name in ("nothing", "idle", "deaf")}, set(), most=120)
        ended |= {name: passed + seconds for name, seconds in rest.items()}
    record_property("ended_after_seconds", ended)
    print({name: round(seconds) for name, seconds in ended.items()})
    for name in ("half a head", "a slow head", "a slow first line", "a TLS hello", "a slow second head"):
        assert HEAD_SECONDS - 5 < ended[name] < HEAD_SECONDS + 20, name
    for name in ("nothing", "idle"):
        assert IDLE_SECONDS - 10 < ended[name] < IDLE_SECONDS + 25, name
    assert ended["deaf"] < 90
    poll(lambda: chatwait.sockets() <= before + 2, seconds=10, what="the descriptors back")


def test_requests_of_one_client_in_a_row_let_others_in_between(chatwait: ChatWait) -> None:
    """Bad input: pipelining. Hundreds of requests in one piece keep nobody waiting for all of them."""
    number = 800

    def flood() -> float:
        received = talk(chatwait.port, HEALTH * number, timeout=60.0)
        assert len(statuses(received)) == number
        return time.monotonic()

    def ask() -> list[float]:
        times = []
        for _ in range(5):
            assert get(f"{chatwait.base_url}/health", timeout=60.0).status == 200
            times.append(time.monotonic())
        return times

    flooded_at, asked_at = together(flood, ask)
    assert asked_at[0] < flooded_at
    assert asked_at[-1] < flooded_at
