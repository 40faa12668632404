"""Read one stream of OpenAI's chat completions, over any number of connections, and check what the contract promises.

It is to chunks what `load.answer` is to events: it never guesses, and knows nothing of the service's code. It reads no
more of SSE than a client of OpenAI's: lines, ids and comments.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from load.answer import HOLE, ID, Broken, Incomplete, Text

__all__ = ["Completion", "whole_text"]

_PROOF = re.compile(rb": records=([0-9]+) sha256=([0-9a-f]{64})")
_COMMENTS = (b": keepalive", b": unresumable", b": resumable")


class Completion:
    """Put the chunks of one generation together. `wanted` is how many tokens the model was told to send; None where
    nobody knows. `tokens` counts chunks with content, and `records` all."""

    most_at_once = 1  # a chunk is never merged with another

    def __init__(self, *, wanted: int | None = None, stamped: bool = False) -> None:
        self.stream_id: str | None = None
        self.taken = Text(stamped=stamped)
        self.is_complete = False
        self.frames = 0  # of this connection
        self.records = 0
        self._wanted = wanted
        self._hash = hashlib.sha256()
        self._rest = b""
        self._error = ""
        self._finished = False

    @property
    def tokens(self) -> int:
        return self.taken.tokens

    @property
    def last_event_id(self) -> str:
        """Tell the cursor: empty before there is any."""
        return f"{self.stream_id}.{self.records}" if self.records else ""

    def begin_connection(self, headers: Mapping[str, str]) -> None:
        """Note that what follows comes over a new connection. A frame that was cut was none. Raises: Incomplete."""
        self.frames = 0
        self._rest = b""
        named = headers.get("X-Stream-Id")
        if self.stream_id not in (None, named):
            raise Incomplete("the stream has another id than before")
        self.stream_id = named

    def feed(self, data: bytes, received_at: float) -> None:
        """Take what was read, of an answer that must become complete. Raises: Incomplete."""
        *frames, self._rest = (self._rest + data).split(b"\n\n")
        for frame in frames:
            self._take(frame, received_at)
        if self.is_complete and self._rest:
            raise Incomplete("something follows [DONE]")

    def end_connection(self) -> None:
        """Note that the connection has ended by itself. Raises: Broken."""
        if not self.is_complete:
            raise Broken("the connection ended without [DONE]")

    def _take(self, frame: bytes, received_at: float) -> None:
        if self.is_complete:
            raise Incomplete("something follows [DONE]")
        lines = frame.split(b"\n")
        while lines and lines[0] in _COMMENTS:
            del lines[0]
        if not lines or not lines[0].startswith(b"data: "):
            raise Incomplete("a frame has no data", repr(frame[:300]))
        told = lines.pop(0)[6:]
        self.frames += 1
        if told == b"[DONE]":
            self._end(lines)
        elif len(lines) == 1:
            self._record(told, lines[0], received_at)
        elif lines or not told.startswith(b'{"error":'):
            raise Incomplete(ID, repr(frame[:300]))
        else:
            self._error = str(_json(told)["error"].get("error_code"))

    def _record(self, told: bytes, line: bytes, received_at: float) -> None:
        self.records += 1
        if line != f"id: {self.stream_id}.{self.records}".encode():
            raise Incomplete(HOLE, f"{line!r} where .{self.records} was due")
        self._hash.update(told + b"\n")
        chunk = _json(told)
        if chunk.get("id") != f"chatcmpl-{self.stream_id}":
            raise Incomplete("a chunk has another id than its stream")
        for choice in chunk.get("choices", []):
            self._finished = self._finished or bool(choice.get("finish_reason"))
            if content := choice.get("delta", {}).get("content"):
                self.taken.add(content, 1, received_at)

    def _end(self, lines: list[bytes]) -> None:
        proof = _PROOF.fullmatch(lines[1]) if len(lines) == 2 else None
        if proof is None or lines[0] != f"id: {self.stream_id}.{self.records + 1}".encode():
            raise Incomplete("[DONE] has no proof, or another number than it must have", repr(lines))
        if int(proof[1]) != self.records:
            raise Incomplete("the number of records is wrong", f"{proof[1]!r}, after {self.records}")
        if proof[2] != self._hash.hexdigest().encode():
            raise Incomplete("the SHA-256 is wrong")
        if self._error:
            raise Incomplete(f"it ended with an error: {self._error}")
        if not self._finished:
            raise Incomplete("no chunk says why the answer has finished")
        self.taken.prove_count(self._wanted)
        self.is_complete = True


def whole_text(body: bytes) -> tuple[str, dict[str, Any]]:
    """Read the text and the usage of an answer that was not streamed. Raises: Incomplete."""
    try:
        told = _json(body)
        return str(told["choices"][0]["message"]["content"]), dict(told["usage"])
    except (KeyError, IndexError, TypeError):
        raise Incomplete("the answer is not the JSON that was promised") from None


def _json(told: bytes) -> dict[str, Any]:
    try:
        found = json.loads(told)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Incomplete("the data of a frame is not a JSON object", repr(told[:300]))
    return found
