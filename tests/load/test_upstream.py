"""The mock upstream sends what it was asked for, when it should, and says when."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator

import pytest

from load.events import EventParser
from load.upstream import MODEL, STAMP, WORDS
from tests.harness.http1 import Dropped, KeptAlive
from tests.harness.reader import get, post
from tests.load.suite import mock_upstream


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    with mock_upstream(tokens=7, gap_ms=20) as base_url:
        yield base_url


def contents(body: bytes) -> list[str]:
    """Read the texts of a stream, which must end as OpenAI's do."""
    data = [event.data for event in EventParser().feed(body)]
    assert data[-1] == "[DONE]"
    chunks = [json.loads(each) for each in data[:-1]]
    assert chunks[-1]["usage"]["completion_tokens"] == len(chunks) - 3
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    return [chunk["choices"][0]["delta"]["content"] for chunk in chunks[1:-2]]


def test_answer_has_as_many_tokens_as_were_asked_for_each_with_its_stamp(upstream: str) -> None:
    begun_at = time.monotonic()
    texts = contents(post(f"{upstream}/chat/completions", {"max_tokens": 12}).body)
    stamps = [STAMP.match(text) for text in texts]
    assert [int(stamp[1]) for stamp in stamps] == list(range(12))
    assert [text[stamp.end() :] for text, stamp in zip(texts, stamps, strict=True)] == [*WORDS, *WORDS[:2]]
    sent = [float(stamp[2]) for stamp in stamps]
    assert begun_at * 1000 <= sent[0] <= sent[-1] <= time.monotonic() * 1000
    due = [at - float(stamp[3]) for at, stamp in zip(sent, stamps, strict=True)]
    assert [round(at - due[0]) for at in due] == pytest.approx([20 * index for index in range(12)], abs=1)


def test_token_that_is_late_does_not_make_the_next_ones_late() -> None:
    """A busy machine makes some late; a schedule that drifts makes all of the last ones late."""
    with mock_upstream(gap_ms=2) as base_url:
        texts = contents(post(f"{base_url}/chat/completions", {"max_tokens": 1000}).body)
    late = [float(STAMP.match(text)[3]) for text in texts]
    assert min(late[-200:]) < 100


def test_answer_without_max_tokens_has_as_many_as_the_command_line_says(upstream: str) -> None:
    assert len(contents(post(f"{upstream}/chat/completions", {}).body)) == 7
    assert len(contents(post(f"{upstream}/chat/completions", {"max_completion_tokens": 3}).body)) == 3


def test_reader_that_does_not_read_for_a_while_gets_every_byte() -> None:
    with mock_upstream(gap_ms=0) as base_url, socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        port = int(base_url.rpartition(":")[2].partition("/")[0])
        sock.connect(("127.0.0.1", port))
        sock.settimeout(20)
        message = {"role": "user", "content": "words of 30000 characters"}  # 12 MB: more than the kernel has room for
        body = json.dumps({"stream": True, "max_tokens": 400, "messages": [message]}).encode()
        sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        for _ in range(3):  # it has one thread: when it answers these, it has met a full connection
            get(f"{base_url}/models")
        response = http.client.HTTPResponse(sock)
        response.begin()
        texts = contents(response.read())

    assert [int(STAMP.match(text)[1]) for text in texts] == list(range(400))
    assert [STAMP.sub("", text) for text in texts] == ["x" * 30_000 + WORDS[at % len(WORDS)] for at in range(400)]


def test_message_that_asks_for_long_words_gets_them_and_its_stamps(upstream: str) -> None:
    messages = [{"role": "user", "content": "Count to 12 with words of 300 characters."}]
    texts = contents(post(f"{upstream}/chat/completions", {"max_tokens": 12, "messages": messages}).body)
    stamps = [STAMP.match(text) for text in texts]
    assert [int(stamp[1]) for stamp in stamps] == list(range(12))
    assert [text[stamp.end() :] for text, stamp in zip(texts, stamps, strict=True)] == [
        "x" * 300 + word for word in [*WORDS, *WORDS[:2]]
    ]


def test_connection_is_kept_for_the_next_request(upstream: str) -> None:
    host, port = upstream.removeprefix("http://").removesuffix("/v1").split(":")
    with KeptAlive(host, int(port)) as connection:
        for count in (2, 5):
            reply = connection.request("POST", "/v1/chat/completions", json={"max_tokens": count})
            assert len(contents(reply.body)) == count


def test_models_are_listed(upstream: str) -> None:
    assert get(f"{upstream}/models").json["data"][0]["id"] == MODEL


def test_answers_of_an_error_rate_of_one_all_break_off_half_way() -> None:
    with mock_upstream(gap_ms=1, error_rate=1) as base_url:
        for _ in range(3):
            with pytest.raises(Dropped):
                post(f"{base_url}/chat/completions", {"max_tokens": 10})
