"""What a request may hold: the contract's limits are marshmallow's and the settings'."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from flask.testing import FlaskClient
from marshmallow import INCLUDE, RAISE, Schema, fields, missing, validate

from app import create_app, errors
from app.dialects.native import headers
from app.dialects.native import request as schemas
from app.settings import Settings
from tests.contract.conftest import ASKED, SETTINGS, TEXTS
from tests.contract.document import CONTRACT, named, seen_through, validator
from tests.unit.fakes import FakeUpstream, whole

pytestmark = pytest.mark.usefixtures("no_network")

NOT_BLANK = r"[^\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"


def test_limits_are_the_settings_defaults() -> None:
    settings = Settings()
    properties = CONTRACT["components"]["schemas"]["ChatRequest"]["properties"]
    turn = CONTRACT["components"]["schemas"]["ContextMessage"]["properties"]
    example = CONTRACT["components"]["examples"]["Models"]["value"]

    assert properties["message"]["maxLength"] == settings.max_message_chars
    assert properties["context"]["maxItems"] == settings.max_context_messages
    assert properties["max_tokens"]["maximum"] == settings.max_tokens
    assert properties["max_tokens"]["default"] == settings.default_max_tokens
    assert properties["model"]["maxLength"] == schemas.LONGEST_MODEL
    assert turn["role"]["enum"] == list(schemas.ROLES)
    assert str(settings.max_input_tokens) in CONTRACT["components"]["schemas"]["ChatRequest"]["description"]
    assert settings.max_body_bytes == 1_048_576  # "1 MiB" in the description of the body
    assert "at most 1 MiB" in CONTRACT["components"]["requestBodies"]["Chat"]["description"]
    assert list(example["limits"].items()) == list(settings.limits.items())
    assert example["default"] == settings.openai_model
    assert set(CONTRACT["components"]["schemas"]["Models"]["properties"]["limits"]["required"]) == set(settings.limits)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(body, id=name)
        for name, body in {
            "message only": ASKED,
            "empty message": {"message": ""},
            "blank message": {"message": " \n"},
            "longest message": {"message": "a " * 4000},
            "message too long": {"message": "a " * 4000 + "a"},
            "message of a number": {"message": 5},
            "no message": {},
            "null": {**ASKED, "model": None},
            "no object": ["Hello"],
            "unknown field": {**ASKED, "stream": True},
            "empty context": {**ASKED, "context": []},
            "longest context": {**ASKED, "context": [{"role": "user", "content": "a"}] * 100},
            "context too long": {**ASKED, "context": [{"role": "user", "content": "a"}] * 101},
            "empty content": {**ASKED, "context": [{"role": "assistant", "content": ""}]},
            "no content": {**ASKED, "context": [{"role": "user"}]},
            "unknown role": {**ASKED, "context": [{"role": "tool", "content": "a"}]},
            "unknown field in context": {**ASKED, "context": [{"role": "user", "content": "a", "name": "b"}]},
            "longest timestamp": {**ASKED, "context": [{"role": "user", "content": "a", "timestamp": "1" * 100}]},
            "timestamp too long": {**ASKED, "context": [{"role": "user", "content": "a", "timestamp": "1" * 101}]},
            "model": {**ASKED, "model": "gpt-4o-mini"},
            "empty model": {**ASKED, "model": ""},
            "fewest tokens": {**ASKED, "max_tokens": 1},
            "no tokens": {**ASKED, "max_tokens": 0},
            "most tokens": {**ASKED, "max_tokens": 16384},
            "too many tokens": {**ASKED, "max_tokens": 16385},
            "tokens in a text": {**ASKED, "max_tokens": "5"},
            "tokens true": {**ASKED, "max_tokens": True},
            "temperature": {**ASKED, "temperature": 2},
            "too hot": {**ASKED, "temperature": 2.1},
            "too cold": {**ASKED, "temperature": -0.1},
        }.items()
    ],
)
def test_request_schema_takes_what_the_service_takes(body: Any) -> None:
    try:
        schemas.read_request(json.dumps(body).encode(), SETTINGS)
    except errors.ClientError:
        taken = False
    else:
        taken = True

    assert named("ChatRequest").is_valid(body) == taken


@pytest.mark.parametrize(
    "cursor",
    [
        "cw_a.0",
        "cw_a.9007199254740992",
        "cw_a.01",
        "cw_a." + "1" * 17,
        "cw_a.-1",
        "cw_a",
        ".1",
        "a.b.1",
        "-1",
        "abc",
        "a" * 126 + ".1",
    ],
)
def test_cursor_schema_takes_what_the_service_takes(client: FlaskClient, cursor: str) -> None:
    code = client.post("/chat/wait", headers={"Last-Event-ID": cursor}).json["error_code"]  # type: ignore[index]

    assert CONTRACT["components"]["schemas"]["Cursor"]["maxLength"] == headers.LONGEST_CURSOR_BYTES
    assert named("Cursor").is_valid(cursor) == (code == "stream_unknown")


def test_idempotency_key_schema_takes_what_the_service_takes(client: FlaskClient) -> None:
    schema = validator(CONTRACT["components"]["parameters"]["IdempotencyKey"]["schema"])

    random = "k0-Z" * 64
    lengths = (random[:15], random[:16], random[:255], random, random[:16] + " k")
    for key in (*lengths, "k" * 16, "kl" * 8, "klm" * 85, "k" * 253 + "l", "k" * 252 + "lmn", "klm" * 5 + "n"):
        status = client.post("/chat/wait", json=ASKED, headers={"Idempotency-Key": key}).status_code
        assert schema.is_valid(key) == (status == 200), key


# marshmallow's own

TYPES = {schemas._Text: "string", schemas._Integer: "integer", schemas._Number: "number"}
"""Strict ones: a field of any other class would take what the contract refuses."""


def from_marshmallow(schema: Schema) -> dict[str, Any]:
    """Write a schema of marshmallow as JSON Schema. Raises: KeyError for what has no counterpart here."""
    described: dict[str, Any] = {
        "type": "object",
        "properties": {name: of_field(field) for name, field in schema.fields.items()},
        "required": [name for name, field in schema.fields.items() if field.required],
    }
    return described | {RAISE: {"additionalProperties": False}, INCLUDE: {}}[schema.unknown]


def of_field(field: fields.Field) -> dict[str, Any]:
    assert not field.allow_none
    assert (field.data_key, field.load_only, field.dump_only) == (None, False, False)
    if isinstance(field, fields.Nested):
        return from_marshmallow(field.schema)
    if isinstance(field, fields.List):
        described: dict[str, Any] = {"type": "array", "items": of_field(field.inner)}
    else:
        described = {"type": TYPES[type(field)]}
    if field.load_default is not missing:
        described["default"] = field.load_default() if callable(field.load_default) else field.load_default
    for one in field.validators:
        described |= of_validator(one)
    return described


def of_validator(one: Any) -> dict[str, Any]:
    if isinstance(one, validate.OneOf):
        return {"enum": list(one.choices)}
    names = {validate.Length: ("minLength", "maxLength"), validate.Range: ("minimum", "maximum")}[type(one)]
    assert isinstance(one, validate.Length) or (one.min_inclusive and one.max_inclusive)
    assert getattr(one, "equal", None) is None
    return {name: limit for name, limit in zip(names, (one.min, one.max), strict=True) if limit is not None}


def without_words(node: Any) -> Any:
    """Copy a schema without its descriptions, references followed."""
    if isinstance(node, dict):
        node = seen_through(node)
        return {name: without_words(inner) for name, inner in node.items() if name != "description"}
    return [without_words(inner) for inner in node] if isinstance(node, list) else node


def test_request_schema_is_marshmallows_with_the_limits_of_the_settings() -> None:
    described = from_marshmallow(schemas.ChatRequestSchema())
    settings = Settings()
    properties = described["properties"]
    # Those with an error code of their own, or a setting, are judged after the schema.
    properties["message"] |= {"minLength": 1, "maxLength": settings.max_message_chars, "pattern": NOT_BLANK}
    properties["context"]["maxItems"] = settings.max_context_messages
    properties["max_tokens"] |= {"minimum": 1, "maximum": settings.max_tokens}
    properties["max_tokens"]["default"] = settings.default_max_tokens

    assert without_words(CONTRACT["components"]["schemas"]["ChatRequest"]) == described


def test_blank_is_what_the_contract_says_and_what_the_service_refuses() -> None:
    """ECMA's \\s and Python's white space are not the same, so the contract names the characters."""
    pattern = re.compile(NOT_BLANK)
    for code in range(0x110000):
        assert (pattern.search(chr(code)) is None) == (not chr(code).strip()), f"U+{code:04X}"
    message = validator(CONTRACT["components"]["schemas"]["ChatRequest"]["properties"]["message"])
    for text in ("\x1c\x1f\x85\u3000", "\ufeff", "\u200b"):
        assert message.is_valid(text) == bool(text.strip())


def test_header_schemas_are_the_codes_patterns() -> None:
    parameters = CONTRACT["components"]["parameters"]
    key = parameters["IdempotencyKey"]["schema"]
    cursor = CONTRACT["components"]["schemas"]["Cursor"]["pattern"]

    assert f"[{key['pattern'][2:-3]}]{{{key['minLength']},{key['maxLength']}}}" == headers._KEY.pattern
    assert re.sub(r"(?<!\\)[()]", "", cursor) == re.sub(r"(?<!\\)[()]", "", f"^{headers._CURSOR.pattern}$")


# Those of other settings

SMALL = {
    "max_message_chars": 40,
    "max_context_messages": 2,
    "max_input_tokens": 60,
    "max_tokens": 50,
    "default_max_tokens": 5,
    "max_body_bytes": 2048,
}


@pytest.fixture
def small() -> Iterator[FlaskClient]:
    """An application with the smallest limits, whose client knows them from GET /models."""
    app = create_app(replace(SETTINGS, **SMALL), upstream=FakeUpstream(whole(*TEXTS)))
    yield app.test_client()
    app.extensions["chatwait"].close()


def test_models_tells_the_limits_that_apply(small: FlaskClient) -> None:
    limits = small.get("/models").json["limits"]  # type: ignore[index]
    said = CONTRACT["components"]["schemas"]["Models"]["properties"]["limits"]["required"]
    turn = {"role": "user", "content": "a"}
    largest = limits["max_body_bytes"] - len(json.dumps(ASKED))

    def answers(body: Any, padding: int = 0) -> str:
        text = json.dumps(body) + " " * padding
        content = small.post("/chat/wait", data=text, content_type="application/json").json
        return str(content.get("error_code", content.get("status", "")))  # type: ignore[union-attr]

    assert limits.items() >= SMALL.items()
    assert list(limits) == said
    assert answers({"message": "a" * limits["max_message_chars"]}) == "complete"
    assert answers({"message": "a" * (limits["max_message_chars"] + 1)}) == "message_too_long"
    assert answers({**ASKED, "context": [turn] * limits["max_context_messages"]}) == "complete"
    assert answers({**ASKED, "context": [turn] * (limits["max_context_messages"] + 1)}) == "invalid_request"
    assert answers({**ASKED, "max_tokens": limits["max_tokens"]}) == "complete"
    assert answers({**ASKED, "max_tokens": limits["max_tokens"] + 1}) == "invalid_request"
    assert answers({**ASKED, "context": [{**turn, "content": "a " * limits["max_input_tokens"]}]}) == "context_too_long"
    assert answers(ASKED, largest) == "complete"
    assert answers(ASKED, largest + 1) == "body_too_large"
