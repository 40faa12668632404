"""The upstream's bytes → events → parts, each step a small class. Pure: no network, no clock.

Bytes are split before they are decoded, because decoded text has line breaks that an event stream does not have
(U+2028, U+0085).
Source: the WHATWG's "Server-sent events", 9.2.6, for events; OpenAI's chat completion chunks for parts.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from app.upstream.interface import Part

__all__ = ["BrokenStream", "ChunkDecoder", "ErrorReported", "EventSplitter", "built"]

LONGEST_EVENT_BYTES = 1_048_576
LONGEST_VALUE_BYTES = 16_384
"""A usage or an error up to this size is decoded. Of a longer one only the beginning is kept, as text."""
LARGE_EVENT_BYTES = 65_536
NODES = 50_000
"""How many braces a large event may have, its text included. Each brace may begin an object that has to be built."""
ODD_NODES = 20_000
"""How many lists and objects the slow decoder takes in one event. This decoder builds each of them."""
REPLACEMENT = "\ufffd"

_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_HALF = re.compile("[\ud800-\udfff]")
_BOM = b"\xef\xbb\xbf"


class BrokenStream(ValueError):
    """The bytes are no stream of chat completion chunks. The error's text says what is wrong, and quotes none of the
    bytes."""


class ErrorReported(Exception):
    """The upstream reported an error inside its stream."""

    def __init__(self, error: object) -> None:
        super().__init__("the upstream reported an error in its stream")
        self.error = error


class EventSplitter:
    """Bytes in any cuts → the `data` of each whole event. No other field matters here."""

    def __init__(self) -> None:
        self._rest = bytearray()  # An event that is not whole. The buffer grows in place: small pieces cost no copies.
        self._first = True
        self._after_cr = False

    def feed(self, received: bytes) -> list[bytes]:
        """Return the events that `received` completes.

        Raises: BrokenStream when an event grows over LONGEST_EVENT_BYTES. The events before it are returned first.
        """
        if not (self._rest or self._first or self._after_cr) and (data := _one_event(received)) is not None:
            return [data]
        if self._first:
            received = bytes(self._rest) + received
            self._rest.clear()
            if len(received) < len(_BOM) and _BOM.startswith(received):
                self._rest += received
                return []
            self._first = False
            received = received.removeprefix(_BOM)
        if self._after_cr and received:
            self._after_cr = False
            received = received.removeprefix(b"\n")  # The second half of a CRLF that was cut in two.
        if b"\r" in received:
            self._after_cr = received.endswith(b"\r")
            received = received.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if not self._rest:
            received = received.lstrip(b"\n")  # Blank lines between events may never end.
        looked = len(self._rest)
        self._rest += received
        if self._rest.find(b"\n\n", max(0, looked - 1)) < 0:  # What was searched before is not searched again.
            if len(self._rest) > LONGEST_EVENT_BYTES:
                raise BrokenStream("an event is larger than 1 MiB")
            return []
        *blocks, rest = bytes(self._rest).split(b"\n\n")
        self._rest = bytearray(rest)
        events: list[bytes] = []
        for block in blocks:
            if block.startswith(b"data: ") and b"\n" not in block:
                events.append(block[6:])
            elif b"data" in block and (data := _data(block)) is not None:
                events.append(data)
            elif block.startswith(b"error: {"):  # llama.cpp, once
                events.append(b'{"error":%b}' % block[7:].partition(b"\n")[0])
        return events


def _joined(pair: re.Match[str]) -> str:
    return pair[0].encode("utf-16-le", "surrogatepass").decode("utf-16-le")


def _one_event(received: bytes) -> bytes | None:
    """Return the data of exactly one whole event of one line, as most tokens come; None for anything else."""
    if received.startswith(b"data: ") and received.find(b"\n") == len(received) - 2 and received.endswith(b"\n"):
        return None if b"\r" in received else received[6:-2]
    return None


def _data(block: bytes) -> bytes | None:
    values = [line[5:] for line in block.split(b"\n") if line.startswith(b"data:") or line == b"data"]
    return b"\n".join(value.removeprefix(b" ") for value in values) if values else None


class _Delta(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None
    index: int | None = 0


_ABSENT = msgspec.Raw()


class _Chunk(msgspec.Struct):
    """Values of any shape are checked and not built. To build a mebibyte of lists holds up every stream for 0.3 s."""

    choices: list[_Choice] | None = None
    usage: msgspec.Raw = _ABSENT
    error: msgspec.Raw = _ABSENT
    object: str | None = None
    message: msgspec.Raw = _ABSENT


class _OddChunk(msgspec.Struct):
    """A chunk whose values are built already."""

    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None
    object: str | None = None
    message: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


def built(value: msgspec.Raw) -> Any:
    """Decode a value, or keep the beginning of a long value as text. None when the value is absent.

    Raises: msgspec.DecodeError, UnicodeDecodeError, RecursionError.
    """
    if len(value) == 0:
        return None
    if len(value) > LONGEST_VALUE_BYTES:
        return bytes(memoryview(value)[:LONGEST_VALUE_BYTES]).decode("utf-8", "replace")
    return msgspec.json.decode(value)


class ChunkDecoder:
    """The data of one event → the part it adds. Joins characters whose halves came in two events."""

    def __init__(self) -> None:
        self._half = ""

    def decode(self, data: bytes) -> Part:
        """Return the part. Raises: BrokenStream for data that is no chunk, ErrorReported for an error inside."""
        if len(data) > LARGE_EVENT_BYTES and data.count(b"{") > NODES:
            raise BrokenStream("an event is not a chat completion chunk")
        try:
            chunk = _decode(data)
            is_error = chunk.object == "error" and chunk.choices is None
            usage, error = built(chunk.usage), built(chunk.error) or (is_error and built(chunk.message))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # ValidationError is a DecodeError.
            return self._decode_odd(data)
        if error or is_error:
            raise ErrorReported(error or None)
        return self._part(chunk.choices, usage, joined=not self._half)

    def pending(self) -> Part | None:
        """Return the replacement for half a character that nothing completed, once. None when there is none."""
        half, self._half = self._half, ""
        return Part(REPLACEMENT) if half else None

    def _decode_odd(self, data: bytes) -> Part:
        """Decode what the strict decoder refuses: half surrogate pairs, bytes that are not UTF-8, and `[DONE]`.

        Other readers of JSON accept the first two, and `[DONE]` is no JSON.
        """
        if data.strip() == b"[DONE]":
            return Part(done=True)
        if data.count(b"[") + data.count(b"{") > ODD_NODES:
            raise BrokenStream("an event is not a chat completion chunk")
        try:
            chunk = msgspec.convert(json.loads(data.decode("utf-8", "replace")), _OddChunk)
        except (ValueError, RecursionError):
            raise BrokenStream("an event is not a chat completion chunk") from None
        if chunk.error or (chunk.object == "error" and chunk.choices is None):
            raise ErrorReported(chunk.error or chunk.message)
        return self._part(chunk.choices, chunk.usage, joined=False)

    def _part(self, choices: list[_Choice] | None, usage: Any, *, joined: bool) -> Part:
        text = ""
        finish_reason = None
        for choice in choices or ():
            if choice.index:
                continue  # Only one answer was asked for.
            delta = choice.delta
            if delta is not None:
                text += delta.content or delta.refusal or ""
            finish_reason = choice.finish_reason or finish_reason
        if text and not joined:
            text = self._join(text)
        return Part(text, finish_reason, usage)

    def _join(self, text: str) -> str:
        """Join whole pairs, replace other halves by U+FFFD, and hold back a first half at the end."""
        text, self._half = self._half + text, ""
        if "\ud800" <= text[-1] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        # The codecs take half a microsecond for each half. A mebibyte of halves would take them 0.1 s.
        return _HALF.sub(REPLACEMENT, _PAIR.sub(_joined, text))
