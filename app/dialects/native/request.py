"""The body of a request, checked by marshmallow's schemas and the limits of the contract."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from marshmallow import RAISE, Schema, ValidationError, fields, validate

from app import errors
from app.dialects.strict_json import check_parts, parse
from app.settings import Settings
from app.tokens import counting as tokens

__all__ = ["ChatRequest", "read_request"]

ROLES = ("system", "user", "assistant")
DEEPEST_FIELDS = 20
LONGEST_NAME = 100
LONGEST_MODEL = 200
PARTS = 10_000
PARTS_PER_MESSAGE = 20


class _Integer(fields.Integer):
    """A JSON integer: neither "5" nor 5.0 nor true."""

    def __init__(self, **options: Any) -> None:
        super().__init__(strict=True, **options)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **options: Any) -> Any:
        if type(value) is not int:
            raise self.make_error("invalid", input=value)
        return value


class _Number(fields.Float):
    """A JSON number, and not a text that looks like one."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **options: Any) -> Any:
        if type(value) not in (int, float):
            raise self.make_error("invalid", input=value)
        return super()._deserialize(value, attr, data, **options)


class _Text(fields.String):
    """A text that can be encoded. Half a surrogate pair cannot be encoded, so no upstream could get it."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **options: Any) -> Any:
        text = super()._deserialize(value, attr, data, **options)
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValidationError("Contains half a surrogate pair, which is not a character.") from None
        return text


class _Schema(Schema):
    def handle_error(self, error: ValidationError, data: Any, *, many: bool, **more: Any) -> None:
        """Raise a new error. The given error is kept alive by its frame, with all that the client sent."""
        raise ValidationError(error.messages, valid_data=error.valid_data)


class ContextMessageSchema(_Schema):
    """One turn of the dialogue so far."""

    class Meta:
        unknown = RAISE

    role = _Text(required=True, validate=validate.OneOf(ROLES))
    content = _Text(required=True)
    timestamp = _Text(validate=validate.Length(max=100))


class ChatRequestSchema(_Schema):
    """The body of a POST. Limits that have an error code of their own are checked later."""

    class Meta:
        unknown = RAISE

    message = _Text(required=True)
    context = fields.List(fields.Nested(ContextMessageSchema), load_default=list)
    model = _Text(validate=validate.Length(min=1, max=LONGEST_MODEL))
    max_tokens = _Integer()
    temperature = _Number(validate=validate.Range(min=0, max=2))


_schema = ChatRequestSchema()


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A request that can be sent to a model as it stands. Units: `prompt_tokens` in tokens."""

    messages: list[dict[str, str]]
    model: str
    max_tokens: int
    temperature: float | None
    prompt_tokens: int
    fingerprint: str
    """SHA-256 of the canonical request with its defaults filled in. An idempotency key stands for it."""


def read_request(body: bytes, settings: Settings) -> ChatRequest:
    """Read a request from a body.

    Raises: InvalidJson, InvalidRequest, MessageEmpty, MessageTooLong, ContextTooLong, ModelNotAllowed.
    """
    check_parts(
        body,
        most=PARTS + PARTS_PER_MESSAGE * settings.max_context_messages,
        hint=f"A context has at most {settings.max_context_messages} messages.",
    )
    content = parse(body)
    if not isinstance(content, dict):
        raise errors.InvalidRequest("The body must be one JSON object.", fields={"_schema": ["Not an object."]})
    _check_context_length(content, settings)
    try:
        loaded = _schema.load(content)
    except ValidationError as error:
        raise errors.InvalidRequest(fields=_flatten(error.messages)) from None
    _check_max_tokens(loaded, settings)
    message = loaded["message"]
    if not message.strip():
        raise errors.MessageEmpty
    if len(message) > settings.max_message_chars:
        raise errors.MessageTooLong(
            f"The message has {len(message)} characters. This server accepts at most {settings.max_message_chars}."
        )
    model = loaded.get("model", settings.openai_model)
    if not settings.allows(model):
        raise errors.ModelNotAllowed
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in loaded["context"]]
    if settings.system_prompt:
        turns.insert(0, {"role": "system", "content": settings.system_prompt})
    messages = [*turns, {"role": "user", "content": message}]
    request = {
        "messages": messages,
        "model": model,
        "max_tokens": loaded.get("max_tokens", settings.default_max_tokens),
        "temperature": loaded.get("temperature", 0.0 if settings.local_model else None),
    }
    canonical = json.dumps(request, sort_keys=True, separators=(",", ":")).encode()
    return ChatRequest(
        **request,
        prompt_tokens=_count_prompt(messages, model, settings),
        fingerprint=hashlib.sha256(canonical).hexdigest(),
    )


def _check_context_length(content: dict[str, Any], settings: Settings) -> None:
    """Refuse a context with too many entries, before each entry is checked."""
    context = content.get("context")
    if isinstance(context, list) and len(context) > settings.max_context_messages:
        raise errors.InvalidRequest(
            f"The context has {len(context)} messages. This server accepts at most {settings.max_context_messages}.",
            fields={"context": [f"Must have at most {settings.max_context_messages} messages."]},
        )


def _check_max_tokens(loaded: Mapping[str, Any], settings: Settings) -> None:
    asked = loaded.get("max_tokens")
    if asked is not None and not 1 <= asked <= settings.max_tokens:
        raise errors.InvalidRequest(
            fields={
                "max_tokens": [f"Must be greater than or equal to 1 and less than or equal to {settings.max_tokens}."]
            }
        )


def _count_prompt(messages: list[dict[str, str]], model: str, settings: Settings) -> int:
    limit = settings.max_input_tokens
    about = "" if tokens.is_exact(model) else " (estimated)"
    alone = tokens.count_prompt(messages[-1:], model, at_most=limit)
    if alone > limit:
        raise errors.MessageTooLong(f"The message has more than {limit} tokens{about}, the limit of this server.")
    total = tokens.count_prompt(messages, model, at_most=limit) if len(messages) > 1 else alone
    if total > limit:
        raise errors.ContextTooLong(
            f"The message and the context have more than {limit} tokens{about}, the limit of this server."
        )
    return total


def _flatten(messages: Any, path: str = "") -> dict[str, list[str]]:
    """Name each wrong field by its path (`context.0.role`). The result is bounded, whatever names a client sends."""
    found: dict[str, list[str]] = {}
    if isinstance(messages, dict):
        for name, inner in messages.items():
            if len(found) >= DEEPEST_FIELDS:
                break
            shown = str(name)[:LONGEST_NAME].encode("utf-8", "replace").decode()
            found.update(_flatten(inner, f"{path}.{shown}" if path else shown))
    else:
        found[path or "_schema"] = [str(message)[:200] for message in list(messages)[:5]]
    return dict(list(found.items())[:DEEPEST_FIELDS])
