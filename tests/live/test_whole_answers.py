"""Answers that end their connection do not look different when it breaks: streams and long waits, written in pieces."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import playwright
import pytest

from tests.harness.chaos import ChaosProxy, CleanCloseAfter
from tests.harness.http1 import Wire
from tests.harness.reader import KeptAlive, get, post, request
from tests.harness.server import ChatWait
from tests.harness.upstream import Close, Done, Finish, Gate, Script, ScriptedUpstream, Token, answer
from tests.live.rawhttp import HOST, raw
from tests.live.steps import about, begin, log_name, poll, settings
from tests.requirements import require_or_skip

HEALTH = raw("GET /health HTTP/1.1")
LONG = ['é"\\\n\u2028🙂' * 300] * 40
"""84,000 characters, 168 KB of UTF-8, more when escaped."""


def test_stream_says_nothing_of_an_end_and_its_connection_goes_on(
    chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    stream_id = post(f"{chatwait.base_url}/chat/wait", about(upstream, answer(["a", "b"]))).json["stream_id"]
    with KeptAlive(HOST, chatwait.port) as kept:
        for _ in range(2):
            kept.send(raw(f"GET /chat/streaming/{stream_id} HTTP/1.1"))
            reply = kept.read_reply()
            assert reply.headers.get_all("connection") == ["keep-alive"]
            assert reply.headers.get_all("transfer-encoding") == ["chunked"]
            assert b"event: done" in reply.body
        kept.send(HEALTH)
        assert kept.read_reply().json["status"] == "healthy"
        kept.send(raw(f"GET /chat/streaming/{stream_id} HTTP/1.1", "Connection: close"))
        assert b"event: done" in kept.read_reply().body
        assert kept.closed_by_server(), "who asks for it gets it"


def test_stream_in_http_1_0_ends_with_its_connection(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    stream_id = post(f"{chatwait.base_url}/chat/wait", about(upstream, answer(["a", "b"]))).json["stream_id"]
    with KeptAlive(HOST, chatwait.port) as kept:
        kept.send(raw(f"GET /chat/streaming/{stream_id} HTTP/1.0", "Connection: keep-alive"))
        reply = kept.read_reply()
        assert b"event: done" in reply.body
        assert "transfer-encoding" not in reply.headers
        assert kept.closed_by_server()


def test_answers_in_pieces_of_a_server_that_stops_end_their_connections_unannounced(
    shared_upstream: ScriptedUpstream, upstream: ScriptedUpstream
) -> None:
    script = Script(steps=[*map(Token, LONG), Gate("stopping"), Finish(), Done()])
    with ChatWait(**settings(shared_upstream)) as chatwait:
        stream_id = begin(chatwait.base_url, about(upstream, script))
        chatwait.signal(signal.SIGTERM)
        chatwait.wait_for_log("drain_started")
        with KeptAlive(HOST, chatwait.port) as stream, KeptAlive(HOST, chatwait.port) as wait:
            stream.send(raw(f"GET /chat/streaming/{stream_id} HTTP/1.1"))
            wait.send(raw(f"GET /chat/wait/{stream_id} HTTP/1.1"))
            poll(
                lambda: len(chatwait.log_of("reader_attached", stream=log_name(stream_id))) == 3,
                seconds=10,
                what="both",
            )
            upstream.open("stopping")
            for kept in (stream, wait):
                assert kept.read_reply().headers["connection"] == "keep-alive"
                assert kept.closed_by_server()


NODE = """
const [url, body] = process.argv.slice(1);
const init = body ? {method: "POST", body, headers: {"Content-Type": "application/json"}} : {};
fetch(url, init).then((response) => response.text())
    .then((text) => console.log("complete", text.length), (error) => console.log("cut", error.message));
"""


@pytest.mark.parametrize("mode", ["streaming", "wait"])
def test_cut_answer_is_a_cut_to_the_fetch_of_node(chatwait: ChatWait, upstream: ScriptedUpstream, mode: str) -> None:
    """Behind a `Connection: close` it takes a cut for the end, chunks or not."""
    node = shutil.which("node") or shutil.which("node", path=Path(playwright.__file__).parent / "driver")
    require_or_skip("Node (apt-get install nodejs)", node is not None)
    stream_id = post(f"{chatwait.base_url}/chat/wait", about(upstream, answer(LONG))).json["stream_id"]

    def fetch(base_url: str) -> str:
        url = f"{base_url}/chat/{mode}/{stream_id}"
        return subprocess.run(
            [str(node), "-e", NODE, url], capture_output=True, text=True, timeout=60, check=True
        ).stdout

    assert fetch(chatwait.base_url).startswith("complete")
    with ChaosProxy("127.0.0.1", chatwait.port, default=CleanCloseAfter(60_000)) as proxy:
        assert fetch(proxy.base_url).startswith("cut")


# Long waits


def wait_for(base_url: str, stream_id: str) -> dict[str, object]:
    reply = get(f"{base_url}/chat/wait/{stream_id}")
    assert reply.headers["content-type"] == "application/json"
    return dict(reply.json)


def test_long_wait_is_written_in_chunks_and_is_the_same_answer(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """First the one that waited, then those that come after."""
    first = post(f"{chatwait.base_url}/chat/wait", about(upstream, answer(LONG)))
    assert first.headers["transfer-encoding"] == "chunked"
    assert (first.json["content"], first.json["characters"]) == ("".join(LONG), len("".join(LONG)))
    again = wait_for(chatwait.base_url, first.json["stream_id"])
    assert {**again, "correlation_id": ""} == {**first.json, "correlation_id": ""}
    assert list(again) == list(first.json), "its fields in their order"
    head = request("HEAD", f"{chatwait.base_url}/chat/wait/{first.json['stream_id']}")
    assert (head.status, head.body) == (200, b"")


def test_long_part_of_an_answer_that_failed_is_written_in_chunks(
    chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    reply = post(f"{chatwait.base_url}/chat/wait", about(upstream, Script(steps=[*map(Token, LONG), Close()])))
    assert (reply.status, reply.headers["transfer-encoding"]) == (502, "chunked")
    assert reply.json["partial"] == {"content": "".join(LONG), "tokens": len(LONG)}
    assert reply.json["error_code"] == "upstream_error"


BIG = ["🙂" * 1000] * 900
"""3.6 MB of UTF-8, 10.8 MB when escaped."""
UNREAD = 30


@pytest.fixture(scope="module")
def narrow(shared_upstream: ScriptedUpstream) -> Iterator[ChatWait]:
    with ChatWait(**settings(shared_upstream, MAX_READERS=UNREAD)) as chatwait:
        yield chatwait


def test_waits_that_nobody_reads_take_no_copies_and_are_readers_to_their_last_byte(
    narrow: ChatWait, upstream: ScriptedUpstream
) -> None:
    body = about(upstream, answer(BIG))
    stream_id = post(f"{narrow.base_url}/chat/wait", body, timeout=60).json["stream_id"]
    url = f"{narrow.base_url}/chat/wait/{stream_id}"
    before = narrow.resources()["rss_bytes"]
    with ExitStack() as stack:
        wires = []
        for _ in range(UNREAD):
            wire = stack.enter_context(closing(Wire(HOST, narrow.port, timeout=60, deadline=120, rcvbuf=4096)))
            wire.send(raw(f"GET /chat/wait/{stream_id} HTTP/1.1", "Connection: close"))
            wires.append(wire)
        poll(lambda: request("GET", url).status == 503, seconds=20, what="as many readers as may be")
        grown = narrow.resources()["rss_bytes"] - before
        assert grown < 60 << 20, f"{UNREAD} unread answers take {grown >> 20} MiB"
        assert request("HEAD", url).status == 200
        short = post(f"{narrow.base_url}/chat/wait", about(upstream, answer(["a"])))
        assert short.status == 503, "who would read another is refused as well"
        reply = wires[0].read_reply("GET")
        assert json.loads(reply.body)["content"] == "".join(BIG)
        poll(lambda: get(url, timeout=60).status == 200, seconds=20, what="the place of the one that has read")
