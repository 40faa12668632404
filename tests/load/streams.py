"""Streams as the contract writes them, whole and with the faults that a load suite must notice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

ID = "cw_0123456789abcdefghijkl"
Frame = tuple[str, dict[str, Any]]


def texts(count: int) -> list[str]:
    """Write tokens as the mock upstream does."""
    return [f"t{index}/{1000 + index}.000/0.250 é😀 " for index in range(count)]


def frames(tokens: list[str], *, counts: list[int] | None = None) -> list[Frame]:
    """Write the events of an answer; `counts` says how many tokens go into each frame."""
    out: list[Frame] = [("start", {"stream_id": ID, "sequence": 0})]
    at = 0
    for count in counts or [1] * len(tokens):
        content = "".join(tokens[at : at + count])
        at += count
        out.append(("token", {"sequence": at, "count": count, "content": content, "is_final": False}))
    text = "".join(tokens)
    proof = {"tokens": at, "characters": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    return [*out, ("done", {"sequence": at + 1, "is_final": True, "status": "complete", **proof})]


def ping(cursor: int) -> Frame:
    """Write the event that opens the connection of a reader who comes back with this number."""
    return "ping", {"sequence": cursor, "phase": "generating", "tokens": 10}


def encode(events: list[Frame], stream_id: str = ID) -> list[bytes]:
    """Encode the events of this stream as they go over the wire, one by one."""
    written = (f"event: {kind}\ndata: {json.dumps(data)}\nid: {ID}.{data['sequence']}\n\n" for kind, data in events)
    return [frame.replace(ID, stream_id).encode() for frame in written]


def _change(kind: str, **changes: Any) -> Callable[[list[Frame]], list[Frame]]:
    def changed(events: list[Frame]) -> list[Frame]:
        at = max(index for index, event in enumerate(events) if event[0] == kind)
        return [*events[:at], (kind, events[at][1] | changes), *events[at + 1 :]]

    return changed


def _failed(events: list[Frame]) -> list[Frame]:
    return [*events[:-1], ("failed", events[-1][1] | {"status": "failed", "error": {"error_code": "upstream_error"}})]


FAULTS: dict[str, tuple[str, Callable[[list[Frame]], list[Frame]]]] = {
    "repeats a token": ("a sequence number is missing", lambda events: [*events[:3], events[2], *events[3:]]),
    "skips a token": ("a sequence number is missing", lambda events: [*events[:2], *events[3:]]),
    "swaps two tokens": (
        "a sequence number is missing",
        lambda events: [*events[:2], events[3], events[2], *events[4:]],
    ),
    "lies in the hash": ("the SHA-256 is wrong", _change("done", sha256="0" * 64)),
    "lies in the characters": ("the number of characters is wrong", _change("done", characters=1)),
    "lies in the tokens": ("the number of tokens is wrong", _change("done", tokens=1)),
    "lies in the last sequence": ("the sequence of the terminal event is wrong", _change("done", sequence=99)),
    "changes a text": ("is wrong", _change("token", content="t9/1009.000/0.250 other")),
    "forgets the terminal event": ("without a terminal event", lambda events: events[:-1]),
    "lies in the status": ("the status is wrong", _change("done", status="failed")),
    "goes on after the end": ("something follows", lambda events: [*events, events[-2]]),
    "ends as failed": ("it ended as failed: upstream_error", _failed),
}
"""What each fault makes of a good stream of ten tokens, and what must be said of it."""
