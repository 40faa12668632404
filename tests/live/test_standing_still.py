"""A worker that stands still for longer than its deadlines (a paused machine, SIGSTOP) finds nobody late for it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from tests.harness.reader import read_answer
from tests.harness.server import ChatWait
from tests.harness.upstream import Done, Finish, Gate, Script, ScriptedUpstream, Token
from tests.harness.valkey import Valkey
from tests.live.shared import LOST_SECONDS, read_at, services
from tests.live.steps import about, begin, poll, settings, wait_asked

SILENCE_SECONDS = 1


@contextmanager
def standing_still(chatwait: ChatWait, seconds: float) -> Iterator[None]:
    """Stop the worker for as long as this lasts, and for so many seconds more."""
    (pid,) = chatwait.worker_pids()
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
        time.sleep(seconds)  # how long it stands still is the case
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module", params=["in memory", "over Valkey"])
def impatient(request: pytest.FixtureRequest, shared_upstream: ScriptedUpstream, valkey: Valkey) -> Iterator[ChatWait]:
    more = {"REDIS_URL": valkey.url(valkey.new_database())} if request.param == "over Valkey" else {}
    with ChatWait(**settings(shared_upstream, TIMEOUT_SECONDS=SILENCE_SECONDS, **more)) as chatwait:
        yield chatwait


def test_what_the_model_sent_meanwhile_is_read_before_anybody_calls_it_silent(
    impatient: ChatWait, upstream: ScriptedUpstream
) -> None:
    script = Script(steps=[Token("a"), Gate("on"), Token("b"), Gate("end"), Token("c"), Finish(), Done()])
    body = about(upstream, script)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_answer, f"{impatient.base_url}/chat/streaming", json=body, timeout=30.0)
        record = wait_asked(upstream, body)
        upstream.wait_reached("on")
        with standing_still(impatient, 3 * SILENCE_SECONDS):
            upstream.open("on")
            record.wait_tokens(2)
        upstream.open("end")
        answer = reading.result()
    assert answer.terminal is not None
    assert (answer.terminal.event, answer.text) == ("done", "abc")
    assert impatient.log_of("error_occurred") == []


def test_drain_that_begins_with_the_awakening_has_all_its_time(upstream: ScriptedUpstream) -> None:
    """The signal came while the worker stood still."""
    body = about(upstream, Script(steps=[Token("a"), Gate("end"), Token("b"), Finish(), Done()]))
    with ChatWait(**settings(upstream, DRAIN_SECONDS=5)) as chatwait, ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_answer, f"{chatwait.base_url}/chat/streaming", json=body, timeout=30.0)
        upstream.wait_reached("end")
        with standing_still(chatwait, 5.5):
            os.kill(chatwait.worker_pids()[0], signal.SIGTERM)
        chatwait.wait_for_log("drain_started")
        time.sleep(1.5)  # a drain of the time before would have cut the answer off by now
        upstream.open("end")
        answer = reading.result()
    assert answer.terminal is not None
    assert (answer.terminal.event, answer.text) == ("done", "ab")


def stop_while_it_waits_for(valkey: Valkey, pid: int) -> None:
    """Stop a worker that has asked Valkey something, before it can find that Valkey is late. It asks twice a second."""
    while True:
        frozen_at = time.monotonic()
        valkey.freeze()
        time.sleep(0.5)  # it has asked by now
        os.kill(pid, signal.SIGSTOP)
        valkey.thaw()
        if time.monotonic() - frozen_at < 0.9:
            return
        os.kill(pid, signal.SIGCONT)  # the machine was too slow
        time.sleep(2.0)  # until it has Valkey again


def test_worker_that_waited_for_valkey_shows_nothing_that_is_not_stored(
    upstream: ScriptedUpstream, own_valkey: Valkey
) -> None:
    """It has been replaced. It must not take its own pause for Valkey's, and show its readers more than others get."""
    script = Script(steps=[Token("a"), Gate("on"), Token("too late"), Gate("never"), Finish(), Done()])
    body = about(upstream, script)
    with services(upstream, own_valkey.url()) as (still, other), ThreadPoolExecutor(2) as pool:
        stream_id = begin(still.base_url, body)
        record = wait_asked(upstream, body)
        upstream.wait_reached("on")
        reading = [pool.submit(read_at, [one.base_url], stream_id, timeout=60.0) for one in (still, other)]
        poll(lambda: len(still.log_of("reader_attached")) == 2, seconds=10, what="its own reader")
        poll(lambda: len(other.log_of("reader_attached")) == 1, seconds=10, what="the reader elsewhere")
        (pid,) = still.worker_pids()
        stop_while_it_waits_for(own_valkey, pid)
        try:
            lost = reading[1].result(10 * LOST_SECONDS)
            upstream.open("on")
            record.wait_tokens(2)
        finally:
            os.kill(pid, signal.SIGCONT)
        for answer in (lost, reading[0].result()):
            assert answer.terminal is not None
            assert (answer.terminal.event, answer.text) == ("failed", "a")
            assert answer.terminal.json["error"]["error_code"] == "producer_lost"
