"""Chunks of a stream joined to the choices of one completion, in the way openai-python's accumulator joins deltas.

JSON that is only passed on stays the upstream's bytes, and is never made into objects: that takes little memory, keeps
every number exact, and needs no bound of its own.

It differs from openai-python where servers differ from OpenAI:

- A role, an id or a name that comes again is not doubled: some servers repeat them in each chunk.
- Tool calls without an `index` are told apart by their ids. openai-python refuses them.
- Indexes need not come in order, nor without gaps. The entries stand in the order of their indexes.
- The logprobs of a choice's first chunk count once. openai-python doubles them where the choice is not in the stream's
  first chunk.
- Of numbers and booleans the last one stays. openai-python adds them up.
- What contradicts its earlier kind (a text, then a list) is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from json.encoder import encode_basestring_ascii

import msgspec
from msgspec import Raw

from app import errors
from app.streams.chunk import Chunk, Envelope

__all__ = ["MOST_MEMBERS", "Joined", "fields_of", "items_of", "write_object"]

MOST_MEMBERS = 100_000
"""How many members and entries all choices of a completion have together at most."""

DEEPEST = 8
"""How deep objects are joined. What lies deeper stays as it came last."""

_INDEX = re.compile(rb"[0-9]{1,10}")
_NULL = b"null"
_EMPTY = b'""'
_HOLE = r"\u0000"
"""Stands for an envelope's string while the envelope is looked at. No server sends it by itself."""

_NOTHING = Raw(b"null")

_UNJOINED = ("index", "type")
"""Members of which the last one stays."""

_NOT_DOUBLED = ("role", "id", "name")
"""Strings that are joined from parts, unless the same one comes again."""

_NO_MEMBERS = ("id", "object", "obfuscation")
"""What a completion has of its own, and the padding of a stream."""

fields_of: Callable[[bytes | str | Raw], dict[str, Raw]] = msgspec.json.Decoder(dict[str, Raw]).decode
"""Read the members of a JSON object, without reading their values. Raises: msgspec.DecodeError."""

items_of: Callable[[bytes | Raw], list[Raw]] = msgspec.json.Decoder(list[Raw]).decode
"""Read the entries of a JSON array, without reading their values. Raises: msgspec.DecodeError."""

_text_of: Callable[[bytes | Raw], str] = msgspec.json.Decoder(str).decode


class _Text:
    """A string that is joined from parts."""

    __slots__ = ("parts",)

    def __init__(self, text: str) -> None:
        self.parts = [text] if text else []

    def add(self, text: str, *, is_doubled: bool = True) -> None:
        if text and (is_doubled or self.parts != [text]):
            self.parts.append(text)

    def write(self) -> bytes:
        return encode_basestring_ascii("".join(self.parts)).encode("ascii")


class _Items:
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


class _Object:
    """An object whose members are joined one by one."""

    __slots__ = ("members",)

    def __init__(self) -> None:
        self.members: dict[str, _Node] = {}

    def write(self, *, hidden: Sequence[str] = ()) -> bytes:
        return write_object({name: _written(node) for name, node in self.members.items() if name not in hidden})


class _Entries:
    """An array whose entries are objects that come in parts. `is_indexed`: the entries show their indexes."""

    __slots__ = ("entries", "is_indexed", "last")

    def __init__(self, *, is_indexed: bool) -> None:
        self.entries: dict[int, _Object] = {}
        self.is_indexed = is_indexed
        self.last = -1

    def write(self) -> bytes:
        hidden = () if self.is_indexed else ("index",)
        return b"[%b]" % b",".join(self.entries[index].write(hidden=hidden) for index in sorted(self.entries))


_Node = bytes | _Text | _Items | _Object | _Entries


class _Choice:
    __slots__ = ("logprobs", "members", "message")

    def __init__(self) -> None:
        self.message = _Object()
        self.logprobs: _Object | None = None
        self.members: dict[str, bytes] = {}

    def write(self, index: int) -> bytes:
        """Write it with all members that a choice must have."""
        message = {"role": b'"assistant"', "content": _NULL, "refusal": _NULL}
        for name, node in self.message.members.items():
            message[name] = _written(node)
        members = {
            "index": b"%d" % index,
            "message": write_object(message),
            "logprobs": _NULL if self.logprobs is None else self.logprobs.write(),
            "finish_reason": _NULL,
        }
        return write_object(members | self.members)


class Joined:
    """The completion that a log's chunks make together. Add every chunk in order, then take the parts."""

    __slots__ = ("_choices", "_envelope", "_holes", "_room", "members")

    def __init__(self) -> None:
        self.members: dict[str, bytes] = {}
        """What stands beside the choices, as JSON: of each member the last one that is not null."""
        self._choices: dict[int, _Choice] = {}
        self._room = MOST_MEMBERS
        self._holes: dict[Envelope, tuple[_Text, dict[str, bytes]] | None] = {}
        self._envelope: Envelope | None = None

    def add(self, chunk: Chunk) -> None:
        """Add a chunk. Raises: errors.UpstreamError when the chunk cannot be joined."""
        envelope = chunk.envelope
        if envelope is None:
            self._add(chunk.value)
        elif envelope not in self._holes:
            self._add(chunk.data)
            self._holes[envelope] = self._hole_of(envelope)
        elif (hole := self._holes[envelope]) is None:
            self._add(chunk.data)
        else:
            text, members = hole
            text.parts.append(chunk.value)
            if envelope is not self._envelope:
                self.members |= members
        self._envelope = envelope

    def choices(self) -> bytes:
        """Write the choices as JSON, in the order of their indexes."""
        return b"[%b]" % b",".join(self._choices[index].write(index) for index in sorted(self._choices))

    def _add(self, data: str) -> None:
        try:
            self._add_fields(fields_of(data))
        except (msgspec.DecodeError, RecursionError, ValueError):
            raise errors.UpstreamError(
                "The model's answer has a part that is not valid JSON, or that is nested too deeply."
            ) from None

    def _add_fields(self, fields: dict[str, Raw]) -> None:
        for name, value in fields.items():
            if name == "choices":
                for place, choice in enumerate(_objects(value)):
                    self._add_choice(place, choice)
            elif name not in _NO_MEMBERS:
                self._keep(self.members, name, bytes(value))

    def _add_choice(self, place: int, fields: dict[str, Raw]) -> None:
        index = _index(fields.pop("index", None))
        index = place if index is None else index
        if index not in self._choices:
            self._take_room()
            self._choices[index] = _Choice()
        choice = self._choices[index]
        for name, raw in fields.items():
            value = bytes(raw)
            if name == "delta":
                if value[:1] == b"{":
                    self._join(choice.message, fields_of(value), 1)
            elif name == "logprobs":
                if value[:1] == b"{":
                    choice.logprobs = choice.logprobs or _Object()
                    for kind, tokens in fields_of(value).items():
                        self._add_tokens(choice.logprobs, kind, bytes(tokens))
            elif name != "message" and not (name == "finish_reason" and value == _EMPTY):
                self._keep(choice.members, name, value)

    def _add_tokens(self, logprobs: _Object, kind: str, value: bytes) -> None:
        held = logprobs.members.get(kind)
        if isinstance(held, _Items):
            if value[:1] == b"[":
                held.add(value)
        elif held is None or value != _NULL:
            self._take_room()
            logprobs.members[kind] = _Items(value) if value[:1] == b"[" else value

    def _join(self, held: _Object, fields: dict[str, Raw], depth: int) -> None:
        """Join the members of an object to what is held of it."""
        members = held.members
        for name, raw in fields.items():
            value = bytes(raw)
            node = members.get(name)
            kind = value[:1]
            if node is None or node == _NULL:
                if node is None:
                    self._take_room()
                members[name] = self._begin(name, value, depth)
            elif value == _NULL:
                continue
            elif isinstance(node, bytes):
                if name in _UNJOINED or (kind in b'"[{') is (node[:1] in b'"[{'):
                    members[name] = value
            elif isinstance(node, _Text):
                if kind == b'"':
                    node.add(_text_of(value), is_doubled=name not in _NOT_DOUBLED)
            elif isinstance(node, _Object):
                if kind == b"{":
                    self._join(node, fields_of(value), depth + 1)
            elif kind == b"[":
                members[name] = self._add_array(node, name, value, depth)

    def _begin(self, name: str, value: bytes, depth: int) -> _Node:
        kind = value[:1]
        if kind == b'"' and name not in _UNJOINED:
            return _Text(_text_of(value))
        if kind == b"[":
            return self._add_array(_Items(b"[]"), name, value, depth)
        if kind == b"{" and depth < DEEPEST:
            held = _Object()
            self._join(held, fields_of(value), depth + 1)
            return held
        return value

    def _add_array(self, held: _Items | _Entries, name: str, array: bytes, depth: int) -> _Items | _Entries:
        if isinstance(held, _Items) and not held.parts and depth < DEEPEST:
            is_tools = name == "tool_calls"
            if is_tools or (b'"index"' in array and any("index" in entry for entry in _objects(array))):
                held = _Entries(is_indexed=not is_tools)
        if isinstance(held, _Items):
            held.add(array)
        else:
            for fields in _objects(array):
                self._join(self._entry(held, fields), fields, depth + 1)
        return held

    def _entry(self, held: _Entries, fields: dict[str, Raw]) -> _Object:
        """Find the entry that an object is a part of, or make a new one."""
        entries = held.entries
        index = _index(fields.get("index"))
        if index is None:
            index = held.last
            entry = entries.get(index)
            told = fields.get("id")
            if entry is None or (
                told is not None and bytes(told) != _NULL and _written(entry.members.get("id", _NULL)) != bytes(told)
            ):
                index = max(entries, default=-1) + 1
        if index not in entries:
            self._take_room()
            entries[index] = _Object()
        held.last = index
        return entries[index]

    def _keep(self, members: dict[str, bytes], name: str, value: bytes) -> None:
        if name not in members:
            self._take_room()
            members[name] = value
        elif value != _NULL:
            members[name] = value

    def _take_room(self) -> None:
        if not self._room:
            raise errors.UpstreamError(
                "The model's answer has too many parts to be joined. It can be read as a stream."
            )
        self._room -= 1

    def _hole_of(self, envelope: Envelope) -> tuple[_Text, dict[str, bytes]] | None:
        """Return the text to which the strings of an envelope are added, and what the envelope has beside its choice.

        None for an envelope in which something else counts each time. All of the envelope has been added once.
        """
        fields = fields_of(envelope.prefix + _HOLE + envelope.suffix)
        choices = _objects(fields.pop("choices", _NOTHING))
        if len(choices) != 1:
            return None
        index = _index(choices[0].pop("index", None)) or 0
        delta = choices[0].pop("delta", _NOTHING)
        if delta is _NOTHING or any(bytes(value) != _NULL for value in choices[0].values()):
            return None
        text = _find_hole(self._choices[index].message, fields_of(delta))
        members = {name: bytes(value) for name, value in fields.items() if name in self.members}
        return None if text is None else (text, {name: value for name, value in members.items() if value != _NULL})


def write_object(members: Mapping[str, bytes]) -> bytes:
    """Write a JSON object of members that are written already."""
    return b"{%b}" % b",".join(
        b"%b:%b" % (encode_basestring_ascii(name).encode("ascii"), value) for name, value in members.items()
    )


def _find_hole(held: _Object, fields: dict[str, Raw]) -> _Text | None:
    """Find the one text in which the hole stands. None where the other members do not leave `held` as it is."""
    found: list[_Text | None] = []
    for name, raw in fields.items():
        value, node = bytes(raw), held.members.get(name)
        if value == b'"%b"' % _HOLE.encode():
            found.append(node if isinstance(node, _Text) and name not in _NOT_DOUBLED else None)
        elif name in _UNJOINED:
            found += [] if node == value else [None]
        elif value[:1] == b"{" and isinstance(node, _Object):
            found.append(_find_hole(node, fields_of(value)))
        elif value[:1] == b"[" and isinstance(node, _Entries):
            for entry in _objects(value):
                index = _index(entry.get("index"))
                found.append(None if index is None else _find_hole(node.entries[index], entry))
        elif value not in (_NULL, _EMPTY):
            is_kept = name in _NOT_DOUBLED and isinstance(node, _Text) and node.parts == [_text_of(value)]
            found += [] if is_kept else [None]
    return found[0] if len(found) == 1 else None


def _written(node: _Node) -> bytes:
    return node if isinstance(node, bytes) else node.write()


def _index(raw: Raw | None) -> int | None:
    """Read an index. None for what is none."""
    value = b"" if raw is None else bytes(raw)
    return int(value) if _INDEX.fullmatch(value) else None


def _objects(array: bytes | Raw) -> list[dict[str, Raw]]:
    """Read the objects in an array. Anything else in it is left out."""
    if bytes(array)[:1] != b"[":
        return []
    return [fields_of(item) for item in items_of(array) if bytes(item)[:1] == b"{"]
