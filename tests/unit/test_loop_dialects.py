"""Test that the reading loop knows no dialect: the same loop speaks another one, over a real log."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from app import reading
from app.dialects.interface import Dialect
from app.dialects.native.frames import NativeFrames
from app.reading import loop
from app.reading.readers import Readers
from app.server.direct import DirectWriter
from tests.unit.ends import end_with
from tests.unit.readings import Time, finish, ignore, log_of
from tests.unit.test_loop_direct import Served
from tests.unit.tiny_dialect import TinyDialect

TINY: Dialect = TinyDialect()


def begin(log: Any, after: int = 0, readers: Readers | None = None, drop: Any = ignore, dialect: Any = TINY) -> Any:
    readers = readers or Readers(limit=10, heartbeat_seconds=10.0)
    return loop.frames(log, after, dialect, readers, left=ignore, drop=drop)


def test_reading_imports_no_dialect_but_the_interface() -> None:
    names: set[str] = set()
    for file in Path(reading.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                names |= {f"{node.module}.{name.name}" for name in node.names}
            elif isinstance(node, ast.Import):
                names |= {name.name for name in node.names}

    assert {name for name in names if "dialects" in name} == {"app.dialects.interface.Dialect"}
    assert not {name for name in names if name.startswith(("json", "flask"))}


def test_dialect_of_one_frame_a_record_gets_it_although_many_came_at_once() -> None:
    log = log_of(end=False)
    log.append("a", "é", "b")
    finish(log)

    assert list(begin(log)) == [
        b"open 0 3 10\n",
        b"1 'a'\n",
        "2 'é'\n".encode(),
        b"3 'b'\n",
        b"total 3\nover complete\n",
    ]
    assert list(begin(log, 2)) == [b"open 2 3 10\n", b"3 'b'\n", b"total 3\nover complete\n"]


@pytest.mark.parametrize("status", ["cancelled", "failed"])
def test_last_frames_are_the_dialects_however_a_log_ends(status: str) -> None:
    log = log_of("a", end=False)
    log.finish(end_with(status))

    assert list(begin(log))[-1] == b"total 1\nover %s\n" % status.encode()


def test_heartbeat_is_the_dialects(monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time()
    monkeypatch.setattr(loop, "time", time)
    log = log_of("a", end=False)
    stream = begin(log, 1)
    next(stream)
    time.now += 1e9

    assert next(stream) == b"alive 1\n"
    stream.close()


class Ahead:
    """A log that has given its readers more than the others could have."""

    is_unresumable = True
    stored = 1

    def __init__(self, log: Any) -> None:
        self.sharing = self
        self._log = log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)


def test_notices_are_the_dialects_and_each_is_given_once() -> None:
    log = Ahead(log_of("a", "b", end=False))
    stream = begin(log)

    assert [next(stream) for _ in range(3)] == [b"open 0 2 10\n", b"here only 1\n", b"1 'a'\n"]
    log.is_unresumable, log.stored = False, 2
    assert [next(stream) for _ in range(2)] == [b"everywhere 2\n", b"2 'b'\n"]
    stream.close()


def test_body_that_may_not_end_early_is_broken_when_its_reader_is_sent_away() -> None:
    """A drain, and a place that another reader needs, end the loop before the log's end."""
    log = log_of("a", end=False)
    readers = Readers(limit=10, heartbeat_seconds=10.0)
    drops: list[int] = []
    stream = begin(log, 0, readers, drop=lambda: drops.append(1))
    assert [next(stream) for _ in range(2)] == [b"open 0 1 10\n", b"1 'a'\n"]
    readers.release_all()
    assert drops == []

    assert list(stream) == []
    assert drops == [1]
    assert (log.readers, readers.count) == (0, 0)


def test_body_that_ends_with_its_log_is_not_broken_even_when_its_reader_is_sent_away() -> None:
    log = log_of("a")
    readers = Readers(limit=10, heartbeat_seconds=10.0)
    drops: list[int] = []
    stream = begin(log, 0, readers, drop=lambda: drops.append(1))
    next(stream)
    readers.release_all()

    assert list(stream) == [b"1 'a'\n", b"total 1\nover complete\n"]
    assert drops == []


def test_end_is_told_when_all_of_it_was_written() -> None:
    """A connection that is dropped before must not end in order."""
    log = log_of("a")
    readers = Readers(limit=10, heartbeat_seconds=10.0)
    ended: list[int] = []
    stream = loop.frames(log, 0, TINY, readers, left=ignore, drop=ignore, ends=lambda: ended.append(1))
    assert [next(stream) for _ in range(3)][-1] == b"total 1\nover complete\n"
    assert ended == []

    assert list(stream) == []
    assert ended == [1]


def test_body_that_may_end_early_is_ended_properly() -> None:
    log = log_of("a", end=False)
    readers = Readers(limit=10, heartbeat_seconds=10.0)
    drops: list[int] = []
    native = NativeFrames(log.stream_id, log.origin)
    stream = begin(log, 0, readers, drop=lambda: drops.append(1), dialect=native)
    next(stream)
    readers.release_all()

    assert len(list(stream)) == 1
    assert drops == []


def test_records_for_a_sleeping_reader_are_written_directly_in_its_dialect() -> None:
    log = log_of(end=False)
    with Served(log, chunked=False, dialect=TINY) as served:
        assert isinstance(served.writer, DirectWriter)
        served.wait_asleep()
        log.append("a")
        assert served.reader._asleep, "not woken"
        log.append("b", "c")
        served.wait_asleep()
        log.append("d")
        finish(log)
        body = served.read_rest()
        served.join()

    assert body == b"open 0 0 1000\n1 'a'\n2 'b'\n3 'c'\n4 'd'\ntotal 4\nover complete\n"
    assert served.yielded[1:3] == [b"2 'b'\n", b"3 'c'\n"], "what came together is divided by the loop"
