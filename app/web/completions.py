"""OpenAI's chat completions: the log that a request begins, names or erases."""

from __future__ import annotations

import hashlib

from flask import Response, g, request

from app import errors
from app.dialects.completions.errors import failure_of
from app.dialects.completions.models import completion_id
from app.dialects.completions.request import ForwardedRequest, read_forwarded
from app.dialects.native.headers import Cursor, place_after, read_cursor, read_key
from app.platform.utc import utc_now
from app.streams.interface import Binding, Kind, Origin, StreamLog
from app.upstream.interface import Forwarded
from app.web.admission import admit, body_of, check_type, credential, cursor_of, key_header
from app.web.completion_answers import refused, stream, whole
from app.web.current import worker
from app.web.reading import hold
from app.web.stopping import stop

__all__ = ["create", "erase", "show"]

HOLD_SECONDS = 10.0
"""How long the head of a stream waits for the upstream's first event, so that an error has a status of its own."""


def create() -> Response:
    """Begin a generation, or attach to the one that the same key began, or resume at a cursor."""
    cursor = cursor_of()
    if cursor is not None:
        with body_of(at_most=worker().settings.openai_max_body_bytes):
            pass
        return stream(worker().store.find(cursor.stream_id, reach=cursor.sequence, credential=credential()), cursor)
    log, rate_limits = _begin()
    if log.origin.kind == "chunks":
        hold(log, seconds=HOLD_SECONDS)
        end = log.end
        response = (
            refused(log, end, is_streamed=True)
            if end is not None and not end.records and failure_of(end) is not None
            else stream(log, None, is_admitted=True)
        )
    else:
        response = whole(log, is_admitted=True)
    response.headers.update(rate_limits)
    return response


def show(stream_id: str) -> Response:
    """Answer with a log that has begun: as chunks, or as one JSON object when it has ended."""
    cursor = cursor_of() or _starting_after(stream_id)
    if cursor is not None and cursor.stream_id != stream_id:
        raise errors.CursorForeign
    log = worker().store.find(stream_id, reach=0 if cursor is None else cursor.sequence, credential=credential())
    if request.args.get("stream") == "true" or _prefers_events():
        return stream(log, cursor)
    place_after(cursor, log)
    return whole(log)


def erase(stream_id: str) -> None:
    """Stop a generation, and forget all of it. Its readers are cut off.

    Raises: StreamUnknown, StreamExpired, StoreUnavailable.
    """
    parts = worker()
    try:
        log = parts.store.find(stream_id, credential=credential())
    except errors.Overloaded:  # there is no room for its records here, and to erase them needs none
        if parts.store.elsewhere is None:
            raise
        parts.store.elsewhere.cancel(stream_id)
        parts.store.elsewhere.erase_unread(stream_id)
        return
    parts.readers.cut(log)  # before the stop, whose end they would get
    stop(log)
    parts.store.erase(log)
    parts.readers.cut(log)


def _starting_after(stream_id: str) -> Cursor | None:
    raw = request.args.get("starting_after")
    return read_cursor(f"{stream_id}.{raw}") if raw else None


def _prefers_events() -> bool:
    accepted = request.headers.get("Accept", "").lower()
    return "text/event-stream" in accepted and "application/json" not in accepted


def _begin() -> tuple[StreamLog, dict[str, str]]:
    """Begin the log of a new generation, or attach to the one that the same idempotency key began.

    Also return where the upstream's headers about rate limits come, once it has answered. Nothing here keeps the body.
    """
    parts = worker()
    check_type()
    key = _key()
    admit(key)  # before the body, so that the body of a refused request is not read
    with body_of(at_most=parts.settings.openai_max_body_bytes) as body:
        asked = read_forwarded(body, parts.settings)
    g.place = admit(key)
    return _create(asked, key)


def _key() -> str | None:
    """Read the idempotency key, hashed with what the client shows: other clients may have the same one."""
    header = key_header()
    key = read_key(request.headers.get(header), header)
    return None if key is None else hashlib.sha256(f"completions {key} {credential()}".encode()).hexdigest()


def _create(asked: ForwardedRequest, key: str | None) -> tuple[StreamLog, dict[str, str]]:
    """Create the log and start its generation, unless the key has begun one before."""
    parts = worker()
    binding = Binding(key, asked.fingerprint) if key else None
    kind: Kind = "chunks" if asked.is_streamed else "json"
    origin = Origin(g.correlation_id, asked.model, utc_now(), asked.prompt_tokens, kind)
    log, is_new = parts.store.create(origin, binding, prompt_bytes=asked.held_bytes, credential=credential())
    question = Forwarded(
        model=asked.model,
        write=asked.write,
        completion_id=completion_id(log.stream_id),
        choices=asked.choices,
        is_streamed=asked.is_streamed,
        keeps_usage=asked.keeps_usage,
        asked_once="X-Stainless-Retry-Count" in request.headers,
        max_tokens=asked.max_tokens,
        messages_count=asked.messages_count,
        held_bytes=asked.held_bytes,
    )
    if is_new:
        parts.generations.start(log, question)
    return log, question.rate_limits
