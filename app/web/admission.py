"""What requests of all dialects have in common before a log is found or begun: who asks, and is there room."""

from __future__ import annotations

from contextlib import AbstractContextManager

from flask import request

from app import errors
from app.dialects.native.headers import Cursor, read_cursor
from app.reading.readers import Place
from app.web.current import worker

__all__ = ["admit", "body_of", "check_type", "credential", "cursor_of", "key_header"]


OF_OTHERS = ("chatcmpl-", "resp_", "ui_")
"""No cursor of a log begins like this: the id of a completion, and cursors of other dialects."""


def credential() -> str:
    """Return what the client shows to prove who it is, empty where it shows nothing. A log may be bound to it."""
    return request.headers.get("Authorization", "")


def cursor_of() -> Cursor | None:
    """Read the cursor. The header comes before the query, which is older on a reconnect. An empty cursor counts as
    absent. Raises: CursorMalformed."""
    raw = request.headers.get("Last-Event-ID") or request.args.get("last_event_id") or request.args.get("lastEventId")
    if raw and raw.startswith(OF_OTHERS):
        raise errors.CursorMalformed
    return read_cursor(raw) if raw else None


def key_header() -> str:
    """Name the header that has the request's key: the client's own, or without one the key that a proxy gave it.

    A proxy's key lets a request that the proxy sends twice start once, and says nothing else. Its client does not know
    it, and cannot come back with it.
    """
    return "Idempotency-Key" if "Idempotency-Key" in request.headers else "Proxy-Idempotency-Key"


def check_type() -> None:
    """Raises: UnsupportedMediaType."""
    if request.mimetype != "application/json":
        raise errors.UnsupportedMediaType
    if request.headers.get("Content-Encoding", "").strip().lower() not in ("", "identity"):
        raise errors.UnsupportedMediaType("The body is compressed. This server reads only uncompressed bodies.")


def admit(key: str | None) -> Place:
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


def body_of(*, at_most: int) -> AbstractContextManager[bytes]:
    """Read the body, of so many bytes at most. Raises: see `Bodies.read`."""
    return worker().bodies.read(request.environ, at_most=at_most)
