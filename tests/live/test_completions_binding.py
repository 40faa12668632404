"""Who began an answer through OpenAI's routes is the only one who finds it: its id is in many a tool's logs.

Foreign is unknown, whatever is asked: before 410, before a cursor is judged, and in each dialect.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.harness.reader import Reply, delete, get, open_stream, post, read_answer, request
from tests.harness.server import ChatWait
from tests.harness.upstream import Done, Finish, Gate, Script, ScriptedUpstream, Token, answer
from tests.harness.valkey import Database, Valkey
from tests.live.completions import (
    ASK,
    CLIENT,
    OTHER_CLIENT,
    asked_upstream,
    begin,
    error_of,
    everything,
    generated,
    live,
    question,
    resumed,
    url_of,
)
from tests.live.shared import services, wait_settled
from tests.live.steps import KEY, about, cursor, new_key, poll, settings

NEVER = "cwc_" + "A" * 22
FOREIGN = [
    {},
    OTHER_CLIENT,
    {"Authorization": CLIENT["Authorization"].lower()},
    {"Authorization": CLIENT["Authorization"] + "x"},
    {"Authorization": CLIENT["Authorization"][:-1]},
    {"Authorization": "Bearer"},
    {"Authorization": "Bearer " + "k" * 8000},
]


Pair = tuple[ChatWait, ChatWait]
STORES = ("memory", "valkey")


@contextmanager
def running(store: str, upstream: ScriptedUpstream, valkey: Valkey, **told: Any) -> Iterator[Pair]:
    """Run two services with one Valkey, or give the same one twice."""
    if store == "valkey":
        with services(upstream, valkey.url(valkey.new_database()), **told) as (one, other):
            wait_settled((one, other))
            yield one, other
    else:
        with ChatWait(**settings(upstream, **told)) as service:
            yield service, service


@pytest.fixture(scope="module", params=STORES)
def pair(request: pytest.FixtureRequest, shared_upstream: ScriptedUpstream, valkey: Valkey) -> Iterator[Pair]:
    with running(request.param, shared_upstream, valkey, TIMEOUT_SECONDS=30) as pair:
        yield pair


def ways(base_url: str, stream_id: str, who: dict[str, str], sequence: int) -> Iterator[Reply]:
    """Ask for a stream in each way that there is, at a cursor. A way that would change something is the last one."""
    at = {**who, **cursor(stream_id, sequence)}
    for path in (f"{ASK}/chatcmpl-{stream_id}", f"{ASK}/{stream_id}", f"/chat/completions/{stream_id}"):
        yield get(base_url + path, who)
        yield get(f"{base_url}{path}?stream=true", who)
        yield get(f"{base_url}{path}?starting_after={sequence}", who)
        yield get(base_url + path, {**at, "Prefer": "wait=0"})
        yield get(f"{base_url}{path}?stream=true", at)
    yield post(base_url + ASK, {}, headers=at)
    for path in ("/chat/streaming", "/chat/wait"):
        yield get(f"{base_url}{path}/{stream_id}", {**at, "Prefer": "wait=0"})
        yield post(base_url + path, {}, headers={**at, "Prefer": "wait=0"})
        yield delete(f"{base_url}{path}/{stream_id}", who)
    yield delete(url_of(base_url, stream_id), who)


def assert_unknown(reply: Reply) -> dict[str, Any]:
    """Check that a stream is unknown, and give what is said of it, without what is each request's own."""
    told = reply.json.get("error", reply.json)
    assert (reply.status, told["error_code"]) == (404, "stream_unknown"), reply.body
    return {name: value for name, value in told.items() if name != "correlation_id"}


@pytest.mark.parametrize("place", range(len(FOREIGN)))
def test_stream_is_unknown_to_all_but_its_client_in_every_way(
    pair: Pair, upstream: ScriptedUpstream, place: int
) -> None:
    """Live and ended, at its beginning, inside, at its end and beyond; at the service that generates it and elsewhere.
    What is said is what is said of a stream that never was."""
    script = Script(steps=[Token("a"), Gate("on"), Token("b"), Finish(), Done()])
    with live(pair[0].base_url, question(upstream, script), CLIENT) as stream_id:
        upstream.wait_reached("on")
        for is_live in (True, False):
            if not is_live:
                upstream.open("on")
                assert b'"b"' in resumed(url_of(pair[1].base_url, stream_id, "?stream=true"), f"{stream_id}.1", CLIENT)
            for service in dict.fromkeys(pair):
                for sequence in (0, 1, 4, 1000):
                    told = [
                        assert_unknown(reply) for reply in ways(service.base_url, stream_id, FOREIGN[place], sequence)
                    ]
                    never = "cwc_" + "A" * 22
                    unknown = [
                        assert_unknown(reply) for reply in ways(service.base_url, never, FOREIGN[place], sequence)
                    ]
                    assert told == unknown
        assert b'"b"' in resumed(url_of(pair[1].base_url, stream_id, "?stream=true"), f"{stream_id}.1", CLIENT)


def test_head_tells_a_foreign_client_nothing(pair: Pair, upstream: ScriptedUpstream) -> None:
    stream_id = generated(pair[0].base_url, question(upstream, answer(["a"])), CLIENT).stream_id
    url = url_of(pair[1].base_url, stream_id)
    assert request("HEAD", url, headers=CLIENT).status == 200
    assert request("HEAD", url, headers=OTHER_CLIENT).status == 404
    assert request("HEAD", url, headers={**OTHER_CLIENT, **cursor(stream_id, 9)}).status == 404


@pytest.mark.parametrize("store", STORES)
def test_stream_that_is_gone_is_expired_for_its_client_and_unknown_to_others(
    store: str, upstream: ScriptedUpstream, valkey: Valkey
) -> None:
    with running(store, upstream, valkey, RETENTION_SECONDS=1) as pair:
        stream_id = generated(pair[0].base_url, question(upstream, answer(["a"])), CLIENT).stream_id
        for service in dict.fromkeys(pair):
            url = url_of(service.base_url, stream_id)
            poll(lambda url=url: get(url, CLIENT).status == 410, seconds=10, what="it has expired")
            assert error_of(get(url, CLIENT)) == (410, "stream_expired")
            assert get(f"{service.base_url}/chat/wait/{stream_id}", CLIENT).status == 410
            for who in FOREIGN:
                for reply in ways(service.base_url, stream_id, who, 1):
                    assert_unknown(reply)


def test_stream_that_was_dropped_for_others_is_expired_for_its_client_and_unknown_to_others(
    upstream: ScriptedUpstream,
) -> None:
    with ChatWait(**settings(upstream, STREAM_MEMORY_MB=1, OPENAI_MAX_BODY_BYTES=100_000)) as service:
        stream_id = generated(service.base_url, question(upstream, answer(["a"])), CLIENT).stream_id
        for number in range(12):
            generated(service.base_url, question(upstream, answer([secrets.token_hex(50_000)])), FOREIGN[number % 2])
        assert error_of(get(url_of(service.base_url, stream_id), CLIENT)) == (410, "stream_expired")
        for who in FOREIGN:
            for reply in ways(service.base_url, stream_id, who, 1):
                assert_unknown(reply)


def test_client_without_credentials_finds_what_it_began_without_them(pair: Pair, upstream: ScriptedUpstream) -> None:
    stream_id = generated(pair[0].base_url, question(upstream, answer(["a"]))).stream_id
    for service in pair:
        assert get(url_of(service.base_url, stream_id)).status == 200
        assert get(url_of(service.base_url, stream_id), {"Authorization": ""}).status == 200
        assert get(url_of(service.base_url, stream_id), CLIENT).status == 404


def test_native_stream_is_found_by_whoever_knows_its_id(pair: Pair, upstream: ScriptedUpstream) -> None:
    """As ever: in version 0.1 an id is a capability."""
    stream_id = str(read_answer(f"{pair[0].base_url}/chat/streaming", about(upstream, answer(["a"]))).stream_id)
    for who in ({}, CLIENT, OTHER_CLIENT):
        for service in pair:
            assert get(url_of(service.base_url, stream_id), who).json["choices"][0]["message"]["content"] == "a"


# Keys


def test_key_of_one_client_begins_anew_for_another(pair: Pair, upstream: ScriptedUpstream) -> None:
    """The same key and the same body. Each client comes back to its own, at both services."""
    body, key = question(upstream, answer(["a", "b"])), new_key()
    clients: tuple[dict[str, str], ...] = ({}, CLIENT, OTHER_CLIENT)
    ids = [generated(pair[0].base_url, body, {**key, **who}).stream_id for who in clients]
    assert len(set(ids)) == len(clients)
    for who, stream_id in zip(clients, ids, strict=True):
        assert generated(pair[1].base_url, body, {**key, **who}).stream_id == stream_id
        with open_stream(pair[1].base_url + ASK, json={**body, "n": 1}, headers={**key, **who}) as other:
            assert error_of(other.reply())[1] == "idempotency_key_reused"
    assert len(asked_upstream(upstream, body)) == len(clients)


def test_key_of_a_native_request_is_another_one(pair: Pair, upstream: ScriptedUpstream) -> None:
    """Though key and body are the same. The native route refuses the body."""
    body, key = question(upstream, answer(["a"])), new_key()
    native = about(upstream, answer(["b"]))
    stream_id = read_answer(f"{pair[0].base_url}/chat/streaming", native, headers=key).stream_id
    taken = generated(pair[1].base_url, body, key)
    assert taken.stream_id != stream_id
    assert read_answer(f"{pair[1].base_url}/chat/streaming", native, headers=key).stream_id == stream_id


# What becomes of the header


def test_credentials_of_a_client_go_nowhere(upstream: ScriptedUpstream, valkey_database: Database) -> None:
    """Neither to the upstream, which gets the operator's key, nor to Valkey. The logs are judged everywhere."""
    secret = CLIENT["Authorization"].removeprefix("Bearer ")
    with services(upstream, valkey_database.url, count=1, LOG_LEVEL="DEBUG") as (service,):
        body = question(upstream, Script(steps=[Token("in the store"), Gate("on"), Finish(), Done()]))
        stream_id = begin(service.base_url, body, {**CLIENT, **new_key()})
        upstream.wait_reached("on")
        assert b"in the store" in everything(valkey_database)
        assert secret.encode() not in everything(valkey_database)
        upstream.open("on")
        resumed(url_of(service.base_url, stream_id, "?stream=true"), "", CLIENT)
        assert secret.encode() not in everything(valkey_database)
        assert secret not in service.output
    (record,) = asked_upstream(upstream, body)
    assert record.headers["authorization"] == f"Bearer {KEY}"
    assert secret not in str(record.headers)
    assert secret.encode() not in record.body
