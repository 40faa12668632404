"""Requests that one connection carries one after the other: each gets its own answer, or none.

A proxy in front sends the requests of many people over one connection. Bytes of a body that are taken for a request,
or an answer that is longer than it says, would give one of them another's answer.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import socket
from dataclasses import dataclass

import pytest

from tests.harness.http1 import RECV_BYTES
from tests.harness.reader import post
from tests.harness.server import ChatWait
from tests.harness.upstream import ScriptedUpstream, answer
from tests.live.rawhttp import CHUNKED, JSON, chunks, connect, raw, sized
from tests.live.steps import about

ANSWER = re.compile(rb"HTTP/1\.1 ([0-9]{3}) ")


@dataclass
class Stream:
    """One that has ended, and what it says."""

    stream_id: str
    text: str

    def asked(self, *fields: str) -> bytes:
        return raw(f"GET /chat/wait/{self.stream_id} HTTP/1.1", *fields)


def ended(chatwait: ChatWait, upstream: ScriptedUpstream) -> Stream:
    text = f"only for {secrets.token_hex(8)}"
    reply = post(f"{chatwait.base_url}/chat/wait", about(upstream, answer([text])))
    assert reply.json["content"] == text
    return Stream(reply.headers["x-stream-id"], text)


def everything(sock: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionError):
        while piece := sock.recv(RECV_BYTES):
            received += piece
    return received


LENGTH = "Content-Length: {}"
FIRST = {
    "a body on a GET": lambda hidden: sized("GET /health HTTP/1.1", body=hidden),
    "a body on a GET of a stream": lambda hidden: sized("GET /chat/streaming/cw_x HTTP/1.1", body=hidden),
    "a body on a HEAD": lambda hidden: sized("HEAD /health HTTP/1.1", body=hidden),
    "a body on OPTIONS": lambda hidden: sized("OPTIONS /chat/wait HTTP/1.1", body=hidden),
    "a body on a DELETE": lambda hidden: sized("DELETE /chat/wait/cw_x HTTP/1.1", body=hidden),
    "a body of no route": lambda hidden: sized("POST /nothing HTTP/1.1", JSON, body=hidden),
    "a body of another type": lambda hidden: sized("POST /chat/wait HTTP/1.1", "Content-Type: text/plain", body=hidden),
    "a body that is packed": lambda hidden: sized(
        "POST /chat/wait HTTP/1.1", JSON, "Content-Encoding: gzip", body=hidden
    ),
    "a body that is no JSON": lambda hidden: sized("POST /chat/wait HTTP/1.1", JSON, body=hidden),
    "a body that is too large": lambda hidden: sized("POST /chat/wait HTTP/1.1", JSON, body=b" " * 3_000_000 + hidden),
    "a body that is never read whole": lambda hidden: sized(
        "POST /chat/wait HTTP/1.1", JSON, body=b" " * 20_000_000 + hidden
    ),
    "a body of a host that is not ours": lambda hidden: raw(
        "POST /chat/wait HTTP/1.1", JSON, LENGTH.format(len(hidden)), body=hidden, host="other.example"
    ),
    "a body of another origin": lambda hidden: sized(
        "POST /chat/wait HTTP/1.1", JSON, "Origin: https://other.example", body=hidden
    ),
    "a body with a cursor": lambda hidden: sized(
        "POST /chat/wait HTTP/1.1", JSON, "Last-Event-ID: cw_x.1", body=hidden
    ),
    "a body that waits for a word": lambda hidden: sized(
        "POST /chat/wait HTTP/1.1", JSON, "Expect: 100-continue", body=hidden
    ),
    "chunks": lambda hidden: raw("POST /nothing HTTP/1.1", CHUNKED, body=chunks(hidden)),
    "chunks and a trailer": lambda hidden: raw(
        "POST /nothing HTTP/1.1", CHUNKED, body=chunks(hidden)[:-2] + b"A: b\r\n\r\n"
    ),
    "chunks, and a length": lambda hidden: raw(
        "POST /nothing HTTP/1.1", CHUNKED, "Content-Length: 5", body=chunks(b"") + hidden
    ),
    "a length, and chunks": lambda hidden: raw(
        "POST /nothing HTTP/1.1", LENGTH.format(len(hidden)), CHUNKED, body=hidden
    ),
    "two lengths": lambda hidden: raw(
        "POST /nothing HTTP/1.1", "Content-Length: 0", LENGTH.format(len(hidden)), body=hidden
    ),
    "a length with a sign": lambda hidden: raw(
        "POST /nothing HTTP/1.1", f"Content-Length: +{len(hidden)}", body=hidden
    ),
    "an encoding nobody knows": lambda hidden: raw(
        "POST /nothing HTTP/1.1", "Transfer-Encoding: xchunked", LENGTH.format(len(hidden)), body=hidden
    ),
    "an encoding with a tab": lambda hidden: raw(
        "POST /nothing HTTP/1.1", "Transfer-Encoding:\tchunked", LENGTH.format(len(hidden)), body=hidden
    ),
    "an encoding behind a space": lambda hidden: raw(
        "POST /nothing HTTP/1.1", "Transfer-Encoding : chunked", LENGTH.format(len(hidden)), body=hidden
    ),
    "a size of a chunk with more": lambda hidden: raw(
        "POST /nothing HTTP/1.1", CHUNKED, body=b"%x;a\r\n%b\r\n0\r\n\r\n" % (len(hidden), hidden)
    ),
    "a chunk shorter than it says": lambda hidden: raw("POST /nothing HTTP/1.1", CHUNKED, body=b"2\r\nabc" + hidden),
    "chunks of nonsense": lambda hidden: raw("POST /nothing HTTP/1.1", CHUNKED, body=b"zz\r\n" + hidden),
}
"""A request with another one hidden in what is its body, or could be."""


@pytest.mark.parametrize("kind", FIRST)
def test_request_behind_an_odd_one_gets_its_own_answer_or_none(
    chatwait: ChatWait, upstream: ScriptedUpstream, kind: str
) -> None:
    mine, theirs = ended(chatwait, upstream), ended(chatwait, upstream)
    odd = FIRST[kind](theirs.asked())
    with connect(chatwait.port) as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(odd + mine.asked("Connection: close"))
        received = everything(sock)

    assert theirs.text.encode() not in received, "what stood in a body was taken for a request"
    told = [int(status) for status in ANSWER.findall(received)]
    told = told[1:] if told[:1] == [100] else told
    if mine.text.encode() in received:
        assert (len(told), told[-1]) == (2, 200), received[:2000]
    else:
        assert len(told) <= 1, received[:2000]


def test_requests_sent_without_waiting_are_answered_in_order(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    streams = [ended(chatwait, upstream) for _ in range(4)]
    between = [
        raw("HEAD /health HTTP/1.1"),
        raw("OPTIONS /chat/wait HTTP/1.1"),
        raw("GET /nothing HTTP/1.1"),
        raw(f"HEAD /chat/wait/{streams[0].stream_id} HTTP/1.1"),
    ]
    sent = b"".join(request + stream.asked() for request, stream in zip(between, streams, strict=True))
    with connect(chatwait.port) as sock:
        sock.sendall(sent + raw("GET /health HTTP/1.1", "Connection: close"))
        received = everything(sock)

    assert re.findall(r'"content": "([^"]*)"', received.decode()) == [stream.text for stream in streams]
    assert [int(status) for status in ANSWER.findall(received)] == [200, 200, 204, 200, 404, 200, 200, 200, 200]
