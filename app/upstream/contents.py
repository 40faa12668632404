"""What a chunk, or a whole answer, has in it that matters here. Any other value is checked and not built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from app.upstream.decoder import ErrorReported, built
from app.upstream.json_line import ABSENT

__all__ = [
    "MOST_ENTRIES",
    "Choice",
    "Chunk",
    "Completion",
    "answers_of",
    "check_error",
    "decode_chunk",
    "decode_completion",
    "strings_of",
]

MOST_ENTRIES = 128
"""How many choices are looked at, and how many tool calls of a choice."""


class _Written(msgspec.Struct):
    """What the model writes beside its text. Providers shape it as they like, so none of it breaks an answer."""

    reasoning_content: msgspec.Raw = ABSENT
    reasoning: msgspec.Raw = ABSENT
    tool_calls: msgspec.Raw = ABSENT
    function_call: msgspec.Raw = ABSENT


class _Delta(_Written):
    """What a chunk adds to one choice."""

    content: str | None = None
    refusal: str | None = None


class _Message(_Written):
    """A choice of a whole answer."""

    content: msgspec.Raw = ABSENT
    refusal: msgspec.Raw = ABSENT


class Choice(msgspec.Struct):
    """One choice in a chunk."""

    delta: _Delta | None = None
    finish_reason: str | None = None
    index: int | None = 0


class _Answer(msgspec.Struct):
    message: _Message | None = None
    finish_reason: str | None = None


class _Function(msgspec.Struct):
    arguments: str | None = None


class _Call(msgspec.Struct):
    function: _Function | None = None


class _Told(msgspec.Struct):
    """What both may tell. With `object` "error", the whole is an error, and `message` says which."""

    usage: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT
    object: str | None = None
    message: msgspec.Raw = ABSENT


class Chunk(_Told):
    """One chunk."""

    choices: list[Choice] | None = None


class Completion(_Told):
    """One whole answer. `answers_of` reads its `choices`."""

    choices: msgspec.Raw = ABSENT


def _first_entries(entry: type[msgspec.Struct]) -> Any:
    """Make a type for the first entries of a list. The others are checked and not built, however many there are."""
    fields = [(f"entry_{number}", entry | None, None) for number in range(MOST_ENTRIES)]
    return msgspec.defstruct(f"{entry.__name__}s", fields, array_like=True)


decode_chunk = msgspec.json.Decoder(Chunk).decode
decode_completion = msgspec.json.Decoder(Completion).decode
_answers = msgspec.json.Decoder(_first_entries(_Answer)).decode
_calls = msgspec.json.Decoder(_first_entries(_Call)).decode
_function = msgspec.json.Decoder(_Function).decode
_string = msgspec.json.Decoder(str).decode


def answers_of(completion: Completion) -> list[tuple[list[tuple[str, str]], str | None]]:
    """Return the strings and the finish reason of each choice.

    Raises: msgspec.DecodeError when there is no list of choices, UnicodeDecodeError.
    """
    found = msgspec.structs.astuple(_answers(completion.choices))
    return [(strings_of(answer.message), answer.finish_reason) for answer in found if answer is not None]


def strings_of(delta: _Delta | _Message | None) -> list[tuple[str, str]]:
    """Return each string that is not empty, behind the name of its field; for the arguments of a call "tool_calls".

    The content is first, then the refusal, the reasoning, and the calls.
    """
    if delta is None:
        return []
    found: list[tuple[str, str]] = []
    if delta.content and (text := _text(delta.content)):
        found.append(("content", text))
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


def check_error(told: _Told, *, has_choices: bool) -> None:
    """Raise ErrorReported when an error is told. Raises besides: msgspec.DecodeError, UnicodeDecodeError."""
    is_error = told.object == "error" and not has_choices
    error = built(told.error) or (is_error and built(told.message))
    if error or is_error:
        raise ErrorReported(error or None)


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
    """Read a value of another shape as None."""
    try:
        return decode(value)
    except msgspec.ValidationError:
        return None
