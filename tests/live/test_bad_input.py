"""Bad input, row by row: each refused by name or by the server, starting nothing, and not to be found in the log.

Plain rows (wrong JSON, wrong types, wrong lengths) are in test_requests; here is what is stranger.
"""

from __future__ import annotations

import pytest

from tests.harness.reader import KeptAlive
from tests.harness.server import ChatWait
from tests.harness.upstream import ScriptedUpstream
from tests.live.bad_input import CANARY, GOOD, HEALTH, ROWS, TAKEN, WAIT
from tests.live.rawhttp import CHUNKED, HOST, JSON, assert_ours, assert_refused, chunks, raw, sized, statuses, talk


@pytest.mark.parametrize("name", ROWS)
def test_input_that_is_bad_is_refused_starts_nothing_and_leaves_no_trace(
    chatwait: ChatWait, upstream: ScriptedUpstream, name: str
) -> None:
    """Bad input. What follows on the connection gets an answer of its own, or the connection ends."""
    row = ROWS[name]
    method = row.data.split(b" ", 1)[0].decode("latin-1")
    started = len(chatwait.log_of("stream_started"))
    with KeptAlive(HOST, chatwait.port) as kept:
        kept.send(row.data)
        reply = kept.read_reply(method)
        if row.code is None:
            assert (reply.status, "x-correlation-id" in reply.headers) == (row.status, False), reply.body
        else:
            assert_refused(reply, row.status, row.code)
        assert "location" not in reply.headers
        if row.closes:
            kept.send(HEALTH)
            assert kept.closed_by_server()
        else:
            assert CANARY.encode() not in reply.body or row.code == "invalid_request"  # which names the field
            assert kept.request("GET", "/health").json["status"] == "healthy"
    if row.code is not None:
        chatwait.wait_for_log("error_occurred", correlation_id=reply.headers["x-correlation-id"])
    assert upstream.completions == []
    assert len(chatwait.log_of("stream_started")) == started
    assert CANARY not in chatwait.output
    assert not chatwait.stderr_lines


# Rows with a story of their own


def test_length_that_is_too_short_makes_no_second_request_of_the_rest(
    chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """Bad input: Content-Length lies. What lies beyond is a request of its own, wrong here, and the end."""
    data = raw(WAIT, JSON, "Content-Length: 2", body=b"{}" + GOOD)
    assert statuses(talk(chatwait.port, data + HEALTH)) == [400, 400]
    assert upstream.completions == []


def test_length_that_is_too_long_swallows_what_follows(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """Bad input: Content-Length lies. The next request is body, and is not obeyed."""
    second = sized(WAIT, JSON, body=GOOD)
    data = raw(WAIT, JSON, f"Content-Length: {len(GOOD) + len(second)}", body=GOOD + second)
    received = talk(chatwait.port, data)
    assert statuses(received) == [400]
    assert b"invalid_json" in received
    assert upstream.completions == []


def test_chunks_of_many_shapes_that_are_good_are_taken(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """Bad input: the good side. Extensions, leading zeros, capitals, trailers, a JSON writer's small pieces."""
    size = b"%X" % len(GOOD)
    shapes = [
        b"000" + size + b"\r\n" + GOOD + b"\r\n0\r\n\r\n",
        size + b';name=value;x="y z"\r\n' + GOOD + b"\r\n0\r\n\r\n",
        size.lower() + b"\r\n" + GOOD + b"\r\n000\r\nX-Checksum: 5\r\n\r\n",
        chunks(*(bytes([byte]) for byte in GOOD)),
        chunks(*[b" "] * 1900, GOOD),
        chunks(GOOD[:-1], b" " * 500_000, *[b" "] * 3000, GOOD[-1:]),
    ]
    with KeptAlive(HOST, chatwait.port) as kept:
        for shape in shapes:
            kept.send(raw(WAIT, JSON, CHUNKED, body=shape))
            assert assert_ours(kept.read_reply("POST")).status == 200
    assert len(upstream.completions) == len(shapes)


def test_good_body_in_so_many_chunks_that_they_cost_more_than_it_does_is_refused(
    chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """Bad input: the bound itself. 100 times what they cost the client is `test_amplification`'s to measure."""
    for blanks in ([b" "] * 2100, [b" " * 127] * 3000):
        received = talk(chatwait.port, raw(WAIT, JSON, CHUNKED, "Connection: close", body=chunks(*blanks, GOOD)))
        assert statuses(received) == [400]
        assert b"too many small chunks" in received
        assert b'"invalid_request"' in received, "which says what to do; the JSON may be good"
    assert upstream.completions == []


def test_body_of_as_many_parts_as_any_request_needs_is_taken(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """Bad input: the good side of "too many values"; texts may hold any number of brackets, commas and quotes."""
    turn = {"role": "user", "content": '[{","}]\\' * 30, "timestamp": "2026-11-21T09:00:00Z"}
    body = {"message": '["a", {"b": ""}], ' * 400, "context": [turn] * 100, "max_tokens": 5, "temperature": 1.5}
    with KeptAlive(HOST, chatwait.port) as kept:
        reply = kept.request("POST", "/chat/wait", json=body)
    assert reply.status == 200, reply.body
    assert upstream.completions[-1].json["messages"][-1]["content"] == body["message"]


def test_requests_in_one_piece_are_answered_in_order_each_once(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """Bad input: pipelining. Good and bad ones, with bodies, in one packet."""
    data = b"".join(
        [
            HEALTH,
            sized(WAIT, JSON, body=b"{"),
            sized(WAIT, JSON, body=GOOD),
            raw(WAIT, JSON, CHUNKED, body=chunks(GOOD)),
            raw("GET /nowhere HTTP/1.1"),
            raw("HEAD /health HTTP/1.1"),
            raw("DELETE /health HTTP/1.1"),
            sized("POST /nowhere HTTP/1.1", body=HEALTH),
            raw("OPTIONS /chat HTTP/1.1", "Connection: close"),
            HEALTH,
        ]
    )
    assert statuses(talk(chatwait.port, data)) == [200, 400, 200, 200, 404, 200, 405, 404, 204]
    assert len(upstream.completions) == 2


@pytest.mark.parametrize("name", TAKEN)
def test_input_that_is_odd_but_right_is_answered(chatwait: ChatWait, name: str) -> None:
    """Bad input: the good side. Whole answers, with 200: a range or a condition does not change them."""
    data, closes = TAKEN[name]
    with KeptAlive(HOST, chatwait.port) as kept:
        kept.send(data)
        assert assert_ours(kept.read_reply("GET")).json["status"] == "healthy"
        if closes:
            assert kept.closed_by_server()
        else:
            assert kept.request("GET", "/health").json["status"] == "healthy"
