"""Many at once, many in a row, and long ones: every token, every hash, and afterwards all is as it was."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from tests.harness.reader import get, post, read_answer
from tests.harness.server import ROOT, ChatWait
from tests.harness.upstream import Done, Finish, Gate, Script, ScriptedUpstream, Token, answer
from tests.live.many import Asker, Got, read, read_many, read_one, run, run_all
from tests.live.steps import KEY, about, begin, log_name, poll, settings

MIB = 1 << 20
Sample = dict[str, int]


def text_of(tokens: int) -> str:
    """Give the text that the upstream process answers."""
    return "".join(f"token{index} " for index in range(tokens))


@contextmanager
def paced_upstream(tokens: int, gap_ms: float = 0.0) -> Iterator[str]:
    """Run the scripted upstream as a process of its own, so that it shares no lock with the readers; give its URL."""
    command = [sys.executable, "-m", "tests.harness.upstream", "--tokens", str(tokens), "--gap-ms", str(gap_ms)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        finally:
            process.terminate()


@contextmanager
def service(base_url: str, **more: Any) -> Iterator[ChatWait]:
    # A line for each chunk of each stream would fill the test's own memory.
    with ChatWait(OPENAI_BASE_URL=base_url, OPENAI_API_KEY=KEY, LOG_LEVEL="WARNING", **more) as chatwait:
        yield chatwait


def assert_whole(got: list[Got], tokens: int) -> None:
    """Check every token of every reader. (Their hashes were checked while they read.)"""
    text = text_of(tokens)
    assert {reader.status for reader in got} == {200}
    assert {reader.event for reader in got} == {"done"}
    assert {reader.answer.tokens for reader in got} == {tokens}
    assert all(reader.answer.text == text for reader in got)
    assert len({reader.answer.stream_id for reader in got}) == len(got)


def assert_back(chatwait: ChatWait, before: Sample, *, mib: int, kept: int = 0) -> None:
    """Check that descriptors and threads are back where they were, and memory nearly. `kept` connections to the
    upstream may stay open for the next answers."""

    def is_back() -> bool:
        now = chatwait.resources()
        # gevent keeps a pool of at most ten threads, for the names of hosts, and ends them when it likes.
        return now["fds"] <= before["fds"] + kept and now["threads"] <= max(before["threads"], 12)

    poll(is_back, seconds=20, what=f"descriptors and threads {before}, now {chatwait.resources()}")
    grown = chatwait.resources()["rss_bytes"] - before["rss_bytes"]
    assert grown < mib * MIB, f"{grown / MIB:.1f} MiB more than before"


def warmed(chatwait: ChatWait, count: int = 20) -> Sample:
    """Let everything be loaded and pooled that the first answers bring, and tell what is used then."""
    url = f"{chatwait.base_url}/chat/streaming"
    assert {got.event for got in read_many(url, count)} == {"done"}
    return chatwait.resources()


def test_hundred_requests_one_after_another_cost_no_error_and_no_growth() -> None:
    """Case 18, SC-003: both modes in turn."""
    with paced_upstream(20) as base_url, service(base_url) as chatwait:
        before = warmed(chatwait)
        text = text_of(20)
        for number in range(100):
            if number % 2:
                reply = post(f"{chatwait.base_url}/chat/wait", {"message": "Hi"})
                assert (reply.status, reply.json["content"]) == (200, text)
            else:
                assert read_answer(f"{chatwait.base_url}/chat/streaming", {"message": "Hi"}).text == text
        assert_back(chatwait, before, mib=8, kept=2)


def test_hundred_streams_at_once_get_every_token_and_all_is_back_afterwards() -> None:
    """Case 18, SC-004: 50 tokens a second each."""
    with paced_upstream(100, 20) as base_url, service(base_url) as chatwait:
        before = warmed(chatwait)
        got = read_many(f"{chatwait.base_url}/chat/streaming", 100)
        assert_whole(got, 100)
        assert min(reader.seconds for reader in got) > 1.5  # premise: they were live together
        assert_back(chatwait, before, mib=24, kept=100)


@pytest.mark.long
def test_hundred_streams_at_once_again_and_again_do_not_grow() -> None:
    """Case 18: ten rounds; the memory of the last five is that of the first five."""
    with paced_upstream(200, 5) as base_url, service(base_url, STREAM_MEMORY_MB=1) as chatwait:
        url = f"{chatwait.base_url}/chat/streaming"
        for _ in range(5):
            assert_whole(read_many(url, 100), 200)
        before = chatwait.resources()
        for _ in range(5):
            assert_whole(read_many(url, 100), 200)
        assert_back(chatwait, before, mib=12, kept=20)


def test_answer_of_twelve_thousand_tokens_comes_whole() -> None:
    """SC-007, as fast as it goes: live, replayed and waited for."""
    with paced_upstream(12_000) as base_url, service(base_url) as chatwait:
        whole = read_answer(f"{chatwait.base_url}/chat/streaming", {"message": "Hi"}, timeout=30)
        text = text_of(12_000)
        assert (whole.tokens, whole.text) == (12_000, text)
        again = read_answer(f"{chatwait.base_url}/chat/streaming/{whole.stream_id}")
        assert again.text == text
        assert max(len(event.data) for event in again.events) <= 8192
        reply = get(f"{chatwait.base_url}/chat/wait/{whole.stream_id}").json
        assert (reply["content"], reply["sha256"]) == (text, hashlib.sha256(text.encode()).hexdigest())


@pytest.mark.long
def test_answer_of_two_thousand_tokens_over_forty_seconds_comes_whole_and_on_time() -> None:
    """SC-007: at 50 tokens a second."""
    with paced_upstream(2000, 20) as base_url, service(base_url) as chatwait:
        begun = time.monotonic()
        whole = read_answer(f"{chatwait.base_url}/chat/streaming", {"message": "Hi"}, timeout=30)
        assert (whole.tokens, whole.text) == (2000, text_of(2000))
        assert 38 < time.monotonic() - begun < 60
        assert len([event for event in whole.events if event.event == "token"]) > 1000  # token by token


@pytest.fixture(scope="module")
def small(shared_upstream: ScriptedUpstream) -> Iterator[ChatWait]:
    """A service that takes ten generations and twelve readers."""
    with ChatWait(**settings(shared_upstream, MAX_ACTIVE_STREAMS=10, MAX_READERS=12)) as chatwait:
        yield chatwait


def test_one_stream_over_the_limit_is_503_at_once_while_the_others_go_on(
    small: ChatWait, upstream: ScriptedUpstream
) -> None:
    """Case 17: MAX_ACTIVE_STREAMS + 1, and room again when one has ended."""
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
    """Case 17: MAX_READERS + 1; nothing is started for whom nothing could be sent."""
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


def test_memory_levels_off_over_short_streams() -> None:
    """Case 17 in small: 1,800 streams, most of them evicted, under a budget of 1 MiB."""
    with paced_upstream(5) as base_url, service(base_url, STREAM_MEMORY_MB=1) as chatwait:
        assert_memory_levels_off(chatwait, 800, 1000)


@pytest.mark.long
def test_memory_levels_off_over_ten_thousand_short_streams() -> None:
    """Case 17."""
    with paced_upstream(5) as base_url, service(base_url, STREAM_MEMORY_MB=1) as chatwait:
        assert_memory_levels_off(chatwait, 2000, 8000)


def assert_memory_levels_off(chatwait: ChatWait, first: int, more: int) -> None:
    url = f"{chatwait.base_url}/chat/streaming"
    early = read_many(url, first, at_once=20)
    assert {got.answer.text for got in early} == {text_of(5)}
    before = chatwait.resources()
    for start in range(0, more, 1000):
        assert {got.answer.text for got in read_many(url, min(1000, more - start), at_once=20)} == {text_of(5)}
    # What is forgotten is remembered as gone: some 100 bytes a stream.
    assert_back(chatwait, before, mib=4 + more // 2000, kept=20)
    assert get(f"{url}/{early[0].answer.stream_id}").status == 410


@pytest.mark.long
def test_thousand_clients_that_come_and_go_leave_nothing_behind() -> None:
    """Case 18: in each way that a client can leave; afterwards the service is back at the start."""
    with paced_upstream(40, 20) as base_url, service(base_url, HEARTBEAT_SECONDS=1, STREAM_MEMORY_MB=4) as chatwait:
        url = f"{chatwait.base_url}/chat"

        def leaving(number: int) -> Callable[[], Any]:
            async def come_and_go() -> None:
                mode = "wait" if number % 5 == 4 else "streaming"
                if mode == "wait":  # leaves while it waits
                    with_timeout = asyncio.wait_for(Asker.ask(f"{url}/wait", {"message": "Hi"}), 0.2)
                    with pytest.raises(TimeoutError):
                        await with_timeout
                    return
                asker = await Asker.ask(f"{url}/streaming", {"message": "Hi"})
                assert asker.status == 200
                match number % 5:
                    case 0:
                        asker.reset()
                    case 1:
                        await asker.close()
                    case 2:
                        await anext(asker.pieces())
                        asker.reset()
                    case 3:
                        assert (await read(asker)).event == "done"

            return come_and_go

        warmed(chatwait)
        # What such a crowd needs once is there after the first; a leak would take as much again. Fewer would not do:
        # whoever leaves leaves a generation running, so it is the crowd's size that makes the peak.
        run_all([leaving(number) for number in range(1000)], at_once=100)
        before = chatwait.resources()
        run_all([leaving(number) for number in range(1000)], at_once=100)
        assert_back(chatwait, before, mib=16, kept=100)
        assert_whole(read_many(f"{url}/streaming", 5), 40)


@pytest.mark.long
def test_resumes_of_a_megabyte_at_once_hold_little_memory_each(upstream: ScriptedUpstream) -> None:
    """Case 17: 200 readers that take nothing, at most 64 KiB each; then all of them read on, to the last byte."""
    with ChatWait(**settings(upstream, LOG_LEVEL="WARNING")) as chatwait:
        texts = [f"{number:04}" * 250 for number in range(990)]
        whole = read_answer(f"{chatwait.base_url}/chat/streaming", about(upstream, answer(texts)), timeout=30)
        url = f"{chatwait.base_url}/chat/streaming/{whole.stream_id}"
        replays = run_all([lambda: read_one(url)] * 20, at_once=20)  # buffers that are made once are made now
        assert {got.event for got in replays} == {"done"}
        before = chatwait.resources()

        async def hold_and_read() -> list[Got]:
            askers = [await Asker.ask(url, rcvbuf=4096) for _ in range(200)]
            await asyncio.sleep(2.0)  # nothing tells when the kernel's buffers are full
            held = chatwait.resources()
            assert held["sockets"] >= before["sockets"] + 200  # premise: all are in the middle
            assert held["rss_bytes"] - before["rss_bytes"] < 200 * 64 * 1024
            return list(await asyncio.gather(*(read(asker) for asker in askers)))

        got = run(hold_and_read())
        assert all(reader.answer.text == whole.text for reader in got)
        assert_back(chatwait, before, mib=16)
