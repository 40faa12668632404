"""Every fault of the model's server over the wire: what a client is told, how often it was asked, what stays hidden."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from tests.harness.certificates import Certificate, make_certificate
from tests.harness.reader import Answer, Reply, open_stream, post, read_answer
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
    RequestRecord,
    Reset,
    Script,
    ScriptedUpstream,
    Stall,
    Token,
    TruncatedChunk,
    Usage,
    answer,
    encode_json,
    error,
)
from tests.live.steps import KEY, about, asked, log_name, settings, together

MODES = ("streaming", "wait")
CANARY = "raw-words-of-the-upstream"
"""In every text that the upstream sends with a failure; no answer may repeat it."""

GOOD = [Token("Par"), Token("is")]


@dataclass(frozen=True)
class Fault:
    """What the upstream does, and what a client must be told. `calls` is how often the upstream is asked."""

    script: Script
    status: int
    code: str
    retryable: bool = True
    calls: int = 1
    tokens: int = 0
    retry_after: str | None = None


def refusal(status: int, **more: Any) -> Script:
    """Refuse with OpenAI's error body, whose words are nobody's business."""
    code = more.pop("code", None)
    return error(status, f"{CANARY} {more.pop('words', '')}", code, **more)


def body_of(content_type: str, body: bytes, status: int = 200) -> Script:
    return Script(status=status, headers={"content-type": content_type}, body=body)


def broken(*steps: Any) -> Fault:
    """Break off after two tokens: nothing is tried again."""
    return Fault(Script(steps=[*GOOD, *steps]), 502, "upstream_error", tokens=2)


UNAVAILABLE = (503, "upstream_unavailable", True, 3)
RATE_LIMITED = (429, "upstream_rate_limited", True, 3)
REFUSED_KEY = (502, "upstream_auth_failed", False)
FAULTS = {
    "400": Fault(refusal(400), 502, "upstream_error"),
    "400 too long": Fault(refusal(400, code="context_length_exceeded"), 400, "context_too_long", False),
    "400 too long in words": Fault(refusal(400, words="maximum context length is 5"), 400, "context_too_long", False),
    "400 policy": Fault(refusal(400, code="content_policy_violation"), 502, "content_filtered", False),
    "400 azure": Fault(
        body_of("application/json", encode_json({"error": {"code": "content_filter", "message": CANARY}}), 400),
        502,
        "content_filtered",
        False,
    ),
    "401": Fault(refusal(401), 502, "upstream_auth_failed", False),
    "403": Fault(refusal(403), 502, "upstream_auth_failed", False),
    "404": Fault(refusal(404), 502, "upstream_error"),
    "408": Fault(refusal(408), 504, "upstream_timeout"),
    "409": Fault(refusal(409), 502, "upstream_error"),
    "429": Fault(refusal(429), 429, "upstream_rate_limited", True, 3),
    "500": Fault(refusal(500), *UNAVAILABLE),
    "502 page": Fault(body_of("text/html", f"<h1>{CANARY}</h1>".encode(), 502), *UNAVAILABLE),
    "503": Fault(refusal(503), *UNAVAILABLE),
    "504": Fault(refusal(504), *UNAVAILABLE),
    "529": Fault(refusal(529), *UNAVAILABLE),
    "401 cut off": Fault(Script(before=[Raw(b"HTTP/1.1 401 No\r\nContent-Length: 9\r\n\r\n{"), Close()]), *REFUSED_KEY),
    "429 cut off": Fault(
        Script(before=[Raw(b"HTTP/1.1 429 No\r\nContent-Length: 9\r\n\r\n{"), Close()]), *RATE_LIMITED
    ),
    "429 packed": Fault(Script(429, {"content-encoding": "gzip"}, body=CANARY.encode()), *RATE_LIMITED),
    "503 of a charset that is none": Fault(
        body_of("application/json; charset=base64", CANARY.encode(), 503), *UNAVAILABLE
    ),
    "200 packed": Fault(
        Script(200, {"content-type": "text/event-stream", "content-encoding": "gzip"}, body=CANARY.encode()),
        502,
        "upstream_error",
    ),
    "reset before an answer": Fault(Script(before=[Reset()]), *UNAVAILABLE),
    "close before an answer": Fault(Script(before=[Close()]), *UNAVAILABLE),
    "close in the head": Fault(Script(before=[Raw(b"HTTP/1.1 200 O"), Close()]), 502, "upstream_error"),
    "204": Fault(Script(status=204, body=b""), 502, "upstream_error"),
    "200 JSON error": Fault(
        body_of("application/json", encode_json({"error": {"message": CANARY}})), 502, "upstream_error"
    ),
    "200 page": Fault(body_of("text/html; charset=utf-8", f"<p>{CANARY}</p>".encode()), 502, "upstream_error"),
    "200 nothing": Fault(body_of("text/event-stream", b""), 502, "upstream_error"),
    "reset in the middle": broken(Reset()),
    "close in the middle": broken(Close()),
    "end without an end": broken(),
    "truncated chunk": broken(TruncatedChunk(f'data: {{"{CANARY}'.encode())),
    "malformed JSON": broken(Raw(f"data: {{{CANARY}\n\n".encode())),
    "JSON of another kind": broken(Raw(b"data: [1, 2]\n\n")),
    "choices that are none": broken(Sent({"choices": CANARY})),
    "a line of 10 MiB": broken(Raw(b"data: " + b"x" * (10 << 20))),
    "an error inside": broken(Sent({"error": {"message": CANARY, "type": "server_error"}})),
    "an error inside in words": broken(Sent({"error": CANARY})),
    "policy inside": Fault(
        Script(steps=[*GOOD, Sent({"error": {"message": CANARY, "code": "content_policy_violation"}})]),
        502,
        "content_filtered",
        False,
        tokens=2,
    ),
}


def judge(fault: Fault, reply: Reply | Answer, secrets: list[str]) -> None:
    """Check the error that a client met in this mode."""
    if isinstance(reply, Reply):
        assert reply.status == fault.status, reply.body
        assert reply.headers.get("retry-after") == fault.retry_after
        assert reply.json["correlation_id"] == reply.headers["x-correlation-id"]
        assert reply.json["partial"] == {"content": "Paris" if fault.tokens else "", "tokens": fault.tokens}
        told, shown = reply.json, reply.body.decode()
    else:
        assert reply.terminal is not None
        assert (reply.terminal.event, reply.tokens) == ("failed", fault.tokens)
        told, shown = reply.terminal.json["error"], reply.terminal.data
    assert (told["error_code"], told["retryable"], told["origin"]) == (fault.code, fault.retryable, "upstream")
    assert all(told[name] for name in ("message", "detail", "action"))
    after = told.get("retry_after_seconds")
    assert (None if after is None else str(after)) == fault.retry_after
    for secret in secrets:
        assert secret not in shown


def ask(chatwait: ChatWait, mode: str, body: dict[str, Any]) -> tuple[Reply | Answer, str]:
    """Ask in one mode, and give the answer and the stream's id."""
    url = f"{chatwait.base_url}/chat/{mode}"
    if mode == "wait":
        reply = post(url, body, timeout=20)
        return reply, reply.headers["x-stream-id"]
    whole = read_answer(url, body, timeout=20)
    assert whole.stream_id is not None
    return whole, whole.stream_id


Outcome = tuple[Reply | Answer, str, list[RequestRecord]]
"""What a client got, the stream's id, and what the upstream was asked."""


AT_ONCE = 24


def ask_all(chatwait: ChatWait, upstream: ScriptedUpstream, scripts: dict[str, Script]) -> dict[str, Outcome]:
    """Ask for all of these at once, in every mode: their waits pass side by side. Shape: keys are `<name> <mode>`."""
    cases = {f"{name} {mode}": (mode, about(upstream, script)) for name, script in scripts.items() for mode in MODES}
    asks = [lambda mode=mode, body=body: ask(chatwait, mode, body) for mode, body in cases.values()]
    # Not all at the same moment: on a busy machine they would use up the seconds within which calls are repeated.
    got = [reply for at in range(0, len(asks), AT_ONCE) for reply in together(*asks[at : at + AT_ONCE])]
    return {name: (*got[at], asked(upstream, body)) for at, (name, (_, body)) in enumerate(cases.items())}


@pytest.fixture(scope="module")
def outcomes(shared_chatwait: ChatWait, shared_upstream: ScriptedUpstream) -> dict[str, Outcome]:
    """Meet every fault. Those that break connections come last and with none kept, or stale ones would be counted."""
    breaking = {name: fault.script for name, fault in FAULTS.items() if fault.script.before}
    others = {name: fault.script for name, fault in FAULTS.items() if name not in breaking}
    shared_upstream.reset()
    got = ask_all(shared_chatwait, shared_upstream, others)
    shared_upstream.close_idle_connections()
    return got | ask_all(shared_chatwait, shared_upstream, breaking)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.requirement("core US2 test", "core FR-008", "chatwait errors 2", "tasks US2 test", "page FR-006")
def test_fault_of_the_upstream_is_told_by_its_code_and_nothing_leaks(
    chatwait: ChatWait, upstream: ScriptedUpstream, outcomes: dict[str, Outcome], name: str, mode: str
) -> None:
    """Upstream. The ledger counts the calls: 429, 5xx and a lost connection two times more, anything else never."""
    fault = FAULTS[name]
    reply, stream_id, calls = outcomes[f"{name} {mode}"]
    host = upstream.base_url.split("/")[2]
    judge(fault, reply, [CANARY, KEY, host, "127.0.0.1", "chatcmpl", "Traceback", stream_id])
    assert len(calls) == fault.calls
    retries = chatwait.log_of("upstream_retry", stream=log_name(stream_id))
    assert [line["attempt"] for line in retries] == list(range(1, fault.calls))


def date_in(seconds: int) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@dataclass(frozen=True)
class After:
    """A Retry-After that does not fit, or is none. `told` is what the client may be told, in seconds."""

    value: str
    calls: int
    told: range = field(default_factory=lambda: range(0))


AFTERS = {
    "seconds": After("7", 1, range(7, 8)),
    "a fraction": After("6.5", 1, range(7, 8)),
    "a date": After("in 60", 1, range(50, 62)),
    "a date gone by": After("in -60", 3),
    "absurd": After("99999999999999999999", 3),
    "a year": After("31536000", 3),
    "words": After("soon", 3),
    "negative": After("-5", 3),
    "empty": After("", 3),
}


def refusal_after(after: After) -> Script:
    value = date_in(int(after.value[3:])) if after.value.startswith("in ") else after.value
    return error(429, headers={"retry-after": value})


@pytest.fixture(scope="module")
def put_off(shared_chatwait: ChatWait, shared_upstream: ScriptedUpstream) -> dict[str, Outcome]:
    shared_upstream.reset()
    return ask_all(shared_chatwait, shared_upstream, {name: refusal_after(after) for name, after in AFTERS.items()})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", AFTERS)
@pytest.mark.requirement("core edge 5", "core risk 2")
def test_retry_after_that_does_not_fit_is_passed_on_and_nonsense_is_not(
    put_off: dict[str, Outcome], name: str, mode: str
) -> None:
    """Upstream: 429 with Retry-After as seconds, as a date, absurd, negative, absent."""
    after = AFTERS[name]
    reply, _, calls = put_off[f"{name} {mode}"]
    assert len(calls) == after.calls
    if isinstance(reply, Reply):
        assert reply.status == 429
        told = reply.json
        assert reply.headers.get("retry-after") == (str(told["retry_after_seconds"]) if after.told else None)
    else:
        assert reply.terminal is not None
        told = reply.terminal.json["error"]
    assert told["error_code"] == "upstream_rate_limited"
    if after.told:
        assert told["retry_after_seconds"] in after.told
    else:
        assert "retry_after_seconds" not in told


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.requirement("core edge 5", "plan principle VI")
def test_retry_after_that_fits_is_honoured(chatwait: ChatWait, upstream: ScriptedUpstream, status: int) -> None:
    """Upstream: the second call comes when the first one's answer had asked for it."""
    upstream.then(error(status, headers={"retry-after": "1"}))
    whole = read_answer(f"{chatwait.base_url}/chat/streaming", {"message": "Hi"})
    first, second = upstream.completions
    assert whole.text == "Hello, world."
    assert 1.0 <= second.at - first.at < 4.0
    assert first.body == second.body


@pytest.mark.requirement("core risk 1")
def test_upstream_that_recovers_in_three_calls_costs_no_error(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """Upstream: a lost connection, a 500, and then the answer."""
    upstream.close_idle_connections()
    upstream.then(Script(before=[Reset()]), refusal(500))
    whole = read_answer(f"{chatwait.base_url}/chat/streaming", {"message": "Hi"})
    assert (whole.text, len(upstream.completions)) == ("Hello, world.", 3)
    assert whole.terminal is not None
    retries = chatwait.log_of("upstream_retry", stream=log_name(whole.stream_id or ""))
    assert [line["error_code"] for line in retries] == ["upstream_unavailable"] * 2
    assert {line["correlation_id"] for line in retries} == {whole.headers["x-correlation-id"]}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.requirement("core US2.1", "core risk 1")
def test_upstream_that_refuses_connections_is_unavailable(
    chatwait: ChatWait, upstream: ScriptedUpstream, mode: str
) -> None:
    """Upstream: refused. Tried two times more, as the log shows, and served again afterwards."""
    upstream.refuse()
    try:
        upstream.close_idle_connections()
        reply, stream_id = ask(chatwait, mode, {"message": "Hi"})
    finally:
        upstream.listen_again()
    fault = Fault(Script(), 503, "upstream_unavailable")
    judge(fault, reply, [KEY, str(upstream.port), "127.0.0.1", "refused", "Errno", stream_id])
    assert len(chatwait.log_of("upstream_retry", stream=log_name(stream_id))) == 2
    assert upstream.completions == []
    assert read_answer(f"{chatwait.base_url}/chat/streaming", {"message": "Hi"}).text == "Hello, world."


# Connections


def test_stale_pooled_connection_costs_no_error(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """Upstream: the server's keep-alive timer closed what we had kept."""
    for _ in range(3):
        assert read_answer(f"{chatwait.base_url}/chat/streaming", {"message": "Hi"}).text == "Hello, world."
        upstream.wait_until(lambda: all(record.finished_at for record in upstream.completions))
        asked_before = len(upstream.completions)
        assert upstream.close_idle_connections() >= 1
        whole = read_answer(f"{chatwait.base_url}/chat/streaming", {"message": "Hi"})
        assert whole.text == "Hello, world."
        assert len(upstream.completions) == asked_before + 1
        assert chatwait.log_of("upstream_retry", stream=log_name(whole.stream_id or "")) == []


def test_pooled_connection_closed_under_the_request_costs_no_error(
    chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """Upstream: the close and the request cross on the wire."""
    whole = read_answer(f"{chatwait.base_url}/chat/streaming", {"message": "Hi"})
    assert whole.text == "Hello, world."
    upstream.then(Script(before=[Close()]))
    whole = read_answer(f"{chatwait.base_url}/chat/streaming", {"message": "Hi"})
    assert (whole.text, len(upstream.completions)) == ("Hello, world.", 3)


def test_dying_upstream_is_asked_as_often_however_many_connections_were_kept(
    chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """Upstream: every call may cost money, so kept connections must not multiply the tries."""
    bodies = [about(upstream, Script(steps=[Token("x"), Pause(0.3), Finish(), Done()])) for _ in range(6)]
    url = f"{chatwait.base_url}/chat/streaming"
    together(*(lambda body=body: read_answer(url, body) for body in bodies))
    used = {record.connection for record in upstream.completions}
    assert len(used) >= 4, "premise: several connections are kept"
    body = about(upstream, Script(before=[Reset()]))
    whole = read_answer(url, body)
    assert whole.terminal is not None
    assert whole.terminal.json["error"]["error_code"] == "upstream_unavailable"
    assert len(asked(upstream, body)) == 3


def test_kept_connection_that_fails_late_is_asked_again_only_where_it_is_told(upstream: ScriptedUpstream) -> None:
    """Upstream: it has read the request, and dies over it a while later. What it is asked again may be paid again.

    A service of its own, as below.
    """
    upstream.then(answer(["a"]), answer(["a", "b"], gap=0.3), Script(before=[Pause(1.5), Reset()]))
    with ChatWait(**settings(upstream)) as service:
        url = f"{service.base_url}/chat/streaming"
        for _ in range(2):  # while the second one comes, the first one's connection rests
            read_answer(url, {"message": "Hi"})
        whole = read_answer(url, {"message": "Hi"})
        retries = service.log_of("upstream_retry", stream=log_name(whole.stream_id or ""))
    *kept, late, again = (record.connection for record in upstream.completions)
    assert whole.text == "Hello, world."
    assert late in kept, "premise: it was a kept one"
    assert again not in kept
    assert [line["attempt"] for line in retries] == [1]


def test_connections_are_reused_from_answer_to_answer(upstream: ScriptedUpstream) -> None:
    """Upstream: twenty answers, and after refusals too, over a few connections.

    A service of its own: where heads were slow a moment ago, connections rest for longer.
    """
    upstream.always(answer(["a", "b", "c"], gap=0.05))  # longer than a connection rests, which is 0.1 s
    with ChatWait(**settings(upstream)) as service:
        for number in range(20):
            if number % 5 == 4:
                upstream.then(error(404))
            read_answer(f"{service.base_url}/chat/streaming", {"message": "Hi"})
    assert len(upstream.completions) == 20
    assert len({record.connection for record in upstream.completions}) <= 8


def test_redirect_is_not_followed(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """Upstream: the key goes nowhere else."""
    for status in (301, 302, 307, 308):
        elsewhere = f"{upstream.base_url}/elsewhere/chat/completions"
        body = about(upstream, Script(status=status, headers={"location": elsewhere}, body=b""))
        reply = post(f"{chatwait.base_url}/chat/wait", body)
        assert (reply.status, reply.json["error_code"]) == (502, "upstream_error")
        assert len(asked(upstream, body)) == 1
    assert [record.path for record in upstream.requests] == ["/v1/chat/completions"] * 4


@pytest.mark.requirement("core risk 2")
def test_rate_limit_headers_are_logged(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """Upstream: x-ratelimit-*, and only what is harmless of them."""
    limits = {"x-ratelimit-remaining-requests": "59", "x-ratelimit-reset-tokens": "6m0s"}
    odd = {"x-ratelimit-odd": f"{CANARY} {CANARY} {CANARY}", "x-other": "1"}
    script = Script(headers={**limits, **odd}, steps=[*GOOD, Finish(), Done()])
    whole = read_answer(f"{chatwait.base_url}/chat/streaming", about(upstream, script))
    line = chatwait.wait_for_log("response_complete", stream=log_name(whole.stream_id or ""))
    assert line["rate_limits"] == limits


# What is odd, and good all the same


def chunk(content: bytes) -> bytes:
    return b'{"choices":[{"index":0,"delta":{"content":"' + content + b'"},"finish_reason":null}]}'


def raw(*pieces: bytes) -> Script:
    return Script(steps=[*(Raw(piece) for piece in pieces), Finish(), Done()])


SEPARATORS = "a\u2028b\u2029c\u0085d\x0be\x0cf"
ODD = {
    "UTF-8 cut by a segment": (
        raw(b"data: " + chunk("é🙂".encode())[:-40], chunk("é🙂".encode())[-40:] + b"\n\n"),
        "é🙂",
        1,
    ),
    "one byte a segment": (raw(*(bytes([byte]) for byte in b"data: " + chunk("é🙂".encode()) + b"\n\n")), "é🙂", 1),
    "line separators": (Script(steps=[Token(SEPARATORS), Finish(), Done()]), SEPARATORS, 1),
    "invalid UTF-8": (raw(b"data: " + chunk(b"a\xff\xfeb") + b"\n\n"), "a\ufffd\ufffdb", 1),
    "CRLF": (raw(b"data: " + chunk(b"a") + b"\r\n\r\n", b"data: " + chunk(b"b") + b"\r\n\r", b"\n"), "ab", 2),
    "CR": (raw(b"data: " + chunk(b"a") + b"\r\r"), "a", 1),
    "comments": (raw(b": hello\n\n: OPENROUTER PROCESSING\ndata: " + chunk(b"a") + b"\n\n:\n\n"), "a", 1),
    "no space": (raw(b"data:" + chunk(b"a") + b"\n\n"), "a", 1),
    "other fields": (raw(b"event: message\nid: 5\nretry: 1\ndata: " + chunk(b"a") + b"\n\n"), "a", 1),
    "a byte order mark": (raw(b"\xef\xbb\xbfdata: " + chunk(b"a") + b"\n\n"), "a", 1),
    "many in one segment": (raw((b"data: " + chunk(b"a") + b"\n\n") * 50), "a" * 50, 50),
    "empty choices": (Script(steps=[Sent({"choices": []}), *GOOD, Finish(), Done()]), "Paris", 2),
    "delta without a thing": (Script(steps=[Delta({}), *GOOD, Finish(), Done()]), "Paris", 2),
    "content null": (Script(steps=[Delta({"content": None}), *GOOD, Finish(), Done()]), "Paris", 2),
    "content empty": (Script(steps=[Delta({"content": ""}), *GOOD, Finish(), Done()]), "Paris", 2),
    "role alone": (Script(steps=[Delta({"role": "assistant"}), *GOOD, Finish(), Done()]), "Paris", 2),
    "reasoning": (Script(steps=[Delta({"reasoning_content": "hm"}), *GOOD, Finish(), Done()]), "Paris", 2),
    "a refusal": (Script(steps=[Delta({"refusal": "I cannot."}), Finish(), Done()]), "I cannot.", 1),
    "another choice": (
        Script(steps=[*GOOD, Sent({"choices": [{"index": 1, "delta": {"content": "no"}}]}), Finish(), Done()]),
        "Paris",
        2,
    ),
    "surrogate halves": (
        Script(steps=[Delta({"content": "a\ud83d"}), Delta({"content": "\ude42b"}), Finish(), Done()]),
        "a🙂b",
        2,
    ),
    "a half alone": (
        Script(steps=[Delta({"content": "\ud83d"}), Delta({"content": "b"}), Finish(), Done()]),
        "\ufffdb",
        1,
    ),
    "escapes": (raw(b"data: " + chunk(b"\\u0000\\ud83d\\ude42\\r\\n") + b"\n\n"), "\0🙂\r\n", 1),
    "end of body after the reason": (Script(steps=[*GOOD, Finish()]), "Paris", 2),
    "close after the reason": (Script(steps=[*GOOD, Finish(), Close()]), "Paris", 2),
    "[DONE] alone": (Script(steps=[*GOOD, Done()]), "Paris", 2),
    "[DONE] with spaces": (Script(steps=[*GOOD, Raw(b"data: [DONE] \n\n")]), "Paris", 2),
    "a header that is not ASCII": (
        Script(headers={"x-served-by": "Z\u00fcrich"}, steps=[*GOOD, Finish(), Done()]),
        "Paris",
        2,
    ),
    "identity without chunks": (
        Script(
            headers={"content-type": "text/event-stream"},
            body=b"data: " + chunk(b"a") + b"\n\ndata: [DONE]\n\n",
        ),
        "a",
        1,
    ),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ODD)
def test_oddity_of_the_upstream_changes_nothing(
    chatwait: ChatWait, upstream: ScriptedUpstream, name: str, mode: str
) -> None:
    """Upstream: U+2028 and its kin, cuts in a character, comments, empty chunks, halves of characters …"""
    script, text, tokens = ODD[name]
    body = about(upstream, script)
    reply, _ = ask(chatwait, mode, body)
    if isinstance(reply, Reply):
        assert (reply.status, reply.json["content"], reply.json["tokens"]) == (200, text, tokens)
    else:
        assert reply.terminal is not None
        assert (reply.terminal.event, reply.text, reply.tokens) == ("done", text, tokens)
    assert len(asked(upstream, body)) == 1


REPORTED = {"prompt_tokens": 31, "completion_tokens": 2, "total_tokens": 33}
USAGES = {
    "last": ([*GOOD, Finish(), Usage(REPORTED)], True),
    "first": ([Usage(REPORTED), *GOOD, Finish()], True),
    "twice": ([Usage({**REPORTED, "prompt_tokens": 1}), *GOOD, Finish(), Usage(REPORTED)], True),
    "with choices": ([*GOOD, Sent({"choices": [{"index": 0, "delta": {}}], "usage": REPORTED}), Finish()], True),
    "then null": ([*GOOD, Usage(REPORTED), Finish(), Sent({"choices": [], "usage": None})], True),
    "absent": ([*GOOD, Finish()], False),
    "null": ([*GOOD, Finish(), Sent({"choices": [], "usage": None})], False),
    "partial": ([*GOOD, Finish(), Usage({"prompt_tokens": 31})], False),
    "negative": ([*GOOD, Finish(), Usage({**REPORTED, "completion_tokens": -2})], False),
    "a string": ([*GOOD, Finish(), Sent({"choices": [], "usage": CANARY})], False),
    "numbers as strings": ([*GOOD, Finish(), Usage({**REPORTED, "completion_tokens": "2"})], False),
    "a list": ([*GOOD, Finish(), Sent({"choices": [], "usage": [31, 2]})], False),
}


@pytest.mark.parametrize("name", USAGES)
@pytest.mark.requirement("core FR-011", "core SC-006")
def test_usage_is_the_providers_where_it_is_one_else_counted_here(
    chatwait: ChatWait, upstream: ScriptedUpstream, name: str
) -> None:
    """Upstream: usage absent, null, first, partial, twice, negative, a string."""
    steps, from_provider = USAGES[name]
    whole = read_answer(f"{chatwait.base_url}/chat/streaming", about(upstream, Script(steps=[*steps, Done()])))
    assert whole.terminal is not None
    usage = whole.terminal.json["usage"]
    if from_provider:
        assert usage == {**REPORTED, "source": "provider"}
    else:
        assert usage["source"] == "estimated"
        assert usage["completion_tokens"] == 1  # "Paris" is one token
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


# Time


@pytest.fixture(scope="module")
def hasty(shared_upstream: ScriptedUpstream) -> Iterator[ChatWait]:
    """A service that takes three seconds of silence, eight of an answer, and a thousand characters."""
    more = {"TIMEOUT_SECONDS": 3, "MAX_GENERATION_SECONDS": 8, "MAX_ANSWER_CHARS": 1000}
    with ChatWait(**settings(shared_upstream, **more)) as chatwait:
        yield chatwait


LATE = {
    "accepts and never answers": (Script(before=[Stall()]), 0, "sent nothing", 3000),
    "headers and then silence": (Script(steps=[Stall()]), 0, "sent nothing", 3000),
    "stalls after two tokens": (Script(steps=[*GOOD, Stall()]), 2, "sent nothing", 3000),
    "stalls in a frame": (Script(steps=[*GOOD, Raw(b'data: {"cho'), Stall()]), 2, "sent nothing", 3000),
    "a token now and then for ever": (Script(steps=[Token("x", 1.5)] * 20), None, "not complete after 8", 8000),
}


@pytest.fixture(scope="module")
def belated(hasty: ChatWait, shared_upstream: ScriptedUpstream) -> dict[str, Outcome]:
    shared_upstream.reset()
    return ask_all(hasty, shared_upstream, {name: script for name, (script, *_) in LATE.items()})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", LATE)
@pytest.mark.requirement("core US2.2", "core FR-009", "tasks T020")
def test_upstream_that_takes_too_long_ends_at_its_deadline(
    hasty: ChatWait, belated: dict[str, Outcome], name: str, mode: str
) -> None:
    """`detail` says which deadline it was; the upstream's connection is closed, and it is never asked again."""
    _, tokens, detail, at_least_ms = LATE[name]
    reply, stream_id, calls = belated[f"{name} {mode}"]
    if isinstance(reply, Reply):
        assert reply.status == 504
        told, got = reply.json, reply.json["partial"]["tokens"]
    else:
        assert reply.terminal is not None
        assert reply.terminal.event == "failed"
        told, got = reply.terminal.json["error"], reply.tokens
    assert (told["error_code"], told["retryable"]) == ("upstream_timeout", True)
    assert detail in told["detail"]
    assert got == tokens if tokens is not None else 2 <= got <= 5
    line = hasty.wait_for_log("response_complete", stream=log_name(stream_id))
    assert at_least_ms <= line["duration_ms"] < at_least_ms + 10_000
    (record,) = calls
    record.wait_closed()


LIFE = {
    "reasoning": Delta({"reasoning_content": "hm"}),
    "comments": Raw(b": PROCESSING\n\n"),
    "empty deltas": Delta({}),
}


@pytest.mark.requirement("page edge 2")
def test_signs_of_life_for_longer_than_the_silence_limit_are_no_silence(
    hasty: ChatWait, upstream: ScriptedUpstream
) -> None:
    """Upstream: reasoning_content alone for longer than the limit is no text, and no silence either."""
    scripts = {
        name: Script(steps=[*(step for _ in range(4) for step in (sign, Pause(1.2))), *GOOD, Done()])
        for name, sign in LIFE.items()
    }
    for reply, _, calls in ask_all(hasty, upstream, scripts).values():
        end = reply.json if isinstance(reply, Reply) else reply.terminal and reply.terminal.json
        assert end is not None
        assert (end["status"], end["tokens"], end["characters"]) == ("complete", 2, 5)
        assert end["first_token_ms"] >= 4500
        assert len(calls) == 1


@pytest.mark.parametrize("mode", MODES)
def test_answer_without_end_is_cut_at_its_limit(hasty: ChatWait, upstream: ScriptedUpstream, mode: str) -> None:
    """Upstream: an answer without end. What fits is kept; the connection is closed."""
    body = about(upstream, Script(steps=[Token("x" * 100)] * 5000))
    reply, _ = ask(hasty, mode, body)
    if isinstance(reply, Reply):
        assert (reply.status, reply.json["error_code"]) == (502, "upstream_error")
        assert reply.json["partial"] == {"content": "x" * 1000, "tokens": 10}
    else:
        assert reply.terminal is not None
        assert reply.terminal.json["error"]["error_code"] == "upstream_error"
        assert reply.text == "x" * 1000
    (record,) = asked(upstream, body)
    record.wait_closed()


# Names and certificates


def test_upstream_whose_name_is_unknown_is_unavailable() -> None:
    """Upstream: DNS."""
    with pytest.raises(socket.gaierror):
        socket.getaddrinfo(UNKNOWN, 80)
    fault = Fault(Script(), 503, "upstream_unavailable")
    with ChatWait(OPENAI_BASE_URL=f"http://{UNKNOWN}/v1", OPENAI_API_KEY=KEY) as chatwait:
        for reply, stream_id in together(*(lambda mode=mode: ask(chatwait, mode, {"message": "Hi"}) for mode in MODES)):
            judge(fault, reply, [UNKNOWN, KEY, "gaierror", stream_id])


UNKNOWN = "no-such-host.invalid"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"), "IP:127.0.0.1")


@pytest.mark.parametrize("is_trusted", [True, False])
@pytest.mark.requirement("core assumption 1")
def test_upstream_over_tls_is_answered_only_if_its_certificate_is_trusted(
    certificate: Certificate, *, is_trusted: bool
) -> None:
    """Upstream: TLS. Nothing is sent to a server that is not who it says, the key least of all."""
    trust = {"SSL_CERT_FILE": str(certificate.public)} if is_trusted else {}
    with (
        ScriptedUpstream(certfile=str(certificate.public), keyfile=str(certificate.private)) as upstream,
        ChatWait(**settings(upstream, **trust)) as chatwait,
    ):
        context = ssl.create_default_context(cafile=certificate.public)
        with socket.create_connection(("127.0.0.1", upstream.port)) as plain:
            context.wrap_socket(plain, server_hostname="127.0.0.1").close()  # premise: it speaks TLS
        for reply, stream_id in together(*(lambda mode=mode: ask(chatwait, mode, {"message": "Hi"}) for mode in MODES)):
            if is_trusted:
                assert (reply.json["content"] if isinstance(reply, Reply) else reply.text) == "Hello, world."
                assert_streams_token_by_token(chatwait, upstream)
            else:
                secrets = [KEY, "certificate", "SSL", "127.0.0.1", stream_id]
                judge(Fault(Script(), 503, "upstream_unavailable"), reply, secrets)
        assert len(upstream.completions) == (4 if is_trusted else 0)


def assert_streams_token_by_token(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """The model goes on only when all it has sent is here, whether records hold one token, many, or a half."""
    texts = [f"{number} é🙂" for number in range(120)]  # 16 KiB are the most that a record holds
    one, many = Token("one"), Raw(b"".join(b"data: " + chunk(text.encode()) + b"\n\n" for text in texts))
    cut = b"data: " + chunk("cut🙂".encode()) + b"\n\n"
    gates = {1: "one", 121: "many", 122: "cut"}
    steps = [one, Gate("one"), many, Gate("many"), Raw(cut[:-8]), Pause(0.02), Raw(cut[-8:]), Gate("cut")]
    body, got = about(upstream, Script(steps=[*steps, Finish(), Done()])), Answer()
    with open_stream(f"{chatwait.base_url}/chat/streaming", json=body) as connection:
        got.begin_connection(connection.headers)
        for event in connection.events():
            got.add(event)
            if event.event == "token" and got.tokens in gates:
                upstream.open(gates[got.tokens])
    assert got.verify().text == "one" + "".join(texts) + "cut🙂"
