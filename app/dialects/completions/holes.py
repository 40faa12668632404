"""The one string in which the chunks of an envelope differ, found in what was joined before.

Most chunks of an answer have one of few envelopes. When a chunk of an envelope has been joined member by member, the
strings of the others can be added to one text.
"""

from __future__ import annotations

from collections.abc import Callable, Container

from msgspec import Raw

from app.dialects.completions.nodes import (
    NOT_DOUBLED,
    NULL,
    UNJOINED,
    Entries,
    Object,
    Text,
    fields_of,
    index_of,
    objects_of,
    text_of,
)
from app.streams.chunk import Envelope

__all__ = ["Hole", "hole_of"]

Hole = tuple[Text, dict[str, bytes]]
"""The text to which the strings of an envelope are added, and what the envelope has beside its choice."""

_HOLE = rb'"\u0000"'
"""Stands for an envelope's string while the envelope is looked at. No server sends it by itself."""

_NOTHING = Raw(b"null")


def hole_of(envelope: Envelope, message_of: Callable[[int], Object], names: Container[str]) -> Hole | None:
    """Find the hole of an envelope of which one chunk has been joined. `message_of` gives the message of a choice, and
    `names` are those that count beside the choices.

    None for an envelope in which something else counts each time.
    """
    fields = fields_of(f"{envelope.prefix[:-1]}{_HOLE.decode()}{envelope.suffix[1:]}")
    choices = objects_of(fields.pop("choices", _NOTHING))
    if len(choices) != 1:
        return None
    index = index_of(choices[0].pop("index", None)) or 0
    delta = choices[0].pop("delta", _NOTHING)
    if delta is _NOTHING or any(bytes(value) != NULL for value in choices[0].values()):
        return None
    text = _find(message_of(index), fields_of(delta))
    told = {name: bytes(value) for name, value in fields.items() if name in names}
    return None if text is None else (text, {name: value for name, value in told.items() if value != NULL})


def _find(held: Object, fields: dict[str, Raw]) -> Text | None:
    """Find the one text in which the hole stands. None where the other members do not leave `held` as it is."""
    found: list[Text | None] = []
    for name, raw in fields.items():
        value, node = bytes(raw), held.members.get(name)
        if value == _HOLE:
            found.append(node if isinstance(node, Text) and name not in NOT_DOUBLED else None)
        elif name in UNJOINED:
            found += [] if node == value else [None]
        elif value[:1] == b"{" and isinstance(node, Object):
            found.append(_find(node, fields_of(value)))
        elif value[:1] == b"[" and isinstance(node, Entries):
            for entry in objects_of(value):
                index = index_of(entry.get("index"))
                found.append(None if index is None else _find(node.entries[index], entry))
        elif value not in (NULL, b'""'):
            is_kept = name in NOT_DOUBLED and isinstance(node, Text) and node.parts == [text_of(value)]
            found += [] if is_kept else [None]
    return found[0] if len(found) == 1 else None
