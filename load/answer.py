"""Read one answer, over any number of connections, and check all that the contract promises about it.

The users of a load, the tests' readers and the judge of every connection of the tests share this one check. It must
never guess, and never know the service's code: whatever is not exactly as promised is Incomplete, with a reason that is
the same for every answer with this fault, so that reasons can be counted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from load.events import Event, EventParser
from load.upstream import STAMP

TERMINALS: Final = {"done": "complete", "cancelled": "cancelled", "failed": "failed"}
"""The events that end a stream, and the status that each must have."""

KNOWN: Final = {"start", "token", "ping", "unresumable", "resumable", *TERMINALS}

COMPLETION: Final = "cwc_"
"""How the id of a stream begins that OpenAI's route began: its records may have no text."""

HOLE: Final = "a sequence number is missing, repeated or out of order"
ID: Final = "the id of a frame is not <stream_id>.<sequence>"


class Incomplete(Exception):
    """The answer is not complete, or not proved to be: a reason, and in `detail` what was found this time."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.detail = detail


class Broken(Incomplete):
    """The connection ended before the answer did."""


class Text:
    """Take the text of one answer as it comes, and prove it by its length, its hash and its stamps.

    It begins behind `tokens` tokens, whose text is `prefix`.
    Units: `delays_ms` and `lates_ms` since the last time that somebody took them.
    """

    def __init__(self, *, stamped: bool = False, tokens: int = 0, prefix: str = "") -> None:
        self.tokens = tokens
        self.pieces = [prefix] if prefix else []
        self.first_sent_ms = 0.0
        self.last_sent_ms = 0.0
        self.delays_ms: list[float] = []
        self.lates_ms: list[float] = []
        self._stamped = stamped

    def add(self, content: str, count: int, received_at: float) -> None:
        """Take the text of so many tokens. Units: `received_at` of CLOCK_MONOTONIC in seconds. Raises: Incomplete."""
        self.pieces.append(content)
        if self._stamped:
            self._take_stamps(content, count, received_at * 1000)
        self.tokens += count

    def prove(self, end: dict[str, Any], *, whole: bool = True) -> None:
        """Compare with what the end of the answer says; of a part only the tokens can be. Raises: Incomplete."""
        _same("the number of tokens is wrong", end.get("tokens"), self.tokens)
        if not whole:
            return
        text = "".join(self.pieces)
        _same("the number of characters is wrong", end.get("characters"), len(text))
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        _same("the SHA-256 is wrong", end.get("sha256"), digest)

    def prove_count(self, wanted: int | None) -> None:
        """Compare with what the model was told to send, where that is known. Raises: Incomplete."""
        if wanted is not None:
            _same("the answer has more or fewer tokens than the model sent", self.tokens, wanted)

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
    """Put the events of one generation together, over any number of connections, and check what they promise.

    Someone who begins in the middle gives `after`, and the text up to there as `prefix`; without a prefix characters
    and hash cannot be judged. `wanted` is how many tokens the model was told to send; None where nobody knows.
    `unresumable_after` is the number after which nothing may be stored, as this connection has said; None when it has
    not, or no longer. `resumability` has every such event, over all connections, with its number.
    """

    def __init__(
        self,
        *,
        stream_id: str | None = None,
        after: int = 0,
        prefix: str | None = None,
        wanted: int | None = None,
        stamped: bool = False,
    ) -> None:
        self.stream_id = stream_id
        self.taken = Text(stamped=stamped, tokens=after, prefix=prefix or "")
        self.terminal: Event | None = None
        self.connections = 0
        self.frames = 0  # of this connection
        self.most_at_once = 0  # tokens in one frame: more than one when the service had to wait for this reader
        self.unresumable_after: int | None = None
        self.resumability: list[tuple[str, int]] = []
        self._wanted = wanted
        self._begun_at = after
        self._is_whole = after == 0 or prefix is not None
        self._last_sequence = after if after > 0 else -1
        self._last_id = ""
        self._parser = EventParser()

    @property
    def is_complete(self) -> bool:
        """Tell whether the terminal event is there."""
        return self.terminal is not None

    @property
    def tokens(self) -> int:
        """Count the tokens, those before the beginning included."""
        return self.taken.tokens

    @property
    def text(self) -> str:
        """Give what has been put together, the prefix included."""
        return "".join(self.taken.pieces)

    @property
    def last_event_id(self) -> str:
        """Tell the cursor: the id of the last event that had one; empty before there is any."""
        return self._last_id or (f"{self.stream_id}.{self._begun_at}" if self._begun_at and self.stream_id else "")

    def begin_connection(self, headers: Mapping[str, str]) -> None:
        """Note that what follows comes over a new connection, whose answer has these headers.

        A frame that the old connection cut never was one. Raises: Incomplete.
        """
        self.connections += 1
        self.frames = 0
        self.unresumable_after = None
        self._parser = EventParser()
        if named := headers.get("X-Stream-Id"):
            self._adopt(named)

    def feed(self, data: bytes, received_at: float) -> None:
        """Take what was read, of an answer that must become complete. Raises: Incomplete."""
        try:
            for event in self._parser.feed(data, received_at):
                self.add(event)
        except ValueError as problem:
            raise Incomplete("a line is too long", str(problem)) from None
        if self.terminal is None:
            return
        if self._parser.is_within_event:
            raise Incomplete("something follows the terminal event")
        if self.terminal.event != "done":
            end = json.loads(self.terminal.data)
            code = end.get("error", {}).get("error_code", end.get("reason"))
            raise Incomplete(f"it ended as {self.terminal.event}: {code}")
        self.taken.prove_count(self._wanted)

    def add(self, event: Event) -> None:
        """Take the next event. Raises: Incomplete."""
        try:
            data = json.loads(event.data) if event.event in KNOWN else {}
        except ValueError:
            data = None
        if not isinstance(data, dict):
            raise Incomplete("the data of an event is not a JSON object", event.data[:300])
        self.take(event, data)

    def take(self, event: Event, data: dict[str, Any]) -> None:
        """Take the next event, whose data are parsed already. Raises: Incomplete."""
        if self.terminal is not None:
            raise Incomplete("something follows the terminal event", f"{event.event} after {self.terminal.event}")
        sequence = None if event.id is None else self._take_id(event.event, event.id)
        match event.event:
            case "start":
                self._take_start(data, sequence)
            case "token":
                self._take_token(data, sequence, event.received_at)
            case "ping":
                self._take_ping(data, sequence)
            case "unresumable" | "resumable":
                self._take_resumability(event.event, data, sequence)
            case "done" | "cancelled" | "failed":
                self._take_terminal(event, data, sequence)
            case _ if sequence is not None:  # what later versions may add has none
                raise Incomplete("an event that is not known has an id", f"{event.event} {event.id}")
        self.frames += 1
        self._last_id = event.id or self._last_id

    def end_connection(self) -> None:
        """Note that the connection has ended by itself. Raises: Broken."""
        if not self.is_complete:
            raise Broken("the connection ended without a terminal event")

    def _adopt(self, stream_id: str) -> None:
        if self.stream_id is None:
            self.stream_id = stream_id
        _same("the stream has another id than before", stream_id, self.stream_id)

    def _take_id(self, kind: str, event_id: str) -> int:
        """Check an id and give its number."""
        stream_id, dot, number = event_id.rpartition(".")
        if not dot or not number.isascii() or not number.isdigit():
            raise Incomplete(ID, repr(event_id))
        self._adopt(stream_id)
        sequence = int(number)
        if kind in ("ping", "unresumable", "resumable"):
            return sequence
        begins_again = kind == "start" and self._last_sequence == 0 and not self.frames
        if sequence <= self._last_sequence and not begins_again:
            raise Incomplete(HOLE, f"{kind} .{sequence} does not rise: the last one was .{self._last_sequence}")
        self._last_sequence = sequence
        return sequence

    def _take_start(self, start: dict[str, Any], sequence: int | None) -> None:
        _same(ID, sequence, 0)
        if self.frames:
            raise Incomplete("start is not the first event of its connection")
        _same("the stream has another id than before", start.get("stream_id"), self.stream_id)

    def _take_token(self, token: dict[str, Any], sequence: int | None, received_at: float) -> None:
        count, content = token.get("count"), token.get("content")
        may_be_empty = (self.stream_id or "").startswith(COMPLETION)
        if not isinstance(count, int) or count < 1 or not isinstance(content, str) or not (content or may_be_empty):
            raise Incomplete("a token has no count or no content", f"{count!r}, {content!r}")
        _same(ID, sequence, token.get("sequence"))
        if sequence != self.tokens + count:
            raise Incomplete(HOLE, f"after .{self.tokens} comes .{sequence} with a count of {count}")
        _same("a token is final", token.get("is_final"), False)
        self.most_at_once = max(self.most_at_once, count)
        self.taken.add(content, count, received_at)

    def _take_ping(self, ping: dict[str, Any], sequence: int | None) -> None:
        # The ping that opens a resume has the cursor for its id; no other has one.
        _same("the id of a ping is wrong", sequence, None if self.frames else self._last_sequence)
        if (head := ping.get("tokens", -1)) < self.tokens:
            raise Incomplete("a ping says fewer tokens than have come", f"{head}, after .{self.tokens}")

    def _take_resumability(self, kind: str, data: dict[str, Any], sequence: int | None) -> None:
        """The two come in turns on each connection, `unresumable` first, and move no cursor."""
        _same(f"{kind} has an id", sequence, None)
        if not self.frames:
            raise Incomplete(f"{kind} is the first event of its connection")
        if (kind == "resumable") == (self.unresumable_after is None):
            raise Incomplete(f"{kind} comes out of turn")
        stored = data.get("tokens")
        if type(stored) is not int or stored < 0:
            raise Incomplete(f"{kind} does not say how many tokens are stored", repr(stored))
        if kind == "resumable" and stored < self.tokens:
            raise Incomplete("resumable says fewer tokens than have come", f"{stored}, after .{self.tokens}")
        self.unresumable_after = stored if kind == "unresumable" else None
        self.resumability.append((kind, stored))

    def _take_terminal(self, event: Event, end: dict[str, Any], sequence: int | None) -> None:
        _same("the status is wrong", end.get("status"), TERMINALS[event.event])
        _same("the terminal event is not final", end.get("is_final"), True)
        self.taken.prove(end, whole=self._is_whole)
        _same("the sequence of the terminal event is wrong", end.get("sequence"), self.tokens + 1)
        _same(ID, sequence, end.get("sequence"))
        self.terminal = event


def _same(reason: str, got: object, wanted: object) -> None:
    if got != wanted or type(got) is not type(wanted):
        raise Incomplete(reason, f"got {got!r}, wanted {wanted!r}")
