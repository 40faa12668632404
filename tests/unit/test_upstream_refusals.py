"""Test that an error of the model's server is what its status says, whatever becomes of its body, over real sockets.

`test_patched` runs this file again where gevent's loop reads the answers.
"""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from app import errors
from app.dialects.native.answer import error_body
from app.generation.run import ATTEMPTS, Bounds, Generation
from app.streams.memory.store import MemoryStore
from app.upstream import body as bodies
from app.upstream import transport as transports
from app.upstream.call import Call
from app.upstream.client import OpenAIUpstream
from tests.unit.conftest import Events
from tests.unit.ends import terminal_of
from tests.unit.fakes import PATIENCE_SECONDS
from tests.unit.rawserver import (
    CHUNKED,
    HEAD,
    LAST,
    RawServer,
    Serve,
    Step,
    chunk,
    read_request,
    reset,
    saying,
)
from tests.unit.shared import ORIGIN
from tests.unit.transports import QUESTION, event

pytestmark = pytest.mark.usefixtures("no_proxies", "no_rest")

WORDS = json.dumps({"error": {"message": "raw words", "type": "x", "param": None, "code": "y"}}).encode()
DEEP = b'{"error":{"code":' + b"[" * 900 + b"]" * 900 + b"}}"
BOUNDS = Bounds(silence_seconds=30.0, generation_seconds=60.0, abandoned_seconds=60.0, answer_chars=1000)
NESTED = b'{"error":' * 900 + b"{}" + b"}" * 900


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.generation.run.BACKOFF_SECONDS", 0.0)
    monkeypatch.setattr(bodies, "ERROR_BODY_SECONDS", 0.3)


@pytest.fixture
def upstream_at() -> Iterator[Callable[[RawServer], OpenAIUpstream]]:
    made: list[OpenAIUpstream] = []

    def make(server: RawServer) -> OpenAIUpstream:
        made.append(OpenAIUpstream(base_url=server.url.removesuffix("/chat/completions"), api_key="k"))
        return made[-1]

    yield make
    for upstream in made:
        upstream.close()


UpstreamAt = Callable[[RawServer], OpenAIUpstream]


def refusal(status: int, *headers: str, body: bytes = WORDS, length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status} No", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def stall(connection: socket.socket) -> None:
    connection.recv(1)


# What it is


BODIES: dict[str, Callable[[int], list[Step]]] = {
    "whole": lambda status: [refusal(status)],
    "cut off": lambda status: [refusal(status, length=500)],
    "cut off in a chunk": lambda status: [b"HTTP/1.1 %d No\r\nTransfer-Encoding: chunked\r\n\r\n50\r\nraw" % status],
    "reset": lambda status: [refusal(status, length=500), reset],
    "silent": lambda status: [refusal(status, length=500), stall],
    "no words at all, and silent": lambda status: [refusal(status, body=b"", length=500), stall],
    "packed": lambda status: [refusal(status, "Content-Encoding: gzip", body=gzip.compress(WORDS))],
    "packed badly": lambda status: [refusal(status, "Content-Encoding: gzip")],
    "packed unknown": lambda status: [refusal(status, "Content-Encoding: whatever")],
    "packed without end": lambda status: [refusal(status, "Content-Encoding: deflate", body=zlib.compress(WORDS)[:-9])],
    "of another charset": lambda status: [refusal(status, "Content-Type: application/json; charset=base64")],
    "of no charset": lambda status: [refusal(status, "Content-Type: text/plain; charset=none-such")],
    "of a charset that unpacks": lambda status: [refusal(status, "Content-Type: text/plain; charset=zlib_codec")],
    "no text": lambda status: [refusal(status, body=bytes(range(128, 256)))],
    "nested": lambda status: [refusal(status, body=NESTED)],
    "a code that is nested": lambda status: [refusal(status, body=DEEP)],
    "a number without end": lambda status: [refusal(status, body=b'{"error":{"code":' + b"9" * 5000 + b"}}")],
    "of two lengths": lambda status: [refusal(status, "Content-Length: 7")],
    "packed for the way": lambda status: [
        b"HTTP/1.1 %d No\r\nTransfer-Encoding: gzip, chunked\r\n\r\n" % status + chunk(b"x") + LAST
    ],
}
KINDS: dict[int, type[errors.UpstreamError]] = {
    401: errors.UpstreamAuthFailed,
    400: errors.UpstreamError,
    429: errors.UpstreamRateLimited,
    503: errors.UpstreamUnavailable,
}


@pytest.mark.parametrize("body", BODIES)
def test_error_is_what_its_status_says_whatever_its_body_is(serve: Serve, upstream_at: UpstreamAt, body: str) -> None:
    """All of them at a time, because a silent one is waited for."""
    upstreams = [upstream_at(serve(saying(BODIES[body](status)))) for status in KINDS]

    def ask(upstream: OpenAIUpstream) -> errors.UpstreamError:
        with pytest.raises(errors.UpstreamError) as raised:
            upstream.ask(QUESTION, Call())
        return raised.value

    with ThreadPoolExecutor(len(upstreams)) as threads:
        told = list(threads.map(ask, upstreams))

    assert [type(error) for error in told] == [*KINDS.values()]
    assert "raw words" not in json.dumps([error_body(error.failure, "c") for error in told])


def test_words_of_an_error_are_read_where_they_can_be(serve: Serve, upstream_at: UpstreamAt) -> None:
    words = b'{"error":{"message":"raw words","code":"context_length_exceeded"}}'
    for headers in (["Content-Type: application/json; charset=base64"], ["Content-Encoding: identity"], []):
        with pytest.raises(errors.PromptRefusedAsTooLong):
            upstream_at(serve(saying([refusal(400, *headers, body=words)]))).ask(QUESTION, Call())


@pytest.mark.parametrize("status", [200, 500])
def test_packed_answer_is_never_unpacked(serve: Serve, upstream_at: UpstreamAt, status: int) -> None:
    """64 KB that would be 64 MiB."""
    headers = ("Content-Type: text/event-stream", "Content-Encoding: gzip")
    bomb = gzip.compress(bytes(64 << 20))
    upstream = upstream_at(serve(saying([refusal(status, *headers, body=bomb)])))
    tracemalloc.start()
    try:
        with pytest.raises(errors.UpstreamError):
            upstream.ask(QUESTION, Call())
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "br", "identity, gzip", "deflate", "zstd", "of my own"])
def test_success_that_is_packed_is_refused_at_its_head_and_says_why(
    serve: Serve, upstream_at: UpstreamAt, coding: str
) -> None:
    closed = threading.Event()

    def watch(connection: socket.socket) -> None:
        if connection.recv(1) == b"":
            closed.set()

    head = CHUNKED.replace(b"\r\n", b"\r\nContent-Encoding: %b\r\n" % coding.encode(), 1)
    upstream = upstream_at(serve(saying([head, watch])))

    with pytest.raises(errors.UpstreamError) as raised:
        upstream.ask(QUESTION, Call())

    assert "compressed" in raised.value.detail
    assert "switch compression off" in raised.value.detail
    assert coding not in raised.value.detail
    assert closed.wait(PATIENCE_SECONDS), "before its body"


@pytest.mark.parametrize("coding", ["identity", "Identity", ""])
def test_success_that_says_that_it_is_not_packed_is_read(serve: Serve, upstream_at: UpstreamAt, coding: str) -> None:
    head = HEAD + b"Content-Encoding: %b\r\n\r\n" % coding.encode()
    answer = upstream_at(serve(saying([head + event("Hi")]))).ask(QUESTION, Call())
    texts: list[str] = []

    assert not answer.receive(lambda parts: texts.extend(part.text for part in parts) or True)
    answer.close()
    assert texts == ["Hi"]


def test_success_that_is_packed_for_the_way_says_why_it_is_refused(serve: Serve, upstream_at: UpstreamAt) -> None:
    head = HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n"

    with pytest.raises(errors.UpstreamError, match="not chunked alone"):
        upstream_at(serve(saying([head]))).ask(QUESTION, Call())


# How often it is asked


class Dying:
    """Answer one request, and reset the connections of all that follow once they have been read."""

    def __init__(self, *, seconds: float) -> None:
        self.asked = 0
        self._seconds = seconds

    def __call__(self, connection: socket.socket, _: int) -> None:
        while read_request(connection):
            self.asked += 1
            if self.asked > 1:
                time.sleep(self._seconds)
                reset(connection)
                return
            connection.sendall(CHUNKED + chunk(b"data: [DONE]\n\n") + LAST)


@pytest.mark.parametrize(
    ("stale_seconds", "seconds", "told"), [(60.0, 0.0, [2]), (0.2, 0.3, [1, 2])], ids=["at once", "late"]
)
def test_upstream_that_resets_what_it_has_read_is_asked_three_times_and_each_is_told_but_one_that_may_be_stale(
    serve: Serve,
    upstream_at: UpstreamAt,
    monkeypatch: pytest.MonkeyPatch,
    events: Events,
    stale_seconds: float,
    seconds: float,
    told: list[int],
) -> None:
    """A kept connection that fails at once may have been closed already, and is tried anew without a word."""
    monkeypatch.setattr(transports, "STALE_SECONDS", stale_seconds)
    dying = Dying(seconds=seconds)
    upstream = upstream_at(serve(dying))
    answer = upstream.ask(QUESTION, Call())
    assert not answer.receive(lambda _: True)
    answer.close()
    store = MemoryStore(max_active=10, budget_bytes=10_000_000, retention_seconds=60)
    log, _ = store.create(ORIGIN)

    Generation(log, QUESTION, upstream=upstream, bounds=BOUNDS).run()

    assert log.end is not None
    assert terminal_of(log).content["error"]["error_code"] == "upstream_unavailable"
    assert dying.asked == 1 + ATTEMPTS
    assert [line["attempt"] for line in events.of("upstream_retry")] == told
