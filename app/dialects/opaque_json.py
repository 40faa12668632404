"""JSON of a request that is sent on byte for byte: checked within bounds, and cut into its members.

No value becomes an object. A body may have 32 MiB, so it is looked at in blocks, and other threads run in between. Only
msgspec reads a body at once. That takes 5 to 20 ms for 32 MiB of one string, and less for all other bodies (measured).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import msgspec

from app import errors
from app.dialects.strict_json import DEEPEST
from app.platform.threads import let_others_run

__all__ = ["Opaque", "blocks", "last_value", "let_others_run_after", "read_object"]

BLOCK_BYTES = 65_536
"""The size of a block. A block takes at most 3 ms, and mostly 0.2 ms (measured)."""

MOST_NAMES = 1000
LONGEST_NAME = 1000
"""How many names the outermost object has at most, and how many characters each of them."""

_NOT_MARKS = bytes(set(range(256)) - set(b"[]{}:,"))
_COLON = ord(":")
_SPACE = rb"[ \t\n\r]{0,10000}+"
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_GAP = re.compile(_SPACE + rb"(?![ \t\n\r])")
_NAME = re.compile(_SPACE + _STRING + _SPACE + rb":" + _SPACE + rb"(?![ \t\n\r])", re.DOTALL)
_TOKEN = re.compile(_STRING + rb"|[\[\]{}:,]", re.DOTALL)
_PLACE = re.compile(r"\(byte (\d+)\)$")

_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_anything = msgspec.json.Decoder(msgspec.Raw)


@dataclass(frozen=True, slots=True)
class Opaque:
    """An object of JSON in a body: where each of its values stands. Units: bytes from the beginning of the body.

    `readable` has the body's length and its values, for msgspec. msgspec does not take half a surrogate pair, which
    JSON allows. Where a body has one, other characters stand there in the place of all escaped surrogates.
    """

    body: bytes
    readable: bytes
    spans: Mapping[str, tuple[int, int]]
    end: int
    """Where the last value ends. Without any value: behind the `{`."""

    def value(self, name: str) -> bytes | None:
        """Return the JSON of a value. None when the object has no such name."""
        span = self.spans.get(name)
        return None if span is None else self.body[span[0] : span[1]]


def read_object(body: bytes, *, most: int, hint: str) -> Opaque:
    """Check that a body is one JSON object in UTF-8, and find its members.

    The body has at most `most` strings, brackets, commas and colons, and at most MOST_NAMES names. Inside its values a
    name may stand twice in an object, and half a surrogate pair may stand alone. The reader of the values judges that.
    Raises: InvalidJson, InvalidRequest, whose detail ends in `hint` when the body has too many values.
    """
    scan = _Scan(most, hint)
    scan.run(body)
    readable, values = _decode(body)
    let_others_run_after(body)
    if any(len(name) > LONGEST_NAME for name in values):
        raise errors.InvalidRequest(
            f"A name in the body has more than {LONGEST_NAME} characters.", fields={"_schema": ["Too long a name."]}
        )
    if scan.names != len(values):
        raise errors.InvalidJson("An object has the same name twice.")
    spans = {}
    at = end = _end_of(_GAP, body, 0) + 1  # behind the {
    for name, value in values.items():
        start = _end_of(_NAME, body, at)
        end = start + len(memoryview(value))
        spans[name] = start, end
        at = _end_of(_GAP, body, end) + 1  # behind the comma
    return Opaque(body, readable, spans, end)


def blocks(body: bytes) -> Iterator[memoryview]:
    """Cut a body into blocks. Other threads run between two of them."""
    view = memoryview(body)
    for start in range(0, len(body), BLOCK_BYTES):
        if start:
            let_others_run()
        yield view[start : start + BLOCK_BYTES]


def let_others_run_after(text: bytes | memoryview) -> None:
    """Let other threads run after work on a text, unless that was short."""
    if len(text) > BLOCK_BYTES:
        let_others_run()


def last_value(text: bytes, name: str) -> tuple[int, int]:
    """Find the value of a name in an object of JSON, which is valid and short. Of several values the last one counts.

    Units: bytes from the beginning of `text`. Raises: KeyError.
    """
    found = None
    depth = 0
    start = -1
    before = b""
    for token in _TOKEN.finditer(text):
        mark = token[0]
        if depth == 1 and mark == b":":
            start = _end_of(_GAP, text, token.end()) if msgspec.json.decode(before, type=str) == name else -1
        elif depth == 1 and mark in (b",", b"}") and start >= 0:
            found = start, start + len(text[start : token.start()].rstrip(b" \t\n\r"))
            start = -1
        depth += (mark in (b"[", b"{")) - (mark in (b"]", b"}"))
        before = mark
    if found is None:
        raise KeyError(name)
    return found


class _Scan:
    """Looks at all that stands outside of strings, block by block, and bounds it before anything is built of it.

    `names` counts the names of the outermost object. The count is right if the body is valid JSON.
    """

    def __init__(self, most: int, hint: str) -> None:
        self.names = 0
        self._values_left = most
        self._hint = hint
        self._depth = 0
        self._is_blank = True
        self._is_inside = False
        """The next byte belongs to a string."""

    def run(self, body: bytes) -> None:
        """Look at the whole body. Raises: InvalidJson, InvalidRequest."""
        utf8 = None if body.isascii() else codecs.getincrementaldecoder("utf-8")()
        try:
            for block in _whole_escapes(body):
                if utf8 is not None:
                    utf8.decode(block)
                self._is_blank = self._is_blank and (not block or block.isspace())
                self._look(block)
        except UnicodeDecodeError:
            raise errors.InvalidJson("The body is not UTF-8.") from None
        if self._is_blank:
            raise errors.InvalidJson("The body is empty.")
        if self.names > MOST_NAMES:
            raise self._too_many()

    def _look(self, block: bytes) -> None:
        if self._is_inside and b'"' not in block:
            return
        if b"\\" in block:
            block = block.replace(b"\\\\", b"").replace(b'\\"', b"")
        quotes = block.count(b'"')
        outside = b"".join(block.split(b'"')[self._is_inside :: 2])
        self._is_inside ^= quotes % 2 == 1
        marks = outside.translate(None, _NOT_MARKS)
        self._follow(marks.replace(b",", b""))
        self._values_left -= quotes // 2 + len(marks)
        if self._values_left < 0:
            raise self._too_many()

    def _follow(self, marks: bytes) -> None:
        """Go down and up with the brackets. Raises: InvalidJson."""
        depth, names = self._depth, self.names
        for mark in marks:
            if mark == _COLON:
                if depth == 1:
                    names += 1
            elif mark in b"[{":
                depth += 1
                if depth > DEEPEST:
                    raise _too_deep()
            else:
                depth -= 1
        self._depth, self.names = depth, names

    def _too_many(self) -> errors.InvalidRequest:
        return errors.InvalidRequest(
            f"The body has far more values than a request can have. {self._hint}",
            fields={"_schema": ["Too many values."]},
        )


def _whole_escapes(body: bytes) -> Iterator[bytes]:
    r"""Cut a body into blocks. A block does not end after a backslash that begins an escape, nor after `\u`."""
    left = b""
    for view in blocks(body):
        block = left + view
        # A run of backslashes begins in its block, because the blocks are cut so.
        end = len(block) - block.endswith(b"u")
        slashes = end - len(block[:end].rstrip(b"\\")) if block.endswith(b"\\", 0, end) else 0
        end = end - 1 if slashes % 2 else len(block)
        left = block[end:]
        yield block[:end]
    yield left


def _decode(body: bytes) -> tuple[bytes, dict[str, msgspec.Raw]]:
    """Check the JSON of a body. Returns the body as it can be read, and its values.

    Raises: InvalidJson, InvalidRequest.
    """
    try:
        return body, _object.decode(body)
    except (msgspec.DecodeError, RecursionError):  # which may be because of half a surrogate pair
        pass
    readable = b"".join(block.replace(rb"\ud", rb"\u0").replace(rb"\uD", rb"\u0") for block in _whole_escapes(body))
    try:
        _anything.decode(readable)
        let_others_run_after(body)
        return readable, _object.decode(readable)
    except RecursionError:
        raise _too_deep() from None
    except msgspec.ValidationError:
        raise errors.InvalidRequest(
            "The body must be one JSON object.", fields={"_schema": ["Not an object."]}
        ) from None
    except msgspec.DecodeError as error:
        raise _invalid(readable, error) from None


def _invalid(body: bytes, error: msgspec.DecodeError) -> errors.InvalidJson:
    place = _PLACE.search(str(error))
    if place is None:
        return errors.InvalidJson("The JSON is not complete.")
    at = int(place[1])
    line_start = body.rfind(b"\n", 0, at) + 1
    line, column = body.count(b"\n", 0, at) + 1, len(body[line_start:at].decode(errors="replace")) + 1
    return errors.InvalidJson(f"The JSON is not valid at line {line}, column {column}.")


def _too_deep() -> errors.InvalidJson:
    return errors.InvalidJson("The body is nested too deeply.")


def _end_of(pattern: re.Pattern[bytes], text: bytes, at: int) -> int:
    found = pattern.match(text, at)
    if found is None:  # nothing else, because the JSON is valid
        raise errors.InvalidJson("The body has too much white space between its values.")
    return found.end()
