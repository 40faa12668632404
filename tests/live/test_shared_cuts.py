"""Streams cut at any byte, over two services that share a Valkey: each connection reaches the other one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.harness.reader import read_answer, read_resuming
from tests.harness.server import ChatWait
from tests.harness.upstream import ScriptedUpstream
from tests.harness.valkey import Valkey
from tests.live.shared import services
from tests.live.steps import about, asked, cursor
from tests.live.test_seam import (
    CHUNKS,
    THREADS,
    CutLink,
    assert_whole,
    cut_live,
    finished_reference,
    live_size,
    reference,
    replay_cut_once,
)


@pytest.fixture(scope="module")
def pair(shared_upstream: ScriptedUpstream, valkey: Valkey) -> Iterator[list[ChatWait]]:
    with services(shared_upstream, valkey.url(valkey.new_database()), TIMEOUT_SECONDS=5) as pair:
        yield pair


@pytest.fixture
def link(pair: list[ChatWait]) -> Iterator[CutLink]:
    link = CutLink(*pair)
    yield link
    link.close()


def test_every_cursor_of_a_stream_is_served_by_the_other_service(
    pair: list[ChatWait], upstream: ScriptedUpstream
) -> None:
    stream_id, _, _ = finished_reference(pair[0], upstream)
    for after in range(len(CHUNKS) + 1):
        assert_whole(
            read_answer(
                f"{pair[1].base_url}/chat/streaming/{stream_id}",
                headers=cursor(stream_id, after),
                after=after,
                prefix="".join(CHUNKS[:after]) or None,
            )
        )


def test_replay_cut_at_any_byte_resumes_at_the_other_service(
    pair: list[ChatWait], upstream: ScriptedUpstream, link: CutLink
) -> None:
    stream_id, body, _ = finished_reference(pair[0], upstream)

    def cut(after: int) -> None:
        got = replay_cut_once(pair[0], link.cut_next(after), stream_id)
        assert_whole(got)

    with ThreadPoolExecutor(THREADS) as pool:
        for cutting in [pool.submit(cut, after) for after in range(0, 1500, 7)]:
            cutting.result()
    assert len(asked(upstream, body)) == 1


def test_live_stream_cut_at_a_sample_of_bytes_resumes_at_the_other_service(
    pair: list[ChatWait], upstream: ScriptedUpstream, link: CutLink
) -> None:
    size = live_size(pair[0], upstream, link)
    cut_live(pair[0], upstream, link, [0, 1, *random.Random(6).sample(range(2, size), 40)])


@pytest.mark.long
@pytest.mark.timeout(900)
def test_live_stream_cut_after_every_fifth_byte_resumes_at_the_other_service(
    pair: list[ChatWait], upstream: ScriptedUpstream, link: CutLink
) -> None:
    """The bytes in between are cut in tests/live/test_seam.py, at one service."""
    size = live_size(pair[0], upstream, link)
    cuts = range(0, size, 5)
    for begin in range(0, len(cuts), 200):
        upstream.reset()  # thousands of rules would be searched at each request
        cut_live(pair[0], upstream, link, cuts[begin : begin + 200])


def test_stream_read_by_connections_that_die_in_turns_is_generated_once(
    pair: list[ChatWait], upstream: ScriptedUpstream, link: CutLink
) -> None:
    """Cut again and again, and each time the other one goes on."""
    body = about(upstream, reference(0.01))
    proxy = link.cut_next(*[0, 300, 950, 0, 1000, 10, 650, 1100, 0, 0, 560, 1000, 1200, 300])
    assert_whole(read_resuming(pair[0].base_url, json=body, via=proxy.base_url))
    assert len(asked(upstream, body)) == 1
