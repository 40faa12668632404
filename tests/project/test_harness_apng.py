"""Moving pictures are joined as the specification says, and what does not fit is refused."""

from __future__ import annotations

import struct
import zlib

import pytest

from tests.browser.apng import SIGNATURE, Frame, chunks, join, size
from tests.harness.server import ROOT


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *, colour: int = 0, kind: int = 2) -> bytes:
    """Make a picture of one colour, its data in two parts."""
    rows = zlib.compress((b"\0" + bytes([colour]) * 3 * width) * height)
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", rows[:5]), chunk(b"IDAT", rows[5:]), chunk(b"IEND", b"")]
    return SIGNATURE + b"".join(parts)


def test_frames_that_are_joined_keep_their_pixels_places_and_times() -> None:
    first, second = png(4, 3), png(2, 1, colour=9)
    joined = list(chunks(join([Frame(first, 0, 0, 100), Frame(second, 1, 2, 250)])))

    assert [kind for kind, _ in joined] == [
        *(b"IHDR", b"acTL", b"fcTL", b"IDAT", b"IDAT"),
        *(b"fcTL", b"fdAT", b"fdAT", b"IEND"),
    ]
    data = [body for _, body in joined]
    assert data[1] == struct.pack(">II", 2, 0), "two frames, for ever"
    assert data[2] == struct.pack(">5IHHBB", 0, 4, 3, 0, 0, 100, 1000, 0, 0)
    assert data[5] == struct.pack(">5IHHBB", 1, 2, 1, 1, 2, 250, 1000, 0, 0)
    assert [struct.unpack(">I", body[:4])[0] for body in data[6:8]] == [2, 3], "numbered together with the frames"
    assert zlib.decompress(data[3] + data[4]) == (b"\0" + b"\0" * 12) * 3
    assert zlib.decompress(data[6][4:] + data[7][4:]) == b"\0" + b"\x09" * 6


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (Frame(png(2, 1), 3, 0, 1), "outside"),
        (Frame(png(2, 1), 0, 3, 1), "outside"),
        (Frame(png(2, 1), -1, 0, 1), "outside"),
        (Frame(png(2, 1, kind=6), 0, 0, 1), "another kind"),
        (Frame(b"GIF89a", 0, 0, 1), "no PNG"),
        (Frame(png(2, 1)[:-6] + b"xxxxxx", 0, 0, 1), "damaged"),
    ],
    ids=["right", "below", "left", "kind", "no picture", "damaged"],
)
def test_frame_that_does_not_fit_is_refused(second: Frame, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        join([Frame(png(4, 3), 0, 0, 1), second])


def test_moving_picture_of_the_readme_lasts_as_long_as_one_looks_and_is_small() -> None:
    file = ROOT / "docs" / "pictures" / "plug.png"
    picture = file.read_bytes()
    shown = [struct.unpack_from(">H", data, 20)[0] for kind, data in chunks(picture) if kind == b"fcTL"]

    assert 10 <= sum(shown) / 1000 <= 20
    assert len(shown) >= 30
    assert 700 <= size(picture)[0] <= 800
    assert len(picture) <= 1_500_000
