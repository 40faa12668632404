"""How a stream is stored on Valkey: one codec each way, used by create, restore, copy and finish.

Stored values are checked when they are read: a fault, or another writer on Valkey, must harm one stream alone. A value
that this program would not write is `Damaged`, and the readers of its stream are told that the stream is gone. Fields
that a newer version has added are passed over. Version 0.1 writes and reads the same form.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec

from app import errors
from app.streams.chunk import Chunk, Envelope
from app.streams.interface import STREAM_ID_PREFIXES, Binding, End, Kind, Origin, Status
from app.streams.shared.chunk_entries import read_chunk
from app.tokens.usage import Usage

__all__ = [
    "LARGEST",
    "Damaged",
    "Erased",
    "Stream",
    "damage",
    "end_kind",
    "field_of",
    "leads_to_its_end",
    "read_binding",
    "read_chunk_entries",
    "read_end",
    "read_entries",
    "read_number",
    "read_owner",
    "read_stream",
    "write_end",
    "write_stream",
]

LARGEST = 2**53
"""No count, fence or sequence number comes near it, and Lua's numbers are exact up to it."""

STREAM_ID = re.compile(r"cwc?_[A-Za-z0-9_-]{22}")
_OWNER = re.compile(rb"[A-Za-z0-9_-]{1,64}")
_BOUND = re.compile(rb"(cwc?_[A-Za-z0-9_-]{22}) ([\x21-\x7e]{1,128})")
_PLAIN = re.compile(r"[\x20-\x7e]{1,128}")
_CLIENT = re.compile(r"[0-9a-f]{64}")
LONGEST_MODEL_CHARS = 1000

FORMAT = 2
"""The format of logs of chunks. A hash without a format is version 0.1's, and its log is one of text."""

T = TypeVar("T")


class Damaged(Exception):
    """A stored value is not one that this program writes. The text names the value, and quotes nothing."""


class Erased(Exception):
    """The stream was erased for good."""


class Stream(NamedTuple):
    """A stream as its hash describes it."""

    stream_id: str
    origin: Origin
    binding: Binding | None
    owner: str
    fence: int
    attached: int = 0
    """How many readers have attached. Only written."""
    is_ended: bool = False
    """Only read."""


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    source: str


class _Error(msgspec.Struct):
    error_code: str
    message: str
    detail: str
    action: str
    correlation_id: str
    origin: str
    retryable: bool
    retry_after_seconds: int | msgspec.UnsetType | None = msgspec.UNSET
    reported: _Reported | msgspec.UnsetType | None = msgspec.UNSET


class _Reported(msgspec.Struct):
    status: int
    message: str
    type: str | None = None
    param: str | None = None
    code: str | None = None


class _Content(msgspec.Struct):
    sequence: int
    is_final: Literal[True]
    status: Status
    finish_reason: str | None
    model: str
    tokens: int
    usage: _Usage
    first_token_ms: int | None
    duration_ms: int
    characters: int
    sha256: str
    correlation_id: str
    reason: str | msgspec.UnsetType | None = msgspec.UNSET
    error: _Error | msgspec.UnsetType | None = msgspec.UNSET


class _End(msgspec.Struct):
    """The stored form of an end, as version 0.1 wrote it: one JSON object in the order of these fields."""

    event: Literal["done", "cancelled", "failed"]
    content: _Content
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


def write_stream(stream: Stream) -> tuple[str | int, ...]:
    """Write the fields and values of a new stream's hash."""
    origin, binding = stream.origin, stream.binding
    return (
        *("owner", stream.owner, "fence", stream.fence, "head", 0, "bytes", 0, "attached", stream.attached),
        *("correlation_id", origin.correlation_id, "model", origin.model, "created", origin.created),
        *("prompt_tokens", origin.prompt_tokens),
        *(() if origin.kind == "text" else ("format", FORMAT, "kind", origin.kind)),
        *(() if origin.client is None else ("client", origin.client)),
        *(() if binding is None else ("key", binding.key, "fingerprint", binding.fingerprint)),
    )


def read_stream(stream_id: str, told: list[bytes]) -> Stream:
    """Read a hash as HGETALL gives it. Raises: Damaged; StoreUnavailable when a newer version has written it."""
    have = dict(zip(told[::2], told[1::2], strict=True))
    if read_number(have.get(b"format", b"1"), "format") > FORMAT:
        raise errors.StoreUnavailable(
            "A newer version of this server has written the stream, and this server process cannot read it.",
            retry_after_seconds=5,
        )

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
        model = text(b"model", LONGEST_MODEL_CHARS)
        return Origin(correlation_id, model, created, prompt_tokens, kind(), client())

    def kind() -> Kind:
        stored = have.get(b"kind", b"text").decode()
        for known, prefix in STREAM_ID_PREFIXES.items():
            if stored == known and stream_id.startswith(prefix):
                return known
        raise ValueError

    def client() -> str | None:
        if b"client" not in have:
            return None
        stored = have[b"client"].decode()
        if not _CLIENT.fullmatch(stored):
            raise ValueError
        return stored

    def binding() -> Binding | None:
        return Binding(text(b"key"), text(b"fingerprint")) if b"key" in have else None

    read_number(have.get(b"head"), "head")
    return Stream(
        stream_id,
        damage("origin", origin),
        damage("key", binding),
        read_owner(have.get(b"owner")),
        read_number(have.get(b"fence"), "fence", least=1),
        is_ended=b"end" in have,
    )


def write_end(origin: Origin, end: End) -> bytes:
    """Write an end as `read_end` reads it. Version 0.1 reads it too."""
    failure = end.error
    content = _Content(
        sequence=end.records + 1,
        is_final=True,
        status=end.status,
        finish_reason=end.finish_reason,
        model=origin.model,
        tokens=end.records,
        usage=_Usage(*end.usage),
        first_token_ms=end.first_token_ms,
        duration_ms=end.duration_ms,
        characters=end.characters,
        sha256=end.sha256,
        correlation_id=origin.correlation_id,
        reason=end.reason or msgspec.UNSET,
        error=msgspec.UNSET
        if failure is None
        else _Error(
            failure.error_code,
            failure.message,
            failure.detail,
            failure.action,
            origin.correlation_id,
            failure.origin,
            failure.retryable,
            msgspec.UNSET if failure.retry_after_seconds is None else failure.retry_after_seconds,
            msgspec.UNSET if failure.reported is None else _Reported(*failure.reported),
        ),
    )
    return json.dumps(msgspec.to_builtins(_End(end_kind(end), content, end.frees_key))).encode()


def end_kind(end: End) -> Literal["done", "cancelled", "failed"]:
    """Name the kind of an end, as it stands in a stream's hash."""
    return "done" if end.status == "complete" else end.status


def read_end(text: bytes, sequence: int) -> End:
    """Read an end, whose entry has a sequence number. Raises: Damaged, also when the end tells of another number."""

    def read() -> End:
        stored = msgspec.json.decode(text, type=_End)
        content, error = stored.content, stored.content.error or None
        status = "complete" if stored.event == "done" else stored.event
        if (content.sequence, content.tokens, content.status) != (sequence, sequence - 1, status):
            raise ValueError
        if (error is not None) is not (stored.event == "failed"):
            raise ValueError
        if error is not None:
            errors.status_of(error.error_code)
        return End(
            status=content.status,
            records=content.tokens,
            characters=content.characters,
            sha256=content.sha256,
            usage=Usage(*msgspec.structs.astuple(content.usage)),
            finish_reason=content.finish_reason,
            first_token_ms=content.first_token_ms,
            duration_ms=content.duration_ms,
            reason=content.reason or None,
            error=None if error is None else _failure(error),
        )

    return damage("end", read)


def _failure(error: _Error) -> errors.Failure:
    return errors.Failure(
        error_code=error.error_code,
        message=error.message,
        detail=error.detail,
        action=error.action,
        origin=error.origin,
        retryable=error.retryable,
        retry_after_seconds=None if error.retry_after_seconds is msgspec.UNSET else error.retry_after_seconds,
        reported=errors.Reported(*msgspec.structs.astuple(error.reported)) if error.reported else None,
    )


def field_of(kind: Kind) -> str:
    """Name the field of an entry that holds a record."""
    return "t" if kind == "text" else "c"


def read_entries(entries: list[Any], head: int) -> tuple[list[str], End | None]:
    """Read entries of a log of text: return the texts of the records behind `head`, and the end if it is there. Known
    entries are passed over.

    Shape of `entries`: [[id, [name, value]], ...]. Raises: Damaged when an entry is malformed or missing; Erased.
    """
    return _read_entries(entries, head, b"t", bytes.decode)


def read_chunk_entries(entries: list[Any], head: int, envelopes: list[Envelope]) -> tuple[list[Chunk], End | None]:
    """Read entries of a log of chunks as `read_entries` does. `envelopes` are those of the records up to `head`, and
    may grow. Raises: Damaged, Erased."""
    return _read_entries(entries, head, b"c", lambda stored: read_chunk(stored, envelopes))


def _read_entries(
    entries: list[Any], head: int, field: bytes, read: Callable[[bytes], T]
) -> tuple[list[T], End | None]:
    found: list[T] = []
    end: End | None = None
    try:
        for entry_id, (name, value) in entries:
            place, _, part = entry_id.partition(b"-")
            if part != b"0":
                raise Damaged("the place of an entry")
            if name == b"erased":
                raise Erased
            sequence = int(place)
            if sequence <= head:
                continue
            if sequence != head + 1 or end is not None:
                raise Damaged("the order of its entries")
            if name == field:
                found.append(read(value))
                head += 1
            elif name == b"e":
                end = read_end(value, sequence)
            else:
                raise Damaged("the name of an entry")
    except (ValueError, TypeError, LookupError) as error:
        raise Damaged("an entry") from error
    return found, end


def leads_to_its_end(owner: object, fence: object, end: object) -> bool:
    """Tell whether the end of a stream may still come to a copy, by three fields of the stream's hash."""
    try:
        read_owner(owner)
        read_number(fence, "fence", least=1)
    except Damaged:
        return False
    return end is None


def read_binding(answer: object) -> tuple[str, str]:
    """Read what an idempotency key stands for: a stream's id and the fingerprint of its request. Raises: Damaged."""
    found = _BOUND.fullmatch(answer) if isinstance(answer, bytes) else None
    if found is None:
        raise Damaged("idempotency key")
    return found[1].decode(), found[2].decode()
