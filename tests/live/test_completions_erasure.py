"""DELETE on OpenAI's route: the generation stops, and nothing of the answer is left, at any service or on Valkey."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.harness.reader import Dropped, delete, get, open_stream, post, read_answer
from tests.harness.script import Step, encode_json
from tests.harness.server import ChatWait
from tests.harness.upstream import Done, Finish, Gate, Script, ScriptedUpstream, Stall, Token, answer
from tests.harness.valkey import Database, Valkey
from tests.live.completions import (
    ASK,
    CLIENT,
    ask,
    asked_upstream,
    begin,
    error_of,
    everything,
    generated,
    question,
    resumed,
    url_of,
)
from tests.live.shared import SHORT_LEASES, services, wait_settled
from tests.live.steps import about, cursor, log_name, new_key, poll, settings


class Pair:
    """Two services, which may be the same one, and the Valkey that they share, if there is one."""

    def __init__(self, one: ChatWait, other: ChatWait, database: Database | None) -> None:
        self.one = one
        self.other = other
        self.database = database

    @property
    def services(self) -> list[ChatWait]:
        return list(dict.fromkeys((self.one, self.other)))

    def holds(self, text: str) -> bool:
        """Tell whether a text stands in a service's memory or on Valkey."""
        stored = self.database is not None and text.encode() in everything(self.database)
        return stored or any(service.holders(text) for service in self.services)

    def go_on(self, upstream: ScriptedUpstream) -> None:
        """Let the services do something else: what a connection has received stands in its buffer until more comes.
        They get news of what the other one generates, and look for what it has."""
        steps: list[Step] = [Token("x"), Gate("go on"), *[Token("x" * 1000)] * 100, Finish(), Done()]
        for service, reader in ((self.one, self.other), (self.other, self.one)):
            body = question(upstream, Script(steps=steps))
            with ask(service.base_url, body) as connection, ThreadPoolExecutor(1) as pool:
                other_id = connection.headers["x-stream-id"]
                reading = pool.submit(resumed, url_of(reader.base_url, other_id, "?stream=true"), "")
                reader.wait_for_log("reader_attached", stream=log_name(other_id), mode="streaming")
                upstream.open("go on")
                assert reading.result().count(b"xxx") == connection.body().count(b"xxx")
            other_id = generated(service.base_url, question(upstream, answer(["x" * 1000] * 100))).stream_id
            resumed(url_of(reader.base_url, other_id, "?stream=true"), "")


@pytest.fixture(scope="module", params=["memory", "valkey"])
def pair(request: pytest.FixtureRequest, shared_upstream: ScriptedUpstream, valkey: Valkey) -> Iterator[Pair]:
    if request.param == "memory":
        with ChatWait(probe=True, **settings(shared_upstream)) as service:
            yield Pair(service, service, None)
    else:
        database = valkey.database()
        with services(shared_upstream, database.url, probe=True) as (one, other):
            wait_settled((one, other))
            yield Pair(one, other, database)


def canary() -> str:
    return f"erasable-{secrets.token_hex(8)}"


def assert_gone(pair: Pair, stream_id: str, last: int) -> None:
    """Check that nobody can tell the stream from one that never was, whoever asks, in any way."""
    at = {**CLIENT, **cursor(stream_id, 1)}
    for service in pair.services:
        url = service.base_url
        replies = [
            get(url_of(url, stream_id), CLIENT),
            get(url_of(url, stream_id, "?stream=true"), CLIENT),
            get(url_of(url, stream_id, "?stream=true"), at),
            get(url_of(url, stream_id, f"?stream=true&starting_after={last}"), CLIENT),
            post(url + ASK, {}, headers=at),
            delete(url_of(url, stream_id), CLIENT),
        ]
        assert [error_of(reply) for reply in replies] == [(404, "stream_unknown")] * len(replies)
        natives = [get(f"{url}/chat/streaming/{stream_id}", at), get(f"{url}/chat/wait/{stream_id}", CLIENT)]
        natives += [delete(f"{url}/chat/streaming/{stream_id}", CLIENT), post(f"{url}/chat/wait", {}, headers=at)]
        assert [(reply.status, reply.json["error_code"]) for reply in natives] == [(404, "stream_unknown")] * 4


def erase(service: ChatWait, stream_id: str) -> None:
    reply = delete(url_of(service.base_url, stream_id), CLIENT)
    told = {"id": f"chatcmpl-{stream_id}", "object": "chat.completion.deleted", "deleted": True}
    assert (reply.status, reply.json) == (200, told)


def rest_of(pieces: Iterator[bytes]) -> None:
    """Read what still comes on a stream that is erased: it breaks off, or has been told its end before."""
    received = b""
    try:
        for piece in pieces:
            received += piece
    except Dropped:
        assert b"[DONE]" not in received
    else:
        assert b'"error_code":"cancelled"' in received
        assert b"[DONE]" in received


@pytest.mark.parametrize("eraser", ["one", "other"])
def test_stream_that_is_erased_while_it_is_generated_leaves_nothing(
    pair: Pair, upstream: ScriptedUpstream, eraser: str
) -> None:
    said, prompt, key = canary(), canary(), new_key()
    script = Script(steps=[Token(said), Token(f"{said} again"), Stall()])
    body = question(upstream, script)
    message = body["messages"][-1]
    body["messages"] = [{"role": "system", "content": prompt}, message]
    stream_id = begin(pair.one.base_url, body, {**CLIENT, **key})
    url = url_of("", stream_id, "?stream=true")
    urls = [pair.one.base_url + url, pair.other.base_url + url, f"{pair.other.base_url}/chat/streaming/{stream_id}"]
    readings = [open_stream(url, headers=CLIENT) for url in urls]
    pieces = [reading.pieces() for reading in readings]
    for reading in pieces:
        assert next(piece for piece in reading if said.encode() in piece)
    assert pair.holds(said), "this test looks in the wrong place"
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(get, url_of(pair.other.base_url, stream_id), CLIENT)
        pair.other.wait_for_log("reader_attached", stream=log_name(stream_id), mode="wait")
        erase(getattr(pair, eraser), stream_id)
        assert error_of(waiting.result()) in [(404, "stream_unknown"), (409, "cancelled")]
    for reading in pieces[:2]:
        rest_of(reading)
    for connection in readings:
        connection.close()
    asked_upstream(upstream, body)[0].wait_closed()
    assert_gone(pair, stream_id, 2)
    pair.go_on(upstream)
    for text in (said, prompt):
        poll(lambda text=text: not pair.holds(text), seconds=5, what="the text to be gone")
    upstream.reset()
    about(upstream, answer(["anew"]), message["content"])
    again = generated(pair.other.base_url, body, {**CLIENT, **key})
    assert (again.stream_id != stream_id, again.text) == (True, "anew")


@pytest.mark.parametrize("eraser", ["one", "other"])
@pytest.mark.parametrize("is_streamed", [True, False])
def test_answer_that_is_erased_after_its_end_leaves_nothing(
    pair: Pair, upstream: ScriptedUpstream, eraser: str, is_streamed: bool
) -> None:
    """Both services have read it, so both have it."""
    said, key = canary(), new_key()
    script = answer([said, " and more"]) if is_streamed else whole_of(said)
    body = question(upstream, script, stream=is_streamed)
    headers = {**CLIENT, **key}
    if is_streamed:
        stream_id = generated(pair.one.base_url, body, headers).stream_id
    else:
        stream_id = post(pair.one.base_url + ASK, body, headers=headers).headers["x-stream-id"]
    for service in pair.services:
        assert said.encode() in resumed(url_of(service.base_url, stream_id, "?stream=true"), "", CLIENT)
        assert get(url_of(service.base_url, stream_id), CLIENT).json["choices"][0]["message"]["content"][:25] == said
    assert pair.holds(said), "this test looks in the wrong place"
    erase(getattr(pair, eraser), stream_id)
    assert_gone(pair, stream_id, 1)
    pair.go_on(upstream)
    poll(lambda: not pair.holds(said), seconds=5, what="the text to be gone")
    assert_key_is_free(pair, upstream, body, headers, stream_id)


def whole_of(text: str) -> Script:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    told = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    return Script(headers={"content-type": "application/json"}, body=encode_json(told))


def assert_key_is_free(
    pair: Pair, upstream: ScriptedUpstream, body: dict[str, Any], headers: dict[str, str], erased_id: str
) -> None:
    """Ask with the key for something else: what the key stood for is forgotten."""
    with open_stream(pair.other.base_url + ASK, json={**body, "top_k": 1}, headers=headers) as again:
        assert (again.status, again.headers["x-stream-id"] != erased_id) == (200, True)
    assert len(asked_upstream(upstream, body)) == 2


def test_native_delete_stops_a_stream_and_keeps_it(pair: Pair, upstream: ScriptedUpstream) -> None:
    body = question(upstream, Script(steps=[Token("kept"), Stall()]))
    stream_id = begin(pair.one.base_url, body, CLIENT)
    upstream.wait_until(lambda: asked_upstream(upstream, body), what="the question")
    poll(
        lambda: get(f"{pair.other.base_url}/chat/wait/{stream_id}", {**CLIENT, "Prefer": "wait=0"}).json["tokens"] == 1,
        seconds=5,
        what="its text",
    )
    assert delete(f"{pair.other.base_url}/chat/streaming/{stream_id}", CLIENT).json["status"] in (
        "cancelled",
        "running",
    )
    poll(lambda: get(url_of(pair.other.base_url, stream_id), CLIENT).status == 409, seconds=5, what="its end")
    stopped = get(url_of(pair.other.base_url, stream_id), CLIENT)
    assert error_of(stopped) == (409, "cancelled")
    assert stopped.json["partial"]["choices"][0]["message"]["content"] == "kept"
    assert stopped.headers["x-should-retry"] == "false"
    erase(pair.other, stream_id)
    assert_gone(pair, stream_id, 1)


def test_native_stream_is_erased_by_openais_route(pair: Pair, upstream: ScriptedUpstream) -> None:
    """It belongs to whoever knows its id. The service that generated it is told."""
    said = canary()
    body = about(upstream, answer([said]))
    stream_id = str(read_answer(f"{pair.one.base_url}/chat/streaming", body).stream_id)
    erase(pair.other, stream_id)
    poll(lambda: get(url_of(pair.one.base_url, stream_id)).status == 404, seconds=5, what="the other one to hear")
    assert_gone(pair, stream_id, 1)
    pair.go_on(upstream)
    poll(lambda: not pair.holds(said), seconds=5, what="the text to be gone")


def test_many_are_erased_while_they_begin_run_and_end(pair: Pair, upstream: ScriptedUpstream) -> None:
    """At any moment, from either service, twice at once: one of both is told 200, and nothing is left."""

    def race(number: int) -> None:
        body = question(upstream, Script(steps=[*[Token("erasable-of-many", 0.001)] * (number % 7), Finish(), Done()]))
        with open_stream(pair.one.base_url + ASK, json=body, headers=CLIENT) as connection:
            stream_id = connection.headers["x-stream-id"]
            with ThreadPoolExecutor(2) as pool:
                deleting = [
                    pool.submit(delete, url_of(service.base_url, stream_id), CLIENT)
                    for service in (pair.one, pair.other)
                ]
                statuses = sorted(future.result().status for future in deleting)
        assert statuses in ([200, 200], [200, 404]), statuses
        assert get(url_of(pair.one.base_url, stream_id), CLIENT).status == 404
        assert get(url_of(pair.other.base_url, stream_id), CLIENT).status == 404

    with ThreadPoolExecutor(4) as pool:
        for racing in [pool.submit(race, number) for number in range(40)]:
            racing.result()
    pair.go_on(upstream)
    poll(lambda: not pair.holds("erasable-of-many"), seconds=5, what="the texts to be gone")


def test_erased_stream_is_not_restored_to_a_valkey_that_has_lost_everything(
    upstream: ScriptedUpstream, own_valkey: Valkey
) -> None:
    """What else the services have is."""
    erased, lasting = canary(), canary()
    database = Database(own_valkey, 1)
    with services(upstream, database.url, pace=SHORT_LEASES, probe=True) as (one, other):
        gone_id = generated(one.base_url, question(upstream, answer([erased])), CLIENT).stream_id
        live_id = begin(one.base_url, question(upstream, Script(steps=[Token(erased), Stall()])), CLIENT)
        kept_id = begin(
            one.base_url, question(upstream, Script(steps=[Token(lasting), Gate("on"), Finish(), Done()])), CLIENT
        )
        upstream.wait_reached("on")
        for stream_id in (gone_id, live_id):
            assert erased.encode() in first_of(other, stream_id)
            assert delete(url_of(other.base_url, stream_id), CLIENT).status == 200
        poll(lambda: not one.holders(erased), seconds=5, what="the service that generated them to hear of it")
        own_valkey.kill()
        own_valkey.start()
        poll(lambda: lasting.encode() in everything(database), seconds=20, what="what lives is restored")
        url = url_of(other.base_url, kept_id)
        poll(lambda: get(url, {**CLIENT, "Prefer": "wait=0"}).status == 202, seconds=20, what="the other one has it")
        upstream.open("on")
        assert lasting.encode() in resumed(url_of(other.base_url, kept_id, "?stream=true"), "", CLIENT)
        wait_settled((one, other))
        for service in (one, other):
            for stream_id in (gone_id, live_id):
                assert get(url_of(service.base_url, stream_id), CLIENT).status == 404
        assert erased.encode() not in everything(database)


def first_of(service: ChatWait, stream_id: str) -> bytes:
    """Read the first record of a stream."""
    with open_stream(url_of(service.base_url, stream_id, "?stream=true"), headers=CLIENT) as connection:
        received = b""
        for piece in connection.pieces():
            received += piece
            if b"\n\n" in received and b"erasable" in received:
                break
    return received


def test_requests_that_meet_an_erasure_are_told_what_was_or_that_it_is_unknown(
    pair: Pair, upstream: ScriptedUpstream
) -> None:
    """Never that the server stops, or that something is damaged."""

    def race(number: int) -> list[tuple[int, str]]:
        body = question(upstream, Script(steps=[Token("a"), *([Stall()] if number % 2 else [Finish(), Done()])]))
        stream_id = begin(pair.one.base_url, body, CLIENT)
        told: list[tuple[int, str]] = []

        def ask_again(service: ChatWait, headers: dict[str, str]) -> None:
            for _ in range(10):
                reply = get(url_of(service.base_url, stream_id), {**CLIENT, **headers})
                told.append((reply.status, "" if reply.status < 300 else error_of(reply)[1]))

        with ThreadPoolExecutor(5) as pool:
            asking = [
                pool.submit(ask_again, service, headers)
                for service in (pair.one, pair.other)
                for headers in ({"Prefer": "wait=0"}, {"Prefer": "wait=5"})
            ]
            erasing = pool.submit(delete, url_of((pair.one, pair.other)[number // 2 % 2].base_url, stream_id), CLIENT)
            assert erasing.result().status == 200
            for future in asking:
                future.result()
        return told

    found = {one for number in range(24) for one in race(number)}
    assert found <= {(200, ""), (202, ""), (404, "stream_unknown"), (409, "cancelled")}
