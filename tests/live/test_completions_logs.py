"""What the log says of OpenAI's routes, and what it never says: secrets and people's data are planted wherever a client
or an upstream can put something. The harness looks for them, too, in the output of every service of every test."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import pytest

from tests.harness.leaks import CANARIES, leaks
from tests.harness.reader import delete, get, open_stream, post
from tests.harness.script import Close, Delta, Done, Event, Finish, Raw, Reset, Script, Step, Token, Usage
from tests.harness.server import ChatWait
from tests.harness.upstream import ScriptedUpstream, answer, error
from tests.live.completions import (
    ASK,
    CLIENT,
    MODEL,
    OTHER_CLIENT,
    ask,
    call,
    chunk,
    generated,
    question,
    url_of,
)
from tests.live.steps import cursor, log_name, new_key, settings

EVERYTHING = " | ".join(CANARIES.values())
UPSTREAMS_WORDS = "The words of an upstream about what somebody said."


@pytest.fixture(scope="module")
def service(shared_upstream: ScriptedUpstream) -> Iterator[ChatWait]:
    """A service that says all that it can say."""
    told = settings(shared_upstream, LOG_LEVEL="DEBUG", TIMEOUT_SECONDS=5, ALLOWED_MODELS=MODEL)
    with ChatWait(**told) as service:
        yield service


def assert_silent(service: ChatWait) -> None:
    """Check that what was done is in the log, and nothing that may not be there."""
    last = get(f"{service.base_url}/models")
    service.wait_for_log("request_received", correlation_id=last.headers["x-correlation-id"])
    assert leaks(service.lines + service.stderr_lines) == []
    assert not any(UPSTREAMS_WORDS in line for line in service.lines)


def test_stream_of_openais_is_in_the_log_as_any_other(service: ChatWait, upstream: ScriptedUpstream) -> None:
    """By its name, which is no capability, and with its counts."""
    texts = ["Grü", "ß🙂"]
    taken = generated(service.base_url, question(upstream, answer(texts)), CLIENT)
    name = log_name(taken.stream_id)
    started = service.wait_for_log("stream_started", stream=name)
    assert (started["model"], started["messages"], started["max_tokens"]) == (MODEL, 1, None)
    complete = service.wait_for_log("response_complete", stream=name)
    assert (complete["status"], complete["finish_reason"], complete["tokens"]) == ("complete", "stop", 4)
    (sent,) = service.log_of("chunks_sent", stream=name)
    assert (sent["first"], sent["last"], sent["bytes"]) == (1, 4, [0, 4, 6, 0])
    received = service.wait_for_log("request_received", correlation_id=started["correlation_id"])
    assert (received["method"], received["route"]) == ("POST", ASK)
    for url in (url_of(service.base_url, taken.stream_id, "?stream=true"), url_of(service.base_url, taken.stream_id)):
        shown = get(url, CLIENT)
        line = service.wait_for_log("request_received", correlation_id=shown.headers["x-correlation-id"])
        assert (line["method"], line["route"]) == ("GET", f"{ASK}/<name>")
    gone = delete(url_of(service.base_url, taken.stream_id), CLIENT)
    line = service.wait_for_log("request_received", correlation_id=gone.headers["x-correlation-id"])
    assert (line["method"], line["route"]) == ("DELETE", f"{ASK}/<name>")
    assert_silent(service)


def test_canaries_in_requests_are_in_no_line(service: ChatWait, upstream: ScriptedUpstream) -> None:
    """In every place of a request, of one that is served and of those that are refused."""
    steps: list[Step] = [Delta({"role": "assistant", "reasoning": EVERYTHING}), Token(EVERYTHING)]
    steps += [Event(chunk(call(0, EVERYTHING, id="c", name=EVERYTHING))), Event(chunk({}, 0, "stop", x=EVERYTHING))]
    upstream.always(Script(steps=[*steps, Done()]))
    picture = {"type": "image_url", "image_url": {"url": EVERYTHING}}
    messages: list[dict[str, Any]] = [
        {"role": EVERYTHING, "content": EVERYTHING, "name": EVERYTHING},
        {"role": "user", "content": [{"type": "text", "text": EVERYTHING}, picture]},
        {"role": "tool", "tool_call_id": EVERYTHING, "content": EVERYTHING, EVERYTHING: EVERYTHING},
    ]
    fields = {
        "tools": [{"type": "function", "function": {"name": EVERYTHING, "description": EVERYTHING}}],
        "user": EVERYTHING,
        "metadata": {EVERYTHING: EVERYTHING},
        "stop": [EVERYTHING],
        EVERYTHING: EVERYTHING,
    }
    body = {"model": MODEL, "messages": messages, "stream": True, **fields}
    taken = generated(service.base_url, body)
    assert EVERYTHING in taken.text
    refused = [
        post(service.base_url + ASK, {**body, **more}).status
        for more in (
            {"model": EVERYTHING},
            {"model": [EVERYTHING]},
            {"stream": EVERYTHING},
            {"messages": EVERYTHING},
            {"messages": [EVERYTHING]},
            {"max_tokens": EVERYTHING},
            {"Model": EVERYTHING},
        )
    ]
    assert set(refused) == {400}
    for data in (EVERYTHING.encode(), json.dumps(EVERYTHING).encode(), json.dumps(body).encode()[:-1]):
        assert post(service.base_url + ASK, data=data, headers={"Content-Type": "application/json"}).status == 400
    assert_silent(service)


@pytest.mark.parametrize("name", CANARIES)
def test_canaries_in_headers_and_addresses_are_in_no_line(
    service: ChatWait, upstream: ScriptedUpstream, name: str
) -> None:
    canary = CANARIES[name]
    upstream.always(answer(["a"]))
    url, quoted = service.base_url + ASK, quote(canary, safe="")
    named = (
        "Authorization",
        "Cookie",
        "User-Agent",
        "OpenAI-Organization",
        "OpenAI-Project",
        "X-Stainless-Retry-Count",
    )
    headers = dict.fromkeys((*named, "X-Stainless-Os", "Referer", "Prefer", "X-Api-Key", "X-Client-Request-Id"), canary)
    question = {"model": MODEL, "messages": [{"content": "Hi"}], "stream": True}
    with open_stream(url, json=question, headers=headers) as connection:
        stream_id = connection.headers["x-stream-id"]
    statuses = [
        get(f"{url}/{stream_id}?stream=true&{quoted}={quoted}", headers).status,
        get(f"{url}/{stream_id}", {}).status,
        get(f"{url}/{stream_id}?starting_after={quoted}", headers).status,
        get(f"{url}/{quoted}", headers).status,
        get(f"{url}/{stream_id}", {**headers, "Last-Event-ID": canary}).status,
        post(url, {}, headers={"Last-Event-ID": canary}).status,
        post(url, question, headers={**headers, "Idempotency-Key": canary[:10]}).status,
        post(f"{service.base_url}/v1/{quoted}", question, headers=headers).status,
        post(f"{service.base_url}/v1/embeddings?{quoted}", {"input": canary}, headers=headers).status,
        get(f"{service.base_url}/v1/models/{quoted}", headers).status,
        delete(f"{url}/{stream_id}", headers).status,
    ]
    not_there = 409 if canary.isdigit() else 400
    assert statuses == [200, 404, not_there, 404, 400, 400, 400, 404, 404, 404, 200]
    assert_silent(service)


def answers_with(canary: str) -> list[Script]:
    """List what an upstream can do with a text."""
    told = {"x-ratelimit-limit-requests": canary, "x-request-id": canary, "set-cookie": canary, "server": canary}
    words = f"{UPSTREAMS_WORDS} {canary}"
    said = {"error": {"message": words, "type": canary, "code": canary, "param": canary}}
    event = Raw(f"data: {json.dumps(said)}\n\n".encode())
    body = json.dumps(said).encode()
    return [
        *(error(status, words, canary, headers=told) for status in (400, 401, 404, 413, 422, 429, 500)),
        Script(status=400, headers={"content-type": "text/html", **told}, body=f"<p>{words}</p>".encode()),
        Script(status=422, headers={"content-type": "application/json"}, body=json.dumps({"detail": words}).encode()),
        Script(headers={"content-type": "application/json"}, body=body),
        Script(headers={"content-type": canary}, body=words.encode()),
        Script(steps=[event]),
        Script(steps=[Raw(f"data: {words}\n\n".encode())]),
        Script(steps=[Token("a"), event]),
        Script(steps=[Token("a"), Raw(f": {words}\nevent: {words}\nid: {words}\n\n".encode()), Reset()]),
        Script(before=[Raw(f"HTTP/1.1 500 {canary}\r\n{canary}\r\n\r\n".encode()), Close()]),
        Script(headers=told, steps=[Token("a"), Usage({"prompt_tokens": canary}), Finish(canary), Done()]),
        Script(steps=[Event({"id": canary, "model": words, "choices": []}), Reset()]),
    ]


def test_words_and_canaries_of_the_upstream_are_in_no_line(service: ChatWait, upstream: ScriptedUpstream) -> None:
    """Though a client is told some of these words: they are about its own request."""
    bodies = [
        question(upstream, script, stream=is_streamed)
        for canary in CANARIES.values()
        for script in answers_with(canary)
        for is_streamed in (True, False)
    ]

    def told(body: dict[str, Any]) -> bytes:
        with ask(service.base_url, body, {**OTHER_CLIENT, **new_key()}) as connection:
            return connection.body()

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(told, bodies))
    assert sum(UPSTREAMS_WORDS.encode() in one for one in answers) > len(CANARIES)
    assert_silent(service)


def test_foreign_and_erased_streams_are_in_no_line(service: ChatWait, upstream: ScriptedUpstream) -> None:
    """Nor are those that never were, or the cursors that name them."""
    stream_id = generated(service.base_url, question(upstream, answer(["a"])), CLIENT).stream_id
    for who in (OTHER_CLIENT, {}):
        assert get(url_of(service.base_url, stream_id), {**who, **cursor(stream_id, 1)}).status == 404
        assert post(service.base_url + ASK, {}, headers={**who, **cursor(stream_id, 1)}).status == 404
    assert delete(url_of(service.base_url, stream_id), CLIENT).status == 200
    assert get(url_of(service.base_url, stream_id), CLIENT).status == 404
    assert get(url_of(service.base_url, "cwc_" + "B" * 22), CLIENT).status == 404
    assert_silent(service)
