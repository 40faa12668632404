"""The envelopes of one answer, and chunks opened at the one string in which they differ from others of their shape."""

from __future__ import annotations

from typing import Any

import msgspec

from app.streams.chunk import LONGEST_ENVELOPE_BYTES, MOST_ENVELOPES, Envelope
from app.upstream.json_line import ABSENT, Members, members_of, one_line, written

__all__ = ["MOST_SEEN", "Envelopes", "Opened", "opened"]

MOST_SEEN = 64
"""How many shapes are remembered that came once."""

_HOLE = msgspec.Raw(b'"\0"')  # JSON has no other NUL: not even a string may have one unescaped.


class Opened(msgspec.Struct, frozen=True):
    """A chunk around its one string: what the envelope has before and behind it, and the string as it was written."""

    prefix: str
    suffix: str
    string: bytes


class Envelopes:
    """The shapes that came in one answer. A shape is an envelope from its second time on."""

    def __init__(self) -> None:
        self._envelopes: dict[tuple[str, str], Envelope] = {}
        self._seen: dict[int, None] = {}  # Hashes are enough: if two are equal, a shape is an envelope too early.

    def of(self, chunk: Opened, *, is_text: bool) -> Envelope | None:
        """Return the envelope of this shape. None when the shape is new, or has no room among the envelopes."""
        shape = chunk.prefix, chunk.suffix
        envelope = self._envelopes.get(shape)
        if envelope is None and len(self._envelopes) < MOST_ENVELOPES:
            if (name := hash(shape)) in self._seen:
                del self._seen[name]
                self._envelopes[shape] = envelope = Envelope(*shape, is_text)
            else:
                if len(self._seen) == MOST_SEEN:
                    del self._seen[next(iter(self._seen))]
                self._seen[name] = None
        return envelope


class _Entries(msgspec.Struct, array_like=True):
    """A list of which only the first entry is wanted, and whether there are more."""

    first: msgspec.Raw = ABSENT
    second: msgspec.Raw = ABSENT


_entries = msgspec.json.Decoder(_Entries).decode


def opened(chunk: Members, field: str) -> Opened | None:
    """Open a chunk at the one string of its only choice. None when no envelope may be so large, or have such a list."""
    choices = _entries(chunk["choices"])
    if choices.second is not ABSENT:
        return None
    choice = members_of(choices.first)
    delta = members_of(choice["delta"])
    around: dict[str, Any]
    if field == "tool_calls":
        calls = _entries(delta[field])
        if calls.second is not ABSENT:
            return None
        call = members_of(calls.first)
        function = members_of(call["function"])
        string = function["arguments"]
        around = delta | {field: [call | {"function": function | {"arguments": _HOLE}}]}
    else:
        string = delta[field]
        around = delta | {field: _HOLE}
    prefix, _, suffix = written(chunk | {"choices": [choice | {"delta": around}]}).partition(b"\0")
    if len(prefix) + len(suffix) > LONGEST_ENVELOPE_BYTES:
        return None
    found = Opened(one_line(prefix), one_line(suffix), bytes(string))
    return found if len(found.prefix) + len(found.suffix) <= LONGEST_ENVELOPE_BYTES else None
