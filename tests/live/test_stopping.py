"""A stop loses nothing: what runs goes on to its end, readers may come back, and then every process is gone."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.harness.reader import Answer, Dropped, KeptAlive, get, open_stream, post, read_answer
from tests.harness.server import COMMAND, ROOT, ChatWait
from tests.harness.upstream import Done, Finish, Gate, Script, ScriptedUpstream, Stall, Token
from tests.live.steps import about, begin, cursor, log_name, new_key, poll, read_on, settings

SOON = 8.0
"""A stop with nothing to wait for; a machine at work needs a part of it. Units: seconds."""

Start = Callable[..., ChatWait]


# It sleeps in short turns: gevent looks for signals before each, and one that comes right after is heard at the next.
SLOW_TO_LOAD = """
import time
print("It loads.", flush=True)
for _ in range(1_200):
    time.sleep(0.05)
"""
# The first worker is stopped before anything of it has run, and what its master does after the fork too.
STOPPED_BY_THEN = """
import os, signal
def stop():
    if not os.environ.get("IS_STOPPED"):
        print(f"stopped pid: {os.getpid()}", flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
def note():
    os.environ["IS_STOPPED"] = "1"
os.register_at_fork(after_in_child=stop, after_in_parent=note)
"""


@contextmanager
def starting(upstream: ScriptedUpstream, **more: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a service that is not waited for, with this in its environment."""
    chatwait = ChatWait(**settings(upstream, DRAIN_SECONDS=20))
    environment = chatwait._environment() | more
    with subprocess.Popen(COMMAND, cwd=ROOT, env=environment, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            for one in [*psutil.Process(process.pid).children(), process] if process.poll() is None else []:
                one.kill()
            chatwait.end()


def line_with(process: subprocess.Popen[bytes], text: str) -> str:
    """Read the service's lines up to the first one that holds this."""
    assert process.stdout is not None
    for line in process.stdout:
        if text.encode() in line:
            return line.decode()
    raise AssertionError(f"the service has ended, and never said {text!r}")


def wait_ended(process: subprocess.Popen[bytes], seconds: float) -> bytes:
    """Wait for its end, and give what it said since. Raises: AssertionError, which tells what runs on."""
    assert process.stdout is not None
    try:
        assert process.wait(seconds) == 0
    except subprocess.TimeoutExpired:
        running = [*psutil.Process(process.pid).children(), psutil.Process(process.pid)]
        told = [f"{one.pid} of {one.ppid()}, {one.status()}, {one.cpu_times()}" for one in running]
        for one in running:
            one.kill()
        raise AssertionError(f"not ended in {seconds:g} s: {told}; it said {process.stdout.read()!r}") from None
    return process.stdout.read()


@pytest.mark.parametrize("text", ["Booting worker", "It loads."])
def test_stop_in_the_first_moments_of_a_worker_ends_it_at_once(
    upstream: ScriptedUpstream, tmp_path: Path, text: str
) -> None:
    """It has no handlers of its own yet; gunicorn's would let it load to the end first."""
    (tmp_path / "openai.py").write_text(SLOW_TO_LOAD, encoding="utf-8")
    with starting(upstream, PYTHONPATH=str(tmp_path)) as process:
        line_with(process, text)
        process.send_signal(signal.SIGTERM)
        assert b"SIGKILL" not in wait_ended(process, SOON)


def test_stop_before_the_first_line_of_a_worker_ends_it_and_is_not_lost(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """Its master's handlers are still there, and would only note it for a master that is not there."""
    (tmp_path / "sitecustomize.py").write_text(STOPPED_BY_THEN, encoding="utf-8")
    with starting(upstream, PYTHONPATH=str(tmp_path)) as process:
        stopped = line_with(process, "stopped pid").split(":")[1].strip()
        booted = line_with(process, "Booting worker")
        assert re.search(r"pid: (\d+)", booted)[1] != stopped  # type: ignore[index]
        process.send_signal(signal.SIGTERM)
        wait_ended(process, SOON)


@pytest.fixture
def start(upstream: ScriptedUpstream) -> Iterator[Start]:
    """Start services of the test's own; they end with it."""
    running: list[ChatWait] = []

    def begin(**more: object) -> ChatWait:
        chatwait = ChatWait(**settings(upstream, **{"DRAIN_SECONDS": 20, **more})).start()
        running.append(chatwait)
        return chatwait

    yield begin
    for chatwait in running:
        chatwait.end()
        chatwait.check()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def gated() -> Script:
    return Script(steps=[Token("one "), Token("two "), Gate("rest"), Token("three"), Finish(), Done()])


def stop(chatwait: ChatWait) -> list[int]:
    """Begin a graceful stop, wait until it is known everywhere, and give the processes that must be gone."""
    pids = [chatwait._running.pid, *chatwait.worker_pids()]
    chatwait.signal(signal.SIGTERM)
    chatwait.wait_for_log("drain_started")
    return pids


def assert_gone(pids: list[int]) -> None:
    """Check that no process of the service's group is left."""
    assert len(pids) == 2
    with pytest.raises(ProcessLookupError):
        os.killpg(pids[0], 0)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def reading(pool: ThreadPoolExecutor, chatwait: ChatWait, upstream: ScriptedUpstream, **more: str) -> Future[Answer]:
    """Start a generation with a reader, and wait until it stands at its gate."""
    body = about(upstream, gated())
    future = pool.submit(read_answer, f"{chatwait.base_url}/chat/streaming", body, headers=more, timeout=30)
    upstream.wait_reached("rest")
    return future


def test_stop_lets_a_generation_with_a_reader_run_to_its_end(
    start: Start, upstream: ScriptedUpstream, pool: ThreadPoolExecutor
) -> None:
    """Graceful stop. New work is refused, an old key attaches, /ready is red; then the worker leaves with 0."""
    chatwait = start()
    key = new_key()
    body = about(upstream, gated())
    reader = pool.submit(read_answer, f"{chatwait.base_url}/chat/streaming", body, headers=key, timeout=30)
    upstream.wait_reached("rest")
    assert get(f"{chatwait.base_url}/ready").status == 200
    pids = stop(chatwait)

    refused = post(f"{chatwait.base_url}/chat/wait", {"message": "new"})
    assert (refused.status, refused.json["error_code"]) == (503, "shutting_down")
    assert refused.json["retryable"] is True
    assert int(refused.headers["retry-after"]) == refused.json["retry_after_seconds"] >= 1
    refused = post(f"{chatwait.base_url}/chat/streaming", {"message": "new"}, headers=new_key())
    assert (refused.status, refused.json["error_code"]) == (503, "shutting_down")
    ready = get(f"{chatwait.base_url}/ready")
    assert (ready.status, ready.json["parts"]["worker"]) == (503, "stopping")
    assert get(f"{chatwait.base_url}/health").status == 200

    os.kill(pids[1], signal.SIGTERM)  # impatient supervisors send it twice
    again = pool.submit(read_answer, f"{chatwait.base_url}/chat/streaming", body, headers=key, timeout=30)
    waiting = pool.submit(post, f"{chatwait.base_url}/chat/wait", body, headers=key, timeout=30)
    chatwait.wait_for_log("reader_attached", mode="wait")
    assert not reader.done()
    upstream.open("rest")
    for future in (reader, again):
        whole = future.result(15)
        assert whole.terminal is not None
        assert (whole.terminal.event, whole.text) == ("done", "one two three")
    assert (waiting.result(15).status, waiting.result().json["content"]) == (200, "one two three")
    assert chatwait.wait_exit(SOON) == 0
    assert_gone(pids)
    assert len(upstream.completions) == 1
    assert chatwait.log_of("drain_finished", cut=False)
    assert len(chatwait.log_of("drain_started")) == 1


def test_stop_waits_for_a_generation_that_nobody_reads_and_for_its_reader_to_come_back(
    start: Start, upstream: ScriptedUpstream
) -> None:
    """Graceful stop. The reader's connection broke just before."""
    chatwait = start()
    whole = Answer()
    with open_stream(f"{chatwait.base_url}/chat/streaming", json=about(upstream, gated())) as connection:
        whole.begin_connection(connection.headers)
        for event in connection.events():
            whole.add(event)
            if whole.tokens == 2:
                break
        connection.reset()
    name = log_name(whole.stream_id or "")
    chatwait.wait_for_log("reader_left", stream=name)
    pids = stop(chatwait)
    assert chatwait.log_of("drain_started", generations=1, readers=0)
    upstream.open("rest")
    chatwait.wait_for_log("response_complete", stream=name, status="complete")
    time.sleep(1.0)  # the reader takes its time, several times what a worker needs to end
    read_on(whole, chatwait.base_url).verify()
    assert whole.terminal is not None
    assert (whole.terminal.event, whole.text) == ("done", "one two three")
    assert chatwait.wait_exit(SOON) == 0
    assert_gone(pids)


@pytest.mark.long
def test_stop_does_not_wait_for_ever_for_a_reader_that_never_comes(start: Start, upstream: ScriptedUpstream) -> None:
    """Graceful stop. A generation ends unread."""
    chatwait = start()
    begin(chatwait.base_url, about(upstream, gated()))
    upstream.wait_reached("rest")
    chatwait.wait_for_log("reader_left")
    pids = stop(chatwait)
    upstream.open("rest")
    assert chatwait.wait_exit(SOON + 5) == 0
    assert_gone(pids)


def test_stop_cuts_what_takes_longer_than_the_drain_and_tells_its_readers(
    start: Start, upstream: ScriptedUpstream, pool: ThreadPoolExecutor
) -> None:
    """Graceful stop, DRAIN_SECONDS=2: `cancelled` by `shutdown`; wait mode 503 with what there was."""
    chatwait = start(DRAIN_SECONDS=2)
    reader = reading(pool, chatwait, upstream)
    chatwait.wait_for_log("reader_attached")
    (record,) = upstream.completions
    body = about(upstream, gated())
    waiting = pool.submit(post, f"{chatwait.base_url}/chat/wait", body, timeout=30)
    upstream.wait_reached("rest", count=2)
    pids = stop(chatwait)
    begun = time.monotonic()
    whole, waited = reader.result(15), waiting.result(15)
    assert time.monotonic() - begun > 1.0
    assert whole.terminal is not None
    assert (whole.terminal.event, whole.terminal.json["reason"], whole.text) == ("cancelled", "shutdown", "one two ")
    assert (waited.status, waited.json["error_code"], waited.json["retryable"]) == (503, "shutting_down", True)
    assert waited.json["partial"] == {"content": "one two ", "tokens": 2}
    assert int(waited.headers["retry-after"]) >= 1
    assert chatwait.wait_exit(SOON) == 0
    assert_gone(pids)
    record.wait_closed()


def test_stop_does_not_wait_for_idle_connections(
    start: Start, upstream: ScriptedUpstream, pool: ThreadPoolExecutor
) -> None:
    """Graceful stop. Kept-alive ones, one that never said a word, one in mid-header; a live stream is among them."""
    chatwait = start()
    reader = reading(pool, chatwait, upstream)
    with (
        KeptAlive("127.0.0.1", chatwait.port) as kept,
        KeptAlive("127.0.0.1", chatwait.port) as used,
        socket.create_connection(("127.0.0.1", chatwait.port)),
        socket.create_connection(("127.0.0.1", chatwait.port)) as unfinished,
    ):
        unfinished.sendall(b"GET /health HT")
        assert kept.request("GET", "/health").status == 200
        assert used.request("GET", "/health").status == 200
        pids = stop(chatwait)
        # The next request on a kept connection is the last one there: the client's next belongs to another worker.
        assert used.request("GET", "/health").headers["connection"] == "close"
        upstream.open("rest")
        assert reader.result(15).text == "one two three"
        assert chatwait.wait_exit(SOON) == 0
    assert_gone(pids)


def test_stop_waits_for_who_reads_what_had_ended_before(start: Start, upstream: ScriptedUpstream) -> None:
    """More than fits into the kernel's buffers, over a slow way."""
    chatwait = start()
    texts = ["x" * 50_000] * 16
    whole = read_answer(
        f"{chatwait.base_url}/chat/streaming", about(upstream, Script(steps=[*map(Token, texts), Finish(), Done()]))
    )
    with open_stream(f"{chatwait.base_url}/chat/streaming/{whole.stream_id}", rcvbuf=16_384) as connection:
        events = connection.events()
        next(events)
        stop(chatwait)
        time.sleep(2)  # the reader takes nothing for a while
        assert [event.event for event in events][-1] == "done"
    assert chatwait.wait_exit(SOON) == 0


@pytest.mark.requirement("tasks T014")
def test_stop_with_nothing_running_is_quick_and_a_new_start_knows_no_stream_of_before(start: Start) -> None:
    """Graceful stop and Ctrl-C. What is gone with the process is 404, never another's stream."""
    chatwait = start()
    whole = read_answer(f"{chatwait.base_url}/chat/streaming", {"message": "Hi"})
    assert whole.text == "Hello, world."
    pids = [chatwait._running.pid, *chatwait.worker_pids()]
    assert chatwait.stop(SOON) == 0
    assert_gone(pids)
    chatwait.start()
    url = f"{chatwait.base_url}/chat/streaming/{whole.stream_id}"
    reply = get(url, cursor(whole.stream_id or "", 2))
    assert (reply.status, reply.json["error_code"]) == (404, "stream_unknown")
    pids = [chatwait._running.pid, *chatwait.worker_pids()]
    assert chatwait.interrupt(SOON) == 0
    assert_gone(pids)


def test_interrupt_is_quick_and_readers_are_told_or_cut(
    start: Start, upstream: ScriptedUpstream, pool: ThreadPoolExecutor
) -> None:
    """SIGINT to the group, as Ctrl-C sends it: no reader hangs."""
    chatwait = start()
    pids = [chatwait._running.pid, *chatwait.worker_pids()]

    def read() -> str:
        answer = Answer()
        try:
            url = f"{chatwait.base_url}/chat/streaming"
            with open_stream(url, json=about(upstream, Script(steps=[Token("x"), Gate("on"), Stall()]))) as connection:
                answer.begin_connection(connection.headers)
                for event in connection.events():
                    answer.add(event)
        except Dropped:
            return "cut"
        return str(answer.terminal.json["reason"]) if answer.terminal else "cut"

    readers = [pool.submit(read) for _ in range(3)]
    upstream.wait_reached("on", count=3)
    assert chatwait.interrupt(SOON) == 0
    assert {reader.result(5) for reader in readers} <= {"shutdown", "cut"}
    assert_gone(pids)
    poll(lambda: all(record.peer_closed_at for record in upstream.completions), seconds=5, what="the upstream's closed")
