"""Characters whose halves came in two chunks: each string of a choice is joined with what came before it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

from app.upstream.contents import MOST_ENTRIES
from app.upstream.decoder import ODD_NODES, REPLACEMENT, BrokenStream

__all__ = ["MOST_HELD", "Halves", "Place", "repaired"]

MOST_HELD = 128
"""How many first halves one answer may have under way. Any further one is replaced at once."""

ODD_VALUES = 100_000
"""How many commas a chunk may have that has to be built. Behind each may be a value."""

_HALF = re.compile("[\ud800-\udfff]")
_FIELDS = ("content", "refusal", "reasoning_content", "reasoning")


class Place(NamedTuple):
    """Where a string grows from chunk to chunk. `call` is the index of a tool call, for `field` "tool_calls"."""

    choice: int
    field: str
    call: int = 0

    @property
    def delta(self) -> dict[str, Any]:
        """The delta that adds the replacement of half a character here."""
        if self.field == "tool_calls":
            return {"tool_calls": [{"index": self.call, "function": {"arguments": REPLACEMENT}}]}
        if self.field == "function_call":
            return {"function_call": {"arguments": REPLACEMENT}}
        return {self.field: REPLACEMENT}


class Halves:
    """The halves of one answer that wait for their other half."""

    def __init__(self) -> None:
        self.held: dict[Place, str] = {}

    def join(self, data: bytes) -> tuple[bytes, list[Place]]:
        """Return a chunk as JSON that every decoder takes, and the places whose half nothing will complete.

        A first half at the end of a string is held back, and stands before the same string of a later chunk. Any other
        half becomes U+FFFD, and so do bytes that are not UTF-8. NaN and Infinity, which are no JSON, become null.
        Raises: BrokenStream for data that is no JSON, or has too much in it.
        """
        chunk = _built(data, "an event is not a chat completion chunk")
        finished: set[int] = set()
        for choice in islice(_objects(chunk, "choices"), MOST_ENTRIES):
            index = number if type(number := choice.get("index")) is int else 0
            is_last = bool(choice.get("finish_reason"))
            for owner, name, place in _strings(choice, index):
                owner[name] = self._joined(place, owner[name], is_last=is_last)
            if is_last:
                finished.add(index)
        abandoned = [place for place in self.held if place.choice in finished]
        for place in abandoned:
            del self.held[place]
        return _strict(chunk), abandoned

    def take(self) -> list[Place]:
        """Return the places whose half nothing has completed, once."""
        places = list(self.held)
        self.held.clear()
        return places

    def _joined(self, place: Place, text: str, *, is_last: bool) -> str:
        if not text:
            return ""
        first = self.held.pop(place, "")
        if first and "\udc00" <= text[0] <= "\udfff":
            text = (first + text[0]).encode("utf-16-le", "surrogatepass").decode("utf-16-le") + text[1:]
        else:
            text = first + text
        if not is_last and "\ud800" <= text[-1] <= "\udbff" and len(self.held) < MOST_HELD:
            self.held[place] = text[-1]
            text = text[:-1]
        return text


def repaired(body: bytes) -> bytes:
    """Return a whole answer as JSON that every decoder takes, as `Halves.join` does. Raises: BrokenStream."""
    return _strict(_built(body, "it is not a chat completion"))


def _built(data: bytes, refusal: str) -> Any:
    """Build JSON as other readers do, which take more for JSON than we do."""
    if data.count(b"[") + data.count(b"{") > ODD_NODES or data.count(b",") > ODD_VALUES:
        raise BrokenStream(refusal)
    try:
        return json.loads(data.decode("utf-8", "replace"), parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        raise BrokenStream(refusal) from None


def _strict(value: Any) -> bytes:
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except RecursionError:
        raise BrokenStream("an event is nested too deeply") from None
    return _HALF.sub(REPLACEMENT, text).encode()


def _objects(owner: Any, name: str) -> Iterator[dict[str, Any]]:
    found = owner.get(name) if isinstance(owner, dict) else None
    return (entry for entry in found if isinstance(entry, dict)) if isinstance(found, list) else iter(())


def _strings(choice: dict[str, Any], index: int) -> Iterator[tuple[dict[str, Any], str, Place]]:
    """Find each string that grows: the object that has it, its name there, and its place."""
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return
    for field in _FIELDS:
        if isinstance(delta.get(field), str):
            yield delta, field, Place(index, field)
    calls = [(call.get("index"), at, call.get("function")) for at, call in enumerate(_objects(delta, "tool_calls"))]
    for number, at, function in calls:
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            yield function, "arguments", Place(index, "tool_calls", number if type(number) is int else at)
    function = delta.get("function_call")
    if isinstance(function, dict) and isinstance(function.get("arguments"), str):
        yield function, "arguments", Place(index, "function_call")
