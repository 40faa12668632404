"""OpenAI's streams cut after any byte, and resumed: byte for byte what one connection gives, with the same proof."""

from __future__ import annotations

import hashlib
import random
import re
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.harness.chaos import ChaosProxy, CutAfter
from tests.harness.net import HOST
from tests.harness.reader import Dropped, get, open_stream, post, read_answer
from tests.harness.script import CREATED, Script, Step, encode_json
from tests.harness.server import ChatWait
from tests.harness.upstream import Done, Event, Finish, Gate, Pause, ScriptedUpstream, Token, answer
from tests.live.completions import (
    ASK,
    ASKED_FOR,
    EVERY_KIND,
    EVERY_TEXT,
    OPENING,
    USAGE,
    Taken,
    as_served,
    ask,
    asked_upstream,
    call,
    chunk,
    every_kind,
    generated,
    kept,
    question,
    read_bytes,
    resumed,
    url_of,
    without_heartbeats,
)
from tests.live.steps import about, cursor, new_key

THREADS = 4
PAUSE_SECONDS = 0.002


def paused() -> Sequence[Step]:
    return [Pause(PAUSE_SECONDS)]


def finished(chatwait: ChatWait, upstream: ScriptedUpstream) -> Taken:
    """Generate the stream with every kind of record."""
    return generated(chatwait.base_url, question(upstream, every_kind(), **ASKED_FOR))


def assert_every_kind(taken: Taken) -> None:
    """Check that a stream has every record, as the upstream sent it, and the proof of them."""
    assert taken.chunks == [as_served(sent, taken.stream_id) for sent in EVERY_KIND]
    *records, last = taken.frames
    assert [frame.id for frame in taken.frames] == [
        f"{taken.stream_id}.{place + 1}" for place in range(len(records) + 1)
    ]
    digest = hashlib.sha256("".join(f"{frame.data}\n" for frame in records).encode())
    assert (last.data, last.comment) == ("[DONE]", f"records={len(records)} sha256={digest.hexdigest()}")


CALLS = [{"id": f"call_{name}", "type": "function", "function": {"name": name, "arguments": "{}"}} for name in "ab"]
WHOLE: dict[str, Any] = {
    "id": "chatcmpl-up",
    "object": "chat.completion",
    "created": CREATED,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": 'Grü"ß 🙂'},
            "logprobs": None,
            "finish_reason": "stop",
        },
        {
            "index": 1,
            "message": {"role": "assistant", "content": None, "tool_calls": CALLS},
            "finish_reason": "tool_calls",
        },
    ],
    "usage": USAGE,
    "x_provider": {"id": 1},
}
"""An answer that the upstream gives whole."""


def asked_whole(service: ChatWait, upstream: ScriptedUpstream) -> str:
    """Ask for an answer that is not streamed; give its id."""
    script = Script(headers={"content-type": "application/json"}, body=encode_json(WHOLE))
    reply = post(service.base_url + ASK, question(upstream, script, stream=False))
    assert reply.status == 200, reply.body
    stream_id = reply.headers["x-stream-id"]
    assert reply.json == as_served(WHOLE, stream_id)
    assert reply.headers["location"] == f"{ASK}/chatcmpl-{stream_id}"
    assert get(service.base_url + reply.headers["location"]).body == reply.body
    return stream_id


def assert_whole_as_chunk(taken: Taken) -> None:
    """Check that an answer which was not streamed is one chunk, its messages as deltas, its calls numbered."""
    (only,) = taken.chunks
    first, second = WHOLE["choices"]
    numbered = [{"index": place, **call} for place, call in enumerate(CALLS)]
    deltas = [first["message"], {**second["message"], "tool_calls": numbered}]
    choices = [
        {name: value for name, value in choice.items() if name != "message"} | {"delta": delta}
        for choice, delta in zip((first, second), deltas, strict=True)
    ]
    assert only == as_served({**WHOLE, "object": "chat.completion.chunk", "choices": choices}, taken.stream_id)
    assert [frame.id for frame in taken.frames] == [f"{taken.stream_id}.{number}" for number in (1, 2)]
    digest = hashlib.sha256(f"{taken.frames[0].data}\n".encode()).hexdigest()
    assert taken.proof == f"records=1 sha256={digest}"


def cut_replay(first: str, second: str, uncut: bytes, size: int) -> None:
    """Read so many bytes of a finished stream, drop the connection, and read on: at both URLs it is the same stream."""
    with open_stream(first) as connection:
        received = read_bytes(connection, size)
        connection.reset()
    assert received == uncut[:size]
    has, last_id = kept(received)
    assert OPENING + has + resumed(second, last_id) == uncut, size


def cut_live(first: str, second: str, upstream: ScriptedUpstream, size: int) -> None:
    """Ask, read so many bytes while they are generated, drop the connection, and read on; then compare with a replay
    that nothing cuts."""
    body = question(upstream, every_kind(paused), **ASKED_FOR)
    with ask(first, body) as connection:
        location, stream_id = connection.headers["location"], connection.headers["x-stream-id"]
        received = read_bytes(connection, size)
        connection.reset()
    has, last_id = kept(received)
    rest = resumed(second + location, last_id)
    with open_stream(first + location) as connection:
        uncut = Taken(stream_id, location, connection.body())
    assert without_heartbeats(has + rest) == uncut.body.removeprefix(OPENING), size
    assert_every_kind(uncut)
    assert len(asked_upstream(upstream, body)) == 1


def places(body: bytes, step: int) -> list[int]:
    """Choose where to cut: after every so many bytes, and around each line's end."""
    ends = [place for place, byte in enumerate(body, 1) if byte == ord("\n")]
    near = {place + by for place in ends for by in (-1, 0, 1)}
    return sorted({*range(0, len(body) + 1, step), *(place for place in near if 0 <= place <= len(body))})


def at_once(cuts: Iterable[int], cut: Callable[[int], None]) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        for cutting in [pool.submit(cut, size) for size in cuts]:
            cutting.result()


# One service


def test_stream_has_every_kind_of_record_as_the_upstream_sent_it(
    chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """Live, and when it is read again."""
    taken = finished(chatwait, upstream)
    assert_every_kind(taken)
    assert taken.text == EVERY_TEXT
    with open_stream(chatwait.base_url + taken.location) as again:
        assert again.body() == OPENING + without_heartbeats(taken.body)


def test_replay_cut_anywhere_resumes_byte_for_byte(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """The client knows the id of the last event that came whole, and nothing else."""
    taken = finished(chatwait, upstream)
    url, uncut = chatwait.base_url + taken.location, OPENING + without_heartbeats(taken.body)
    at_once(places(uncut, 29), lambda size: cut_replay(url, url, uncut, size))


@pytest.mark.long
@pytest.mark.timeout(600)
def test_replay_cut_after_every_byte_resumes_byte_for_byte(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    taken = finished(chatwait, upstream)
    url, uncut = chatwait.base_url + taken.location, OPENING + without_heartbeats(taken.body)
    at_once(range(len(uncut) + 1), lambda size: cut_replay(url, url, uncut, size))


def live_cuts(uncut: bytes, count: int) -> list[int]:
    return sorted({0, 1, len(OPENING), *random.Random(20).sample(range(2, len(uncut)), count)})


def test_live_stream_cut_at_a_sample_of_bytes_resumes_byte_for_byte(
    chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """Each cut is a generation of its own, which goes on while its client comes back."""
    uncut = without_heartbeats(finished(chatwait, upstream).body)
    url = chatwait.base_url
    at_once(live_cuts(uncut, 50), lambda size: cut_live(url, url, upstream, size))


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", [0, 1, 2])
def test_live_stream_cut_after_every_byte_resumes_byte_for_byte(
    chatwait: ChatWait, upstream: ScriptedUpstream, first: int
) -> None:
    """After every third one here, so that three can run beside each other."""
    uncut = without_heartbeats(finished(chatwait, upstream).body)
    url = chatwait.base_url
    for begun in range(first, len(uncut) + 1, 600):
        upstream.reset()  # thousands of rules would be searched at each request
        sizes = range(begun, min(begun + 600, len(uncut) + 1), 3)
        at_once(sizes, lambda size: cut_live(url, url, upstream, size))


AGAIN_AND_AGAIN = [0, 300, 900, 0, 1200, 560, 2000, 10, 700, 0, 1600, 3000]


def assert_survives(proxy: ChaosProxy, service: ChatWait, upstream: ScriptedUpstream) -> None:
    """Read one stream over connections that die in the head, in the opening and inside frames. Some bring nothing, and
    the cursor stays."""
    body, headers = question(upstream, every_kind(paused), **ASKED_FOR), {**new_key(), "Host": f"{HOST}:{service.port}"}
    proxy.plan(*map(CutAfter, AGAIN_AND_AGAIN))
    has, last_id, location, is_over = b"", "", "", False
    while not is_over:
        received = b""
        try:
            fields = {**headers, **({"Last-Event-ID": last_id} if last_id else {})}
            with open_stream(
                proxy.base_url + (location or ASK), json=None if location else body, headers=fields
            ) as connection:
                location = connection.headers["location"]
                for piece in connection.pieces():
                    received += piece
                is_over = True
        except ConnectionError:
            pass
        more, found = kept(received)
        has, last_id = has + without_heartbeats(more), found or last_id
        assert proxy.connections <= len(AGAIN_AND_AGAIN) + 1
    assert proxy.connections > 8
    with open_stream(service.base_url + location) as uncut:
        assert OPENING + has == uncut.body()
    assert len(asked_upstream(upstream, body)) == 1


def test_stream_cut_again_and_again_comes_to_the_same_bytes(
    chatwait: ChatWait, upstream: ScriptedUpstream, proxy: ChaosProxy
) -> None:
    assert_survives(proxy, chatwait, upstream)


def test_post_cut_in_its_head_is_repeated_with_its_key_and_gives_the_same_stream(
    chatwait: ChatWait, upstream: ScriptedUpstream, proxy: ChaosProxy
) -> None:
    """The client knows no location yet: it can only send its request again."""
    body, key = question(upstream, every_kind(), **ASKED_FOR), new_key()
    taken = None
    for size in range(0, 800, 53):
        proxy.plan(CutAfter(size))
        with pytest.raises(Dropped), ask(proxy.base_url, body, key) as connection:
            connection.body()
        again = generated(chatwait.base_url, body, key)
        taken = taken or again
        assert (again.stream_id, without_heartbeats(again.body)) == (taken.stream_id, without_heartbeats(taken.body))
    assert len(asked_upstream(upstream, body)) == 1


def test_every_record_is_a_place_to_begin_in_each_way(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """`Last-Event-ID`, `?starting_after=`, a POST with a cursor, and the id with and without its prefix."""
    taken = finished(chatwait, upstream)
    frames = [match + b"\n\n" for match in without_heartbeats(taken.body).split(b"\n\n")[:-1]]
    stream_id, base_url = taken.stream_id, chatwait.base_url
    for after in range(len(frames)):
        last_id, wanted = cursor(stream_id, after), OPENING + b"".join(frames[after:])
        bare = f"{base_url}{ASK}/{stream_id}"
        ways = [
            open_stream(url_of(base_url, stream_id, "?stream=true"), headers=last_id),
            open_stream(url_of(base_url, stream_id, f"?stream=true&starting_after={after}")),
            open_stream(f"{bare}?starting_after={after}"),  # `Accept` asks for events
            open_stream(bare, headers=last_id),
            open_stream(f"{bare}?stream=true&starting_after={after}", headers={"Accept": "application/json"}),
            open_stream(f"{base_url}{ASK}", json={"never": "asked"}, headers=last_id),
        ]
        for way in ways:
            with way:
                assert (way.status, way.body()) == (200, wanted), after
    seen = len(frames)
    for url in (url_of(base_url, stream_id, f"?stream=true&starting_after={seen}"), f"{base_url}{ASK}/{stream_id}"):
        headers = {"Accept": "text/event-stream"} | (cursor(stream_id, seen) if "starting" not in url else {})
        assert get(url, headers).status == 204
    assert post(f"{base_url}{ASK}", {}, headers=cursor(stream_id, seen)).status == 204
    for url in (f"{base_url}{ASK}/{stream_id}?stream=true&starting_after={seen + 1}",):
        assert get(url).json["error"]["error_code"] == "cursor_ahead"


def test_answer_that_was_not_streamed_is_one_record_that_resumes(
    chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    stream_id = asked_whole(chatwait, upstream)
    url = url_of(chatwait.base_url, stream_id, "?stream=true")
    with open_stream(url) as connection:
        taken = Taken(stream_id, url, connection.body())
    assert_whole_as_chunk(taken)
    at_once(places(taken.body, 11), lambda size: cut_replay(url, url, taken.body, size))


def halves() -> Script:
    """Write the script of a stream that cuts characters in two, one of which nothing completes."""
    deltas: list[tuple[Any, int]] = [
        ({"content": "a\ud83d"}, 0),
        ({"content": "\ud83d"}, 1),
        ({"content": "\ude42b"}, 0),
        ({"reasoning_content": "\ud83d"}, 0),
        ({"content": "\ude42"}, 1),
        (call(0, "\ud83d", id="c", name="f"), 0),
        (call(0, "\ude42"), 0),
        ({"content": "end\ud83d"}, 0),
    ]
    ends = [chunk({}, index, "stop") for index in (0, 1)]
    return Script(steps=[*(Event(chunk(*delta)) for delta in deltas), *map(Event, ends), Done()])


def test_characters_that_come_in_halves_are_whole_in_every_stream(
    chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """The later chunk has the character. A half that nothing completes becomes U+FFFD, in a record of its own."""
    taken = generated(chatwait.base_url, question(upstream, halves(), n=2))
    assert not re.search(r"\\ud[89a-f]", re.sub(rb"\\ud83d\\ude42", b"", taken.body).decode())
    assert taken.text == "a🙂bend\ufffd"
    deltas = [choice["delta"] for one in taken.chunks for choice in one["choices"]]
    assert sum(delta.get("content") == "🙂" for delta in deltas) == 1
    assert {delta["tool_calls"][0]["function"]["arguments"] for delta in deltas if "tool_calls" in delta} == {"", "🙂"}
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "\ufffd"
    uncut, url = OPENING + without_heartbeats(taken.body), chatwait.base_url + taken.location
    at_once(places(uncut, 97), lambda size: cut_replay(url, url, uncut, size))
    whole = get(url_of(chatwait.base_url, taken.stream_id)).json
    assert [choice["message"]["content"] for choice in whole["choices"]] == ["a🙂bend\ufffd", "🙂"]


READERS, RECORDS = 25, 600


def test_readers_that_attach_anywhere_while_chunks_come_fast_get_the_same_bytes(
    chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """At any record so far. Each has the proof of all records, also of those that it was not sent."""
    choose = random.Random(22)
    kinds = [one for one in EVERY_KIND if one["choices"] and not one["choices"][0]["finish_reason"]]
    fast = [step for place in range(RECORDS) for step in (Event(kinds[place % len(kinds)]), Pause(0.0005))]
    body = question(upstream, Script(steps=[Token("first"), Gate("go"), *fast, Finish(), Done()]))

    def attach(delay: float, share: float) -> tuple[int, bytes]:
        time.sleep(delay)  # any moment will do
        reply = get(f"{chatwait.base_url}/chat/wait/{stream_id}", {"Prefer": "wait=0"})
        after = int(reply.json["tokens"] * share)
        return after, resumed(url, f"{stream_id}.{after}", timeout=30)

    with ask(chatwait.base_url, body) as connection, ThreadPoolExecutor(READERS) as pool:
        stream_id = connection.headers["x-stream-id"]
        url = chatwait.base_url + connection.headers["location"]
        upstream.wait_reached("go")
        attaching = [
            pool.submit(attach, choose.uniform(0, 0.6), min(1.0, choose.uniform(0, 1.3))) for _ in range(READERS)
        ]
        upstream.open("go")
        uncut = without_heartbeats(connection.body())
        frames = [frame + b"\n\n" for frame in uncut.split(b"\n\n")[:-1]]
        assert len(frames) == RECORDS + 3
        for attached in attaching:
            after, rest = attached.result()
            assert without_heartbeats(rest) == b"".join(frames[after:])


# The other dialect


def test_native_routes_read_the_same_log_from_every_record(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """The texts are equal, and a record has the same number there."""
    taken = finished(chatwait, upstream)
    url = f"{chatwait.base_url}/chat/streaming/{taken.stream_id}"
    texts = [
        "".join(
            choice["delta"].get("content") or choice["delta"].get("refusal") or ""
            for choice in chunk["choices"]
            if choice["index"] == 0
        )
        for chunk in taken.chunks
    ]
    assert "".join(texts) == EVERY_TEXT
    for after in range(len(texts) + 1):
        got = read_answer(url, headers=cursor(taken.stream_id, after), after=after, prefix="".join(texts[:after]))
        assert (got.text, got.tokens) == (EVERY_TEXT, len(texts))
        assert got.terminal is not None
        assert got.terminal.json["sha256"] == hashlib.sha256(EVERY_TEXT.encode()).hexdigest()
    assert get(url, {"Last-Event-ID": f"{taken.stream_id}.{len(texts) + 1}"}).status == 204
    waited = get(f"{chatwait.base_url}/chat/wait/{taken.stream_id}")
    assert (waited.status, waited.json["content"]) == (200, EVERY_TEXT)


NATIVE_TEXTS = ["Grü", 'ß "', "\\\n\u2028", "🙂", "\x00", "data: x\n\n", "end"]


def test_native_log_is_read_as_chunks_from_every_record(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """Its last chunk, which has no id, comes with each end."""
    native = read_answer(f"{chatwait.base_url}/chat/streaming", about(upstream, answer(NATIVE_TEXTS)))
    stream_id = str(native.stream_id)
    url = url_of(chatwait.base_url, stream_id, "?stream=true")
    with open_stream(url) as connection:
        taken = Taken(stream_id, connection.headers["location"], connection.body())
    *records, last_chunk, last = taken.frames
    assert [frame.id for frame in records] == [f"{stream_id}.{place + 1}" for place in range(len(NATIVE_TEXTS))]
    assert [frame.json["choices"][0]["delta"]["content"] for frame in records] == NATIVE_TEXTS
    assert (taken.text, last_chunk.id) == ("".join(NATIVE_TEXTS), "")
    assert (last_chunk.json["choices"][0]["finish_reason"], last.data) == ("stop", "[DONE]")
    digest = hashlib.sha256("".join(f"{frame.data}\n" for frame in records).encode()).hexdigest()
    assert last.comment == f"records={len(records)} sha256={digest}"
    for size in places(taken.body, 17):
        cut_replay(url, url, taken.body, size)
    for after in range(len(NATIVE_TEXTS) + 1):
        assert taken.body.endswith(resumed(url, f"{stream_id}.{after}"))
    assert resumed(url, f"{stream_id}.{len(NATIVE_TEXTS) + 1}") == b""
    whole = get(url_of(chatwait.base_url, stream_id)).json
    assert whole["choices"][0]["message"]["content"] == "".join(NATIVE_TEXTS)
