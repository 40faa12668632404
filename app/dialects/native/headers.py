"""What the headers of a request say in ChatWait's own dialect: a cursor, an idempotency key, how long to wait."""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

from app import errors
from app.streams.interface import StreamLog

__all__ = ["Cursor", "place_after", "read_cursor", "read_key", "read_wait_seconds"]

LONGEST_CURSOR_BYTES = 128
LARGEST_SEQUENCE = 2**53

FEWEST_SIGNS = 4
"""How many different characters a key must have. A key with fewer was not drawn at random, so another client may have
the same key."""

_CURSOR = re.compile(r"([A-Za-z0-9_-]+)\.(0|[1-9][0-9]{0,15})")
_KEY = re.compile(r"[\x21-\x7e]{16,255}")
_WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?([0-9]{1,6})\"?\s*(?:$|[,;])", re.IGNORECASE)


class Cursor(NamedTuple):
    """The id of the last event that a client received."""

    stream_id: str
    sequence: int


def read_cursor(raw: str) -> Cursor:
    """Read a cursor. Raises: CursorMalformed."""
    found = _CURSOR.fullmatch(raw) if len(raw) <= LONGEST_CURSOR_BYTES else None
    if found is None or int(found[2]) > LARGEST_SEQUENCE:
        raise errors.CursorMalformed
    return Cursor(found[1], int(found[2]))


def place_after(cursor: Cursor | None, log: StreamLog) -> int | None:
    """Return the record after which a client goes on, 0 for the beginning. None when the client has seen the end.

    Raises: CursorAhead.
    """
    if cursor is None:
        return 0
    end = log.end  # the end is read before the head: a log that ends in between only grows
    if cursor.sequence <= log.head:
        return cursor.sequence
    if end is not None and cursor.sequence == log.head + 1:
        return None
    raise errors.CursorAhead


def read_key(raw: str | None, name: str = "Idempotency-Key") -> str | None:
    """Return the SHA-256 of an idempotency key, None where there is none. `name` is the header that has the key.

    Raises: InvalidRequest.
    """
    if raw is None:
        return None
    if not _KEY.fullmatch(raw):
        raise errors.InvalidRequest(
            "The idempotency key is not valid.",
            fields={name: ["Must be 16 to 255 visible ASCII characters."]},
        )
    if len(set(raw)) < FEWEST_SIGNS:
        raise errors.InvalidRequest(
            f"The idempotency key has fewer than {FEWEST_SIGNS} different characters. Another client may choose the "
            "same key, and then it can read this answer.",
            fields={name: [f"Must be random, with at least {FEWEST_SIGNS} different characters: a UUID4."]},
        )
    return hashlib.sha256(raw.encode()).hexdigest()


def read_wait_seconds(prefer: str) -> str | None:
    """Return the seconds that a Prefer header asks to wait for, as text. None when the header names none."""
    found = _WAIT.search(prefer)
    return found[1] if found else None
