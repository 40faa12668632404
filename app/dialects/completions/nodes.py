"""JSON whose parts come one after the other, as it is kept until all of it is written.

What is only passed on stays as it was written, and is never made into objects: that takes little memory, and keeps
every number exact.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from json.encoder import encode_basestring_ascii

import msgspec
from msgspec import Raw

__all__ = [
    "NOT_DOUBLED",
    "NULL",
    "UNJOINED",
    "Entries",
    "Items",
    "Node",
    "Object",
    "Text",
    "fields_of",
    "index_of",
    "items_of",
    "objects_of",
    "text_of",
    "write_object",
    "written",
]

NULL = b"null"

UNJOINED = ("index", "type")
"""Members of which the last one stays."""

NOT_DOUBLED = ("role", "id", "name")
"""Strings that are joined from parts, unless the same one comes again."""

_INDEX = re.compile(rb"[0-9]{1,10}")

fields_of: Callable[[bytes | str | Raw], dict[str, Raw]] = msgspec.json.Decoder(dict[str, Raw]).decode
"""Read the members of a JSON object, without reading their values. Raises: msgspec.DecodeError."""

items_of: Callable[[bytes | Raw], list[Raw]] = msgspec.json.Decoder(list[Raw]).decode
"""Read the entries of a JSON array, without reading their values. Raises: msgspec.DecodeError."""

text_of: Callable[[bytes | Raw], str] = msgspec.json.Decoder(str).decode
"""Read a JSON string. Raises: msgspec.DecodeError."""


class Text:
    """A string that is joined from parts."""

    __slots__ = ("parts",)

    def __init__(self, text: str) -> None:
        self.parts = [text] if text else []

    def add(self, text: str, *, is_doubled: bool = True) -> None:
        if text and (is_doubled or self.parts != [text]):
            self.parts.append(text)

    def write(self) -> bytes:
        return encode_basestring_ascii("".join(self.parts)).encode("ascii")


class Items:
    """An array whose entries are never joined. `parts` are its entries as JSON, with the commas between them."""

    __slots__ = ("parts",)

    def __init__(self, array: bytes) -> None:
        self.parts: list[bytes] = []
        self.add(array)

    def add(self, array: bytes) -> None:
        if inner := array[1:-1].strip():
            self.parts.append(inner)

    def write(self) -> bytes:
        return b"[%b]" % b",".join(self.parts)


class Object:
    """An object whose members are joined one by one."""

    __slots__ = ("members",)

    def __init__(self) -> None:
        self.members: dict[str, Node] = {}

    def write(self, *, hidden: Sequence[str] = ()) -> bytes:
        return write_object({name: written(node) for name, node in self.members.items() if name not in hidden})


class Entries:
    """An array whose entries are objects that come in parts. `is_indexed`: the entries show their indexes."""

    __slots__ = ("entries", "is_indexed", "last")

    def __init__(self, *, is_indexed: bool) -> None:
        self.entries: dict[int, Object] = {}
        self.is_indexed = is_indexed
        self.last = -1

    def write(self) -> bytes:
        hidden = () if self.is_indexed else ("index",)
        return b"[%b]" % b",".join(self.entries[index].write(hidden=hidden) for index in sorted(self.entries))


Node = bytes | Text | Items | Object | Entries
"""A value. What is not joined is bytes of JSON."""


def written(node: Node) -> bytes:
    return node if isinstance(node, bytes) else node.write()


def write_object(members: Mapping[str, bytes]) -> bytes:
    """Write a JSON object of members that are written already."""
    return b"{%b}" % b",".join(
        b"%b:%b" % (encode_basestring_ascii(name).encode("ascii"), value) for name, value in members.items()
    )


def index_of(raw: Raw | None) -> int | None:
    """Read an index. None for what is none."""
    value = b"" if raw is None else bytes(raw)
    return int(value) if _INDEX.fullmatch(value) else None


def objects_of(array: bytes | Raw) -> list[dict[str, Raw]]:
    """Read the objects in an array. Anything else in it is left out."""
    if bytes(array)[:1] != b"[":
        return []
    return [fields_of(item) for item in items_of(array) if bytes(item)[:1] == b"{"]
