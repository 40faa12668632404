"""Fold the events of one generation into its answer, and check all that the contract promises about them."""

from __future__ import annotations

import hashlib
from typing import Any, NoReturn

from tests.harness.events import Event
from tests.harness.http1 import Headers

TERMINALS = {"done": "complete", "cancelled": "cancelled", "failed": "failed"}


class Answer:
    """Put the events of one generation together, over any number of connections, and check what they promise.

    Someone who begins in the middle gives `after`, and the text up to there as `prefix`; without a prefix characters
    and hash cannot be judged. Every method raises AssertionError that says what differs.
    `unresumable_after` is the number after which nothing may be stored, as this connection has said; None when it has
    not, or no longer. `resumability` has every such event, over all connections, with its number.
    """

    def __init__(self, *, stream_id: str | None = None, after: int = 0, prefix: str | None = None) -> None:
        self.stream_id = stream_id
        self.tokens = after
        self.events: list[Event] = []
        self.terminal: Event | None = None
        self.connections = 0
        self.drops: list[str] = []
        self.status = 0
        self.headers = Headers([])
        self.unresumable_after: int | None = None
        self.resumability: list[tuple[str, int]] = []
        self._begun_at = after
        self._pieces = [prefix] if prefix else []
        self._is_whole = after == 0 or prefix is not None
        self._last_sequence = after if after > 0 else -1
        self._first_of_connection = True

    @property
    def text(self) -> str:
        """Give what has been put together, the prefix included."""
        return "".join(self._pieces)

    @property
    def last_event_id(self) -> str:
        """Tell the cursor: the id of the last event that had one; empty before there is any."""
        for event in reversed(self.events):
            if event.id is not None:
                return event.id
        return f"{self.stream_id}.{self._begun_at}" if self._begun_at and self.stream_id else ""

    @property
    def is_complete(self) -> bool:
        """Tell whether the terminal event is there."""
        return self.terminal is not None

    def begin_connection(self, headers: Headers) -> None:
        """Note that what follows comes over another connection."""
        self.connections += 1
        self._first_of_connection = True
        self.unresumable_after = None
        self.headers = headers
        if named := headers.get("x-stream-id"):
            self._adopt(named)

    def add(self, event: Event) -> None:
        """Take the next event."""
        if self.terminal is not None:
            self._fail(f"{event.event!r} came after the terminal {self.terminal.event!r}")
        self.events.append(event)
        sequence = self._take_id(event)
        match event.event:
            case "start":
                self._take_start(event, sequence)
            case "token":
                self._take_token(event, sequence)
            case "ping":
                self._take_ping(event, sequence)
            case "unresumable" | "resumable":
                self._take_resumability(event)
            case name if name in TERMINALS:
                self._take_terminal(event, sequence)
            case _ if event.id is not None:
                self._fail(f"the event {event.event!r} is not known and moves the cursor to {event.id!r}")
        self._first_of_connection = False

    def verify(self) -> Answer:
        """Check that the stream came to its end."""
        if self.terminal is None:
            self._fail("the stream ended without a terminal event")
        return self

    def _adopt(self, stream_id: str) -> None:
        if self.stream_id is None:
            self.stream_id = stream_id
        self._same("stream id", stream_id, self.stream_id)

    def _take_id(self, event: Event) -> int | None:
        """Check the event's id and give its number."""
        if event.id is None:
            return None
        stream_id, dot, number = event.id.rpartition(".")
        if not dot or not number.isascii() or not number.isdigit():
            self._fail(f"the id {event.id!r} is not <stream_id>.<sequence>")
        self._adopt(stream_id)
        sequence = int(number)
        begins_again = event.event == "start" and self._last_sequence == 0 and self._first_of_connection
        if event.event == "ping":
            return sequence
        if sequence <= self._last_sequence and not begins_again:
            self._fail(f"the id {event.id!r} does not rise: the last one was .{self._last_sequence}")
        self._last_sequence = sequence
        return sequence

    def _take_start(self, event: Event, sequence: int | None) -> None:
        self._same("sequence in the id of start", sequence, 0)
        if not self._first_of_connection:
            self._fail("start is not the first event of its connection")
        self._same("stream_id in start", event.json.get("stream_id"), self.stream_id)

    def _take_token(self, event: Event, sequence: int | None) -> None:
        token = event.json
        count, content = token.get("count"), token.get("content")
        if not isinstance(count, int) or count < 1 or not isinstance(content, str) or not content:
            self._fail(f"a token frame without count or content: {event.data[:300]}")
        self._same("sequence of the id and of the data", sequence, token.get("sequence"))
        self._same("sequence (last one + count)", sequence, self.tokens + count)
        self._same("is_final of a token", token.get("is_final"), False)
        self.tokens += count
        self._pieces.append(content)

    def _take_ping(self, event: Event, sequence: int | None) -> None:
        # The ping that opens a resume has the cursor for its id; no other has one.
        cursor = self._last_sequence if self._first_of_connection else None
        self._same("sequence in the id of a ping", sequence, cursor)
        if (head := event.json.get("tokens", -1)) < self.tokens:
            self._fail(f"a ping says that the log has {head} tokens, and {self.tokens} have come")

    def _take_resumability(self, event: Event) -> None:
        """The two come in turns on each connection, `unresumable` first, and move no cursor."""
        if event.id is not None:
            self._fail(f"{event.event!r} moves the cursor to {event.id!r}")
        if self._first_of_connection:
            self._fail(f"{event.event!r} is the first event of its connection")
        if (event.event == "resumable") == (self.unresumable_after is None):
            self._fail(f"{event.event!r} comes out of turn")
        stored = event.json.get("tokens")
        if type(stored) is not int or stored < 0:
            self._fail(f"{event.event!r} does not say how many tokens are stored: {event.data[:300]}")
        if event.event == "resumable" and stored < self.tokens:
            self._fail(f"'resumable' says that {stored} tokens are stored, and {self.tokens} have come")
        self.unresumable_after = stored if event.event == "unresumable" else None
        self.resumability.append((event.event, stored))

    def _take_terminal(self, event: Event, sequence: int | None) -> None:
        self.terminal = event
        end = event.json
        self._same("status", end.get("status"), TERMINALS[event.event])
        self._same("is_final of the terminal", end.get("is_final"), True)
        self._same("tokens", end.get("tokens"), self.tokens)
        self._same("sequence of the terminal", end.get("sequence"), self.tokens + 1)
        self._same("sequence in the id of the terminal", sequence, self.tokens + 1)
        if self._is_whole:
            text = self.text
            self._same("characters", end.get("characters"), len(text))
            self._same("sha256", end.get("sha256"), hashlib.sha256(text.encode("utf-8", "replace")).hexdigest())

    def _same(self, what: str, got: Any, wanted: Any) -> None:
        if got != wanted or type(got) is not type(wanted):
            self._fail(f"{what}: got {got!r}, wanted {wanted!r}")

    def _fail(self, problem: str) -> NoReturn:
        tail = "\n".join(f"  {event.id} {event.event}: {event.data[:200]}" for event in self.events[-5:])
        raise AssertionError(f"{problem}\n{self.connections} connections; the last events:\n{tail or '  none'}")
