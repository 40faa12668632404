"""Play one script to one request of the scripted upstream."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from tests.harness import leaks
from tests.harness.ledger import RequestRecord
from tests.harness.net import flush, now
from tests.harness.script import (
    CREATED,
    Close,
    Delta,
    Done,
    EndBody,
    Event,
    Finish,
    Gate,
    Paced,
    Pause,
    Raw,
    Reset,
    Script,
    Stall,
    Step,
    Token,
    TruncatedChunk,
    Usage,
    encode_json,
    encode_text,
)


class GateState:
    """Count who came to a gate, and hold them there."""

    def __init__(self) -> None:
        self.reached = 0
        self.opened = asyncio.Event()


class Gates:
    """Keep the gates of one upstream by name. Only its loop's thread may open one or wait there."""

    def __init__(self) -> None:
        self._states: dict[str, GateState] = {}

    def at(self, name: str) -> GateState:
        """Give the gate of this name, a closed one if nobody has named it before."""
        return self._states.setdefault(name, GateState())

    def reached(self, name: str) -> int:
        """Count who came there; from any thread."""
        state = self._states.get(name)
        return state.reached if state else 0


class Exchange:
    """Play one script to one request."""

    def __init__(
        self,
        record: RequestRecord,
        writer: asyncio.StreamWriter,
        gates: Gates,
        *,
        on_finish: Callable[[], None],
        close: Callable[[bool], None],
    ) -> None:
        self._record = record
        self._watch = record.watch
        self._writer = writer
        self._gates = gates
        self._on_finish = on_finish  # called just before the last bytes are written
        self._close = close  # with True: hard
        asked = record.json if isinstance(record.json, dict) else {}
        self._chunk = {
            "id": f"chatcmpl-{record.number}",
            "object": "chat.completion.chunk",
            "created": CREATED,
            "model": asked.get("model", "scripted"),
        }

    async def play(self, script: Script) -> None:
        """Play the script; at its end the connection is idle, or closed if the script says so."""
        leaks.overhear(_spoken(script))
        for step in script.before:
            if await self._play_step(step, bare=True):
                return
        self._record.answered_at = now()
        if script.body is not None:
            # One write, noted as finished first: who has read the last byte may look into the ledger at once.
            self._finish(self._head(script) + script.body)
        else:
            self._writer.write(self._head(script))
            self._watch.changed()
            for step in script.steps:
                if isinstance(step, EndBody):
                    break
                if await self._play_step(step):
                    return
            self._finish(b"0\r\n\r\n")
        await self._writer.drain()
        for step in script.after:
            if await self._play_step(step, bare=True):
                return

    async def _play_step(self, step: Step, *, bare: bool = False) -> bool:
        """Play one step, and tell whether the connection is at its end. `bare` bytes are no chunk of the body."""
        match step:
            case Token(text, pause):
                if pause > 0:
                    await asyncio.sleep(pause)
                self._send_token(text)
            case Paced(texts, gap_seconds):
                await self._send_paced(texts, gap_seconds)
            case Delta(delta):
                self._send_data(self._with_choice(delta))
            case Event(str() as data):
                self._send_chunk(f"data: {data}\n\n".encode())
            case Event(dict() as data):
                self._send_data(data)
            case Finish(reason):
                self._send_data(self._with_choice({}, reason))
            case Usage(usage):
                self._send_data({**self._chunk, "choices": [], "usage": usage})
            case Done():
                self._send_chunk(b"data: [DONE]\n\n")
            case Raw(data):
                if bare:
                    self._writer.write(data)
                else:
                    self._send_chunk(data)
            case Pause(seconds):
                await asyncio.sleep(seconds)
            case Gate(name):
                await self._wait_at(name)
            case Stall():
                await asyncio.Event().wait()  # until the connection's task is cancelled
            case Close() | Reset() | TruncatedChunk():
                await self._break_off(step)
                return True
            case EndBody():
                pass  # the caller's
        await self._writer.drain()
        return False

    async def _wait_at(self, name: str) -> None:
        gate = self._gates.at(name)
        gate.reached += 1
        self._watch.changed()
        await gate.opened.wait()

    async def _break_off(self, step: Close | Reset | TruncatedChunk) -> None:
        if isinstance(step, TruncatedChunk):
            self._writer.write(b"%x\r\n%s" % (len(step.data) + 64, step.data))
        await flush(self._writer)
        self._finish(b"")
        self._close(isinstance(step, Reset))

    async def _send_paced(self, texts: Sequence[str], gap_seconds: float) -> None:
        start = now()
        for index, text in enumerate(texts):
            delay = start + index * gap_seconds - now()
            # Behind the schedule nothing is waited for; a turn now and then keeps the other streams going.
            if delay > 0 or index % 32 == 31:
                await asyncio.sleep(max(delay, 0))
            self._send_token(text)
            await self._writer.drain()

    def _send_token(self, text: str) -> None:
        self._record.note_token(text)
        try:
            self._send_chunk(encode_text(text).join(self._around_text))
        except UnicodeEncodeError:
            self._send_data(self._with_choice({"content": text}))
        self._watch.changed()

    @functools.cached_property
    def _around_text(self) -> list[bytes]:
        """Give what stands before and behind the text of a token: all of it is the same for each."""
        before, name, behind = encode_json(self._with_choice({"content": ""})).partition(b'"content":""')
        return [b"data: " + before + name[:-2], behind + b"\n\n"]

    def _with_choice(self, delta: Mapping[str, Any], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {**self._chunk, "choices": [choice]}

    def _send_data(self, data: Mapping[str, Any]) -> None:
        self._send_chunk(b"data: " + encode_json(data) + b"\n\n")

    def _send_chunk(self, data: bytes) -> None:
        if data:  # a chunk of no bytes would end the body
            self._writer.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _finish(self, last_bytes: bytes) -> None:
        self._record.finished_at = now()
        self._on_finish()
        self._watch.changed()
        if last_bytes:
            self._writer.write(last_bytes)

    def _head(self, script: Script) -> bytes:
        try:
            phrase = HTTPStatus(script.status).phrase
        except ValueError:
            phrase = "Unknown"
        headers = {
            "content-type": "text/event-stream; charset=utf-8",
            "x-request-id": f"req_{self._record.number}",
        }
        if script.body is None:
            headers["transfer-encoding"] = "chunked"
        else:
            headers["content-length"] = str(len(script.body))
        headers.update({name.lower(): value for name, value in script.headers.items()})
        lines = [
            f"HTTP/1.1 {script.status} {phrase}",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _spoken(script: Script) -> Iterator[str]:
    """Give what a script says to clients, and what its refusals say."""
    for step in script.steps:
        match step:
            case Token(text):
                yield text
            case Delta(delta):
                yield from leaks.strings_in(dict(delta))
            case Event(dict() as data):
                yield from _said_in(data)
    if script.body is not None and script.body[:1] == b"{":
        with contextlib.suppress(ValueError, RecursionError):
            yield from _said_in(json.loads(script.body))


def _said_in(data: Any) -> Iterator[str]:
    """Give what a chunk, an answer or an error says."""
    if not isinstance(data, dict):
        return
    for choice in data["choices"] if isinstance(data.get("choices"), list) else ():
        if isinstance(choice, dict):
            yield from leaks.strings_in([choice.get("delta"), choice.get("message")])
    if isinstance(error := data.get("error"), dict):
        yield from leaks.strings_in(error.get("message"))
