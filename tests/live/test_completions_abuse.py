"""What clients and upstreams of OpenAI's routes can do to the service: large, slow and hostile bodies, headers and
answers. Each is bounded, refused in words, and harms nobody else."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import pytest

from tests.harness.http1 import Wire
from tests.harness.net import HOST
from tests.harness.reader import Reply, get, open_stream, post, request
from tests.harness.script import encode_json
from tests.harness.server import ChatWait
from tests.harness.upstream import Done, Event, Gate, RequestRecord, Script, ScriptedUpstream, Token, answer
from tests.live.completions import (
    ASK,
    MODEL,
    ask,
    chunk,
    error_of,
    frames_of,
    generated,
    question,
    url_of,
    without_heartbeats,
)
from tests.live.rawhttp import raw, statuses, talk
from tests.live.steps import poll, settings

MIB = 1 << 20
MOST = 32 * MIB
JSON = {"Content-Type": "application/json"}
GOOD = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}


def large(size: int, **fields: Any) -> bytes:
    """Write a request of so many bytes: a picture in a message."""
    content = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}, {"type": "text", "text": "Hi"}]
    told = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": content}], **fields}
    body = json.dumps(told).encode()
    return body.replace(b"base64,", b"base64," + b"A" * (size - len(body)), 1)


def refused(reply: Reply, status: int, code: str) -> Reply:
    """Check an error in OpenAI's shape."""
    assert error_of(reply) == (status, code)
    told = reply.json["error"]
    assert told["message"].endswith(f"{told['detail']} {told['action']}")
    assert len(reply.body) < 8192
    return reply


# Large bodies


@pytest.fixture(scope="module")
def own_upstream() -> Iterator[ScriptedUpstream]:
    """It keeps no bodies of 32 MiB."""
    with ScriptedUpstream(ledger=False) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def roomy(own_upstream: ScriptedUpstream) -> Iterator[ChatWait]:
    """A service with room for one of the largest bodies on its way, and for one that waits for its answer."""
    with ChatWait(**settings(own_upstream, STREAM_MEMORY_MB=128, LOG_LEVEL="WARNING"), probe=True) as roomy:
        assert (
            post(roomy.base_url + ASK, data=large(MOST), headers=JSON, timeout=60).status == 200
        )  # what it costs once
        yield roomy


@contextmanager
def growth(service: ChatWait) -> Iterator[Callable[[], float]]:
    """Measure by how much the memory of a service has grown at its peak. Units: MiB."""
    before, peak, over = service.resources()["rss_bytes"], 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.01):
            peak = max(peak, service.resources()["rss_bytes"])

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield lambda: (peak - before) / MIB
    finally:
        over.set()
        watching.join()


def test_body_of_32_mebibytes_is_served_and_one_byte_more_is_not(
    roomy: ChatWait, own_upstream: ScriptedUpstream
) -> None:
    arrived, body = noted(own_upstream), large(MOST, stream=False)
    assert len(body) == MOST
    reply = post(roomy.base_url + ASK, data=body, headers=JSON, timeout=60)
    assert (reply.status, reply.json["choices"][0]["message"]["content"]) == (200, "seen")
    assert arrived == [body]
    own_upstream.reset()
    too_large = refused(
        post(roomy.base_url + ASK, data=large(MOST + 1), headers=JSON, timeout=60), 413, "body_too_large"
    )
    assert too_large.headers["x-should-retry"] == "false"


def noted(upstream: ScriptedUpstream) -> list[bytes]:
    """Have every request answered, and list the bodies that arrive."""
    arrived: list[bytes] = []

    def answered(record: RequestRecord) -> Script:
        arrived.append(record.body)
        return whole("seen")

    upstream.reset()
    upstream.by(answered)
    return arrived


def whole(text: str) -> Script:
    """Write the script of an answer that is not streamed."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    told = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    return Script(headers={"content-type": "application/json"}, body=encode_json(told))


def test_many_large_bodies_at_once_are_refused_and_not_held(roomy: ChatWait, own_upstream: ScriptedUpstream) -> None:
    """360 MiB arrive. What is not refused is answered, and the others are told to come again."""
    own_upstream.reset()
    body = large(30 * MIB)
    with growth(roomy) as grown, ThreadPoolExecutor(12) as pool:
        asking = [pool.submit(post, roomy.base_url + ASK, data=body, headers=JSON, timeout=60) for _ in range(12)]
        replies = [future.result() for future in asking]
        assert grown() < 200
    refusals = [reply for reply in replies if reply.status != 200]
    assert len(refusals) > 6
    for reply in refusals:  # one that comes slowly, because no processor was free for its sender, makes room
        status, code = (408, "request_timeout") if reply.status == 408 else (503, "overloaded")
        refused(reply, status, code)
        assert status == 408 or int(reply.headers["retry-after"]) >= 1
        assert "x-should-retry" not in reply.headers
    poll(lambda: post(roomy.base_url + ASK, data=body, headers=JSON, timeout=60).status == 200, seconds=20, what="room")


def test_large_questions_that_wait_for_their_answer_are_bounded_together(
    roomy: ChatWait, own_upstream: ScriptedUpstream
) -> None:
    """They are kept until the upstream has answered. Small ones that fit beside them are served."""
    own_upstream.reset()
    own_upstream.by(
        lambda record: Script(before=[Gate("answer")], steps=answer(["late"]).steps) if len(record.body) > MIB else None
    )
    body = large(20 * MIB)  # counted twice, because something of ours is added to it
    with growth(roomy) as grown, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(post, roomy.base_url + ASK, data=body, headers=JSON, timeout=60)
        own_upstream.wait_reached("answer", timeout=30)
        for _ in range(4):
            refused(post(roomy.base_url + ASK, data=body, headers=JSON, timeout=60), 503, "overloaded")
        assert post(roomy.base_url + ASK, {**GOOD, "stream": True}).status == 200
        assert grown() < 200
        own_upstream.open("answer")
        assert b"late" in waiting.result().body
    assert post(roomy.base_url + ASK, data=body, headers=JSON, timeout=60).status == 200
    poll(lambda: roomy.inside()["store_bytes"] < MIB, seconds=5, what="the question to be forgotten")


@pytest.fixture(scope="module")
def hurried(own_upstream: ScriptedUpstream) -> Iterator[ChatWait]:
    """A service that waits a second for a body, and more only for a large one."""
    pace = {"app.server.body.BODY_SECONDS": 1.0}
    told = settings(own_upstream, STREAM_MEMORY_MB=4, OPENAI_MAX_BODY_BYTES=2 * MIB, LOG_LEVEL="WARNING")
    with ChatWait(pace=pace, **told) as hurried:
        yield hurried


def test_body_that_comes_too_slowly_is_408(hurried: ChatWait) -> None:
    with closing(Wire(HOST, hurried.port, timeout=30)) as wire:
        wire.send(raw(f"POST {ASK} HTTP/1.1", "Content-Type: application/json", "Content-Length: 5000", body=b"{"))
        refused(wire.read_reply("POST"), 408, "request_timeout")


def test_large_body_has_more_time_to_arrive(hurried: ChatWait) -> None:
    """A second more for each 256 KiB behind the first MiB."""
    body = large(2 * MIB - 1, stream=False)
    with closing(Wire(HOST, hurried.port, timeout=30)) as wire:
        wire.send(raw(f"POST {ASK} HTTP/1.1", "Content-Type: application/json", f"Content-Length: {len(body)}"))
        pieces = [body[place : place + 65_536] for place in range(0, len(body), 65_536)]
        for piece in pieces:
            wire.send(piece)
            time.sleep(1.5 / len(pieces))  # the pace is the case
        assert wire.read_reply("POST").status != 408


def test_body_that_has_stalled_makes_room_for_another(hurried: ChatWait, own_upstream: ScriptedUpstream) -> None:
    """Two fill the room. The one that stalls longest is ended, if it has not been by its own time."""
    own_upstream.reset()
    size = 2 * MIB - 1
    with ExitStack() as stack:
        wires = [stack.enter_context(closing(Wire(HOST, hurried.port, timeout=30))) for _ in range(2)]
        for wire in wires:
            head = raw(f"POST {ASK} HTTP/1.1", "Content-Type: application/json", f"Content-Length: {size}")
            wire.send(head + large(size)[: size - 1])
        poll(
            lambda: post(hurried.base_url + ASK, data=large(size), headers=JSON, timeout=30).status == 200,
            seconds=20,
            what="room",
        )
        assert {wire.read_reply("POST").status for wire in wires} <= {408, 503}


# Hostile JSON

DEEP = 100_000
HOSTILE = {
    "deep lists": b'{"model":"m","messages":[{}],"x":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep objects": b'{"model":"m","messages":[{}],"x":' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}",
    "deep content": b'{"model":"m","messages":[{"content":' + b"[" * DEEP + b"]" * DEEP + b"}]}",
    "deep and unfinished": b"[" * (2 * MIB),
    "a million names": b'{"model":"m","messages":[{}],' + b",".join(b'"%d":1' % n for n in range(1_000_000)) + b"}",
    "a million values": b'{"model":"m","messages":[{}],"x":[' + b"1," * 1_000_000 + b"1]}",
    "many messages": b'{"model":"m","messages":[' + b"{}," * 10_000 + b"{}]}",
    "a name twice": b'{"model":"m","messages":[{}],"model":"n"}',
    "a name twice, escaped": b'{"model":"m","messages":[{}],"\\u006dodel":"n"}',
    "a name in another case": b'{"model":"m","messages":[{}],"Model":"n"}',
    "NaN": b'{"model":"m","messages":[{}],"temperature":NaN}',
    "bad UTF-8": b'{"model":"m","messages":[{"content":"\xff\xfe"}]}',
    "a surrogate in UTF-8": b'{"model":"m","messages":[{"content":"\xed\xa0\x80"}]}',
    "a byte order mark": b'\xef\xbb\xbf{"model":"m","messages":[{}]}',
    "UTF-16": '{"model":"m","messages":[{}]}'.encode("utf-16"),
    "a NUL": b'{"model":"m","messages":[{}]}\0',
    "two objects": b'{"model":"m","messages":[{}]}{}',
    "a list": b'[{"model":"m","messages":[{}]}]',
    "nothing": b"",
    "half": b'{"model":"m","messages":[{}]',
    "a text": b'"model"',
    "a control sign in a string": b'{"model":"m\n","messages":[{}]}',
    "a megabyte of spaces": b'{"model":"m",' + b" " * MIB + b'"messages":[{"content":"a"}]}',
    "no messages": b'{"model":"m"}',
    "messages that are none": b'{"model":"m","messages":[1,"a",null]}',
    "messages that are an object": b'{"model":"m","messages":{"0":{}}}',
    "no message": b'{"model":"m","messages":[]}',
    "a model that is none": b'{"model":["m"],"messages":[{}]}',
    "a model without end": b'{"model":"' + b"m" * 100_000 + b'","messages":[{}]}',
    "half a character for a model": b'{"model":"\\ud83d","messages":[{}]}',
    "a stream that is neither": b'{"model":"m","messages":[{}],"stream":"true"}',
    "options without end": b'{"model":"m","messages":[{}],"stream":true,"stream_options":{"x":"'
    + b"x" * 20_000
    + b'"}}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_json_is_refused_in_words(roomy: ChatWait, name: str) -> None:
    reply = post(roomy.base_url + ASK, data=HOSTILE[name].replace(b'"m"', f'"{MODEL}"'.encode()), headers=JSON)
    assert reply.status == 400, reply.body
    assert error_of(reply)[1] in ("invalid_json", "invalid_request")
    assert reply.headers["x-should-retry"] == "false"
    assert reply.json["error"]["type"] == "invalid_request_error"
    assert len(reply.body) < 8192


ACCEPTED = {
    "deep, as the bound allows": b'{"model":"m","messages":[{"content":"a"}],"x":' + b"[" * 20 + b"]" * 20 + b"}",
    "half a character in a text": b'{"model":"m","messages":[{"content":"\\ud83d"}]}',
    "a number of many digits": b'{"model":"m","messages":[{"content":"a"}],"seed":' + b"9" * 100_000 + b"}",
    "a number beyond all": b'{"model":"m","messages":[{"content":"a"}],"seed":1e999999}',
    "names inside twice": b'{"model":"m","messages":[{"content":"a","content":"b"}]}',
    "thousands of spaces": b'{"model":"m",' + b" " * 9000 + b'"messages":[{"content":"a"}]}',
    "an empty name": b'{"model":"m","messages":[{"content":"a"}],"":{"__proto__":1}}',
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_odd_json_that_is_valid_is_the_upstreams_to_judge(
    roomy: ChatWait, own_upstream: ScriptedUpstream, name: str
) -> None:
    arrived = noted(own_upstream)
    body = ACCEPTED[name].replace(b'"m"', f'"{MODEL}"'.encode())
    reply = post(roomy.base_url + ASK, data=body, headers=JSON)
    assert (reply.status, arrived) == (200, [body])


# Hostile headers


def test_authorization_of_eight_kilobytes_is_a_client_like_another(
    chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    who = {"Authorization": "Bearer " + "k" * 8000}
    stream_id = generated(chatwait.base_url, question(upstream, answer(["a"])), who).stream_id
    assert get(url_of(chatwait.base_url, stream_id), who).status == 200
    shorter = {"Authorization": who["Authorization"][:-1]}
    assert get(url_of(chatwait.base_url, stream_id), shorter).status == 404
    longer = raw(f"GET {url_of('', stream_id)} HTTP/1.1", f"Authorization: {'k' * 9000}")
    assert statuses(talk(chatwait.port, longer)) == [431]


@pytest.mark.parametrize(
    ("written", "code"),
    [
        ("resp_{}.1", "cursor_malformed"),
        ("ui_{}.1", "cursor_malformed"),
        ("chatcmpl-{}.1", "cursor_malformed"),
        ("cwc_AAAAAAAAAAAAAAAAAAAAAA.1", "cursor_foreign"),
        ("{}.-1", "cursor_malformed"),
        ("{}.01", "cursor_malformed"),
        ("{}.1e0", "cursor_malformed"),
        ("{}", "cursor_malformed"),
        ("1", "cursor_malformed"),
        ("{}.1.1", "cursor_malformed"),
        ("x" * 6000, "cursor_malformed"),
    ],
)
def test_cursor_of_another_kind_is_400(chatwait: ChatWait, upstream: ScriptedUpstream, written: str, code: str) -> None:
    stream_id = generated(chatwait.base_url, question(upstream, answer(["a"]))).stream_id
    headers = {"Last-Event-ID": written.format(stream_id)}
    url = url_of(chatwait.base_url, stream_id, "?stream=true")
    assert refused(get(url, headers), 400, code).headers["x-should-retry"] == "false"


@pytest.mark.parametrize("number", ["-1", "01", "1e0", "abc", "1.5", "٣", "9" * 30, "0x1", "%00", "1%20"])
def test_starting_after_that_is_no_number_is_400(chatwait: ChatWait, upstream: ScriptedUpstream, number: str) -> None:
    stream_id = generated(chatwait.base_url, question(upstream, answer(["a"]))).stream_id
    number = number if number.isascii() else "%D9%A3"
    for query in (f"?starting_after={number}", f"?stream=true&starting_after={number}"):
        refused(get(url_of(chatwait.base_url, stream_id, query)), 400, "cursor_malformed")


@pytest.mark.parametrize(
    "name",
    [
        "chatcmpl-",
        "chatcmpl-chatcmpl-{}",
        "CHATCMPL-{}",
        "resp_{}",
        "{}x",
        "{}.1",
        "cwc_",
        "..",
        "%00",
        "%2e%2e",
        "a" * 5000,
    ],
)
def test_id_that_is_none_is_404_in_each_way(chatwait: ChatWait, upstream: ScriptedUpstream, name: str) -> None:
    stream_id = generated(chatwait.base_url, question(upstream, answer(["a"]))).stream_id
    url = f"{chatwait.base_url}{ASK}/{name.format(stream_id)}"
    for method in ("GET", "DELETE"):
        reply = request(method, url)
        assert reply.status == 404, reply.body
        assert reply.json["error"]["error_code"] in ("stream_unknown", "not_found")
    assert get(url_of(chatwait.base_url, stream_id)).status == 200


# Upstreams


def test_json_answer_of_an_upstream_is_served_up_to_16_mebibytes(
    roomy: ChatWait, own_upstream: ScriptedUpstream
) -> None:
    own_upstream.reset()
    most = {"x": "a" * (15 * MIB)}
    told = json.loads(whole("much").body or b"") | most
    script = Script(headers={"content-type": "application/json"}, body=encode_json(told))
    own_upstream.always(script)
    reply = post(roomy.base_url + ASK, GOOD, timeout=60)
    assert reply.status == 200
    assert reply.json["x"] == most["x"]
    own_upstream.always(
        Script(headers={"content-type": "application/json"}, body=encode_json({**told, "y": "b" * 2 * MIB}))
    )
    with growth(roomy) as grown:
        refused(post(roomy.base_url + ASK, GOOD, timeout=60), 502, "upstream_error")
        assert grown() < 100


def flood(size: int, count: int) -> Script:
    """Write the script of an upstream that sends so many large chunks of which none is text."""
    return Script(steps=[Event(chunk({"role": "assistant"}, x="a" * size))] * count + [Done()])


def test_upstream_that_floods_raw_chunks_is_cut_at_16_mebibytes(
    roomy: ChatWait, own_upstream: ScriptedUpstream
) -> None:
    """The client has what came before, then an error and the end. Read again it is the same."""
    own_upstream.reset()
    own_upstream.always(flood(500_000, 60))
    with growth(roomy) as grown:
        taken = generated(roomy.base_url, {**GOOD, "stream": True})
        assert grown() < 150
    *records, error, last = taken.frames
    assert (error.id, error.json["error"]["error_code"]) == ("", "upstream_error")
    assert last.data == "[DONE]"
    assert 30 <= len(records) <= 34
    with open_stream(roomy.base_url + taken.location) as again:
        assert without_heartbeats(again.body()) == without_heartbeats(taken.body)
    partial = get(url_of(roomy.base_url, taken.stream_id), timeout=60)
    assert error_of(partial) == (502, "upstream_error")


def test_event_of_an_upstream_that_is_too_large_is_an_error(roomy: ChatWait, own_upstream: ScriptedUpstream) -> None:
    own_upstream.reset()
    own_upstream.always(flood(2 * MIB, 1))
    refused(post(roomy.base_url + ASK, {**GOOD, "stream": True}), 502, "upstream_error")
    own_upstream.always(Script(steps=[Token("a"), *flood(2 * MIB, 1).steps]))
    with ask(roomy.base_url, {**GOOD, "stream": True}) as connection:
        *_, error, last = frames_of(without_heartbeats(connection.body()))
    assert (error.json["error"]["error_code"], last.data) == ("upstream_error", "[DONE]")


HOSTILE_CHUNKS = {
    "no JSON": "nothing",
    "a list": "[1]",
    "deep": '{"choices":' + "[" * 50_000 + "]" * 50_000 + "}",
    "deep, unknown": '{"choices":[],"x":' + '{"a":' * 50_000 + "1" + "}" * 50_000 + "}",
    "an error": '{"error":{"message":"Your tokens are too many.","type":"invalid_request_error","code":"context"}}',
    "half an object": '{"choices":[{"index":0',
}


@pytest.mark.parametrize("name", HOSTILE_CHUNKS)
def test_hostile_chunk_ends_the_stream_with_an_error_behind_what_came(
    chatwait: ChatWait, upstream: ScriptedUpstream, name: str
) -> None:
    script = Script(steps=[Token("before"), Event(HOSTILE_CHUNKS[name]), Token("behind"), Done()])
    taken = generated(chatwait.base_url, question(upstream, script))
    *records, error, last = taken.frames
    assert [frame.json["choices"][0]["delta"]["content"] for frame in records] == ["before"]
    assert (error.id, last.data) == ("", "[DONE]")
    assert "error" in error.json


ODD_CHUNKS: dict[str, dict[str, Any]] = {
    "no choices at all": {"x": 1},
    "a choice of a far number": {"choices": [{"index": 10**9, "delta": {"content": "x"}}]},
    "a delta that is null": {"choices": [{"index": 0, "delta": None}]},
    "a choice without anything": {"choices": [{}]},
    "an id that is a number": {"id": 7, "choices": []},
    "our own id": {"id": "chatcmpl-cwc_AAAAAAAAAAAAAAAAAAAAAA", "choices": []},
}


@pytest.mark.parametrize("name", ODD_CHUNKS)
def test_odd_chunk_is_passed_on_with_our_id(chatwait: ChatWait, upstream: ScriptedUpstream, name: str) -> None:
    odd = ODD_CHUNKS[name]
    taken = generated(
        chatwait.base_url, question(upstream, Script(steps=[Token("before"), Event(odd), *answer(["behind"]).steps]))
    )
    assert taken.chunks[1] == {**odd, "id": f"chatcmpl-{taken.stream_id}"}
    assert [chunk["choices"][0]["delta"].get("content") for chunk in taken.chunks[:1] + taken.chunks[3:4]] == [
        "before",
        "behind",
    ]
    with open_stream(chatwait.base_url + taken.location) as again:
        assert without_heartbeats(again.body()) == without_heartbeats(taken.body)
    whole = get(url_of(chatwait.base_url, taken.stream_id))
    assert (whole.status, whole.json["choices"][0]["message"]["content"]) == (200, "beforebehind")
