"""Test what is read of an upstream's error for the client whose request it judges, and what the client never gets."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import Reported
from app.observability.redaction import MARK
from app.upstream.reports import JUDGING, ReportReader, status_in

KEY = "own+key/0123456789abcdef"
READER = ReportReader(secrets=[KEY, "", "abc"], hosts=["models.internal.test", ""])
OPENAI = {"message": "No.", "type": "invalid_request_error", "param": "messages", "code": "bad"}
FASTAPI = [
    {"type": "missing", "loc": ["body", "messages", 0, "content"], "msg": "Field required", "input": {"role": "user"}},
    {"type": "int_type", "loc": ["body", "n"], "msg": "Not an integer", "input": "the client's own words"},
]


def read(report: object, status: int = 400) -> Reported | None:
    return READER.read(report, status)


def message_of(report: object) -> str:
    reported = read(report)
    assert reported is not None
    return reported.message


@pytest.mark.parametrize(
    ("report", "said"),
    [
        ({"error": OPENAI}, Reported(400, "No.", "invalid_request_error", "messages", "bad")),
        (OPENAI, Reported(400, "No.", "invalid_request_error", "messages", "bad")),
        ([{"error": {"code": 400, "message": "No.", "status": "X"}}], Reported(400, "No.", None, None, "400")),
        ({"error": {"message": "No."}}, Reported(400, "No.")),
        ({"error": "No."}, Reported(400, "No.")),
        ({"error": "No.", "type": "t", "param": "p", "code": "c"}, Reported(400, "No.", "t", "p", "c")),
        ({"error": "Not Found", "message": "No.", "status": 404}, Reported(400, "No.")),
        ({"error": True, "message": "No."}, Reported(400, "No.")),
        ({"error": None, "message": "No."}, Reported(400, "No.")),
        ({"error": {}, "message": "No."}, Reported(400, "No.")),
        ({"error": {"error": {"message": "No.", "code": "c"}}}, Reported(400, "No.", None, None, "c")),
        (
            {"object": "error", "message": "No.", "type": "BadRequestError", "param": None, "code": 400},
            Reported(400, "No.", "BadRequestError", None, "400"),
        ),
        ({"message": "No."}, Reported(400, "No.")),
        ({"detail": "No."}, Reported(400, "No.")),
        ({"detail": {"error": {"message": "No."}}}, Reported(400, "No.")),
        ({"type": "about:blank", "title": "Bad", "detail": "No."}, Reported(400, "No.", "about:blank")),
        (
            {"detail": FASTAPI},
            Reported(400, "messages.0.content: Field required; n: Not an integer"),
        ),
        ({"detail": FASTAPI[1:]}, Reported(400, "n: Not an integer", None, "n")),
        (
            {"object": "error", "message": {"detail": FASTAPI[1:]}, "type": "t", "param": None, "code": None},
            Reported(400, "n: Not an integer", "t"),
        ),
        ("No.", Reported(400, "No.")),
        ("404 page not found", Reported(400, "404 page not found")),
    ],
)
def test_report_is_read_where_servers_put_it(report: object, said: Reported) -> None:
    assert read(report) == said


@pytest.mark.parametrize(
    "report",
    [
        None,
        5,
        True,
        "",
        "  \n",
        {},
        [],
        [[]],
        {"error": None},
        {"error": {}},
        {"error": {"code": "c", "type": "t"}},
        {"message": 5},
        {"message": ["", None]},
        "<html><head><title>413</title>",
        " <!doctype html>",
        '{"error": {"message": "broken o',
        '[{"error": 1',
    ],
)
def test_report_that_says_nothing_is_none(report: object) -> None:
    assert read(report) is None


def test_report_has_the_status_that_is_given() -> None:
    assert [read({"error": "No."}, status) for status in JUDGING] == [Reported(status, "No.") for status in JUDGING]


@pytest.mark.parametrize("value", [None, True, False, 1.5, {}, {"a": "b"}, ["text"], ""])
def test_field_that_is_no_text_and_no_whole_number_is_left_out(value: object) -> None:
    assert read({"message": "No.", "type": value, "param": value, "code": value}) == Reported(400, "No.")


def test_whole_number_is_written_as_text() -> None:
    assert read({"message": "No.", "type": 0, "param": -1, "code": 10**4000}) == Reported(
        400, "No.", "0", "-1", "1" + "0" * 98 + "…"
    )


# Bounds


def test_texts_are_cut_to_their_bounds_and_no_shorter() -> None:
    text = "word " * 400
    fits = Reported(400, text[:999] + ".", "t" * 100, "p" * 100, "c" * 100)

    assert read({"message": text[:999] + ".", "type": "t" * 100, "param": "p" * 100, "code": "c" * 100}) == fits
    cut = read({"message": text * 9, "type": "t" * 101, "param": "p" * 5_000, "code": "c" * 90_000})

    assert cut is not None
    assert [len(value or "") for value in (cut.message, cut.type, cut.param, cut.code)] == [1000, 100, 100, 100]
    assert cut.message.endswith("…")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("two\nlines\r\nand\ttabs", "two lines and tabs"),
        ("\x1b[31mred\x00\x7f\x85", "[31mred"),
        ("a\u2028b\u2029c\u202ed\u200be\ufefff", "a b c d e f"),
        ("half \ud83d a pair", "half a pair"),
        ("\ue000private", "private"),
        ("Grüße, 世界 😀", "Grüße, 世界 😀"),
    ],
)
def test_texts_are_of_one_printable_line(text: str, line: str) -> None:
    assert read({"message": text, "type": text, "param": text, "code": text}) == Reported(400, line, line, line, line)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["error", "message", "detail", "msg", "loc", "code", "type"]), inner)
    ),
)


@given(_VALUES)
def test_report_of_any_shape_gives_short_printable_texts_or_nothing(report: Any) -> None:
    reported = read(report)
    status = status_in(report)

    assert status is None or status in JUDGING
    if reported is not None:
        assert 0 < len(reported.message) <= 1000
        for text in (reported.message, reported.type, reported.param, reported.code):
            assert text is None or (text.isprintable() and len(text.encode()) <= 4000 and text)
        for text in (reported.type, reported.param, reported.code):
            assert text is None or len(text) <= 100


def test_report_that_is_nested_without_end_or_lists_without_end_is_read_within_bounds() -> None:
    deep: Any = "deep"
    for _ in range(900):
        deep = {"error": [deep], "message": [deep]}
    faults = [{"msg": f"fault {number}", "loc": ["body", *["step"] * 500]} for number in range(9_000)]

    lists: Any = "deep"
    objects: Any = "deep"
    for _ in range(9):
        lists, objects = [lists], {"message": objects}

    assert read(deep) is None
    assert read({"message": lists}) is None
    assert read(objects) is None
    assert message_of({"detail": [{"msg": f"fault {number}"} for number in range(9)]}).endswith("; fault 3")
    assert message_of({"detail": faults[:1]}) == "step" + ".step" * 8 + ": fault 0"
    assert len(message_of({"detail": faults})) <= 1000


# What never gets out


@pytest.mark.parametrize("place", ["message", "type", "param", "code"])
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"bad key {KEY}.", f"bad key {MARK}."),
        (f"x{KEY}x", f"x{MARK}x"),
        ("at models.internal.test", f"at {MARK}"),
        ("at http://models.internal.test:8443/v1/x", f"at http://{MARK}/v1/x"),
        ("at MODELS.Internal.Test:8443.", f"at {MARK}."),
        ("eu.models.internal.test", f"eu.{MARK}"),
        ("models.internal.testing", "models.internal.testing"),
        ("call +49 30 1234567, mail a@b.test, 10.1.2.3", f"call {MARK}, mail {MARK}, {MARK}"),
        ("sk-proj-abcdefgh12345678 is wrong", f"{MARK} is wrong"),
        ("abc is too short to be a secret", "abc is too short to be a secret"),
    ],
)
def test_secrets_and_the_host_are_in_no_field(place: str, text: str, shown: str) -> None:
    reported = read({"message": "No.", place: text})

    assert reported is not None
    assert getattr(reported, place) == shown


@pytest.mark.parametrize("at", [70, 90, 97, 980, 998, 3_030, 3_040, 16_340, 16_355, 16_370])
def test_secret_at_an_edge_shows_no_part_of_itself(at: int) -> None:
    """Also where what stands before it becomes shorter."""
    for filler in ("word ", "sk-" + "a" * 500 + " ", " "):
        text = (filler * 17_000)[:at] + KEY + " models.internal.test"
        reported = read({"message": text, "code": text})

        assert reported is not None
        for shown in (reported.message, reported.code or ""):
            assert "own" not in shown
            assert "mod" not in shown


def test_host_of_one_common_word_is_hidden_as_a_word() -> None:
    reader = ReportReader(secrets=[], hosts=["vllm"])

    reported = reader.read("vllm:8000 of vllm-engine and xvllm", 400)
    assert reported is not None
    assert reported.message == f"{MARK} of vllm-engine and xvllm"


def test_reader_without_secrets_and_hosts_hides_nothing_of_its_own() -> None:
    assert ReportReader(secrets=[""], hosts=[""]).read("A plain text", 400) == Reported(400, "A plain text")


@pytest.mark.parametrize(
    "text",
    [
        "This model's maximum context length is 8192 tokens. However, you requested 10000 tokens (2000 in the "
        "messages, 8000 in the completion). Please reduce the length of the messages or completion.",
        "The model `gpt-9-turbo-2026-01-31` does not exist or you do not have access to it.",
        "Invalid value: 'bot'. Supported values are: 'system', 'assistant', 'user', 'function', and 'tool'.",
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
        "Rate limit reached for gpt-4o in organization org-abc on tokens per min (TPM): Limit 30000, Used 29500, "
        "Requested 900. Please try again in 800ms.",
        "Invalid schema for function 'find': In context=('properties', 'x'), 'additionalProperties' is required.",
        "request (9000 tokens) exceeds the available context size (4096 tokens), try increasing it",
    ],
)
def test_words_that_steer_a_client_are_kept_as_they_are(text: str) -> None:
    assert read(json.loads(json.dumps({"error": {**OPENAI, "message": text}}))) == Reported(
        400, text, "invalid_request_error", "messages", "bad"
    )


# The status that stands in a report


@pytest.mark.parametrize(
    ("report", "status"),
    [
        *(({"message": "x", "code": status}, status) for status in JUDGING),
        ({"code": "429"}, 429),
        ({"status": 404}, 404),
        ({"status_code": 413}, 413),
        ({"http_status": 422}, 422),
        ({"error": {"code": 400}}, 400),
        ({"code": "context_length_exceeded", "status": 400}, 400),
        ({"code": 401}, None),
        ({"code": 500}, None),
        ({"code": "04 00"}, None),
        ({"code": True}, None),
        ({"code": [400]}, None),
        ({}, None),
        ("400", None),
        (400, None),
        (None, None),
    ],
)
def test_status_in_a_report_is_one_that_judges_a_request(report: object, status: int | None) -> None:
    assert status_in(report) == status
