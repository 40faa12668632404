"""The judge of all event streams: what is right passes, and each rule broken once is found."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from tests.harness.contract_check import Run
from tests.harness.tap import Tap
from tests.unit.exchanges import ID, OTHER, STREAM, Change, hear, of_events, totals


@pytest.fixture
def run() -> Run:
    return Run()


def frame(event: str, data: Change | str, number: int | None = None, stream_id: str = ID) -> str:
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
    return f"event: {event}\ndata: {text}\n" + ("" if number is None else f"id: {stream_id}.{number}\n") + "\n"


GENERATION = str(uuid.uuid4())
START_DATA: Change = {
    "stream_id": ID,
    "correlation_id": GENERATION,
    "model": "gpt-4o-mini",
    "created": "2026-11-21T09:00:00.000Z",
    "heartbeat_seconds": 10,
}
START = "retry: 1000\n" + frame("start", START_DATA, 0)
WAITING = frame("ping", {"phase": "waiting", "tokens": 0})
AGAIN = {"phase": "generating", "tokens": 2}


def token(sequence: int, content: str, count: int = 1, number: int | None = None, **changes: Any) -> str:
    data = {"sequence": sequence, "count": count, "content": content, "is_final": False, **changes}
    return frame("token", data, sequence if number is None else number)


def done(event: str = "done", number: int = 3, **changes: Any) -> str:
    data = {"sequence": 3, "is_final": True} | totals() | {"correlation_id": GENERATION}
    return frame(event, {name: changes.get(name, value) for name, value in {**data, **changes}.items()}, number)


def away(tokens: object, number: int | None = None) -> str:
    return frame("unresumable", {"tokens": tokens}, number)


def back(tokens: object, number: int | None = None) -> str:
    return frame("resumable", {"tokens": tokens}, number)


PING = frame("ping", AGAIN)
TOKENS = token(1, "Rome") + token(2, ".")
GOOD = START + WAITING + TOKENS + done()


def hear_stream(run: Run, body: str, *, asked: str = "", **headers: Any) -> list[str]:
    return hear(run, "GET", STREAM, 200, of_events(**headers), body.encode("latin-1"), asked=asked)


def test_stream_that_keeps_the_contract_passes_and_its_events_are_counted(run: Run) -> None:
    assert hear_stream(run, GOOD) == []
    assert hear_stream(run, frame("ping", AGAIN, 1) + token(2, ".") + done(), asked=f"Last-Event-ID: {ID}.1\r\n") == []
    assert hear_stream(run, START + token(2, "Rome.", 2) + done(), asked=f"Last-Event-ID: {ID}.0\r\n") == []

    assert run.events == {"start": 2, "ping": 2, "token": 4, "done": 3}
    assert run.seen == {("GET /chat/streaming/{stream_id}", "200"): 3}


@pytest.mark.parametrize(
    "body",
    [
        START + away(0) + TOKENS + back(2) + done(),
        START + token(1, "Rome") + away(1) + back(2) + token(2, ".") + away(2) + PING + back(2) + done(),
        START + TOKENS + away(1) + done(),
        START + away(0) + back(0) + away(0) + back(0) + TOKENS + done(),
    ],
)
def test_stream_whose_storage_was_away_passes(run: Run, body: str) -> None:
    assert hear_stream(run, body) == []
    assert run.events["unresumable"] == body.count("event: unresumable") > 0


def test_stream_resumed_while_the_storage_is_away_passes(run: Run) -> None:
    body = frame("ping", AGAIN, 1) + away(0) + token(2, ".") + back(2) + done()
    assert hear_stream(run, body, asked=f"Last-Event-ID: {ID}.1\r\n") == []


def test_end_that_may_not_be_stored_is_that_connections_own(run: Run) -> None:
    assert hear_stream(run, START + TOKENS + away(1) + done()) == []
    assert hear_stream(run, START + TOKENS + away(1) + done(duration_ms=1)) == []
    assert hear_stream(run, START + TOKENS + done(duration_ms=2)) == []

    again = hear_stream(run, START + TOKENS + away(1) + back(2) + done(duration_ms=1))
    assert "another reader of this stream got another its terminal event" in again[0]


@pytest.mark.parametrize("body", [START, START + TOKENS, START + away(0) + token(1, "Rome")])
def test_stream_that_its_process_hands_over_may_end_between_two_frames(run: Run, body: str) -> None:
    run.handing_over = True
    assert hear_stream(run, body) == []
    assert "ends in the middle of a frame" in hear_stream(run, body + "event: tok")[0]
    assert "ends cleanly without" in hear_stream(run, "")[0]

    run.handing_over = False
    assert "ends cleanly without" in hear_stream(run, body)[0]


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({"Cache_Control": "no-store"}, "Cache-Control is not"),
        ({"X_Accel_Buffering": None}, "X-Accel-Buffering is not"),
        ({"Content_Type": "text/event-stream"}, "is not one of"),
        (
            {"X_Stream_Id": OTHER, "Location": f"/v1/chat/streaming/{OTHER}"},
            "X-Stream-Id is not the stream of the path",
        ),
    ],
)
def test_wrong_header_of_a_stream_is_found(run: Run, headers: Change, found: str) -> None:
    assert found in hear_stream(run, GOOD, **headers)[0]


@pytest.mark.parametrize(
    ("body", "found"),
    [
        pytest.param("", "ends cleanly without a terminal event", id="nothing"),
        pytest.param(START + TOKENS, "ends cleanly without a terminal event", id="no terminal"),
        pytest.param(GOOD + "event: tok", "ends in the middle of a frame", id="half a frame"),
        pytest.param(GOOD + WAITING, "ping: something follows the terminal event", id="after the end"),
        pytest.param(GOOD + done(), "done: something follows the terminal event", id="two ends"),
        pytest.param(GOOD.replace("\n", "\r\n"), "ends in the middle of a frame", id="CRLF"),
        pytest.param(GOOD.replace("event: token", "event:token"), "not a frame", id="no space"),
        pytest.param(GOOD.replace("Rome", "R\xf3me", 1), "not a frame", id="not ASCII"),
        pytest.param(START.replace("retry: 1000\n", "") + TOKENS + done(), "retry belongs to start", id="no retry"),
        pytest.param(START + "retry: 1000\n" + TOKENS + done(), "retry belongs to start", id="retry of a token"),
        pytest.param(away(0) + START, "begins with unresumable, not start", id="unresumable first"),
        pytest.param(START + TOKENS + back(2), "resumable comes out of turn", id="resumable first"),
        pytest.param(START + away(0) + TOKENS + away(0), "unresumable comes out of turn", id="unresumable twice"),
        pytest.param(START + away(0) + back(0) + back(0), "resumable comes out of turn", id="resumable twice"),
        pytest.param(START + away(0, 0), "unresumable has an id", id="id of unresumable"),
        pytest.param(START + away(0) + back(0, 1), "resumable has an id", id="id of resumable"),
        pytest.param(START + frame("unresumable", {}), "not of its schema", id="unresumable without tokens"),
        pytest.param(START + away(-1), "not of its schema", id="unresumable below zero"),
        pytest.param(START + away(0) + back("0"), "not of its schema", id="resumable with a text"),
        pytest.param(START + frame("unresumable", {"tokens": 0, "at": 0}), "not of its schema", id="a key more"),
        pytest.param(START + away(0) + TOKENS + back(1), "resumable says fewer tokens than have come: 1, after .2",
                     id="resumable behind"),
        pytest.param(START + TOKENS + away(3) + done(), "3 were said to be stored", id="more stored than there is"),
        pytest.param(GOOD + away(2), "unresumable: something follows the terminal", id="unresumable after the end"),
        pytest.param(START + frame("error", {}) + TOKENS + done(), "the contract has no event", id="unknown event"),
        pytest.param(START + frame("ping", '{"phase"'), "is not JSON", id="no JSON"),
        pytest.param(START + frame("ping", '{"phase":"waiting","tokens":0,"tokens":0}'), "stands twice", id="twice"),
        pytest.param(START + frame("ping", '{"tokens":0,"phase":"waiting"}'), "in another order", id="order"),
        pytest.param(START + frame("ping", {"phase": "a", "tokens": 0}), "not of its schema", id="phase"),
        pytest.param(START + token(1, "R", surprise=1), "not of its schema", id="unknown key"),
        pytest.param(START + token(1, ""), "a token has no count or no content", id="empty token"),
        pytest.param(START + token(1, "\ud800"), "half a surrogate pair", id="lone surrogate"),
        pytest.param(START + frame("ping", {"phase": "waiting", "tokens": 0}, 0), "id of a ping is", id="id of a ping"),
        pytest.param(START + frame("ping", {"phase": "generating", "tokens": 0}), "says generating", id="too soon"),
        pytest.param(START + TOKENS + WAITING, "a ping says fewer tokens than have come", id="ping behind"),
        pytest.param(START + frame("token", json.loads('{"sequence":1,"count":1,"content":"a","is_final":false}')),
                     "token: the id of a frame is not <stream_id>.<sequence>: got None", id="no id"),
        pytest.param(START + token(1, "Rome", number=2), "token: the id of a frame is not", id="id and sequence"),
        pytest.param(START + token(2, "Rome"), "after .0 comes .2 with a count of 1", id="a hole"),
        pytest.param(START + TOKENS + token(2, "."), "token .2 does not rise", id="a repetition"),
        pytest.param(START + token(2, "a" * 9000, 2), "a frame of 2 chunks has", id="too long"),
        pytest.param(TOKENS + done(), "begins with token, not start", id="no start"),
        pytest.param(frame("ping", AGAIN, 0) + TOKENS + done(), "begins with ping, not start", id="ping first"),
        pytest.param(START + START, "start .0 does not rise", id="two starts"),
        pytest.param(START.replace(".0\n", ".1\n"), "start: the id of a frame is not", id="start elsewhere"),
        pytest.param(GOOD.replace(f'"stream_id":"{ID}"', f'"stream_id":"{OTHER}"'), "stream has another", id="foreign"),
        pytest.param(GOOD.replace(f"id: {ID}.1", f"id: {OTHER}.1"), "token: the stream has", id="id of another"),
        pytest.param(START + TOKENS + done(tokens=3), "the number of tokens is wrong: got 3, wanted 2", id="tokens"),
        pytest.param(START + TOKENS + done(sequence=4, number=4), "the terminal event is wrong: got 4", id="sequence"),
        pytest.param(START + TOKENS + done(characters=4), "characters is wrong: got 4, wanted 5", id="characters"),
        pytest.param(START + TOKENS + done(sha256="0" * 64), "the SHA-256 is wrong", id="sha256"),
        pytest.param(START + TOKENS + done(status="failed"), "not of its schema", id="status"),
        pytest.param(START + TOKENS + done("cancelled", status="cancelled"), "not of its schema", id="no reason"),
        pytest.param(START + TOKENS + done(correlation_id=str(uuid.uuid4())), "is not that of start", id="correlation"),
    ],
)  # fmt: skip
def test_wrong_stream_is_found(run: Run, body: str, found: str) -> None:
    problems = hear_stream(run, body)

    assert len(problems) == 1 and found in problems[0]


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (START + TOKENS + done(), "begins with start, not ping"),
        (frame("ping", AGAIN) + token(2, ".") + done(), "the id of a ping is wrong: got None, wanted 1"),
        (frame("ping", AGAIN, 2) + token(2, ".") + done(), "the id of a ping is wrong: got 2, wanted 1"),
        (frame("ping", AGAIN, 1) + TOKENS + done(), "token .1 does not rise"),
        (frame("ping", AGAIN, 1) + token(3, "."), "after .1 comes .3"),
    ],
)
@pytest.mark.parametrize("where", ["header", "query"])
def test_wrong_resume_is_found(run: Run, body: str, found: str, where: str) -> None:
    headers = of_events()
    if where == "header":
        problems = hear(
            run,
            "GET",
            f"{STREAM}?last_event_id={ID}.0",
            200,
            headers,
            body.encode(),
            asked=f"Last-Event-ID: {ID}.1\r\n",
        )
    else:
        problems = hear(run, "GET", f"{STREAM}?lastEventId={ID}.1", 200, headers, body.encode())

    assert len(problems) == 1 and found in problems[0]


@pytest.mark.parametrize("client_closes", [True, False])
def test_cut_stream_is_judged_as_far_as_it_came(run: Run, client_closes: bool) -> None:
    for body, found in ((GOOD[:-30], ""), (START + token(2, "a") + "event", "after .0 comes .2")):
        tap = Tap(run)
        raw = "".join(f"{name}: {value}\r\n" for name, value in of_events().items())
        tap.sent(f"GET {STREAM} HTTP/1.1\r\n\r\n".encode())
        tap.received(f"HTTP/1.1 200 OK\r\n{raw}Transfer-Encoding: chunked\r\n\r\n{len(body) + 9:x}\r\n{body}".encode())
        tap.closed() if client_closes else tap.received(b"")
        problems = run.take_problems()
        assert (found in problems[0]) if found else problems == []

    assert run.cut == 1


def test_readers_that_get_different_starts_or_ends_are_found(run: Run) -> None:
    assert hear_stream(run, GOOD) == []

    other = START.replace('heartbeat_seconds":10', 'heartbeat_seconds":11')
    assert "another reader of this stream got another start" in hear_stream(run, other + TOKENS + done())[0]
    ending = hear_stream(run, START + TOKENS + done(duration_ms=1))[0]
    assert "another reader of this stream got another its terminal event" in ending


def test_id_longer_than_a_cursor_may_be_is_found(run: Run) -> None:
    long = "cw_" + "a" * 125
    where = f"/v1/chat/streaming/{long}"
    headers = of_events(X_Stream_Id=long, Location=where)
    body = START.replace(ID, long)

    assert "the id of start is longer than 128 bytes" in hear(run, "GET", where, 200, headers, body.encode())[0]


def test_error_of_another_correlation_id_is_found(run: Run) -> None:
    error = {"error_code": "upstream_timeout", "message": "a", "detail": "b", "action": "c", "origin": "upstream"}
    error |= {"retryable": True, "correlation_id": GENERATION}
    failed = {"status": "failed", "finish_reason": None, "error": error}
    assert hear_stream(run, START + TOKENS + done("failed", **failed)) == []

    failed["error"] = error | {"correlation_id": str(uuid.uuid4())}
    problems = hear_stream(Run(), START + TOKENS + done("failed", **failed))
    assert "correlation_id in the error is another one" in problems[0]
