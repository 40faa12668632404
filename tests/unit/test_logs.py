"""Test the log: one JSON object a line, whole whatever stands in it, and silent about what it must not tell."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.observability import lines as logs
from app.observability.exceptions import describe
from app.observability.libraries import configure
from app.observability.lines import LONGEST_LINE_BYTES, LineFormatter, correlation
from app.observability.stdout import Event
from app.streams.interface import new_stream_id

API_KEY = "configured-key-of-the-operator"


def event(name: str, **fields: Any) -> None:
    """Log an event with any fields."""
    logging.getLogger("app").handle(Event(name, logging.INFO, fields))


class Output:
    """What was written since it was last looked at."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd

    def configure(self, *, level: str = "INFO", key: str = "") -> None:
        configure(level=level, secrets=[key])
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
    unconfigured.configure(key=API_KEY)
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
    "an exception's text": lambda secret: event("x", exception=describe(ValueError(secret))),
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
    unconfigured.configure(key="a")
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
        event("error_occurred", exception=describe(error))
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
        event("x", exception=describe(raised))
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

    line = LineFormatter([API_KEY]).format(record)

    assert "\n" not in line
    assert len(line.encode()) <= LONGEST_LINE_BYTES
    assert json.loads(line)["event"] == "x"


# What is set up


def test_configuration_may_be_repeated_and_writes_each_line_once(output: Output) -> None:
    output.configure()
    output.configure()
    logging.getLogger("gunicorn.error").warning("x")

    assert output.line()["logger"] == "gunicorn.error"


@pytest.mark.parametrize("name", ["openai", "httpx2", "httpcore2", "httpx", "urllib3"])
def test_libraries_that_write_requests_are_quiet_even_at_debug(unconfigured: Output, name: str) -> None:
    unconfigured.configure(level="DEBUG")
    logging.getLogger(name).debug("words of a conversation")
    logging.getLogger(f"{name}.sub").info("words of a conversation")

    assert unconfigured.text() == ""
