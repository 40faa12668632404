"""Every row of the contract's table of cursors, for GET and POST, as events and as one answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pytest

from tests.harness.reader import Answer, EventParser, KeptAlive, Reply, open_stream, post, read_answer, request
from tests.harness.server import ChatWait
from tests.harness.upstream import Done, Finish, Gate, Script, ScriptedUpstream, Token, answer
from tests.live.steps import about, asked, begin, cursor, live, log_name, new_key, poll, settings, together

UNKNOWN = "cw_AAAAAAAAAAAAAAAAAAAAAA"
NEVER = {"message": "This is never asked."}


@dataclass(frozen=True)
class Way:
    """One of the routes that take a cursor."""

    method: str
    path: str
    accept: str = "text/event-stream"

    @property
    def names_a_stream(self) -> bool:
        return self.method == "GET"

    @property
    def waits(self) -> bool:
        return "wait" in self.path or self.accept == "application/json"

    def ask(self, base_url: str, stream_id: str, *, headers: dict[str, str] | None = None, query: str = "") -> Reply:
        url = f"{base_url}{self.path.format(stream_id)}{query}"
        body = None if self.names_a_stream else NEVER
        return request(self.method, url, json=body, headers={"Accept": self.accept, **(headers or {})})


WAYS = {
    "GET streaming": Way("GET", "/chat/streaming/{}"),
    "GET wait": Way("GET", "/v1/chat/wait/{}"),
    "POST streaming": Way("POST", "/v1/chat/streaming"),
    "POST wait": Way("POST", "/chat/wait"),
    "POST chat": Way("POST", "/chat"),
    "POST chat for JSON": Way("POST", "/chat", accept="application/json"),
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    return WAYS[request.param]


@pytest.fixture
def finished(chatwait: ChatWait, upstream: ScriptedUpstream) -> str:
    """A stream with the tokens a, b, c and its end."""
    answered = read_answer(f"{chatwait.base_url}/chat/streaming", about(upstream, answer(["a", "b", "c"])))
    assert answered.tokens == 3
    assert answered.stream_id is not None
    return answered.stream_id


@pytest.fixture
def running(chatwait: ChatWait, upstream: ScriptedUpstream) -> Iterator[str]:
    """A stream with the tokens a, b, that goes on with c and its end when the gate `on` opens."""
    script = Script(steps=[Token("a"), Token("b"), Gate("on"), Token("c"), Finish(), Done()])
    with live(chatwait.base_url, about(upstream, script)) as stream_id:
        upstream.wait_reached("on")
        # The upstream has sent them; asking with the cursor behind them tells when they are in the log.
        headers, url = cursor(stream_id, 2), f"{chatwait.base_url}/chat/streaming/{stream_id}"
        poll(lambda: request("HEAD", url, headers=headers).status == 200, seconds=5, what="two tokens")
        yield stream_id


def error_code(reply: Reply) -> tuple[int, str]:
    assert reply.headers["content-type"] == "application/json"
    assert reply.json["correlation_id"] == reply.headers["x-correlation-id"]
    return reply.status, reply.json["error_code"]


def answer_of(reply: Reply, *, after: int = 0, prefix: str | None = None) -> Answer:
    """Fold a whole body of events. Raises: AssertionError."""
    assert reply.headers["content-type"].startswith("text/event-stream")
    folded = Answer(after=after, prefix=prefix)
    folded.begin_connection(reply.headers)
    for event in EventParser().feed(reply.body):
        folded.add(event)
    return folded.verify()


def assert_never_asked(upstream: ScriptedUpstream) -> None:
    assert asked(upstream, NEVER) == []


# Malformed

MALFORMED_NUMBERS = [
    "-1", "+1", "abc", "", " 1", "1.5", "01", "00", "0x1", "1e3", "1_0", "\uff11", "\u0661", "NaN", "null",
    str(2**53 + 1), str(2**63), str(2**64), "9" * 17, "9" * 100, "1" + "0" * 7000,
]  # fmt: skip
MALFORMED_WHOLES = ["-1", "abc", "0", "1", ".", "..", ".1", "cw.x.1", "é.1", "🙂", "cw_/../x.1", "x" * 129, "a" * 7000]


@pytest.mark.parametrize("place", ["header", "last_event_id", "lastEventId"])
def test_cursor_malformed_is_400_and_starts_nothing(
    chatwait: ChatWait, upstream: ScriptedUpstream, finished: str, way: Way, place: str
) -> None:
    """Cursors."""
    for raw in [*(f"{finished}.{number}" for number in MALFORMED_NUMBERS), *MALFORMED_WHOLES]:
        if place == "header":
            sent = raw.encode().decode("latin-1")  # a header's bytes
            reply = way.ask(chatwait.base_url, finished, headers={"Last-Event-ID": sent})
        else:
            reply = way.ask(chatwait.base_url, finished, query=f"?{place}={quote(raw)}")
        assert error_code(reply) == (400, "cursor_malformed"), raw
    assert_never_asked(upstream)


@pytest.mark.parametrize("raw", ["%00", "%0a", "%0d%0a", "%1b%5b", "%7f", "%c3%28", "%ff", "%e2%80%a8", "%ud800"])
def test_cursor_with_control_bytes_in_the_query_is_400(
    chatwait: ChatWait, upstream: ScriptedUpstream, finished: str, way: Way, raw: str
) -> None:
    """Cursors. Before, inside and behind what would be one that is good."""
    for query in (f"{raw}{finished}.1", f"{finished}{raw}.1", f"{finished}.{raw}1", f"{finished}.1{raw}"):
        reply = way.ask(chatwait.base_url, finished, query=f"?last_event_id={query}")
        assert error_code(reply) == (400, "cursor_malformed"), query
    assert_never_asked(upstream)


def test_cursor_with_control_bytes_in_the_header_is_refused_by_the_server(
    chatwait: ChatWait, upstream: ScriptedUpstream, finished: str, way: Way
) -> None:
    """Cursors. gunicorn keeps its own answer here."""
    for raw in (f"{finished}.1\x00", f"\x01{finished}.1"):
        assert way.ask(chatwait.base_url, finished, headers={"Last-Event-ID": raw}).status == 400
    assert_never_asked(upstream)


# Foreign, unknown, ahead


@pytest.mark.parametrize("path", ["/chat/streaming/{}", "/chat/wait/{}"])
def test_cursor_of_another_stream_than_the_paths_is_400(
    chatwait: ChatWait, finished: str, running: str, path: str
) -> None:
    """Cursors. Judged before whether the path's stream is there; malformed comes before it."""
    for stream_id, other in ((finished, running), (running, finished), (UNKNOWN, finished), (finished, UNKNOWN)):
        url = f"{chatwait.base_url}{path.format(stream_id)}"
        assert error_code(request("GET", url, headers=cursor(other, 1))) == (400, "cursor_foreign")
        malformed = {"Last-Event-ID": f"{other}.-1"}
        assert error_code(request("GET", url, headers=malformed)) == (400, "cursor_malformed")


def test_cursor_of_an_unknown_stream_is_404_and_creates_nothing(
    chatwait: ChatWait, upstream: ScriptedUpstream, way: Way
) -> None:
    """Cursors."""
    for sequence in (0, 1, 2**53):
        for _ in range(2):
            reply = way.ask(chatwait.base_url, UNKNOWN, headers=cursor(UNKNOWN, sequence))
            assert error_code(reply) == (404, "stream_unknown")
    if way.names_a_stream:
        assert error_code(way.ask(chatwait.base_url, UNKNOWN)) == (404, "stream_unknown")
    assert_never_asked(upstream)


def test_cursor_beyond_the_head_is_409_live_and_finished(
    chatwait: ChatWait, upstream: ScriptedUpstream, finished: str, running: str, way: Way
) -> None:
    """Cursors. Of the finished one with 3 tokens, 4 is the terminal's; of the live one with 2, 3 is not yet."""
    for stream_id, first_beyond in ((finished, 5), (running, 3)):
        for sequence in (first_beyond, first_beyond + 1, 10_000, 2**53):
            reply = way.ask(chatwait.base_url, stream_id, headers=cursor(stream_id, sequence))
            assert error_code(reply) == (409, "cursor_ahead"), (stream_id == running, sequence)
    assert_never_asked(upstream)


# Inside


@pytest.mark.parametrize(
    ("headers", "query", "after"),
    [
        ({"Last-Event-ID": "{}.0"}, "", 0),
        ({"Last-Event-ID": "{}.2"}, "", 2),
        ({"Last-Event-ID": "{}.3"}, "", 3),
        ({}, "?last_event_id={}.1", 1),
        ({}, "?lastEventId={}.2", 2),
        ({}, "?lastEventId={}.1&last_event_id={}.2", 2),
        ({}, "?lastEventId={}.1&last_event_id=", 1),
        ({"Last-Event-ID": "{}.2"}, "?last_event_id={}.1", 2),
        ({"Last-Event-ID": "{}.1"}, "?lastEventId={}.3", 1),
        ({"Last-Event-ID": "{}.1"}, "?last_event_id=abc", 1),
        ({"Last-Event-ID": ""}, "?last_event_id={}.2", 2),
    ],
)
@pytest.mark.requirement("chatwait resilience 3", "chatwait entity Stream Connection")
def test_cursor_inside_gives_what_follows_and_the_header_wins(
    chatwait: ChatWait,
    upstream: ScriptedUpstream,
    finished: str,
    way: Way,
    headers: dict[str, str],
    query: str,
    after: int,
) -> None:
    """Cursors. Wait mode answers the whole whatever the cursor."""
    filled = {name: value.format(finished) for name, value in headers.items()}
    reply = way.ask(chatwait.base_url, finished, headers=filled, query=query.format(finished, finished))
    assert reply.status == 200
    assert reply.headers["x-stream-id"] == finished
    if way.waits:
        assert (reply.json["content"], reply.json["tokens"]) == ("abc", 3)
    else:
        folded = answer_of(reply, after=after, prefix="abc"[:after] or None)
        assert (folded.text, folded.tokens) == ("abc", 3)
        assert folded.events[0].event == ("ping" if after else "start")
    assert_never_asked(upstream)


@pytest.mark.parametrize(("headers", "query"), [({}, ""), ({"Last-Event-ID": ""}, ""), ({}, "?last_event_id=")])
@pytest.mark.parametrize("name", ["GET streaming", "GET wait"])
@pytest.mark.requirement("page edge 5")
def test_cursor_absent_or_empty_is_the_beginning(
    chatwait: ChatWait, finished: str, name: str, headers: dict[str, str], query: str
) -> None:
    """Cursors."""
    reply = WAYS[name].ask(chatwait.base_url, finished, headers=headers, query=query)
    if WAYS[name].waits:
        assert reply.json["content"] == "abc"
    else:
        assert answer_of(reply).text == "abc"


def test_cursor_empty_on_a_post_starts_a_generation(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """Cursors. Empty is absent."""
    for headers, query in (({"Last-Event-ID": ""}, ""), ({}, "?last_event_id="), ({}, "?lastEventId=")):
        body = about(upstream, answer(["new"]))
        assert read_answer(f"{chatwait.base_url}/chat/streaming{query}", body, headers=headers).text == "new"
        assert len(asked(upstream, body)) == 1


@pytest.mark.parametrize("sequence", [0, 1, 2])
@pytest.mark.requirement("chatwait clarification 2")
def test_cursor_up_to_the_head_of_a_live_log_waits_for_the_rest(
    chatwait: ChatWait, upstream: ScriptedUpstream, running: str, way: Way, sequence: int
) -> None:
    """Cursors."""
    mode, readers = ("wait", 1) if way.waits else ("streaming", 2)  # `running` began with a reader of its own

    def ask() -> Reply:
        return way.ask(chatwait.base_url, running, headers=cursor(running, sequence))

    def let_on() -> None:
        attached = {"stream": log_name(running), "mode": mode}
        poll(lambda: len(chatwait.log_of("reader_attached", **attached)) == readers, seconds=5, what="the reader")
        upstream.open("on")

    reply = together(ask, let_on)[0]
    if way.waits:
        assert (reply.status, reply.json["content"]) == (200, "abc")
    else:
        folded = answer_of(reply, after=sequence, prefix="ab"[:sequence] or None)
        assert (folded.text, folded.tokens) == ("abc", 3)
    assert_never_asked(upstream)


@pytest.mark.requirement("page FR-008")
def test_cursor_of_the_terminal_is_204_and_wait_mode_answers_the_whole(
    chatwait: ChatWait, upstream: ScriptedUpstream, finished: str, way: Way
) -> None:
    """A native EventSource stops for good at 204."""
    for _ in range(2):
        reply = way.ask(chatwait.base_url, finished, headers=cursor(finished, 4))
        if way.waits:
            assert (reply.status, reply.json["content"]) == (200, "abc")
        else:
            assert (reply.status, reply.body) == (204, b"")
            assert reply.headers["cache-control"].startswith("no-cache")
    assert_never_asked(upstream)


# Gone


def test_cursor_on_an_evicted_log_is_410_and_the_key_too(
    shared_upstream: ScriptedUpstream, upstream: ScriptedUpstream
) -> None:
    """Cursors. The log that is live meanwhile is not evicted, however little memory there is."""
    big = answer(["x" * 1000] * 400)
    running = about(upstream, Script(steps=[Token("kept"), Gate("on"), Finish(), Done()]))
    with ChatWait(**settings(shared_upstream, STREAM_MEMORY_MB=1)) as chatwait:
        url = f"{chatwait.base_url}/chat/wait"
        kept = begin(chatwait.base_url, running)
        body, key = about(upstream, big), new_key()
        first = post(url, body, headers=key).json["stream_id"]
        assert read_answer(f"{chatwait.base_url}/chat/streaming/{first}").tokens == 400
        others = [post(url, about(upstream, big)).json["stream_id"] for _ in range(3)]

        for one_way in WAYS.values():
            for sequence in (0, 7, 400, 401, 10_000):  # any cursor, also one that was beyond the head
                reply = one_way.ask(chatwait.base_url, first, headers=cursor(first, sequence))
                assert error_code(reply) == (410, "stream_expired")
        assert error_code(request("GET", f"{chatwait.base_url}/chat/streaming/{first}")) == (410, "stream_expired")
        assert error_code(request("DELETE", f"{chatwait.base_url}/chat/wait/{first}")) == (410, "stream_expired")
        foreign = request("GET", f"{chatwait.base_url}/chat/streaming/{first}", headers=cursor(kept, 0))
        assert error_code(foreign) == (400, "cursor_foreign")
        assert error_code(post(url, body, headers=key)) == (410, "stream_expired")
        assert error_code(post(url, {**body, "max_tokens": 7}, headers=key)) == (422, "idempotency_key_reused")
        assert len(asked(upstream, body)) == 1

        upstream.open("on")
        assert read_answer(f"{chatwait.base_url}/chat/streaming/{kept}").text == "kept"
        assert read_answer(f"{chatwait.base_url}/chat/streaming/{others[-1]}").tokens == 400
    assert_never_asked(upstream)


def test_cursor_after_the_retention_is_410_and_after_a_restart_404(
    shared_upstream: ScriptedUpstream, upstream: ScriptedUpstream
) -> None:
    """Cursors."""
    with ChatWait(**settings(shared_upstream, RETENTION_SECONDS=1)) as chatwait:
        body = about(upstream, answer(["a", "b"]))
        stream_id = post(f"{chatwait.base_url}/chat/wait", body).json["stream_id"]
        url = f"{chatwait.base_url}/chat/streaming/{stream_id}"
        ahead = request("GET", url, headers=cursor(stream_id, 99)).status  # asks without being a reader
        assert ahead == 409
        poll(lambda: request("GET", url, headers=cursor(stream_id, 99)).status == 410, seconds=5, what="the retention")
        for one_way in WAYS.values():
            for sequence in (0, 1, 2, 3):
                reply = one_way.ask(chatwait.base_url, stream_id, headers=cursor(stream_id, sequence))
                assert error_code(reply) == (410, "stream_expired")

        assert chatwait.stop() == 0
        chatwait.start()
        for one_way in WAYS.values():
            reply = one_way.ask(chatwait.base_url, stream_id, headers=cursor(stream_id, 1))
            assert error_code(reply) == (404, "stream_unknown")
        assert len(asked(upstream, body)) == 1
    assert_never_asked(upstream)


# POST


def raw_post(path: str, headers: dict[str, str], body: bytes, *, chunked: bool) -> bytes:
    fields = {"Host": "localhost", **headers}
    if chunked:
        fields["Transfer-Encoding"] = "chunked"
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    else:
        fields["Content-Length"] = str(len(body))
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("path", "at", "status"),
    [
        ("/chat/wait", "finished.1", 200),
        ("/chat/streaming", "finished.4", 204),
        ("/chat/streaming", "finished.9", 409),
        ("/chat/streaming", "unknown.1", 404),
        ("/chat/wait", "finished.-1", 400),
    ],
)
def test_post_with_a_cursor_throws_a_body_away_that_is_itself_a_request(
    chatwait: ChatWait,
    upstream: ScriptedUpstream,
    finished: str,
    running: str,
    path: str,
    at: str,
    status: int,
    chunked: bool,
) -> None:
    """Cursors. On a kept-alive connection: nothing of the body is obeyed, and the next request is answered."""
    value = at.replace("finished", finished).replace("unknown", UNKNOWN)
    smuggled = f"DELETE /chat/streaming/{running} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    smuggled += raw_post("/chat/wait", {"Content-Type": "application/json"}, b'{"message": "smuggled"}', chunked=False)
    with KeptAlive("127.0.0.1", chatwait.port) as connection:
        connection.send(raw_post(path, {"Last-Event-ID": value}, smuggled, chunked=chunked))
        connection.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.read_reply("POST").status == status
        health = connection.read_reply()
        assert (health.status, health.json["status"]) == (200, "healthy")
        assert connection.request("GET", "/nowhere").status == 404
    assert asked(upstream, {"message": "smuggled"}) == []
    upstream.open("on")
    assert read_answer(f"{chatwait.base_url}/chat/streaming/{running}").text == "abc"


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[1]", b'{"message": ""}'])
def test_post_with_a_cursor_ignores_body_type_and_key(
    chatwait: ChatWait, upstream: ScriptedUpstream, finished: str, data: bytes
) -> None:
    """Cursors."""
    for key in ("short", "x" * 300):
        headers = {**cursor(finished, 1), "Content-Type": "text/plain", "Idempotency-Key": key}
        reply = post(f"{chatwait.base_url}/chat/streaming", data=data, headers=headers)
        assert answer_of(reply, after=1, prefix="a").text == "abc"
        assert post(f"{chatwait.base_url}/chat/wait", data=data, headers=headers).json["content"] == "abc"
    assert_never_asked(upstream)


def test_post_with_a_cursor_and_a_body_over_the_limit_is_413(chatwait: ChatWait, finished: str) -> None:
    """Cursors. The body is read within MAX_BODY_BYTES."""
    largest = post(f"{chatwait.base_url}/chat/wait", data=b"x" * 2**20, headers=cursor(finished, 1))
    assert largest.status == 200
    reply = post(f"{chatwait.base_url}/chat/wait", data=b"x" * (2**20 + 1), headers=cursor(finished, 1))
    assert error_code(reply) == (413, "body_too_large")


def test_post_with_a_cursor_and_a_new_key_never_starts_and_never_binds(
    chatwait: ChatWait, upstream: ScriptedUpstream, finished: str
) -> None:
    """Live, expired and unknown streams are asked by POST in the tests above."""
    key, body = new_key(), about(upstream, answer(["new"]))
    for stream_id, sequence in ((finished, 1), (finished, 4), (UNKNOWN, 1)):
        post(f"{chatwait.base_url}/chat/streaming", body, headers={**cursor(stream_id, sequence), **key})
    assert asked(upstream, body) == []
    fresh = post(f"{chatwait.base_url}/chat/wait", body, headers=key)
    assert (fresh.json["content"], len(asked(upstream, body))) == ("new", 1)
    assert fresh.json["stream_id"] != finished


# HEAD


def test_head_answers_at_once_and_is_no_reader(
    chatwait: ChatWait, upstream: ScriptedUpstream, finished: str, running: str
) -> None:
    """Cursors."""
    expected: list[tuple[str, Callable[[str], str], int]] = [
        (running, lambda stream_id: f"/chat/streaming/{stream_id}", 200),
        (running, lambda stream_id: f"/chat/wait/{stream_id}", 202),
        (finished, lambda stream_id: f"/chat/streaming/{stream_id}", 200),
        (finished, lambda stream_id: f"/chat/wait/{stream_id}", 200),
        (UNKNOWN, lambda stream_id: f"/chat/streaming/{stream_id}", 404),
        (UNKNOWN, lambda stream_id: f"/chat/wait/{stream_id}", 404),
    ]
    correlations = []
    for stream_id, path, status in expected:
        with KeptAlive("127.0.0.1", chatwait.port) as connection:
            reply = connection.request("HEAD", path(stream_id))
            assert (reply.status, reply.body) == (status, b""), path(stream_id)
            if status == 200 and "streaming" in path(stream_id):
                assert reply.headers["content-type"].startswith("text/event-stream")
            correlations.append(reply.headers["x-correlation-id"])
    upstream.open("on")  # the running one ended on its own, so nothing was held back
    assert read_answer(f"{chatwait.base_url}/chat/streaming/{running}").text == "abc"
    chatwait.wait_for_log("reader_left", stream=log_name(running), sequence=3)
    for correlation_id in correlations:
        assert chatwait.log_of("request_received", correlation_id=correlation_id)
        assert not chatwait.log_of("reader_attached", correlation_id=correlation_id)


def test_cursor_ids_rise_from_the_start_event_and_fit_in_128_bytes(chatwait: ChatWait, running: str) -> None:
    """Cursors. What a client sends back is what it was given."""
    with open_stream(f"{chatwait.base_url}/chat/streaming/{running}") as connection:
        events: list[Any] = []
        for event in connection.events():
            events.append(event)
            if event.event == "token":
                break
    assert [event.id for event in events if event.id] == [f"{running}.0", f"{running}.2"]
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+\.[0-9]+", event.id) and len(event.id) <= 128 for event in events)
