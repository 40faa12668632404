"""What is kept is bounded: by the budget for all answers together, and by 64 KiB for each reader of one."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.harness.reader import get, read_answer
from tests.harness.server import ChatWait
from tests.harness.upstream import Done, Finish, Gate, Script, ScriptedUpstream, Token, answer
from tests.live.figures import MIB, Figures, unheard
from tests.live.many import Asker, Got, read, read_many, read_one, run, run_all
from tests.live.steps import about, asked, begin, settings

AT_ONCE = 20
SECONDS = 250
WORDS = [f"token{number} " for number in range(5)]


def test_memory_levels_off_over_short_streams(upstream: ScriptedUpstream) -> None:
    """1,200 streams, most of them evicted."""
    assert_memory_levels_off(upstream, 700, 500)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_memory_levels_off_over_ten_thousand_short_streams(upstream: ScriptedUpstream) -> None:
    assert_memory_levels_off(upstream, 2000, 8000)


def assert_memory_levels_off(upstream: ScriptedUpstream, first: int, more: int) -> None:
    """Run short streams beside a few live ones, under a budget of 1 MiB, which holds some 500 of them."""
    upstream.always(answer(WORDS))
    slow = about(upstream, Script(steps=[Token("a"), Gate("all the others"), Token("b"), Finish(), Done()]))
    with (
        ThreadPoolExecutor(1) as pool,  # first, because it waits for its readers, and they for the service
        ChatWait(
            **settings(upstream, LOG_LEVEL="WARNING", STREAM_MEMORY_MB=1, TIMEOUT_SECONDS=SECONDS), probe=True
        ) as chatwait,
    ):
        url = f"{chatwait.base_url}/chat/streaming"
        figures = Figures(f"{first + more} short streams, STREAM_MEMORY_MB=1", chatwait)
        live = pool.submit(run_all, [lambda: read_one(url, slow)] * 5, at_once=5, seconds=SECONDS)
        left = begin(chatwait.base_url, slow)  # and one that nobody reads meanwhile
        upstream.wait_reached("all the others", count=6)

        early = read_many(url, first, at_once=AT_ONCE)
        figures.note(f"after {first}")
        late: list[Got] = []
        for start in range(0, more, 1000):
            late = read_many(url, min(1000, more - start), at_once=AT_ONCE)
            assert {got.answer.text for got in late} == {"".join(WORDS)}
            held = figures.note(f"after {first + start + len(late)}")
            assert held["store_bytes"] <= MIB
            assert held["live"] == 6
        # What is forgotten is remembered as gone: some 100 bytes a stream.
        figures.assert_back(mib=4 + more // 2000, kept=AT_ONCE)

        # The early ones are gone, and known to have been; the latest are there.
        for got in (early[0], early[-1]):
            reply = get(f"{url}/{got.answer.stream_id}")
            assert (reply.status, reply.json["error_code"]) == (410, "stream_expired")
        for got in late[-20:]:
            assert read_answer(f"{url}/{got.answer.stream_id}").text == got.answer.text
        upstream.open("all the others")
        assert [(reader.answer.text, reader.event) for reader in live.result(30)] == [("ab", "done")] * 5
        assert read_answer(f"{url}/{left}").text == "ab"
        assert len(asked(upstream, slow)) == 6


@pytest.mark.long
def test_resumes_of_a_megabyte_at_once_hold_little_memory_each(upstream: ScriptedUpstream) -> None:
    """200 readers that take nothing, at most 64 KiB each; then all of them read on, to the last byte."""
    with ChatWait(**settings(upstream, LOG_LEVEL="WARNING"), probe=True) as chatwait:
        texts = [f"{number:04}" * 250 for number in range(990)]
        whole = read_answer(f"{chatwait.base_url}/chat/streaming", about(upstream, answer(texts)), timeout=30)
        url = f"{chatwait.base_url}/chat/streaming/{whole.stream_id}"
        replays = run_all([lambda: read_one(url)] * 20, at_once=20)  # buffers that are made once are made now
        assert {got.event for got in replays} == {"done"}
        figures = Figures("200 resumes of 990,000 characters that read nothing", chatwait)
        before = figures.note("before")

        async def hold_and_read() -> list[Got]:
            askers = [await Asker.ask(url, rcvbuf=4096) for _ in range(200)]
            await asyncio.sleep(2.0)  # nothing tells when the kernel's buffers are full
            held = figures.note("while nobody reads")
            assert held["readers"] == before["readers"] + 200, "not all are in the middle"
            assert held["rss_bytes"] - before["rss_bytes"] < 200 * 64 * 1024
            for asker in askers:
                asker.widen()
            return list(await asyncio.gather(*(read(asker) for asker in askers)))

        with unheard(chatwait):
            got = run(hold_and_read())
        assert all(reader.answer.text == whole.text for reader in got)
        figures.assert_back(mib=16)
