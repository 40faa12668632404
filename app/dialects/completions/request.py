"""The body of a request for chat completions. Only what this service needs is read. The rest is sent on unread."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Set
from dataclasses import dataclass, field

import msgspec

from app import errors
from app.dialects.completions import additions
from app.dialects.completions.fields import LIMITS, Fields
from app.dialects.completions.prompt import count_prompt
from app.dialects.opaque_json import blocks, read_object
from app.settings import Settings
from app.tokens import counting as tokens

__all__ = ["ForwardedRequest", "read_forwarded"]

VALUES = 150_000
VALUES_PER_MESSAGE = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardedRequest:
    """A request that can be sent on as it stands. Units: `prompt_tokens`, `max_tokens` in tokens.

    `choices` is how many answers were asked for. `keeps_usage`: the client wants the chunk that tells the usage.
    `max_tokens` is the client's limit or the operator's, and None where there is none. `messages_count` counts the
    system prompt too. `fingerprint` is the SHA-256 of the body. An idempotency key stands for it.
    """

    model: str
    choices: int
    is_streamed: bool
    keeps_usage: bool
    max_tokens: int | None
    messages_count: int
    prompt_tokens: int
    fingerprint: str
    body: bytes = field(repr=False)
    additions: tuple[additions.Addition, ...] = field(repr=False)

    def write(self, left_out: Set[str] = frozenset()) -> bytes:
        """Write what is sent: the client's bytes, with our additions but for those to the fields of `left_out`.

        Fields that we may add to: `stream_options`, `max_tokens`, `max_completion_tokens`. A limit has two names, and
        is sent under the one that is not left out. What the client itself sent is never left out.
        """
        return additions.spliced(self.body, self.additions, left_out)

    @property
    def held_bytes(self) -> int:
        """How much memory the request takes until it is answered: its body, and beside that what is written of it."""
        added = sum(len(addition.text) for addition in self.additions)
        return len(self.body) * 2 + added if added else len(self.body)


def read_forwarded(body: bytes, settings: Settings) -> ForwardedRequest:
    """Read a request from a body. Other threads run in between, because a body may be large.

    Raises: InvalidJson, InvalidRequest, ModelNotAllowed, ContextTooLong.
    """
    found = read_object(
        body,
        most=VALUES + VALUES_PER_MESSAGE * settings.openai_max_messages,
        hint=f"A request has at most {settings.openai_max_messages} messages.",
    )
    fields = Fields(found)
    fields.check_names()
    model = fields.model()
    messages = fields.messages(settings.openai_max_messages)
    is_streamed = fields.flag("stream")
    options = fields.options() if is_streamed else None
    limits = fields.limits(settings.max_tokens if "max_tokens" in settings.named else None)
    if fields.wrong:
        raise errors.InvalidRequest(fields=fields.wrong)
    if not settings.allows(model):
        raise errors.ModelNotAllowed(fields={"model": ["Not a model that GET /v1/models lists."]})
    most = next((limits[name] for name in LIMITS if name in limits), None)
    added = []
    if settings.system_prompt:
        added.append(additions.system_prompt(found, settings.system_prompt))
    if is_streamed:
        added += additions.stream_options(found, options, to_openai=settings.asks_openai)
    if most is None and "default_max_tokens" in settings.named:
        most = settings.default_max_tokens
        added += additions.limit(found, most, to_openai=settings.asks_openai)
    return ForwardedRequest(
        model=model,
        choices=fields.choices(),
        is_streamed=is_streamed,
        keeps_usage=options is not None and options.asks_usage,
        max_tokens=most,
        messages_count=len(messages) + bool(settings.system_prompt),
        prompt_tokens=_count((message.content for message in messages), model, settings),
        fingerprint=_fingerprint(body),
        body=body,
        additions=tuple(added),
    )


def _count(contents: Iterable[msgspec.Raw], model: str, settings: Settings) -> int:
    limit = settings.max_input_tokens if "max_input_tokens" in settings.named else None
    total = count_prompt(contents, settings.system_prompt, model, at_most=limit)
    if limit is not None and total > limit:
        about = "" if tokens.is_exact(model) else " (estimated)"
        raise errors.ContextTooLong(f"The messages have more than {limit} tokens{about}, the limit of this server.")
    return total


def _fingerprint(body: bytes) -> str:
    digest = hashlib.sha256()
    for block in blocks(body):
        digest.update(block)
    return digest.hexdigest()
