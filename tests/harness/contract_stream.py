"""Hold an event stream to its grammar, frame by frame, from the bytes alone; load.answer judges its arithmetic."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, NoReturn

from load.answer import TERMINALS, Answer, Incomplete
from load.events import Event
from tests.harness.contract import Validator

FRAME = re.compile(
    rb"(?P<retry>retry: 1000\n)?event: (?P<event>[a-z]+)\ndata: (?P<data>[\x20-\x7f]*)\n"
    rb"(?:id: (?P<cursor>[A-Za-z0-9_-]+\.(?:0|[1-9][0-9]*))\n)?"
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
        number = cursor.rpartition(".")[2]
        self._begun_at = int(number) if number.isascii() and number.isdigit() else 0
        self._answer = Answer(stream_id=stream_id, after=self._begun_at)
        self._buffer = bytearray()
        self._scanned = 0
        self._correlation_id = ""

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
        if whole and not self._answer.is_complete and not (handed_over and self.seen):
            _fail(f"ends cleanly without a terminal event after {dict(self.seen)}")

    def _take(self, frame: bytes) -> None:
        found = FRAME.fullmatch(frame)
        if found is None:
            _fail(f"not a frame: {frame[:500]!r}")
        event = found["event"].decode()
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
        opening = "ping" if self._begun_at else "start"
        if not self.seen and event != opening:
            _fail(f"begins with {event}, not {opening}, after the cursor .{self._begun_at}")
        self.seen[event] += 1
        cursor = found["cursor"] and found["cursor"].decode()
        if cursor and len(cursor) > LONGEST_CURSOR:
            _fail(f"the id of {event} is longer than {LONGEST_CURSOR} bytes")
        try:
            self._answer.take(Event(event, "", cursor), data)
        except Incomplete as wrong:
            _fail(f"{event}: {wrong}: {wrong.detail}")
        if event == "start":
            self._correlation_id = data["correlation_id"]
            self._same_for_all("start", found["data"])
        elif event == "token":
            self._judge_token(data, len(found["data"]))
        elif event == "ping":
            if (data["phase"] == "generating") != (data["tokens"] > 0):
                _fail(f"a ping says {data['phase']} with {data['tokens']} tokens")
        elif event in TERMINALS:
            self._judge_terminal(event, data, found["data"])

    def _judge_token(self, token: dict[str, Any], size: int) -> None:
        if size > LONGEST_DATA and token["count"] > 1:
            _fail(f"a frame of {token['count']} chunks has {size} bytes of data")
        try:
            token["content"].encode()
        except UnicodeEncodeError:
            _fail(f"half a surrogate pair in token .{token['sequence']}")

    def _judge_terminal(self, event: str, end: dict[str, Any], raw: bytes) -> None:
        stored = max((number for _, number in self._answer.resumability), default=0)
        if end["tokens"] < stored:
            _fail(f"{event} has tokens {end['tokens']}, and {stored} were said to be stored")
        if self._correlation_id and end["correlation_id"] != self._correlation_id:
            _fail(f"correlation_id in {event} is not that of start")
        if "error" in end and end["error"]["correlation_id"] != end["correlation_id"]:
            _fail("correlation_id in the error is another one")
        if self._answer.unresumable_after is None:  # else it is this connection's own
            self._same_for_all("its terminal event", raw)

    def _same_for_all(self, what: str, raw: bytes) -> None:
        digest = hashlib.sha256(raw).hexdigest()
        if self._fixed.setdefault((self._answer.stream_id, what), digest) != digest:
            _fail(f"another reader of this stream got another {what}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key stands twice")
    return made


_DECODE = json.JSONDecoder(object_pairs_hook=_object).decode  # made once: there are hundreds of thousands of frames


def _fail(problem: str) -> NoReturn:
    raise Broken(problem)
