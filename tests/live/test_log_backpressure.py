"""Whoever collects the log may be slow, or hang: the service goes on, and tells afterwards what it could not say.

A pipe holds 64 KiB. A write to a full one blocks its process, and in a gevent worker that is every stream of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise

import pytest

from tests.harness.reader import Answer, get, read_answer
from tests.harness.server import ChatWait
from tests.harness.upstream import ScriptedUpstream, answer
from tests.live.figures import MIB
from tests.live.steps import settings

STREAMS = 20
TOKENS_A_SECOND = 5
REFUSED = 300
STOOD_STILL_SECONDS = 5.0


@contextmanager
def unread(chatwait: ChatWait) -> Iterator[None]:
    """Leave the log unread, with more said already than a pipe holds."""
    with chatwait.output_unread():
        seen = len(chatwait.lines)
        # Two lines each, some 700 bytes: three times what the pipe takes.
        for _ in range(REFUSED):
            assert get(f"{chatwait.base_url}/chat/streaming/nobody", timeout=10).status == 404
        yield
        assert len(chatwait.lines) <= seen + 1, "the log was read, so the premise is gone"


def assert_steady(answers: list[Answer], tokens: int) -> None:
    """Check that all came whole, and that none stood still."""
    for got in answers:
        assert got.terminal is not None
        assert (got.tokens, got.terminal.event) == (tokens, "done")
        longest = max(later.received_at - earlier.received_at for earlier, later in pairwise(got.events))
        assert longest < STOOD_STILL_SECONDS, f"a stream stood still for {longest:.1f} s"


def stream_unread(upstream: ScriptedUpstream, *, seconds: int) -> None:
    tokens = seconds * TOKENS_A_SECOND
    upstream.always(answer(["word "] * tokens, gap=1 / TOKENS_A_SECOND))
    with ThreadPoolExecutor(STREAMS) as pool, ChatWait(**settings(upstream)) as chatwait:
        url, workers, began = f"{chatwait.base_url}/chat/streaming", chatwait.worker_pids(), time.monotonic()
        with unread(chatwait):
            readers = [pool.submit(read_answer, url, {"message": "Hi"}) for _ in range(STREAMS)]
            assert_steady([reader.result() for reader in readers], tokens)
        assert time.monotonic() - began > seconds - 1
        assert chatwait.worker_pids() == workers
        chatwait.wait_for_log("response_complete")  # it is heard again


def test_streams_go_on_while_nobody_reads_the_log(upstream: ScriptedUpstream) -> None:
    stream_unread(upstream, seconds=5)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_streams_go_on_while_nobody_reads_the_log_for_longer_than_a_worker_may_be_silent(
    upstream: ScriptedUpstream,
) -> None:
    """gunicorn kills a worker after 60 s without a sign of life; its master writes to the same pipe."""
    stream_unread(upstream, seconds=70)


def test_log_that_nobody_reads_is_cut_under_a_bound_and_the_cut_is_counted(upstream: ScriptedUpstream) -> None:
    """A line for each of 60,000 chunks: 15 MB, more than a service should keep for a collector that hangs."""
    streams, tokens = 5, 12_000
    upstream.always(answer(["word "] * tokens))
    with ChatWait(**settings(upstream, LOG_LEVEL="DEBUG")) as chatwait:
        url = f"{chatwait.base_url}/chat/streaming"
        assert read_answer(url, {"message": "Hi"}, timeout=30).tokens == tokens
        chatwait.wait_for_log("response_complete", timeout=30)
        before = chatwait.resources()["rss_bytes"]
        with unread(chatwait):
            for _ in range(streams):
                assert read_answer(url, {"message": "Hi"}, timeout=30).tokens == tokens
            grown = chatwait.resources()["rss_bytes"] - before
        assert grown < 12 * MIB, f"{grown / MIB:.1f} MiB of unread log are kept"
        assert read_answer(url, {"message": "Hi"}, timeout=30).tokens == tokens
        chatwait.wait_for_log("log_lines_dropped", timeout=30)
        assert chatwait.stop() == 0
        said = len(chatwait.log_of("chunk_sent"))
        dropped = sum(record["lines"] for record in chatwait.log_of("log_lines_dropped"))
        # Beside the chunks' lines, those of the refusals and of the streams may be among the dropped.
        expected = (streams + 2) * tokens
        assert expected <= said + dropped <= expected + 2 * REFUSED + 20 * streams


def test_stop_is_obeyed_while_nobody_reads_the_log(upstream: ScriptedUpstream) -> None:
    """gunicorn's master says that it was asked to stop before it does so."""
    with ChatWait(**settings(upstream)) as chatwait, unread(chatwait):
        assert chatwait.stop(timeout=20) == 0
