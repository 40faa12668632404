"""What is pushed to a reader while it waits: every byte, in order, whoever else reads, is slow, or is gone."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from load.events import EventParser
from tests.harness.reader import Answer, open_stream, read_answer
from tests.harness.server import ChatWait
from tests.harness.upstream import Done, Finish, Gate, Paced, Raw, Script, ScriptedUpstream, Token, encode_json
from tests.live.rawhttp import JSON, connect, sized
from tests.live.steps import about, begin, log_name, poll


def url_of(chatwait: ChatWait, stream_id: str) -> str:
    return f"{chatwait.base_url}/chat/streaming/{stream_id}"


def wait_readers(chatwait: ChatWait, stream_id: str, count: int) -> None:
    name = log_name(stream_id)
    poll(lambda: len(chatwait.log_of("reader_attached", stream=name)) >= count, seconds=5, what=f"{count} readers")


def assert_untroubled(chatwait: ChatWait, stream_id: str) -> None:
    """No line of this stream, nor of gunicorn, tells of trouble."""
    name = log_name(stream_id)
    chatwait.wait_for_log("response_complete", stream=name, status="complete")
    lines = list(chatwait.log)
    begun = next(place for place, line in enumerate(lines) if line.get("stream") == name)
    troubles = [
        line
        for line in lines[begun:]
        if line["level"] not in ("DEBUG", "INFO")
        and (line.get("stream") == name or line["event"] == "log" or "exception" in line)
    ]
    assert troubles == []
    assert chatwait.stderr_lines == []


def test_reader_whose_connection_is_full_gets_every_byte_while_others_stream(
    chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """It reads nothing until all is there; the kernel takes a part, and a part of a frame."""
    texts = [f"{number:04}é" * (number % 50 + 1) for number in range(1500)]
    body = about(upstream, Script(steps=[Token("first"), Gate("all there"), Paced(texts, 0.0005), Finish(), Done()]))
    other = about(upstream, Script(steps=[Paced(["word "] * 300, 0.002), Finish(), Done()]))
    stream_id = begin(chatwait.base_url, body)
    upstream.wait_reached("all there")
    with ThreadPoolExecutor(2) as pool, open_stream(url_of(chatwait, stream_id), rcvbuf=2048) as slow:
        got = Answer(stream_id=stream_id)
        quick = pool.submit(read_answer, url_of(chatwait, stream_id))
        beside = pool.submit(read_answer, f"{chatwait.base_url}/chat/streaming", other)
        wait_readers(chatwait, stream_id, 3)
        upstream.open("all there")
        assert quick.result(20).text == "first" + "".join(texts)
        chatwait.wait_for_log("reader_left", stream=log_name(stream_id), sequence=1501)
        for event in slow.events():
            got.add(event)
        assert beside.result(20).tokens == 300
    assert got.verify().text == "first" + "".join(texts)
    assert_untroubled(chatwait, stream_id)


def test_reader_of_http_1_0_gets_the_bare_events_token_by_token(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    words = ["Par", "is\n", "é😀", "."]
    gated = [step for at, word in enumerate(words) for step in (Token(word), Gate(f"arrived {at}"))]
    body = about(upstream, Script(steps=[*gated, Finish(), Done()]))
    parser, got, head, bare = EventParser(), Answer(), b"", b""
    with connect(chatwait.port) as sock:
        sock.sendall(sized("POST /chat/streaming HTTP/1.0", JSON, body=json.dumps(body).encode()))
        while b"\r\n\r\n" not in head:
            head += sock.recv(1)
        assert b"transfer-encoding" not in head.lower()
        while piece := sock.recv(65_536):
            bare += piece
            for event in parser.feed(piece):
                got.add(event)
                if event.event == "token":
                    assert (event.json["count"], event.json["content"]) == (1, words[got.tokens - 1])
                    upstream.open(f"arrived {got.tokens - 1}")
    assert got.verify().text == "Paris\né😀."
    assert bare.startswith(b"retry: ")
    assert bare.endswith(b"\n\n")


@pytest.mark.parametrize("how", ["reset", "closed"])
def test_reader_that_vanishes_while_tokens_are_pushed_harms_nobody(
    chatwait: ChatWait, upstream: ScriptedUpstream, how: str
) -> None:
    texts = [f"{number} " for number in range(400)]
    body = about(upstream, Script(steps=[Token("first "), Gate("go"), Paced(texts, 0.001), Finish(), Done()]))
    stream_id = begin(chatwait.base_url, body)
    upstream.wait_reached("go")
    with ThreadPoolExecutor(2) as pool:
        others = [pool.submit(read_answer, url_of(chatwait, stream_id)) for _ in range(2)]
        with open_stream(url_of(chatwait, stream_id)) as leaving:
            wait_readers(chatwait, stream_id, 4)
            upstream.open("go")
            for event in leaving.events():
                if event.event == "token" and event.json["sequence"] > 50:
                    break
            if how == "reset":
                leaving.reset()
        for other in others:
            got = other.result(20)
            assert (got.tokens, got.text) == (401, "first " + "".join(texts))
    assert_untroubled(chatwait, stream_id)
    name = log_name(stream_id)
    poll(lambda: len(chatwait.log_of("reader_left", stream=name)) == 4, seconds=5, what="all to have left")
    assert any(50 < line["sequence"] < 401 for line in chatwait.log_of("reader_left", stream=name))


def event_of(text: str) -> bytes:
    content: dict[str, Any] = {"choices": [{"index": 0, "delta": {"content": text}}]}
    return b"data: " + encode_json(content) + b"\n\n"


def test_tokens_that_the_model_sends_all_at_once_are_whole_and_there_at_once(
    chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """Three hundred in one piece; more than one read of the socket, more than one frame; then half a token."""
    texts = [f"{number}é " * 20 for number in range(300)]
    half = event_of("cut🙂")
    steps = [Raw(b"".join(map(event_of, texts))), Gate("arrived"), Raw(half[:-6]), Gate("half"), Raw(half[-6:])]
    body = about(upstream, Script(steps=[Token("a"), Gate("go"), *steps, Finish(), Done()]))
    got = Answer()
    with open_stream(f"{chatwait.base_url}/chat/streaming", json=body) as connection:
        got.begin_connection(connection.headers)
        for event in connection.events():
            got.add(event)
            if got.tokens == 1:
                upstream.open("go")
            if got.tokens == 301:
                upstream.open("arrived")
                upstream.wait_reached("half")
                upstream.open("half")
    assert got.verify().text == "a" + "".join(texts) + "cut🙂"
    assert got.tokens == 302
    chunks = chatwait.wait_for_log("chunks_sent", stream=log_name(str(got.stream_id)), last=302)
    assert chunks["bytes"][-1] == len("cut🙂".encode())


@pytest.mark.long
def test_heartbeats_come_on_a_stream_that_falls_silent_after_tokens_were_pushed(
    chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    steps = [Token("a"), Gate("one"), Token("b"), Gate("two"), Token("c"), Finish(), Done()]
    body = about(upstream, Script(steps=steps))
    got, kinds = Answer(), []
    with open_stream(f"{chatwait.base_url}/chat/streaming", json=body) as connection:
        got.begin_connection(connection.headers)
        token_at = time.monotonic()
        for event in connection.events():
            got.add(event)
            kinds.append(event.event)
            if event.event == "token":
                token_at = event.received_at
            if event.event == "ping" and got.tokens:
                assert event.json == {"phase": "generating", "tokens": got.tokens}
                assert event.received_at - token_at > 0.9, "a heartbeat is 1 s, counted from the last frame"
                upstream.open({1: "one", 2: "two"}[got.tokens])
    assert got.verify().text == "abc"
    assert [kind for kind in kinds if kind != "start"] == ["token", "ping", "token", "ping", "token", "done"]
