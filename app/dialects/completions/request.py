"""The body of a request for chat completions. Only what this service needs is read. The rest is sent on unread."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from app import errors
from app.dialects.completions.prompt import count_prompt
from app.dialects.opaque_json import Opaque, blocks, last_value, let_others_run_after, read_object
from app.settings import Settings
from app.tokens import counting as tokens

__all__ = ["ForwardedRequest", "read_forwarded"]

VALUES = 150_000
VALUES_PER_MESSAGE = 50
LONGEST_MODEL = 200
LONGEST_OPTIONS_BYTES = 10_000
MOST_CHOICES = 128
MOST_WRONG = 20
LARGEST_DIGITS = 18
LARGEST: int = 10**LARGEST_DIGITS
"""An integer of more digits is not read, and counts as this."""

LONGEST_NUMBER = 1000
"""A longer number is none."""

READ = ("model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n")
"""The fields that are read. Some servers take `Model` for `model`, so no field may differ from these in case alone."""

LIMITS = ("max_completion_tokens", "max_tokens")
"""Both names of the limit of an answer's tokens. OpenAI knows the first, and other servers mostly the second."""

UNSET = {"include_usage": (b"null", b"false"), "include_obfuscation": (b"null",)}
"""The values of stream options that we replace by ours."""

_INTEGER = re.compile(rb"-?(?:0|[1-9][0-9]*+)")
_ENTRY = re.compile(r"\$\[(\d+)\]`$")


class _Message(msgspec.Struct, gc=False):
    content: msgspec.Raw = msgspec.Raw(b"null")


class _Options(msgspec.Struct, gc=False):
    include_usage: msgspec.Raw = msgspec.Raw(b"")
    include_obfuscation: msgspec.Raw = msgspec.Raw(b"")


_messages = msgspec.json.Decoder(list[_Message])
_options = msgspec.json.Decoder(_Options)
_text = msgspec.json.Decoder(str)


class Addition(NamedTuple):
    """What we put into a body instead of its bytes from `start` to `end`. `name` is the field that gets it."""

    name: str
    start: int
    end: int
    text: bytes


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
    additions: tuple[Addition, ...] = field(repr=False)

    def write(self, left_out: Set[str] = frozenset()) -> bytes:
        """Write what is sent: the client's bytes, with our additions but for those to the fields of `left_out`.

        Fields that we may add to: `stream_options`, `max_tokens`, `max_completion_tokens`. A limit has two names, and
        is sent under the one that is not left out. What the client itself sent is never left out.
        """
        chosen: list[Addition] = []
        is_limited = False
        for addition in self.additions:
            is_limit = addition.name in LIMITS
            if addition.name not in left_out and not (is_limit and is_limited):
                chosen.append(addition)
                is_limited |= is_limit
        if not chosen:
            return self.body
        view = memoryview(self.body)
        pieces: list[bytes | memoryview] = []
        at = 0
        for addition in sorted(chosen, key=lambda one: (one.start, one.end)):
            pieces += view[at : addition.start], addition.text
            at = addition.end
        pieces.append(view[at:])
        return b"".join(pieces)

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
    fields = _Fields(found)
    fields.check_names()
    model = fields.model()
    messages = fields.messages(settings.openai_max_messages)
    is_streamed = fields.flag("stream")
    options = fields.options() if is_streamed else None
    limits = fields.limits(settings.max_tokens if "max_tokens" in settings.named else None)
    if fields.wrong:
        raise errors.InvalidRequest(fields=fields.wrong)
    if not settings.allows(model):
        raise errors.ModelNotAllowed
    limit = next((limits[name] for name in LIMITS if name in limits), None)
    additions = []
    if settings.system_prompt:
        additions.append(_system_prompt(found, settings.system_prompt))
    if is_streamed:
        additions += _stream_options(found, options, settings)
    if limit is None and "default_max_tokens" in settings.named:
        limit = settings.default_max_tokens
        names = LIMITS if settings.asks_openai else reversed(LIMITS)
        additions += [_added(found, name, b"%d" % limit) for name in names]
    return ForwardedRequest(
        model=model,
        choices=fields.choices(),
        is_streamed=is_streamed,
        keeps_usage=options is not None and bytes(options.include_usage) not in (b"", *UNSET["include_usage"]),
        max_tokens=limit,
        messages_count=len(messages) + bool(settings.system_prompt),
        prompt_tokens=_count((message.content for message in messages), model, settings),
        fingerprint=_fingerprint(body),
        body=body,
        additions=tuple(additions),
    )


class _Fields:
    """Reads the fields of a request, and notes in `wrong` what is wrong with them."""

    def __init__(self, found: Opaque) -> None:
        self._found = found
        self.wrong: dict[str, list[str]] = {}

    def check_names(self) -> None:
        wrong = [name for name in self._found.spans if name not in READ and name.casefold() in READ]
        self.wrong |= {name: [f"Differs from {name.casefold()} only in case."] for name in wrong[:MOST_WRONG]}

    def model(self) -> str:
        raw = self._found.value("model")
        if raw is None:
            self.wrong["model"] = ["Missing data for required field."]
        elif not raw.startswith(b'"'):
            self.wrong["model"] = ["Not a valid string."]
        elif (
            len(raw) > LONGEST_MODEL * len(rb"\ud83d\ude00") + 2
            or not 1 <= len(name := self._name(raw)) <= LONGEST_MODEL
        ):
            self.wrong["model"] = [f"Length must be between 1 and {LONGEST_MODEL}."]
        else:
            return name
        return ""

    def _name(self, raw: bytes) -> str:
        try:
            return _text.decode(raw)
        except msgspec.DecodeError:
            self.wrong["model"] = ["Contains half a surrogate pair, which is not a character."]
            return "-"

    def messages(self, most: int) -> list[_Message]:
        span = self._found.spans.get("messages")
        if span is None:
            self.wrong["messages"] = ["Missing data for required field."]
            return []
        try:
            messages = _messages.decode(memoryview(self._found.readable)[span[0] : span[1]])
            let_others_run_after(self._found.body)
        except msgspec.ValidationError as error:
            entry = _ENTRY.search(str(error))
            if entry:
                self.wrong[f"messages.{entry[1]}"] = ["Not an object."]
            else:
                self.wrong["messages"] = ["Not a valid list."]
            return []
        if not messages:
            self.wrong["messages"] = ["Must have at least 1 message."]
        elif len(messages) > most:
            self.wrong["messages"] = [f"Must have at most {most} messages."]
        return messages

    def flag(self, name: str) -> bool:
        raw = self._found.value(name)
        if raw not in (b"true", b"false", b"null", None):
            self.wrong[name] = ["Not a valid boolean."]
        return raw == b"true"

    def options(self) -> _Options | None:
        """Read the stream options. None when there are none, also when they are something else: the upstream judges."""
        raw = self._found.value("stream_options")
        if raw is None or not raw.startswith(b"{"):
            return None
        if len(raw) > LONGEST_OPTIONS_BYTES:
            self.wrong["stream_options"] = [f"Must have at most {LONGEST_OPTIONS_BYTES} bytes."]
            return None
        start, end = self._found.spans["stream_options"]
        return _options.decode(self._found.readable[start:end])

    def limits(self, most: int | None) -> dict[str, int]:
        """Read the limits of an answer's tokens. Without `most` the upstream judges what they are."""
        limits = {}
        for name in LIMITS:
            raw = self._found.value(name)
            if raw in (None, b"null"):
                continue
            limit = _integer(raw)
            if limit is None:
                self.wrong[name] = ["Not a valid integer."]
            elif most is not None and not 1 <= limit <= most:
                self.wrong[name] = [f"Must be greater than or equal to 1 and less than or equal to {most}."]
            else:
                limits[name] = limit
        return limits

    def choices(self) -> int:
        """Read how many answers are asked for. An `n` that OpenAI does not take counts as 1. The upstream judges it."""
        raw = self._found.value("n") or b""
        number = _integer(raw)
        if number is None and raw[:1].isdigit() and len(raw) <= LARGEST_DIGITS:
            number = int(value) if (value := float(raw)).is_integer() else None
        return number if number is not None and 1 <= number <= MOST_CHOICES else 1


def _integer(raw: bytes) -> int | None:
    """Read a JSON integer. None for anything else, also for 1.0 and for 1e3."""
    if len(raw) > LONGEST_NUMBER or not _INTEGER.fullmatch(raw):
        return None
    if len(raw) <= LARGEST_DIGITS:
        return int(raw)
    return -LARGEST if raw.startswith(b"-") else LARGEST


def _system_prompt(found: Opaque, text: str) -> Addition:
    message = json.dumps({"role": "system", "content": text}, separators=(",", ":")).encode()
    start = found.spans["messages"][0] + 1
    return Addition("messages", start, start, message + b",")


def _stream_options(found: Opaque, given: _Options | None, settings: Settings) -> list[Addition]:
    """Ask for the usage, which our books need. Ask OpenAI for no padding: that is for streams that others can see."""
    wanted = {"include_usage": b"true"}
    if settings.asks_openai:
        wanted["include_obfuscation"] = b"false"
    if found.value("stream_options") in (None, b"null"):
        return [_added(found, "stream_options", b"{%b}" % b",".join(map(_member, wanted.items())))]
    if given is None:
        return []
    at, end = found.spans["stream_options"]
    value = found.readable[at:end]
    additions = []
    missing = []
    for name, text in wanted.items():
        sent = bytes(getattr(given, name))
        if not sent:
            missing.append(_member((name, text)))
        elif sent in UNSET[name]:
            start, stop = last_value(value, name)
            additions.append(Addition("stream_options", at + start, at + stop, text))
    if missing:
        comma = b"," if value[1:-1].strip() else b""
        additions.append(Addition("stream_options", at + 1, at + 1, b",".join(missing) + comma))
    return additions


def _added(found: Opaque, name: str, text: bytes) -> Addition:
    """Add a field behind the last one, or put its value in the place of null."""
    if name in found.spans:
        return Addition(name, *found.spans[name], text)
    return Addition(name, found.end, found.end, b"," + _member((name, text)))


def _member(member: tuple[str, bytes]) -> bytes:
    return b'"%b":%b' % (member[0].encode(), member[1])


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
