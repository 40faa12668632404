"""At its limits the service refuses at once, starts nothing, and serves those that it has admitted as before."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median

import pytest

from tests.harness.reader import get, post, read_answer
from tests.harness.server import ChatWait
from tests.harness.upstream import Done, Finish, Gate, Script, ScriptedUpstream, Token
from tests.live.figures import unheard
from tests.live.many import Asker, Got, read_one, run
from tests.live.pace import in_ms, percentile, read_paced
from tests.live.steps import KEY, about, asked, begin, log_name, new_key, poll, settings
from tests.load.suite import mock_upstream


def request_of(port: int, path: str, body: dict[str, str]) -> bytes:
    """Write a whole request."""
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


@pytest.fixture(scope="module")
def small(shared_upstream: ScriptedUpstream) -> Iterator[ChatWait]:
    """A service that takes ten generations and twelve readers."""
    with ChatWait(**settings(shared_upstream, MAX_ACTIVE_STREAMS=10, MAX_READERS=12)) as chatwait:
        yield chatwait


@pytest.mark.requirement("core edge 4")
def test_one_stream_over_the_limit_is_503_at_once_while_the_others_go_on(
    small: ChatWait, upstream: ScriptedUpstream
) -> None:
    """MAX_ACTIVE_STREAMS + 1, and room again when one has ended."""
    steps = [Token("a"), Gate("first"), Token("b"), Gate("second"), Token("c"), Finish(), Done()]
    with ThreadPoolExecutor(10) as pool:
        url = f"{small.base_url}/chat/streaming"
        upstream.always(Script(steps=steps))
        readers = [pool.submit(read_answer, url, {"message": "Hi"}, timeout=30) for _ in range(10)]
        upstream.wait_reached("first", count=10)

        def assert_full() -> None:
            for mode in ("streaming", "wait"):
                begun = time.monotonic()
                reply = post(f"{small.base_url}/chat/{mode}", {"message": "One more"})
                assert (reply.status, reply.json["error_code"]) == (503, "overloaded")
                assert (int(reply.headers["retry-after"]) >= 1, reply.json["retryable"]) == (True, True)
                assert time.monotonic() - begun < 2.0

        assert_full()
        upstream.open("first")
        upstream.wait_reached("second", count=10)
        assert_full()
        upstream.open("second")
        assert [reader.result(15).text for reader in readers] == ["abc"] * 10
        assert len(upstream.completions) == 10
        assert read_answer(url, {"message": "One more"}).text == "abc"


def test_reader_over_the_limit_is_503_and_the_others_go_on(small: ChatWait, upstream: ScriptedUpstream) -> None:
    """MAX_READERS + 1; nothing is started for whom nothing could be sent."""
    with ThreadPoolExecutor(12) as pool:
        url = f"{small.base_url}/chat/streaming"
        body = about(upstream, Script(steps=[Token("a"), Gate("go"), Token("b"), Finish(), Done()]))
        stream_id = begin(small.base_url, body)
        name = log_name(stream_id)
        small.wait_for_log("reader_left", stream=name)
        readers = [pool.submit(read_answer, f"{url}/{stream_id}") for _ in range(12)]
        poll(lambda: len(small.log_of("reader_attached", stream=name)) == 13, seconds=5, what="all readers")
        for reply in (get(f"{url}/{stream_id}"), get(f"{small.base_url}/chat/wait/{stream_id}"), post(url, body)):
            assert (reply.status, reply.json["error_code"]) == (503, "overloaded")
            assert int(reply.headers["retry-after"]) >= 1
        upstream.open("go")
        assert [reader.result(15).text for reader in readers] == ["ab"] * 12
        assert len(upstream.completions) == 1


@pytest.mark.parametrize("mode", ["streaming", "wait"])
def test_many_who_ask_in_the_same_moment_are_no_more_than_the_readers_that_may_be(
    upstream: ScriptedUpstream, mode: str
) -> None:
    body = about(upstream, Script(steps=[Token("a"), Gate("go"), Token("b"), Finish(), Done()]))
    with ChatWait(**settings(upstream, MAX_ACTIVE_STREAMS=100, MAX_READERS=3)) as chatwait:
        data = request_of(chatwait.port, f"/chat/{mode}", body)
        asking = [socket.create_connection(("127.0.0.1", chatwait.port), timeout=20) for _ in range(60)]
        for connection in asking:
            connection.sendall(data)
        poll(lambda: len(chatwait.log_of("request_received", method="POST")) == 60, seconds=10, what="all requests")
        upstream.wait_reached("go", count=3)
        attached = len(chatwait.log_of("reader_attached"))
        upstream.open("go")
        answers = [connection.recv(12) for connection in asking]
        for connection in asking:
            connection.close()
    assert (attached, Counter(answers)) == (3, {b"HTTP/1.1 200": 3, b"HTTP/1.1 503": 57})
    assert len(asked(upstream, body)) == 3


def test_who_attaches_by_a_key_has_room_beside_generations_and_readers(
    small: ChatWait, upstream: ScriptedUpstream
) -> None:
    """A tenth more readers than MAX_READERS: two more than twelve. And nothing is begun for them, or asked."""
    url, key = f"{small.base_url}/chat/streaming", new_key()
    body = about(upstream, Script(steps=[Token("a"), Gate("keyed"), Token("b"), Finish(), Done()]))
    others = [about(upstream, Script(steps=[Gate("keyed"), Token("c"), Finish(), Done()])) for _ in range(9)]
    with ThreadPoolExecutor(14) as pool:
        name = log_name(begin(small.base_url, body, headers=key))
        small.wait_for_log("reader_left", stream=name)
        readers = [pool.submit(read_answer, url, other) for other in others]
        upstream.wait_reached("keyed", count=10)
        attached = [pool.submit(read_answer, url, body, headers=key) for _ in range(5)]
        poll(lambda: len(small.log_of("reader_attached", stream=name)) == 6, seconds=5, what="14 readers")
        for headers in (key, new_key(), None):
            reply = post(url, body, headers=headers)
            assert (reply.status, reply.json["error_code"]) == (503, "overloaded")
            assert int(reply.headers["retry-after"]) >= 1
        assert len(small.log_of("reader_attached", stream=name)) == 6
        upstream.open("keyed")
        assert [reader.result(15).text for reader in attached] == ["ab"] * 5
        assert [reader.result(15).text for reader in readers] == ["c"] * 9
        assert len(upstream.completions) == 10


# The pace of those that are in

STREAMS = 50
TOKENS = 240
GAP_SECONDS = 0.05
REFUSED = 500
RESUMES = 20
TRIES = 3  # a busy machine may be late now and then, not each time


@dataclass(frozen=True)
class Round:
    """What one round of streams met. Units: seconds."""

    gaps: list[float]
    refusals: list[float]
    others: list[float]


async def timed(call: Awaitable[Got], took: list[float]) -> Got:
    begun = time.monotonic()
    got = await call
    took.append(time.monotonic() - begun)
    return got


async def play(chatwait: ChatWait, full: str | None) -> Round:
    """Run the streams, beside them many that are refused for what is full, if anything is."""
    url = f"{chatwait.base_url}/chat/streaming"
    played = Round([], [], [])
    # Begun one after another, over a second, as they come in life; then they do not all wake at one moment.
    askers, until = [], time.monotonic() + TOKENS * GAP_SECONDS * 0.8
    for _ in range(STREAMS):
        askers.append(await Asker.ask(url, {"message": "Hi"}))
        await asyncio.sleep(1 / STREAMS)  # the pace is the case
    assert {asker.status for asker in askers} == {200}
    ids = [asker.headers["x-stream-id"] for asker in askers]
    gaps: list[tuple[float, float]] = []
    reading = asyncio.gather(*(read_paced(asker, gaps) for asker in askers))
    resuming: list[asyncio.Task[Got]] = []
    begun = time.monotonic()
    for number in range(REFUSED if full else 0):
        if time.monotonic() > until:  # on a busy machine not all have their turn
            break
        if full == "readers" and number % 2:
            call = read_one(f"{url}/{ids[number % STREAMS]}")
        else:
            call = read_one(url, {"message": "One more"})
        got = await timed(call, played.refusals)
        assert (got.status, b'"overloaded"' in got.body) == (503, True)
        assert int(got.headers["retry-after"]) >= 1
        if number % (REFUSED // RESUMES) == 0:
            assert (await timed(read_one(f"{chatwait.base_url}/health"), played.others)).status == 200
            if full == "streams":
                resuming.append(asyncio.create_task(read_one(f"{url}/{ids[number % STREAMS]}")))
        await asyncio.sleep(begun + (until - begun) * (number + 1) / REFUSED - time.monotonic())
    if full:
        assert not reading.done(), "the streams had ended, so nothing was full any more"
    assert all(b'"status":"complete"' in last for last in await reading)
    played.gaps.extend(gap for _, gap in gaps)
    resumed = await asyncio.gather(*resuming)
    assert [(got.event, got.answer.tokens) for got in resumed] == [("done", TOKENS)] * len(resuming)
    return played


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("full", ["streams", "readers"])
def test_hundreds_that_are_refused_change_nobodys_pace(full: str) -> None:
    """Some 500 beside 50 streams of 20 tokens a second, in rounds with and without them, A B B A."""
    limits = {"MAX_ACTIVE_STREAMS": STREAMS, "MAX_READERS": STREAMS if full == "readers" else 2 * STREAMS}
    with (
        mock_upstream("--numbered", tokens=TOKENS, gap_ms=GAP_SECONDS * 1000) as base_url,
        ChatWait(OPENAI_BASE_URL=base_url, OPENAI_API_KEY=KEY, probe=True, **limits) as chatwait,
        unheard(chatwait),
    ):

        def play_round(is_full: bool) -> Round:
            played = run(play(chatwait, full if is_full else None))
            poll(lambda: chatwait.inside()["live"] == 0, seconds=10, what="the round to be over")
            return played

        for _ in range(TRIES):
            a1, b1, b2, a2 = (play_round(is_full) for is_full in (False, True, True, False))
            print(f"\n{full} at the limit, others refused (B) or not (A); gaps between frames, ms")
            for name, played in (("A", a1), ("B", b1), ("B", b2), ("A", a2)):
                print(name, in_ms(played.gaps), end="")
                if played.refusals:
                    took, p99 = median(played.refusals), percentile(played.refusals, 99)
                    print(f"; {len(played.refusals)} refused in {took * 1000:.1f} (p99 {p99 * 1000:.1f})", end="")
                    print(f", health in {median(played.others) * 1000:.1f}", end="")
                print()
            were_many = all(len(played.refusals) > REFUSED // 2 for played in (b1, b2))
            if were_many and is_unchanged((a1, a2), (b1, b2)):
                break
        assert were_many
        assert is_unchanged((a1, a2), (b1, b2))


def is_unchanged(without: tuple[Round, ...], refusing: tuple[Round, ...]) -> bool:
    """Compare the better round of each kind: the worse one tells of the machine. What is doubled was changed."""

    def best(rounds: tuple[Round, ...], percent: int) -> float:
        return min(percentile(played.gaps, percent) for played in rounds)

    at_once = min(median(played.refusals) for played in refusing)
    ordinary = min(median(played.others) for played in refusing)
    return at_once < 5 * ordinary + 0.02 and all(
        best(refusing, percent) < 1.5 * best(without, percent) + 0.02 for percent in (50, 90, 99)
    )
