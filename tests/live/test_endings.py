"""Every way out of a generation writes one terminal event, and whoever comes back gets it, once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.harness.chaos import ChaosProxy, CleanCloseAfter, CutAfter
from tests.harness.reader import Answer, Dropped, Reply, delete, get, open_stream, post, read_answer
from tests.harness.script import Event as Sent
from tests.harness.server import ChatWait
from tests.harness.upstream import (
    Close,
    Delta,
    Done,
    Finish,
    Gate,
    Pause,
    Raw,
    Reset,
    Script,
    ScriptedUpstream,
    Stall,
    Token,
    TruncatedChunk,
    answer,
    error,
)
from tests.live.steps import (
    about,
    asked,
    copy_of_service,
    cursor,
    live,
    log_name,
    new_key,
    read_on,
    settings,
    wait_asked,
)

PARTS = [Token("Par"), Token("is é🙂")]


@dataclass(frozen=True)
class Ending:
    """How an upstream ends, and what must become of it."""

    script: Script
    event: str = "done"
    tokens: int = 2
    finish_reason: str | None = None
    code: str | None = None
    status: int = 200
    retryable: bool = False
    headers: dict[str, str] = field(default_factory=dict)


def failed(script: Script, code: str, status: int, *, retryable: bool, tokens: int = 2, **more: Any) -> Ending:
    return Ending(script, "failed", tokens, code=code, status=status, retryable=retryable, **more)


def steps(*after: Any) -> Script:
    return Script(steps=[*PARTS, *after])


ENDINGS = {
    "stop": Ending(steps(Finish("stop"), Done()), finish_reason="stop"),
    "length": Ending(steps(Finish("length"), Done()), finish_reason="length"),
    "content filter": Ending(steps(Finish("content_filter"), Done()), finish_reason="content_filter"),
    "no [DONE]": Ending(steps(Finish("stop")), finish_reason="stop"),
    "no finish reason": Ending(steps(Done())),
    "no text": Ending(answer([]), tokens=0, finish_reason="stop"),
    "half a character": Ending(
        Script(steps=[Token("Par"), Delta({"content": "\ud83d"}), Finish(), Done()]), finish_reason="stop"
    ),
    "more after [DONE]": Ending(steps(Finish(), Done(), Token("late"), Done()), finish_reason="stop"),
    "close": failed(steps(Close()), "upstream_error", 502, retryable=True),
    "end of the body": failed(steps(), "upstream_error", 502, retryable=True),
    "reset": failed(steps(Gate("read"), Reset()), "upstream_error", 502, retryable=True),
    "truncated chunk": failed(steps(TruncatedChunk(b"data: {")), "upstream_error", 502, retryable=True),
    "error inside": failed(
        steps(Sent({"error": {"message": "secret-host.internal", "type": "server_error"}})),
        "upstream_error",
        502,
        retryable=True,
    ),
    "policy inside": failed(
        steps(Sent({"error": {"message": "no", "code": "content_policy_violation"}})),
        "content_filtered",
        502,
        retryable=False,
    ),
    "malformed JSON": failed(steps(Raw(b"data: {oh no\n\n")), "upstream_error", 502, retryable=True),
    "401": failed(error(401), "upstream_auth_failed", 502, retryable=False, tokens=0),
    "404": failed(error(404), "upstream_error", 502, retryable=True, tokens=0),
    "too long": failed(
        error(400, "maximum context length", "context_length_exceeded"),
        "context_too_long",
        400,
        retryable=False,
        tokens=0,
    ),
    "429": failed(
        error(429, headers={"retry-after": "60"}),
        "upstream_rate_limited",
        429,
        retryable=True,
        tokens=0,
        headers={"retry-after": "60"},
    ),
    "503": failed(
        error(503, headers={"retry-after": "70"}),
        "upstream_unavailable",
        503,
        retryable=True,
        tokens=0,
        headers={"retry-after": "70"},
    ),
}


def assert_ended(chatwait: ChatWait, whole: Answer, ending: Ending) -> None:
    """Check the terminal event, and that it is the last there ever is, whoever comes back with what cursor."""
    assert whole.terminal is not None
    assert (whole.terminal.event, whole.tokens) == (ending.event, ending.tokens)
    end = whole.terminal.json
    assert end["finish_reason"] == ending.finish_reason
    if ending.code is None:
        assert "error" not in end
    else:
        assert (end["error"]["error_code"], end["error"]["retryable"]) == (ending.code, ending.retryable)
        assert "secret" not in whole.terminal.data
    assert whole.stream_id is not None
    url = f"{chatwait.base_url}/chat/streaming/{whole.stream_id}"
    again = read_answer(url)
    assert (again.terminal, again.text) == (_at(again, whole), whole.text)
    last = read_answer(url, headers=cursor(whole.stream_id, whole.tokens), after=whole.tokens, prefix=whole.text)
    assert last.terminal is not None
    assert last.terminal.json == end
    assert [event.event for event in last.events if event.event != "ping"][-1:] == [ending.event]
    assert get(url, cursor(whole.stream_id, whole.tokens + 1)).status == 204
    assert get(url, cursor(whole.stream_id, whole.tokens + 2)).status == 409


def _at(again: Answer, whole: Answer) -> Any:
    """Compare terminals without the time at which they came."""
    assert again.terminal is not None
    assert whole.terminal is not None
    assert (again.terminal.data, again.terminal.id) == (whole.terminal.data, whole.terminal.id)
    return again.terminal


def assert_waited(reply: Reply, whole: Answer, ending: Ending) -> None:
    """Check wait mode's answer against the same generation's events."""
    assert reply.status == ending.status
    assert reply.headers["x-stream-id"] == whole.stream_id
    assert reply.json["correlation_id"] == reply.headers["x-correlation-id"]
    assert whole.terminal is not None
    if ending.code is None:
        assert (reply.json["status"], reply.json["content"]) == (whole.terminal.json["status"], whole.text)
        for name in ("finish_reason", "tokens", "usage", "characters", "sha256", "duration_ms", "first_token_ms"):
            assert reply.json[name] == whole.terminal.json[name]
    else:
        assert (reply.json["error_code"], reply.json["retryable"]) == (ending.code, ending.retryable)
        assert reply.json["partial"] == {"content": whole.text, "tokens": ending.tokens}
    for name, value in ending.headers.items():
        assert reply.headers[name] == value


@pytest.mark.parametrize("name", ENDINGS)
@pytest.mark.requirement("core US1.3", "core edge 2", "tasks T022", "page US2.2", "page FR-005")
@pytest.mark.requirement("page entity Streaming Message", "page SC-007")
def test_ending_writes_one_terminal_event_and_nothing_after_it(
    chatwait: ChatWait, upstream: ScriptedUpstream, name: str
) -> None:
    """The reader checks the events, their numbers and their hash; then all the ways back are tried."""
    ending = ENDINGS[name]
    body, key = about(upstream, ending.script), new_key()
    upstream.open("read")
    whole = read_answer(f"{chatwait.base_url}/chat/streaming", body, headers=key)
    assert_ended(chatwait, whole, ending)
    calls = len(asked(upstream, body))
    assert_waited(get(f"{chatwait.base_url}/chat/wait/{whole.stream_id}"), whole, ending)
    assert calls == len(asked(upstream, body)) == 1
    assert len(chatwait.log_of("response_complete", stream=log_name(whole.stream_id or ""))) == 1


@pytest.mark.parametrize("name", ["stop", "close", "error inside", "401", "429", "no text"])
@pytest.mark.requirement("chatwait FR-006")
def test_ending_is_the_same_for_a_client_that_waits_from_the_start(
    chatwait: ChatWait, upstream: ScriptedUpstream, name: str
) -> None:
    ending = ENDINGS[name]
    reply = post(f"{chatwait.base_url}/chat/wait", about(upstream, ending.script))
    whole = read_answer(f"{chatwait.base_url}/chat/streaming/{reply.headers['x-stream-id']}")
    assert_waited(reply, whole, ending)


def test_half_a_character_at_the_end_is_shown_and_counted(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    got = read_answer(f"{chatwait.base_url}/chat/streaming", about(upstream, ENDINGS["half a character"].script))
    assert got.terminal is not None
    assert (got.text, got.terminal.json["characters"]) == ("Par\ufffd", 4)


@pytest.mark.requirement("core risk 3", "page US3.4", "page FR-004", "page SC-006")
def test_failure_after_tokens_gives_a_late_resumer_the_tokens_and_then_the_failure(
    chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """Nobody was there when it failed."""
    script = Script(steps=[*PARTS, Gate("fail"), Close()])
    with live(chatwait.base_url, about(upstream, script)) as stream_id:
        upstream.wait_reached("fail")
        chatwait.wait_for_log("reader_left", stream=log_name(stream_id))
        upstream.open("fail")
        chatwait.wait_for_log("response_complete", stream=log_name(stream_id), status="failed")
        for after in range(3):
            prefix = "".join(part.text for part in PARTS[:after])
            url = f"{chatwait.base_url}/chat/streaming/{stream_id}"
            got = read_answer(url, headers=cursor(stream_id, after), after=after, prefix=prefix or None)
            assert got.terminal is not None
            assert (got.terminal.event, got.text, got.tokens) == ("failed", "Paris é🙂", 2)


@pytest.mark.requirement("page SC-006")
def test_cancelled_stream_ends_so_for_all_and_in_wait_mode(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    body = about(upstream, Script(steps=[*PARTS, Stall()]))
    whole = Answer()
    with open_stream(f"{chatwait.base_url}/chat/streaming", json=body) as connection:
        whole.begin_connection(connection.headers)
        for event in connection.events():
            whole.add(event)
            if whole.tokens == 2 and not whole.is_complete:
                delete(f"{chatwait.base_url}/chat/streaming/{whole.stream_id}")
    assert whole.terminal is not None
    assert whole.terminal.json["reason"] == "client"
    ending = Ending(Script(), "cancelled")
    assert_ended(chatwait, whole, ending)
    assert_waited(get(f"{chatwait.base_url}/chat/wait/{whole.stream_id}"), whole, ending)


@pytest.mark.requirement("page FR-004", "page SC-006")
def test_shutdown_ends_what_is_live_with_one_terminal_event(
    shared_upstream: ScriptedUpstream, upstream: ScriptedUpstream
) -> None:
    """Readers are told `shutdown`; a client that waits gets 503 with what there was."""
    with (
        ChatWait(**settings(shared_upstream, DRAIN_SECONDS=1)) as chatwait,
        ThreadPoolExecutor(2) as pool,
        live_reader(chatwait, about(upstream, Script(steps=[*PARTS, Stall()]))) as (stream_id, reading),
    ):
        waiting = pool.submit(get, f"{chatwait.base_url}/chat/wait/{stream_id}")
        chatwait.wait_for_log("reader_attached", mode="wait")
        assert chatwait.stop() == 0
        got = reading.result(10)
        assert got.terminal is not None
        assert (got.terminal.event, got.terminal.json["reason"]) == ("cancelled", "shutdown")
        assert got.text == "Paris é🙂"
        reply = waiting.result(10)
        assert (reply.status, reply.json["error_code"]) == (503, "shutting_down")
        assert reply.json["partial"] == {"content": "Paris é🙂", "tokens": 2}
        assert int(reply.headers["retry-after"]) > 0


@contextmanager
def live_reader(chatwait: ChatWait, body: dict[str, str]) -> Iterator[tuple[str, Future[Answer]]]:
    """Start a stream, read its first two tokens, then give its id and the answer that a thread goes on to read."""
    whole = Answer()
    with open_stream(f"{chatwait.base_url}/chat/streaming", json=body) as connection, ThreadPoolExecutor(1) as pool:
        whole.begin_connection(connection.headers)
        events = connection.events()
        while whole.tokens < 2:
            whole.add(next(events))

        def read() -> Answer:
            for event in events:
                whole.add(event)
            return whole.verify()

        assert whole.stream_id is not None
        yield whole.stream_id, pool.submit(read)


BUG = """
from app.upstream.decoder import ChunkDecoder

decode = ChunkDecoder.decode

def decode_with_a_bug(self, data):
    return 1 // 0 if b"BUG" in data else decode(self, data)

ChunkDecoder.decode = decode_with_a_bug
"""


@pytest.mark.requirement("chatwait errors 3")
def test_bug_of_ours_ends_the_stream_as_failed_and_leaks_nothing(
    shared_upstream: ScriptedUpstream, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    with ChatWait(root=copy_of_service(tmp_path, BUG), **settings(shared_upstream)) as chatwait:
        for tokens, script in ((2, steps(Token("BUG"), Stall())), (0, Script(steps=[Token("BUG"), Stall()]))):
            whole = read_answer(f"{chatwait.base_url}/chat/streaming", about(upstream, script))
            ending = failed(script, "internal_error", 500, retryable=True, tokens=tokens)
            assert whole.terminal is not None
            assert whole.terminal.json["error"]["origin"] == "service"
            assert "ZeroDivision" not in whole.terminal.data
            assert_ended(chatwait, whole, ending)
            assert_waited(get(f"{chatwait.base_url}/chat/wait/{whole.stream_id}"), whole, ending)
        assert read_answer(f"{chatwait.base_url}/chat/streaming", about(upstream, answer(["well"]))).text == "well"
        for record in upstream.completions[:2]:
            record.wait_closed()


# Deadlines

SILENCE, LONGEST = 2, 4  # seconds
SILENT = {
    "accepts and never answers": (Script(before=[Stall()]), 0, SILENCE),
    "headers and then silence": (Script(steps=[Stall()]), 0, SILENCE),
    "a stall after two tokens": (Script(steps=[*PARTS, Stall()]), 2, SILENCE),
    "one token each (timeout - 0.8 s) for ever": (
        Script(steps=[Token(f"{number} ", 1.2) for number in range(20)]),
        2,
        LONGEST,
    ),
    "reasoning alone for ever": (
        Script(steps=[step for _ in range(20) for step in (Pause(1.2), Delta({"reasoning_content": "hm"}))]),
        0,
        LONGEST,
    ),
}


@dataclass(frozen=True)
class Silence:
    """What came of one silent upstream."""

    whole: Answer
    waited: Reply
    seconds: float
    closed: bool


@pytest.fixture(scope="module")
def silences(shared_upstream: ScriptedUpstream) -> Iterator[tuple[ChatWait, dict[str, Silence]]]:
    """Let all silent upstreams come to their deadlines at the same time."""
    more = {"TIMEOUT_SECONDS": SILENCE, "MAX_GENERATION_SECONDS": LONGEST}
    with ChatWait(**settings(shared_upstream, **more)) as chatwait, ThreadPoolExecutor(2 * len(SILENT)) as pool:

        def read(script: Script) -> Silence:
            body, began = about(shared_upstream, script), time.monotonic()
            with open_stream(f"{chatwait.base_url}/chat/streaming", json=body) as connection:
                whole = Answer()
                whole.begin_connection(connection.headers)
                waiting = pool.submit(get, f"{chatwait.base_url}/chat/wait/{whole.stream_id}", timeout=30)
                for event in connection.events():
                    whole.add(event)
            seconds = time.monotonic() - began
            record = wait_asked(shared_upstream, body)
            return Silence(whole.verify(), waiting.result(), seconds, closed=bool(record.wait_closed()))

        reading = {name: pool.submit(read, script) for name, (script, _, _) in SILENT.items()}
        yield chatwait, {name: future.result() for name, future in reading.items()}


@pytest.mark.parametrize("name", SILENT)
@pytest.mark.requirement("core US2.2", "core FR-009", "core constitution VI", "plan constraint 1", "tasks T020")
@pytest.mark.requirement("page US2.1", "page edge 6")
def test_silent_upstream_ends_at_its_deadline_with_pings_before(
    silences: tuple[ChatWait, dict[str, Silence]], name: str
) -> None:
    chatwait, found = silences
    got, (script, tokens, deadline) = found[name], SILENT[name]
    ending = failed(script, "upstream_timeout", 504, retryable=True, tokens=got.whole.tokens)
    assert got.whole.tokens == tokens if deadline == SILENCE else got.whole.tokens >= tokens
    assert_ended(chatwait, got.whole, ending)
    assert_waited(got.waited, got.whole, ending)
    assert deadline <= got.seconds < 5 * deadline
    assert got.closed
    assert got.whole.terminal is not None
    assert str(deadline) in got.whole.terminal.json["error"]["detail"]
    # A heartbeat is 1 s: from frame to frame never much longer, and pings say how far things are.
    times = [event.received_at for event in got.whole.events]
    assert max(after - before for before, after in pairwise(times)) < 5.0
    pings = [event.json for event in got.whole.events if event.event == "ping"]
    assert len(pings) >= 1
    assert {(ping["phase"], ping["tokens"] > 0) for ping in pings} <= {("waiting", False), ("generating", True)}


# Lost and found


def test_resume_at_the_head_of_a_quiet_log_gets_headers_and_a_ping_at_once(
    shared_upstream: ScriptedUpstream, upstream: ScriptedUpstream
) -> None:
    """With a heartbeat so long that only a frame at once explains the ping; and no `start` comes."""
    script = Script(steps=[*PARTS, Gate("on"), Finish(), Done()])
    more = {"HEARTBEAT_SECONDS": 60, "TIMEOUT_SECONDS": 100}
    with (
        ChatWait(**settings(shared_upstream) | more) as chatwait,
        live_reader(chatwait, about(upstream, script)) as (stream_id, reading),
    ):
        for after in (1, 2):
            url = f"{chatwait.base_url}/chat/streaming/{stream_id}"
            with open_stream(url, headers=cursor(stream_id, after)) as resumed:
                first = next(resumed.events())
                assert (resumed.status, resumed.headers["x-stream-id"]) == (200, stream_id)
                assert (first.event, first.id) == ("ping", f"{stream_id}.{after}")
                assert first.json == {"phase": "generating", "tokens": 2}
        with open_stream(f"{chatwait.base_url}/chat/streaming/{stream_id}") as from_the_beginning:
            first = next(from_the_beginning.events())
            assert (first.event, first.id, first.retry) == ("start", f"{stream_id}.0", 1000)
        upstream.open("on")
        assert reading.result(10).text == "Paris é🙂"


@pytest.mark.requirement("core FR-004", "core UX-003")
def test_first_frame_comes_before_the_model_has_answered(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    body = about(upstream, Script(before=[Gate("answer")], steps=[Token("a"), Finish(), Done()]))
    with open_stream(f"{chatwait.base_url}/chat/streaming", json=body) as connection:
        events = connection.events()
        first = next(events)
        assert (first.event, connection.status) == ("start", 200)
        ping = next(events)
        assert (ping.event, ping.json) == ("ping", {"phase": "waiting", "tokens": 0})
        upstream.open("answer")
        assert [event.event for event in events if event.event != "ping"] == ["token", "done"]


@pytest.mark.parametrize("name", ["stop", "close"])
@pytest.mark.parametrize("cut", [CutAfter, CleanCloseAfter])
@pytest.mark.requirement("page US3.1")
def test_terminal_lost_on_the_wire_is_given_to_the_reconnect_and_then_204(
    chatwait: ChatWait, upstream: ScriptedUpstream, proxy: ChaosProxy, name: str, cut: type[CutAfter | CleanCloseAfter]
) -> None:
    """The cut is inside the terminal's frame: after its id line, but before its end."""
    ending = ENDINGS[name]
    body = about(upstream, ending.script)
    whole = read_answer(f"{chatwait.base_url}/chat/streaming", body)
    assert whole.terminal is not None
    url = f"{chatwait.base_url}/chat/streaming/{whole.stream_id}"
    read_answer(url, via=proxy.base_url)
    size = proxy.bytes_down
    for missing in (9, 20, len(whole.terminal.data)):  # the body's own end is 7 bytes
        got = Answer(stream_id=whole.stream_id)
        proxy.plan(cut(size - missing))
        with pytest.raises(Dropped):
            read_on(got, chatwait.base_url, via=proxy.base_url)
        assert (got.tokens, got.is_complete) == (2, False)
        read_on(got, chatwait.base_url, via=proxy.base_url)
        assert got.terminal is not None
        assert (got.terminal.data, got.text) == (whole.terminal.data, whole.text)
        assert get(url, {"Last-Event-ID": got.last_event_id}).status == 204
        assert (
            post(f"{chatwait.base_url}/chat/streaming", body, headers={"Last-Event-ID": got.last_event_id}).status
            == 204
        )
    assert len(asked(upstream, body)) == 1


def test_terminal_written_while_nobody_was_there_is_given_to_the_reconnect(
    chatwait: ChatWait, upstream: ScriptedUpstream, proxy: ChaosProxy
) -> None:
    script = Script(steps=[*PARTS, Gate("end"), Finish(), Done()])
    body = about(upstream, script)
    got = Answer()
    with open_stream(f"{chatwait.base_url}/chat/streaming", json=body, via=proxy.base_url) as connection:
        got.begin_connection(connection.headers)
        events = connection.events()
        while got.tokens < 2:
            got.add(next(events))
        proxy.cut_all()
        with pytest.raises(Dropped):
            got.add(next(events))
    name = log_name(got.stream_id or "")
    chatwait.wait_for_log("reader_left", stream=name)
    upstream.open("end")
    chatwait.wait_for_log("response_complete", stream=name, status="complete")
    read_on(got, chatwait.base_url, via=proxy.base_url)
    assert got.verify().text == "Paris é🙂"
    assert len(asked(upstream, body)) == 1
