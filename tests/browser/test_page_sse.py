"""The parser of stream.js: the page's event parser, in a real browser."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from load.events import EventParser
from tests.browser.modules import Modules

pytestmark = pytest.mark.browser

CONTRACTS = Path(__file__).parents[2] / "contracts"
MEBI = 1 << 20

# [[chunk, ...], ...] in base64 -> what each stream's chunks gave: [[[event, data, id], ...] a chunk]
PARSE = """
async (load, streams) => {
  const { createParser } = await load("stream");
  return streams.map((chunks) => {
    let events = [];
    const parser = createParser(({ event, data, id }) => events.push([event, data, id]));
    const given = chunks.map((chunk) => {
      events = [];
      parser.feed(Uint8Array.from(atob(chunk), (character) => character.charCodeAt(0)));
      return events;
    });
    parser.end();
    return given;
  });
}
"""
# One stream in base64 and the events of it as a whole -> the cuts that give others
CUT = """
async (load, [stream, whole]) => {
  const { createParser } = await load("stream");
  const bytes = Uint8Array.from(atob(stream), (character) => character.charCodeAt(0));
  const parse = (...cuts) => {
    const events = [];
    const parser = createParser(({ event, data, id }) => events.push([event, data, id]));
    let from = 0;
    for (const cut of [...cuts, bytes.length]) {
      parser.feed(bytes.subarray(from, cut));
      from = cut;
    }
    return JSON.stringify(events);
  };
  const wrong = [];
  let tried = 0;
  const judge = (...cuts) => {
    tried += 1;
    if (parse(...cuts) !== JSON.stringify(whole)) wrong.push(cuts);
  };
  for (let first = 0; first <= bytes.length; first += 1) {
    for (let second = first; second <= bytes.length; second += 1) judge(first, second);
  }
  judge(...bytes.keys());
  return { tried, wrong: wrong.slice(0, 5) };
}
"""
REFERENCE = (
    b'\xef\xbb\xbf: hello\r\n\r\nevent: token\rdata: {"a":"\\u2028"}\rid: s.1\r\r'
    + "data: 🙂é日\u2028\u0085\ufeff\x0b\x0c\x1c\r\ndata\r\ndata:  x\n\n".encode()
    + b"id: s.2\n\n\ndata:last\r\n\n\rretry: 5\nunknown: x\nevent:\ndata:\n\ndata: cut"
)
ENDLESS = """
async (load, [begin, piece]) => {
  const { createParser } = await load("stream");
  const events = [];
  const parser = createParser((event) => events.push(event.data.length));
  const feed = (text) => parser.feed(new TextEncoder().encode(text));
  const chunk = piece.repeat(Math.ceil((1 << 20) / piece.length));
  let fed = 0;
  let told = null;
  feed(begin);
  try {
    for (; fed < 40; fed += 1) feed(chunk);
  } catch (error) {
    told = error.name;
  }
  feed("\\n\\ndata: after\\n\\n");
  return { fed, told, events };
}
"""
BENCHMARK = """
async (load, frames) => {
  const { createParser } = await load("stream");
  const encoder = new TextEncoder();
  let stream = "";
  for (let number = 1; number <= frames; number += 1) {
    const data = JSON.stringify({ sequence: number, count: 1, content: " word", is_final: false });
    stream += `event: token\\ndata: ${data}\\nid: cw_p3Vd8KxQm1ZsT7yHbN0e2w.${number}\\n\\n`;
  }
  const bytes = encoder.encode(stream);
  const measured = {};
  for (const size of [135, 1400, 65536]) {
    let events = 0;
    const parser = createParser(() => (events += 1));
    const before = performance.now();
    for (let at = 0; at < bytes.length; at += size) parser.feed(bytes.subarray(at, at + size));
    measured[size] = { events, rate: Math.round((bytes.length / (performance.now() - before)) * 1000) };
  }
  return measured;
}
"""
MANY_LINES = """
async (load, [line, times, last]) => {
  const { createParser } = await load("stream");
  let events = 0;
  const parser = createParser(() => (events += 1));
  const bytes = new TextEncoder().encode(line.repeat(times) + last);
  const before = performance.now();
  parser.feed(bytes);
  return { events, seconds: (performance.now() - before) / 1000 };
}
"""


def _encoded(chunk: bytes) -> str:
    return base64.b64encode(chunk).decode()


def _parse(modules: Modules, *chunks: bytes) -> list[list[Any]]:
    """Parse one stream and give what each chunk completed."""
    (given,) = modules.run(PARSE, [[_encoded(chunk) for chunk in chunks]])
    return given


def _events(modules: Modules, *chunks: bytes) -> list[Any]:
    return [event for events in _parse(modules, *chunks) for event in events]


def _reference(stream: bytes) -> list[list[str]]:
    """Parse a stream as tests/harness does."""
    return [[event.event, event.data, event.last_event_id] for event in EventParser().feed(stream)]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        ("data: YHOO\ndata: +2\ndata: 10\n\n", [["message", "YHOO\n+2\n10", ""]]),
        (
            ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
            [["message", "first event", "1"], ["message", "second event", ""], ["message", " third event", ""]],
        ),
        ("data\n\ndata\ndata\n\ndata:", [["message", "", ""], ["message", "\n", ""]]),
        ("data:test\n\ndata: test\n\n", [["message", "test", ""]] * 2),
        (
            "event: add\ndata: 73857293\n\nevent: remove\ndata: 2153\n\nevent: add\ndata: 113411\n\n",
            [["add", "73857293", ""], ["remove", "2153", ""], ["add", "113411", ""]],
        ),
        (
            "data: This is the first message.\n\ndata: This is not dispatched.\n",
            [["message", "This is the first message.", ""]],
        ),
    ],
)
def test_sse_given_the_examples_of_the_specification_gives_its_events(
    modules: Modules, stream: str, events: list[Any]
) -> None:
    for end in ("\n", "\r", "\r\n"):
        assert _events(modules, stream.replace("\n", end).encode()) == events


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        pytest.param(b"\xef\xbb\xbfdata: a\n\n", [["message", "a", ""]], id="one BOM goes"),
        pytest.param(b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", [], id="a second BOM belongs to the field's name"),
        pytest.param("data: \ufeffa\n\n".encode(), [["message", "\ufeffa", ""]], id="a BOM inside stays"),
        pytest.param(b"id: 1\ndata: a\n\nid: 2\0\ndata: b\n\n", [["message", x, "1"] for x in "ab"], id="NUL in an id"),
        pytest.param(b"id: 7\n\ndata: a\n\n", [["message", "a", "7"]], id="an id without data counts"),
        pytest.param(b"event: x\n\ndata: a\n\n", [["message", "a", ""]], id="a type without data does not stay"),
        pytest.param(b"DATA: a\n data: b\ndata : c\n\n", [], id="field names are exact"),
        pytest.param(b"data: a:b: c\n\n", [["message", "a:b: c", ""]], id="only the first colon counts"),
        pytest.param(b"data: \xff\xe2\x82\n\n", [["message", "\ufffd\ufffd", ""]], id="broken UTF-8"),
        pytest.param(b"__proto__: x\nconstructor: y\ndata: a\n\n", [["message", "a", ""]], id="names of objects"),
    ],
)
def test_sse_given_what_breaks_parsers_gives_what_the_specification_says(
    modules: Modules, stream: bytes, events: list[Any]
) -> None:
    assert _reference(stream) == events
    assert _events(modules, stream) == events


def test_sse_cut_at_any_two_places_gives_the_same_events(modules: Modules) -> None:
    whole = _reference(REFERENCE)
    assert [data for _, data, _ in whole] == [
        '{"a":"\\u2028"}',
        "🙂é日\u2028\u0085\ufeff\x0b\x0c\x1c\n\n x",
        "last",
        "",
    ]
    result = modules.run(CUT, [_encoded(REFERENCE), whole])

    assert result["tried"] == (len(REFERENCE) + 1) * (len(REFERENCE) + 2) // 2 + 1
    assert result["wrong"] == []


PIECES = [b"data", b"event", b"id", b"retry", b":", b": ", b" ", b"\n", b"\r", b"\r\n", b"\n\n", b"\0", b"\xef\xbb\xbf"]
PIECES += ["🙂".encode(), "\u2028".encode(), "\u0085".encode(), b"\xf0\x9f", b"\xff", b"abc", b"data: x\n\n", b": c\r"]


def test_sse_given_any_bytes_cut_anywhere_agrees_with_the_harness(modules: Modules) -> None:
    @hypothesis_settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.lists(st.lists(st.sampled_from(PIECES), max_size=12), max_size=4), min_size=10, max_size=30))
    def agree(streams: list[list[list[bytes]]]) -> None:
        chunks = [[b"".join(pieces) for pieces in stream] for stream in streams]
        given_events = modules.run(PARSE, [[_encoded(chunk) for chunk in stream] for stream in chunks])
        for stream, given_each in zip(chunks, given_events, strict=True):
            parser = EventParser()
            told = [[[one.event, one.data, one.last_event_id] for one in parser.feed(chunk)] for chunk in stream]
            assert given_each == told, stream

    agree()


def _golden() -> dict[str, bytes]:
    streams = {}
    for path in sorted(CONTRACTS.glob("examples/**/*.http")):
        text = path.read_bytes().decode()
        found = re.search(r"^HTTP/1\.1 200 OK\n(?P<head>(?:[^\n]+\n)*)\n(?P<body>.*)", text, re.MULTILINE | re.DOTALL)
        if found and "Content-Type: text/event-stream" in found["head"]:
            streams[str(path.relative_to(CONTRACTS))] = found["body"].encode()
    text = (CONTRACTS / "events.md").read_text("utf-8")
    blocks = re.findall(r"^```\w*\n(retry: .*?)^```$", text, re.MULTILINE | re.DOTALL)
    return streams | {f"events.md {number}": block.encode() for number, block in enumerate(blocks)}


def test_sse_given_the_golden_streams_agrees_with_the_harness_at_any_size_of_chunk(modules: Modules) -> None:
    streams = _golden()
    assert len([name for name in streams if "streams/" in name]) >= 10
    assert any(name.startswith("events.md") for name in streams)
    for name, stream in streams.items():
        expected = _reference(stream)
        assert expected, name
        for size in (1, 7, 64, len(stream)):
            chunks = [stream[at : at + size] for at in range(0, len(stream), size)]
            assert _events(modules, *chunks) == expected, (name, size)


def test_sse_given_a_blank_line_gives_the_event_at_once(modules: Modules) -> None:
    """Neither the LF of a CRLF nor the next frame is waited for."""
    assert _parse(modules, b"data: a\n", b"\n", b"data: b\r", b"\r", b"\n", b"data: c\n\n") == [
        [],
        [["message", "a", ""]],
        [],
        [["message", "b", ""]],
        [],
        [["message", "c", ""]],
    ]


@pytest.mark.parametrize(
    ("begin", "piece"),
    [("data: ", "x"), (": ", "x"), ("", "x🙂"), ("", "data: 1234567890123456789012345\n")],
    ids=["data", "comment", "no field", "lines of one event"],
)
def test_sse_given_an_endless_line_throws_and_gives_nothing_more(modules: Modules, begin: str, piece: str) -> None:
    told = modules.run(ENDLESS, [begin, piece])

    assert told["told"] == "RangeError"
    assert told["events"] == []
    assert told["fed"] <= 33  # the names of fields do not count


def test_sse_given_a_line_just_below_the_bound_gives_it_whole(modules: Modules) -> None:
    source = """
    async (load, length) => {
      const { createParser } = await load("stream");
      const lengths = [];
      const parser = createParser(({ data }) => lengths.push(data.length));
      parser.feed(new TextEncoder().encode(`data: ${"x".repeat(length)}`));
      parser.feed(new TextEncoder().encode("\\n\\n"));
      return lengths;
    }
    """
    longest = 16 * MEBI - len("data: ")
    assert modules.run(source, longest) == [longest]
    with pytest.raises(Exception, match="too long"):
        modules.run(source, longest + 1)


def test_sse_ended_inside_its_own_event_gives_nothing_more(modules: Modules) -> None:
    source = """
    async (load) => {
      const { createParser } = await load("stream");
      const seen = [];
      const parser = createParser(({ data }) => {
        seen.push(data);
        parser.end();
      });
      parser.feed(new TextEncoder().encode("data: done\\n\\ndata: more\\n\\n"));
      parser.feed(new TextEncoder().encode("data: later\\n\\n"));
      return seen;
    }
    """
    assert modules.run(source) == ["done"]


@pytest.mark.parametrize(
    ("line", "last", "events"),
    [("\n", "\r", 0), ("\r", "\n", 0), ("data\n\n", "\r", 1_000_000), (":\r\n", "data\n\n", 1)],
)
def test_sse_given_a_million_lines_in_one_chunk_takes_linear_time(
    modules: Modules, line: str, last: str, events: int
) -> None:
    told = modules.run(MANY_LINES, [line, 1_000_000, last])

    assert told["events"] == events
    assert told["seconds"] < 20  # a second search of the rest for each line takes minutes


def test_sse_given_a_long_answer_tells_its_speed(modules: Modules) -> None:
    frames = 100_000
    for size, measured in modules.run(BENCHMARK, frames).items():
        assert measured["events"] == frames
        print(f"the parser, chunks of {size} bytes: {measured['rate'] / 1e6:.0f} MB/s")
