"""Read one answer, over any number of connections, and check all that the contract promises about it.

Must never guess: whatever is not exactly as promised is Incomplete, with a reason that is the same for every answer
with this fault, so that reasons can be counted.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from load.upstream import STAMP

TERMINALS = (b"done", b"cancelled", b"failed")


class Incomplete(Exception):
    """The answer is not complete, or not proved to be."""


class Broken(Incomplete):
    """The connection ended before the answer did."""


class Text:
    """Take the text of one answer as it comes, and prove it by its length, its hash and its stamps.

    Units: `delays_ms` and `lates_ms` since the last time that somebody took them.
    """

    def __init__(self, *, stamped: bool) -> None:
        self.tokens = 0
        self.first_sent_ms = 0.0
        self.last_sent_ms = 0.0
        self.delays_ms: list[float] = []
        self.lates_ms: list[float] = []
        self._stamped = stamped
        self._characters = 0
        self._hash = hashlib.sha256()

    def add(self, content: str, count: int, received_at: float) -> None:
        """Take the text of so many tokens. Units: `received_at` of CLOCK_MONOTONIC in seconds."""
        self._characters += len(content)
        self._hash.update(content.encode("utf-8", "surrogatepass"))
        if self._stamped:
            self._take_stamps(content, count, received_at * 1000)
        self.tokens += count

    def prove(self, end: dict[str, Any], wanted: int | None) -> None:
        """Compare with what the end of the answer says. Raises: Incomplete."""
        _same("the number of tokens is wrong", end.get("tokens"), self.tokens)
        _same("the number of characters is wrong", end.get("characters"), self._characters)
        _same("the SHA-256 is wrong", end.get("sha256"), self._hash.hexdigest())
        if wanted is not None and self.tokens != wanted:
            raise Incomplete("the answer has more or fewer tokens than the model sent")

    def _take_stamps(self, content: str, count: int, received_ms: float) -> None:
        stamps = STAMP.findall(content)
        if [int(number) for number, _, _ in stamps] != list(range(self.tokens, self.tokens + count)):
            raise Incomplete("a token of the model is missing, repeated or out of order")
        for _, sent, late in stamps:
            self.last_sent_ms = float(sent)
            self.first_sent_ms = self.first_sent_ms or self.last_sent_ms
            self.delays_ms.append(received_ms - self.last_sent_ms)
            self.lates_ms.append(float(late))


class Answer:
    """Put the frames of one stream together and check them.

    `wanted` is how many tokens the model was told to send; None where nobody knows.
    """

    def __init__(self, *, wanted: int | None, stamped: bool) -> None:
        self.text = Text(stamped=stamped)
        self.stream_id = ""
        self.cursor = ""
        self.frames = 0  # of this connection
        self.most_at_once = 0  # tokens in one frame: more than one when the service had to wait for this reader
        self.ended = False
        self._wanted = wanted
        self._rest = b""

    def begin_connection(self, stream_id: str) -> None:
        """Note that what follows comes over a new connection; a frame that the old one cut never was one."""
        self.stream_id = self.stream_id or stream_id
        _same("the stream has another id than before", stream_id, self.stream_id)
        self.frames = 0
        self._rest = b""

    def feed(self, data: bytes, received_at: float) -> None:
        """Take what was read. Raises: Incomplete."""
        *frames, self._rest = (self._rest + data).split(b"\n\n")
        for frame in frames:
            self._take(frame, received_at)
        if self.ended and self._rest:
            raise Incomplete("something follows the terminal event")

    def end_connection(self) -> None:
        """Note that the connection has ended by itself. Raises: Broken."""
        if not self.ended:
            raise Broken("the connection ended without a terminal event")

    def _take(self, frame: bytes, received_at: float) -> None:
        if self.ended:
            raise Incomplete("something follows the terminal event")
        fields = dict(line.split(b": ", 1) for line in frame.split(b"\n") if b": " in line)
        kind = fields.get(b"event", b"")
        self.frames += 1
        if kind not in (b"token", *TERMINALS):
            return  # start, ping, and what later versions may add
        try:
            data = json.loads(fields[b"data"])
            event_id = fields[b"id"].decode("ascii")
        except (KeyError, ValueError):
            raise Incomplete("a frame has no id, or data that is not JSON") from None
        if event_id != f"{self.stream_id}.{data.get('sequence')}":
            raise Incomplete("the id of a frame is not <stream_id>.<sequence>")
        if kind == b"token":
            self._take_token(data, received_at)
        else:
            self._take_terminal(kind.decode(), data)
        self.cursor = event_id

    def _take_token(self, token: dict[str, Any], received_at: float) -> None:
        count, content = token.get("count"), token.get("content")
        if not isinstance(count, int) or not isinstance(content, str):
            raise Incomplete("a token has no count or no content")
        _same("a sequence number is missing, repeated or out of order", token.get("sequence"), self.text.tokens + count)
        self.most_at_once = max(self.most_at_once, count)
        self.text.add(content, count, received_at)

    def _take_terminal(self, kind: str, end: dict[str, Any]) -> None:
        if kind != "done":
            code = end.get("error", {}).get("error_code", end.get("reason"))
            raise Incomplete(f"it ended as {kind}: {code}")
        _same("the sequence of the terminal event is wrong", end.get("sequence"), self.text.tokens + 1)
        self.text.prove(end, self._wanted)
        self.ended = True


def _same(reason: str, got: object, wanted: object) -> None:
    if got != wanted:
        raise Incomplete(reason)
