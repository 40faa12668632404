"""What is stored of a stream: one codec each way, in the form that version 0.1 writes and reads."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import errors
from app.errors import ChatError, Failure
from app.streams.interface import Binding, End, Origin
from app.streams.shared import records as room
from app.streams.shared.records import (
    LARGEST,
    Damaged,
    Stream,
    damage,
    end_kind,
    leads_to_its_end,
    read_binding,
    read_end,
    read_entries,
    read_number,
    read_owner,
    read_stream,
    write_end,
    write_stream,
)
from app.tokens.usage import Usage

ORIGIN = Origin("c-1", "m", "2026-11-21T09:00:00.000Z", 7)
STREAM = "cw_" + "s" * 22
DONE = End(
    status="complete",
    records=2,
    characters=3,
    sha256="ab" * 32,
    usage=Usage(7, 2, 9, "provider"),
    finish_reason="stop",
    first_token_ms=5,
    duration_ms=12,
)
CANCELLED = dataclasses.replace(DONE, status="cancelled", reason="client", finish_reason=None, first_token_ms=None)
FAILED = dataclasses.replace(DONE, status="failed", error=errors.Overloaded("Full. é", retry_after_seconds=5).failure)
FREED = dataclasses.replace(FAILED, records=0, characters=0, error=errors.ProducerLost().failure)


# Ends


WRITTEN = (
    (
        DONE,
        '{"event": "done", "content": {"sequence": 3, "is_final": true, "status": "complete", "finish_reason": "stop", '
        '"model": "m", "tokens": 2, "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9, '
        '"source": "provider"}, "first_token_ms": 5, "duration_ms": 12, "characters": 3, "sha256": "{}", '
        '"correlation_id": "c-1"}, "frees_key": false}',
        ("ab" * 32,),
    ),
    (
        CANCELLED,
        '{"event": "cancelled", "content": {"sequence": 3, "is_final": true, "status": "cancelled", '
        '"finish_reason": null, "model": "m", "tokens": 2, "usage": {"prompt_tokens": 7, "completion_tokens": 2, '
        '"total_tokens": 9, "source": "provider"}, "first_token_ms": null, "duration_ms": 12, "characters": 3, '
        '"sha256": "{}", "correlation_id": "c-1", "reason": "client"}, "frees_key": false}',
        ("ab" * 32,),
    ),
    (
        FAILED,
        '{"event": "failed", "content": {"sequence": 3, "is_final": true, "status": "failed", "finish_reason": "stop", '
        '"model": "m", "tokens": 2, "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9, '
        '"source": "provider"}, "first_token_ms": 5, "duration_ms": 12, "characters": 3, "sha256": "{}", '
        '"correlation_id": "c-1", "error": {"error_code": "overloaded", "message": "{}", "detail": "Full. \\u00e9", '
        '"action": "{}", "correlation_id": "c-1", "origin": "service", "retryable": true, "retry_after_seconds": 5}}, '
        '"frees_key": false}',
        ("ab" * 32, errors.Overloaded.message, errors.Overloaded.action),
    ),
    (
        FREED,
        '{"event": "failed", "content": {"sequence": 1, "is_final": true, "status": "failed", "finish_reason": "stop", '
        '"model": "m", "tokens": 0, "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9, '
        '"source": "provider"}, "first_token_ms": 5, "duration_ms": 12, "characters": 0, "sha256": "{}", '
        '"correlation_id": "c-1", "error": {"error_code": "producer_lost", "message": "{}", "detail": "{}", '
        '"action": "{}", "correlation_id": "c-1", "origin": "service", "retryable": true}}, "frees_key": true}',
        ("ab" * 32, errors.ProducerLost.message, errors.ProducerLost.why, errors.ProducerLost.action),
    ),
)


@pytest.mark.parametrize(("end", "form", "texts"), WRITTEN, ids=["done", "cancelled", "failed", "frees its key"])
def test_end_is_written_byte_for_byte_as_version_0_1_does_and_read_again(
    end: End, form: str, texts: tuple[str, ...]
) -> None:
    text = form.replace("{}", "%s") % texts
    assert write_end(ORIGIN, end) == text.encode()
    assert read_end(text.encode(), end.records + 1) == end
    assert end_kind(end) == json.loads(text)["event"]
    assert end.frees_key is json.loads(text)["frees_key"]


def all_of(kind: type[ChatError]) -> list[type[ChatError]]:
    return [
        one for sub in kind.__subclasses__() for one in ([sub] if not sub.__subclasses__() else [sub, *all_of(sub)])
    ]


@pytest.mark.parametrize(
    "kind", [kind for kind in all_of(ChatError) if kind.__module__ == "app.errors"], ids=lambda kind: kind.__name__
)
def test_every_failure_is_read_as_it_was_written(kind: type[ChatError]) -> None:
    for error in (kind(), kind("Why.", retry_after_seconds=3), kind(retry_after_seconds=0)):
        end = dataclasses.replace(FAILED, error=error.failure)
        assert read_end(write_end(ORIGIN, end), 3) == end


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
COUNT = st.integers(0, LARGEST - 2)
FAILURES = st.builds(
    Failure,
    error_code=st.sampled_from(["overloaded", "producer_lost", "upstream_timeout", "internal_error"]),
    message=TEXT,
    detail=TEXT,
    action=TEXT,
    origin=st.sampled_from(["client", "service", "upstream"]),
    retryable=st.booleans(),
    retry_after_seconds=st.none() | st.integers(0, 10_000),
)


@given(st.data())
def test_any_end_is_read_as_it_was_written(data: st.DataObject) -> None:
    status = data.draw(st.sampled_from(["complete", "cancelled", "failed"]))
    end = End(
        status=status,
        records=data.draw(COUNT),
        characters=data.draw(COUNT),
        sha256=data.draw(TEXT),
        usage=Usage(data.draw(COUNT), data.draw(COUNT), data.draw(COUNT), data.draw(TEXT)),
        finish_reason=data.draw(st.none() | TEXT),
        first_token_ms=data.draw(st.none() | COUNT),
        duration_ms=data.draw(COUNT),
        reason=data.draw(TEXT.filter(bool)) if status == "cancelled" else None,
        error=data.draw(FAILURES) if status == "failed" else None,
    )
    origin = Origin(data.draw(TEXT), data.draw(TEXT), "now", 0)
    written = write_end(origin, end)
    assert written.isascii(), "as version 0.1 writes it"
    assert read_end(written, end.records + 1) == end


def changed(end: End, **fields: Any) -> bytes:
    """Write an end with other fields. A name with a dot stands inside `content`, `...` takes it out."""
    stored = json.loads(write_end(ORIGIN, end))
    for name, value in fields.items():
        inside = stored
        *folders, name = name.split("__")
        for folder in folders:
            inside = inside[folder]
        if value is ...:
            del inside[name]
        else:
            inside[name] = value
    return json.dumps(stored).encode()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"\xff",
        changed(DONE, event="error"),
        changed(DONE, event="failed"),
        changed(DONE, content=...),
        changed(DONE, content__status="cancelled"),
        changed(DONE, content__sequence=4),
        changed(DONE, content__tokens=3),
        changed(DONE, content__tokens="2"),
        changed(DONE, content__is_final=False),
        changed(DONE, content__usage=...),
        changed(DONE, content__usage__source=...),
        changed(DONE, content__sha256=None),
        changed(DONE, content__error={}),
        changed(DONE, content__error=json.loads(write_end(ORIGIN, FAILED))["content"]["error"]),
        changed(FAILED, content__error=...),
        changed(FAILED, content__error__error_code="none_of_ours"),
        changed(FAILED, content__error__retryable="yes"),
    ],
)
def test_end_that_is_none_is_damaged_and_named_without_its_text(text: bytes) -> None:
    with pytest.raises(Damaged, match=r"^end$"):
        read_end(text, 3)


def test_end_at_another_place_is_damaged() -> None:
    for sequence in (0, 2, 4):
        with pytest.raises(Damaged):
            read_end(write_end(ORIGIN, DONE), sequence)


def test_end_that_a_newer_version_adds_to_is_read() -> None:
    text = changed(FAILED, more=1, content__more=[1], content__error__more=None, content__usage__more=2)
    assert read_end(text, 3) == FAILED
    assert read_end(changed(DONE, frees_key=...), 3) == DONE


# Streams


def told(stream: Stream, **fields: Any) -> list[bytes]:
    """Write a hash as HGETALL gives it. `...` takes a field out."""
    written = [str(part) for part in write_stream(stream)]
    have = dict(zip(written[::2], written[1::2], strict=True)) | fields
    pairs = [(name, value) for name, value in have.items() if value is not ...]
    return [part if isinstance(part, bytes) else str(part).encode() for pair in pairs for part in pair]


WHOLE = Stream(STREAM, ORIGIN, Binding("k" * 64, "f" * 64), "worker-1", 3, 5)


def test_stream_is_written_in_the_fields_of_version_0_1() -> None:
    assert write_stream(WHOLE) == (
        *("owner", "worker-1", "fence", 3, "head", 0, "bytes", 0, "attached", 5),
        *("correlation_id", "c-1", "model", "m", "created", "2026-11-21T09:00:00.000Z", "prompt_tokens", 7),
        *("key", "k" * 64, "fingerprint", "f" * 64),
    )
    assert write_stream(WHOLE._replace(binding=None))[-2:] == ("prompt_tokens", 7)


@given(
    origin=st.builds(
        Origin,
        st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=128),
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=1000),
        st.datetimes(timezones=st.timezones()).map(lambda at: at.isoformat()),
        st.integers(0, LARGEST - 1),
    ),
    binding=st.none() | st.builds(Binding, st.from_regex(r"\A[a-f0-9]{1,64}\Z"), st.from_regex(r"\A[a-f0-9]{1,64}\Z")),
    owner=st.from_regex(r"\A[A-Za-z0-9_-]{1,64}\Z"),
    fence=st.integers(1, LARGEST - 1),
)
def test_any_stream_is_read_as_it_was_written(origin: Origin, binding: Binding | None, owner: str, fence: int) -> None:
    stream = Stream(STREAM, origin, binding, owner, fence)
    assert read_stream(STREAM, told(stream)) == stream
    assert read_stream(STREAM, told(stream, end="done", cancel="1", newer="x")) == stream._replace(is_ended=True)


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        *(("owner", value, "owner") for value in (..., "", "a b", "x" * 65, b"\xff")),
        *(("fence", value, "fence") for value in (..., "0", "-1", "01", "1.0", "x", LARGEST)),
        *(("head", value, "head") for value in (..., "", "-1", "1e3", " 1", LARGEST)),
        *(("correlation_id", value, "origin") for value in (..., "", "a\nb", "x" * 129, "é")),
        *(("model", value, "origin") for value in (..., "", "x" * 1001, b"\xff")),
        *(("created", value, "origin") for value in (..., "", "yesterday", "2026-11-21T09:00:00")),
        *(("prompt_tokens", value, "(origin|prompt_tokens)") for value in (..., "", "many", "-1")),
        *(("key", value, "key") for value in ("", "x" * 129, b"\xff")),
        *(("fingerprint", value, "key") for value in (..., "", "x" * 129)),
    ],
)
def test_stream_with_a_field_that_is_none_is_damaged(field: str, value: Any, what: str) -> None:
    with pytest.raises(Damaged, match=f"^{what}$"):
        read_stream(STREAM, told(WHOLE, **{field: value}))


# Entries


def entry(place: object, name: bytes, value: bytes) -> list[Any]:
    return [f"{place}".encode(), [name, value]]


END = write_end(ORIGIN, DONE)


def test_entries_are_read_behind_what_is_known() -> None:
    both = [entry("1-0", b"t", b"a"), entry("2-0", b"t", "é".encode())]
    assert read_entries([], 0) == ([], None)
    assert read_entries(both, 0) == (["a", "é"], None)
    assert read_entries(both, 1) == (["é"], None)
    assert read_entries(both, 2) == ([], None)
    assert read_entries([*both, entry("3-0", b"e", END)], 1) == (["é"], DONE)
    assert read_entries([entry("3-0", b"e", END)], 2) == ([], DONE)
    assert read_entries([entry("3-0", b"e", END)], 3) == ([], None), "it is known"


@pytest.mark.parametrize(
    ("entries", "what"),
    [
        ([entry("2-0", b"t", b"a")], "the order of its entries"),
        ([entry("1-0", b"t", b"a"), entry("3-0", b"t", b"a")], "the order of its entries"),
        ([entry("1-0", b"t", b"a"), entry("1-0", b"x", b"a"), entry("3-0", b"t", b"a")], "the order of its entries"),
        (
            [entry("1-0", b"t", b"a"), entry("2-0", b"t", b"a"), *2 * [entry("3-0", b"e", END)]],
            "the order of its entries",
        ),
        ([entry("1-1", b"t", b"a")], "the place of an entry"),
        ([entry("1", b"t", b"a")], "the place of an entry"),
        ([entry("x-0", b"t", b"a")], "an entry"),
        ([entry("1-0", b"x", b"a")], "the name of an entry"),
        ([entry("1-0", b"t", b"\xff")], "an entry"),
        ([entry("1-0", b"e", END)], "end"),
        ([[b"1-0", [b"t", b"a", b"more", b"b"]]], "an entry"),
        ([[b"1-0", None]], "an entry"),
        ([None], "an entry"),
        (
            [entry("1-0", b"t", b"a"), entry("2-0", b"t", b"a"), entry("3-0", b"e", END), entry("4-0", b"t", b"a")],
            "the order of its entries",
        ),
    ],
)
def test_entries_that_are_none_of_a_logs_are_damaged(entries: list[Any], what: str) -> None:
    with pytest.raises(Damaged, match=f"^{what}$"):
        read_entries(entries, 0)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=10), st.data())
def test_any_records_are_read_from_any_place_on(texts: list[str], data: st.DataObject) -> None:
    head = data.draw(st.integers(0, len(texts)))
    first = data.draw(st.integers(0, head))
    entries = [entry(f"{place}-0", b"t", text.encode()) for place, text in enumerate(texts, 1)]
    assert read_entries(entries[first:], head) == (texts[head:], None)


# Parts


@pytest.mark.parametrize("value", [b"0", b"1", b"42", b"%d" % (LARGEST - 1)])
def test_number_is_read_as_it_is_written(value: bytes) -> None:
    assert read_number(value, "it") == int(value)


@pytest.mark.parametrize("value", [None, 1, "1", b"", b"-1", b"01", b"1.0", b"+1", b" 1", b"x", b"%d" % LARGEST])
def test_number_that_is_none_is_damaged(value: object) -> None:
    with pytest.raises(Damaged, match=r"^it$"):
        read_number(value, "it")


def test_number_below_the_least_is_damaged() -> None:
    assert read_number(b"3", "it", least=3) == 3
    with pytest.raises(Damaged):
        read_number(b"2", "it", least=3)


def test_owner_is_a_workers_name() -> None:
    assert read_owner(b"a-Z_9") == "a-Z_9"
    for value in (None, "text", b"", b"a b", b"{tag}", b"x" * 65):
        with pytest.raises(Damaged, match=r"^owner$"):
            read_owner(value)


def test_binding_is_a_stream_and_a_fingerprint() -> None:
    assert read_binding(f"{STREAM} {'f' * 64}".encode()) == (STREAM, "f" * 64)
    for value in (None, 1, b"", STREAM.encode(), f"{STREAM} ".encode(), f"{STREAM} f g".encode(), b"cw_short f"):
        with pytest.raises(Damaged, match=r"^idempotency key$"):
            read_binding(value)


def test_stream_leads_to_its_end_while_somebody_holds_it() -> None:
    assert leads_to_its_end(b"worker", b"1", None)
    for told in ((None, b"1", None), (b"worker", None, None), (b"worker", b"0", None), (b"worker", b"1", b"done")):
        assert not leads_to_its_end(*told)


@pytest.mark.parametrize("error", [ValueError, TypeError, KeyError, IndexError, AttributeError, UnicodeDecodeError])
def test_wrong_shape_is_damage_and_anything_else_is_not(error: type[Exception]) -> None:
    def fail() -> None:
        raise error if error is not UnicodeDecodeError else UnicodeDecodeError("utf-8", b"secret", 0, 1, "secret")

    with pytest.raises(Damaged, match=r"^a part$"):
        damage("a part", fail)

    def broken() -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        damage("a part", broken)
    assert damage("a part", lambda: 7) == 7


def test_stream_id_is_ours() -> None:
    assert room.STREAM_ID.fullmatch(STREAM)
    for other in ("cw_" + "s" * 21, "cw_" + "s" * 23, "xx_" + "s" * 22, "cw_" + "}" * 22, ""):
        assert not room.STREAM_ID.fullmatch(other)
