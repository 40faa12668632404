"""Plant secrets and people's data wherever a client or the upstream can put something, and look for them in the log.

The harness looks too: leaving any service of any test fails when a canary, a key, a stream id or what somebody said
stands in its output.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import pytest

from tests.harness.leaks import CANARIES, PEOPLE, SECRETS, leaks
from tests.harness.reader import delete, get, post, read_answer
from tests.harness.script import Close, Done, Finish, Raw, Reset, Script, Token, Usage
from tests.harness.server import ChatWait, failed_start
from tests.harness.upstream import ScriptedUpstream, error
from tests.live.rawhttp import send_anything
from tests.live.steps import about, poll, settings

EVERYTHING = " | ".join(CANARIES.values())
WELL_FORMED = [
    text.replace(" ", "").replace("+", "")
    for text in (PEOPLE["a telephone, American"], PEOPLE["a card, in one"], PEOPLE["an IP address"])
] + [PEOPLE["an IP address, version 6"], SECRETS["OpenAI's key"], SECRETS["AWS's key id"], SECRETS["a JWT"][:60]]


@pytest.fixture(scope="module")
def service(shared_upstream: ScriptedUpstream) -> Iterator[ChatWait]:
    """A service that says all that it can say."""
    with ChatWait(**settings(shared_upstream, LOG_LEVEL="DEBUG", TIMEOUT_SECONDS=5)) as chatwait:
        yield chatwait


def assert_silent(service: ChatWait) -> None:
    """Check that what was done is in the log, and no canary."""
    last = get(f"{service.base_url}/models")
    service.wait_for_log("request_received", correlation_id=last.headers["x-correlation-id"])
    assert leaks(service.lines + service.stderr_lines) == []


@pytest.mark.requirement("core FR-007", "plan principle IV")
def test_canaries_in_messages_are_in_no_line(service: ChatWait, shared_upstream: ScriptedUpstream) -> None:
    body = about(shared_upstream, Script(steps=[Token(EVERYTHING), Finish(), Done()]), EVERYTHING)
    body["context"] = [
        {"role": "user", "content": EVERYTHING, "timestamp": PEOPLE["an e-mail address"]},
        {"role": "system", "content": EVERYTHING},
    ]
    answered = read_answer(f"{service.base_url}/chat/streaming", body)
    refused = [
        post(f"{service.base_url}/chat/wait", {"message": "x", **more}).status
        for more in (
            {"model": EVERYTHING},
            {EVERYTHING: 1},
            {"max_tokens": EVERYTHING},
            {"context": [{"role": EVERYTHING, "content": EVERYTHING, EVERYTHING: EVERYTHING}]},
            {"message": EVERYTHING * 100},
        )
    ]

    assert answered.text == EVERYTHING
    assert set(refused) == {400}
    assert_silent(service)


@pytest.mark.parametrize("name", CANARIES)
@pytest.mark.requirement("core FR-007")
def test_canaries_in_headers_and_addresses_are_in_no_line(service: ChatWait, name: str) -> None:
    canary = CANARIES[name]
    url, quoted = service.base_url, quote(canary)
    names = (
        "Authorization",
        "Cookie",
        "User-Agent",
        "Referer",
        "X-Forwarded-For",
        "Forwarded",
        "From",
        "Via",
        "Accept",
    )
    headers = dict.fromkeys((*names, "Prefer", "X-Request-ID", "Accept-Language", "X-Api-Key"), canary)
    statuses = [
        get(f"{url}/health?{quoted}={quoted}", headers).status,
        get(f"{url}/{quoted}", headers).status,
        get(f"{url}/chat/streaming/{quoted}?last_event_id={quoted}", headers).status,
        get(f"{url}/chat/wait/{quoted}", headers).status,
        delete(f"{url}/chat/streaming/{quoted}", headers).status,
        post(f"{url}/chat/wait?lastEventId={quoted}", {"message": "x"}, headers=headers).status,
        post(f"{url}/chat/wait", {"message": "x"}, headers={**headers, "Last-Event-ID": canary}).status,
        post(f"{url}/chat/wait", {"message": "x"}, headers={**headers, "Idempotency-Key": canary[:10]}).status,
        post(f"{url}/chat/wait", data=canary.encode(), headers={**headers, "Content-Type": canary}).status,
        get(f"{url}/health", {**headers, "Origin": canary, "Host": canary}).status,
    ]

    in_the_path = 404 if "/" in canary else 400
    assert statuses == [200, 404, in_the_path, 404, 404, 400, 400, 400, 415, 400]
    assert_silent(service)


@pytest.mark.parametrize("request_id", WELL_FORMED)
def test_canary_that_is_a_well_formed_request_id_is_in_no_line(service: ChatWait, request_id: str) -> None:
    seen = len(service.lines)
    get(f"{service.base_url}/chat/wait/nobody", {"X-Request-ID": request_id})
    poll(lambda: len(service.lines) >= seen + 2, seconds=10, what="the two lines of a refusal")

    assert "[redacted]" in service.lines[seen]
    assert not any(request_id in text for text in service.lines[seen:])


def answers_with(canary: str) -> list[Script]:
    """List what an upstream can do with a text. All fail but the last."""
    told = {"x-ratelimit-limit-requests": canary, "x-request-id": canary, "set-cookie": canary, "server": canary}
    event = json.dumps({"error": {"message": canary, "type": canary, "code": canary, "param": canary}})
    return [
        error(429, canary, canary, headers={**told, "retry-after": "90"}),
        error(401, canary, canary, headers=told),
        error(400, canary, canary, headers=told),
        error(503, canary, canary, headers=told),
        Script(status=404, headers={"content-type": "text/html", **told}, body=canary.encode()),
        Script(headers={"content-type": "application/json"}, body=event.encode()),
        Script(headers={"content-type": canary}, body=canary.encode()),
        Script(steps=[Raw(f"data: {canary}\n\n".encode())]),
        Script(steps=[Token("a"), Raw(f"data: {event}\n\n".encode())]),
        Script(steps=[Token("a"), Raw(f": {canary}\nevent: {canary}\nid: {canary}\n\n".encode()), Reset()]),
        Script(before=[Raw(f"HTTP/1.1 500 {canary}\r\n{canary}\r\n\r\n".encode()), Close()]),
        Script(headers=told, steps=[Token("a"), Usage({"prompt_tokens": canary}), Finish(canary), Done()]),
    ]


@pytest.mark.requirement("core FR-007", "tasks checklist 10")
def test_canaries_of_the_upstream_are_in_no_line(service: ChatWait, shared_upstream: ScriptedUpstream) -> None:
    bodies = [about(shared_upstream, script) for canary in CANARIES.values() for script in answers_with(canary)]
    with ThreadPoolExecutor(24) as pool:
        ends = list(pool.map(lambda body: read_answer(f"{service.base_url}/chat/streaming", body).terminal, bodies))

    assert [end.event for end in ends if end] == (["failed"] * 11 + ["done"]) * len(CANARIES)
    assert_silent(service)


@pytest.mark.parametrize("name", CANARIES)
def test_canaries_in_what_is_no_request_are_in_no_line(service: ChatWait, name: str) -> None:
    canary = CANARIES[name].encode()
    for data in (
        canary + b"\r\n\r\n",
        b"GET /" + canary + b" HTTP/9.9\r\n\r\n",
        b"GET /?" + canary + b"x" * 9000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + canary + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + canary + b"\0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + canary + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: " + canary + b"\r\n\r\n",
        b"PROXY TCP4 " + canary + b" 127.0.0.1 1 2\r\nGET / HTTP/1.1\r\n\r\n",
    ):
        send_anything(service.port, data)

    assert_silent(service)


def test_start_that_fails_shows_no_secret() -> None:
    for bad in (
        {"OPENAI_API_KEY": SECRETS["OpenAI's key"] + "\x7f"},
        {"OPENAI_BASE_URL": "https://me:canary-password-01@host/v1", "OPENAI_API_KEY": "x"},
        {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1", "REDIS_URL": "redis://:canary-password-01@host:6379/x"},
    ):
        exit_code, output = failed_start(**bad)
        assert exit_code == 2
        assert "cannot start" in output
        assert leaks([output]) == []
        assert "canary-password-01" not in output
