"""What clients send, right and wrong, over the wire: every refusal has its code, and the connection stays usable."""

from __future__ import annotations

import json
import socket
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.harness.reader import KeptAlive, Reply, get, open_stream, post, request
from tests.harness.server import ChatWait
from tests.harness.upstream import Done, Finish, Gate, Script, ScriptedUpstream, Stall, Token
from tests.live.steps import about, asked, live, new_key, settings, wait_asked

JSON = {"Content-Type": "application/json"}
MODES = ("wait", "streaming")
LISTED = "https://chat.example.org"
READABLE = ("/health", "/ready", "/models", "/v1/health", "/v1/ready", "/v1/models", "/")
STARTING = ("/chat", "/chat/wait", "/chat/streaming", "/v1/chat", "/v1/chat/wait", "/v1/chat/streaming")


def assert_ours(reply: Reply) -> Reply:
    """Check what every response carries."""
    assert str(uuid.UUID(reply.headers["x-correlation-id"], version=4)) == reply.headers["x-correlation-id"]
    assert "no-store" in reply.headers["cache-control"] or reply.headers["cache-control"] == "no-cache"
    assert len(reply.headers.get_all("x-correlation-id")) == 1
    return reply


def assert_refused(reply: Reply, status: int, code: str, *, origin: str = "client") -> Reply:
    """Check the one error shape."""
    assert_ours(reply)
    assert (reply.status, reply.headers["content-type"]) == (status, "application/json"), reply.body
    told = reply.json
    assert (told["error_code"], told["origin"]) == (code, origin)
    assert all(told[name] for name in ("message", "detail", "action"))
    assert told["correlation_id"] == reply.headers["x-correlation-id"]
    assert isinstance(told["retryable"], bool)
    return reply


@pytest.fixture
def kept(chatwait: ChatWait) -> Iterator[KeptAlive]:
    """One connection; what a test did to it must not have cost it its life."""
    with KeptAlive("127.0.0.1", chatwait.port) as kept:
        yield kept


def assert_still_usable(kept: KeptAlive) -> None:
    """Send another request over the same connection: its answer is the one to it."""
    assert kept.request("GET", "/health").json["status"] == "healthy"


# Bodies


def message(**more: Any) -> bytes:
    return json.dumps({"message": "Hi", **more}).encode()


INVALID = {
    "no JSON": (b"{", "invalid_json", None),
    "empty": (b"", "invalid_json", None),
    "blank": (b" \n ", "invalid_json", None),
    "two values": (b"{} {}", "invalid_json", None),
    "invalid UTF-8": (b'{"message": "\xff"}', "invalid_json", None),
    "UTF-16": ('{"message": "Hi"}'.encode("utf-16"), "invalid_json", None),
    "NaN": (b'{"message": "Hi", "temperature": NaN}', "invalid_json", None),
    "Infinity": (b'{"message": "Hi", "temperature": -Infinity}', "invalid_json", None),
    "a name twice": (b'{"message": "a", "message": "b"}', "invalid_json", None),
    "a name twice inside": (b'{"message": "a", "context": [{"role": "user", "role": "user"}]}', "invalid_json", None),
    "nested too deep": (b"[" * 100_000, "invalid_json", None),
    "nested and closed": (b"[" * 100_000 + b"]" * 100_000, "invalid_json", None),
    "a form": (b"message=Hi", "invalid_json", None),
    "digits without end": (b'{"message": "Hi", "max_tokens": ' + b"9" * 10_000 + b"}", "invalid_json", None),
    "a list": (b"[]", "invalid_request", "_schema"),
    "null": (b"null", "invalid_request", "_schema"),
    "a string": (b'"Hi"', "invalid_request", "_schema"),
    "nothing": (b"{}", "invalid_request", "message"),
    "message null": (message(message=None), "invalid_request", "message"),
    "message a number": (message(message=5), "invalid_request", "message"),
    "half a surrogate pair": (b'{"message": "\\ud800"}', "invalid_request", "message"),
    "an unknown field": (message(stream=True), "invalid_request", "stream"),
    "context an object": (message(context={}), "invalid_request", "context"),
    "context of strings": (message(context=["Hi"]), "invalid_request", "context.0._schema"),
    "another role": (message(context=[{"role": "tool", "content": "x"}]), "invalid_request", "context.0.role"),
    "context too many": (message(context=[{"role": "user", "content": "x"}] * 101), "invalid_request", "context"),
    "max_tokens a string": (message(max_tokens="5"), "invalid_request", "max_tokens"),
    "max_tokens 5.0": (message(max_tokens=5.0), "invalid_request", "max_tokens"),
    "max_tokens true": (message(max_tokens=True), "invalid_request", "max_tokens"),
    "max_tokens 0": (message(max_tokens=0), "invalid_request", "max_tokens"),
    "max_tokens too many": (message(max_tokens=16_385), "invalid_request", "max_tokens"),
    "max_tokens 2^64": (message(max_tokens=2**64), "invalid_request", "max_tokens"),
    "temperature 2.1": (message(temperature=2.1), "invalid_request", "temperature"),
    "temperature 1e999": (b'{"message": "Hi", "temperature": 1e999}', "invalid_request", "temperature"),
    "temperature a string": (message(temperature="1"), "invalid_request", "temperature"),
    "model a list": (message(model=["x"]), "invalid_request", "model"),
    "message empty": (message(message=""), "message_empty", None),
    "message blank": (message(message=" \n\t\u3000"), "message_empty", None),
    "message too long": (message(message="x" * 8001), "message_too_long", None),
    "context too long": (message(context=[{"role": "user", "content": "a b " * 40_000}]), "context_too_long", None),
    "another model": (message(model="gpt-none"), "model_not_allowed", None),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", INVALID)
@pytest.mark.requirement("core US2 test", "core FR-002", "core risk 5", "chatwait scenario 4", "chatwait edge 3")
@pytest.mark.requirement("chatwait FR-004", "tasks T011", "tasks T022", "tasks checklist 7", "tasks checklist 8")
def test_body_that_is_wrong_is_refused_by_name_and_starts_nothing(
    kept: KeptAlive, upstream: ScriptedUpstream, name: str, mode: str
) -> None:
    """What a body may hold, field by field."""
    data, code, field = INVALID[name]
    reply = assert_refused(kept.request("POST", f"/chat/{mode}", data=data, headers=JSON), 400, code)
    if code == "invalid_request":
        assert field in reply.json["fields"], reply.json
    assert_still_usable(kept)
    assert upstream.completions == []


@pytest.mark.requirement("core FR-002")
def test_body_at_its_limits_is_taken(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """Bad input: the other side of the limits."""
    body = {
        "message": "x" * 8000,
        "context": [{"role": "assistant", "content": ""}, {"role": "user", "content": "a\0b", "timestamp": "now"}] * 50,
        "model": "other-model",
        "max_tokens": 16_384,
        "temperature": 2,
    }
    assert assert_ours(post(f"{chatwait.base_url}/chat/wait", body)).status == 200
    (record,) = upstream.completions
    assert record.json["messages"] == [
        *({"role": turn["role"], "content": turn["content"]} for turn in body["context"]),
        {"role": "user", "content": body["message"]},
    ]
    assert (record.json["max_tokens"], record.json["temperature"]) == (16_384, 2)


@pytest.mark.parametrize("path", STARTING)
def test_body_of_two_mebibytes_is_answered_in_full_and_the_connection_goes_on(
    kept: KeptAlive, upstream: ScriptedUpstream, path: str
) -> None:
    """Bad input: 2 MiB. Unread bytes would reset the connection under the answer."""
    data = message(message="x" * (2 << 20))
    assert_refused(kept.request("POST", path, data=data, headers=JSON), 413, "body_too_large")
    assert_still_usable(kept)
    assert upstream.completions == []


@pytest.mark.parametrize(
    "content_type", [None, "", "text/plain", "application/x-www-form-urlencoded", "json", "a" * 500]
)
@pytest.mark.requirement("chatwait edge 3", "page scope 1")
def test_body_of_another_type_is_415(kept: KeptAlive, upstream: ScriptedUpstream, content_type: str | None) -> None:
    """Bad input: wrong content type."""
    headers = {} if content_type is None else {"Content-Type": content_type}
    reply = kept.request("POST", "/chat/wait", data=message(), headers=headers)
    assert_refused(reply, 415, "unsupported_media_type")
    assert_still_usable(kept)
    assert upstream.completions == []


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON; charset=utf-8"])
def test_body_of_json_in_any_spelling_is_taken(kept: KeptAlive, content_type: str) -> None:
    """Bad input: the other side of 415."""
    reply = kept.request("POST", "/chat/wait", data=message(), headers={"Content-Type": content_type})
    assert assert_ours(reply).json["content"] == "Hello, world."


def chunks(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in [*pieces, b""])


def head(method: str, path: str, port: int, *lines: str) -> bytes:
    """Write a request's head as bytes."""
    fields = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", *lines]
    return "\r\n".join(fields).encode("latin-1") + b"\r\n\r\n"


CHUNKED = ("Content-Type: application/json", "Transfer-Encoding: chunked")


def test_chunked_body_is_read_and_the_connection_goes_on(chatwait: ChatWait, kept: KeptAlive) -> None:
    """Bad input: the good side of chunks, cut in the middle of the JSON."""
    data = message()
    kept.send(head("POST", "/chat/wait", chatwait.port, *CHUNKED) + chunks(data[:3], data[3:4], data[4:]))
    assert assert_ours(kept.read_reply("POST")).json["content"] == "Hello, world."
    assert_still_usable(kept)


def test_chunked_body_over_the_limit_is_413_and_the_connection_goes_on(chatwait: ChatWait, kept: KeptAlive) -> None:
    """Bad input: 2 MiB that nobody announced."""
    kept.send(head("POST", "/chat/wait", chatwait.port, *CHUNKED) + chunks(*[b"x" * 65_536] * 32))
    assert_refused(kept.read_reply("POST"), 413, "body_too_large")
    assert_still_usable(kept)


MALFORMED = {
    "no size": b"xyz\r\n{}\r\n0\r\n\r\n",
    "negative": b"-5\r\n{}\r\n0\r\n\r\n",
    "too long a chunk": b"2\r\n{}{}{}\r\n0\r\n\r\n",
    "a size without end": b"f" * 100_000,
    "no end of a chunk": b"5\r\n{}",
    "no last chunk": b"2\r\n{}\r\n",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_chunked_body_that_is_malformed_is_refused_and_its_connection_ends(
    chatwait: ChatWait, upstream: ScriptedUpstream, name: str
) -> None:
    """Bad input. What follows such a body cannot be told from it, so nothing that follows may be answered."""
    smuggled = head("GET", "/health", chatwait.port)
    with socket.create_connection(("127.0.0.1", chatwait.port), timeout=10) as sock:
        sock.sendall(head("POST", "/chat/wait", chatwait.port, *CHUNKED) + MALFORMED[name])
        if name.startswith("no "):
            sock.shutdown(socket.SHUT_WR)
        else:
            sock.sendall(smuggled)
        received = b""
        try:
            while piece := sock.recv(65_536):
                received += piece
        except ConnectionResetError:
            pass
    assert received.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400")) or (name.startswith("no ") and not received)
    assert b"healthy" not in received
    assert upstream.completions == []
    assert get(f"{chatwait.base_url}/health").status == 200


@pytest.mark.parametrize("mode", MODES)
def test_body_that_breaks_off_starts_nothing(chatwait: ChatWait, upstream: ScriptedUpstream, mode: str) -> None:
    """Bad input: fewer bytes than announced, though they are JSON."""
    with socket.create_connection(("127.0.0.1", chatwait.port), timeout=10) as sock:
        sock.sendall(head("POST", f"/chat/{mode}", chatwait.port, CHUNKED[0], "Content-Length: 500") + message())
        sock.shutdown(socket.SHUT_WR)
        assert b"invalid_json" in sock.makefile("rb").read()
    assert upstream.completions == []


@pytest.mark.parametrize(
    "lines",
    [
        ("Content-Length: 16", "Content-Length: 17"),
        ("Content-Length: 16", "Transfer-Encoding: chunked"),
        ("Content-Length: -1",),
        ("Content-Length: +16",),
        ("Content-Length: 1e3",),
        ("Transfer-Encoding: gzip, chunked, identity",),
    ],
)
def test_body_of_doubtful_length_is_refused(chatwait: ChatWait, upstream: ScriptedUpstream, lines: tuple[str]) -> None:
    """Bad input: what two servers would read in two ways."""
    with socket.create_connection(("127.0.0.1", chatwait.port), timeout=10) as sock:
        sock.sendall(head("POST", "/chat/wait", chatwait.port, CHUNKED[0], *lines) + message())
        status = int(sock.makefile("rb").readline().split()[1])
    assert status in (400, 501)
    assert upstream.completions == []


def test_expect_100_continue_is_answered_before_the_body_is_sent(chatwait: ChatWait) -> None:
    """Bad input: curl sends it before a body of some size."""
    data = message()
    lines = (CHUNKED[0], f"Content-Length: {len(data)}", "Expect: 100-continue")
    with socket.create_connection(("127.0.0.1", chatwait.port), timeout=10) as sock:
        answer = sock.makefile("rb")
        sock.sendall(head("POST", "/chat/wait", chatwait.port, *lines))
        assert answer.readline().split()[1] == b"100"
        assert answer.readline() == b"\r\n"
        sock.sendall(data)
        assert answer.readline().split()[1] == b"200"


@pytest.mark.long
@pytest.mark.parametrize("is_chunked", [True, False])
def test_body_of_a_byte_a_second_is_408_after_half_a_minute_and_disturbs_nobody(
    chatwait: ChatWait, upstream: ScriptedUpstream, *, is_chunked: bool
) -> None:
    """Bad input: 1 byte a second."""
    lines = CHUNKED if is_chunked else (CHUNKED[0], "Content-Length: 1000")
    with KeptAlive("127.0.0.1", chatwait.port, timeout=60) as slow, ThreadPoolExecutor(1) as pool:
        slow.send(head("POST", "/chat/wait", chatwait.port, *lines))
        begun = time.monotonic()
        reading = pool.submit(slow.read_reply, "POST")
        while not reading.done():
            assert time.monotonic() - begun < 50
            slow.send(b"1\r\n \r\n" if is_chunked else b" ")
            time.sleep(1.0)  # the pace is the case
            assert get(f"{chatwait.base_url}/health").status == 200
        reply = assert_refused(reading.result(), 408, "request_timeout")
        assert reply.json["retryable"] is True
        assert 28 < time.monotonic() - begun < 45
        assert slow.closed_by_server()
    assert upstream.completions == []


# Strangers


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost@evil.example", "", "[::1", "0"])
def test_host_of_a_stranger_is_refused(chatwait: ChatWait, upstream: ScriptedUpstream, host: str) -> None:
    """Strangers: DNS rebinding. Not a page, not a stream, not the models."""
    for method, path in (("GET", "/"), ("GET", "/models"), ("POST", "/chat/wait"), ("OPTIONS", "/chat")):
        data = message() if method == "POST" else None
        reply = request(method, f"{chatwait.base_url}{path}", data=data, headers={**JSON, "Host": host})
        if reply.headers["content-type"] == "application/json":
            assert_refused(reply, 400, "host_not_allowed")
        else:
            assert reply.status == 400  # gunicorn's own
    assert upstream.completions == []


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:{port}", "127.0.0.1:{port}", "127.0.0.1", "[::1]:{port}"])
def test_host_of_ours_is_answered(chatwait: ChatWait, host: str) -> None:
    """Strangers: the other side."""
    reply = get(f"{chatwait.base_url}/models", {"Host": host.format(port=chatwait.port)})
    assert assert_ours(reply).status == 200


FOREIGN = {
    "another origin": {"Origin": "https://evil.example"},
    "another port": {"Origin": "http://127.0.0.1:1"},
    "null": {"Origin": "null"},
    "no URL": {"Origin": "http://[::1"},
    "ours as a prefix": {"Origin": "http://127.0.0.1.evil.example"},
    "cross-site without origin": {"Sec-Fetch-Site": "cross-site"},
    "cross-site with another": {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
}


@pytest.mark.parametrize("name", FOREIGN)
def test_origin_of_a_stranger_starts_and_stops_nothing(
    chatwait: ChatWait, upstream: ScriptedUpstream, name: str
) -> None:
    """Strangers: pages of others may neither start nor stop; the stream that they tried to stop goes on."""
    body = about(upstream, Script(steps=[Token("a"), Gate("go"), Token("b"), Finish(), Done()]))
    with live(chatwait.base_url, body) as stream_id:
        for path in STARTING:
            reply = post(f"{chatwait.base_url}{path}", {"message": "evil"}, headers=FOREIGN[name])
            assert_refused(reply, 403, "origin_not_allowed")
            assert "access-control-allow-origin" not in reply.headers
        url = f"{chatwait.base_url}/chat/streaming/{stream_id}"
        assert_refused(request("DELETE", url, headers=FOREIGN[name]), 403, "origin_not_allowed")
        upstream.open("go")
        assert get(f"{chatwait.base_url}/chat/wait/{stream_id}").json["content"] == "ab"
    assert len(upstream.completions) == 1


OWN = {
    "no origin": {},
    "our origin": {"Origin": "http://127.0.0.1:{port}"},
    "our origin and site": {"Origin": "http://127.0.0.1:{port}", "Sec-Fetch-Site": "same-origin"},
    "typed in": {"Sec-Fetch-Site": "none"},
}


@pytest.mark.parametrize("name", OWN)
def test_origin_of_ours_is_answered(chatwait: ChatWait, name: str) -> None:
    """Strangers: the other side."""
    headers = {field: value.format(port=chatwait.port) for field, value in OWN[name].items()}
    assert assert_ours(post(f"{chatwait.base_url}/chat/wait", {"message": "Hi"}, headers=headers)).status == 200


@pytest.fixture(scope="module")
def open_to_one(shared_upstream: ScriptedUpstream) -> Iterator[ChatWait]:
    with ChatWait(**settings(shared_upstream, CORS_ORIGINS=LISTED)) as chatwait:
        yield chatwait


def listed(text: str) -> set[str]:
    return {part.strip().lower() for part in text.split(",")}


def assert_cors(reply: Reply) -> None:
    assert reply.headers["access-control-allow-origin"] == LISTED
    assert "access-control-allow-credentials" not in reply.headers
    assert "origin" in listed(reply.headers["vary"])


@pytest.mark.requirement("tasks T014")
def test_cors_preflight_of_a_listed_origin_is_204_with_what_the_contract_lists(open_to_one: ChatWait) -> None:
    for path in [*STARTING, "/models", "/chat/streaming/cw_x"]:
        asking = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
        reply = request("OPTIONS", f"{open_to_one.base_url}{path}", headers={"Origin": LISTED, **asking})
        assert (assert_ours(reply).status, reply.body) == (204, b"")
        assert_cors(reply)
        assert listed(reply.headers["access-control-allow-methods"]) == {"get", "post", "delete"}
        allowed = {"content-type", "last-event-id", "idempotency-key", "prefer", "x-request-id"}
        assert listed(reply.headers["access-control-allow-headers"]) == allowed


def test_cors_answers_to_a_listed_origin_may_be_read_errors_and_streams_too(
    open_to_one: ChatWait, upstream: ScriptedUpstream
) -> None:
    ours = {"Origin": LISTED, "Sec-Fetch-Site": "cross-site"}
    replies = [
        post(f"{open_to_one.base_url}/chat/wait", {"message": "Hi"}, headers=ours),
        post(f"{open_to_one.base_url}/chat/streaming", {"message": "Hi"}, headers=ours),
        post(f"{open_to_one.base_url}/chat/wait", {"message": ""}, headers=ours),
        get(f"{open_to_one.base_url}/models", ours),
        get(f"{open_to_one.base_url}/nowhere", ours),
        get(f"{open_to_one.base_url}/chat/streaming/cw_unknown", ours),
        request("DELETE", f"{open_to_one.base_url}/chat/streaming/cw_unknown", headers=ours),
        request("PUT", f"{open_to_one.base_url}/chat/wait", data=b"{}", headers=ours),
    ]
    assert [reply.status for reply in replies] == [200, 200, 400, 200, 404, 404, 404, 405]
    exposed = {"x-stream-id", "location", "x-correlation-id", "retry-after", "preference-applied"}
    for reply in replies:
        assert_cors(assert_ours(reply))
        assert listed(reply.headers["access-control-expose-headers"]) == exposed


def test_cors_says_nothing_to_an_origin_that_is_not_listed(open_to_one: ChatWait, chatwait: ChatWait) -> None:
    """With `Vary`, so that no cache mixes the two up; never `*`."""
    asking = {"Access-Control-Request-Method": "POST"}
    for origin in ("https://evil.example", f"{LISTED}.evil.example", "http://chat.example.org", "null"):
        for method in ("GET", "OPTIONS"):
            headers = {"Origin": origin, **asking}
            reply = assert_ours(request(method, f"{open_to_one.base_url}/models", headers=headers))
            assert "access-control-allow-origin" not in reply.headers
            assert "origin" in listed(reply.headers["vary"])
    reply = get(f"{chatwait.base_url}/models", {"Origin": LISTED})  # nothing is listed there
    assert not [name for name in reply.headers if name.startswith("access-control")]


# Methods and paths


@pytest.mark.parametrize("path", READABLE)
def test_head_answers_as_get_does_without_a_body(kept: KeptAlive, path: str) -> None:
    """Bad input: HEAD everywhere."""
    expected, reply = kept.request("GET", path), kept.request("HEAD", path)
    assert_ours(reply)
    assert (reply.status, reply.body) == (expected.status, b"")
    assert reply.headers["content-type"] == expected.headers["content-type"]
    assert_still_usable(kept)


@pytest.mark.parametrize("mode", MODES)
def test_head_of_a_stream_answers_at_once_and_starts_no_reader(
    chatwait: ChatWait, upstream: ScriptedUpstream, mode: str
) -> None:
    """Bad input: HEAD everywhere; on a live stream, an unknown one, and where only POST is taken."""
    body = about(upstream, Script(steps=[Token("a"), Stall()]))
    with live(chatwait.base_url, body) as stream_id:
        reply = assert_ours(request("HEAD", f"{chatwait.base_url}/chat/{mode}/{stream_id}"))
        assert (reply.status, reply.body) == (202 if mode == "wait" else 200, b"")
        wait_asked(upstream, body)
    assert assert_ours(request("HEAD", f"{chatwait.base_url}/chat/{mode}/cw_unknown")).status == 404
    assert assert_ours(request("HEAD", f"{chatwait.base_url}/chat/{mode}")).status == 405
    assert len(upstream.completions) == 1


@pytest.mark.parametrize("path", [*READABLE, *STARTING, "/chat/wait/cw_x", "/chat/streaming/cw_x"])
def test_options_tells_the_methods(kept: KeptAlive, path: str) -> None:
    """Bad input: OPTIONS everywhere."""
    reply = assert_ours(kept.request("OPTIONS", path))
    methods = listed(reply.headers["allow"])
    assert (reply.status, "options" in methods) == (204, True)
    assert ("post" in methods) == (path in STARTING)
    assert ("delete" in methods) == path.endswith("cw_x")
    assert_still_usable(kept)


def test_options_of_nothing_is_404_and_of_all_is_no_fault(chatwait: ChatWait, kept: KeptAlive) -> None:
    """Bad input: OPTIONS everywhere."""
    assert_refused(kept.request("OPTIONS", "/nowhere"), 404, "not_found")
    kept.send(head("OPTIONS", "*", chatwait.port))
    assert kept.read_reply("OPTIONS").status < 500
    assert get(f"{chatwait.base_url}/health").status == 200


@pytest.mark.parametrize("data", [None, b"{}", b"x" * 100_000, b"GET /models HTTP/1.1\r\nHost: localhost\r\n\r\n"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/nowhere"),
        ("GET", "/v2/chat"),
        ("DELETE", "/chat/wait/x/y"),
        ("GET", "/chat/wait/"),
        ("POST", "//evil.example/chat"),
        ("GET", "/%00%ff/../..//etc/passwd"),
        ("POST", "/chat/"),
    ],
)
@pytest.mark.requirement("chatwait errors 1")
def test_path_that_is_none_is_404_whatever_its_body(
    kept: KeptAlive, method: str, path: str, data: bytes | None
) -> None:
    """The body is read to its end: the next request's answer is its own."""
    assert_refused(kept.request(method, path, data=data), 404, "not_found")
    assert_still_usable(kept)


@pytest.mark.parametrize("data", [None, b"{}", b"x" * 100_000])
@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/chat/wait", {"post"}),
        ("PUT", "/chat/streaming", {"post"}),
        ("PATCH", "/v1/chat", {"post"}),
        ("POST", "/health", {"get", "head"}),
        ("DELETE", "/models", {"get", "head"}),
        ("POST", "/chat/streaming/cw_x", {"get", "head", "delete"}),
        ("PROPFIND", "/chat/wait", {"post"}),
    ],
)
@pytest.mark.requirement("chatwait FR-004")
def test_method_that_is_none_is_405_with_allow_whatever_its_body(
    kept: KeptAlive, method: str, path: str, allowed: set[str], data: bytes | None
) -> None:
    reply = assert_refused(kept.request(method, path, data=data), 405, "method_not_allowed")
    assert listed(reply.headers["allow"]) - {"options"} == allowed
    assert_still_usable(kept)


def test_body_on_a_get_is_thrown_away(kept: KeptAlive) -> None:
    """Bad input: a body where none is expected is no second request."""
    data = b"GET /models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert kept.request("GET", "/health", data=data).json["status"] == "healthy"
    assert_still_usable(kept)


# Headers


def test_request_id_that_is_well_formed_is_logged_beside_ours(chatwait: ChatWait) -> None:
    name = f"request-{uuid.uuid4()}"
    reply = assert_ours(get(f"{chatwait.base_url}/health", {"X-Request-ID": name}))
    line = chatwait.wait_for_log("request_received", request_id=name)
    assert line["correlation_id"] == reply.headers["x-correlation-id"] != name


@pytest.mark.parametrize(
    "name", ["a b", "a\tb", 'a"}\\n{"x":1', "x" * 65, "x" * 4000, "é", "%0d%0aSet-Cookie: x=1", ""]
)
def test_request_id_that_is_not_is_dropped(chatwait: ChatWait, name: str) -> None:
    """Bad input: X-Request-ID."""
    reply = assert_ours(get(f"{chatwait.base_url}/health", {"X-Request-ID": name}))
    assert reply.status == 200
    assert "set-cookie" not in reply.headers
    correlation_id = reply.headers["x-correlation-id"]
    assert chatwait.wait_for_log("request_received", correlation_id=correlation_id)["request_id"] is None


@pytest.mark.parametrize("value", [b"a\rSet-Cookie: x=1", b"a\nSet-Cookie: x=1", b"a\r\n\tSet-Cookie: x=1", b"a\0b"])
def test_request_id_with_line_ends_makes_no_header_and_no_log_line(chatwait: ChatWait, value: bytes) -> None:
    """Bad input: CR/LF in X-Request-ID. gunicorn may refuse it; nobody may repeat it."""
    with socket.create_connection(("127.0.0.1", chatwait.port), timeout=10) as sock:
        lines = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Request-ID: " + value
        sock.sendall(lines + b"\r\n\r\n")
        received = sock.makefile("rb").read()
    assert received.split()[1] in (b"200", b"400")
    assert b"Set-Cookie" not in received
    assert "Set-Cookie" not in chatwait.output


TOO_MUCH: dict[str, tuple[bytes, bytes]] = {
    "X-Request-ID of 10 kB": (b"X-Request-ID: " + b"x" * 10_000 + b"\r\n", b"431"),
    "a cookie of 9 kB": (b"Cookie: " + b"x" * 9_000 + b"\r\n", b"431"),
    "10,000 headers": (b"".join(b"X-%d: y\r\n" % number for number in range(10_000)), b""),
    "a header without end": (b"X: " + b"x" * 1_000_000, b""),
    "control bytes": (b"X: a\x01b\r\n", b"400"),
    "no colon": (b"nonsense\r\n", b"400"),
    "a name with a space": (b"X Y: z\r\n", b"400"),
}
"""Heads, and the status of the answer; none where the client still sends when the connection ends."""


@pytest.mark.parametrize("name", TOO_MUCH)
def test_headers_that_are_too_much_are_refused_and_the_next_is_served(chatwait: ChatWait, name: str) -> None:
    """Bad input: 10,000 headers, a header over 8 KB. What gunicorn refuses keeps gunicorn's own answer."""
    lines, status = TOO_MUCH[name]
    received, is_cut = b"", False
    with socket.create_connection(("127.0.0.1", chatwait.port), timeout=10) as sock:
        try:
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + lines + b"\r\n")
            received = sock.makefile("rb").read()
        except ConnectionError:
            is_cut = True
    assert (received.split()[1:2] == [b"431"] or is_cut) if not status else received.split()[1:2] == [status]
    assert get(f"{chatwait.base_url}/health").status == 200


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1", b"414"),
        (b"GET /health HTTP/9.9", b"400"),
        (b"\x16\x03\x01\x02", b"400"),
        (b"x", b"400"),
    ],
)
def test_request_line_that_is_none_is_refused_and_the_next_is_served(
    chatwait: ChatWait, line: bytes, status: bytes
) -> None:
    """Bad input: a TLS handshake on the plain port among it."""
    with socket.create_connection(("127.0.0.1", chatwait.port), timeout=10) as sock:
        sock.sendall(line + b"\r\n\r\n")
        received = sock.makefile("rb").read()
    assert received.split()[1:2] == [status]
    assert get(f"{chatwait.base_url}/health").status == 200


# What a client prefers


@pytest.mark.parametrize("start", ["/chat/wait", "/v1/chat/wait"])
def test_prefer_wait_gives_202_and_the_rest_under_its_location(
    chatwait: ChatWait, upstream: ScriptedUpstream, start: str
) -> None:
    """`Prefer: wait=N`, then GET."""
    body = about(upstream, Script(steps=[Token("a"), Gate("go"), Token("b"), Finish(), Done()]))
    headers = {"Prefer": "wait=1", **new_key()}
    reply = assert_ours(post(f"{chatwait.base_url}{start}", body, headers=headers))
    stream_id = reply.headers["x-stream-id"]
    assert (reply.status, reply.headers["preference-applied"]) == (202, "wait=1")
    assert reply.json == {"stream_id": stream_id, "status": "running", "tokens": 1}
    assert reply.headers["location"] == f"/v1/chat/wait/{stream_id}"
    url = f"{chatwait.base_url}{reply.headers['location']}"
    assert get(url, {"Prefer": "respond-async, wait=0"}).status == 202
    upstream.open("go")
    whole = assert_ours(get(url))
    assert (whole.status, whole.json["content"], whole.json["status"]) == (200, "ab", "complete")
    assert post(f"{chatwait.base_url}{start}", body, headers=headers).json["content"] == "ab"
    assert len(asked(upstream, body)) == 1


@pytest.mark.parametrize(
    ("accept", "is_stream"),
    [
        (None, True),
        ("*/*", True),
        ("text/event-stream", True),
        ("text/*", True),
        ("text/event-stream, application/json;q=0.9", True),
        ("application/json, text/event-stream", True),
        ("application/json", False),
        ("application/json, text/event-stream;q=0.9", False),
        ("application/*;q=0.5, text/event-stream;q=0.4", False),
        ("text/event-stream;q=0, */*", False),
        ("nonsense;;;q=x,", True),
    ],
)
@pytest.mark.requirement("core FR-001", "tasks T015", "tasks checklist 6")
def test_accept_chooses_between_stream_and_json(chatwait: ChatWait, accept: str | None, *, is_stream: bool) -> None:
    """Equal preference streams."""
    headers = {} if accept is None else {"Accept": accept}
    reply = assert_ours(post(f"{chatwait.base_url}/chat", {"message": "Hi"}, headers=headers))
    assert reply.headers["content-type"] == ("text/event-stream; charset=utf-8" if is_stream else "application/json")
    assert "accept" in listed(reply.headers["vary"])


@pytest.mark.requirement("core FR-005", "tasks T015", "tasks T023")
def test_every_kind_of_answer_carries_a_correlation_id_of_its_own(
    chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    body, key = about(upstream, Script(steps=[Token("a"), Finish(), Done()])), new_key()
    url = chatwait.base_url
    with open_stream(f"{url}/chat/streaming", json=body, headers=key) as connection:
        streamed = connection.reply()
    stream_id = streamed.headers["x-stream-id"]
    replies = [
        streamed,
        post(f"{url}/chat/wait", body, headers=key),
        get(f"{url}/chat/streaming/{stream_id}"),
        get(f"{url}/chat/streaming/{stream_id}", {"Last-Event-ID": f"{stream_id}.2"}),
        get(f"{url}/chat/wait/{stream_id}"),
        request("DELETE", f"{url}/chat/wait/{stream_id}"),
        *(get(f"{url}{path}") for path in [*READABLE, "/nowhere", "/chat"]),
        *(request(method, f"{url}/chat") for method in ("OPTIONS", "HEAD", "TRACE")),
    ]
    assert replies[3].status == 204
    assert len({assert_ours(reply).headers["x-correlation-id"] for reply in replies}) == len(replies)
