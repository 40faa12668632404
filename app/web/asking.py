"""The log that a request asks for: one that its cursor or its path names, or one that it begins."""

from __future__ import annotations

from contextlib import AbstractContextManager

from flask import g, request

from app import errors
from app.dialects.native.headers import Cursor, read_cursor, read_key
from app.dialects.native.request import ChatRequest, read_request
from app.platform.utc import utc_now
from app.reading.readers import Place
from app.streams.interface import Binding, Origin, StreamLog
from app.upstream.interface import Question
from app.web.current import worker

__all__ = ["find", "find_or_begin"]


def find_or_begin() -> tuple[StreamLog, Cursor | None]:
    """Find the log of the request's cursor. A request without a cursor begins a log, and a request with one never does.

    Raises: CursorMalformed, UnsupportedMediaType, and what `read_key`, `read_request`, `Bodies.read` and a store's
    `find`, `admit` and `create` raise.
    """
    cursor = _cursor()
    if cursor is None:
        return _begin(), None
    with _body():
        pass
    return worker().store.find(cursor.stream_id, reach=cursor.sequence), cursor


def find(stream_id: str) -> tuple[StreamLog, Cursor | None]:
    """Find the log of a path, and the cursor in it.

    The contract's order of failures: CursorMalformed, CursorForeign, then what a store's `find` raises.
    """
    cursor = _cursor()
    if cursor is not None and cursor.stream_id != stream_id:
        raise errors.CursorForeign
    return worker().store.find(stream_id, reach=0 if cursor is None else cursor.sequence), cursor


def _cursor() -> Cursor | None:
    """Read the cursor. The header comes before the query, which is older on a reconnect. An empty cursor counts as
    absent."""
    raw = request.headers.get("Last-Event-ID") or request.args.get("last_event_id") or request.args.get("lastEventId")
    return read_cursor(raw) if raw else None


def _begin() -> StreamLog:
    """Begin the log of a new generation, or attach to the one that the same idempotency key began."""
    _check_type()
    key = read_key(request.headers.get("Idempotency-Key"))
    _admit(key)  # before the body, so that the body of a refused request is not read
    with _body() as body:
        asked = read_request(body, worker().settings)
    g.place = _admit(key)
    return _create(asked, key)


def _check_type() -> None:
    if request.mimetype != "application/json":
        raise errors.UnsupportedMediaType
    if request.headers.get("Content-Encoding", "").strip().lower() not in ("", "identity"):
        raise errors.UnsupportedMediaType("The body is compressed. This server reads only uncompressed bodies.")


def _admit(key: str | None) -> Place:
    """Check that there is room for another generation, and keep the place of its reader.

    A request whose key has begun a log begins nothing, so it has room of its own. `key` is hashed.
    Raises: Overloaded, ShuttingDown, StoreUnavailable.
    """
    parts = worker()
    try:
        parts.store.admit()
        return parts.readers.admit()
    except (errors.Overloaded, errors.ShuttingDown):
        if key is None or not parts.store.knows(key):
            raise
        return parts.readers.admit(attaching=True)


def _body() -> AbstractContextManager[bytes]:
    parts = worker()
    return parts.bodies.read(request.environ, at_most=parts.settings.max_body_bytes)


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
