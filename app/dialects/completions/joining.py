"""Chunks of a stream joined to the choices of one completion, in the way openai-python's accumulator joins deltas.

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

from msgspec import Raw

from app import errors
from app.dialects.completions.holes import Hole, hole_of
from app.dialects.completions.nodes import (
    NOT_DOUBLED,
    NULL,
    UNJOINED,
    Entries,
    Items,
    Node,
    Object,
    Text,
    fields_of,
    index_of,
    objects_of,
    text_of,
    write_object,
    written,
)
from app.streams.chunk import Chunk, Envelope

__all__ = ["DEEPEST", "MOST_MEMBERS", "Joined"]

MOST_MEMBERS = 100_000
"""How many members and entries all choices of a completion have together at most."""

DEEPEST = 8
"""How deep objects are joined. What lies deeper stays as it came last."""

_NO_MEMBERS = ("id", "object", "obfuscation")
"""What a completion has of its own, and the padding of a stream."""


class _Choice:
    __slots__ = ("logprobs", "members", "message")

    def __init__(self) -> None:
        self.message = Object()
        self.logprobs: Object | None = None
        self.members: dict[str, bytes] = {}

    def write(self, index: int) -> bytes:
        """Write it with all members that a choice must have."""
        message = {"role": b'"assistant"', "content": NULL, "refusal": NULL}
        for name, node in self.message.members.items():
            message[name] = written(node)
        members = {
            "index": b"%d" % index,
            "message": write_object(message),
            "logprobs": NULL if self.logprobs is None else self.logprobs.write(),
            "finish_reason": NULL,
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
        self._holes: dict[Envelope, Hole | None] = {}
        self._envelope: Envelope | None = None

    def add(self, chunk: Chunk) -> None:
        """Add a chunk. Raises: errors.UpstreamError when the chunk cannot be joined."""
        envelope = chunk.envelope
        if envelope is None:
            self._add(chunk.value)
        elif envelope not in self._holes:
            self._add(chunk.data)
            self._holes[envelope] = hole_of(envelope, self._message, self.members)
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

    def _message(self, index: int) -> Object:
        return self._choices[index].message

    def _add(self, data: str) -> None:
        try:
            self._add_fields(fields_of(data))
        except (ValueError, RecursionError):
            raise errors.UpstreamError(
                "The model's answer has a part that is not valid JSON, or that is nested too deeply."
            ) from None

    def _add_fields(self, fields: dict[str, Raw]) -> None:
        for name, value in fields.items():
            if name == "choices":
                for place, choice in enumerate(objects_of(value)):
                    self._add_choice(place, choice)
            elif name not in _NO_MEMBERS:
                self._keep(self.members, name, bytes(value))

    def _add_choice(self, place: int, fields: dict[str, Raw]) -> None:
        index = index_of(fields.pop("index", None))
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
                    choice.logprobs = choice.logprobs or Object()
                    for kind, tokens in fields_of(value).items():
                        self._add_tokens(choice.logprobs, kind, bytes(tokens))
            elif name != "message" and not (name == "finish_reason" and value == b'""'):
                self._keep(choice.members, name, value)

    def _add_tokens(self, logprobs: Object, kind: str, value: bytes) -> None:
        held = logprobs.members.get(kind)
        if isinstance(held, Items):
            if value[:1] == b"[":
                held.add(value)
        elif held is None or value != NULL:
            self._take_room()
            logprobs.members[kind] = Items(value) if value[:1] == b"[" else value

    def _join(self, held: Object, fields: dict[str, Raw], depth: int) -> None:
        """Join the members of an object to what is held of it."""
        members = held.members
        for name, raw in fields.items():
            value = bytes(raw)
            node = members.get(name)
            kind = value[:1]
            if node is None or node == NULL:
                if node is None:
                    self._take_room()
                members[name] = self._begin(name, value, depth)
            elif value == NULL:
                continue
            elif isinstance(node, bytes):
                if name in UNJOINED or (kind in b'"[{') is (node[:1] in b'"[{'):
                    members[name] = value
            elif isinstance(node, Text):
                if kind == b'"':
                    node.add(text_of(value), is_doubled=name not in NOT_DOUBLED)
            elif isinstance(node, Object):
                if kind == b"{":
                    self._join(node, fields_of(value), depth + 1)
            elif kind == b"[":
                members[name] = self._add_array(node, name, value, depth)

    def _begin(self, name: str, value: bytes, depth: int) -> Node:
        kind = value[:1]
        if kind == b'"' and name not in UNJOINED:
            return Text(text_of(value))
        if kind == b"[":
            return self._add_array(Items(b"[]"), name, value, depth)
        if kind == b"{" and depth < DEEPEST:
            held = Object()
            self._join(held, fields_of(value), depth + 1)
            return held
        return value

    def _add_array(self, held: Items | Entries, name: str, array: bytes, depth: int) -> Items | Entries:
        if isinstance(held, Items) and not held.parts and depth < DEEPEST:
            is_tools = name == "tool_calls"
            if is_tools or (b'"index"' in array and any("index" in entry for entry in objects_of(array))):
                held = Entries(is_indexed=not is_tools)
        if isinstance(held, Items):
            held.add(array)
        else:
            for fields in objects_of(array):
                self._join(self._entry(held, fields), fields, depth + 1)
        return held

    def _entry(self, held: Entries, fields: dict[str, Raw]) -> Object:
        """Find the entry that an object is a part of, or make a new one."""
        entries = held.entries
        index = index_of(fields.get("index"))
        if index is None:
            index = held.last
            entry = entries.get(index)
            told = fields.get("id")
            if entry is None or (
                told is not None and bytes(told) != NULL and written(entry.members.get("id", NULL)) != bytes(told)
            ):
                index = max(entries, default=-1) + 1
        if index not in entries:
            self._take_room()
            entries[index] = Object()
        held.last = index
        return entries[index]

    def _keep(self, members: dict[str, bytes], name: str, value: bytes) -> None:
        if name not in members:
            self._take_room()
            members[name] = value
        elif value != NULL:
            members[name] = value

    def _take_room(self) -> None:
        if not self._room:
            raise errors.UpstreamError(
                "The model's answer has too many parts to be joined. It can be read as a stream."
            )
        self._room -= 1
