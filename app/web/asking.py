"""The log that a request of ChatWait's own dialect asks for: one that its cursor or its path names, or one that it
begins."""

from __future__ import annotations

from flask import g, request

from app import errors
from app.dialects.native.headers import Cursor, read_key
from app.dialects.native.request import ChatRequest, read_request
from app.platform.utc import utc_now
from app.streams.interface import Binding, Origin, StreamLog
from app.upstream.interface import Question
from app.web.admission import admit, body_of, check_type, credential, cursor_of, key_header
from app.web.current import worker

__all__ = ["find", "find_or_begin"]


def find_or_begin() -> tuple[StreamLog, Cursor | None]:
    """Find the log of the request's cursor. A request without a cursor begins a log, and a request with one never does.

    Raises: CursorMalformed, UnsupportedMediaType, and what `read_key`, `read_request`, `Bodies.read` and a store's
    `find`, `admit` and `create` raise.
    """
    cursor = cursor_of()
    if cursor is None:
        return _begin(), None
    with body_of(at_most=worker().settings.max_body_bytes):
        pass
    return worker().store.find(cursor.stream_id, reach=cursor.sequence, credential=credential()), cursor


def find(stream_id: str) -> tuple[StreamLog, Cursor | None]:
    """Find the log of a path, and the cursor in it.

    The contract's order of failures: CursorMalformed, CursorForeign, then what a store's `find` raises.
    """
    cursor = cursor_of()
    if cursor is not None and cursor.stream_id != stream_id:
        raise errors.CursorForeign
    reach = 0 if cursor is None else cursor.sequence
    return worker().store.find(stream_id, reach=reach, credential=credential()), cursor


def _begin() -> StreamLog:
    """Begin the log of a new generation, or attach to the one that the same idempotency key began."""
    check_type()
    header = key_header()
    key = read_key(request.headers.get(header), header)
    admit(key)  # before the body, so that the body of a refused request is not read
    with body_of(at_most=worker().settings.max_body_bytes) as body:
        asked = read_request(body, worker().settings)
    g.place = admit(key)
    return _create(asked, key)


def _create(asked: ChatRequest, key: str | None) -> StreamLog:
    """Create the log and start its generation, unless the key has begun one before. `key` is hashed."""
    parts = worker()
    binding = Binding(key, asked.fingerprint) if key else None
    origin = Origin(g.correlation_id, asked.model, utc_now(), asked.prompt_tokens)
    question = Question(asked.messages, asked.model, asked.max_tokens, asked.temperature)
    log, is_new = parts.store.create(origin, binding, prompt_bytes=question.held_bytes)
    if is_new:
        parts.generations.start(log, question)
    return log
