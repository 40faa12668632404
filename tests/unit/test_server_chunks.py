"""Test the bounds of a chunked body's chunks, on gunicorn's own reader of chunks."""

from __future__ import annotations

import io
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http.parser import RequestParser

from app.server import body_failures, chunks
from app.server.chunks import FREE_CHUNKS, MEAN_CHUNK_BYTES, Chunks, Crumbs, chunks_of, unreader_of

HEAD = b"POST /chat/wait HTTP/1.1\r\nHost: localhost\r\n"
RECEIVED_BYTES = 8192
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (*pieces, b""))


def environ_of(data: bytes) -> dict[str, Any]:
    """Parse a request as gunicorn does, and give what the application gets of it."""
    received = (data[at : at + RECEIVED_BYTES] for at in range(0, len(data), RECEIVED_BYTES))
    request = next(RequestParser(Config(), received, ("127.0.0.1", 1)))
    return {"wsgi.input": request.body}


def bounded(data: bytes, *, at_most: int) -> tuple[dict[str, Any], Chunks]:
    environ = environ_of(CHUNKED + data)
    found = chunks_of(environ)
    assert found is not None
    found.begin(at_most)
    assert chunks_of(environ) is found, "its chunks are bounded once"
    return environ, found


def test_body_in_ordinary_chunks_is_read_whole() -> None:
    pieces = [b"a" * MEAN_CHUNK_BYTES] * (2 * FREE_CHUNKS) + [b"b"]
    environ, found = bounded(chunked(*pieces), at_most=10_000_000)

    assert environ["wsgi.input"].read() == b"".join(pieces)
    assert not found.is_over
    assert unreader_of(environ) is not None


def test_small_chunks_are_read_up_to_their_number_and_not_beyond() -> None:
    environ, _ = bounded(chunked(*[b"a"] * (FREE_CHUNKS - 1)), at_most=1_000_000)
    assert environ["wsgi.input"].read() == b"a" * (FREE_CHUNKS - 1)

    environ, _ = bounded(chunked(*[b"a"] * (2 * FREE_CHUNKS)), at_most=1_000_000)
    with pytest.raises(Crumbs) as raised:
        environ["wsgi.input"].read()
    assert body_failures.unreadable(raised.value).error_code == "invalid_request"


def test_others_run_between_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(chunks.time, "sleep", slept.append)
    environ, _ = bounded(chunked(*[b"a"] * 1024), at_most=1_000_000)

    environ["wsgi.input"].read()

    assert slept == [0] * (1024 // chunks.CHUNKS_AT_A_TIME)


def test_chunk_that_announces_too_much_ends_the_body_before_it_is_read_and_the_rest_can_be_discarded() -> None:
    environ, found = bounded(chunked(b"a" * 60, b"b" * 60), at_most=100)

    assert environ["wsgi.input"].read() == b"a" * 60
    assert found.is_over

    assert chunks_of(environ) is found
    found.begin(1_000)
    assert not found.is_over


def test_body_whose_length_is_known_has_no_chunks_and_an_unreader_all_the_same() -> None:
    environ = environ_of(HEAD + b"Content-Length: 5\r\n\r\nHello")

    assert chunks_of(environ) is None
    assert unreader_of(environ).buf.getvalue() == b"Hello"


def test_server_that_is_not_gunicorn_is_left_alone() -> None:
    environ = {"wsgi.input": io.BytesIO(b"Hello")}

    assert (chunks_of(environ), unreader_of(environ)) == (None, None)


@pytest.mark.parametrize("data", [b"zz\r\n", b"5\r\nHelloo\r\n0\r\n\r\n", b"5\r\nHe"], ids=["size", "length", "cut"])
def test_chunks_that_gunicorn_cannot_read_have_a_reason_of_their_own(data: bytes) -> None:
    environ, _ = bounded(data, at_most=1_000)

    with pytest.raises(Exception) as raised:  # noqa: PT011 - gunicorn has one of its own for each fault
        environ["wsgi.input"].read()

    reason = body_failures.unreadable(raised.value).detail
    assert reason in body_failures._REASONS.values()
