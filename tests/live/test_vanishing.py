"""Who reads slowly is served, who takes nothing more is dropped, and nobody else notices either."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import psutil  # type: ignore[import-untyped, unused-ignore]
import pytest

from tests.harness.chaos import ChaosProxy, Slow
from tests.harness.reader import Answer, delete, open_stream, post, read_answer
from tests.harness.server import ChatWait
from tests.harness.upstream import Paced, Script, ScriptedUpstream, Stall, Token, answer
from tests.live.figures import Figures, sample, unheard
from tests.live.many import Asker, run
from tests.live.pace import in_ms, percentile, read_paced
from tests.live.steps import about, begin, live, log_name, new_key, poll, settings
from tests.requirements import require_or_skip


def url_of(chatwait: ChatWait, stream_id: str) -> str:
    return f"{chatwait.base_url}/chat/streaming/{stream_id}"


BIG = ["🙂" * 500] * 1600  # 800,000 characters, which are 9.6 MB when escaped: more than the kernel's buffers hold


def test_slow_reader_is_served_and_slows_nobody(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    body, key = about(upstream, answer(["é" * 1000] * 100)), new_key()
    url = f"{chatwait.base_url}/chat/streaming"
    with (
        ChaosProxy("127.0.0.1", chatwait.port, default=Slow(300_000), server_rcvbuf=4096) as slow,
        ThreadPoolExecutor(1) as pool,
    ):
        reading = pool.submit(read_answer, url, body, headers=key, via=slow.base_url)
        slow.wait_until(lambda: slow.bytes_down > 20_000)
        assert read_answer(url, body, headers=key).tokens == 100
        assert not reading.done(), "not slow enough to tell"
        got = reading.result(60)
    assert (got.tokens, got.text) == (100, "é" * 100_000)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_readers_that_read_slowly_for_longer_than_the_stall_limit_are_served(
    shared_upstream: ScriptedUpstream, upstream: ScriptedUpstream
) -> None:
    """At a steady pace, out of full buffers: the kernel wakes a writer when a third of its buffer is free."""
    with ChatWait(**settings(shared_upstream)) as chatwait, ThreadPoolExecutor(2) as pool:
        asked = about(upstream, answer(BIG)), about(upstream, answer(BIG))
        readings = [pool.submit(_read_slowly, chatwait, asked[0], 140_000)]
        readings += [pool.submit(_read_slowly, chatwait, asked[1], 20_000)]
        for reading in readings:
            reading.result()


def _read_slowly(chatwait: ChatWait, body: dict[str, Any], bytes_per_second: int) -> None:
    whole = post(f"{chatwait.base_url}/chat/wait", body, timeout=60)
    assert whole.json["characters"] == 800_000
    stream_id = whole.json["stream_id"]
    got, until = Answer(stream_id=stream_id), time.monotonic() + 75
    # A window of 64 KiB is what the smallest real clients have.
    with (
        ChaosProxy("127.0.0.1", chatwait.port, default=Slow(bytes_per_second), server_rcvbuf=64 << 10) as slow,
        open_stream(url_of(chatwait, stream_id), via=slow.base_url, timeout=30) as connection,
    ):
        for event in connection.events():  # which raises when the connection is dropped
            got.add(event)
            if time.monotonic() > until:
                break
        left = chatwait.log_of("reader_left", stream=log_name(stream_id), mode="streaming")
        # What was dropped goes on coming out of the kernel's buffers for a while; the service's log tells.
        assert [record["sequence"] for record in left if record["sequence"] < len(BIG)] == []
    assert got.is_complete or time.monotonic() > until
    assert got.text == "🙂" * 500 * got.tokens


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["stops reading", "vanishes without FIN"])
@pytest.mark.requirement("chatwait resilience 5", "page edge 6")
def test_client_that_takes_nothing_more_is_dropped_and_its_descriptor_comes_back(
    shared_upstream: ScriptedUpstream, upstream: ScriptedUpstream, how: str
) -> None:
    body, key = about(upstream, answer(BIG)), new_key()
    with ChatWait(**settings(shared_upstream)) as chatwait, ExitStack() as stack:
        stream_id = post(f"{chatwait.base_url}/chat/wait", body, headers=key, timeout=60).json["stream_id"]
        name = log_name(stream_id)
        poll(lambda: chatwait.clients() == 0, seconds=10, what="the first connection to be closed")
        began = time.monotonic()
        if how == "stops reading":
            connection = stack.enter_context(open_stream(url_of(chatwait, stream_id), rcvbuf=4096))
        else:
            proxy = stack.enter_context(ChaosProxy("127.0.0.1", chatwait.port, server_rcvbuf=4096))
            connection = stack.enter_context(open_stream(url_of(chatwait, stream_id), via=proxy.base_url, rcvbuf=4096))
            proxy.blackhole_all()
        assert connection.status == 200
        chatwait.wait_for_log("reader_attached", stream=name, mode="streaming")
        assert chatwait.clients() == 1
        others = 0
        while not chatwait.log_of("reader_left", stream=name, mode="streaming"):
            assert time.monotonic() - began < 90, "still there"
            assert (
                read_answer(f"{chatwait.base_url}/chat/streaming", about(upstream, answer(["well"]), "well")).tokens
                == 1
            )
            others += 1
            time.sleep(0.5)
        left = chatwait.wait_for_log("reader_left", stream=name, mode="streaming")
        assert left["sequence"] < len(BIG)
        assert others > 10, "dropped before it was stalled for long"
        poll(lambda: chatwait.clients() == 0, seconds=10, what="the descriptor to come back")
        again = read_answer(url_of(chatwait, stream_id), timeout=60)
        assert again.tokens == len(BIG)


# A hundred of them

STALLED = 100
SLOW_READERS = 3
OTHERS = 20
GAP_SECONDS = 0.05
ALONE_SECONDS = 10


@pytest.mark.long
@pytest.mark.timeout(300)
def test_hundred_that_take_nothing_more_are_gone_within_a_minute_and_nobody_else_notices(
    shared_upstream: ScriptedUpstream, upstream: ScriptedUpstream
) -> None:
    """Half of them stop reading, half are in a black hole; beside them 3 read a megabyte at 20 KB/s."""
    gaps: list[tuple[float, float]] = []
    texts = ["0123456789" * 100] * 990
    with (
        ThreadPoolExecutor(
            SLOW_READERS + 1
        ) as pool,  # first, because it waits for its readers, and they for the service
        ChatWait(**settings(shared_upstream), probe=True) as chatwait,
        unheard(chatwait),
        ChaosProxy("127.0.0.1", chatwait.port, server_rcvbuf=4096) as hole,
        ChaosProxy("127.0.0.1", chatwait.port, default=Slow(20_000), server_rcvbuf=64 << 10) as slow,
        ExitStack() as stack,
    ):
        url = f"{chatwait.base_url}/chat/streaming"
        big = post(f"{chatwait.base_url}/chat/wait", about(upstream, answer(BIG)), timeout=60).json["stream_id"]
        megabyte = read_answer(url, about(upstream, answer(texts)), timeout=30)
        figures = Figures(f"{STALLED} that take nothing more, {SLOW_READERS} slow readers, {OTHERS} others", chatwait)
        figures.note("before")

        paced = about(upstream, Script(steps=[Paced(["word "] * 4000, GAP_SECONDS)]))
        others: list[str] = []
        admitted = threading.Event()

        async def read_others() -> list[bytes]:
            askers = [await Asker.ask(url, paced) for _ in range(OTHERS)]
            others.extend(asker.headers["x-stream-id"] for asker in askers)
            admitted.set()
            return list(await asyncio.gather(*(read_paced(asker, gaps) for asker in askers)))

        reading = pool.submit(run, read_others())
        assert admitted.wait(20)
        slowly = [
            pool.submit(read_answer, url_of(chatwait, str(megabyte.stream_id)), via=slow.base_url)
            for _ in range(SLOW_READERS)
        ]
        time.sleep(ALONE_SECONDS)  # the others' pace, while nothing is wrong
        arrived_at = time.monotonic()
        for _ in range(STALLED // 2):
            stack.enter_context(open_stream(url_of(chatwait, big), rcvbuf=4096))
            stack.enter_context(open_stream(url_of(chatwait, big), via=hole.base_url, rcvbuf=4096))
        hole.blackhole_all()
        held = figures.note("all there")
        assert held["readers"] == OTHERS + SLOW_READERS + STALLED
        stalled_at = time.monotonic()

        def are_dropped() -> bool:
            # Not asked of the probe, which stops the worker while it counts.
            return len(chatwait.log_of("reader_left", stream=log_name(big), mode="streaming")) == STALLED

        poll(are_dropped, seconds=55, what="the stalled to be dropped")
        dropped_at = time.monotonic()
        print(f"\ndropped after {dropped_at - arrived_at:.1f} s")
        after = figures.note("dropped")
        assert after["fds"] <= held["fds"] - STALLED

        for reader in slowly:
            got = reader.result(90)
            assert (got.tokens, got.text) == (990, "".join(texts))
        print(f"the slow ones were at their end after {time.monotonic() - arrived_at + ALONE_SECONDS:.1f} s")
        for stream_id in others:
            delete(url_of(chatwait, stream_id))
        assert all(b'"status":"cancelled"' in last for last in reading.result(30))
        figures.assert_back(mib=24, kept=OTHERS)
        assert [record for record in chatwait.log if record["level"] == "ERROR"] == []

        alone = [gap for at, gap in gaps if at < arrived_at]
        beside = [gap for at, gap in gaps if stalled_at <= at < dropped_at]
        print(f"the others alone:  {in_ms(alone)}\nbeside the stalled: {in_ms(beside)}")
        for percent in (50, 90):
            assert percentile(beside, percent) < 1.5 * percentile(alone, percent) + 0.03
        assert max(beside) < 10, "somebody waited for those who take nothing"


# Without a FIN, a RST or an ACK


def can_swallow() -> bool:
    """Tell whether routes can be changed here."""
    if shutil.which("ip") is None:
        return False
    probe = ["ip", "route", "replace", "blackhole", "127.64.0.1/32", "table", "local"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        return False
    subprocess.run([*probe[:2], "del", *probe[3:]], capture_output=True, check=True)
    return True


@contextmanager
def swallowed(address: str) -> Iterator[None]:
    """Let nothing more reach an address, as if its machine had lost its network."""
    route = ["blackhole", f"{address}/32", "table", "local"]
    subprocess.run(["ip", "route", "add", *route], check=True)
    try:
        yield
    finally:
        subprocess.run(["ip", "route", "del", *route], check=True)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_clients_that_vanish_without_a_word_are_gone_within_a_minute(
    shared_upstream: ScriptedUpstream, upstream: ScriptedUpstream
) -> None:
    """They acknowledge nothing more, and in what they were doing the service may have nothing to write."""
    require_or_skip("a route that swallows packets (root, iproute2)", can_swallow())
    address = f"127.{64 + secrets.randbelow(60)}.{secrets.randbelow(250)}.{1 + secrets.randbelow(250)}"
    with (
        ChatWait(**settings(shared_upstream, TIMEOUT_SECONDS=200), probe=True) as chatwait,
        live(chatwait.base_url, about(upstream, Script(steps=[Token("a"), Stall()]))) as quiet,
        live(chatwait.base_url, about(upstream, Script(steps=[Paced(["a"] * 2000, 0.1)]))) as talking,
        ExitStack() as stack,
    ):
        # The line of who left comes as soon as the client is seen to be gone; its reader is counted until it is woken.
        poll(lambda: sample(chatwait)["readers"] == 0, seconds=30, what="those who began the two to be gone")
        figures = Figures("30 clients that vanish without a word", chatwait)
        figures.note("before")
        host = "HTTP/1.1\r\nHost: localhost\r\n"
        doing = [
            f"GET /chat/streaming/{quiet} {host}\r\n",
            f"GET /chat/streaming/{talking} {host}\r\n",
            f"GET /chat/wait/{quiet} {host}\r\n",
            f"GET /health {host}\r\n",  # and then nothing, on the kept connection
            f"GET /health {host}X-Request",
            f'POST /chat/wait {host}Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{{"message"',
        ]
        for text in doing * 5:
            client = socket.create_connection(("127.0.0.1", chatwait.port), 10, (address, 0))
            stack.callback(client.close)
            client.sendall(text.encode())
        poll(lambda: len(chatwait.log_of("reader_attached")) == 2 + 15, seconds=30, what="all that read")
        (worker,) = map(psutil.Process, chatwait.worker_pids())

        def accepted() -> int:
            return sum(bool(one.raddr) and one.raddr.ip == address for one in worker.net_connections(kind="tcp"))

        poll(lambda: accepted() == 30, seconds=30, what="all to be accepted")
        assert figures.note("all there")["readers"] == 15
        vanished_at = time.monotonic()
        with swallowed(address):
            figures.assert_back(mib=24, seconds=60)
            print(f"back after {time.monotonic() - vanished_at:.1f} s")
            poll(
                lambda: len(chatwait.log_of("reader_left", stream=log_name(quiet), mode="wait")) == 5,
                seconds=5,
                what="the lines of the five that waited",
            )
            assert begin(chatwait.base_url, about(upstream, answer(["b"])))
