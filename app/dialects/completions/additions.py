"""What we add to a request that is sent on: each is bytes of JSON in a place of the client's body."""

from __future__ import annotations

import json
from collections.abc import Iterable, Set
from typing import NamedTuple

from app.dialects.completions.fields import LIMITS, Options
from app.dialects.opaque_json import Opaque, last_value

__all__ = ["Addition", "limit", "spliced", "stream_options", "system_prompt"]

_UNSET = {"include_usage": (b"null", b"false"), "include_obfuscation": (b"null",)}
"""The values of stream options that we replace by ours."""


class Addition(NamedTuple):
    """What we put into a body instead of its bytes from `start` to `end`. `name` is the field that gets it."""

    name: str
    start: int
    end: int
    text: bytes


def spliced(body: bytes, additions: Iterable[Addition], left_out: Set[str]) -> bytes:
    """Put the additions into a body, but for those to the fields of `left_out`. One limit is put in at most."""
    chosen: list[Addition] = []
    is_limited = False
    for addition in additions:
        is_limit = addition.name in LIMITS
        if addition.name not in left_out and not (is_limit and is_limited):
            chosen.append(addition)
            is_limited |= is_limit
    if not chosen:
        return body
    view = memoryview(body)
    pieces: list[bytes | memoryview] = []
    at = 0
    for addition in sorted(chosen, key=lambda one: (one.start, one.end)):
        pieces += view[at : addition.start], addition.text
        at = addition.end
    pieces.append(view[at:])
    return b"".join(pieces)


def system_prompt(found: Opaque, text: str) -> Addition:
    """Put a system message before the client's messages."""
    message = json.dumps({"role": "system", "content": text}, separators=(",", ":")).encode()
    start = found.spans["messages"][0] + 1
    return Addition("messages", start, start, message + b",")


def stream_options(found: Opaque, given: Options | None, *, to_openai: bool) -> list[Addition]:
    """Ask for the usage, which our books need. Ask OpenAI for no padding: that is for streams that others can see."""
    wanted = {"include_usage": b"true"}
    if to_openai:
        wanted["include_obfuscation"] = b"false"
    if found.value("stream_options") in (None, b"null"):
        return [_added(found, "stream_options", b"{%b}" % b",".join(map(_member, wanted.items())))]
    if given is None:
        return []
    at, end = found.spans["stream_options"]
    value = found.readable[at:end]
    additions = []
    missing = []
    for name, text in wanted.items():
        sent = bytes(getattr(given, name))
        if not sent:
            missing.append(_member((name, text)))
        elif sent in _UNSET[name]:
            start, stop = last_value(value, name)
            additions.append(Addition("stream_options", at + start, at + stop, text))
    if missing:
        comma = b"," if value[1:-1].strip() else b""
        additions.append(Addition("stream_options", at + 1, at + 1, b",".join(missing) + comma))
    return additions


def limit(found: Opaque, most: int, *, to_openai: bool) -> list[Addition]:
    """Limit the answer's tokens, under the name that the upstream is likely to know, or else under the other one."""
    names = LIMITS if to_openai else LIMITS[::-1]
    return [_added(found, name, b"%d" % most) for name in names]


def _added(found: Opaque, name: str, text: bytes) -> Addition:
    """Add a field behind the last one, or put its value in the place of null."""
    if name in found.spans:
        return Addition(name, *found.spans[name], text)
    return Addition(name, found.end, found.end, b"," + _member((name, text)))


def _member(member: tuple[str, bytes]) -> bytes:
    return b'"%b":%b' % (member[0].encode(), member[1])
