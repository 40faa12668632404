"""What a chunk, or a whole answer, has in it that matters here. Any other value is checked and not built.

Providers shape their chunks as they like. So no value breaks an answer, whatever its type: one that is not understood
says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from app.upstream.decoder import ErrorReported, built
from app.upstream.json_line import ABSENT, begins_with

__all__ = ["CONTENT_PART", "MOST_ENTRIES", "Contents", "Said", "contents_of_answer", "contents_of_chunk"]

MOST_ENTRIES = 128
"""How many choices are looked at, and how many tool calls or parts of the content of a choice."""
CONTENT_PART = "content[]"
"""Stands for the name of a field, where the content is a list and the string is the text of an entry."""

_THOUGHT_PART = "content[] thinking"
_UNKNOWN_REASON = "unknown"


class Said(NamedTuple):
    """What one choice says. `place` is its index, and 0 where that is no number.

    `strings` are those that are not empty, each behind the name of its field. For the arguments of a call this is
    "tool_calls".

    The content is first, then the refusal, the reasoning, and the calls.
    """

    place: int
    strings: list[tuple[str, str]]
    finish_reason: str | None


class Contents(NamedTuple):
    """What a chunk, or a whole answer, says. `listed` is an answer's list of choices as it was written, or absent."""

    choices: list[Said]
    usage: msgspec.Raw
    listed: msgspec.Raw = ABSENT


class _Written(msgspec.Struct):
    """What the model writes beside its text."""

    reasoning_content: msgspec.Raw = ABSENT
    reasoning: msgspec.Raw = ABSENT
    tool_calls: msgspec.Raw = ABSENT
    function_call: msgspec.Raw = ABSENT


class _Delta(_Written):
    """What a chunk adds to one choice, as most servers write it."""

    content: str | None = None
    refusal: str | None = None


class _OddDelta(_Written):
    """What a chunk adds to one choice, or the message of a whole answer."""

    content: msgspec.Raw = ABSENT
    refusal: msgspec.Raw = ABSENT


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None
    index: int | None = 0


class _OddChoice(msgspec.Struct):
    delta: msgspec.Raw = ABSENT
    message: msgspec.Raw = ABSENT
    finish_reason: msgspec.Raw = ABSENT
    index: msgspec.Raw = ABSENT


class _Chunk(msgspec.Struct):
    """A chunk as most servers write it. With `object` "error", the whole is an error, and `message` says which."""

    choices: list[_Choice] | None = None
    usage: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT
    object: str | None = None
    message: msgspec.Raw = ABSENT
    code: msgspec.Raw = ABSENT


class _Odd(msgspec.Struct):
    """A chunk or a whole answer, with values of any type."""

    choices: msgspec.Raw = ABSENT
    usage: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT
    object: msgspec.Raw = ABSENT
    message: msgspec.Raw = ABSENT
    code: msgspec.Raw = ABSENT


class _Part(msgspec.Struct):
    """An entry of a content that is a list. Mistral's models put what they think into lists of such entries."""

    type: msgspec.Raw = ABSENT
    text: msgspec.Raw = ABSENT
    thinking: msgspec.Raw = ABSENT


class _Function(msgspec.Struct):
    arguments: str | None = None


class _Call(msgspec.Struct):
    function: _Function | None = None


def _first_entries(entry: Any, absent: Any) -> Any:
    """Make a type for the first entries of a list. The others are checked and not built, however many there are."""
    fields = [(f"entry_{number}", entry, absent) for number in range(MOST_ENTRIES)]
    return msgspec.defstruct("Entries", fields, array_like=True)


_chunk = msgspec.json.Decoder(_Chunk).decode
_odd = msgspec.json.Decoder(_Odd).decode
_odd_choice = msgspec.json.Decoder(_OddChoice).decode
_odd_delta = msgspec.json.Decoder(_OddDelta).decode
_part = msgspec.json.Decoder(_Part).decode
_entries = msgspec.json.Decoder(_first_entries(msgspec.Raw, ABSENT)).decode
_calls = msgspec.json.Decoder(_first_entries(_Call | None, None)).decode
_function = msgspec.json.Decoder(_Function).decode
_string = msgspec.json.Decoder(str).decode
_integer = msgspec.json.Decoder(int).decode


def _is_error(chunk: _Chunk | _Odd) -> bool:
    """Some servers send an error bare, as the data of an event that is named so: a message, and a code beside it."""
    return chunk.code is not ABSENT and begins_with(chunk.message, b'"')


def contents_of_chunk(data: bytes) -> Contents:
    """Read a chunk. Raises: ErrorReported, msgspec.DecodeError for data that is no JSON of an object,
    UnicodeDecodeError, RecursionError."""
    try:
        chunk = _chunk(data)
    except msgspec.ValidationError:
        return _odd_contents(data, _delta_of)
    is_none = chunk.choices is None
    _check_error(chunk.error, chunk.message, is_error=is_none and (chunk.object == "error" or _is_error(chunk)))
    if chunk.choices is None:
        return Contents([], chunk.usage)
    choices = [
        Said(choice.index or 0, [] if (delta := choice.delta) is None else _strings(delta), choice.finish_reason)
        for choice in chunk.choices[:MOST_ENTRIES]
    ]
    return Contents(choices, chunk.usage)


def contents_of_answer(body: bytes) -> Contents:
    """Read a whole answer. Raises what `contents_of_chunk` does."""
    return _odd_contents(body, _message_of)


def _odd_contents(data: bytes, delta_of: Callable[[_OddChoice], msgspec.Raw]) -> Contents:
    """Read what may have values of any type. `delta_of` gives the member of a choice that tells what it says."""
    odd = _odd(data)
    listed = odd.choices if begins_with(odd.choices, b"[") else ABSENT
    is_error = listed is ABSENT and (_read(_string, odd.object) == "error" or _is_error(odd))
    _check_error(odd.error, odd.message, is_error=is_error)
    choices = []
    for entry in _listed(listed):
        choice = _read(_odd_choice, entry)
        if choice is not None:
            delta = _read(_odd_delta, delta_of(choice))
            strings = [] if delta is None else _strings(delta)
            choices.append(Said(_read(_integer, choice.index) or 0, strings, _reason(choice.finish_reason)))
    return Contents(choices, odd.usage, listed)


def _delta_of(choice: _OddChoice) -> msgspec.Raw:
    return choice.delta


def _message_of(choice: _OddChoice) -> msgspec.Raw:
    return choice.message


def _check_error(error: msgspec.Raw, message: msgspec.Raw, *, is_error: bool) -> None:
    """Raise ErrorReported when an error is told. Raises besides: msgspec.DecodeError, UnicodeDecodeError."""
    told = built(error) or (is_error and built(message))
    if told or is_error:
        raise ErrorReported(told or None)


def _reason(value: msgspec.Raw) -> str | None:
    """Return why a choice has finished. Some say it with a number, and 0 says that it has not."""
    if begins_with(value, b'"'):
        return _string(value) or None
    return None if len(value) == 0 or begins_with(value, b"nf0") else _UNKNOWN_REASON


def _strings(delta: _Delta | _OddDelta) -> list[tuple[str, str]]:
    """Return what `Said.strings` has."""
    found: list[tuple[str, str]] = []
    content = delta.content
    if content:
        if isinstance(content, str):
            found.append(("content", content))
        elif text := _text(content):
            found.append(("content", text))
        else:
            found += islice(_part_strings(content), MOST_ENTRIES)
    if delta.refusal and (text := _text(delta.refusal)):
        found.append(("refusal", text))
    if delta.reasoning_content is not ABSENT and (text := _text(delta.reasoning_content)):
        found.append(("reasoning_content", text))
    if delta.reasoning is not ABSENT and (text := _text(delta.reasoning)):
        found.append(("reasoning", text))
    if delta.tool_calls is not ABSENT:
        found += [("tool_calls", text) for text in _arguments(delta.tool_calls)]
    if delta.function_call is not ABSENT and (function := _read(_function, delta.function_call)) and function.arguments:
        found.append(("function_call", function.arguments))
    return found


def _part_strings(content: msgspec.Raw) -> Iterator[tuple[str, str]]:
    """Find the text and the thoughts in a content that is a list."""
    for entry in _listed(content):
        part = _read(_part, entry)
        kind = None if part is None else _read(_string, part.type)
        if kind == "text" and (text := _text(part.text)):
            yield CONTENT_PART, text
        elif kind == "thinking":
            if text := _text(part.thinking) or _text(part.text):
                yield _THOUGHT_PART, text
            for thought in _listed(part.thinking):
                if (inner := _read(_part, thought)) is not None and (text := _text(inner.text)):
                    yield _THOUGHT_PART, text


def _listed(value: msgspec.Raw) -> list[msgspec.Raw]:
    """Return the first entries of a list, and none of a value of another type."""
    found = _read(_entries, value)
    return [] if found is None else [entry for entry in msgspec.structs.astuple(found) if entry is not ABSENT]


def _text(value: str | msgspec.Raw) -> str:
    return value if isinstance(value, str) else _read(_string, value) or ""


def _arguments(calls: msgspec.Raw) -> list[str]:
    found = _read(_calls, calls)
    if found is None:
        return []
    return [
        call.function.arguments
        for call in msgspec.structs.astuple(found)
        if call is not None and call.function is not None and call.function.arguments
    ]


def _read(decode: Callable[[msgspec.Raw], Any], value: msgspec.Raw) -> Any:
    """Read a value. None for a value of another type, or for none."""
    if value is ABSENT:
        return None
    try:
        return decode(value)
    except msgspec.ValidationError:
        return None
