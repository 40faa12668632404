"""JSON of OpenAI's chat completions: a whole answer, and what clients get in its place."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from json.encoder import encode_basestring_ascii
from typing import Any

from msgspec import Raw

from app.dialects.completions.errors import error_body
from app.dialects.completions.joining import Joined
from app.dialects.completions.models import completion_id
from app.dialects.completions.nodes import fields_of, items_of, write_object
from app.errors import Failure
from app.streams.interface import End, Origin, Piece

__all__ = ["as_chunk", "completion", "deleted", "failed_answer", "finish_reason_of", "running"]


_USAGE = ("prompt_tokens", "completion_tokens", "total_tokens")


def completion(stream_id: str, origin: Origin, end: End, pieces: Iterable[Piece], created: int) -> bytes:
    """Write the completion that a log's records make together, as JSON in ASCII. An answer that was not streamed is
    written as it came.

    `pieces` are all records of the log. `created` is in seconds since 1970, and counts where no chunk has told a time.
    Raises: errors.UpstreamError when the upstream's chunks cannot be joined.
    """
    joined = Joined()
    texts: list[str] = []
    for piece in pieces:
        if piece.chunks is None:
            texts.append(piece.text)
        elif origin.kind == "json":
            return piece.chunks[0].value.encode("ascii")
        else:
            for chunk in piece.chunks:
                joined.add(chunk)
    members = {
        "id": _written(completion_id(stream_id)),
        "object": b'"chat.completion"',
        "created": b"%d" % created,
        "model": _written(origin.model),
        "choices": _only_choice("".join(texts), end) if origin.kind == "text" else joined.choices(),
        "usage": json.dumps({name: getattr(end.usage, name) for name in _USAGE}).encode("ascii"),
    }
    told = {name: value for name, value in joined.members.items() if name not in members or value != b"null"}
    return write_object(members | told)


def failed_answer(failure: Failure, correlation_id: str, partial: bytes) -> bytes:
    """Write the error of an answer that failed or was cancelled, with the completion until then."""
    body = error_body(failure, correlation_id)
    return write_object({"error": json.dumps(body["error"]).encode("ascii"), "partial": partial})


def running(stream_id: str, origin: Origin, created: int) -> dict[str, Any]:
    """Write the answer for a client that waits no longer. SDKs read it as a completion, so it has the form of one.

    Units: `created` in seconds since 1970.
    """
    return {
        "id": completion_id(stream_id),
        "object": "chat.completion",
        "created": created,
        "model": origin.model,
        "status": "in_progress",
        "choices": [],
    }


def deleted(stream_id: str) -> dict[str, Any]:
    """Write the answer to a deletion."""
    return {"id": completion_id(stream_id), "object": "chat.completion.deleted", "deleted": True}


def as_chunk(answer: str) -> str:
    """Write a whole completion as one chunk of a stream. All but its choices stays as it is.

    An answer that is not read stays as it is, too: for its reader that is better than a stream that breaks each time.
    """
    try:
        fields = _bytes_of(fields_of(answer))
        fields["object"] = b'"chat.completion.chunk"'
        if fields.get("choices", b"")[:1] == b"[":
            fields["choices"] = _each(fields["choices"], _as_streamed)
        return write_object(fields).decode("ascii")
    except (ValueError, RecursionError):
        return answer


def _as_streamed(place: int, choice: dict[str, bytes]) -> dict[str, bytes]:
    """Make a choice with a `message` one with a `delta`."""
    message = choice.get("message", b"")
    if message[:1] == b"{":
        delta = _bytes_of(fields_of(message))
        if delta.get("tool_calls", b"")[:1] == b"[":
            delta["tool_calls"] = _each(delta["tool_calls"], _as_indexed)
        message = write_object(delta)
    return {
        "delta" if name == "message" else name: message if name == "message" else value
        for name, value in choice.items()
    }


def _as_indexed(place: int, call: dict[str, bytes]) -> dict[str, bytes]:
    return {"index": b"%d" % place, **call}


def _each(array: bytes, change: Callable[[int, dict[str, bytes]], dict[str, bytes]]) -> bytes:
    """Change each object in an array, given its place."""
    items = [bytes(item) for item in items_of(array)]
    changed = [
        write_object(change(place, _bytes_of(fields_of(item)))) if item[:1] == b"{" else item
        for place, item in enumerate(items)
    ]
    return b"[%b]" % b",".join(changed)


def _bytes_of(fields: Mapping[str, Raw]) -> dict[str, bytes]:
    return {name: bytes(value) for name, value in fields.items()}


def _only_choice(text: str, end: End) -> bytes:
    """Write the choices of a log of text."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "logprobs": None,
        "finish_reason": finish_reason_of(end),
    }
    return json.dumps([choice]).encode("ascii")


def finish_reason_of(end: End) -> str | None:
    """Return why a log of text has finished. None before it is complete."""
    return end.finish_reason or "stop" if end.status == "complete" else None


def _written(text: str) -> bytes:
    return encode_basestring_ascii(text).encode("ascii")
