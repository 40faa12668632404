"""One evening of a service, and its log: what happened stands in it, and nothing that anybody said."""

from __future__ import annotations

import hashlib
import re
import secrets
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.harness.reader import Answer, Headers, Reply, delete, get, open_stream, post, read_answer, request
from tests.harness.server import ChatWait
from tests.harness.upstream import (
    Close,
    Delta,
    Done,
    Finish,
    Gate,
    Raw,
    Reset,
    Script,
    ScriptedUpstream,
    Stall,
    Token,
    Usage,
    error,
)
from tests.live.rawhttp import send_anything
from tests.live.steps import about, begin, cursor, log_name, read_on, together

SECRET_WORD = "quetzalcoatl"
"""In everything that a client or the upstream says; with what follows it, it stands in no line."""
USAGE = {"prompt_tokens": 31, "completion_tokens": 3, "total_tokens": 34}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
LEVELS = ("INFO", "DEBUG")
ENDED = ("complete", "cancelled", "failed")


class Canaries:
    """Make things that must stay out of the log, and remember them."""

    def __init__(self) -> None:
        self.planted: list[str] = [SECRET_WORD]

    def word(self) -> str:
        """Make a text of a conversation."""
        return self.plant(f"{SECRET_WORD}-{secrets.token_hex(6)}")

    def plant(self, secret: str) -> str:
        self.planted.append(secret)
        return secret


@dataclass
class Evening:
    """What was done, and the log that it left."""

    level: str
    log: list[dict[str, Any]]
    output: str
    stderr: list[str]
    planted: list[str]
    whole: Answer
    resumed: Headers
    waited: Reply
    failed: Answer
    retried: Answer
    cancelled: str
    many: Answer
    refused: list[Reply]
    started: list[str] = field(default_factory=list)

    def of(self, event: str, stream_id: str | None = None, **fields: Any) -> list[dict[str, Any]]:
        """List the lines of an event, of one stream if it is named."""
        wanted = {"event": event, **fields} | ({"stream": log_name(stream_id)} if stream_id else {})
        return [line for line in self.log if all(line.get(name) == value for name, value in wanted.items())]

    def one(self, event: str, stream_id: str | None = None, **fields: Any) -> dict[str, Any]:
        (line,) = self.of(event, stream_id, **fields)
        return line


def refuse_all(url: str, word: str, secret: str) -> list[Reply]:
    """Ask for all that is refused, with the words where a client can put them."""
    headers = {
        "User-Agent": word,
        "Referer": f"https://{word}.example/{word}",
        "Cookie": f"session={secret}",
        "Authorization": f"Bearer {secret}",
        "X-Forwarded-For": word,
        "X-Request-ID": f"{word} {word}",
    }
    ask = f"{url}/chat/wait"
    return [
        post(ask, data=f'{{"message": "{word}'.encode(), headers={"Content-Type": "application/json", **headers}),
        post(ask, {"message": word, word: word}, headers=headers),
        post(ask, {"message": word, "model": word}, headers=headers),
        post(ask, {"message": word, "temperature": word}, headers=headers),
        post(ask, {"message": word * 800}, headers=headers),
        post(ask, data=word.encode(), headers={"Content-Type": f"text/{word}", **headers}),
        post(ask, {"message": word}, headers={"Idempotency-Key": f"{word} {secret}", **headers}),
        post(ask, {"message": word}, headers={"Origin": f"https://{word}.example", **headers}),
        get(f"{url}/{word}?{word}={secret}", headers),
        get(f"{url}/health", {**headers, "Host": f"{word}.example"}),
        get(f"{url}/chat/streaming/{word}", headers),
        get(f"{url}/chat/streaming/cw_x?last_event_id={word}%0a{secret}", headers),
        get(f"{url}/chat/streaming/cw_x", {**headers, "Last-Event-ID": f"{word}.5"}),
        delete(f"{url}/chat/wait/{word}", headers),
        request("PUT", f"{url}/chat/wait", data=word.encode(), headers=headers),
    ]


@pytest.fixture(scope="module")
def evenings() -> dict[str, Evening]:
    """Spend one at each level, both at the same time."""
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(LEVELS, pool.map(have_an_evening, LEVELS), strict=True))


@pytest.fixture(params=LEVELS)
def evening(request: pytest.FixtureRequest, evenings: dict[str, Evening]) -> Evening:
    return evenings[request.param]


def have_an_evening(level: str) -> Evening:
    """Run a service through all that can happen to it, and stop it."""
    canaries = Canaries()
    key = canaries.plant(f"sk-{secrets.token_hex(16)}")
    options = {"OPENAI_API_KEY": key, "HEARTBEAT_SECONDS": 1, "TIMEOUT_SECONDS": 5, "LOG_LEVEL": level}
    with ScriptedUpstream() as upstream, ChatWait(OPENAI_BASE_URL=upstream.base_url, **options) as chatwait:
        return spend(chatwait, upstream, canaries, level)


def spend(chatwait: ChatWait, upstream: ScriptedUpstream, canaries: Canaries, level: str) -> Evening:
    url, word = chatwait.base_url, canaries.word
    stream = f"{url}/chat/streaming"

    def asking(script: Script) -> dict[str, Any]:
        body = about(upstream, script, word())
        return body | {"context": [{"role": "system", "content": word()}, {"role": "assistant", "content": word()}]}

    # A stream that is read, left, and come back to.
    first, rest = [Token(word()), Token("é🙂" + word())], [Token(word()), Finish(), Usage(USAGE), Done()]
    key = {"Idempotency-Key": canaries.plant(secrets.token_urlsafe(24))}
    body = asking(Script(headers={"x-ratelimit-limit-requests": "60"}, steps=[*first, Gate("later"), *rest]))
    whole = Answer()
    with open_stream(stream, json=body, headers=key) as connection:
        whole.begin_connection(connection.headers)
        for event in connection.events():
            whole.add(event)
            if whole.tokens == 2:
                break
    begun = whole.headers
    name = log_name(whole.stream_id or "")
    chatwait.wait_for_log("reader_left", stream=name)
    with ThreadPoolExecutor(1) as pool:
        rest_of_it = pool.submit(read_on, whole, url)
        chatwait.wait_for_log("reader_attached", stream=name, after=2)
        upstream.open("later")
        rest_of_it.result().verify()
    resumed, whole.headers = whole.headers, begun
    waited = post(f"{url}/chat/wait?{word()}", body, headers=key)
    get(f"{stream}/{whole.stream_id}?last_event_id={whole.last_event_id}")
    post(stream, {"message": word()}, headers=cursor(whole.stream_id or "", 1))

    # Failures of the upstream, with words of its own.
    said = f"{word()} {canaries.plant('sk-' + secrets.token_hex(12))} Bearer {canaries.plant(secrets.token_hex(12))}"
    said += f" cookie={canaries.plant(secrets.token_hex(12))}"
    failed = read_answer(stream, asking(Script(steps=[Token(word()), Reset()])))
    retried = read_answer(stream, asking(error(503, said, said)))
    others = [
        error(401, said),
        error(429, said, headers={"retry-after": "90", "x-ratelimit-reset": word(), "x-request-id": word()}),
        error(400, said, said),
        Script(status=418, headers={"content-type": "text/html"}, body=said.encode()),
        Script(headers={"content-type": "application/json"}, body=said.encode()),
        Script(headers={"content-type": word()}, body=said.encode()),
        Script(steps=[Raw(f"data: {said}\n\n".encode())]),
        Script(steps=[Raw(f'data: {{"error": {{"message": "{said}", "code": "{word()}"}}}}\n\n'.encode())]),
        Script(steps=[Raw(f'data: {{"choices": "{said}", "usage": "{said}"}}\n\n'.encode())]),
        Script(steps=[Token(word()), Delta({"content": 5}), Done()]),
        Script(steps=[Token(word()), Usage({"prompt_tokens": said}), Finish(word()), Done()]),
        Script(before=[Raw(said.encode() + b"\r\n\r\n"), Close()]),
    ]
    bodies = [asking(script) for script in others]
    started = [
        read.stream_id or "" for read in together(*(lambda body=body: read_answer(stream, body) for body in bodies))
    ]

    # One that is stopped, one of many chunks.
    cancelled = begin(url, asking(Script(steps=[Token(word()), Stall()])))
    chatwait.wait_for_log("reader_left", stream=log_name(cancelled))
    delete(f"{url}/chat/streaming/{cancelled}")
    many = read_answer(stream, asking(Script(steps=[*[Token("é" + "x" * (at % 50)) for at in range(5000)], Done()])))

    # What is refused, by us and by gunicorn.
    refused = refuse_all(url, word(), canaries.plant(secrets.token_hex(12)))
    for line in (
        f"GET /{word()} HTTP/9.9",
        f"{word()} {word()}",
        f"GET /{word()}{'x' * 9000} HTTP/1.1",
        "\0\1" + word(),
    ):
        send_anything(chatwait.port, f"{line}\r\n\r\n".encode())
    for line in (f"Cookie: {word() * 900}", f"{word()} : x", f"X: {word()}\0", word(), f"Content-Length: {word()}"):
        send_anything(chatwait.port, f"POST / HTTP/1.1\r\nHost: localhost\r\n{line}\r\n\r\n".encode())
    chunked = "Content-Type: application/json\r\nTransfer-Encoding: chunked"
    send_anything(
        chatwait.port, f"POST /chat HTTP/1.1\r\nHost: localhost\r\n{chunked}\r\n\r\n{word()}\r\n\r\n".encode()
    )

    last = begin(url, asking(Script(steps=[Token(word()), Stall()])))  # a quick stop cuts it
    chatwait.wait_for_log("reader_left", stream=log_name(last))
    chatwait.interrupt()
    streams = [answer.stream_id or "" for answer in (whole, failed, retried, many)] + [*started, cancelled, last]
    for stream_id in streams:
        canaries.plant(stream_id)
    canaries.planted += [record.headers["authorization"].removeprefix("Bearer ") for record in upstream.completions[:1]]
    return Evening(
        level,
        chatwait.log,
        chatwait.output,
        chatwait.stderr_lines,
        canaries.planted,
        whole,
        resumed,
        waited,
        failed,
        retried,
        cancelled,
        many,
        refused,
        streams,
    )


@pytest.mark.requirement("core US3.2", "core FR-007", "core constitution IV", "core risk 4", "plan principle IV")
@pytest.mark.requirement("tasks T028", "tasks US3 test", "tasks checklist 10")
def test_log_holds_nothing_that_was_said_and_no_capability(evening: Evening) -> None:
    """Logs: conversations in both directions, the key, stream ids, idempotency keys, the upstream's words."""
    assert len(evening.planted) > 60
    for secret in evening.planted:
        assert secret not in evening.output
        assert hashlib.sha256(secret.encode()).hexdigest() not in evening.output
    assert "evil.example" not in evening.output


@pytest.mark.requirement("core US3 test", "core FR-006", "tasks T028", "tasks checklist 9")
def test_log_lines_are_json_objects_with_time_level_event_and_correlation(evening: Evening) -> None:
    """Logs: every line, gunicorn's too; stderr is empty. (Leaving the service checks size and form of each line.)"""
    assert evening.stderr == []
    assert len(evening.log) == len(evening.output.splitlines()) > 100
    for line in evening.log:
        assert TIME.fullmatch(line["timestamp"]), line
        assert line["level"] in ("DEBUG", "INFO", "WARNING", "ERROR"), line
        assert line["event"] and line["logger"] and "correlation_id" in line, line
    messages = [line.get("message", "") for line in evening.log if line["logger"].startswith("gunicorn")]
    for part in ("Starting gunicorn", "Listening at", "Booting worker", "Shutting down"):
        assert any(part in message for message in messages), messages
    assert not [line for line in evening.log if line["event"] == "log_line_dropped"]
    assert not [line for line in evening.log if line.get("error_type") == "internal_error"]


@pytest.mark.requirement("core US3.1", "tasks T023", "tasks T024", "tasks T028")
def test_log_holds_a_request_received_of_every_answer(evening: Evening) -> None:
    """Logs: the id in the response's header is the one in the log."""
    for reply in (evening.waited, *evening.refused):
        line = evening.one("request_received", correlation_id=reply.headers["x-correlation-id"])
        assert line["method"] in ("GET", "POST", "PUT", "DELETE")
        assert line["request_id"] is None
    line = evening.one("request_received", correlation_id=evening.whole.headers["x-correlation-id"])
    assert (line["method"], line["route"]) == ("POST", "/chat/streaming")
    identifiers = [line["correlation_id"] for line in evening.of("request_received")]
    assert len(set(identifiers)) == len(identifiers)
    assert all(str(uuid.UUID(identifier, version=4)) == identifier for identifier in identifiers)


@pytest.mark.requirement("core US3.4", "plan principle VII", "tasks T026")
def test_log_holds_an_error_occurred_of_every_refusal(evening: Evening) -> None:
    """Logs: type, message, recovery action, and the same correlation id."""
    for reply in evening.refused:
        line = evening.one("error_occurred", correlation_id=reply.headers["x-correlation-id"])
        told = reply.json
        assert (line["error_type"], line["error_message"]) == (told["error_code"], told["message"])
        assert line["recovery_action"] == told["action"]


@pytest.mark.requirement("core SC-004", "tasks T031")
def test_log_tells_the_life_of_a_stream_in_order(evening: Evening) -> None:
    """Logs: `stream` is the first 12 hex of SHA-256(stream_id), the correlation id the response's."""
    stream_id = evening.whole.stream_id or ""
    name = hashlib.sha256(stream_id.encode()).hexdigest()[:12]
    lines = [line for line in evening.log if line.get("stream") == name and line["event"] != "chunk_sent"]
    assert [line["event"] for line in lines][:3] == ["stream_started", "reader_attached", "reader_left"]
    names = [line["event"] for line in lines]
    assert names.count("stream_started") == names.count("response_complete") == 1
    assert names.count("reader_attached") == names.count("reader_left") >= 3
    assert names.index("chunks_sent") < names.index("response_complete")
    origin = evening.whole.headers["x-correlation-id"]
    assert evening.one("stream_started", stream_id)["correlation_id"] == origin
    first, second, *_ = evening.of("reader_attached", stream_id)
    assert (first["correlation_id"], first["mode"], first["after"]) == (origin, "streaming", 0)
    assert (second["correlation_id"], second["after"]) == (evening.resumed["x-correlation-id"], 2)
    left = evening.of("reader_left", stream_id)
    assert [line["sequence"] for line in left[:2]] == [2, 3]


@pytest.mark.requirement("core US3.3", "core entity RequestLog", "tasks T024")
def test_log_books_a_generation_once_with_its_figures(evening: Evening) -> None:
    """Logs: response_complete has status, duration_ms, first_token_ms, usage, resumes."""
    assert evening.whole.terminal is not None
    line, end = evening.one("response_complete", evening.whole.stream_id), evening.whole.terminal.json
    for name in ("status", "duration_ms", "first_token_ms", "usage", "tokens", "finish_reason", "correlation_id"):
        assert line[name] == end[name], name
    assert line["usage"] == {**USAGE, "source": "provider"}
    assert line["resumes"] == 1
    assert line["rate_limits"] == {"x-ratelimit-limit-requests": "60"}
    for stream_id in evening.started:
        assert evening.one("response_complete", stream_id)["status"] in ENDED


@pytest.mark.requirement("core US3.2", "tasks T025")
def test_log_holds_every_chunk_once(evening: Evening) -> None:
    """Logs: chunks_sent has every chunk's sequence, size and time, many chunks a line; a line each at DEBUG."""
    for whole in (evening.whole, evening.failed, evening.many):
        sizes: list[int] = []
        times: list[int] = []
        for line in evening.of("chunks_sent", whole.stream_id):
            assert line["first"] == len(sizes) + 1
            assert line["last"] - line["first"] + 1 == len(line["bytes"]) == len(line["ms"])
            sizes += line["bytes"]
            times += line["ms"]
        assert len(sizes) == whole.tokens
        assert sum(sizes) == len(whole.text.encode())
        assert times == sorted(times)
        single = evening.of("chunk_sent", whole.stream_id)
        if evening.level == "DEBUG":
            assert [line["sequence"] for line in single] == list(range(1, whole.tokens + 1))
            assert [line["bytes"] for line in single] == sizes
        else:
            assert single == []
    assert evening.many.tokens == 5000
    assert sum(len(line["bytes"]) for line in evening.of("chunks_sent", evening.many.stream_id)) == 5000
    assert len(evening.of("chunks_sent", evening.many.stream_id)) <= 5000 / 240 + 10


@pytest.mark.requirement("core US3.4", "tasks T026")
def test_log_tells_failures_retries_and_stops(evening: Evening) -> None:
    """Logs: upstream_retry, error_occurred, and how each generation ended."""
    line = evening.one("error_occurred", evening.failed.stream_id)
    assert evening.failed.terminal is not None
    told = evening.failed.terminal.json["error"]
    assert (line["error_type"], line["error_message"]) == (told["error_code"], told["message"])
    assert (line["recovery_action"], line["correlation_id"]) == (told["action"], told["correlation_id"])
    assert evening.one("response_complete", evening.failed.stream_id)["status"] == "failed"
    assert [line["attempt"] for line in evening.of("upstream_retry", evening.retried.stream_id)] == [1, 2]
    assert {line["correlation_id"] for line in evening.of("upstream_retry", evening.retried.stream_id)} == {
        evening.retried.headers["x-correlation-id"]
    }
    line = evening.one("response_complete", evening.cancelled)
    assert (line["status"], line["reason"]) == ("cancelled", "client")
    assert evening.one("response_complete", evening.started[-1])["reason"] == "shutdown"
