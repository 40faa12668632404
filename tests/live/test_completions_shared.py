"""OpenAI's streams over two services that share a Valkey: cut anywhere, and read on at the other one."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.harness.chaos import ChaosProxy
from tests.harness.reader import get, open_stream, post, read_answer
from tests.harness.script import Step, encode_json
from tests.harness.server import ChatWait
from tests.harness.upstream import Done, Finish, Gate, Script, ScriptedUpstream, Token, answer
from tests.harness.valkey import Valkey
from tests.live.completions import (
    ASK,
    ASKED_FOR,
    EVERY_TEXT,
    OPENING,
    Taken,
    ask,
    every_kind,
    question,
    resumed,
    url_of,
    without_heartbeats,
)
from tests.live.shared import services
from tests.live.steps import about, cursor, log_name, poll
from tests.live.test_completions_cuts import (
    WHOLE,
    asked_whole,
    assert_every_kind,
    assert_survives,
    assert_whole_as_chunk,
    at_once,
    cut_live,
    cut_replay,
    finished,
    live_cuts,
    paused,
    places,
)


@pytest.fixture(scope="module")
def pair(shared_upstream: ScriptedUpstream, valkey: Valkey) -> Iterator[list[ChatWait]]:
    with services(shared_upstream, valkey.url(valkey.new_database()), TIMEOUT_SECONDS=5) as pair:
        yield pair


def test_stream_has_the_same_bytes_and_the_same_proof_at_both_services(
    pair: list[ChatWait], upstream: ScriptedUpstream
) -> None:
    """While it is generated, and afterwards; from its beginning, and from each record."""
    one, other = pair
    with ask(one.base_url, question(upstream, every_kind(paused), **ASKED_FOR)) as first:
        stream_id, location = first.headers["x-stream-id"], first.headers["location"]
        with open_stream(other.base_url + location) as second:
            bodies = [without_heartbeats(connection.body()) for connection in (first, second)]
    for service in pair:
        with open_stream(service.base_url + location) as again:
            bodies.append(without_heartbeats(again.body()))
    assert len(set(bodies)) == 1
    taken = Taken(stream_id, location, bodies[0])
    assert_every_kind(taken)
    frames = taken.frames
    for after in range(len(frames)):
        rests = [resumed(service.base_url + location, f"{stream_id}.{after}") for service in pair]
        assert rests[0] == rests[1]
        assert bodies[0].endswith(rests[0])
        assert Taken(stream_id, location, rests[0]).proof == taken.proof
        query = f"?stream=true&starting_after={after}"
        with open_stream(url_of(other.base_url, stream_id, query)) as connection:
            assert connection.body() == OPENING + rests[0]


def test_answer_as_json_is_the_same_at_both_services(pair: list[ChatWait], upstream: ScriptedUpstream) -> None:
    taken = finished(pair[0], upstream)
    found = [get(url_of(service.base_url, taken.stream_id)) for service in pair]
    assert [reply.status for reply in found] == [200, 200]
    assert found[0].body == found[1].body
    assert [choice["finish_reason"] for choice in found[0].json["choices"]] == ["tool_calls", "stop"]


def test_native_routes_of_the_other_service_read_the_same_log(pair: list[ChatWait], upstream: ScriptedUpstream) -> None:
    taken = finished(pair[0], upstream)
    url = f"{pair[1].base_url}/chat/streaming/{taken.stream_id}"
    got = read_answer(url)
    assert (got.text, got.tokens) == (EVERY_TEXT, len(taken.chunks))
    for after in range(got.tokens + 1):
        assert read_answer(url, headers=cursor(taken.stream_id, after), after=after).tokens == got.tokens
    native = read_answer(f"{pair[0].base_url}/chat/streaming", about(upstream, answer(["Grü", "ß🙂", "e"])))
    for service in pair:
        with open_stream(url_of(service.base_url, str(native.stream_id), "?stream=true")) as connection:
            assert Taken(str(native.stream_id), "", connection.body()).text == "Grüß🙂e"


def test_replay_cut_anywhere_resumes_at_the_other_service(pair: list[ChatWait], upstream: ScriptedUpstream) -> None:
    """At the one that generated it, and at the other one."""
    taken = finished(pair[0], upstream)
    one, other = (service.base_url + taken.location for service in pair)
    uncut = OPENING + without_heartbeats(taken.body)
    at_once(places(uncut, 97), lambda size: cut_replay(one, other, uncut, size))
    at_once(places(uncut, 401), lambda size: cut_replay(other, one, uncut, size))


@pytest.mark.long
@pytest.mark.timeout(600)
def test_replay_cut_after_every_byte_resumes_at_the_other_service(
    pair: list[ChatWait], upstream: ScriptedUpstream
) -> None:
    taken = finished(pair[0], upstream)
    urls = [service.base_url + taken.location for service in pair]
    uncut = OPENING + without_heartbeats(taken.body)
    at_once(range(len(uncut) + 1), lambda size: cut_replay(urls[size % 2], urls[1 - size % 2], uncut, size))


def test_live_stream_cut_at_a_sample_of_bytes_resumes_at_the_other_service(
    pair: list[ChatWait], upstream: ScriptedUpstream
) -> None:
    uncut = without_heartbeats(finished(pair[0], upstream).body)
    one, other = (service.base_url for service in pair)
    at_once(live_cuts(uncut, 50), lambda size: cut_live(one, other, upstream, size))


@pytest.mark.long
@pytest.mark.timeout(900)
def test_live_stream_cut_after_every_fifth_byte_resumes_at_the_other_service(
    pair: list[ChatWait], upstream: ScriptedUpstream
) -> None:
    """The bytes in between are cut at one service."""
    uncut = without_heartbeats(finished(pair[0], upstream).body)
    urls = [service.base_url for service in pair]
    for begun in range(0, len(uncut) + 1, 1000):
        upstream.reset()  # thousands of rules would be searched at each request
        sizes = range(begun, min(begun + 1000, len(uncut) + 1), 5)
        at_once(sizes, lambda size: cut_live(urls[size % 2], urls[1 - size % 2], upstream, size))


def test_stream_cut_again_and_again_comes_to_the_same_bytes_over_both_services(
    pair: list[ChatWait], upstream: ScriptedUpstream
) -> None:
    one, other = pair
    with ChaosProxy("127.0.0.1", one.port, in_turns=[other.port]) as proxy:
        assert_survives(proxy, one, upstream)


def test_answer_that_was_not_streamed_is_read_at_the_other_service(
    pair: list[ChatWait], upstream: ScriptedUpstream
) -> None:
    stream_id = asked_whole(pair[0], upstream)
    urls = [url_of(service.base_url, stream_id, "?stream=true") for service in pair]
    with open_stream(urls[1]) as connection:
        taken = Taken(stream_id, urls[1], connection.body())
    assert_whole_as_chunk(taken)
    assert get(url_of(pair[0].base_url, stream_id)).body == get(url_of(pair[1].base_url, stream_id)).body
    at_once(places(taken.body, 41), lambda size: cut_replay(urls[size % 2], urls[1 - size % 2], taken.body, size))


def test_stream_whose_valkey_is_away_for_a_while_says_so_and_comes_whole(
    upstream: ScriptedUpstream, own_valkey: Valkey
) -> None:
    """In comments, which no parser sees. Afterwards the other service has all of it."""
    steps: list[Step] = [Token("a"), Gate("away"), Token("b"), Gate("back"), Token("c"), Finish(), Done()]
    with (
        services(upstream, own_valkey.url()) as (one, other),
        ask(one.base_url, question(upstream, Script(steps=steps))) as reading,
    ):
        pieces, received = reading.pieces(), b""

        def read_to(wanted: bytes) -> None:
            nonlocal received
            while wanted not in received:
                received += next(pieces)

        read_to(b'"a"')
        own_valkey.kill()
        upstream.open("away")
        read_to(b'"b"')
        own_valkey.start()
        read_to(b"\n: resumable\n")
        upstream.open("back")
        received += b"".join(pieces)
        lines = received.splitlines(keepends=True)
        notices = [line for line in lines if line in (b": unresumable\n", b": resumable\n")]
        assert notices == [b": unresumable\n", b": resumable\n"]
        assert lines.index(b": unresumable\n") < next(place for place, line in enumerate(lines) if b'"b"' in line)
        bare = without_heartbeats(b"".join(line for line in lines if line not in notices))
        stream_id = reading.headers["x-stream-id"]
        taken = Taken(stream_id, "", bare)
        assert (taken.text, bool(taken.proof)) == ("abc", True)
        url = url_of(other.base_url, stream_id, "?stream=true")
        poll(lambda: get(url, {"Accept": "text/event-stream"}).status == 200, seconds=20, what="the other one has it")
        assert resumed(url, f"{stream_id}.1") == bare[bare.index(b"\n\n") + 2 :]


def test_answer_that_is_not_streamed_can_be_awaited_as_a_stream(
    pair: list[ChatWait], upstream: ScriptedUpstream
) -> None:
    """At the other service, too, while the upstream says nothing."""
    script = Script(before=[Gate("whole")], headers={"content-type": "application/json"}, body=encode_json(WHOLE))
    body = question(upstream, script, stream=False)
    running = post(pair[0].base_url + ASK, body, headers={"Prefer": "wait=0"})
    assert (running.status, running.json["status"]) == (202, "in_progress")
    stream_id = running.headers["x-stream-id"]
    with ThreadPoolExecutor(2) as pool:
        urls = [url_of(service.base_url, stream_id, "?stream=true") for service in pair]
        reading = [pool.submit(resumed, url, "") for url in urls]
        for service in pair:
            service.wait_for_log("reader_attached", stream=log_name(stream_id), mode="streaming")
        upstream.open("whole")
        bodies = {without_heartbeats(future.result()) for future in reading}
    assert len(bodies) == 1
    assert_whole_as_chunk(Taken(stream_id, "", bodies.pop()))
