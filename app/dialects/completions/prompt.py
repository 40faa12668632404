"""How many tokens the text of a request's messages has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

import msgspec

from app.platform.threads import let_others_run
from app.tokens import counting as tokens

__all__ = ["count_prompt"]

COUNTED_BYTES = 32_768
"""How much text is counted where no limit binds, which takes 1 ms. The rest is estimated from that."""

PIECE_BYTES = 16_384
"""A longer text is read in pieces."""

MESSAGES_PER_TURN = 500
"""How many messages are read before other threads run."""

LAST_BYTES = 512
"""The end of a piece, where a space is looked for."""

LONGEST_TYPE_BYTES = 100

_NOTHING = msgspec.Raw(b"")
_UNITS = re.compile(rb"[^\\]*+(?:\\(?:u[0-9a-fA-F]{4}|[^u])[^\\]*+)*+")


class _Entry(msgspec.Struct, gc=False):
    type: msgspec.Raw = _NOTHING
    text: msgspec.Raw = _NOTHING


_entries = msgspec.json.Decoder(list[_Entry])
_text = msgspec.json.Decoder(str)


def count_prompt(contents: Iterable[msgspec.Raw], system_prompt: str, model: str, *, at_most: int | None) -> int:
    """Count the tokens of a prompt: the text of its messages, and the frame of each.

    Images, audio, files, tools and calls are not counted. `contents` are the messages' contents as JSON. With a limit
    the count is exact up to it, and some larger number beyond. Without a limit a long prompt is estimated.
    Units: tokens.
    """
    total = tokens.TOKENS_PER_REPLY
    if system_prompt:
        total += tokens.TOKENS_PER_MESSAGE + 1 + tokens.count(system_prompt, model, at_most=at_most)
    counted = counted_bytes = rest_bytes = 0
    for number, content in enumerate(contents, 1):
        total += tokens.TOKENS_PER_MESSAGE + 1
        if number % MESSAGES_PER_TURN == 0:
            let_others_run()
        for text in _texts(memoryview(content)):
            if at_most is None:
                room = COUNTED_BYTES - counted_bytes
                text, rest = text[:room], text[room:]
                rest_bytes += len(rest)
                if not text:
                    continue
            for piece in _pieces(text):
                counted += tokens.count(_read(piece), model)
                counted_bytes += len(piece)
                if at_most is not None and total + counted > at_most:
                    return total + counted
    return total + counted + (rest_bytes * counted // counted_bytes if rest_bytes else 0)


def _texts(content: memoryview) -> Iterator[memoryview]:
    """Find the texts in a content: the JSON of strings without their quotes.

    A content of an unknown form counts as it stands, so that no text goes uncounted.
    """
    first = bytes(content[:1])
    if first == b'"':
        yield content[1:-1]
    elif first == b"[":
        try:
            entries = _entries.decode(content)
        except msgspec.ValidationError:
            yield content
            return
        for entry in entries:
            text = memoryview(entry.text)
            if _is_text(memoryview(entry.type)):
                yield text[1:-1] if bytes(text[:1]) == b'"' else text
    elif bytes(content[:5]) != b"null":
        yield content


def _is_text(kind: memoryview) -> bool:
    """Tell whether a part of this type is a text. A part without a type counts as one."""
    if bytes(kind[:1]) != b'"' or len(kind) > LONGEST_TYPE_BYTES:
        return len(kind) == 0
    return _read(kind[1:-1]) == "text"


def _pieces(text: memoryview) -> Iterator[memoryview]:
    """Cut a text where the tokenizers cut too, before a space, or else between two escapes."""
    start = 0
    while len(text) - start > PIECE_BYTES:
        window = bytes(text[start : start + PIECE_BYTES])
        size = window.rfind(b" ", PIECE_BYTES - LAST_BYTES)
        if size < 0:
            units = _UNITS.match(window)
            size = units.end() if units else 0
        yield text[start : start + (size or PIECE_BYTES)]
        start += size or PIECE_BYTES
        let_others_run()
    yield text[start:]


def _read(text: memoryview) -> str:
    """Read the JSON of a string without its quotes. What cannot be read, such as half a character, is replaced."""
    try:
        return _text.decode(b'"%b"' % bytes(text))
    except (msgspec.DecodeError, UnicodeDecodeError):
        whole = bytes(text).decode(errors="replace")
    try:
        read = json.loads(f'"{whole}"', strict=False)
    except ValueError:
        return whole
    return str(read).encode(errors="replace").decode()
