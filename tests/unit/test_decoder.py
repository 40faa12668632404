"""Test the way from the upstream's bytes to parts: cut anywhere, and whatever stands in them."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.upstream.decoder import (
    LONGEST_EVENT_BYTES,
    LONGEST_VALUE_BYTES,
    NODES,
    ODD_NODES,
    BrokenStream,
    ChunkDecoder,
    ErrorReported,
    EventSplitter,
    Part,
)


def split(data: bytes) -> list[bytes]:
    return EventSplitter().feed(data)


def split_at(data: bytes, cuts: list[int]) -> list[bytes]:
    splitter = EventSplitter()
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    found: list[bytes] = []
    for start, end in itertools.pairwise(places):
        found += splitter.feed(data[start:end])
    return found


def chunk(**delta: Any) -> bytes:
    return json.dumps({"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}]}).encode()


def decode(*events: bytes) -> tuple[list[Part], str]:
    decoder = ChunkDecoder()
    parts = [decoder.decode(event) for event in events]
    half = decoder.pending()
    return parts, "" if half is None else half.text


def text_of(*events: bytes) -> str:
    parts, pending = decode(*events)
    return "".join(part.text for part in parts) + pending


# Bytes into events

LINES = st.sampled_from(
    [
        "data: a",
        "data:b",
        "data:  c",
        "data",
        "data:",
        ": a comment",
        "event: x",
        "id: 7",
        "retry: 1",
        "",
        "",
        "data: \u2028\x85\x0b\x0c\x1c é 😀",
        "datax: no",
        " data: no",
        "data : no",
    ]
)
STREAMS = st.lists(st.tuples(LINES, st.sampled_from(["\n", "\r\n", "\r"])), max_size=25)


@given(STREAMS, st.booleans(), st.lists(st.integers(0, 1000), max_size=30))
def test_splitter_given_any_cuts_finds_the_same_events(
    lines: list[tuple[str, str]], bom: bool, cuts: list[int]
) -> None:
    data = ("\ufeff" * bom + "".join(line + end for line, end in lines)).encode()

    assert split_at(data, cuts) == split(data) == split_at(data, list(range(len(data))))


@given(st.lists(LINES, max_size=25), st.sampled_from([rb"\n\n", rb"\n"]))
def test_splitter_given_whole_events_or_lines_finds_the_same_as_in_one_piece(lines: list[str], cut: bytes) -> None:
    """As they mostly come: each in a piece of its own."""
    data = b"data: first\n\n" + "".join(line + "\n" for line in lines).encode()

    assert split_at(data, [found.end() for found in re.finditer(cut, data)]) == split(data)


@pytest.mark.parametrize(
    "pieces",
    [
        (b"data: a\ndata: b\n\n",),
        (b"data: a\nd", b"ata: b\n\n"),
        (b"data: a\rdata: b\n\n",),
        (b"data: a\ndata: b\n", b"\n"),
        (b"data: a\r", b"\ndata: b\n\n"),
    ],
)
def test_splitter_given_what_is_nearly_one_event_of_one_line_is_not_taken_in(pieces: tuple[bytes, ...]) -> None:
    splitter = EventSplitter()
    assert splitter.feed(b"data: first\n\n") == [b"first"]

    assert [event for piece in pieces for event in splitter.feed(piece)] == [b"a\nb"]


@given(STREAMS)
def test_splitter_given_any_stream_finds_what_a_line_by_line_reading_of_the_standard_finds(
    lines: list[tuple[str, str]],
) -> None:
    data = "".join(line + end for line, end in lines).encode()
    expected: list[bytes] = []
    values: list[bytes] = []
    for line in data.splitlines():  # of bytes: at CR, LF and CRLF only
        if not line:
            expected += [b"\n".join(values)] if values else []
            values = []
        name, _, value = line.partition(b":")
        if name == b"data":
            values.append(value.removeprefix(b" "))
    assert split(data) == expected


@pytest.mark.parametrize(
    ("data", "events"),
    [
        (b"data: YHOO\ndata: +2\ndata: 10\n\n", [b"YHOO\n+2\n10"]),
        (b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\n", [b"first event", b"second event"]),
        (b"data\n\ndata\ndata\n\ndata:", [b"", b"\n"]),
        (b"data:test\n\ndata: test\n\n", [b"test", b"test"]),
        (b"data:  two spaces\n\n", [b" two spaces"]),
        (b"data: a\r\rdata: b\r\n\r\ndata: c\n\n", [b"a", b"b", b"c"]),
        (b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n", [b"a"]),
        (b"\n\n\n\ndata: a\n\n\n\n\ndata: b\n\n", [b"a", b"b"]),
        (b"event: x\nid: 1\n\n: comment\n\n", []),
        (b"data: never ended\n", []),
        (
            "data: a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg\n\n".encode(),
            ["a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg".encode()],
        ),
        (b"data: a\0b\n\n", [b"a\0b"]),
    ],
)
def test_splitter_given_an_example_finds_its_events(data: bytes, events: list[bytes]) -> None:
    assert split(data) == events
    assert split_at(data, list(range(len(data)))) == events


def test_splitter_given_a_bare_cr_dispatches_without_waiting_for_more() -> None:
    splitter = EventSplitter()

    assert splitter.feed(b"data: a\r\n\r") == [b"a"]
    assert splitter.feed(b"\ndata: b\n\n") == [b"b"]


def test_splitter_given_a_line_of_ten_mebibytes_delivers_what_came_before_and_refuses_it() -> None:
    splitter = EventSplitter()
    data = b"data: before\n\ndata: " + b"x" * 10 * 1_048_576
    found: list[bytes] = []
    fed = 0

    def feed_all() -> None:
        nonlocal fed
        for start in range(0, len(data), 65_536):
            fed += 65_536
            found.extend(splitter.feed(data[start : start + 65_536]))

    with pytest.raises(BrokenStream):
        feed_all()
    assert found == [b"before"]
    assert fed <= LONGEST_EVENT_BYTES + 3 * 65_536


def test_splitter_given_an_event_at_the_limit_delivers_it() -> None:
    splitter = EventSplitter()
    value = b"x" * (LONGEST_EVENT_BYTES - len(b"data: "))

    assert splitter.feed(b"data: " + value) == []
    assert splitter.feed(b"\n\n") == [value]


def test_splitter_given_an_event_in_small_pieces_does_not_begin_anew_with_each() -> None:
    """A mebibyte in pieces of 64 bytes took 21 s; as many pieces that are events of their own take 0.02 s."""
    value = b"x" * (LONGEST_EVENT_BYTES - len(b"data: "))
    pieces = [b"data: " + value[:58], *(value[at : at + 64] for at in range(58, len(value), 64)), b"\n\n"]
    begun = time.thread_time()
    for _ in pieces:
        split(b"data: " + value[:58] + b"\n\n")
    usual = time.thread_time() - begun
    splitter = EventSplitter()
    begun = time.thread_time()
    found = [event for piece in pieces for event in splitter.feed(piece)]

    assert found == [value]
    assert time.thread_time() - begun < 30 * usual


@pytest.mark.parametrize("line", [b"\n", b"\r\n", b"\r"])
def test_splitter_given_blank_lines_without_end_makes_nothing_of_them(line: bytes) -> None:
    splitter = EventSplitter()
    splitter.feed(b"data: a\n\n")
    piece = line * (65_536 // len(line))
    tracemalloc.start()
    try:
        assert splitter.feed(piece) == []
        assert tracemalloc.get_traced_memory()[1] < 3 * len(piece), "a list of all the lines is eight times as large"
    finally:
        tracemalloc.stop()
    assert splitter.feed(b"data: b\n\n") == [b"b"]


# Events into parts


@pytest.mark.parametrize(
    "text", ["a\u2028b\u2029c\u0085d\x0be\x0cf", "\0", "data: x\r\n\r\n", "é", "😀", "\u202e", "[DONE]", " "]
)
def test_decoder_given_any_text_escaped_or_not_keeps_it(text: str) -> None:
    content = {"choices": [{"index": 0, "delta": {"content": text}}]}

    for ensure_ascii in (True, False):
        event = json.dumps(content, ensure_ascii=ensure_ascii).encode()
        assert text_of(event) == text


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=8))
def test_decoder_given_any_chunks_joins_their_texts(texts: list[str]) -> None:
    parts, pending = decode(*(chunk(content=text) for text in texts))

    assert [part.text for part in parts] == texts
    assert pending == ""


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), st.data())
def test_decoder_given_utf16_halves_in_any_cuts_joins_them(text: str, data: st.DataObject) -> None:
    units = text.encode("utf-16-be").decode("utf-16-be")
    halves = "".join(
        chr(code)
        for char in units
        for code in (
            (ord(char),)
            if ord(char) < 0x10000
            else (0xD800 + ((ord(char) - 0x10000) >> 10), 0xDC00 + ((ord(char) - 0x10000) & 0x3FF))
        )
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(halves)), max_size=6)))
    pieces = [halves[a:b] for a, b in zip([0, *cuts], [*cuts, len(halves)], strict=True)]

    assert text_of(*(chunk(content=piece) for piece in pieces)) == text


@given(st.lists(st.text(st.sampled_from("a😀\ud83d\ude00\udc00\ud800"), max_size=4), max_size=6))
def test_decoder_given_halves_without_their_other_half_never_yields_one(texts: list[str]) -> None:
    parts, pending = decode(*(chunk(content=text) for text in texts))

    ("".join(part.text for part in parts) + pending).encode()  # raises for half a pair


def test_decoder_given_halves_in_two_deltas_gives_the_first_one_no_text() -> None:
    parts, pending = decode(chunk(content="a\ud83d"), chunk(), chunk(content="\ude00b"))

    assert [part.text for part in parts] == ["a", "", "😀b"]
    assert pending == ""


def test_decoder_at_its_end_shows_a_pending_half_once() -> None:
    decoder = ChunkDecoder()
    assert decoder.decode(chunk(content="\ud83d")).text == ""

    assert decoder.pending() == Part("\ufffd")
    assert decoder.pending() is None


@pytest.mark.parametrize(
    ("content", "shown"),
    [(b"\xff\xfe", "\ufffd\ufffd"), (b"a\xc3", "a\ufffd"), (b"\xed\xa0\xbd", "\ufffd\ufffd\ufffd")],
)
def test_decoder_given_invalid_utf8_shows_replacement_characters(content: bytes, shown: str) -> None:
    assert text_of(b'{"choices":[{"index":0,"delta":{"content":"' + content + b'"}}]}') == shown


def test_decoder_given_invalid_utf8_outside_of_the_text_keeps_the_text() -> None:
    assert text_of(b'{"id":"\xff","choices":[{"index":0,"delta":{"content":"a"}}]}') == "a"


@pytest.mark.parametrize(
    "event",
    [
        b'{"choices": []}',
        b'{"choices": null}',
        b"{}",
        b'{"choices": [{}]}',
        b'{"choices": [{"delta": {}}]}',
        b'{"choices": [{"delta": null}]}',
        b'{"choices": [{"delta": {"content": null}}]}',
        b'{"choices": [{"delta": {"content": ""}}]}',
        b'{"choices": [{"delta": {"role": "assistant"}}]}',
        b'{"choices": [{"delta": {"role": "assistant", "content": "", "refusal": null}}]}',
        b'{"choices": [{"delta": {"reasoning_content": "hm"}}]}',
        b'{"choices": [{"delta": {"reasoning": "hm", "content": null}}]}',
        b'{"choices": [{"index": 1, "delta": {"content": "another answer"}}]}',
        b'{"choices": [], "usage": null, "error": null}',
        b'{"choices": [{"delta": {"tool_calls": [{"index": 0}]}}]}',
    ],
)
def test_decoder_given_a_chunk_without_text_yields_an_empty_part(event: bytes) -> None:
    assert decode(event) == ([Part()], "")


def test_decoder_given_a_refusal_takes_it_for_text() -> None:
    assert text_of(chunk(content=None, refusal="I cannot."), chunk(refusal=" Sorry.")) == "I cannot. Sorry."


def test_decoder_given_finish_reason_and_last_text_in_one_chunk_yields_both() -> None:
    (part,), _ = decode(b'{"choices": [{"delta": {"content": "a"}, "finish_reason": "length"}]}')

    assert part == Part("a", "length")


@pytest.mark.parametrize("usage", [{"prompt_tokens": 1}, {"prompt_tokens": -1}, "many", 5, [1]])
def test_decoder_given_any_usage_reports_it_unchecked(usage: Any) -> None:
    with_text = {"choices": [{"delta": {"content": "a"}}], "usage": usage}
    alone = {"choices": [], "usage": usage}

    parts, _ = decode(json.dumps(with_text).encode(), json.dumps(alone).encode(), chunk(content="b"))

    assert [part.usage for part in parts] == [usage, usage, None]
    assert [part.text for part in parts] == ["a", "", "b"]


@pytest.mark.parametrize("data", [b"[DONE]", b" [DONE]", b"[DONE] \t"])
def test_decoder_given_done_says_so(data: bytes) -> None:
    assert decode(data) == ([Part(done=True)], "")


@pytest.mark.parametrize(
    ("event", "reported"),
    [
        (b'{"error": {"message": "m", "code": 500}}', {"message": "m", "code": 500}),
        (b'{"error": "text"}', "text"),
        (b'{"object": "error", "message": "m", "code": 1}', "m"),
        (b'{"choices": [{"delta": {"content": "a"}}], "error": {"message": "m"}}', {"message": "m"}),
        (b'{"error": {"message": "\\ud83d"}}', {"message": "\ud83d"}),
    ],
)
def test_decoder_given_an_error_in_the_stream_raises_it(event: bytes, reported: Any) -> None:
    with pytest.raises(ErrorReported) as raised:
        decode(event)

    assert raised.value.error == reported
    assert reported == "m" or str(reported) not in str(raised.value)


@pytest.mark.parametrize(
    "event",
    [
        b"",
        b"no JSON",
        b"<html>",
        b"[1]",
        b'"text"',
        b"5",
        b"null",
        b"NaN",
        b'{"choices": "x"}',
        b'{"choices": [5]}',
        b'{"choices": [{"delta": "x"}]}',
        b'{"choices": [{"delta": {"content": 5}}]}',
        b'{"choices": [{"delta": {"content": {}}}]}',
        b'{"choices": [{"delta": {"content": "cut',
        b'{"usage": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b'{"choices": [], "a": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b"\xff\xfe",
        b'{"usage": {"a": "\xff"}, "choices": 5}',
    ],
)
def test_decoder_given_no_chunk_says_that_the_stream_is_broken(event: bytes) -> None:
    with pytest.raises(BrokenStream) as raised:
        decode(event)

    assert len(str(raised.value)) < 100


@given(st.binary(max_size=60))
def test_decoder_given_any_bytes_raises_nothing_else(data: bytes) -> None:
    with contextlib.suppress(BrokenStream, ErrorReported):
        ChunkDecoder().decode(data)


@settings(max_examples=40, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["choices", "delta", "content", "usage", "index", "error", "finish_reason", "message"]),
                inner,
            )
        ),
        max_leaves=12,
    )
)
def test_decoder_given_any_json_raises_nothing_else(value: Any) -> None:
    with contextlib.suppress(BrokenStream, ErrorReported):
        ChunkDecoder().decode(json.dumps(value).encode())


@pytest.mark.parametrize("name", ["usage", "error"])
def test_decoder_given_a_long_value_of_any_shape_builds_nothing_of_it(name: str) -> None:
    """A mebibyte of lists took 0.3 s, in which nobody else was served."""
    event = b'{"%b":[' % name.encode() + b"[]," * 300_000 + b"[]]}"
    try:
        value: Any = ChunkDecoder().decode(event).usage
    except ErrorReported as report:
        value = report.error

    assert isinstance(value, str)
    assert len(value) == LONGEST_VALUE_BYTES


def test_decoder_given_too_many_values_where_all_must_be_built_says_that_the_stream_is_broken() -> None:
    with pytest.raises(BrokenStream):
        decode(b'{"choices":[' + b"{}," * NODES + b"{}]}")
    few, many = (
        b'{"choices":[{"delta":{"content":"\\ud800"}}],"x":[' + b"[]," * n + b"[]]}" for n in (1000, ODD_NODES)
    )

    assert text_of(few) == "\ufffd"
    with pytest.raises(BrokenStream):
        decode(many)


def test_line_of_an_error_is_an_event_as_llama_cpp_sent_it() -> None:
    assert split(b'error: {"code":500,"message":"x"}\n\ndata: [DONE]\n\n') == [
        b'{"error":{"code":500,"message":"x"}}',
        b"[DONE]",
    ]
    assert split(b"error: nothing\n\nerror\n\n") == []
