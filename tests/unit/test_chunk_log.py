"""Test how the records of a generation are told of: each once, many in a line, and no line too long."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from app.observability import observer
from app.observability.chunk_log import ChunkLog
from app.observability.facts import Fact
from app.observability.lines import LineFormatter
from app.observability.stdout import Event


class Lines:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._formatter = LineFormatter()
        monkeypatch.setattr(observer, "_listeners", (self._take,))

    def _take(self, fact: Fact) -> None:
        self.events.append((fact.event, fact.fields()))
        line = json.loads(self._formatter.format(Event(fact.event, fact.level, fact.fields())))
        assert line["event"] == fact.event, "the line was too long"

    def of(self, name: str) -> list[dict[str, Any]]:
        return [fields for event, fields in self.events if event == name]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Lines:
    return Lines(monkeypatch)


def chunk_log(sizes: list[int]) -> ChunkLog:
    """Make one whose chunks have these sizes."""

    def told(first: int, last: int) -> list[int]:
        assert 1 <= first <= last <= len(sizes), "asked for what there is"
        return sizes[first - 1 : last]

    return ChunkLog(stream="0123456789ab", correlation_id="c-1", started=100.0, sizes=told)


def test_chunks_are_written_a_line_a_second_and_each_of_them_once(lines: Lines) -> None:
    count, gap = 1000, 0.01
    chunks = chunk_log([number % 50 + 1 for number in range(count)])
    for number in range(count):
        chunks.add(1, 100.0 + number * gap)
    chunks.flush(100.0 + count * gap)
    chunks.flush(100.0 + count * gap)

    written = lines.of("chunks_sent")
    sequences = [number for line in written for number in range(line["first"], line["last"] + 1)]
    assert sequences == list(range(1, count + 1))
    assert [size for line in written for size in line["bytes"]] == [number % 50 + 1 for number in range(count)]
    assert [ms for line in written for ms in line["ms"]][::100] == [number * 1000 for number in range(10)]
    assert len(written) <= count * gap + 1
    assert {(line["stream"], line["correlation_id"]) for line in written} == {("0123456789ab", "c-1")}


def test_chunks_however_many_and_large_keep_their_lines_within_bounds(lines: Lines) -> None:
    chunks = chunk_log([4_000_000] * 5000)
    for _ in range(5000):
        chunks.add(1, 100.0 + 86_400.0)
    chunks.flush(100.0 + 86_400.0)

    written = lines.of("chunks_sent")
    assert sum(line["last"] - line["first"] + 1 for line in written) == 5000


def test_chunks_that_never_came_write_nothing(lines: Lines) -> None:
    chunk_log([]).flush(200.0)

    assert lines.events == []


@pytest.mark.requirement("tasks T025")
def test_chunks_at_debug_are_also_written_one_by_one(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("app"), "level", logging.DEBUG)
    logging.getLogger("app").manager._clear_cache()  # type: ignore[attr-defined]
    chunks = chunk_log([5, 6, 7])
    assert chunks.debug, "the premise"
    chunks.add(1, 100.5)
    chunks.add(1, 102.0)
    chunks.add(1, 102.25)
    chunks.flush(103.0)

    one_by_one = lines.of("chunk_sent")
    assert [(line["sequence"], line["bytes"], line["ms"]) for line in one_by_one] == [
        (1, 5, 500),
        (2, 6, 2000),
        (3, 7, 2250),
    ]
    assert [(line["first"], line["last"]) for line in lines.of("chunks_sent")] == [(1, 2), (3, 3)]
    logging.getLogger("app").manager._clear_cache()  # type: ignore[attr-defined]


def test_chunks_that_came_together_have_one_time_and_the_numbers_that_follow(lines: Lines) -> None:
    chunks = chunk_log([1, 2, 3, 4, 5, 6])
    chunks.add(3, 100.2504)
    chunks.add(0, 100.3)
    chunks.add(1, 100.5)
    assert lines.events == [], "nothing before a second is over"
    chunks.add(1, 101.0)
    chunks.add(1, 101.5)

    assert lines.of("chunks_sent") == [
        {
            "stream": "0123456789ab",
            "correlation_id": "c-1",
            "first": 1,
            "last": 5,
            "bytes": [1, 2, 3, 4, 5],
            "ms": [250, 250, 250, 500, 1000],
        }
    ]
    chunks.flush(101.6)
    assert (lines.of("chunks_sent")[1]["first"], lines.of("chunks_sent")[1]["bytes"]) == (6, [6])


@pytest.mark.parametrize("count", [239, 240, 241, 1000])
def test_chunks_however_many_come_together_keep_their_lines_within_bounds(lines: Lines, count: int) -> None:
    chunks = chunk_log([7] * 100 + list(range(4_000_000, 4_000_000 + count)))
    chunks.add(100, 100.1)
    chunks.add(count, 100.2)
    chunks.flush(100.3)

    written = lines.of("chunks_sent")
    assert max(len(line["bytes"]) for line in written) <= ChunkLog.LINE_CHUNKS
    assert [size for line in written for size in line["bytes"]] == [7] * 100 + list(range(4_000_000, 4_000_000 + count))
    place = 0
    for line in written:
        assert (line["first"], line["last"]) == (place + 1, place + len(line["bytes"]))
        place = line["last"]


def test_chunks_that_came_together_at_debug_are_written_one_by_one(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = chunk_log([1] + [2] * 300)
    chunks.debug = True
    chunks.add(1, 100.0)
    chunks.add(300, 100.5)

    assert [line["sequence"] for line in lines.of("chunk_sent")] == list(range(1, 302))
    assert [line["bytes"] for line in lines.of("chunk_sent")] == [1] + [2] * 300
    assert {line["ms"] for line in lines.of("chunk_sent")[1:]} == {500}
