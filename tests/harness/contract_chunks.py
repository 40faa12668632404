"""Hold a stream of OpenAI's chat completions to its grammar, line by line, from the bytes alone."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from typing import Any, NoReturn

from tests.harness.contract import Contract
from tests.harness.contract_stream import Broken

CHUNK = re.compile(rb"data: (\{[\x20-\x7f]*\})\nid: ([A-Za-z0-9_-]+)\.([1-9][0-9]*)")
NOT_NUMBERED = re.compile(rb"data: (\{[\x20-\x7f]*\})")
END = re.compile(
    rb"data: \[DONE\]\nid: ([A-Za-z0-9_-]+)\.([1-9][0-9]*)\n"
    rb": records=(0|[1-9][0-9]*) sha256=([0-9a-f]{64})"
)
KEEPALIVE = b": keepalive"
UNRESUMABLE = b": unresumable"
RESUMABLE = b": resumable"


class ChunkCheck:
    """Judge the frames of one answer, which begins behind a record. Every method raises Broken.

    `fixed` is what every reader of a stream gets alike, over all answers.
    """

    def __init__(self, contract: Contract, fixed: dict[tuple[str, str], str], stream_id: str, after: int) -> None:
        self.seen: Counter[str] = Counter()
        self._contract = contract
        self._fixed = fixed
        self._stream_id = stream_id
        self._is_whole = after == 0
        self._last = after
        self._hash = hashlib.sha256()
        self._buffer = bytearray()
        self._lines: list[bytes] = []
        self._is_unresumable = False
        self._has_failed = False
        self._has_finished = False
        self._has_ended = False

    def feed(self, piece: bytes) -> None:
        """Take the next bytes, and judge the lines and frames that they complete."""
        self._buffer += piece
        *lines, rest = bytes(self._buffer).split(b"\n")
        self._buffer = bytearray(rest)
        for line in lines:
            self._take_line(line)

    def end(self, *, whole: bool, handed_over: bool = False) -> None:
        """Judge the end: a stream that was not cut ends with [DONE], also where its process is replaced."""
        if whole and (self._buffer or self._lines):
            _fail(f"ends in the middle of a frame: {b' '.join(self._lines)[-200:]!r} {bytes(self._buffer[-200:])!r}")
        if whole and not self._has_ended:
            _fail(f"ends cleanly without [DONE] after {dict(self.seen)}")

    def _take_line(self, line: bytes) -> None:
        if not self._lines and self._has_ended:
            _fail(f"something follows [DONE]: {line[:200]!r}")
        if not self._lines and line.startswith(b":"):
            self._take_comment(line)
        elif line:
            self._lines.append(line)
        elif self._lines:
            frame = b"\n".join(self._lines)
            self._lines.clear()
            self._take_frame(frame)
        else:
            _fail("a blank line without a frame")

    def _take_comment(self, line: bytes) -> None:
        if line not in (KEEPALIVE, UNRESUMABLE, RESUMABLE):
            _fail(f"the contract has no comment {line[:200]!r}")
        if not self.seen and line != KEEPALIVE:
            _fail(f"begins with {line!r}, not {KEEPALIVE!r}")
        if line != KEEPALIVE:
            if self._is_unresumable == (line == UNRESUMABLE):
                _fail(f"{line!r} comes out of turn")
            self._is_unresumable = line == UNRESUMABLE
        self.seen[line.decode().removeprefix(": ")] += 1

    def _take_frame(self, frame: bytes) -> None:
        if not self.seen:
            _fail(f"begins with a frame, not {KEEPALIVE!r}: {frame[:200]!r}")
        if found := END.fullmatch(frame):
            self._take_end(found[1].decode(), int(found[2]), int(found[3]), found[4].decode())
        elif self._has_failed or self._has_finished:
            _fail(f"something other than [DONE] follows the last record: {frame[:200]!r}")
        elif found := CHUNK.fullmatch(frame):
            self._take_chunk(found[1], found[2].decode(), int(found[3]))
        elif found := NOT_NUMBERED.fullmatch(frame):
            self._take_last_words(found[1])
        else:
            _fail(f"not a frame: {frame[:500]!r}")

    def _take_chunk(self, data: bytes, stream_id: str, sequence: int) -> None:
        self._judge_place("a chunk", stream_id, sequence)
        self._judge_chunk(data)
        self._last = sequence
        self._hash.update(data + b"\n")
        self.seen["chunk"] += 1

    def _judge_chunk(self, data: bytes) -> None:
        chunk = _read(data)
        self._validate(self._contract.chunk, chunk, "a chunk")
        if chunk["id"] != f"chatcmpl-{self._stream_id}":
            _fail(f"the id of a chunk is not that of the stream: {chunk['id']!r}")
        if "error" in chunk:
            _fail(f"a record has a member `error`: {data[:300]!r}")
        if chunk.get("created"):  # Azure's first chunk has 0
            self._same_for_all("time of creation", str(chunk["created"]))

    def _take_last_words(self, data: bytes) -> None:
        """Take a frame without an id: an error, or the last chunk of a log that has none because it holds text."""
        content = _read(data)
        if "error" in content:
            self._validate(self._contract.openai_error, content, "an error")
            self._has_failed = True
            self.seen["error"] += 1
            return
        if self._stream_id.startswith("cwc_"):
            _fail(f"a chunk has no id: {data[:300]!r}")
        self._judge_chunk(data)
        self._has_finished = True
        self.seen["chunk"] += 1

    def _take_end(self, stream_id: str, sequence: int, records: int, digest: str) -> None:
        self._judge_place("[DONE]", stream_id, sequence)
        if records != sequence - 1:
            _fail(f"[DONE] says {records} records, and its number is {sequence}")
        if self._is_whole and digest != self._hash.hexdigest():
            _fail("sha256 is not that of the records")
        if not self._is_unresumable:  # else the end is this connection's own
            self._same_for_all("end", f"{records} {digest}")
        self._has_ended = True
        self.seen["[DONE]"] += 1

    def _judge_place(self, what: str, stream_id: str, sequence: int) -> None:
        if stream_id != self._stream_id:
            _fail(f"the id of {what} is of another stream")
        if sequence != self._last + 1:
            _fail(f"{what} has the number {sequence} behind {self._last}")

    def _validate(self, validator: Any, value: Any, what: str) -> None:
        if not validator.is_valid(value):
            reasons = [error.message[:300] for error in list(validator.iter_errors(value))[:3]]
            _fail(f"{what} is not of its schema: {reasons}: {str(value)[:500]}")

    def _same_for_all(self, what: str, value: str) -> None:
        if self._fixed.setdefault((self._stream_id, what), value) != value:
            _fail(f"another reader of this stream got another {what}")


def _read(data: bytes) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(data)
    except ValueError as problem:
        _fail(f"the data is not JSON ({problem}): {data[:500]!r}")
    return content


def _fail(problem: str) -> NoReturn:
    raise Broken(problem)
