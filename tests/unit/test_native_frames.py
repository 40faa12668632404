"""Test ChatWait's own frames byte by byte."""

from __future__ import annotations

import hashlib
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.dialects.native.frames import FRAME_BYTES, NativeFrames, frame
from tests.unit.readings import log_of, parse, read


@pytest.mark.requirement("tasks T015", "tasks pattern 1")
def test_frame_is_lines_of_lf_with_its_id_last_and_a_blank_one() -> None:
    assert frame("done", {"b": 1, "a": "é"}, "cw_x.3") == b'event: done\ndata: {"b":1,"a":"\\u00e9"}\nid: cw_x.3\n\n'
    assert frame("ping", {}) == b"event: ping\ndata: {}\n\n"


@pytest.mark.requirement("core entity StreamChunk", "tasks T012", "tasks checklist 6", "tasks stop 1")
def test_stream_from_the_beginning_is_start_tokens_and_terminal_byte_by_byte() -> None:
    log = log_of("He", "llo")
    stream_id = log.stream_id

    assert read(log) == [
        b'retry: 1000\nevent: start\ndata: {"stream_id":"%s","correlation_id":"c-1","model":"m",'
        b'"created":"2026-11-21T09:00:00.000Z","heartbeat_seconds":10}\nid: %s.0\n\n'
        % (stream_id.encode(), stream_id.encode()),
        b'event: token\ndata: {"sequence":2,"count":2,"content":"Hello","is_final":false}\nid: %s.2\n\n'
        % stream_id.encode(),
        b'event: done\ndata: {"sequence":3,"is_final":true,"status":"complete","finish_reason":null,"model":"m",'
        b'"tokens":2,"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9,"source":"estimated"},"first_token_ms":null,'
        b'"duration_ms":1,"characters":5,"sha256":"%s","correlation_id":"c-1"}\nid: %s.3\n\n'
        % (hashlib.sha256(b"Hello").hexdigest().encode(), stream_id.encode()),
    ]


@pytest.mark.parametrize("after", [1, 2])
def test_stream_resumed_begins_with_a_ping_that_has_the_cursor_and_never_with_start(after: int) -> None:
    log = log_of("He", "llo")
    first, *rest = parse(read(log, after))

    assert (first.event, first.id) == ("ping", f"{log.stream_id}.{after}")
    assert first.json == {"phase": "generating", "tokens": 2}
    assert [event.event for event in rest] == ["token"] * (2 - after) + ["done"]


NASTY = [
    "\r\n",
    "\r",
    "\n",
    "\u2028",
    "\u2029",
    "\u0085",
    "\x0b",
    "\x0c",
    "\0",
    "data: x\n\n",
    '"\\',
    "é",
    "😀",
    "\x7f",
]


@pytest.mark.parametrize("text", NASTY)
def test_frame_of_any_text_is_one_line_of_ascii_data(text: str) -> None:
    (_, token, _) = read(log_of(text))

    assert re.fullmatch(rb"event: token\ndata: [\x20-\x7f]+\nid: [\x21-\x7e]+\n\n", token)
    (event,) = parse([token])
    assert event.json["content"] == text


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


@settings(deadline=None)
@given(st.lists(TEXTS, max_size=30), st.data())
@pytest.mark.requirement("chatwait resilience 2")
def test_stream_of_any_chunks_from_any_cursor_adds_up(chunks: list[str], data: st.DataObject) -> None:
    after = data.draw(st.integers(0, len(chunks)))

    events = parse(read(log_of(*chunks), after))

    tokens = [event.json for event in events if event.event == "token"]
    assert "".join(token["content"] for token in tokens) == "".join(chunks[after:])
    place = after
    for token in tokens:
        assert list(token) == ["sequence", "count", "content", "is_final"]
        place += token["count"]
        assert token["sequence"] == place
    assert place == len(chunks)
    assert [event.event for event in events if event.event != "token"] == ["ping" if after else "start", "done"]


@pytest.mark.parametrize("chunk", ["a", "\x01", "é", "\u2028", "😀", '"', "\x01" * 7, "ab\x01", "\x01" * 1300])
def test_frames_of_many_chunks_hold_at_most_8_kib_however_they_are_escaped(chunk: str) -> None:
    log = log_of(*[chunk] * 20_000 if len(chunk) < 100 else [chunk] * 200)

    tokens = [piece for piece in read(log) if piece.startswith(b"event: token")]

    sizes = [len(piece.split(b"\n")[1]) - len("data: ") for piece in tokens]
    assert len(tokens) > 1, "the premise: more than one frame"
    assert max(sizes) <= FRAME_BYTES
    assert all(size > FRAME_BYTES / 8 for size in sizes[:-1]), "and frames are not needlessly small"
    assert "".join(event.json["content"] for event in parse(tokens)) == log.text()


def test_frame_of_a_single_larger_chunk_holds_it_alone() -> None:
    events = parse(read(log_of("a", "\x01" * 50_000, "b")))

    assert [event.json["count"] for event in events if event.event == "token"] == [1, 1, 1]


def test_frames_of_chunks_that_escape_differently_lose_nothing() -> None:
    chunks = [("\x01" if number % 7 else "a" * 900) * (number % 90 + 1) for number in range(400)]
    log = log_of(*chunks)

    tokens = [piece for piece in read(log) if piece.startswith(b"event: token")]

    for event, piece in zip(parse(tokens), tokens, strict=True):
        assert event.json["count"] == 1 or len(piece.split(b"\n")[1]) - len("data: ") <= FRAME_BYTES
    assert "".join(event.json["content"] for event in parse(tokens)) == log.text()


def test_token_frame_at_the_head_is_none_and_does_not_move_the_reader() -> None:
    log = log_of("a", end=False)
    reader = log.reader(1)

    assert NativeFrames(log.stream_id, log.origin).next_frames(reader) is None
    assert reader.after == 1
