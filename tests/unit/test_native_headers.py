"""Test what the headers of a request say: a cursor, an idempotency key, how long to wait."""

from __future__ import annotations

import hashlib

import pytest

from app import errors
from app.dialects.native.headers import Cursor, place_after, read_cursor, read_key, read_wait_seconds
from tests.unit.readings import log_of

# Cursors


@pytest.mark.parametrize(
    ("raw", "cursor"),
    [
        ("cw_x.0", Cursor("cw_x", 0)),
        ("a-B_9.10", Cursor("a-B_9", 10)),
        (f"a.{2**53}", Cursor("a", 2**53)),
        ("a" * 126 + ".1", Cursor("a" * 126, 1)),
    ],
)
def test_cursor_is_a_stream_id_and_a_number(raw: str, cursor: Cursor) -> None:
    assert read_cursor(raw) == cursor


@pytest.mark.parametrize(
    "raw",
    ["a", "a.", ".1", "a.01", "a.-1", "a.1 ", " a.1", "a.b.1", "é.1", f"a.{2**53 + 1}", "a" * 127 + ".1"],
)
def test_cursor_of_another_form_is_malformed(raw: str) -> None:
    with pytest.raises(errors.CursorMalformed):
        read_cursor(raw)


@pytest.mark.parametrize(
    ("sequence", "has_ended", "place"), [(0, False, 0), (2, False, 2), (0, True, 0), (2, True, 2), (3, True, None)]
)
def test_place_after_a_cursor_is_its_record_or_none_after_the_end(
    sequence: int, has_ended: bool, place: int | None
) -> None:
    log = log_of("a", "b", end=has_ended)

    assert place_after(Cursor(log.stream_id, sequence), log) == place
    assert place_after(None, log) == 0


@pytest.mark.parametrize(("sequence", "has_ended"), [(3, False), (4, True), (2**53, True)])
def test_place_after_a_cursor_that_no_event_has_had_is_ahead(sequence: int, has_ended: bool) -> None:
    log = log_of("a", "b", end=has_ended)

    with pytest.raises(errors.CursorAhead):
        place_after(Cursor(log.stream_id, sequence), log)


# Keys


def test_key_is_known_by_its_hash_alone() -> None:
    key = "0123456789abcdef"

    assert read_key(key) == hashlib.sha256(key.encode()).hexdigest()
    assert read_key(None) is None


@pytest.mark.parametrize("key", ["", "0123456789abcde", "0123456789abcde ", "0123456789abcdeé", "abcd" * 64, "abc" * 6])
def test_key_that_is_unusable_or_was_not_drawn_is_refused(key: str) -> None:
    with pytest.raises(errors.InvalidRequest) as refused:
        read_key(key)
    assert list(refused.value.fields or ()) == ["Idempotency-Key"]
    with pytest.raises(errors.InvalidRequest) as refused:
        read_key(key, "Proxy-Idempotency-Key")
    assert list(refused.value.fields or ()) == ["Proxy-Idempotency-Key"]


# Preferences


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        ("wait=5", "5"),
        ("respond-async, wait=10", "10"),
        ('wait = "007"; x', "007"),
        ("WAIT=0,foo", "0"),
        ("", None),
        ("wait", None),
        ("wait=-1", None),
        ("wait=1.5", None),
        ("wait=1234567", None),
        ("await=5", None),
    ],
)
def test_preference_names_the_seconds_to_wait(prefer: str, seconds: str | None) -> None:
    assert read_wait_seconds(prefer) == seconds
