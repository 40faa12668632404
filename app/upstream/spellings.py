"""How the upstream spells the envelopes of one answer, so that most chunks need not be decoded.

A chunk is recognized by its bytes: they begin and end as those of an earlier chunk, and what is between is one JSON
string. Then it is the same JSON around that string: a parser that reads it comes to the string, and leaves it, as it
did in the earlier chunk.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import msgspec

from app.streams.chunk import LONGEST_ENVELOPE_BYTES, Envelope
from app.upstream.contents import decode_chunk, strings_of
from app.upstream.json_line import members_of

__all__ = ["LONGEST_SPELLING_BYTES", "MOST_PLACES", "NO_SPELLING", "Spelling", "Spellings", "decode_string"]

LONGEST_SPELLING_BYTES = 2 * LONGEST_ENVELOPE_BYTES
"""How much may stand around a string, where the upstream writes more spaces than we do."""
MOST_PLACES = 8
"""How many places of a chunk are tried in search of its string, or of its time."""

decode_string = msgspec.json.Decoder(str).decode
"""One JSON string → its text. Raises: msgspec.DecodeError, UnicodeDecodeError."""


class _Time(NamedTuple):
    """What stands around the digits of `created`, in the beginning of a spelling or in its end."""

    in_prefix: bool
    before: bytes
    behind: bytes

    def is_around(self, part: bytes) -> bool:
        """Tell whether another time stands here. The part is as long as the one that was looked at."""
        digits = part[len(self.before) : len(part) - len(self.behind)]
        return (
            part.startswith(self.before)
            and part.endswith(self.behind)
            and digits.isdigit()
            and not digits.startswith(b"0")
        )


Spelling: TypeAlias = tuple[bytes, bytes, int, int, Envelope | None, bool, _Time | None]
"""How the data of an event begins and ends, where the JSON string is in it, what its envelope is, whether the string is
text of the log, and where the time is. A plain tuple, because it is unpacked for every chunk."""

NO_SPELLING: Spelling = (b"\xff", b"\xff", 0, 0, None, False, None)
"""The spelling of nothing: no JSON begins like this, and there is no string."""


class Spellings:
    """One spelling for each envelope: the last one. llama.cpp writes another time every few chunks."""

    def __init__(self) -> None:
        self._spellings: dict[Envelope, Spelling] = {}

    def clear(self) -> None:
        """Forget all, so that nothing is recognized until it is learned again."""
        self._spellings.clear()

    def find(self, data: bytes) -> tuple[Spelling, str] | None:
        """Return the spelling of a chunk, and its string. None when the string is empty, or no spelling fits."""
        for spelling in self._spellings.values():
            prefix, suffix, begin, end, _, _, _ = spelling
            if data.startswith(prefix) and data.endswith(suffix):
                try:
                    value = decode_string(data[begin:end])
                except (msgspec.DecodeError, UnicodeDecodeError):
                    continue
                if value:
                    return spelling, value
        return self.find(data) if self._renew(data) else None

    def learn(self, envelope: Envelope, data: bytes, string: bytes, named: tuple[str, str]) -> Spelling | None:
        """Learn how a chunk is spelled whose one string is written as `string`. `named` is its field and its value.

        None when the string is not found, or there is too much around it.
        """
        if len(data) - len(string) > LONGEST_SPELLING_BYTES:
            return None
        spelling = _spelling_of(envelope, data, string, named)
        if spelling is not None:
            self._spellings[envelope] = spelling
        return spelling

    def _renew(self, data: bytes) -> bool:
        """Put the time of the data into the spelling that differs in nothing else. False when there is none."""
        for envelope, spelling in self._spellings.items():
            prefix, suffix, begin, end, _, is_text, time = spelling
            if time is None:
                continue
            if time.in_prefix:
                prefix = data[: len(prefix)]
                fits = data.endswith(suffix) and time.is_around(prefix)
            else:
                suffix = data[-len(suffix) :]
                fits = data.startswith(prefix) and time.is_around(suffix)
            renewed: Spelling = (prefix, suffix, begin, end, envelope, is_text, time)
            if fits and renewed != spelling:
                self._spellings[envelope] = renewed
                return True
        return False


def _spelling_of(envelope: Envelope, data: bytes, string: bytes, named: tuple[str, str]) -> Spelling | None:
    """Find where the string is in the data. The same bytes may stand elsewhere, so another string is put into each
    place, until the chunk has that one as its own.
    """
    field, value = named
    other = "x" if value != "x" else "y"
    at = data.find(string)
    for _ in range(MOST_PLACES):
        if at < 0:
            break
        prefix, suffix = data[: at + 1], data[at + len(string) - 1 :]
        if _has(prefix + other.encode() + suffix, field, other):
            time = _time_of(data, at + 1, len(data) - len(suffix))
            return prefix, suffix, at, 1 - len(suffix), envelope, envelope.is_text, time
        at = data.find(string, at + 1)
    return None


def _has(data: bytes, field: str, value: str) -> bool:
    try:
        choices = decode_chunk(data).choices
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return choices is not None and len(choices) == 1 and strings_of(choices[0].delta) == [(field, value)]


def _time_of(data: bytes, prefix_end: int, suffix_at: int) -> _Time | None:
    """Find where the time is in the data, by putting another time into each place that may be it."""
    created = bytes(members_of(data).get("created", b""))
    if not created.isdigit() or created.startswith(b"0"):
        return None
    other = (b"2" if created.startswith(b"1") else b"1") * len(created)
    at = data.find(created)
    for _ in range(MOST_PLACES):
        if at < 0:
            break
        end = at + len(created)
        if _is_time(data[:at] + other + data[end:], other):
            if at > suffix_at:
                return _Time(False, data[suffix_at:at], data[end:])
            return _Time(True, data[:at], data[end:prefix_end])
        at = data.find(created, at + 1)
    return None


def _is_time(data: bytes, created: bytes) -> bool:
    try:
        return bytes(members_of(data).get("created", b"")) == created
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
