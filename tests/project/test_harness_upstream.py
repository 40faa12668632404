"""Test the scripted upstream: what it sends, when, and what it knows of its peer."""

import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.harness.certificates import make_certificate
from tests.harness.reader import Connection, Dropped, KeptAlive, get, open_stream, post
from tests.harness.upstream import (
    Close,
    Delta,
    Done,
    EndBody,
    Event,
    Finish,
    Gate,
    Paced,
    Pause,
    Raw,
    Reset,
    Script,
    ScriptedUpstream,
    Stall,
    Step,
    Token,
    TruncatedChunk,
    Usage,
    answer,
    error,
)

ASKED = {"model": "m", "messages": [], "stream": True}


@pytest.fixture
def upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as server:
        yield server


def ask(upstream: ScriptedUpstream) -> Connection:
    return open_stream(f"{upstream.base_url}/chat/completions", json=ASKED)


def ask_whole(upstream: ScriptedUpstream) -> bytes:
    with ask(upstream) as connection:
        return connection.body()


def steps(*items: Step) -> Script:
    return Script(steps=items)


def data_of(body: bytes) -> list[Any]:
    blocks = body.decode().split("\n\n")[:-1]
    return [block if block == "data: [DONE]" else json.loads(block.removeprefix("data: ")) for block in blocks]


def text_of(body: bytes) -> str:
    chunks = [chunk for chunk in data_of(body) if isinstance(chunk, dict) and chunk["choices"]]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


@pytest.mark.requirement("tasks T010")
def test_upstream_by_default_streams_hello_as_openai_would(upstream: ScriptedUpstream) -> None:
    with ask(upstream) as connection:
        chunks = data_of(connection.body())

    assert connection.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["delta"]["content"] for chunk in chunks[1:5]] == ["Hello", ",", " world", "."]
    assert chunks[5]["choices"][0]["finish_reason"] == "stop"
    assert chunks[6] == "data: [DONE]"
    assert {chunk["model"] for chunk in chunks[:6]} == {"m"}


def test_upstream_notes_the_request_and_its_tokens(upstream: ScriptedUpstream) -> None:
    ask_whole(upstream)
    (record,) = upstream.wait_for_requests(1)

    assert (record.number, record.method, record.path) == (1, "POST", "/v1/chat/completions")
    assert record.json == ASKED
    assert record.headers["accept"] == "text/event-stream"
    assert [text for text, _ in record.tokens] == ["Hello", ",", " world", "."]
    assert record.answered_at is not None
    assert record.at <= record.answered_at <= record.wait_finished()


def test_upstream_plays_each_kind_of_step(upstream: ScriptedUpstream) -> None:
    sent: list[Step] = [
        Token("a"),
        Token("\ud83d"),
        Token("\u2028"),
        Delta({"reasoning_content": "r"}),
        Event({"error": "e"}),
        Event("plain"),
        Raw(b""),
        Raw(b": c\r\n"),
        Pause(0.001),
        Paced(["x", "y"], 0.001),
        Finish("length"),
        Usage({"total_tokens": 1}),
        Done(),
    ]
    upstream.always(Script(steps=sent, headers={"X-RateLimit-Remaining-Requests": "9"}))

    with ask(upstream) as connection:
        body = connection.body()

    assert connection.headers["x-ratelimit-remaining-requests"] == "9"
    assert b'{"content":"a"}' in body
    assert b'{"content":"\\ud83d"}' in body
    assert '{"content":"\u2028"}'.encode() in body
    assert b'"delta":{"reasoning_content":"r"}' in body
    assert b'data: {"error":"e"}\n\ndata: plain\n\n: c\r\n' in body
    assert b'"finish_reason":"length"' in body
    assert body.index(b'"content":"x"') < body.index(b'"content":"y"') < body.index(b'"choices":[],"usage"')
    assert body.endswith(b"data: [DONE]\n\n")


def test_upstream_prefers_the_queue_then_the_rules_then_the_default(upstream: ScriptedUpstream) -> None:
    upstream.always(answer(["default"]))
    upstream.when(lambda asked: asked["model"] == "m", answer(["rule"]))
    upstream.then(answer(["first"]), answer(["second"], usage={"total_tokens": 3}))

    url = f"{upstream.base_url}/chat/completions"
    texts = [text_of(post(url, {**ASKED, "model": model}).body) for model in "mmmx"]

    assert texts == ["first", "second", "rule", "default"]


def test_upstream_refuses_with_an_openai_error(upstream: ScriptedUpstream) -> None:
    upstream.then(error(429, "Slow down.", "rate_limit_exceeded", {"Retry-After": "7"}))

    reply = post(f"{upstream.base_url}/chat/completions", ASKED)

    assert (reply.status, reply.headers["retry-after"]) == (429, "7")
    assert reply.json["error"] == {
        "message": "Slow down.",
        "type": "invalid_request_error",
        "param": None,
        "code": "rate_limit_exceeded",
    }


def test_upstream_lists_models_and_counts_completions_apart(upstream: ScriptedUpstream) -> None:
    assert get(f"{upstream.base_url}/models").json["data"][0]["id"] == "scripted"
    assert get(f"{upstream.base_url}/nothing").status == 404
    assert (len(upstream.requests), len(upstream.completions)) == (2, 0)


def test_upstream_reads_a_chunked_request(upstream: ScriptedUpstream) -> None:
    with KeptAlive("127.0.0.1", upstream.port) as connection:
        connection.send(b"POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        connection.send(b'5\r\n{"mod\r\n6\r\nel":1}\r\n0\r\n\r\n')
        assert connection.read_reply("POST").status == 200

    assert upstream.requests[0].json == {"model": 1}


def test_upstream_waits_at_a_gate_until_it_is_opened(upstream: ScriptedUpstream) -> None:
    upstream.always(Script(before=[Gate("head")], steps=[Token("a"), Gate("middle"), Token("b"), Done()]))
    with ThreadPoolExecutor() as pool:
        reading = pool.submit(ask_whole, upstream)
        upstream.wait_reached("head")
        (record,) = upstream.requests
        assert record.answered_at is None

        upstream.open("head")
        upstream.wait_reached("middle")
        assert [text for text, _ in record.tokens] == ["a"]

        upstream.open("middle")
        assert text_of(reading.result(5)) == "ab"


def test_upstream_awaited_in_vain_says_what_it_has(upstream: ScriptedUpstream) -> None:
    with pytest.raises(TimeoutError, match="1 requests for a completion; 0 requests, 0 connections"):
        upstream.wait_for_requests(1, timeout=0.01)
    with pytest.raises(TimeoutError, match="gate 'g', 0 came"):
        upstream.wait_reached("g", timeout=0.01)


def test_those_who_wait_for_tokens_are_woken_by_theirs(upstream: ScriptedUpstream) -> None:
    upstream.always(steps(Token("a"), Token("b"), Gate("on"), Token("c"), Finish(), Done()))
    with ask(upstream), ThreadPoolExecutor(4) as pool:
        (record,) = upstream.wait_for_requests(1)
        late, early, last = (pool.submit(record.wait_tokens, count, timeout=30) for count in (3, 1, 3))
        early.result()
        record.wait_tokens(2)
        with pytest.raises(TimeoutError, match="3 tokens; request 1 has 2 tokens out"):
            record.wait_tokens(3, timeout=0.01)
        assert not late.done()
        assert not last.done()
        upstream.open("on")
        late.result()
        last.result()


@pytest.mark.parametrize("waiting", [Stall(), Gate("never"), Pause(60), Token("late", pause=60), Paced("abc", 60)])
@pytest.mark.parametrize("hard", [False, True])
def test_upstream_notices_a_peer_that_leaves_while_it_waits(
    upstream: ScriptedUpstream, waiting: Step, hard: bool
) -> None:
    upstream.always(steps(Token("a"), waiting))
    connection = ask(upstream)
    (record,) = upstream.wait_for_requests(1)
    record.wait_tokens(1)
    assert record.peer_closed_at is None

    left_at = time.monotonic()
    connection.reset() if hard else connection.close()

    assert record.wait_closed(5) >= left_at
    assert record.finished_at is None
    upstream.wait_until(lambda: upstream.connections_open == 0)


def test_upstream_that_stalls_before_the_head_notices_the_peer_too(upstream: ScriptedUpstream) -> None:
    upstream.always(Script(before=[Stall()]))
    with pytest.raises(TimeoutError):
        open_stream(f"{upstream.base_url}/chat/completions", json=ASKED, timeout=0.05)

    upstream.wait_for_requests(1)[0].wait_closed(5)


@pytest.mark.parametrize(("last", "by_reset"), [(Close(), False), (Reset(), True), (TruncatedChunk(b"data: {"), False)])
def test_upstream_that_breaks_off_delivers_what_came_before(
    upstream: ScriptedUpstream, last: Step, by_reset: bool
) -> None:
    upstream.always(steps(Raw(b"x" * 100_000), last))
    got = bytearray()

    with ask(upstream) as connection, pytest.raises(Dropped) as drop:
        for piece in connection.pieces():
            got += piece

    assert drop.value.by_reset is by_reset
    assert got.startswith(b"x" * 100_000)
    assert upstream.requests[0].finished_at is not None
    assert upstream.requests[0].peer_closed_at is None


@pytest.mark.parametrize("before", [Close(), Reset()])
def test_upstream_that_breaks_off_before_the_head_drops_the_request(upstream: ScriptedUpstream, before: Step) -> None:
    upstream.then(Script(before=[before]))
    with pytest.raises(Dropped):
        ask(upstream)


def test_upstream_ends_a_body_without_done_and_keeps_the_connection(upstream: ScriptedUpstream) -> None:
    upstream.always(steps(Token("a"), EndBody(), Token("never")))
    with KeptAlive("127.0.0.1", upstream.port) as connection:
        bodies = [connection.request("POST", "/v1/chat/completions", json=ASKED).body for _ in range(2)]

    assert b"[DONE]" not in bodies[0] + bodies[1]
    assert [text_of(body) for body in bodies] == ["a", "a"]
    assert upstream.connections_opened == 1
    assert [record.connection for record in upstream.requests] == [1, 1]


def test_upstream_closes_idle_connections_and_leaves_the_busy_ones(upstream: ScriptedUpstream) -> None:
    with KeptAlive("127.0.0.1", upstream.port) as idle:
        idle.request("POST", "/v1/chat/completions", json=ASKED)
        upstream.always(steps(Token("a"), Gate("on"), Done()))
        with ask(upstream) as busy:
            assert upstream.close_idle_connections() == 1
            assert idle.closed_by_server()
            assert upstream.connections_open == 1
            upstream.open("on")
            assert busy.body().endswith(b"[DONE]\n\n")


def test_upstream_refuses_and_listens_again_on_its_port(upstream: ScriptedUpstream) -> None:
    for _ in range(3):
        upstream.refuse()
        with pytest.raises(ConnectionRefusedError):
            get(f"{upstream.base_url}/models")
        upstream.listen_again()
        assert get(f"{upstream.base_url}/models").status == 200


def test_upstream_reset_forgets_everything_and_drops_what_runs(upstream: ScriptedUpstream) -> None:
    upstream.open("g")
    upstream.always(steps(Token("old"), Stall()))
    with ask(upstream) as connection:
        record = upstream.wait_for_requests(1)[0]
        record.wait_tokens(1)
        upstream.reset()
        with pytest.raises(Dropped):
            connection.body()

    assert upstream.requests == []
    assert record.peer_closed_at is None
    assert text_of(ask_whole(upstream)) == "Hello, world."
    assert upstream.requests[0].number == 1
    with pytest.raises(TimeoutError):
        upstream.wait_reached("g", timeout=0.01)


def test_upstream_paces_without_drift(upstream: ScriptedUpstream) -> None:
    # The last token's due time counts, not each gap: a busy machine may be late once, but must not add that up.
    count, gap = 200, 0.003
    upstream.always(answer([f"{index} " for index in range(count)], gap=gap))
    ask_whole(upstream)
    times = [at for _, at in upstream.requests[0].tokens]

    assert len(times) == count
    assert all(at >= times[0] + index * gap - 0.001 for index, at in enumerate(times))
    assert min(at - times[0] - index * gap for index, at in enumerate(times[count // 2 :], count // 2)) < 0.05


def test_upstream_serves_hundreds_of_streams_at_once(upstream: ScriptedUpstream) -> None:
    upstream.always(steps(Token("a"), Gate("all"), Token("b"), Done()))
    connections = [ask(upstream) for _ in range(300)]
    upstream.wait_reached("all", count=300, timeout=10)
    assert upstream.connections_open == 300

    upstream.open("all")

    assert {text_of(connection.body()) for connection in connections} == {"ab"}
    for connection in connections:
        connection.close()
    upstream.wait_until(lambda: upstream.connections_open == 0)


def test_upstream_raises_its_own_mistakes_when_it_is_left() -> None:
    with pytest.raises(ZeroDivisionError), ScriptedUpstream() as upstream:
        upstream.when(lambda asked: 1 // 0 == 1, answer([]))
        with pytest.raises(Dropped):
            ask(upstream)


def test_script_refuses_what_makes_no_sense() -> None:
    with pytest.raises(TypeError, match="before the head"):
        Script(before=[Token("a")])
    with pytest.raises(TypeError, match="either a body or steps"):
        Script(body=b"", steps=[Done()])


def test_upstream_stopped_in_mid_stream_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    with ScriptedUpstream() as upstream:
        upstream.always(steps(Token("a"), Stall()))
        connection = ask(upstream)
    with pytest.raises(Dropped):
        connection.body()
    connection.close()

    assert not [thread for thread in set(threading.enumerate()) - before if "upstream" in thread.name]


def test_upstream_speaks_tls(tmp_path: Path) -> None:
    made = make_certificate(tmp_path, "IP:127.0.0.1")
    trusting = ssl.create_default_context(cafile=made.public)

    with ScriptedUpstream(certfile=str(made.public), keyfile=str(made.private)) as upstream:
        assert upstream.base_url.startswith("https://")
        with (
            socket.create_connection(("127.0.0.1", upstream.port), timeout=5) as plain,
            trusting.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped,
        ):
            wrapped.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
            assert wrapped.recv(100).startswith(b"HTTP/1.1 200 OK")
        upstream.wait_until(lambda: upstream.connections_open == 0)


def test_upstream_plays_any_other_server_by_a_function(upstream: ScriptedUpstream) -> None:
    upstream.by(lambda record: Script(status=418, body=b"tea") if record.path == "/tea" else None)

    assert (get(f"{upstream.origin}/tea").status, get(f"{upstream.origin}/tea").body) == (418, b"tea")
    assert get(f"{upstream.base_url}/models").status == 200
    upstream.reset()
    assert get(f"{upstream.origin}/tea").status == 404
