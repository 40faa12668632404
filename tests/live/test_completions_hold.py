"""The head of a stream waits for the upstream's first event, so that an error until then is a status, which SDKs
handle. Behind that an error is a frame."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest

from tests.harness.http1 import Wire
from tests.harness.net import HOST
from tests.harness.reader import get, open_stream, post
from tests.harness.script import encode_json
from tests.harness.server import ChatWait
from tests.harness.upstream import (
    Close,
    Done,
    Event,
    Finish,
    Gate,
    Pause,
    Raw,
    Script,
    ScriptedUpstream,
    Stall,
    Token,
    answer,
    error,
)
from tests.harness.valkey import Database
from tests.live.completions import (
    ASK,
    OPENING,
    Taken,
    ask,
    asked_upstream,
    begin,
    error_of,
    frames_of,
    generated,
    question,
    resumed,
    url_of,
    without_heartbeats,
)
from tests.live.rawhttp import JSON, sized
from tests.live.shared import services
from tests.live.steps import log_name, new_key, poll, settings

HOLD_SECONDS = 1.0
SILENCE_SECONDS = 1
LONGEST_SECONDS = 4


@pytest.fixture(scope="module")
def service(shared_upstream: ScriptedUpstream) -> Iterator[ChatWait]:
    """A service that holds a head for a second, and that waits longer than that for an upstream's sign of life."""
    with ChatWait(pace={"app.web.completions.HOLD_SECONDS": HOLD_SECONDS}, **settings(shared_upstream)) as service:
        yield service


@pytest.fixture(scope="module")
def impatient(shared_upstream: ScriptedUpstream) -> Iterator[ChatWait]:
    """A service that gives up on an upstream which says nothing for a second."""
    limits = {"TIMEOUT_SECONDS": SILENCE_SECONDS, "MAX_GENERATION_SECONDS": LONGEST_SECONDS}
    with ChatWait(**settings(shared_upstream, **limits)) as impatient:
        yield impatient


# Errors before the first event

REFUSED = {400: 400, 404: 404, 413: 413, 422: 422, 429: 429, 401: 502, 403: 502, 418: 502, 500: 503, 503: 503}
"""What an upstream answers, and what a client is told."""


@pytest.mark.parametrize("is_streamed", [True, False])
@pytest.mark.parametrize("status", REFUSED)
def test_error_of_the_upstream_before_its_first_event_has_its_status(
    service: ChatWait, upstream: ScriptedUpstream, status: int, is_streamed: bool
) -> None:
    """What it says of a client's request is told in its own words. Whoever reads the stream later is told the same."""
    told = {"x-ratelimit-remaining-requests": "7", "retry-after": "60"}
    body = question(upstream, error(status, "Too many of them.", "context_length_exceeded", told), stream=is_streamed)
    reply = post(service.base_url + ASK, body)
    assert reply.status == REFUSED[status]
    said = reply.json["error"]
    if status in (400, 404, 413, 422, 429):
        assert (said["message"], said["code"]) == ("Too many of them.", "context_length_exceeded")
        assert reply.headers["x-ratelimit-remaining-requests"] == "7"
    else:
        assert "Too many" not in said["message"]
        assert said["code"] == said["error_code"]
    assert reply.headers.get("x-should-retry") == (None if said["retryable"] else "false")
    assert reply.headers["location"].startswith(f"{ASK}/chatcmpl-{reply.headers['x-stream-id']}")
    stream_id = reply.headers["x-stream-id"]
    later = get(url_of(service.base_url, stream_id))
    assert (later.status, later.json["error"]["message"]) == (reply.status, said["message"])
    *_, failed, last = frames_of(resumed(url_of(service.base_url, stream_id, "?stream=true"), ""))
    assert (failed.id, failed.json["error"]["message"]) == ("", said["message"])
    assert (last.data, last.id, last.comment.partition(" ")[0]) == ("[DONE]", f"{stream_id}.1", "records=0")


FAULTS = {
    "no event stream": Script(headers={"content-type": "text/html"}, body=b"<p>no</p>"),
    "an error for the first event": Script(steps=[Event({"error": {"message": "overloaded", "code": 503}})]),
    "no chunk for the first event": Script(steps=[Event("no")]),
    "the end of the connection": Script(steps=[Close()]),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_of_the_upstream_before_its_first_event_is_502(
    service: ChatWait, upstream: ScriptedUpstream, name: str
) -> None:
    reply = post(service.base_url + ASK, question(upstream, FAULTS[name]))
    assert error_of(reply) in [(502, "upstream_error"), (503, "upstream_unavailable")]
    assert reply.json["error"]["type"] == "server_error"


def test_upstream_that_says_nothing_for_too_long_is_504(impatient: ChatWait, upstream: ScriptedUpstream) -> None:
    reply = post(impatient.base_url + ASK, question(upstream, Script(before=[Stall()])))
    assert error_of(reply) == (504, "upstream_timeout")


def test_request_that_its_sdk_repeats_is_asked_upstream_once(service: ChatWait, upstream: ScriptedUpstream) -> None:
    """Others are asked again by the service. Without a stream the answer is held for as long as that takes."""
    for headers, count in (({"X-Stainless-Retry-Count": "0"}, 1), ({}, 3)):
        body = question(upstream, error(503), stream=False)
        assert post(service.base_url + ASK, body, headers=headers).status == 503
        assert len(asked_upstream(upstream, body)) == count


# Errors behind the hold


def test_head_comes_when_the_hold_is_over_and_a_later_error_is_a_frame(
    service: ChatWait, upstream: ScriptedUpstream
) -> None:
    body = question(upstream, Script(before=[Gate("error")], steps=error(429).steps, status=429, body=error(429).body))
    with ask(service.base_url, body) as connection:
        assert connection.status == 200
        assert "x-ratelimit-limit-requests" not in connection.headers
        upstream.open("error")
        received = connection.body()
        stream_id = connection.headers["x-stream-id"]
    failed, last = frames_of(without_heartbeats(received))
    assert received.startswith(OPENING)
    assert failed.json["error"]["message"] == "The scripted upstream says no."
    assert (last.data, last.id) == ("[DONE]", f"{stream_id}.1")
    assert get(url_of(service.base_url, stream_id)).status == 429


@pytest.mark.long
def test_hold_lasts_ten_seconds(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """The upstream gives a sign of life now and then, but no event."""
    steps = [Pause(1.0), *[step for _ in range(10) for step in (Raw(b": still here\n"), Pause(1.0))]]
    asked_at = time.monotonic()
    with ask(chatwait.base_url, question(upstream, Script(steps=[*steps, Close()])), timeout=20) as connection:
        held = connection.answered_at - asked_at
        failed, _ = frames_of(without_heartbeats(connection.body()))
    assert held >= 10
    assert failed.json["error"]["error_code"] == "upstream_error"


def test_stream_whose_first_event_comes_behind_the_hold_is_whole(service: ChatWait, upstream: ScriptedUpstream) -> None:
    body = question(upstream, Script(before=[Gate("first")], steps=answer(["a", "b"]).steps))
    with ask(service.base_url, body) as connection:
        upstream.open("first")
        taken = Taken(connection.headers["x-stream-id"], "", connection.body())
    assert (taken.text, bool(taken.proof)) == ("ab", True)
    assert taken.body.startswith(OPENING)


def test_head_comes_with_the_first_event(service: ChatWait, upstream: ScriptedUpstream) -> None:
    """Whatever it is: a record without text is one. The upstream's headers about rates come with it."""
    script = Script(
        headers={"x-ratelimit-remaining-tokens": "9"},
        steps=[Gate("first"), Event({"choices": []}), Gate("then"), *answer(["a"]).steps],
    )
    body = question(upstream, script)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask, service.base_url, body)
        upstream.wait_reached("first")
        assert not asking.done()
        upstream.open("first")
        with asking.result() as connection:
            assert connection.headers["x-ratelimit-remaining-tokens"] == "9"
            upstream.open("then")
            assert b'"a"' in connection.body()


# Leaving meanwhile


@pytest.mark.parametrize("how", ["closed", "reset"])
def test_client_that_leaves_during_the_hold_comes_back_with_its_key(
    service: ChatWait, upstream: ScriptedUpstream, how: str
) -> None:
    """It has no location yet. The generation goes on, and is paid for once."""
    body, key = question(upstream, Script(before=[Gate("on")], steps=answer(["a", "b"]).steps)), new_key()
    fields = [f"{name}: {value}" for name, value in key.items()]
    with closing(Wire(HOST, service.port)) as wire:
        wire.send(sized(f"POST {ASK} HTTP/1.1", JSON, *fields, body=json.dumps(body).encode()))
        upstream.wait_until(lambda: asked_upstream(upstream, body), what="the question")
        wire.reset() if how == "reset" else wire.close()
    upstream.open("on")
    taken = generated(service.base_url, body, key)
    assert taken.text == "ab"
    (record,) = asked_upstream(upstream, body)
    assert record.peer_closed_at is None
    service.wait_for_log("response_complete", stream=log_name(taken.stream_id), status="complete")


def test_clients_that_leave_during_the_hold_give_their_places_back(upstream: ScriptedUpstream) -> None:
    with ChatWait(**settings(upstream, MAX_READERS=2, TIMEOUT_SECONDS=30)) as service:
        body = question(upstream, Script(before=[Stall()]))
        wires = [Wire(HOST, service.port) for _ in range(2)]
        for wire in wires:
            wire.send(sized(f"POST {ASK} HTTP/1.1", JSON, body=json.dumps(body).encode()))
        upstream.wait_until(lambda: len(asked_upstream(upstream, body)) == 2, what="the questions")
        assert error_of(post(service.base_url + ASK, question(upstream, answer(["a"])))) == (503, "overloaded")
        for wire in wires:
            wire.reset()
        poll(
            lambda: post(service.base_url + ASK, question(upstream, answer(["a"]))).status == 200,
            seconds=8,  # less than the hold
            what="a place",
        )


def test_client_that_is_held_by_a_service_that_stops_is_told_to_come_again(
    upstream: ScriptedUpstream, valkey_database: Database
) -> None:
    """Where another service generates the answer: a status, which SDKs handle, and no stream that breaks off."""
    body, key = question(upstream, Script(before=[Gate("first")], steps=answer(["a"]).steps)), new_key()
    with (
        services(upstream, valkey_database.url, DRAIN_SECONDS=2) as (generating, stopping),
        ThreadPoolExecutor(2) as pool,
    ):
        own = pool.submit(generated, generating.base_url, body, key)
        upstream.wait_reached("first")
        held = pool.submit(post, stopping.base_url + ASK, body, headers=key)
        stopping.wait_for_log("request_received", route=ASK)
        stopping.signal(signal.SIGTERM)
        assert error_of(held.result()) == (503, "shutting_down")
        assert held.result().headers["retry-after"] == "1"
        assert "x-should-retry" not in held.result().headers
        upstream.open("first")
        assert own.result().text == "a"
        stopping.wait_exit(20)
        assert generated(generating.base_url, body, key).stream_id == own.result().stream_id
    assert len(asked_upstream(upstream, body)) == 1


# Whole answers


def whole(text: str) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return encode_json({"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]})


def test_answer_that_is_not_streamed_may_be_silent_for_longer_than_a_stream(
    impatient: ChatWait, upstream: ScriptedUpstream
) -> None:
    """An upstream says nothing until it is whole. MAX_GENERATION_SECONDS is its limit."""
    as_json = {"content-type": "application/json"}
    late = Script(before=[Pause(2.5 * SILENCE_SECONDS)], headers=as_json, body=whole("late"))
    body = question(upstream, late, stream=False)
    reply = post(impatient.base_url + ASK, body)
    assert (reply.status, reply.json["choices"][0]["message"]["content"]) == (200, "late")
    assert len(asked_upstream(upstream, body)) == 1
    never = post(impatient.base_url + ASK, question(upstream, Script(before=[Stall()]), stream=False), timeout=20)
    assert error_of(never) == (504, "upstream_timeout")


def test_preference_to_wait_is_applied_and_the_answer_is_there_later(
    service: ChatWait, upstream: ScriptedUpstream
) -> None:
    script = Script(steps=[Token("a"), Gate("on"), Token("b"), Finish(), Done()])
    stream_id = begin(service.base_url, question(upstream, script))
    url = url_of(service.base_url, stream_id)
    for seconds in ("0", "1"):
        running = get(url, {"Prefer": f"wait={seconds}"})
        assert (running.status, running.headers["preference-applied"]) == (202, f"wait={seconds}")
        told: dict[str, Any] = running.json
        assert (told["id"], told["status"], told["choices"]) == (f"chatcmpl-{stream_id}", "in_progress", [])
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(get, url, {"Prefer": "respond-async, wait=20"})
        service.wait_for_log("reader_attached", stream=log_name(stream_id), mode="wait")
        upstream.open("on")
        complete = waiting.result()
    assert (complete.status, "preference-applied" in complete.headers) == (200, False)
    assert complete.json["choices"][0]["message"]["content"] == "ab"
    assert get(url, {"Prefer": "wait=0"}).status == 200


def test_answer_whose_stream_failed_is_its_error_with_what_there_was(
    service: ChatWait, upstream: ScriptedUpstream
) -> None:
    stream_id = generated(service.base_url, question(upstream, Script(steps=[Token("half"), Close()]))).stream_id
    reply = get(url_of(service.base_url, stream_id))
    assert error_of(reply) == (502, "upstream_error")
    partial = reply.json["partial"]
    assert (partial["id"], partial["choices"][0]["message"]["content"]) == (f"chatcmpl-{stream_id}", "half")


def test_form_of_an_answer_is_what_the_client_accepts_or_says(service: ChatWait, upstream: ScriptedUpstream) -> None:
    """SDKs accept JSON for a stream, too: their address says that they want one."""
    stream_id = generated(service.base_url, question(upstream, answer(["a"]))).stream_id
    for accept, query, media in (
        ("application/json", "", "application/json"),
        ("application/json", "?stream=true", "text/event-stream"),
        ("text/event-stream", "", "text/event-stream"),
        ("*/*", "", "application/json"),
        ("application/json, text/event-stream", "", "application/json"),
        ("text/event-stream", "?stream=false", "text/event-stream"),
    ):
        with open_stream(url_of(service.base_url, stream_id, query), headers={"Accept": accept}) as connection:
            assert connection.headers["content-type"].partition(";")[0] == media, (accept, query)
            connection.body()


TOO_LONG, POLICY, OTHER = "It is too long: context_length_exceeded.", "Against the content_policy.", "No."
NAMED = {
    (400, TOO_LONG): "context_too_long",
    (413, TOO_LONG): "context_too_long",
    (422, TOO_LONG): "context_too_long",
    (400, POLICY): "content_filtered",
    **{(status, OTHER): "upstream_refused" for status in (400, 404, 413, 422)},
    **{(429, words): "upstream_rate_limited" for words in (TOO_LONG, OTHER)},
}


@pytest.mark.parametrize(("status", "words"), NAMED)
def test_error_in_the_first_event_has_the_status_that_it_names(
    service: ChatWait, upstream: ScriptedUpstream, status: int, words: str
) -> None:
    """Some servers have sent a head by then."""
    first = {"error": {"message": words, "type": "some", "code": status}}
    reply = post(service.base_url + ASK, question(upstream, Script(steps=[Event(first)])))
    assert error_of(reply) == (status, NAMED[status, words])
    said = reply.json["error"]
    assert (said["message"], said["type"], said["code"]) == (words, "some", str(status))
    assert said["retryable"] == (status == 429)


@pytest.mark.parametrize(
    ("words", "told"),
    [(TOO_LONG, (400, "context_too_long")), (POLICY, (502, "content_filtered")), (OTHER, (502, "upstream_error"))],
)
def test_error_in_the_first_event_that_names_no_status_has_that_of_its_kind(
    service: ChatWait, upstream: ScriptedUpstream, words: str, told: tuple[int, str]
) -> None:
    reply = post(service.base_url + ASK, question(upstream, Script(steps=[Event({"error": {"message": words}})])))
    assert error_of(reply) == told
