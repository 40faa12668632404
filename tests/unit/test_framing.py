"""Test the framings of a body: any cuts, and what is not framed as announced."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.upstream.framing import (
    LONGEST_SIZE_LINE,
    LONGEST_TRAILER,
    BadFraming,
    Chunked,
    Counted,
    Framing,
    UntilClose,
)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


def feed(framing: Framing, data: bytes, cuts: list[int] | None = None) -> bytes:
    return b"".join(framing.feed(piece) for piece in pieces(data, cuts or []))


def every_byte(data: bytes) -> list[int]:
    return list(range(len(data)))


def encode(chunks: list[bytes], *, extension: bytes = b"", trailers: bytes = b"") -> bytes:
    body = b"".join(b"%x%s\r\n%s\r\n" % (len(chunk), extension, chunk) for chunk in chunks if chunk)
    return body + b"0" + extension + b"\r\n" + trailers + b"\r\n"


CUTS = st.lists(st.integers(0, 10_000), max_size=40)


@given(st.lists(st.binary(max_size=300), max_size=8), CUTS, st.sampled_from([b"", b";a=b", b" ; x"]), st.booleans())
def test_chunked_given_any_chunks_and_cuts_returns_the_body(
    chunks: list[bytes], cuts: list[int], extension: bytes, has_trailers: bool
) -> None:
    data = encode(chunks, extension=extension, trailers=b"A: b\r\nC: d\r\n" if has_trailers else b"")
    framing = Chunked()

    assert feed(framing, data, cuts) == b"".join(chunks)
    assert framing.ended


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=4), st.data())
def test_chunked_cut_anywhere_has_not_ended_and_says_so(chunks: list[bytes], data: st.DataObject) -> None:
    whole = encode(chunks)
    end = data.draw(st.integers(0, len(whole) - 1))
    framing = Chunked()

    body = feed(framing, whole[:end], data.draw(CUTS))

    assert b"".join(chunks).startswith(body)
    assert not framing.ended
    with pytest.raises(BadFraming):
        framing.end()


def test_chunked_given_one_byte_at_a_time_returns_each_byte_as_it_comes() -> None:
    framing = Chunked()

    assert framing.feed(b"3\r\n") == b""
    assert [framing.feed(b"a"), framing.feed(b"b"), framing.feed(b"c")] == [b"a", b"b", b"c"]
    assert framing.feed(b"\r") + framing.feed(b"\n") == b""
    assert not framing.ended
    framing.feed(b"0\r\n\r\n")
    assert framing.ended


@pytest.mark.parametrize("size", [b"A", b"a", b"00000000000a", b" a ", b"a;ext=1", b"a;a;b", b"a;"])
def test_chunked_given_a_size_in_any_form_reads_it(size: bytes) -> None:
    data = size + b"\r\n0123456789\r\n0\r\n\r\n"

    assert feed(Chunked(), data) == feed(Chunked(), data, every_byte(data)) == b"0123456789"


@pytest.mark.parametrize(
    "size", [b"", b"x", b"-1", b"+1", b"0x5", b"1_0", b"5 5", b";a", b"\xd9\xa1", b"1" * 16, b"f" * 5000, b"5.0"]
)
def test_chunked_given_a_bad_size_refuses_it(size: bytes) -> None:
    for cuts in ([], every_byte(size)):
        with pytest.raises(BadFraming):
            feed(Chunked(), size + b"\r\nabcde\r\n0\r\n\r\n", cuts)


@pytest.mark.parametrize("closing", [b"xx", b"x\n", b"\rx", b"\nx", b"\n\r", b"\n\n", b"\r\r", b"0\r"])
def test_chunked_given_a_chunk_longer_than_announced_refuses_it_whatever_the_cuts(closing: bytes) -> None:
    data = b"3\r\nabc" + closing + b"0\r\n\r\n"

    for cuts in ([], [6, 7, 8], every_byte(data)):
        with pytest.raises(BadFraming):
            feed(Chunked(), data, cuts)


def test_chunked_given_a_size_line_without_end_refuses_it_within_bounds() -> None:
    framing = Chunked()
    fed = 0
    with pytest.raises(BadFraming):
        for _ in range(10_000):
            fed += 64
            framing.feed(b"1;" + b"x" * 62 if fed == 64 else b"x" * 64)
    assert fed <= LONGEST_SIZE_LINE + 64


def test_chunked_given_a_trailer_without_end_refuses_it_within_bounds() -> None:
    framing = Chunked()
    framing.feed(b"0\r\n")
    fed = 0
    with pytest.raises(BadFraming):
        for _ in range(10_000):
            fed += 1024
            framing.feed(b"x" * 1024)
    assert fed <= LONGEST_TRAILER + 1024


def test_chunked_without_anything_has_not_ended() -> None:
    framing = Chunked()
    assert framing.feed(b"") == b""
    with pytest.raises(BadFraming):
        framing.end()


@given(st.binary(max_size=300), st.binary(max_size=20), CUTS)
def test_counted_given_any_cuts_returns_as_much_as_was_announced(body: bytes, more: bytes, cuts: list[int]) -> None:
    framing = Counted(len(body))

    assert feed(framing, body + more, cuts) == body
    assert framing.ended


@given(st.binary(max_size=100), st.integers(1, 50))
def test_counted_cut_short_has_not_ended_and_says_so(body: bytes, missing: int) -> None:
    framing = Counted(len(body) + missing)

    assert feed(framing, body, every_byte(body)) == body
    assert not framing.ended
    with pytest.raises(BadFraming):
        framing.end()


def test_counted_of_nothing_has_ended_at_once() -> None:
    assert Counted(0).ended


@given(st.binary(max_size=100), CUTS)
def test_until_close_returns_all_and_ends_with_the_connection(body: bytes, cuts: list[int]) -> None:
    framing = UntilClose()

    assert feed(framing, body, cuts) == body
    assert not framing.ended
    assert framing.end() == b""
    assert framing.ended
