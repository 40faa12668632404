"""Join PNG pictures into one moving picture (APNG), without decoding them.

https://www.w3.org/TR/png-3/#apng-frame-based-animation
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Frame:
    """One picture: where its left upper corner lies, in pixels, and how long it is shown, in milliseconds."""

    png: bytes
    left: int
    top: int
    milliseconds: int


def chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Give the kind and the data of each chunk of a PNG file. Raises: ValueError, if it is none or is damaged."""
    if not png.startswith(SIGNATURE):
        raise ValueError("this is no PNG file")
    at = len(SIGNATURE)
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        kind, data = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        if png[at + 8 + length : at + 12 + length] != struct.pack(">I", zlib.crc32(kind + data)):
            raise ValueError(f"the chunk {kind!r} is damaged")
        yield kind, data
        at += 12 + length


def size(png: bytes) -> tuple[int, int]:
    """Tell the width and the height of a PNG file, in pixels."""
    width, height = struct.unpack_from(">II", _header(png))
    return width, height


def join(frames: Sequence[Frame]) -> bytes:
    """Write the file, which repeats for ever. Each frame covers what was there before, and leaves the rest as it was.

    Raises: ValueError, if a frame does not lie within the first one, or has pixels of another kind.
    """
    first = _header(frames[0].png)
    width, height = size(frames[0].png)
    parts = [SIGNATURE, _chunk(b"IHDR", first), _chunk(b"acTL", struct.pack(">II", len(frames), 0))]
    sequence = 0
    for frame in frames:
        wide, high = size(frame.png)
        inside = 0 <= frame.left <= width - wide and 0 <= frame.top <= height - high
        if not inside or (frame is frames[0] and (frame.left, frame.top) != (0, 0)):
            raise ValueError("a frame lies outside of the first one")
        if _header(frame.png)[8:] != first[8:]:
            raise ValueError("a frame has pixels of another kind than the first one")
        place = struct.pack(">5I", sequence, wide, high, frame.left, frame.top)
        parts.append(_chunk(b"fcTL", place + struct.pack(">HHBB", frame.milliseconds, 1000, 0, 0)))
        sequence += 1
        for data in (data for kind, data in chunks(frame.png) if kind == b"IDAT"):
            if frame is frames[0]:
                parts.append(_chunk(b"IDAT", data))
            else:
                parts.append(_chunk(b"fdAT", struct.pack(">I", sequence) + data))
                sequence += 1
    return b"".join([*parts, _chunk(b"IEND", b"")])


def _header(png: bytes) -> bytes:
    return next(data for kind, data in chunks(png) if kind == b"IHDR")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
