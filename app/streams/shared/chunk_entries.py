"""How a record of a log of chunks is stored on Valkey: one codec each way."""

from __future__ import annotations

import json
import re

import msgspec

from app.streams.chunk import MOST_ENVELOPES, Chunk, Envelope

__all__ = ["read_chunk", "write_chunk"]

_LINE = re.compile(r"\{[\x20-\x7f]*\}")


def write_chunk(chunk: Chunk, form: int | None, begins: bool) -> bytes:
    """Write a record of a log of chunks: raw behind the text that it adds, or the value behind its envelope's letter.

    `form` is the number of its envelope, None to write the chunk raw. `begins`: the record is the first one with this
    envelope, which is written too.
    """
    if form is None:
        text = json.dumps(chunk.text) if chunk.text else ""
        return (text + chunk.data).encode("ascii")
    value = chunk.value.encode()
    if begins and chunk.envelope is not None:
        envelope = (chunk.envelope.prefix, chunk.envelope.suffix, chunk.envelope.is_text)
        return b"+%b\n%b" % (json.dumps(envelope).encode(), value)
    return b"%c%b" % (_FIRST_LETTER + form, value)


_FIRST_LETTER = ord("a")


class _Shape(msgspec.Struct, array_like=True):
    prefix: str
    suffix: str
    is_text: bool


def read_chunk(stored: bytes, envelopes: list[Envelope]) -> Chunk:
    """Read a record of a log of chunks. `envelopes` are those of the records before, and may grow by one.

    Raises: ValueError, LookupError, TypeError for anything that `write_chunk` would not write.
    """
    mark = stored[:1]
    if mark in (b"{", b'"'):
        written = stored.decode("ascii")
        text, place = json.JSONDecoder().raw_decode(written) if mark == b'"' else ("", 0)
        if not _LINE.fullmatch(written, place):
            raise ValueError
        text.encode()
        return Chunk(text, written[place:])
    if mark == b"+":
        shape, _, value = stored[1:].partition(b"\n")
        if len(envelopes) >= MOST_ENVELOPES:
            raise ValueError
        envelope = Envelope(*msgspec.structs.astuple(msgspec.json.decode(shape, type=_Shape)))
        if not _LINE.fullmatch(f"{envelope.prefix}{envelope.suffix}"):
            raise ValueError
        envelopes.append(envelope)
    else:
        value = stored[1:]
        if not mark or mark < b"a":
            raise ValueError
        envelope = envelopes[mark[0] - _FIRST_LETTER]
    written = value.decode()
    return Chunk(written if envelope.is_text else "", written, envelope)
