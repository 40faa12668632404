"""Bodies that are too large, too slow or too many are refused at once, in words, and at nobody's expense."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.harness.http1 import Wire
from tests.harness.reader import KeptAlive, Reply, post
from tests.harness.server import ChatWait
from tests.harness.upstream import Script, ScriptedUpstream, Stall
from tests.live.bad_input import GOOD, WAIT
from tests.live.rawhttp import CHUNKED, HOST, JSON, assert_refused, chunks, connect, is_read, raw
from tests.live.steps import about, live, poll, settings

AT_ONCE_SECONDS = 10
"""Far below the half minute that a body may take, on any machine."""

LARGE = {
    "a length": raw(WAIT, JSON, "Content-Length: 1048577", body=b"{"),
    "a length of gigabytes": raw(WAIT, JSON, "Content-Length: 99999999999", body=b"{"),
    "a length, and a question before": raw(WAIT, JSON, "Content-Length: 1048577", "Expect: 100-continue"),
    "a chunk": raw(WAIT, JSON, CHUNKED, body=b"100001\r\n{"),
    "a chunk of gigabytes": raw(WAIT, JSON, CHUNKED, body=b"ffffffff\r\n{"),
    "chunks in sum": raw(WAIT, JSON, CHUNKED, body=(b"80000\r\n" + b" " * 0x80000 + b"\r\n") * 2 + b"1\r\n"),
}


@pytest.mark.parametrize("name", LARGE)
def test_body_that_says_it_is_too_large_is_413_at_once_though_it_never_comes(chatwait: ChatWait, name: str) -> None:
    begun = time.monotonic()
    with KeptAlive(HOST, chatwait.port, timeout=60) as kept:
        kept.send(LARGE[name])
        reply = kept.read_reply("POST")
        if reply.status == 100:
            reply = kept.read_reply("POST")
        assert_refused(reply, 413, "body_too_large")
        assert time.monotonic() - begun < AT_ONCE_SECONDS
        assert kept.closed_by_server()


def test_chunks_without_end_are_413_at_once(chatwait: ChatWait) -> None:
    """The client goes on sending, and reads its answer all the same."""
    begun = time.monotonic()
    with connect(chatwait.port, timeout=60) as sock:
        sock.sendall(raw(WAIT, JSON, CHUNKED))
        sock.setblocking(False)
        received = b""
        piece = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
        while b"body_too_large" not in received:
            assert time.monotonic() - begun < AT_ONCE_SECONDS
            try:
                sock.send(piece * 8)  # what is left of a piece makes a malformed chunk, by then it is too late
            except BlockingIOError:
                pass
            try:
                received += sock.recv(65_536)
            except BlockingIOError:
                time.sleep(0.001)
        assert received.startswith(b"HTTP/1.1 413 ")


def test_body_under_another_coding_than_chunks_is_refused(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """It would be read as if it were in chunks alone, here and not at every proxy."""
    for coding in ("gzip, chunked", "deflate,chunked", "identity, chunked"):
        with KeptAlive(HOST, chatwait.port) as kept:
            kept.send(raw(WAIT, JSON, f"Transfer-Encoding: {coding}", body=chunks(GOOD)))
            reply = assert_refused(kept.read_reply("POST"), 400, "invalid_json")
            assert "Transfer-Encoding" in reply.json["detail"]
            assert kept.closed_by_server()
    with KeptAlive(HOST, chatwait.port) as kept:
        kept.send(raw(WAIT, JSON, "Transfer-Encoding:  Chunked ", body=chunks(GOOD)))
        assert kept.read_reply("POST").status == 200
    assert len(upstream.completions) == 1


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"xyz\r\n", "a chunk's size is not a hexadecimal number"),
        (b"2\r\n{}xx", "a chunk has the wrong length"),
        (b"2\r\n{}\r\n0\r\nno trailer\r\n\r\n", "its trailers are malformed"),
    ],
)
def test_reason_why_a_body_cannot_be_read_is_told_and_logged(chatwait: ChatWait, body: bytes, why: str) -> None:
    with KeptAlive(HOST, chatwait.port) as kept:
        kept.send(raw(WAIT, JSON, CHUNKED, body=body))
        reply = assert_refused(kept.read_reply("POST"), 400, "invalid_json")
    assert why in reply.json["detail"]
    line = chatwait.wait_for_log("error_occurred", correlation_id=reply.json["correlation_id"])
    assert why in line["detail"]


# All of them together

MOST = 400_000
ROOM = 1_048_576
"""A quarter of STREAM_MEMORY_MB=4."""


@pytest.fixture(scope="module")
def small(shared_upstream: ScriptedUpstream) -> Iterator[ChatWait]:
    limits = {"STREAM_MEMORY_MB": 4, "MAX_BODY_BYTES": MOST, "OPENAI_MAX_BODY_BYTES": MOST, "MAX_ACTIVE_STREAMS": 3}
    with ChatWait(**settings(shared_upstream, **limits)) as chatwait:
        yield chatwait


@contextmanager
def unfinished(chatwait: ChatWait, *sizes: int) -> Iterator[list[socket.socket]]:
    """Hold bodies of MOST bytes of which the service has read so many; on leaving, it has seen them leave."""
    before = chatwait.sockets()
    with ExitStack() as stack:
        socks = [stack.enter_context(connect(chatwait.port)) for _ in sizes]
        for sock, size in zip(socks, sizes, strict=True):
            sock.sendall(raw(WAIT, JSON, f"Content-Length: {MOST}", body=b" " * size))
        poll(lambda: is_read(chatwait.port, socks), seconds=10, what="what was sent to be read")
        yield socks
    poll(lambda: chatwait.sockets() <= before + 2, seconds=10, what="the connections to be gone")


def ask(chatwait: ChatWait, size: int) -> Reply:
    return post(
        f"{chatwait.base_url}/chat/wait",
        data=GOOD + b" " * (size - len(GOOD)),
        headers={"Content-Type": "application/json"},
    )


def is_full_beside(small: ChatWait, size: int, *sizes: int) -> bool:
    """Tell whether a body of this size is refused while others are on their way; False also where the machine was so
    slow that these passed for stalled."""
    with unfinished(small, *sizes):
        reply = ask(small, size)
        if reply.status == 200:
            return False
        assert_refused(reply, 503, "overloaded")
        assert int(reply.headers["retry-after"]) >= 1
        return ask(small, ROOM - 2 * MOST - 20_000).status == 200  # what still fits is taken


def test_bodies_are_refused_while_others_on_their_way_hold_a_quarter_of_the_memory(small: ChatWait) -> None:
    poll(lambda: is_full_beside(small, MOST, MOST - 1, MOST - 1), seconds=10, what="two bodies to fill the room")
    poll(lambda: ask(small, MOST).status == 200, seconds=10, what="the room of those that left")


def test_bytes_count_before_they_make_a_piece(small: ChatWait) -> None:
    """Else thousands of connections could hold 16 KiB each beside all that is counted."""

    def is_full() -> bool:
        with unfinished(small, *[16_000] * 80):
            return ask(small, MOST).status == 503

    poll(is_full, seconds=5, what="many small parts to fill the room")


def test_bodies_that_have_stalled_make_room_for_who_comes(small: ChatWait) -> None:
    with unfinished(small, MOST - 1, MOST - 1) as socks:
        poll(lambda: ask(small, MOST).status == 200, seconds=10, what="room for who comes")
        ended, _, _ = select.select(socks, [], [], 10)
        assert len(ended) == 1, "one of them was enough"
        told = b""
        while piece := ended[0].recv(65_536):
            told += piece
    assert told.startswith(b"HTTP/1.1 408 "), told
    error = json.loads(told.partition(b"\r\n\r\n")[2])
    assert (error["error_code"], error["retryable"]) == ("request_timeout", True)
    assert "other requests needed" in error["detail"]


def test_ordinary_question_needs_nobodys_room(small: ChatWait) -> None:
    """Nor does anybody lose his for it."""

    def is_answered_at_once() -> bool:
        with unfinished(small, MOST - 1, MOST - 1, ROOM - 2 * MOST) as socks:
            if ask(small, 100_000).status == 200:  # so slow a machine that they passed for stalled
                return False
            for size in (60, 30_000, 60_000):
                assert ask(small, size).status == 200
            for sock in socks:
                sock.setblocking(False)
                with pytest.raises(BlockingIOError):
                    sock.recv(1)
            return True

    poll(is_answered_at_once, seconds=10, what="a room that is full")


def test_bodies_that_are_only_announced_hold_nothing(small: ChatWait) -> None:
    with unfinished(small, *[0] * 60):
        assert ask(small, MOST).status == 200


def test_request_that_is_not_admitted_is_refused_before_its_body_is_there(
    small: ChatWait, upstream: ScriptedUpstream
) -> None:
    """Nor is it parsed and counted: that would be a megabyte's work for nothing."""

    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(live(small.base_url, about(upstream, Script(steps=[Stall()]))))
        begun = time.monotonic()
        wire = Wire(HOST, small.port, timeout=60)
        wire.send(raw(WAIT, JSON, f"Content-Length: {MOST}", body=b"{"))
        assert_refused(wire.read_reply("POST"), 503, "overloaded")
        assert time.monotonic() - begun < AT_ONCE_SECONDS
        wire.close()
        assert_refused(
            post(f"{small.base_url}/chat/wait", data=b"no JSON", headers={"Content-Type": "application/json"}),
            503,
            "overloaded",
        )
