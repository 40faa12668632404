"""Test the log: one JSON object a line, whole whatever stands in it, and silent about what it must not tell."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.observability import events as logs
from app.observability.events import LONGEST_LINE_BYTES, ChunkLog, configure, correlation, event, utc_now
from app.observability.stdout import Event
from app.settings import Settings
from app.streams.interface import new_stream_id

API_KEY = "configured-key-of-the-operator"


class Output:
    """What was written since it was last looked at."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd

    def configure(self, settings: Settings) -> None:
        configure(settings)
        logging.getLogger("app").setLevel(logging.NOTSET)

    def text(self) -> str:
        captured = self._capfd.readouterr()
        assert captured.err == "", "stderr is past every rule"
        return captured.out

    def lines(self) -> list[dict[str, Any]]:
        parsed = []
        for line in self.text().splitlines():
            assert len(line.encode()) <= LONGEST_LINE_BYTES
            assert line.isascii()
            parsed.append(json.loads(line))
            assert isinstance(parsed[-1], dict)
        return parsed

    def line(self) -> dict[str, Any]:
        (line,) = self.lines()
        return line


@pytest.fixture
def unconfigured(capfd: pytest.CaptureFixture[str]) -> Output:
    return Output(capfd)


@pytest.fixture
def output(unconfigured: Output) -> Iterator[Output]:
    unconfigured.configure(Settings(openai_api_key=API_KEY, log_level="INFO"))
    token = correlation.set(None)
    yield unconfigured
    correlation.reset(token)


@pytest.mark.requirement("core FR-006", "tasks T006")
def test_event_is_one_line_with_time_level_name_and_fields(output: Output) -> None:
    event("stream_started", correlation_id="c-1", tokens=5, ratio=0.5, nothing=None, sizes=[1, 2], usage={"a": 1})
    line = output.line()

    assert list(line)[:4] == ["timestamp", "level", "event", "correlation_id"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["timestamp"])
    assert (line["level"], line["event"], line["correlation_id"]) == ("INFO", "stream_started", "c-1")
    assert (line["tokens"], line["ratio"], line["nothing"]) == (5, 0.5, None)
    assert (line["sizes"], line["usage"]) == ([1, 2], {"a": 1})


@pytest.mark.requirement("tasks T006", "tasks T027")
def test_event_without_a_correlation_id_takes_the_requests(output: Output) -> None:
    correlation.set("c-of-the-request")
    event("x")

    assert output.line()["correlation_id"] == "c-of-the-request"


@pytest.mark.requirement("tasks T006")
def test_timestamps_are_utc_whatever_the_zone_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        assert utc_now(0.0) == "1970-01-01T00:00:00.000Z"
        assert utc_now(1_700_000_000.9996) in ("2023-11-14T22:13:20.999Z", "2023-11-14T22:13:21.000Z")
        assert utc_now(1_700_000_000) == "2023-11-14T22:13:20.000Z"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_line_of_a_library_is_of_the_same_form_without_its_own_fields(output: Output) -> None:
    logging.getLogger("some.package").warning("said %s", "this\nand that", extra={"private": "words"})
    line = output.line()

    assert (line["event"], line["message"], line["logger"]) == ("log", "said this\nand that", "some.package")
    assert "private" not in line


@pytest.mark.parametrize("text", ["a\nb", "\r\n", "\u2028\u0085\x0b\x0c\0", "é😀", '"\\', "x" * 100_000])
def test_line_of_any_text_stays_one_line(output: Output, text: str) -> None:
    logging.getLogger("x").info(text)
    event("y", text=text[:5000])

    assert [line["event"] for line in output.lines()] == ["log", "y"]


# Secrets

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c"
SECRETS = [
    API_KEY,
    "sk-abcdefghijklmnop",
    "sk-proj-abc_def-0123456789",
    "Bearer abcdefgh.ijk-lmn_op~q+r/s=",
    "bearer  abcdefghij",
    "BEARER abcdefghij",
    JWT,
    JWT.rsplit(".", 1)[0] + ".",
    new_stream_id(),
    new_stream_id() + ".17",
]
PLACES: dict[str, Callable[[str], None]] = {
    "a message": lambda secret: logging.getLogger("x").error("before %s after", secret),
    "a message's text": lambda secret: logging.getLogger("x").error("=".join(("key", secret))),
    "a field": lambda secret: event("x", field=secret),
    "a field's text": lambda secret: event("x", field=f"https://host/path?key={secret}&b=1"),
    "a list": lambda secret: event("x", field=["a", secret]),
    "a tuple": lambda secret: event("x", field=("a", f"={secret}")),
    "an object": lambda secret: event("x", field={"a": secret}),
    "an object in an object": lambda secret: event("x", field={"a": {"b": secret}}),
    "a name": lambda secret: event("x", field={secret: 1}),
    "a list in a list": lambda secret: event("x", field=[[secret]]),
    "an object in a list": lambda secret: event("x", field=[{"a": secret}]),
    "a set": lambda secret: event("x", field={secret}),
    "bytes": lambda secret: event("x", field=secret.encode()),
    "an exception": lambda secret: event("x", field=ValueError(secret)),
    "an exception's text": lambda secret: event("x", failure=ValueError(secret)),
    "the event's name": lambda secret: event(secret),
    "the logger's name": lambda secret: logging.getLogger(secret.replace(".", "_")).error("x"),
}


def secret_part(secret: str) -> str:
    return re.sub(r"(?i)^bearer\s+", "", secret).removesuffix(".17")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.requirement("core FR-007", "plan decision 3", "plan design 2", "tasks T006", "tasks T027")
@pytest.mark.requirement("tasks pattern 3")
def test_secret_anywhere_in_a_line_is_redacted(output: Output, place: str) -> None:
    for secret in SECRETS:
        PLACES[place](secret)
        text = output.text()

        assert len(text.splitlines()) == 1, "the premise: a line was written"
        assert secret_part(secret) not in text
        assert json.loads(text)


@pytest.mark.parametrize("visible", [10, 20])
def test_secret_that_is_cut_by_the_bound_of_a_text_shows_no_part_of_it(output: Output, visible: int) -> None:
    before = ("x " * logs.LONGEST_TEXT_CHARS)[: logs.LONGEST_TEXT_CHARS - visible]
    event("x", field=before + API_KEY)
    logging.getLogger("x").info("%s%s", before, API_KEY)
    text = output.text()

    assert len(text.splitlines()) == 2, "the premise: two lines were written"
    assert API_KEY[:visible] not in text


@pytest.mark.parametrize("name", ["password", "api_key", "OPENAI_API_KEY", "access_token", "cookie"])
def test_value_whose_name_gives_it_away_is_redacted(output: Output, name: str) -> None:
    event("x", **{name: "hunter2"}, inner={name: "hunter2"})
    text = output.text()

    assert text.count(name) == 2
    assert "hunter2" not in text


def test_own_fields_are_never_mistaken(output: Output) -> None:
    for number in range(200):
        stream = hashlib.sha256(str(number).encode()).hexdigest()[:12]
        digits = f"{number:012d}"
        event("x", stream=stream, correlation_id=f"41111111-1111-4111-8111-{digits}", sizes=[4111111111111111])
        event("x", stream=digits)

    for line in output.lines():
        assert "redacted" not in json.dumps(line)


def test_key_that_is_short_is_not_taken_out_of_every_word(unconfigured: Output) -> None:
    unconfigured.configure(Settings(openai_api_key="a"))
    event("banana")

    assert unconfigured.line()["event"] == "banana"


@pytest.mark.parametrize("path", ["GET /chat/streaming/cw_x?last_event_id=words", "/?words"])
def test_gunicorns_line_of_a_failed_request_does_not_show_the_address(output: Output, path: str) -> None:
    try:
        raise ValueError("words")
    except ValueError:
        logging.getLogger("gunicorn.error").exception("Error handling request %s", path)
    line = output.line()

    assert (line["message"], line["exception"]["types"]) == ("a request failed", ["ValueError"])
    assert "words" not in json.dumps(line)


def test_gunicorns_line_of_bytes_that_are_no_request_does_not_show_them(output: Output) -> None:
    logging.getLogger("gunicorn.error").warning("Invalid request from ip=203.0.113.9: Invalid HTTP method: 'words'")

    assert output.line()["message"] == "a request was refused before it could be read"


@pytest.mark.parametrize("number", [errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.EBADF])
def test_gunicorns_line_of_a_reader_that_vanished_is_dropped(output: Output, number: int) -> None:
    try:
        raise OSError(number, "gone")
    except OSError:
        logging.getLogger("gunicorn.error").exception("Socket error processing request.")

    assert output.text() == ""


# Exceptions


def test_exception_tells_types_and_places_and_never_its_text(output: Output) -> None:
    def fail() -> None:
        try:
            raise KeyError("words of a conversation")
        except KeyError as error:
            raise ValueError("more words") from error

    try:
        fail()
    except ValueError as error:
        event("error_occurred", failure=error)
        logging.getLogger("lib").exception("it failed")

    for line in output.lines():
        assert line["exception"]["types"] == ["ValueError", "KeyError"]
        assert any(place.endswith(" fail") for place in line["exception"]["places"])
        assert "words" not in json.dumps(line)


def test_exception_of_any_depth_is_described_within_bounds(output: Output) -> None:
    error: Exception = ValueError("x")
    for _ in range(1000):
        outer = RuntimeError("x")
        outer.__cause__ = error
        error = outer

    def deep(left: int) -> None:
        if left:
            deep(left - 1)
        raise error

    try:
        deep(200)
    except RuntimeError as raised:
        event("x", failure=raised)
    assert len(output.line()["exception"]["places"]) <= 12


# What cannot be formatted


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("words")

    __repr__ = __str__


HOSTILE: dict[str, tuple[Any, Any]] = {
    "half a surrogate pair": ("\ud800", "\ud800"),
    "an object without text": (Unprintable(), "[Unprintable]"),
    "a huge integer": (10**5000, "[an integer of 16610 bits]"),
    "a huge text": ("é" * 1_000_000, "é" * 200 + "…"),
    "a huge list": (list(range(100_000)), "[4890 bytes left out]"),
    "not a number": (float("nan"), "nan"),
    "infinity": (float("-inf"), "-inf"),
    "bytes": (b"\xff", "b'\\xff'"),
    "a loop": ([], [[[[[["…"]]]]]]),
    "bottomless": ({}, {"a": {"a": {"a": {"a": {"a": {"a": "…"}}}}}}),
    "keys without text": ({Unprintable(): 1}, {"[Unprintable]": 1}),
}
HOSTILE["a loop"][0].append(HOSTILE["a loop"][0])
_inner = HOSTILE["bottomless"][0]
for _ in range(5000):
    _inner["a"] = {}
    _inner = _inner["a"]


@pytest.mark.parametrize("name", HOSTILE)
def test_value_that_cannot_be_formatted_is_replaced_and_the_rest_of_its_line_stands(output: Output, name: str) -> None:
    value, shown = HOSTILE[name]
    event("hostile", before=1, field=value, after="b")

    line = output.line()
    assert (line["event"], line["before"], line["field"], line["after"]) == ("hostile", 1, shown, "b")


@pytest.mark.parametrize(
    ("message", "arguments"),
    [("%s", (Unprintable(),)), ("%d items", ("no number",)), ("%s and %s", ("one",)), ("%(a)s", ({"b": 1},))],
)
def test_message_whose_arguments_cannot_be_formatted_is_told_without_them(
    output: Output, message: str, arguments: tuple[Any, ...]
) -> None:
    del logging.getLogger().handlers[1:]  # pytest's own, which do not bear it
    logging.getLogger("some.package").warning(message, *arguments)

    line = output.line()
    assert line["logger"] == "some.package"
    assert line["message"] == f"{message} (its arguments could not be formatted)"


@pytest.mark.parametrize("args", [(), ("an argument",)], ids=["alone", "with an argument"])
def test_message_without_text_neither_raises_nor_is_silent(output: Output, args: tuple[str, ...]) -> None:
    del logging.getLogger().handlers[1:]  # pytest's own, which do not bear it
    logging.getLogger("some.package").warning(Unprintable(), *args)

    line = output.line()
    assert line["logger"] == "some.package"
    assert "Unprintable" in line["message"]


def test_line_that_would_be_too_long_leaves_out_its_longest_fields_and_says_so(output: Output) -> None:
    event("x", texts=["é" * 1000] * 10, short="a", numbers=[10**15] * 900, figure=5)

    line = output.line()
    assert (line["short"], line["figure"]) == ("a", 5)
    assert re.fullmatch(r"\[\d{5} bytes left out\]", line["texts"])
    assert line["numbers"] == "[16200 bytes left out]"


def test_line_of_countless_fields_says_that_it_was_there(output: Output) -> None:
    event("x", **{f"field{number}": "a" * 100 for number in range(1000)})

    assert output.line()["event"] == "log_line_unformatted"


def test_line_that_cannot_be_written_prints_nothing_on_stderr(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(fd: int, line: bytes) -> int:
        raise BrokenPipeError

    with monkeypatch.context() as broken:
        broken.setattr(os, "write", gone)
        logging.getLogger("x").error("words")
    logging.getLogger("x").error("it is back")

    assert output.line()["message"] == "it is back"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(), max_size=5), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(JSON)
@pytest.mark.requirement("tasks T027")
def test_formatter_given_any_fields_writes_one_json_object_of_bounded_size(value: Any) -> None:
    record = Event("x", logging.INFO, {"field": value})

    line = logs._Formatter(API_KEY).format(record)

    assert "\n" not in line
    assert len(line.encode()) <= LONGEST_LINE_BYTES
    assert json.loads(line)["event"] == "x"


# What is set up


def test_configuration_may_be_repeated_and_writes_each_line_once(output: Output) -> None:
    output.configure(Settings())
    output.configure(Settings())
    logging.getLogger("gunicorn.error").warning("x")

    assert output.line()["logger"] == "gunicorn.error"


@pytest.mark.parametrize("name", ["openai", "httpx2", "httpcore2", "httpx", "urllib3"])
def test_libraries_that_write_requests_are_quiet_even_at_debug(unconfigured: Output, name: str) -> None:
    unconfigured.configure(Settings(log_level="DEBUG"))
    logging.getLogger(name).debug("words of a conversation")
    logging.getLogger(f"{name}.sub").info("words of a conversation")

    assert unconfigured.text() == ""


# Chunks


class Lines:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._formatter = logs._Formatter("")
        monkeypatch.setattr(logs, "event", self._take)

    def _take(self, name: str, **fields: Any) -> None:
        self.events.append((name, fields))
        line = json.loads(self._formatter.format(Event(name, logging.INFO, fields)))
        assert line["event"] == name, "the line was too long"

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


@given(st.floats(0, 4_102_444_800) | st.floats(1_699_999_999, 1_700_000_002) | st.integers(0, 4_102_444_800))
def test_time_of_a_line_is_its_moment_cut_to_milliseconds(at: float) -> None:
    """Reckoned in whole numbers: what is kept for a second must never be that of another one."""
    told = utc_now(at)

    moment = datetime.fromisoformat(told)
    assert told == moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    ms = round(moment.timestamp() * 1000)
    # A float is seldom the number it was written as: 0.3 is a little less, and is told as 300 ms all the same.
    assert Fraction(at) * 1000 - 1 < ms <= Fraction(at) * 1000 + Fraction(1, 100)


def test_time_of_now_never_goes_back_from_line_to_line() -> None:
    before = datetime.now(UTC)
    told = [utc_now() for _ in range(2000)]

    assert told == sorted(told)
    assert abs((datetime.fromisoformat(told[0]) - before).total_seconds()) < 1


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
