"""Hold an event stream to its grammar and its arithmetic, frame by frame, from the bytes alone."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, NoReturn

from tests.harness.contract import Validator

FRAME = re.compile(
    rb"(?P<retry>retry: 1000\n)?event: (?P<event>[a-z]+)\ndata: (?P<data>[\x20-\x7e]*)\n"
    rb"(?:id: (?P<stream>[A-Za-z0-9_-]+)\.(?P<number>0|[1-9][0-9]*)\n)?"
)
TOTALS = (
    "sequence is_final status finish_reason model tokens usage first_token_ms duration_ms characters sha256 "
    "correlation_id"
)
KEYS = {
    "start": ["stream_id", "correlation_id", "model", "created", "heartbeat_seconds"],
    "token": ["sequence", "count", "content", "is_final"],
    "ping": ["phase", "tokens"],
    "unresumable": ["tokens"],
    "resumable": ["tokens"],
    "done": TOTALS.split(),
    "cancelled": [*TOTALS.split(), "reason"],
    "failed": [*TOTALS.split(), "error"],
}
"""The order of the keys, as contracts/events.md has it."""
RESUMABILITY = ("unresumable", "resumable")
"""They come in turns, this one first."""
LONGEST_DATA = 8192
LONGEST_CURSOR = 128


class Broken(Exception):
    """State what of the contract an answer breaks."""


class FrameCheck:
    """Judge the frames of one answer, which begins after a cursor. Every method raises Broken.

    `events` has a validator for each event's data.
    """

    def __init__(
        self, events: Mapping[str, Validator], fixed: dict[tuple[str, str], str], stream_id: str, cursor: str
    ) -> None:
        self.seen: Counter[str] = Counter()
        self._validators = events
        self._fixed = fixed  # what every reader of a stream gets alike, over all answers
        self._stream_id = stream_id
        number = cursor.rpartition(".")[2]
        self._begun_at = self._sequence = int(number) if number.isascii() and number.isdigit() else 0
        self._text: list[str] = []
        self._buffer = bytearray()
        self._scanned = 0
        self._terminal = ""
        self._correlation_id = ""
        self._is_unresumable = False
        self._stored = 0  # the most that the stream has said to be stored

    def feed(self, piece: bytes) -> None:
        """Take the next bytes, and judge the frames that they complete."""
        self._buffer += piece
        while (at := self._buffer.find(b"\n\n", self._scanned)) >= 0:
            frame = bytes(self._buffer[: at + 1])
            del self._buffer[: at + 2]
            self._scanned = 0
            self._take(frame)
        self._scanned = max(0, len(self._buffer) - 1)

    def end(self, *, whole: bool, handed_over: bool = False) -> None:
        """Judge the end: of a stream that was not cut it is the terminal event's; of one that its process may have
        `handed_over` to others it is a frame's."""
        if whole and self._buffer:
            _fail(f"ends in the middle of a frame: {bytes(self._buffer[-200:])!r}")
        if whole and not self._terminal and not (handed_over and self.seen):
            _fail(f"ends cleanly without a terminal event after {dict(self.seen)}")

    def _take(self, frame: bytes) -> None:
        found = FRAME.fullmatch(frame)
        if found is None:
            _fail(f"not a frame: {frame[:500]!r}")
        event = found["event"].decode()
        if self._terminal:
            _fail(f"{event} comes after {self._terminal}")
        if event not in KEYS:
            _fail(f"the contract has no event {event!r}")
        try:
            data = _DECODE(found["data"].decode("ascii"))
        except ValueError as problem:
            _fail(f"the data of {event} is not JSON ({problem}): {found['data'][:500]!r}")
        validator = self._validators[event]
        if not validator.is_valid(data):
            reasons = [error.message[:300] for error in list(validator.iter_errors(data))[:3]]
            _fail(f"the data of {event} is not of its schema: {reasons}: {found['data'][:500]!r}")
        if list(data) != KEYS[event]:
            _fail(f"the keys of {event} are in another order: {list(data)}")
        if (found["retry"] is not None) != (event == "start"):
            _fail(f"retry belongs to start, and to no other event; here {event}")
        first = not self.seen
        self.seen[event] += 1
        self._take_id(event, data, first, found)
        opening = "ping" if self._begun_at else "start"
        if first and event != opening:
            _fail(f"begins with {event}, not {opening}, after the cursor .{self._begun_at}")
        if event == "start":
            self._take_start(data, first, found["data"])
        elif event == "token":
            self._take_token(data, len(found["data"]))
        elif event == "ping":
            self._take_ping(data)
        elif event in RESUMABILITY:
            self._take_resumability(event, data["tokens"])
        else:
            self._take_terminal(event, data, found["data"])

    def _take_id(self, event: str, data: dict[str, Any], first: bool, found: re.Match[bytes]) -> None:
        if event in RESUMABILITY or (event == "ping" and not first):
            if found["stream"] is not None:
                _fail("a heartbeat's ping has an id" if event == "ping" else f"{event} has an id")
            return
        if found["stream"] is None:
            _fail(f"{event} has no id")
        if found["stream"].decode() != self._stream_id:
            _fail(f"the id of {event} is of another stream than X-Stream-Id")
        if len(found["stream"]) + 1 + len(found["number"]) > LONGEST_CURSOR:
            _fail(f"the id of {event} is longer than {LONGEST_CURSOR} bytes")
        # The ping that opens a resume gives the reader's own cursor back.
        wanted = {"start": 0, "ping": self._begun_at}.get(event, data.get("sequence"))
        if int(found["number"]) != wanted:
            _fail(f"the id of {event} ends in .{found['number'].decode()}, not .{wanted}")

    def _take_start(self, start: dict[str, Any], first: bool, raw: bytes) -> None:
        if not first:
            _fail("start is not the first event")
        if start["stream_id"] != self._stream_id:
            _fail("stream_id in start is not X-Stream-Id")
        self._correlation_id = start["correlation_id"]
        self._same_for_all("start", raw)

    def _take_token(self, token: dict[str, Any], size: int) -> None:
        if token["sequence"] != self._sequence + token["count"]:
            _fail(f"after .{self._sequence} comes .{token['sequence']} with a count of {token['count']}")
        if size > LONGEST_DATA and token["count"] > 1:
            _fail(f"a frame of {token['count']} chunks has {size} bytes of data")
        try:
            token["content"].encode()
        except UnicodeEncodeError:
            _fail(f"half a surrogate pair in token .{token['sequence']}")
        self._sequence = token["sequence"]
        self._text.append(token["content"])

    def _take_ping(self, ping: dict[str, Any]) -> None:
        if ping["tokens"] < self._sequence:
            _fail(f"a ping says {ping['tokens']} tokens, after .{self._sequence}")
        if (ping["phase"] == "generating") != (ping["tokens"] > 0):
            _fail(f"a ping says {ping['phase']} with {ping['tokens']} tokens")

    def _take_resumability(self, event: str, stored: int) -> None:
        if (event == "unresumable") == self._is_unresumable:
            _fail(f"{event} comes twice" if self.seen[event] > 1 else f"{event} comes without unresumable before it")
        if event == "resumable" and stored < self._sequence:
            _fail(f"resumable says that {stored} tokens are stored, after .{self._sequence}")
        self._is_unresumable = event == "unresumable"
        self._stored = max(self._stored, stored)

    def _take_terminal(self, event: str, end: dict[str, Any], raw: bytes) -> None:
        self._terminal = event
        if end["tokens"] != self._sequence or end["sequence"] != self._sequence + 1:
            _fail(f"{event} has tokens {end['tokens']} and sequence {end['sequence']}, after .{self._sequence}")
        if end["tokens"] < self._stored:
            _fail(f"{event} has tokens {end['tokens']}, and {self._stored} were said to be stored")
        if self._correlation_id and end["correlation_id"] != self._correlation_id:
            _fail(f"correlation_id in {event} is not that of start")
        if "error" in end and end["error"]["correlation_id"] != end["correlation_id"]:
            _fail("correlation_id in the error is another one")
        if self._begun_at == 0:
            text = "".join(self._text)
            if end["characters"] != len(text):
                _fail(f"characters is {end['characters']}, and {len(text)} have come")
            if end["sha256"] != hashlib.sha256(text.encode()).hexdigest():
                _fail("sha256 is not that of the text")
        if not self._is_unresumable:  # else it is this connection's own
            self._same_for_all("its terminal event", raw)

    def _same_for_all(self, what: str, raw: bytes) -> None:
        digest = hashlib.sha256(raw).hexdigest()
        if self._fixed.setdefault((self._stream_id, what), digest) != digest:
            _fail(f"another reader of this stream got another {what}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key stands twice")
    return made


_DECODE = json.JSONDecoder(object_pairs_hook=_object).decode  # made once: there are hundreds of thousands of frames


def _fail(problem: str) -> NoReturn:
    raise Broken(problem)
