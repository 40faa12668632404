"""Wraps gunicorn's parser and reader of a body: the chunks of a body are bounded, and received bytes can be counted.

gunicorn has no hook for either, so its objects are wrapped: look again when the pinned gunicorn moves (DESIGN.md, 21).
"""

from __future__ import annotations

import time
from typing import Any

__all__ = ["MEAN_CHUNK_BYTES", "Chunks", "Crumbs", "chunks_of", "unreader_of"]

FREE_CHUNKS = 2048
MEAN_CHUNK_BYTES = 512
CHUNKS_AT_A_TIME = 256

KEY = "chatwait.chunks"


class Crumbs(Exception):
    """A chunked body has far more chunks than its size needs."""


class Chunks:
    """The chunks of one body, as gunicorn's parser finds them. Their number and their announced sizes are bounded.

    Each chunk takes the parser some 6 µs, even a chunk of one byte. A few megabytes of such chunks would hold up every
    stream for seconds, so other threads run between the chunks. A body that announces more bytes than are taken ends at
    once. `begin` lets such a body go on, so that the rest can be discarded.
    """

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self._found = reader.parser
        self._parse_size = reader.parse_chunk_size
        self._at_most = 0
        self._announced = 0
        self._size = 0
        self._number = 0
        self._pieces = 0
        self.is_over = False
        """The body was ended because its chunks announced more bytes than are taken."""
        reader.parse_chunk_size = self._sized

    def begin(self, at_most: int) -> None:
        """Take this many bytes in all. Bytes that were taken before count."""
        self._at_most = at_most
        self.is_over = False
        self._reader.parser = self

    def _sized(self, *arguments: Any, **named: Any) -> Any:
        found = self._parse_size(*arguments, **named)
        self._announced += found[0]
        self._number += 1
        return found

    def __next__(self) -> bytes:
        """Raises: Crumbs, and whatever gunicorn's parser raises."""
        chunk: bytes = next(self._found)
        if self._announced > self._at_most:
            self.is_over = True
            raise StopIteration
        self._size += len(chunk)
        self._pieces += 1
        if self._number > FREE_CHUNKS + self._size // MEAN_CHUNK_BYTES:
            raise Crumbs
        if self._pieces % CHUNKS_AT_A_TIME == 0:
            time.sleep(0)
        return chunk


def chunks_of(environ: dict[str, Any]) -> Chunks | None:
    """Bound the chunks of a request's body. None where the body's length is known, or the server is not gunicorn."""
    reader = getattr(environ["wsgi.input"], "reader", None)
    if getattr(reader, "parser", None) is None or not hasattr(reader, "parse_chunk_size"):
        return environ.get(KEY)
    if environ.get(KEY) is None:
        environ[KEY] = Chunks(reader)
    found: Chunks = environ[KEY]
    return found


def unreader_of(environ: dict[str, Any]) -> Any:
    """Give gunicorn's object that receives a request's body. None where the server is not gunicorn."""
    reader = getattr(environ["wsgi.input"], "reader", None)
    found = getattr(reader, "unreader", None) or getattr(getattr(reader, "req", None), "unreader", None)
    return found if hasattr(found, "chunk") and hasattr(found, "buf") else None
