"""Test the writing of lines: never waiting for their reader, whole and in order, and what is lost is counted."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.observability import stdout as output
from app.observability.lines import LONGEST_LINE_BYTES, LineFormatter
from app.observability.stdout import Event, LineHandler, Lines

Pipe = tuple[int, int]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """Make a pipe of the smallest size."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    yield reader, writer
    for fd in (reader, writer):
        with contextlib.suppress(OSError):
            os.close(fd)


def read_all(fd: int) -> bytes:
    """Read what stands in a pipe."""
    os.set_blocking(fd, False)
    read = b""
    with contextlib.suppress(BlockingIOError):
        while data := os.read(fd, 65_536):
            read += data
    return read


def line(number: int) -> bytes:
    return f"{number:06d}".encode() * 50 + b"\n"


def test_lines_that_fit_are_there_at_once(pipe: Pipe) -> None:
    lines = Lines(pipe[1])
    for number in range(5):
        lines.write(line(number))

    assert read_all(pipe[0]) == b"".join(map(line, range(5)))
    assert lines.is_clear


def test_lines_to_a_full_pipe_wait_for_nobody_and_come_later_whole_and_in_order(pipe: Pipe) -> None:
    lines = Lines(pipe[1])
    for number in range(1000):  # 300 kB into 4: a blocking write would hang here, and the test time out
        lines.write(line(number))
    assert not lines.is_clear

    received = b""
    while not lines.is_clear:
        received += read_all(pipe[0])
        lines.send()
    received += read_all(pipe[0])
    assert received == b"".join(map(line, range(1000)))
    assert lines.lost == 0


def test_line_of_which_a_part_was_taken_goes_on_behind_that_part(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = Lines(pipe[1])
    taken: list[bytes] = []

    def take_some(data: bytes) -> int:
        assert len(taken) < 20, "it begins anew again and again"
        taken.append(data[:100])
        return len(taken[-1])

    monkeypatch.setattr(lines, "_send", take_some)  # as a terminal does
    lines.write(line(1))
    lines.write(line(2))

    assert b"".join(taken) == line(1) + line(2)
    assert lines.is_clear


def test_lines_beyond_the_bound_are_lost_and_counted_and_the_others_are_not(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "MOST_WAITING_BYTES", 10_000)
    lines = Lines(pipe[1])
    for number in range(100):
        lines.write(line(number))
    kept = 100 - lines.lost
    assert 10_000 // 301 <= kept <= (10_000 + 4096) // 301 + 1

    received = b""
    while not lines.is_clear:
        received += read_all(pipe[0])
        lines.send()
    assert received + read_all(pipe[0]) == b"".join(map(line, range(kept)))


def test_descriptor_that_others_share_still_blocks_for_them(pipe: Pipe) -> None:
    Lines(pipe[1]).write(b"x\n")

    assert os.get_blocking(pipe[1])


def test_file_is_written_where_it_was(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb", buffering=0) as file:
        file.write(b"before\n")
        lines = Lines(file.fileno())
        lines.write(b"a line\n")
        lines.close()
        file.write(b"after\n")

    assert (tmp_path / "log").read_bytes() == b"before\na line\nafter\n"


def test_reader_that_is_gone_costs_the_lines_and_no_memory(pipe: Pipe) -> None:
    lines = Lines(pipe[1])
    os.close(pipe[0])
    for number in range(10):
        with pytest.raises(BrokenPipeError):
            lines.write(line(number))

    assert lines.is_clear


def test_closing_gives_the_reader_a_moment(pipe: Pipe) -> None:
    lines = Lines(pipe[1])
    for number in range(100):
        lines.write(line(number))
    received: list[bytes] = []

    def read() -> None:
        while len(b"".join(received)) < 100 * 301:
            received.append(os.read(pipe[0], 65_536))

    reader = threading.Thread(target=read)
    reader.start()
    lines.close()
    reader.join(10)
    assert b"".join(received) == b"".join(map(line, range(100)))
    lines.close()


def test_closing_gives_up_on_a_reader_that_does_not_read(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "LAST_SECONDS", 0.05)
    lines = Lines(pipe[1])
    for number in range(100):
        lines.write(line(number))
    begin = time.monotonic()
    lines.close()

    assert time.monotonic() - begin < 10
    assert lines.is_clear


def test_closing_takes_no_longer_than_its_moment_with_a_reader_that_reads_slowly(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "LAST_SECONDS", 0.3)
    lines = Lines(pipe[1])
    for number in range(10_000):  # 3 MB, of which 4 KiB are taken every tenth of a second
        lines.write(line(number))
    done = threading.Event()

    def read() -> None:
        while not done.wait(0.1):
            os.read(pipe[0], 4096)

    reader = threading.Thread(target=read)
    reader.start()
    begin = time.monotonic()
    lines.close()
    took = time.monotonic() - begin
    done.set()
    reader.join(10)
    assert took < 10  # all of it would take over a minute


def test_lines_to_a_full_socket_wait_for_nobody_and_come_later() -> None:
    """Such as journald's, which cannot be opened twice."""
    here, there = socket.socketpair()
    with here, there:
        lines = Lines(here.fileno())
        sent = b"".join(map(line, range(5000)))
        for number in range(5000):
            lines.write(line(number))
        assert not lines.is_clear, "the premise: it is full"
        assert os.get_blocking(here.fileno())
        received = b""
        while len(received) < len(sent):
            received += there.recv(65_536)
            lines.send()
        assert received == sent
        lines.close()
        os.fstat(here.fileno())  # still there, and ours


def test_nothing_is_written_after_the_end_into_what_has_the_number_now(pipe: Pipe, tmp_path: Path) -> None:
    handler = LineHandler(pipe[1])
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.close()
    with (tmp_path / "a").open("wb"), (tmp_path / "b").open("wb"):
        handler.handle(logging.makeLogRecord({"msg": "late"}))

    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == b""
    assert read_all(pipe[0]) == b""


def test_line_of_the_longest_size_is_taken_whole_or_not_at_all(pipe: Pipe) -> None:
    lines = Lines(pipe[1])
    lines.write(b"x" * 100 + b"\n")
    lines.write(b"y" * LONGEST_LINE_BYTES + b"\n")

    assert read_all(pipe[0]) == b"x" * 100 + b"\n"
    lines.send()
    assert read_all(pipe[0]) == b"y" * LONGEST_LINE_BYTES + b"\n"


def test_stdout_that_is_closed_is_nobodys_and_written_by_nobody(pipe: Pipe) -> None:
    os.close(pipe[1])
    lines = Lines(pipe[1])
    with pytest.raises(OSError):  # noqa: PT011 - of its number, -1
        lines.write(b"x\n")

    lines.close()
    assert lines.is_clear


def test_child_does_not_send_what_its_parent_had_not_sent(pipe: Pipe) -> None:
    lines = Lines(pipe[1])
    for number in range(100):
        lines.write(line(number))
    before = read_all(pipe[0])
    lines._process = -1  # as after a fork
    lines.send()
    assert read_all(pipe[0]) == b""
    lines.write(b"of the child\n")
    assert read_all(pipe[0]) == b"of the child\n"
    lines.close()

    assert before


def test_handler_tells_how_many_lines_were_lost_once_there_is_room(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "MOST_WAITING_BYTES", 10_000)
    handler = LineHandler(pipe[1])
    handler.setFormatter(LineFormatter())
    for number in range(1000):
        handler.handle(Event("e" * 100, logging.INFO, {"lines": number}))

    received = b""
    for _ in range(100):
        received += read_all(pipe[0])
        handler.flush()
    records = [json.loads(text) for text in (received + read_all(pipe[0])).splitlines()]
    assert records[-1]["event"] == "log_lines_dropped"
    assert [record["lines"] for record in records[:-1]] == list(range(len(records) - 1))
    assert len(records) - 1 + records[-1]["lines"] == 1000
    assert [record["event"] for record in records].count("log_lines_dropped") == 1
    handler.close()
