"""Takes the body of an HTTP/1.1 message out of the bytes of its connection. Pure: no network.

Source: RFC 9112, 6 and 7.1. Each framing takes received bytes in any cuts, and returns the body's bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

__all__ = ["BadFraming", "Chunked", "Counted", "Framing", "UntilClose", "announced"]

LONGEST_SIZE_LINE = 1024
LONGEST_TRAILER = 16_384
LONGEST_LENGTH = 15
"""Units: digits, of a chunk's size and of Content-Length."""


class BadFraming(ValueError):
    """The body broke off before its announced end, or is not framed as announced."""


class Framing(Protocol):
    """How a body is marked off from the bytes around it."""

    ended: bool
    """The body has come to its end."""
    surplus: bool
    """Bytes came behind the end. They belong to no answer that was asked for."""

    def feed(self, received: bytes) -> bytes:
        """Return the body's part of `received`. Raises: BadFraming."""

    def end(self) -> bytes:
        """Note that the connection ended. Raises: BadFraming when the body had not ended."""


class UntilClose:
    """No length is announced: the body is all that comes."""

    surplus = False

    def __init__(self) -> None:
        self.ended = False

    def feed(self, received: bytes) -> bytes:
        return received

    def end(self) -> bytes:
        self.ended = True
        return b""


class Counted:
    """A body with a Content-Length."""

    def __init__(self, length: int) -> None:
        self._left = length
        self.ended = length == 0
        self.surplus = False

    def feed(self, received: bytes) -> bytes:
        data = received[: self._left]
        self.surplus = len(received) > len(data)
        self._left -= len(data)
        self.ended = self._left == 0
        return data

    def end(self) -> bytes:
        raise BadFraming("the connection closed before the body was complete")


class Chunked:
    """A body with Transfer-Encoding: chunked. Trailers are read and dropped."""

    def __init__(self) -> None:
        self.ended = False
        self.surplus = False
        self._rest = b""
        self._left = 0  # bytes of the chunk under way, its closing CRLF included
        self._in_trailer = False
        self._trailer_left = LONGEST_TRAILER

    def feed(self, received: bytes) -> bytes:
        if not (self._left or self._rest or self._in_trailer) and (data := _one_chunk(received)) is not None:
            return data
        buffer = self._rest + received if self._rest else received
        body: list[bytes] = []
        position = 0
        while True:
            if self._left > 2:
                data = buffer[position : position + self._left - 2]
                body.append(data)
                position += len(data)
                self._left -= len(data)
                if self._left > 2:
                    break
            if self._left:
                closing = buffer[position : position + self._left]
                if not b"\r\n"[-self._left :].startswith(closing):
                    raise BadFraming("a chunk is longer than announced")
                position += len(closing)
                self._left -= len(closing)
                if self._left:
                    break
            end = buffer.find(b"\r\n", position)
            if end < 0:
                if len(buffer) - position > (LONGEST_TRAILER if self._in_trailer else LONGEST_SIZE_LINE):
                    raise BadFraming("a line of the chunked body is too long")
                break
            line = buffer[position:end]
            position = end + 2
            if self._in_trailer:
                if not line:
                    self.ended = True
                    self.surplus = position < len(buffer)
                    break
                self._trailer_left -= len(line)
                if self._trailer_left < 0:
                    raise BadFraming("the trailer of the chunked body is too long")
                continue
            size = _size(line)
            if size:
                self._left = size + 2
            else:
                self._in_trailer = True
        self._rest = buffer[position:]
        return b"".join(body) if len(body) != 1 else body[0]

    def end(self) -> bytes:
        raise BadFraming("the connection closed before the body was complete")


def announced(status: int, encodings: Sequence[str], lengths: Sequence[str]) -> Framing:
    """Choose the framing of an answer by its Transfer-Encoding and Content-Length headers, one item for each header.

    Raises: BadFraming for a body whose end is not certain. Source: RFC 9112, 6.3.
    """
    if status in (204, 304):
        return Counted(0)
    if codings := [coding for coding in _items(encodings) if coding != "identity"]:
        if codings != ["chunked"]:
            raise BadFraming("the transfer encoding is not chunked alone")
        return Chunked()
    counts = set(_items(lengths))
    if not counts:
        return UntilClose()
    length = counts.pop()
    if counts or len(length) > LONGEST_LENGTH or not (length.isascii() and length.isdigit()):
        raise BadFraming("the length of the body is unclear")
    return Counted(int(length))


def _items(values: Sequence[str]) -> list[str]:
    """Split the values of a header that may be a list."""
    return [item.strip(" \t").lower() for value in values for item in value.split(",")]


def _one_chunk(received: bytes) -> bytes | None:
    """Return the data of exactly one whole chunk, the usual case. None for anything else."""
    line = received.find(b"\r\n", 0, 6)
    size = len(received) - line - 4
    if size > 0 and b"%x" % size == received[:line].lower() and received.endswith(b"\r\n"):
        return received[line + 2 : -2]
    return None


def _size(line: bytes) -> int:
    digits = line.split(b";", 1)[0].strip()
    if not digits or len(digits) > LONGEST_LENGTH or digits.strip(b"0123456789abcdefABCDEF"):
        raise BadFraming("a chunk has no readable size")
    return int(digits, 16)
