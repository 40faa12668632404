"""The data of one event → the records of a log of chunks. Stands beside `ChunkDecoder`, which makes text of it."""

from __future__ import annotations

from json.encoder import encode_basestring_ascii
from typing import Any, NamedTuple

import msgspec

from app.streams.chunk import Chunk
from app.upstream import contents
from app.upstream.decoder import LARGE_EVENT_BYTES, NODES, REPLACEMENT, BrokenStream, built
from app.upstream.envelopes import Envelopes, opened
from app.upstream.halves import Halves, Place, repaired
from app.upstream.interface import Part
from app.upstream.json_line import ABSENT, Members, begins_with, members_of, one_line, written
from app.upstream.spellings import NO_SPELLING, Spellings, decode_string

__all__ = ["MOST_FINISHED", "MOST_NAMES", "MOST_RAW_BYTES", "SPARE_DEPTH", "Recorder", "whole_answer"]

MOST_RAW_BYTES = 16 * 1_048_576
"""How large the chunks of one answer may be that are in no envelope, all together."""
MOST_NAMES = 100_000
"""How many colons a large event may have, its text included. Before each may be a name that has to be built."""
MOST_FINISHED = 128
"""How many finished choices are told apart."""
SPARE_DEPTH = 200
"""How much deeper than any chunk JSON may be that is read here. Others read the chunk again, with less room for it."""
LONGEST_COMMON_BYTES = 256
"""A time or a model's name up to this size goes into chunks that had another, or that are our own."""

_NO_CHUNK = "an event is not a chat completion chunk"
_NO_COMPLETION = "it is not a chat completion"
_HOLES = frozenset({"content", "refusal", "reasoning_content", "reasoning", "tool_calls"})
_TEXTS = frozenset({"content", "refusal"})

_check = msgspec.json.Decoder(msgspec.Raw).decode


class _Read(NamedTuple):
    """A chunk: what of it matters here, its members as they were written, and its usage."""

    chunk: contents.Chunk
    members: Members
    usage: Any

    @property
    def tells_usage(self) -> bool:
        """The usage is an object, and not only null as in all other chunks."""
        return begins_with(self.chunk.usage, b"{")


class Recorder:
    """The data of one event → the part it adds, with its record. Joins characters whose halves came in two chunks.

    Most records are found by their bytes alone. They are the same that come of decoding the chunk.
    """

    def __init__(self, completion_id: str, *, choices: int, keeps_usage: bool) -> None:
        """`completion_id` becomes the id of every chunk. `choices` is how many answers were asked for.

        `keeps_usage`: the chunk that tells the usage, and has no choices, is a record too.
        """
        self._id = msgspec.Raw(msgspec.json.encode(completion_id))
        self._choices = min(choices, MOST_FINISHED)
        self._keeps_usage = keeps_usage
        self._created: msgspec.Raw | None = None
        self._model: msgspec.Raw | None = None
        self._envelopes = Envelopes()
        self._spellings = Spellings()
        self._last = NO_SPELLING
        self._halves = Halves()
        self._finished: set[int] = set()
        self._reason: str | None = None  # Choice 0's, or the last one's while choice 0 has none.
        self._reason_is_first = False
        self._room = MOST_RAW_BYTES

    def decode(self, data: bytes) -> Part:
        """Return the part. Raises: BrokenStream for data that is no chunk, ErrorReported for an error inside."""
        prefix, suffix, begin, end, envelope, is_text, _ = self._last
        if data.startswith(prefix) and data.endswith(suffix):
            try:
                value = decode_string(data[begin:end])
            except (msgspec.DecodeError, UnicodeDecodeError):
                return self._decode(data)
            if value:
                return Part("", None, None, False, (Chunk(value if is_text else "", value, envelope),), len(value))
        return self._decode(data)

    def pending(self) -> Part | None:
        """Return the records for halves that nothing completed, once. None when there are none."""
        chunks = tuple(map(self._replacement, self._halves.take()))
        return Part(chunks=chunks, chars=len(chunks)) if chunks else None

    def _decode(self, data: bytes) -> Part:
        """Decode what does not look like the last chunk."""
        if self._halves.held:
            return self._decode_odd(data)
        if (found := self._spellings.find(data)) is not None:
            self._last, value = found
            _, _, _, _, envelope, is_text, _ = self._last
            return Part("", None, None, False, (Chunk(value if is_text else "", value, envelope),), len(value))
        _check_size(data)
        read = _read(data)
        return self._decode_odd(data) if read is None else self._part(read, data)

    def _decode_odd(self, data: bytes) -> Part:
        """Decode what the strict decoder refuses, and what may complete half a character."""
        if data.strip() == b"[DONE]":
            return Part(done=True)
        _check_size(data)
        data, abandoned = self._halves.join(data)
        if self._halves.held:
            self._last = NO_SPELLING  # Its string may be the one that the half waits for.
        read = _read(data)
        if read is None:
            raise BrokenStream(_NO_CHUNK)
        model = read.members.get("model", ABSENT)
        if 0 < len(model) <= LONGEST_COMMON_BYTES:
            self._model = model.copy()
        part = self._part(read, None)
        if abandoned:
            replaced = tuple(self._raw(chunk.text, chunk.value) for chunk in map(self._replacement, abandoned))
            return Part("", part.finish_reason, part.usage, False, replaced + part.chunks, part.chars + len(replaced))
        return part

    def _part(self, read: _Read, data: bytes | None) -> Part:
        """Make a chunk's part. `data` is what the next chunk of its shape is recognized by. None: by nothing."""
        choices = read.chunk.choices or []
        strings: list[tuple[str, str]] = []
        text = ""
        chars = 0
        has_finished = False
        for choice in choices[: contents.MOST_ENTRIES]:
            index = choice.index or 0
            strings = contents.strings_of(choice.delta)
            for field, value in strings:
                chars += len(value)
                if index == 0 and field in _TEXTS:
                    text += value
            if choice.finish_reason:
                has_finished = True
                self._finish(index, choice.finish_reason)
            elif strings:
                self._finished.discard(index)
        finish_reason = self._reason if has_finished and len(self._finished) >= self._choices else None
        if not choices and read.tells_usage and not self._keeps_usage:
            return Part("", finish_reason, read.usage)
        members = self._completed(read.members)
        chunk = None
        if len(choices) == len(strings) == 1 and not has_finished and not read.tells_usage:
            chunk = self._enveloped(members, strings[0], text, data)
        if chunk is None:
            chunk = self._raw(text, one_line(written(members)))
        return Part("", finish_reason, read.usage, False, (chunk,), chars)

    def _finish(self, index: int, reason: str) -> None:
        if len(self._finished) < MOST_FINISHED:
            self._finished.add(index)
        if index == 0 or not self._reason_is_first:
            self._reason, self._reason_is_first = reason, index == 0
        # More of a finished choice must not be recognized, because then the choice has not finished.
        self._spellings.clear()
        self._last = NO_SPELLING

    def _completed(self, members: Members) -> Members:
        """Return the members that a chunk has here: with our id, and with the first chunk's time."""
        members = _identified(members, self._id)
        created = members.get("created", ABSENT)
        if begins_with(created, b"123456789") and len(created) <= LONGEST_COMMON_BYTES:  # Azure's first chunk has 0.
            if self._created is None:
                self._created = created.copy()
            members["created"] = self._created
        return members

    def _enveloped(self, members: Members, named: tuple[str, str], text: str, data: bytes | None) -> Chunk | None:
        """Make a record of a chunk with one string, from the second chunk of its shape on in an envelope."""
        field, value = named
        around = opened(members, field) if field in _HOLES else None
        if around is None:
            return None
        envelope = self._envelopes.of(around, is_text=bool(text))
        if envelope is None:
            return self._raw(text, around.prefix + encode_basestring_ascii(value)[1:-1] + around.suffix)
        if data is not None and (spelling := self._spellings.learn(envelope, data, around.string, named)) is not None:
            self._last = spelling
        return Chunk(text, value, envelope)

    def _raw(self, text: str, json: str) -> Chunk:
        """Make a record without an envelope. Raises: BrokenStream when all of them together are too large."""
        self._room -= len(json)
        if self._room < 0:
            raise BrokenStream("its chunks are too large altogether")
        return Chunk(text, json)

    def _replacement(self, place: Place) -> Chunk:
        """Make a record of its own for half a character that nothing completed."""
        chunk: dict[str, Any] = {"id": self._id, "object": "chat.completion.chunk"}
        if self._created is not None:
            chunk["created"] = self._created
        if self._model is not None:
            chunk["model"] = self._model
        chunk["choices"] = [{"index": place.choice, "delta": place.delta, "finish_reason": None}]
        is_text = place.choice == 0 and place.field in _TEXTS
        return Chunk(REPLACEMENT if is_text else "", one_line(written(chunk)))


def whole_answer(body: bytes, completion_id: str) -> Part:
    """Return an answer that was not streamed as one record, in the part that ends it.

    Raises: BrokenStream for a body that is no such answer, ErrorReported for an error inside.
    """
    part = _whole(body, completion_id) or _whole(repaired(body), completion_id)
    if part is None:
        raise BrokenStream(_NO_COMPLETION)
    return part


def _whole(body: bytes, completion_id: str) -> Part | None:
    """None for what the strict decoder refuses."""
    try:
        completion = contents.decode_completion(body)
        usage = built(completion.usage)
        contents.check_error(completion, has_choices=begins_with(completion.choices, b"["))
        answers = contents.answers_of(completion)
        _check_depth(body)
        if body.count(b":") - bytes(completion.choices).count(b":") > MOST_NAMES:
            raise BrokenStream(_NO_COMPLETION)
        json = one_line(written(_identified(members_of(body), msgspec.Raw(msgspec.json.encode(completion_id)))))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if len(json) > MOST_RAW_BYTES:
        raise BrokenStream("it is too large")
    texts = [value for field, value in answers[0][0] if field in _TEXTS] if answers else []
    return Part(
        finish_reason=answers[0][1] if answers else None,
        usage=usage,
        done=True,
        chunks=(Chunk(texts[0] if texts else "", json),),
        chars=sum(len(value) for strings, _ in answers for _, value in strings),
    )


def _read(data: bytes) -> _Read | None:
    """Read a chunk. None for data that the strict decoder refuses. Raises: ErrorReported."""
    try:
        chunk = contents.decode_chunk(data)
        usage = built(chunk.usage)
        contents.check_error(chunk, has_choices=chunk.choices is not None)
        if not data.isascii():
            data.decode()  # The decoder looks only into the strings that it builds.
        _check_depth(data)
        return _Read(chunk, members_of(data), usage)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _identified(members: Members, name: msgspec.Raw) -> Members:
    """Return the members with our id, and without the error. It is none, and yet some clients fail when it is there."""
    members.pop("error", None)
    if "id" not in members:
        return {"id": name, **members}
    members["id"] = name
    return members


def _check_size(data: bytes) -> None:
    if len(data) > LARGE_EVENT_BYTES and (data.count(b"{") > NODES or data.count(b":") > MOST_NAMES):
        raise BrokenStream(_NO_CHUNK)


def _check_depth(data: bytes) -> None:
    """Raise RecursionError where others could fail to read the JSON, with less room for it."""
    if len(data) > 2 * SPARE_DEPTH and data.count(b"[") + data.count(b"{") > SPARE_DEPTH:
        _check(b"[" * SPARE_DEPTH + data + b"]" * SPARE_DEPTH)
