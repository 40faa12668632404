"""Parse Server-Sent Events as the WHATWG says."""

from __future__ import annotations

import json as jsons
from dataclasses import dataclass
from typing import Any

BOM = b"\xef\xbb\xbf"
MAX_LINE_BYTES = 64 << 20


@dataclass(frozen=True)
class Event:
    """Hold one dispatched event.

    `id` and `retry` are what its own lines said, or None; `last_event_id` is what a browser's MessageEvent would have.
    Units: `retry` in milliseconds, `received_at` of `time.monotonic()`.
    """

    event: str
    data: str
    id: str | None = None
    retry: int | None = None
    last_event_id: str = ""
    received_at: float = 0.0

    @property
    def json(self) -> Any:
        """Parse the data. Raises: AssertionError when it is not JSON."""
        try:
            return jsons.loads(self.data)
        except ValueError:
            raise AssertionError(f"the data of {self.event!r} is not JSON: {self.data[:500]!r}") from None


class EventParser:
    """Turn bytes, cut anywhere, into events.

    Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
    """

    def __init__(self, last_event_id: str = "") -> None:
        self.last_event_id = last_event_id
        self.retry_ms: int | None = None
        self._line = bytearray()
        self._at_start = True
        self._skip_lf = False
        self._id_buffer = last_event_id
        self._received_at = 0.0
        self._clear()

    @property
    def is_within_event(self) -> bool:
        """Tell whether something came that no event has taken yet."""
        return bool(self._line or self._data or self._event or self._own_id or self._own_retry)

    def feed(self, data: bytes, received_at: float = 0.0) -> list[Event]:
        """Take the next bytes and give the events that they complete. Raises: ValueError, for an endless line."""
        self._received_at = received_at
        events = []
        # Only CR, LF and CRLF end lines; bytes.splitlines() knows exactly these, str.splitlines() many more.
        for piece in data.splitlines(keepends=True):
            if self._skip_lf:
                self._skip_lf = False
                if piece == b"\n":
                    continue
            text = piece.rstrip(b"\r\n")
            if len(self._line) + len(text) > MAX_LINE_BYTES:
                raise ValueError(f"a line has more than {MAX_LINE_BYTES} bytes")
            if len(text) == len(piece):
                self._line += text
                break  # only the last piece has no end
            if self._line:
                text = bytes(self._line + text)
                self._line.clear()
            # After a CR the line is complete at once: whoever waits for a possible LF is one event late.
            self._skip_lf = piece.endswith(b"\r")
            if (event := self._end_line(text)) is not None:
                events.append(event)
        return events

    def _clear(self) -> None:
        self._data: list[str] = []
        self._event = ""
        self._own_id: str | None = None
        self._own_retry: int | None = None

    def _end_line(self, raw: bytes) -> Event | None:
        # A line is decoded as a whole, so a character that was cut by a packet is none of our business.
        if self._at_start:
            self._at_start = False
            raw = raw.removeprefix(BOM)
        if not raw:
            return self._dispatch()
        name, _, value = raw.decode("utf-8", "replace").partition(":")
        self._take_field(name, value.removeprefix(" "))
        return None

    def _take_field(self, name: str, value: str) -> None:
        match name:
            case "data":
                self._data.append(value)
            case "event":
                self._event = value
            case "id" if "\0" not in value:
                self._id_buffer = self._own_id = value
            case "retry" if value.isascii() and value.isdigit():
                self.retry_ms = self._own_retry = int(value)

    def _dispatch(self) -> Event | None:
        # The id counts from here on, also when there is no data and so no event. Before the blank line it never does:
        # a frame that was cut after its id line must come again.
        self.last_event_id = self._id_buffer
        event = Event(
            event=self._event or "message",
            data="\n".join(self._data),
            id=self._own_id,
            retry=self._own_retry,
            last_event_id=self.last_event_id,
            received_at=self._received_at,
        )
        # The specification's buffer gets a LF for each line and loses the last one: one empty line leaves it empty
        # after the test for emptiness, so `data` alone dispatches an event with empty data.
        dispatched = bool(self._data)
        self._clear()
        return event if dispatched else None
