"""JSON of others → JSON of one line, in ASCII, whose values stay as they were written."""

from __future__ import annotations

from collections.abc import Mapping
from json.encoder import encode_basestring_ascii
from typing import Any

import msgspec

__all__ = ["ABSENT", "Members", "begins_with", "members_of", "one_line", "written"]

Members = dict[str, msgspec.Raw]
"""An object by its names, in order. The last of two equal names counts, as in other parsers."""

ABSENT = msgspec.Raw()

_SPACES = bytes.maketrans(b"\t\n\r", b"   ")

members_of = msgspec.json.Decoder(Members).decode
"""JSON of an object → its members, checked and not built. Raises: msgspec.DecodeError, UnicodeDecodeError,
RecursionError."""


def begins_with(value: msgspec.Raw, marks: bytes) -> bool:
    """Tell whether a value is there, and begins with one of the marks."""
    return len(value) > 0 and memoryview(value)[0] in marks


def written(value: Mapping[str, Any]) -> bytes:
    """Return the JSON of members, of which some may be built, and others are kept as they were written."""
    return msgspec.json.encode(value)


def one_line(json: bytes) -> str:
    """Return valid JSON as one line, in ASCII. Raises: UnicodeDecodeError."""
    text = json.translate(_SPACES).decode()  # Between values only: a string has none of them unescaped.
    if text.isascii():
        return text
    # Quotes and backslashes are escaped with the rest, and are taken back. Each step is one call, whatever the text.
    return encode_basestring_ascii(text)[1:-1].replace('\\"', '"').replace("\\\\", "\\")
