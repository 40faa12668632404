"""Test what a body may hold, by the schema `ChatRequest` of the contract, and what refusing it may cost."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import errors
from app.dialects.native import request as schemas
from app.dialects.native.answer import error_body
from app.dialects.native.request import read_request
from app.settings import Settings
from app.tokens import counting as tokens

SETTINGS = Settings(
    openai_base_url="http://model.test/v1", openai_model="gpt-4o-mini", allowed_models=("gpt-4o-mini", "other")
)


def read(body: Any, **changes: Any) -> schemas.ChatRequest:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_request(raw, replace(SETTINGS, **changes) if changes else SETTINGS)


def refused(body: Any, **changes: Any) -> errors.ChatError:
    with pytest.raises(errors.ChatError) as raised:
        read(body, **changes)
    return raised.value


def fields_of(body: Any, **changes: Any) -> dict[str, list[str]]:
    error = refused(body, **changes)
    assert type(error) is errors.InvalidRequest
    assert error.fields
    assert all(texts and all(isinstance(text, str) and text for text in texts) for texts in error.fields.values())
    return error.fields


@pytest.mark.requirement("core entity ChatRequest", "chatwait extensibility 2")
def test_request_with_a_message_alone_has_its_defaults() -> None:
    request = read({"message": "Hello"})

    assert request.messages == [{"role": "user", "content": "Hello"}]
    assert (request.model, request.max_tokens, request.temperature) == ("gpt-4o-mini", 4096, None)
    assert request.prompt_tokens == 3 + 3 + 1 + 1


@pytest.mark.requirement("core entity ChatRequest", "chatwait entity Chat Message")
def test_request_with_everything_is_read_in_order_without_its_timestamps() -> None:
    request = read(
        {
            "message": "And of Italy?",
            "context": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "What is the capital of France?", "timestamp": "2026-11-21T09:00:00Z"},
                {"role": "assistant", "content": ""},
            ],
            "model": "other",
            "max_tokens": 256,
            "temperature": 0.7,
        },
        system_prompt="Our own.",
    )

    assert request.messages == [
        {"role": "system", "content": "Our own."},
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "And of Italy?"},
    ]
    assert (request.model, request.max_tokens, request.temperature) == ("other", 256, 0.7)


def test_request_to_the_embedded_model_has_temperature_zero_where_it_names_none() -> None:
    settings = {"openai_base_url": "", "openai_api_key": ""}

    assert read({"message": "Hello"}, **settings).temperature == 0.0
    assert read({"message": "Hello", "temperature": 1}, **settings).temperature == 1.0


@pytest.mark.parametrize("text", ["\0", "\r\n\u2028", "😀" * 8000, " a ", "\ufeff", "\u202e", '"\\'])
def test_request_with_any_characters_keeps_them(text: str) -> None:
    body = {"message": text + "."} if len(text) < 8000 else {"message": text}

    assert read(body).messages[-1]["content"] == body["message"]
    assert read(json.dumps(body, ensure_ascii=False).encode()).messages == read(body).messages


# invalid_json


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" \r\n\t ",
        b"no JSON",
        b"{",
        b'{"message": "a"',
        b'{"message": "a"} x',
        b'{"message": "a"}{"message": "b"}',
        b"{'message': 'a'}",
        b'{"message": "a",}',
        b'{"message": "a\nb"}',
        b'{"message": "\xff"}',
        b'{"message": "\xed\xa0\x80"}',
        b'\xef\xbb\xbf{"message": "a"}',
        '{"message": "a"}'.encode("utf-16"),
        b'{"message": "a", "temperature": NaN}',
        b'{"message": "a", "temperature": Infinity}',
        b'{"message": "a", "temperature": -Infinity}',
        b'{"message": "a", "message": "b"}',
        b'{"message": "a", "context": [{"role": "user", "content": "a", "content": "b"}]}',
        b'{"message": "a", "mess\\u0061ge": "b"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"message": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"message": "a", "max_tokens": ' + b"9" * 5000 + b"}",
        b"\x00",
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_body_that_is_not_json_is_invalid_json(body: bytes) -> None:
    error = refused(body)

    assert type(error) is errors.InvalidJson
    assert len(json.dumps(error_body(error.failure, "c"))) < 1000


@given(st.binary(max_size=50))
def test_body_of_any_bytes_is_refused_by_a_client_error(body: bytes) -> None:
    with contextlib.suppress(errors.ClientError):
        read(body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["message", "context", "role", "content", "model", "max_tokens", "temperature", "timestamp", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@given(JSON)
def test_body_of_any_json_is_read_or_refused_by_a_client_error(value: Any) -> None:
    try:
        read(json.dumps(value).encode())
    except errors.ClientError as error:
        json.dumps(error_body(error.failure, "c"))


# invalid_request


@pytest.mark.parametrize("body", [[], "text", 5, None, True, [{"message": "a"}]])
def test_body_that_is_no_object_is_an_invalid_request(body: Any) -> None:
    assert list(fields_of(body)) == ["_schema"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"message": None}, "message"),
        ({"message": 5}, "message"),
        ({"message": ["a"]}, "message"),
        ({"message": {"a": "b"}}, "message"),
        ({"message": "\ud83d"}, "message"),
        ({"context": None}, "context"),
        ({"context": "a"}, "context"),
        ({"context": {}}, "context"),
        ({"context": [5]}, "context.0._schema"),
        ({"context": [None]}, "context.0"),
        ({"context": [{}]}, "context.0.role"),
        ({"context": [{"role": "user"}]}, "context.0.content"),
        ({"context": [{"role": "tool", "content": "a"}]}, "context.0.role"),
        ({"context": [{"role": "USER", "content": "a"}]}, "context.0.role"),
        ({"context": [{"role": "user", "content": None}]}, "context.0.content"),
        ({"context": [{"role": "user", "content": ["a"]}]}, "context.0.content"),
        ({"context": [{"role": "user", "content": "a\udc00"}]}, "context.0.content"),
        ({"context": [{"role": "user", "content": "a", "name": "x"}]}, "context.0.name"),
        ({"context": [{"role": "user", "content": "a", "timestamp": 5}]}, "context.0.timestamp"),
        ({"context": [{"role": "user", "content": "a", "timestamp": "x" * 101}]}, "context.0.timestamp"),
        ({"model": None}, "model"),
        ({"model": 5}, "model"),
        ({"model": ""}, "model"),
        ({"model": "x" * 201}, "model"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 5.0}, "max_tokens"),
        ({"max_tokens": 5.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": [5]}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 16385}, "max_tokens"),
        ({"max_tokens": 10**4000}, "max_tokens"),
        ({"temperature": None}, "temperature"),
        ({"temperature": "0.5"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": -0.01}, "temperature"),
        ({"temperature": 2.01}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"temperature": [1]}, "temperature"),
        ({"unknown": 1}, "unknown"),
        ({"Message": "a"}, "Message"),
        ({"stream": True}, "stream"),
        ({"": 1}, "_schema"),
    ],
)
@pytest.mark.requirement("plan design 1", "tasks T011", "tasks T021")
def test_field_that_cannot_be_used_is_named(change: dict[str, Any], field: str) -> None:
    named = fields_of({"message": "a", **change})

    assert field in named or (field == "_schema" and named)


def test_number_too_large_for_a_float_is_an_invalid_request() -> None:
    assert "temperature" in fields_of(b'{"message": "a", "temperature": 1e999}')


def test_message_that_is_missing_is_named() -> None:
    assert list(fields_of({})) == ["message"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_tokens", 1), ("max_tokens", 16384), ("temperature", 0), ("temperature", 2), ("temperature", 2.0)],
)
@pytest.mark.requirement("plan design 5")
def test_number_at_its_bound_is_taken(name: str, value: float) -> None:
    assert getattr(read({"message": "a", name: value}), name) == value


@pytest.mark.requirement("chatwait entity Conversation Context")
def test_context_of_too_many_messages_is_refused_before_they_are_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert len(read({"message": "a", "context": [{"role": "user", "content": "b"}] * 100}).messages) == 101
    monkeypatch.setattr(schemas, "_schema", None)

    error = refused({"message": "a", "context": [5] * 101})

    assert list(error.fields or {}) == ["context"]
    assert "101" in error.detail
    assert "100" in error.detail


# Limits with a code of their own


@pytest.mark.parametrize("text", ["", " ", "\n\t\r ", "\u2003\u00a0"])
@pytest.mark.requirement("core US2.3", "tasks T021")
def test_message_that_is_blank_is_empty(text: str) -> None:
    assert type(refused({"message": text})) is errors.MessageEmpty


@pytest.mark.requirement("tasks T011", "tasks T021")
def test_message_too_long_tells_the_numbers() -> None:
    assert read({"message": "é" * 8000})
    error = refused({"message": "é" * 8001})

    assert type(error) is errors.MessageTooLong
    assert "8001" in error.detail
    assert "8000" in error.detail


@pytest.mark.requirement("core US2.4", "core FR-002")
def test_message_alone_over_the_tokens_is_too_long() -> None:
    error = refused({"message": "a b " * 100, "context": [{"role": "user", "content": "a"}]}, max_input_tokens=50)

    assert type(error) is errors.MessageTooLong
    assert "50" in error.detail


@pytest.mark.requirement("core edge 2")
def test_message_and_context_together_over_the_tokens_are_a_context_too_long() -> None:
    body = {"message": "a", "context": [{"role": "user", "content": "a b " * 100}]}

    assert type(refused(body, max_input_tokens=50)) is errors.ContextTooLong
    assert (
        type(refused(body | {"context": []}, max_input_tokens=20, system_prompt="a b " * 100)) is errors.ContextTooLong
    )


@pytest.mark.requirement("tasks T011", "tasks T021")
def test_model_not_listed_is_not_allowed() -> None:
    assert type(refused({"message": "a", "model": "gpt-4"})) is errors.ModelNotAllowed
    assert type(refused({"message": "a", "model": "OTHER"})) is errors.ModelNotAllowed
    assert read({"message": "a", "model": "other"}).model == "other"


def test_model_of_any_name_is_allowed_where_the_operator_allows_all() -> None:
    assert read({"message": "a", "model": "gpt-4"}, allowed_models=("gpt-4o-mini", "*")).model == "gpt-4"
    assert read({"message": "a"}, allowed_models=("gpt-4o-mini", "*")).model == "gpt-4o-mini"


# Fingerprints


def test_fingerprint_of_equal_requests_is_equal_with_defaults_filled_in() -> None:
    equal: list[Any] = [
        {"message": "é"},
        b' { "message" : "\\u00e9" } ',
        {"context": [], "message": "é"},
        {"message": "é", "model": "gpt-4o-mini", "max_tokens": 4096},
        {"max_tokens": 4096, "message": "é"},
    ]

    assert len({read(body).fingerprint for body in equal}) == 1
    assert (
        read({"message": "a", "temperature": 1}).fingerprint == read({"message": "a", "temperature": 1.0}).fingerprint
    )
    turn = {"role": "user", "content": "b"}
    stamped = {**turn, "timestamp": "now"}
    assert (
        read({"message": "a", "context": [turn]}).fingerprint
        == read({"message": "a", "context": [stamped]}).fingerprint
    )


def test_fingerprint_of_different_requests_differs() -> None:
    turn = {"role": "user", "content": "b"}
    different = [
        {"message": "a"},
        {"message": "a "},
        {"message": "A"},
        {"message": "a", "model": "other"},
        {"message": "a", "max_tokens": 4095},
        {"message": "a", "temperature": 0},
        {"message": "a", "temperature": 1},
        {"message": "a", "context": [turn]},
        {"message": "a", "context": [turn, turn]},
        {"message": "a", "context": [{**turn, "role": "assistant"}]},
        {"message": "b", "context": [{"role": "user", "content": "a"}]},
    ]

    assert len({read(body).fingerprint for body in different}) == len(different)


# Hostile bodies


@pytest.mark.parametrize(
    "body",
    [
        {f"field {number} " + "x" * 1000: 1 for number in range(1000)},
        {"\ud800" * 200 + str(number): 1 for number in range(100)},
        {"message": "a", "context": [{f"{'y' * 500}{number}": 1 for number in range(100)} for _ in range(100)]},
        {"x" * 1_000_000: 1},
        {"message": "a", "context": [{"role": "x" * 10_000, "content": 1} for _ in range(100)]},
        {"message": "a", "model": "x" * 1_000_000},
        {"message": "a", "max_tokens": "x" * 1_000_000},
    ],
    ids=["many", "halves", "nested", "long", "roles", "model", "max_tokens"],
)
def test_refusal_of_hostile_fields_is_bounded(body: Any) -> None:
    error = refused(body)

    assert len(error.fields or {}) <= 20
    assert len(json.dumps(error_body(error.failure, "c"))) <= 32_768


def test_refusal_names_no_half_of_a_surrogate_pair() -> None:
    shown = json.dumps(error_body(refused({"message": "a", "half \ud800": 1}).failure, "c"), ensure_ascii=False)

    shown.encode()  # raises for what no JSON reader of the client's need take


MIB = 1_048_576
HOSTILE: dict[str, Callable[[], bytes]] = {
    "a long word": lambda: json.dumps(
        {"message": "a", "context": [{"role": "user", "content": "x" * (MIB - 100)}]}
    ).encode(),
    "words": lambda: json.dumps(
        {"message": "a", "context": [{"role": "user", "content": "a " * (MIB // 2 - 100)}]}
    ).encode(),
    "a hundred": lambda: json.dumps(
        {"message": "a", "context": [{"role": "user", "content": "\n" * 5000}] * 100}
    ).encode(),
    "spaces": lambda: json.dumps(
        {"message": "a", "context": [{"role": "user", "content": " " * (MIB - 100)}]}
    ).encode(),
    "emoji": lambda: json.dumps(
        {"message": "a", "context": [{"role": "user", "content": "😀" * (MIB // 12 - 100)}]}
    ).encode(),
}


@pytest.mark.parametrize("shape", HOSTILE)
def test_body_of_a_mebibyte_is_counted_in_bounded_slices_with_yields_between(
    shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = HOSTILE[shape]()
    assert len(body) > MIB // 2, "the premise"
    sizes: list[int] = []
    yields: list[float] = []
    for_model = tokens._for_model

    class Recording:
        def __init__(self, model: str) -> None:
            self._tokenizer = for_model(model)

        def count(self, text: str) -> int:
            sizes.append(len(text))
            return self._tokenizer.count(text)

    monkeypatch.setattr(tokens, "_for_model", Recording)
    monkeypatch.setattr(tokens.time, "sleep", yields.append)
    with contextlib.suppress(errors.ContextTooLong, errors.MessageTooLong):
        read(body)

    assert max(sizes) <= tokens.SLICE_CHARS
    assert sum(sizes) <= 3 * MIB
    assert len(yields) >= sum(size == tokens.SLICE_CHARS for size in sizes) - 1


def test_message_of_a_mebibyte_is_refused_without_being_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_for_model", None)

    assert type(refused({"message": "a " * 500_000})) is errors.MessageTooLong


@pytest.mark.parametrize("depth", [600, 5000, 100_000, 500_000])
def test_body_nested_too_deep_says_so_however_deep(depth: int) -> None:
    for opening in (b"[", b'{"a":', b'[{"a":'):
        with pytest.raises(errors.InvalidJson) as raised:
            schemas.read_request(b'{"message": ' + opening * (depth // len(opening)), SETTINGS)
        assert raised.value.error_code == "invalid_json"
