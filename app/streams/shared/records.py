"""What the engine holds, read with suspicion: whoever can write there, or a fault, must harm no other stream.

A record that is not what this program writes is `Damaged`: its own readers are told that it is gone. Fields that a
newer version has added are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec

from app import errors
from app.streams.interface import Binding, Origin, Terminal

__all__ = [
    "LARGEST",
    "Damaged",
    "Record",
    "damage",
    "read_binding",
    "read_end",
    "read_number",
    "read_owner",
    "read_stream",
]

LARGEST = 2**53
"""No count, fence or sequence number comes near it, and Lua's numbers are exact up to it."""

STREAM_ID = re.compile(r"cw_[A-Za-z0-9_-]{22}")
_OWNER = re.compile(rb"[A-Za-z0-9_-]{1,64}")
_BOUND = re.compile(rb"(cw_[A-Za-z0-9_-]{22}) ([\x21-\x7e]{1,128})")
_PLAIN = re.compile(r"[\x20-\x7e]{1,128}")
LONGEST_MODEL_CHARS = 1000

T = TypeVar("T")


class Damaged(Exception):
    """A record is none of this program's. The text names the part, and holds nothing of it."""


class Record(NamedTuple):
    """A stream's hash."""

    origin: Origin
    binding: Binding | None
    owner: str
    fence: int
    is_ended: bool


class _Error(msgspec.Struct):
    error_code: str
    message: str
    detail: str
    action: str
    origin: str
    retryable: bool
    correlation_id: str


class _Content(msgspec.Struct):
    """What readers need of a terminal event."""

    sequence: int
    is_final: Literal[True]
    status: Literal["complete", "cancelled", "failed"]
    finish_reason: str | None
    model: str
    tokens: int
    usage: dict[str, Any]
    first_token_ms: int | None
    duration_ms: int
    characters: int
    sha256: str
    correlation_id: str
    reason: str | None = None
    error: _Error | None = None


class _End(msgspec.Struct):
    event: Literal["done", "cancelled", "failed"]
    content: dict[str, Any]
    frees_key: bool = False


def damage(what: str, read: Callable[[], T]) -> T:
    """Return what `read` returns. Raises: Damaged, naming `what`, for all that a wrong shape makes it raise."""
    try:
        return read()
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise Damaged(what) from error


def read_number(value: object, what: str, *, least: int = 0) -> int:
    """Raises: Damaged."""
    if not isinstance(value, bytes) or not re.fullmatch(rb"0|[1-9][0-9]{0,15}", value):
        raise Damaged(what)
    number = int(value)
    if not least <= number < LARGEST:
        raise Damaged(what)
    return number


def read_owner(value: object) -> str:
    """Raises: Damaged."""
    if not isinstance(value, bytes) or not _OWNER.fullmatch(value):
        raise Damaged("owner")
    return value.decode()


def read_stream(told: list[bytes]) -> Record:
    """Read a hash as HGETALL gives it. Raises: Damaged."""
    have = dict(zip(told[::2], told[1::2], strict=True))

    def text(name: bytes, longest: int = 128) -> str:
        value = have[name].decode()
        if not value or len(value) > longest:
            raise ValueError
        return value

    def origin() -> Origin:
        correlation_id, created = text(b"correlation_id"), text(b"created")
        if not _PLAIN.fullmatch(correlation_id) or datetime.fromisoformat(created).tzinfo is None:
            raise ValueError
        prompt_tokens = read_number(have[b"prompt_tokens"], "prompt_tokens")
        return Origin(correlation_id, text(b"model", LONGEST_MODEL_CHARS), created, prompt_tokens)

    def binding() -> Binding | None:
        return Binding(text(b"key"), text(b"fingerprint")) if b"key" in have else None

    read_number(have.get(b"head"), "head")
    return Record(
        damage("origin", origin),
        damage("key", binding),
        read_owner(have.get(b"owner")),
        read_number(have.get(b"fence"), "fence", least=1),
        b"end" in have,
    )


def read_end(text: bytes, sequence: int) -> Terminal:
    """Read a terminal event, which belongs at a sequence number. Raises: Damaged."""

    def read() -> Terminal:
        end = msgspec.json.decode(text, type=_End)
        content = msgspec.convert(end.content, type=_Content)
        status = "complete" if end.event == "done" else end.event
        if (content.sequence, content.tokens, content.status) != (sequence, sequence - 1, status):
            raise ValueError
        if (content.error is not None) is not (end.event == "failed"):
            raise ValueError
        if content.error is not None:
            errors.status_of(content.error.error_code)
        return Terminal(end.event, end.content, end.frees_key)

    return damage("end", read)


def read_binding(answer: object) -> tuple[str, str]:
    """Read what an idempotency key stands for: a stream's id and the fingerprint of its request. Raises: Damaged."""
    found = _BOUND.fullmatch(answer) if isinstance(answer, bytes) else None
    if found is None:
        raise Damaged("idempotency key")
    return found[1].decode(), found[2].decode()
