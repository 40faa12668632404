"""Test the application through its WSGI door, with an upstream of our own: shapes, headers, cursors, who may ask."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from itertools import cycle
from typing import Any
from uuid import UUID

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app import create_app, errors
from app.platform import clock
from app.settings import Settings
from app.streams.interface import new_stream_id
from app.version import VERSION
from app.web import reading
from app.worker import Worker
from load.events import Event, EventParser
from tests.unit.conftest import as_it_was
from tests.unit.fakes import FakeUpstream, Gate, texts, whole
from tests.unit.shared import wait_until

pytestmark = pytest.mark.usefixtures("no_network")

LISTED = "https://chat.example.org"
SETTINGS = Settings(
    openai_base_url="http://model.test/v1",
    openai_model="gpt-4o-mini",
    allowed_models=("gpt-4o-mini", "other"),
    allowed_hosts=("localhost", "127.0.0.1", "[::1]"),
    cors_origins=(LISTED,),
    log_level="CRITICAL",
)
KEYS = ["error_code", "message", "detail", "action", "correlation_id", "origin", "retryable"]
KEY = {"Idempotency-Key": "0123456789abcdef"}
OF_PROXY = {"Proxy-Idempotency-Key": "fedcba9876543210"}
ASKED = {"message": "Hello"}

Make = Callable[..., Flask]


@pytest.fixture(autouse=True)
def quick_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "TICK_SECONDS", 0.01)


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Flask] = []

    def build(upstream: FakeUpstream | None = None, **settings: Any) -> Flask:
        upstream = upstream or FakeUpstream(whole("He", "llo"))
        made.append(create_app(replace(SETTINGS, **settings), upstream=upstream))
        return made[-1]

    yield build
    for app in made:
        runtime_of(app).close()


def runtime_of(app: Flask) -> Worker:
    runtime: Worker = app.extensions["chatwait"]
    return runtime


@pytest.fixture
def upstream() -> FakeUpstream:
    return FakeUpstream(whole("He", "llo"))


@pytest.fixture
def app(make: Make, upstream: FakeUpstream) -> Flask:
    return make(upstream)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture(scope="module")
def asked_often() -> Iterator[FlaskClient]:
    """Ask one application that serves all tests which leave nothing behind: to make one costs more than its answer."""
    with as_it_was():
        app = create_app(SETTINGS, upstream=FakeUpstream(whole("He", "llo")))
        yield app.test_client()
        runtime_of(app).close()


def questions_of(client: FlaskClient) -> int:
    """Count what the model of an application was asked so far."""
    return len(runtime_of(client.application).generations._upstream.questions)


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.close()


def events_of(response: TestResponse) -> list[Event]:
    return EventParser().feed(response.data)


def shown(response: TestResponse, status: int, code: str) -> dict[str, Any]:
    """Give the error of a response, once it has been seen to have the one shape."""
    assert response.status_code == status, response.data
    assert response.content_type == "application/json"
    body: dict[str, Any] = json.loads(response.data)
    assert list(body)[: len(KEYS)] == KEYS
    assert body["error_code"] == code
    assert body["correlation_id"] == response.headers["X-Correlation-Id"]
    assert ("retry_after_seconds" in body) == ("Retry-After" in response.headers)
    assert response.headers["Cache-Control"] == "no-store"
    return body


def finished(client: FlaskClient) -> str:
    """Have a generation of two tokens, and give its id."""
    response = client.post("/v1/chat/wait", json=ASKED)
    assert response.status_code == 200, response.data
    stream_id = response.headers["X-Stream-Id"]
    assert response.json["tokens"] == 2
    return stream_id


def forget(app: Flask) -> None:
    """Let all retention pass; an answer may be read a moment before its log counts as finished."""
    store = runtime_of(app).store
    wait_until(lambda: store.sweep(1e12) or not store.used_bytes, "nothing is kept")


def live(client: FlaskClient, gate: Gate) -> str:
    """Have a generation that stands at the gate, and give its id."""
    response = client.post("/v1/chat/wait", json=ASKED, headers={"Prefer": "wait=0"})
    assert response.status_code == 202, response.data
    gate.wait_reached()
    return response.headers["X-Stream-Id"]


# Answers


@pytest.mark.parametrize("prefix", ["", "/v1"])
@pytest.mark.requirement("core entity ChatResponse", "chatwait scenario 1", "chatwait FR-001")
@pytest.mark.requirement("chatwait extensibility 4")
def test_wait_answers_with_the_whole_as_json(client: FlaskClient, prefix: str) -> None:
    response = client.post(f"{prefix}/chat/wait", json=ASKED)

    body = response.json
    assert response.status_code == 200
    assert list(body) == [
        "stream_id",
        "correlation_id",
        "status",
        "model",
        "content",
        "finish_reason",
        "tokens",
        "usage",
        "created",
        "first_token_ms",
        "duration_ms",
        "characters",
        "sha256",
    ]
    assert (body["status"], body["content"], body["tokens"]) == ("complete", "Hello", 2)
    assert response.headers["X-Stream-Id"] == body["stream_id"]
    assert response.headers["Location"] == f"/v1/chat/streaming/{body['stream_id']}"
    assert response.headers["X-Correlation-Id"] == body["correlation_id"]
    assert "Preference-Applied" not in response.headers


@pytest.mark.parametrize("path", ["/chat/streaming", "/v1/chat/streaming", "/chat", "/v1/chat"])
@pytest.mark.requirement("core FR-012", "chatwait FR-002")
def test_streaming_answers_with_events(client: FlaskClient, path: str) -> None:
    response = client.post(path, json=ASKED)
    events = events_of(response)

    assert response.status_code == 200
    assert response.content_type == "text/event-stream; charset=utf-8"
    assert response.headers["Cache-Control"] == "no-cache, no-store, no-transform"
    assert response.headers["X-Accel-Buffering"] == "no"
    assert "Content-Encoding" not in response.headers
    assert "Content-Length" not in response.headers
    stream_id = response.headers["X-Stream-Id"]
    assert response.headers["Location"] == f"/v1/chat/streaming/{stream_id}"
    assert events[0].event == "start"
    assert events[-1].event == "done"
    assert events[-1].id == f"{stream_id}.3"
    assert "".join(event.json["content"] for event in events if event.event == "token") == "Hello"
    assert events[0].json["correlation_id"] == response.headers["X-Correlation-Id"]


def test_question_asked_of_the_upstream_is_the_request_with_its_defaults(
    client: FlaskClient, upstream: FakeUpstream
) -> None:
    finished(client)

    (question,) = upstream.questions
    assert question.messages == [{"role": "user", "content": "Hello"}]
    assert (question.model, question.max_tokens, question.temperature) == ("gpt-4o-mini", 4096, None)


@pytest.mark.parametrize(
    ("accept", "is_json"),
    [
        (None, False),
        ("*/*", False),
        ("text/event-stream", False),
        ("application/json", True),
        ("application/json, text/event-stream", False),
        ("application/json;q=0.5, text/event-stream", False),
        ("application/json, text/event-stream;q=0.5", True),
        ("application/json, */*;q=0.1", True),
        ("text/html", False),
        ("application/*", True),
        ("", False),
        ("garbage;;;q=x", False),
    ],
)
def test_chat_answers_as_accept_prefers_and_varies(asked_often: FlaskClient, accept: str | None, is_json: bool) -> None:
    response = asked_often.post("/chat", json=ASKED, headers={} if accept is None else {"Accept": accept})

    assert response.status_code == 200
    assert (response.mimetype == "application/json") is is_json
    assert "Accept" in response.vary


@pytest.mark.requirement("page US3.4")
def test_generation_that_failed_answers_with_its_error_and_what_there_was(make: Make) -> None:
    app = make(FakeUpstream([*texts("He"), errors.UpstreamRateLimited(retry_after_seconds=7)]))
    response = app.test_client().post("/chat/wait", json=ASKED)

    body = shown(response, 429, "upstream_rate_limited")
    assert body["partial"] == {"content": "He", "tokens": 1}
    assert response.headers["Retry-After"] == "7"
    assert response.headers["X-Stream-Id"]


def test_generation_cut_by_a_shutdown_answers_503_with_what_there_was(make: Make, gate: Gate) -> None:
    app = make(FakeUpstream([*texts("He"), gate]))
    client = app.test_client()
    stream_id = live(client, gate)
    runtime_of(app).generations.cancel_all("shutdown")

    body = shown(client.get(f"/chat/wait/{stream_id}"), 503, "shutting_down")

    assert body["partial"] == {"content": "He", "tokens": 1}
    terminal = events_of(client.get(f"/chat/streaming/{stream_id}"))[-1]
    assert (terminal.event, terminal.json["reason"]) == ("cancelled", "shutdown")


def test_question_that_waits_is_counted_in_the_memory_of_the_store(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = runtime_of(client.application).store
    create, counted = store.create, []

    def noting(*given: Any, prompt_bytes: int) -> Any:
        counted.append(prompt_bytes)
        return create(*given, prompt_bytes=prompt_bytes)

    monkeypatch.setattr(store, "create", noting)
    assert client.post("/v1/chat/wait", json={"message": "x" * 5_000}).status_code == 200
    assert len(counted) == 1
    assert counted[0] >= 5_000


# Prefer


@pytest.mark.parametrize(
    "prefer", ["wait=0", "WAIT=0", 'wait="0"', "respond-async, wait=0", "wait=0; foo", "foo,wait = 0"]
)
def test_wait_with_a_preference_answers_202_meanwhile(make: Make, gate: Gate, prefer: str) -> None:
    client = make(FakeUpstream([gate, *whole("a")])).test_client()

    response = client.post("/chat/wait", json=ASKED, headers={"Prefer": prefer})

    stream_id = response.headers["X-Stream-Id"]
    assert response.status_code == 202
    assert response.json == {"stream_id": stream_id, "status": "running", "tokens": 0}
    assert response.headers["Preference-Applied"] == "wait=0"
    assert response.headers["Location"] == f"/v1/chat/wait/{stream_id}"
    gate.wait_reached()
    gate.open()
    assert client.get(f"/chat/wait/{stream_id}").json["content"] == "a"


def test_wait_with_a_preference_of_a_second_answers_the_whole_where_it_comes_in_time(client: FlaskClient) -> None:
    response = client.post("/chat/wait", json=ASKED, headers={"Prefer": "wait=60"})

    assert response.status_code == 200
    assert response.json["content"] == "Hello"


def test_wait_with_a_preference_of_one_second_holds_on_for_it(make: Make, gate: Gate) -> None:
    client = make(FakeUpstream([gate, *whole("a")])).test_client()

    response = client.post("/chat/wait", json=ASKED, headers={"Prefer": "wait=1"})

    assert response.status_code == 202
    assert response.headers["Preference-Applied"] == "wait=1"


@pytest.mark.parametrize("mode", ["streaming", "wait", "long wait"])
def test_connection_is_a_readers_exactly_while_it_counts_as_one(
    make: Make, gate: Gate, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Afterwards it makes room for others, and has 30 s for what it does not read, as any other."""
    monkeypatch.setattr(reading, "is_connected", lambda _: True)
    monkeypatch.setattr(reading, "is_dead", lambda _: False)
    app = make(FakeUpstream([*texts("a"), gate, *whole("\x01" * 32_000 if mode == "long wait" else "b")]))
    runtime = runtime_of(app)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        runtime.connections.is_answered(ours)

        def is_reader() -> bool:
            look = runtime.connections._answered.get(ours)
            return look is not None and look.is_reader

        def go_on() -> None:
            wait_until(is_reader, "it is no reader")
            gate.open()

        path = "/chat/streaming" if mode == "streaming" else "/chat/wait"
        with ThreadPoolExecutor(1) as pool:
            pool.submit(go_on)
            response = app.test_client().post(path, json=ASKED, environ_overrides={"gunicorn.socket": ours})
            told = [is_reader() for _ in response.iter_encoded()]

        assert set(told) == {mode != "wait"}
        assert (runtime.readers.count, is_reader()) == (0, False)


def test_answer_that_escapes_make_long_is_written_in_pieces_and_counts_as_a_reader(make: Make) -> None:
    app = make(FakeUpstream(whole("\x01" * 10_000)), max_readers=1)
    runtime = runtime_of(app)
    response = app.test_client().post("/chat/wait", json=ASKED)

    assert "Content-Length" not in response.headers
    pieces = response.iter_encoded()
    first = next(pieces)
    assert runtime.readers.count == 1
    assert json.loads(first + b"".join(pieces))["content"] == "\x01" * 10_000
    assert runtime.readers.count == 0


@pytest.mark.parametrize("prefer", ["wait=-1", "wait=x", "await=0", "wait", "wait=1.5", "wait=99999999"])
def test_wait_with_an_unusable_preference_ignores_it(asked_often: FlaskClient, prefer: str) -> None:
    response = asked_often.post("/chat/wait", json=ASKED, headers={"Prefer": prefer})

    assert response.status_code == 200
    assert "Preference-Applied" not in response.headers


# Errors


@pytest.mark.parametrize(
    "path", ["/nothing", "/v1/nothing", "/chat/", "/v1/", "/chat/wait/", "/chat/wait/a/b", "/%00", "/health/"]
)
def test_path_that_is_not_there_is_not_found(asked_often: FlaskClient, path: str) -> None:
    for method in ("GET", "POST", "DELETE", "PUT"):
        shown(asked_often.open(path, method=method), 404, "not_found")
    response = asked_often.head(path)
    assert (response.status_code, response.data) == (404, b"")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/chat", {"POST", "OPTIONS"}),
        ("HEAD", "/chat/wait", {"POST", "OPTIONS"}),
        ("PUT", "/v1/chat/streaming", {"POST", "OPTIONS"}),
        ("POST", "/v1/chat/wait/x", {"GET", "HEAD", "DELETE", "OPTIONS"}),
        ("PATCH", "/chat/streaming/x", {"GET", "HEAD", "DELETE", "OPTIONS"}),
        ("DELETE", "/models", {"GET", "HEAD", "OPTIONS"}),
        ("TRACE", "/health", {"GET", "HEAD", "OPTIONS"}),
        ("NONSENSE", "/health", {"GET", "HEAD", "OPTIONS"}),
    ],
)
def test_method_that_is_not_taken_is_refused_with_allow(
    asked_often: FlaskClient, method: str, path: str, allow: set[str]
) -> None:
    response = asked_often.open(path, method=method)

    assert response.status_code == 405
    assert set(response.headers["Allow"].split(", ")) == allow
    if method != "HEAD":
        shown(response, 405, "method_not_allowed")


@pytest.mark.parametrize("path", ["/chat", "/chat/wait", "/v1/chat/streaming"])
def test_content_type_that_is_not_json_is_refused(asked_often: FlaskClient, path: str) -> None:
    for content_type in (
        None,
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/jsonx",
        "multipart/form-data",
    ):
        response = asked_often.post(path, data=b'{"message":"a"}', content_type=content_type)
        shown(response, 415, "unsupported_media_type")


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "Application/JSON"])
def test_content_type_of_json_is_taken(asked_often: FlaskClient, content_type: str) -> None:
    assert asked_often.post("/chat/wait", data=b'{"message":"a"}', content_type=content_type).status_code == 200


def test_body_at_its_limit_is_read_and_one_byte_more_is_too_large(client: FlaskClient) -> None:
    def post(size: int) -> TestResponse:
        body = json.dumps(ASKED).encode()
        return client.post("/chat/wait", data=body + b" " * (size - len(body)), content_type="application/json")

    assert post(1_048_576).status_code == 200
    assert "1048576" in shown(post(1_048_577), 413, "body_too_large")["detail"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"[]", "invalid_request"),
        (b"{}", "invalid_request"),
        (b'{"message": " "}', "message_empty"),
        (b'{"message": "%s"}' % (b"x" * 8001), "message_too_long"),
        (b'{"message": "a", "model": "none"}', "model_not_allowed"),
    ],
)
def test_body_that_cannot_be_used_is_refused_and_begins_nothing(
    client: FlaskClient, upstream: FakeUpstream, body: bytes, code: str
) -> None:
    for path in ("/chat", "/chat/wait", "/chat/streaming"):
        response = client.post(path, data=body, content_type="application/json", headers=KEY)
        assert ("fields" in shown(response, 400, code)) == (code == "invalid_request")
    assert upstream.questions == []
    assert finished_with_key(client) == "complete", "and the key is not bound"


def finished_with_key(client: FlaskClient) -> str:
    status: str = client.post("/chat/wait", json=ASKED, headers=KEY).json["status"]
    return status


def test_bug_of_ours_answers_500_without_its_words(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("secret words")

    monkeypatch.setattr(runtime_of(app).store, "find", fail)

    response = app.test_client().get("/chat/wait/x")

    body = shown(response, 500, "internal_error")
    assert body["retryable"] is True
    assert b"secret words" not in response.data


def test_store_without_room_answers_503_with_retry_after(make: Make, gate: Gate) -> None:
    client = make(FakeUpstream([gate]), max_active_streams=1).test_client()
    live(client, gate)

    for path in ("/chat/wait", "/chat/streaming", "/chat"):
        shown(client.post(path, json=ASKED), 503, "overloaded")


def test_readers_at_their_limit_answer_503_with_retry_after(make: Make, gate: Gate) -> None:
    app = make(FakeUpstream([gate]), max_readers=1)
    client = app.test_client()
    stream_id = live(client, gate)
    first = client.get(f"/chat/streaming/{stream_id}")
    assert next(first.response)

    for response in (
        client.post("/chat/wait", json=ASKED),
        client.get(f"/chat/streaming/{stream_id}"),
        client.get(f"/chat/wait/{stream_id}"),
    ):
        shown(response, 503, "overloaded")
    assert client.head(f"/chat/streaming/{stream_id}").status_code in (200, 503)
    first.close()
    assert runtime_of(app).readers.count == 0


def test_worker_that_stops_takes_nothing_new_and_serves_what_there_is(make: Make, gate: Gate) -> None:
    app = make(FakeUpstream([gate, *whole("a")]))
    client = app.test_client()
    first = client.post("/chat/wait", json=ASKED, headers={**KEY, "Prefer": "wait=0"})
    gate.wait_reached()
    runtime_of(app).store.stop_admitting()

    shown(client.post("/chat/wait", json=ASKED), 503, "shutting_down")
    again = client.post("/chat/wait", json=ASKED, headers={**KEY, "Prefer": "wait=0"})
    assert again.headers["X-Stream-Id"] == first.headers["X-Stream-Id"]
    gate.open()
    assert client.get(f"/chat/wait/{first.headers['X-Stream-Id']}").json["content"] == "a"


# Every response


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/health"),
        ("GET", "/ready"),
        ("GET", "/models"),
        ("GET", "/"),
        ("GET", "/nothing"),
        ("PUT", "/chat"),
        ("POST", "/chat"),
        ("POST", "/chat/streaming"),
        ("GET", "/chat/streaming/x"),
        ("DELETE", "/chat/wait/x"),
        ("HEAD", "/health"),
        ("OPTIONS", "/chat"),
        ("OPTIONS", "/nothing"),
    ],
)
@pytest.mark.requirement("core FR-005")
def test_response_of_any_status_carries_a_fresh_correlation_id(
    asked_often: FlaskClient, method: str, path: str
) -> None:
    ids = [asked_often.open(path, method=method).headers.getlist("X-Correlation-Id") for _ in range(2)]

    assert [len(found) for found in ids] == [1, 1]
    assert ids[0] != ids[1]
    assert UUID(ids[0][0]).version == 4


@pytest.mark.parametrize("request_id", ["x", "a-b.c:d_9", "x" * 10_000, "a b", "é", "'; drop"])
def test_request_id_of_the_client_is_not_echoed(asked_often: FlaskClient, request_id: str) -> None:
    response = asked_often.get("/health", headers={"X-Request-ID": request_id})

    assert response.status_code == 200
    assert request_id not in str(response.headers).replace("X-Request-ID", "").split("\r\n") or len(request_id) == 1
    assert response.headers["X-Correlation-Id"] != request_id


# Who may ask


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]", "[::1]:8000", "localhost:"])
def test_host_that_is_allowed_is_answered(asked_often: FlaskClient, host: str) -> None:
    assert asked_often.get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "evil-localhost",
        "",
        "localhost@evil.example",
        "127.0.0.1.evil",
        "[::2]",
        "localhost:80:80",
        "localhost:x",
    ],
)
def test_host_that_is_not_allowed_is_refused(asked_often: FlaskClient, host: str) -> None:
    before = questions_of(asked_often)
    headers = {"Host": host}
    for response in (
        asked_often.get("/health", headers=headers),
        asked_often.post("/chat/wait", json=ASKED, headers=headers),
        asked_often.get("/nothing", headers=headers),
        asked_often.options("/chat", headers=headers),
    ):
        shown(response, 400, "host_not_allowed")
    assert questions_of(asked_often) == before


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost.evil.example"},
        {"Origin": "http://localhost:9999"},
        {"Origin": "https://chat.example.org.evil"},
        {"Origin": "http://chat.example.org"},
        {"Origin": "https://chat.example.org:8443"},
        {"Origin": "http://[::1"},
        {"Origin": "garbage"},
        {"Origin": "http://localhost:99999999"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "Cross-Site"},
        {"Origin": "https://evil.example", "Sec-Fetch-Site": "same-origin"},
    ],
)
def test_origin_of_strangers_may_not_start_or_stop_anything(asked_often: FlaskClient, headers: dict[str, str]) -> None:
    before = questions_of(asked_often)
    for response in (
        asked_often.post("/chat/wait", json=ASKED, headers=headers),
        asked_often.post("/v1/chat/streaming", json=ASKED, headers=headers),
        asked_often.delete("/chat/streaming/x", headers=headers),
    ):
        shown(response, 403, "origin_not_allowed")
        assert "Access-Control-Allow-Origin" not in response.headers
    assert questions_of(asked_often) == before


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://localhost"},
        {"Origin": "https://localhost:80", "Host": "localhost:80"},
        {"Origin": "http://localhost:8000", "Host": "localhost:8000"},
        {"Origin": LISTED},
        {"Origin": LISTED.upper()},
        {"Origin": LISTED, "Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
    ],
)
def test_origin_of_ours_or_listed_may_start(asked_often: FlaskClient, headers: dict[str, str]) -> None:
    assert asked_often.post("/chat/wait", json=ASKED, headers=headers).status_code == 200


# CORS

EXPOSED = {"X-Stream-Id", "Location", "X-Correlation-Id", "Retry-After", "Preference-Applied"}


def words(value: str) -> set[str]:
    return {word.strip() for word in value.split(",")}


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/health"), ("POST", "/chat/wait"), ("GET", "/nothing"), ("POST", "/chat"), ("GET", "/chat/streaming/x")],
)
def test_cors_for_a_listed_origin_shows_the_answer_and_its_headers(
    asked_often: FlaskClient, method: str, path: str
) -> None:
    response = asked_often.open(
        path, method=method, json=ASKED if method == "POST" else None, headers={"Origin": LISTED}
    )

    assert response.headers["Access-Control-Allow-Origin"] == LISTED
    assert words(response.headers["Access-Control-Expose-Headers"]) == EXPOSED
    assert "Access-Control-Allow-Credentials" not in response.headers
    assert "Origin" in response.vary


@pytest.mark.parametrize("origin", ["https://evil.example", None])
def test_cors_for_any_other_origin_shows_nothing_and_varies_all_the_same(
    asked_often: FlaskClient, origin: str | None
) -> None:
    response = asked_often.get("/health", headers={"Origin": origin} if origin else {})

    assert not [name for name, _ in response.headers if name.startswith("Access-Control")]
    assert "Origin" in response.vary


def test_cors_without_listed_origins_shows_nothing(make: Make) -> None:
    response = make(cors_origins=()).test_client().get("/health", headers={"Origin": LISTED})

    assert not [name for name, _ in response.headers if name.startswith("Access-Control")]


@pytest.mark.parametrize("path", ["/chat", "/v1/chat/wait", "/chat/streaming/x", "/models"])
def test_preflight_of_a_listed_origin_answers_204_with_what_is_allowed(asked_often: FlaskClient, path: str) -> None:
    response = asked_often.options(path, headers={"Origin": LISTED, "Access-Control-Request-Method": "POST"})

    assert (response.status_code, response.data) == (204, b"")
    assert response.headers["Access-Control-Allow-Origin"] == LISTED
    assert words(response.headers["Access-Control-Allow-Methods"]) == {"GET", "POST", "DELETE"}
    assert words(response.headers["Access-Control-Allow-Headers"]) == {
        "Content-Type",
        "Last-Event-ID",
        "Idempotency-Key",
        "Prefer",
        "X-Request-ID",
    }
    assert "OPTIONS" in words(response.headers["Allow"])


def test_preflight_of_openais_client_in_a_browser_allows_its_headers_and_no_others(asked_often: FlaskClient) -> None:
    openais = ["authorization", "OpenAI-Organization", "x-stainless-retry-count", "X-Stainless-Runtime-Version"]
    others = ["cookie", "x-stainless-", f"x-stainless-{'a' * 61}", "openai_beta", "x-forwarded-for"]
    headers = {"Origin": LISTED, "Access-Control-Request-Headers": ",".join([*others, *openais])}

    allowed = words(
        asked_often.options("/v1/chat/completions", headers=headers).headers["Access-Control-Allow-Headers"]
    )
    assert allowed & {*openais, *others} == set(openais)


def test_page_with_openais_client_may_read_what_that_client_reads(asked_often: FlaskClient) -> None:
    response = asked_often.post("/v1/chat/completions", json={}, headers={"Origin": LISTED})

    assert response.status_code == 400
    shown = words(response.headers["Access-Control-Expose-Headers"])
    assert {name.lower() for name in shown - EXPOSED} == {"x-request-id", "x-should-retry"}


def test_preflight_of_a_stranger_answers_204_and_allows_nothing(asked_often: FlaskClient) -> None:
    response = asked_often.options("/chat", headers={"Origin": "https://evil.example"})

    assert response.status_code == 204
    assert not [name for name, _ in response.headers if name.startswith("Access-Control")]


# HEAD


def test_head_answers_at_once_and_is_no_reader(make: Make, gate: Gate) -> None:
    app = make(FakeUpstream([gate]))
    client = app.test_client()
    stream_id = live(client, gate)

    for path in (f"/chat/streaming/{stream_id}", f"/chat/wait/{stream_id}", "/health", "/ready", "/models", "/"):
        response = client.head(path)
        assert response.status_code in (200, 202)
        assert response.data == b""
    log = runtime_of(app).store.find(stream_id)
    assert (log.readers, runtime_of(app).readers.count) == (0, 0)
    assert client.head(f"/chat/streaming/{new_stream_id()}").status_code == 404


# Cursors


MALFORMED = [
    "-1",
    "abc",
    "5",
    ".",
    "cw_x.",
    ".5",
    "cw_x.-1",
    "cw_x.+1",
    "cw_x.01",
    "cw_x.1.5",
    "cw_x.1e3",
    "cw_x. 1",
    " cw_x.1",
    "cw_x.9007199254740993",
    "cw_x.9223372036854775808",
    "cw_x." + "9" * 100,
    "x" * 7000 + ".1",
    "x" * 127 + ".1",
    "cw_é.1",
    "cw_x.\u0661",
    "*.1",
    "cw/x.1",
]
CONTROLS = ["cw_x.1\0", "cw_x.1\n", "\r\ncw_x.1", "cw_x.1\x7f", "\x01", "cw_x\u2028.1"]


RESUMED = [
    ("GET", "/chat/streaming/cw_x"),
    ("POST", "/chat/streaming"),
    ("GET", "/chat/wait/cw_x"),
    ("POST", "/chat/wait"),
    ("POST", "/chat"),
]


def ask_with_cursor(client: FlaskClient, method: str, path: str, **more: Any) -> TestResponse:
    return client.open(path, method=method, json=ASKED if method == "POST" else None, **more)


def test_cursor_in_the_header_that_is_malformed_is_refused(client: FlaskClient, upstream: FakeUpstream) -> None:
    """Each is sent once, to one address after the other; all of them read it with one function."""
    for cursor, (method, path) in zip(MALFORMED, cycle(RESUMED), strict=False):
        headers = {"Last-Event-ID": cursor.encode().decode("latin-1")}
        shown(ask_with_cursor(client, method, path, headers=headers), 400, "cursor_malformed")
    assert upstream.questions == []


def test_cursor_in_the_query_that_is_malformed_is_refused(client: FlaskClient, upstream: FakeUpstream) -> None:
    """Under either name."""
    names = ("last_event_id", "lastEventId")
    ways = [(name, *resumed) for resumed in RESUMED for name in names]
    for cursor, (name, method, path) in zip([*MALFORMED, *CONTROLS], cycle(ways), strict=False):
        shown(ask_with_cursor(client, method, path, query_string={name: cursor}), 400, "cursor_malformed")
    assert upstream.questions == []


def resume(client: FlaskClient, how: str, stream_id: str, cursor: str, path_id: str | None = None) -> TestResponse:
    """Resume in one of the ways there are."""
    mode = "wait" if how.endswith("wait") else "streaming"
    path = f"/chat/{mode}" if how.startswith("post") else f"/chat/{mode}/{path_id or stream_id}"
    method = "POST" if how.startswith("post") else "GET"
    return client.open(path, method=method, headers={"Last-Event-ID": cursor}, data=b"no JSON at all")


WAYS = ["get streaming", "get wait", "post streaming", "post wait"]


@pytest.mark.parametrize("how", ["get streaming", "get wait"])
def test_cursor_of_another_stream_is_foreign_before_anything_else(client: FlaskClient, how: str) -> None:
    one, other = finished(client), finished(client)

    shown(resume(client, how, one, f"{other}.1"), 400, "cursor_foreign")
    shown(resume(client, how, new_stream_id(), f"{other}.1"), 400, "cursor_foreign")


@pytest.mark.parametrize("how", WAYS)
def test_cursor_of_a_stream_that_is_gone_says_so(
    client: FlaskClient, app: Flask, upstream: FakeUpstream, how: str
) -> None:
    stream_id = finished(client)
    forget(app)
    unknown = new_stream_id()

    for sequence in (0, 1, 3, 9):
        shown(resume(client, how, stream_id, f"{stream_id}.{sequence}"), 410, "stream_expired")
        for _ in range(2):
            shown(resume(client, how, unknown, f"{unknown}.{sequence}"), 404, "stream_unknown")
    assert len(upstream.questions) == 1


@pytest.mark.parametrize("how", WAYS)
def test_cursor_beyond_the_head_is_ahead(make: Make, gate: Gate, how: str) -> None:
    client = make(FakeUpstream([*texts("a"), gate, *whole("b")])).test_client()
    stream_id = live(client, gate)

    shown(resume(client, how, stream_id, f"{stream_id}.2"), 409, "cursor_ahead")
    shown(resume(client, how, stream_id, f"{stream_id}.9007199254740992"), 409, "cursor_ahead")
    gate.open()
    assert client.get(f"/chat/wait/{stream_id}").json["content"] == "ab"
    shown(resume(client, how, stream_id, f"{stream_id}.4"), 409, "cursor_ahead")


@pytest.mark.parametrize("how", ["get streaming", "post streaming"])
def test_cursor_inside_a_log_gets_what_follows_it(client: FlaskClient, upstream: FakeUpstream, how: str) -> None:
    stream_id = finished(client)

    def resumed(sequence: int) -> list[str]:
        events = events_of(resume(client, how, stream_id, f"{stream_id}.{sequence}"))
        assert events[-1].event == "done"
        assert events[0].event == ("ping" if sequence else "start")
        return [event.json["content"] for event in events if event.event == "token"]

    assert [resumed(0), resumed(1), resumed(2)] == [["Hello"], ["llo"], []]
    assert len(upstream.questions) == 1


@pytest.mark.parametrize("how", ["get streaming", "post streaming"])
def test_cursor_of_the_terminal_event_answers_204(client: FlaskClient, upstream: FakeUpstream, how: str) -> None:
    stream_id = finished(client)

    response = resume(client, how, stream_id, f"{stream_id}.3")

    assert (response.status_code, response.data) == (204, b"")
    assert len(upstream.questions) == 1


def test_cursor_in_wait_mode_needs_a_place_as_any_other_reader(make: Make, gate: Gate) -> None:
    app = make(FakeUpstream([*texts("a"), gate, *whole("b")]))
    client = app.test_client()
    back = {"Last-Event-ID": f"{live(client, gate)}.1", "Prefer": "wait=0"}
    assert client.post("/v1/chat/wait", headers=back).status_code == 202

    runtime_of(app).readers._limit = 0
    shown(client.post("/v1/chat/wait", headers=back), 503, "overloaded")


@pytest.mark.parametrize("how", ["get wait", "post wait"])
@pytest.mark.parametrize("sequence", [0, 1, 2, 3])
def test_cursor_in_wait_mode_answers_the_whole(
    client: FlaskClient, upstream: FakeUpstream, how: str, sequence: int
) -> None:
    stream_id = finished(client)

    response = resume(client, how, stream_id, f"{stream_id}.{sequence}")

    assert response.status_code == 200
    assert (response.json["stream_id"], response.json["content"]) == (stream_id, "Hello")
    assert len(upstream.questions) == 1


def test_cursor_at_the_head_of_a_live_log_gets_a_ping_and_waits_for_the_next_token(make: Make, gate: Gate) -> None:
    client = make(FakeUpstream([*texts("a"), gate, *whole("b")])).test_client()
    stream_id = live(client, gate)
    response = client.get(f"/chat/streaming/{stream_id}", headers={"Last-Event-ID": f"{stream_id}.1"})
    pieces = iter(response.response)

    assert b"event: ping" in next(pieces)
    gate.open()
    assert b'"content":"b"' in next(pieces)
    assert b"event: done" in next(pieces)
    assert list(pieces) == []
    response.close()


def test_cursor_of_the_header_wins_over_the_querys_and_empty_is_absent(client: FlaskClient) -> None:
    stream_id = finished(client)

    def tokens(header: str | None, **query: str) -> list[str]:
        response = client.get(
            f"/chat/streaming/{stream_id}",
            query_string=query,
            headers={} if header is None else {"Last-Event-ID": header},
        )
        return [event.json["content"] for event in events_of(response) if event.event == "token"]

    newer, older = f"{stream_id}.2", f"{stream_id}.1"
    assert tokens(newer, last_event_id=older) == []
    assert tokens(None, last_event_id=older) == ["llo"]
    assert tokens(None, lastEventId=older) == ["llo"]
    assert tokens("", last_event_id=older) == ["llo"]
    assert tokens(None, last_event_id="", lastEventId=older) == ["llo"]
    assert tokens("", last_event_id="", lastEventId="") == ["Hello"]
    assert tokens(newer, last_event_id="malformed") == []


def test_post_with_an_empty_cursor_starts_a_generation(client: FlaskClient, upstream: FakeUpstream) -> None:
    response = client.post("/chat/wait?last_event_id=", json=ASKED, headers={"Last-Event-ID": ""})

    assert response.status_code == 200
    assert len(upstream.questions) == 1


@pytest.mark.parametrize("path", ["/chat/wait", "/chat/streaming"])
def test_post_with_a_cursor_ignores_its_body_type_and_key(
    client: FlaskClient, upstream: FakeUpstream, path: str
) -> None:
    stream_id = finished(client)
    response = client.post(
        path,
        data=b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        content_type="text/plain",
        headers={"Last-Event-ID": f"{stream_id}.1", "Idempotency-Key": "short"},
    )

    assert response.status_code == 200
    assert response.headers["X-Stream-Id"] == stream_id
    assert len(upstream.questions) == 1


# Keys


@pytest.mark.parametrize("key", ["", "short", "x" * 15, "x" * 256, "with a space in it", "é" * 16, "\x7f" * 16])
def test_key_that_is_malformed_is_refused(client: FlaskClient, upstream: FakeUpstream, key: str) -> None:
    response = client.post("/chat/wait", json=ASKED, headers={"Idempotency-Key": key.encode().decode("latin-1")})

    assert "Idempotency-Key" in shown(response, 400, "invalid_request")["fields"]
    assert upstream.questions == []


@pytest.mark.parametrize("key", ["a" * 16, "a" * 255, "0" * 15 + "1", "abc" * 85, "-" * 14 + "ab"])
def test_key_that_anybody_could_have_is_refused_in_three_parts(
    client: FlaskClient, upstream: FakeUpstream, key: str
) -> None:
    for path in ("/chat/wait", "/chat/streaming", "/chat"):
        told = shown(client.post(path, json=ASKED, headers={"Idempotency-Key": key}), 400, "invalid_request")
        assert "fewer than 4 different characters" in told["detail"]
        assert "`fields`" in told["action"]
        assert "random" in " ".join(told["fields"]["Idempotency-Key"])
        assert key not in str(told)
    assert upstream.questions == []
    assert client.post("/chat/wait", json=ASKED, headers={"Idempotency-Key": key[:-3] + "~+!"}).status_code == 200


def test_key_of_a_proxy_starts_a_request_once(make: Make) -> None:
    """A proxy that got no answer sends the request again, with the key that it made."""
    upstream = FakeUpstream(whole("a"), whole("b"))
    client = make(upstream).test_client()

    for path in ("/chat/wait", "/v1/chat", "/chat/wait"):
        answer = client.post(path, json=ASKED, headers={**OF_PROXY, "Accept": "application/json"})
        assert answer.json["content"] == "a"
    assert len(upstream.questions) == 1
    shown(client.post("/chat/wait", json={"message": "Other"}, headers=OF_PROXY), 422, "idempotency_key_reused")


def test_key_of_a_proxy_is_ignored_beside_the_clients(make: Make) -> None:
    """Even one that no key may be, and one that has begun another answer."""
    upstream = FakeUpstream(whole("a"), whole("b"))
    client = make(upstream).test_client()

    assert client.post("/chat/wait", json=ASKED, headers=OF_PROXY).json["content"] == "a"
    for odd in ("", "short", OF_PROXY["Proxy-Idempotency-Key"]):
        headers = {**KEY, "Proxy-Idempotency-Key": odd}
        assert client.post("/chat/wait", json=ASKED, headers=headers).json["content"] == "b"
    assert len(upstream.questions) == 2
    shown(client.post("/chat/wait", json=ASKED, headers={**OF_PROXY, "Idempotency-Key": ""}), 400, "invalid_request")


@pytest.mark.parametrize("key", ["", "short", "x" * 256, "abc" * 6, "with a space in it"])
def test_key_of_a_proxy_is_held_to_the_rules_of_keys(client: FlaskClient, upstream: FakeUpstream, key: str) -> None:
    """Anybody may send the header: one that can be guessed would let a stranger read the answer."""
    told = shown(client.post("/chat/wait", json=ASKED, headers={"Proxy-Idempotency-Key": key}), 400, "invalid_request")

    assert list(told["fields"]) == ["Proxy-Idempotency-Key"]
    assert upstream.questions == []


def test_key_attaches_live_and_finished_in_any_mode(make: Make, gate: Gate) -> None:
    upstream = FakeUpstream([*texts("a"), gate, *whole("b")])
    client = make(upstream).test_client()
    first = client.post("/chat/wait", json=ASKED, headers={**KEY, "Prefer": "wait=0"})
    gate.wait_reached()
    stream_id = first.headers["X-Stream-Id"]
    same = {"max_tokens": 4096, **ASKED}

    attached = client.post("/chat/streaming", json=same, headers=KEY)
    gate.open()

    assert attached.headers["X-Stream-Id"] == stream_id
    assert events_of(attached)[-1].event == "done"
    again = client.post("/v1/chat/wait", json=ASKED, headers=KEY)
    assert (again.headers["X-Stream-Id"], again.json["content"]) == (stream_id, "ab")
    assert len(upstream.questions) == 1


def test_key_with_another_request_is_refused_and_a_gone_one_has_expired(client: FlaskClient, app: Flask) -> None:
    assert finished_with_key(client) == "complete"

    shown(client.post("/chat/wait", json={"message": "Other"}, headers=KEY), 422, "idempotency_key_reused")
    forget(app)
    shown(client.post("/chat/streaming", json=ASKED, headers=KEY), 410, "stream_expired")


def test_key_of_a_generation_that_failed_before_its_first_token_is_free_again(make: Make) -> None:
    client = make(FakeUpstream([errors.UpstreamError()], whole("a"))).test_client()

    shown(client.post("/chat/wait", json=ASKED, headers=KEY), 502, "upstream_error")
    assert finished_with_key(client) == "complete"


def test_key_of_a_generation_that_failed_later_stays_bound(make: Make) -> None:
    upstream = FakeUpstream([*texts("a"), errors.UpstreamError()], whole("b"))
    client = make(upstream).test_client()

    for _ in range(2):
        shown(client.post("/chat/wait", json=ASKED, headers=KEY), 502, "upstream_error")
    assert len(upstream.questions) == 1


# Stopping


@pytest.mark.parametrize("mode", ["streaming", "wait"])
def test_delete_stops_a_generation_and_says_so_every_time(make: Make, gate: Gate, mode: str) -> None:
    upstream = FakeUpstream([*texts("a"), gate])
    client = make(upstream).test_client()
    stream_id = live(client, gate)

    for _ in range(2):
        response = client.delete(f"/v1/chat/{mode}/{stream_id}")
        assert response.status_code == 200
        assert response.json == {"stream_id": stream_id, "status": "cancelled", "tokens": 1}
    assert upstream.calls[0].cancelled
    body = client.get(f"/chat/wait/{stream_id}").json
    assert (body["status"], body["reason"], body["content"]) == ("cancelled", "client", "a")


def test_delete_after_the_end_says_how_it_ended(client: FlaskClient) -> None:
    stream_id = finished(client)

    assert client.delete(f"/chat/wait/{stream_id}").json == {"stream_id": stream_id, "status": "complete", "tokens": 2}
    shown(client.delete(f"/chat/wait/{new_stream_id()}"), 404, "stream_unknown")


# Health, readiness, models


@pytest.mark.parametrize("prefix", ["", "/v1"])
@pytest.mark.requirement("tasks T016", "tasks checklist 5")
def test_health_is_healthy_and_touches_nothing(asked_often: FlaskClient, prefix: str) -> None:
    body = asked_often.get(f"{prefix}/health").json

    assert list(body) == ["status", "timestamp", "version"]
    assert (body["status"], body["version"]) == ("healthy", VERSION)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", body["timestamp"])
    assert datetime.fromisoformat(body["timestamp"])


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_ready_tells_each_part_and_a_remote_upstream_does_not_turn_it_red(make: Make, prefix: str) -> None:
    upstream = FakeUpstream(whole("a"))
    upstream.is_ready = False
    response = make(upstream).test_client().get(f"{prefix}/ready")

    assert response.status_code == 200
    assert response.json["parts"] == {"store": "ready", "upstream": "remote", "worker": "ready"}


def test_ready_is_red_without_the_store_or_the_embedded_model(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    app = make()
    monkeypatch.setattr(runtime_of(app).store, "ready", lambda: False)
    response = app.test_client().get("/ready")
    assert (response.status_code, response.json["parts"]["store"]) == (503, "unavailable")

    upstream = FakeUpstream(whole("a"))
    local = make(upstream, openai_base_url="", openai_api_key="").test_client()
    assert (local.get("/ready").status_code, local.get("/ready").json["parts"]["upstream"]) == (200, "ready")
    upstream.is_ready = False
    assert (local.get("/ready").status_code, local.get("/ready").json["parts"]["upstream"]) == (503, "unavailable")


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_models_lists_what_may_be_asked_and_the_limits(asked_often: FlaskClient, prefix: str) -> None:
    body = asked_often.get(f"{prefix}/models").json

    assert list(body) == ["object", "data", "default", "limits"]
    assert body["object"] == "list"
    assert body["data"] == [
        {"id": name, "object": "model", "created": 0, "owned_by": "chatwait"} for name in ("gpt-4o-mini", "other")
    ]
    assert body["default"] == "gpt-4o-mini"
    limits = body["limits"]
    assert limits["max_message_chars"] == 8000
    assert limits["max_body_bytes"] == 1_048_576
    assert set(limits) >= {
        "max_context_messages",
        "max_input_tokens",
        "max_tokens",
        "default_max_tokens",
        "heartbeat_seconds",
    }
    assert not [name for name in limits if "key" in name or "url" in name]


def test_page_has_its_policy_and_is_not_under_v1(client: FlaskClient) -> None:
    page = client.get("/")

    assert page.status_code == 200
    assert page.mimetype == "text/html"
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    shown(client.get("/v1/"), 404, "not_found")


def test_application_closed_cancels_what_runs_and_closes_the_upstream(gate: Gate) -> None:
    upstream = FakeUpstream([gate])
    app = create_app(SETTINGS, upstream=upstream)
    client = app.test_client()
    stream_id = live(client, gate)

    runtime_of(app).close()

    assert upstream.is_closed
    end = runtime_of(app).store.find(stream_id).end
    assert end is not None
    assert end.reason == "shutdown"
