"""Be the model of every load: an OpenAI-compatible server that sends tokens on an exact schedule.

It has two kinds of tokens. A question that says `tokens=400 gap_ms=20` gets numbered ones (`tk17 `), as the comparison
needs them: bytes that were made before, of which every subject gets the same, as a whole answer too, or with a gap of 0
as fast as the connection takes them. With `in=reasoning` behind that, they are in chunks of reasoning, and with
`in=arguments` in the arguments of a tool's call. With `--numbered` every question gets numbered ones. Every other
question gets stamped ones: each carries its number, when it was sent and how late that was
(`t17/123456789.123/0.042 `). The clock is CLOCK_MONOTONIC, which all processes of one machine share, so whoever reads
the token knows how long it was under way.

It never waits for its reader: a slow one must not slow the schedule by which it is judged. `GET /figures` tells how
late the numbered tokens were, and what CPU it used, since it was last asked.

The tests' scripted upstream is another one: it is no part of this suite, has no stamps, and takes 35 µs of CPU for each
token. This one takes 22 (stamped) and 15 (numbered), with 100 streams, a token every 20 ms each (medians of runs on two
shared cores).
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import heapq
import itertools
import json
import random
import re
import selectors
import signal
import socket
import sys
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

MODEL: Final = "mock"

STAMP = re.compile(r"t([0-9]+)/([0-9.]+)/([0-9.]+) ")
"""What the text of a stamped token begins with: its number from 0, when it was sent, and how late. Units: ms."""

WORDS: Final = ("plain ", "é ", "日本 ", "😀 ", "\r\n", "\u2028", '"quoted" ', "data: x\n\n", "\\ ", "word ")
"""What follows the stamp, in turn: text that a careless splitter or encoder would change."""

MOST_NUMBERED: Final = 12_000

_LONG_WORDS = re.compile(r"words of ([0-9]+) characters")
"""What a message says to get tokens that are longer by so much: more bytes of as many tokens."""

CONTENT, REASONING, ARGUMENTS = "content", "reasoning", "arguments"
"""Where the numbered tokens of an answer may be."""

_NUMBERED = re.compile(rb"tokens=([0-9]+) gap_ms=([0-9]+)(?: in=(reasoning|arguments))?")
_STREAM = re.compile(rb'"stream": ?true')
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
_ID = "chatcmpl-0123456789abcdef"
_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


def token(number: int) -> str:
    """Write the text of one numbered token, which tells its number from 1."""
    return f"tk{number} "


def _chunk(event: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(event), event)


def _event(data: str) -> bytes:
    return _chunk(f"data: {data}\n\n".encode())


def _completion(delta: dict[str, object], finish_reason: str | None = None, **more: object) -> str:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    begin = {"id": _ID, "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    return json.dumps({**begin, "system_fingerprint": "fp_0", "choices": [choice], **more}, separators=(",", ":"))


_CALL = {"index": 0, "id": "call_0123456789abcdef", "type": "function", "function": {"name": "weigh", "arguments": ""}}
_BEGIN = _HEAD + _event(_completion({"role": "assistant", "content": ""}))
_BEGINS = {
    CONTENT: _BEGIN,
    REASONING: _BEGIN,
    ARGUMENTS: _HEAD + _event(_completion({"role": "assistant", "content": None, "tool_calls": [_CALL]})),
}
_BEFORE, _BEHIND = f"data: {_completion({'content': '@'})}\n\n".split("@")
_STAMPED = _BEFORE.encode()
_ENDINGS = [(json.dumps(word, ensure_ascii=False)[1:-1] + _BEHIND).encode() for word in WORDS]


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": 9, "completion_tokens": tokens, "total_tokens": tokens + 9}


def _delta(where: str, text: str) -> dict[str, object]:
    if where == ARGUMENTS:
        return {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}
    return {"reasoning_content" if where == REASONING else "content": text}


def _end(tokens: int, where: str = CONTENT) -> bytes:
    whole = json.loads(_completion({}, usage=_usage(tokens))) | {"choices": []}
    finish = _completion({}, "tool_calls" if where == ARGUMENTS else "stop")
    return _event(finish) + _event(json.dumps(whole)) + _event("[DONE]") + b"0\r\n\r\n"


def _json(content: object) -> bytes:
    body = json.dumps(content).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body


def _whole(tokens: int) -> bytes:
    message = {"role": "assistant", "content": "".join(map(token, range(1, tokens + 1)))}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    begin = {"id": _ID, "object": "chat.completion", "created": 1, "model": MODEL}
    return _json({**begin, "choices": [choice], "usage": _usage(tokens)})


def _stamped(padding: bytes) -> Callable[[int, float, float], bytes]:
    def write(index: int, sent_at: float, late_seconds: float) -> bytes:
        stamp = b"t%d/%.3f/%.3f " % (index, sent_at * 1000, late_seconds * 1000)
        return _chunk(_STAMPED + stamp + padding + _ENDINGS[index % len(WORDS)])

    return write


def _padding(request: dict[str, Any]) -> bytes:
    """Make what the last message asks for, if it asks for long words."""
    messages = request.get("messages") or [{}]
    asked = _LONG_WORDS.search(str(messages[-1].get("content")))
    return b"x" * int(asked[1]) if asked else b""


@dataclass(frozen=True, slots=True)
class Manner:
    """How answers look whose questions do not say it: pace, delay of the first token, how many of them break off in
    the middle; or that they are numbered.
    """

    tokens: int
    gap_ms: float
    ttft_ms: float
    error_rate: float
    seed: int
    numbered: bool = False


@dataclass(frozen=True, slots=True)
class _Answer:
    """One answer on the schedule. `write` makes a token of its number from 0, its moment, and how late that is."""

    tokens: int
    gap_seconds: float
    write: Callable[[int, float, float], bytes]
    where: str = CONTENT
    breaks_at: int = -1
    is_noted: bool = False  # stamped tokens say themselves how late they are, and a run of them may take hours


class _Connection:
    """One client, which may ask again and again."""

    __slots__ = ("answer", "is_open", "left", "number", "received", "sent", "sock")

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.sock = sock
        self.number = number
        self.is_open = True
        self.received = b""
        self.left = bytearray()  # what the kernel had no room for
        self.answer: _Answer
        self.sent = 0  # tokens


class Upstream:
    """Serve in one thread, with one selector."""

    def __init__(self, manner: Manner, host: str, port: int) -> None:
        self._manner = manner
        self._random = random.Random(manner.seed)
        self._prepared: dict[str, list[bytes]] = {}
        self._prepare(CONTENT)
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server((host, port), backlog=4096)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._numbers = itertools.count()
        self._schedule: list[tuple[float, int, _Connection]] = []
        self._late = array("d")
        self._cpu = time.process_time()
        self._since = time.monotonic()
        self.port: int = self._listener.getsockname()[1]

    def _prepare(self, where: str) -> list[bytes]:
        """Make the numbered tokens, once."""
        if where not in self._prepared:
            numbers = range(1, MOST_NUMBERED + 1)
            self._prepared[where] = [_event(_completion(_delta(where, token(number)))) for number in numbers]
        return self._prepared[where]

    def run(self, until: int | None = None) -> None:
        """Serve until this file descriptor can be read, or has ended; without one, for ever."""
        if until is not None:
            self._selector.register(until, selectors.EVENT_READ)
        while True:
            seconds = max(0.0, self._schedule[0][0] - time.monotonic()) if self._schedule else None
            for key, events in self._selector.select(seconds):
                if key.data is not None:
                    self._serve(key.data, events)
                elif key.fd == until:
                    return
                else:
                    self._accept()
            self._send_due()

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                sock, _ = self._listener.accept()
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._selector.register(sock, selectors.EVENT_READ, _Connection(sock, next(self._numbers)))

    def _serve(self, connection: _Connection, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._write(connection, b"")
        if not events & selectors.EVENT_READ or not connection.is_open:
            return
        try:
            received = connection.sock.recv(262_144)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if not received:
            self._close(connection)
            return
        connection.received += received
        head, blank, body = connection.received.partition(b"\r\n\r\n")
        if not blank:
            return
        found = _LENGTH.search(head)
        length = int(found[1]) if found else 0
        if len(body) >= length:
            connection.received = body[length:]
            self._answer(connection, head, body[:length])

    def _answer(self, connection: _Connection, head: bytes, body: bytes) -> None:
        if head.startswith(b"GET /figures"):
            self._write(connection, _json(self._figures()))
        elif not head.startswith(b"POST"):
            self._write(connection, _json({"object": "list", "data": [{"id": MODEL, "object": "model"}]}))
        elif (numbered := _NUMBERED.search(body)) is not None:
            where = (numbered[3] or CONTENT.encode()).decode()
            streams = bool(_STREAM.search(body))
            self._answer_numbered(connection, int(numbered[1]), int(numbered[2]), where, streams=streams)
        elif self._manner.numbered:
            streams = bool(_STREAM.search(body))
            self._answer_numbered(connection, self._manner.tokens, self._manner.gap_ms, CONTENT, streams=streams)
        else:
            self._answer_stamped(connection, json.loads(body))

    def _answer_numbered(
        self, connection: _Connection, tokens: int, gap_ms: float, where: str, *, streams: bool
    ) -> None:
        prepared = self._prepare(where)
        if not streams:
            self._write(connection, _whole(tokens))
        elif not gap_ms:
            self._write(connection, _BEGINS[where] + b"".join(prepared[:tokens]) + _end(tokens, where))
        else:
            answer = _Answer(tokens, gap_ms / 1000, lambda index, *_: prepared[index], where, is_noted=True)
            self._begin(connection, answer, 0.0)

    def _answer_stamped(self, connection: _Connection, request: dict[str, Any]) -> None:
        manner = self._manner
        tokens = request.get("max_tokens") or request.get("max_completion_tokens") or manner.tokens
        breaks_at = tokens // 2 if self._random.random() < manner.error_rate else -1
        answer = _Answer(tokens, manner.gap_ms / 1000, _stamped(_padding(request)), breaks_at=breaks_at)
        self._begin(connection, answer, manner.ttft_ms / 1000)

    def _begin(self, connection: _Connection, answer: _Answer, ttft_seconds: float) -> None:
        connection.answer, connection.sent = answer, 0
        due = time.monotonic() + ttft_seconds
        self._write(connection, _BEGINS[answer.where])
        heapq.heappush(self._schedule, (due, connection.number, connection))

    def _send_due(self) -> None:
        """Send what is due. The next token's time counts from this one's, also when this one was late."""
        schedule = self._schedule
        now = time.monotonic()
        while schedule and schedule[0][0] <= now:
            due, number, connection = schedule[0]
            answer = connection.answer
            if not connection.is_open or connection.sent == answer.breaks_at:
                heapq.heappop(schedule)
                self._close(connection)
                continue
            data = answer.write(connection.sent, now, now - due)
            connection.sent += 1
            if connection.sent == answer.tokens:
                heapq.heappop(schedule)
                data += _end(answer.tokens, answer.where)
            else:
                heapq.heapreplace(schedule, (due + answer.gap_seconds, number, connection))
            self._write(connection, data)
            now = time.monotonic()
            if answer.is_noted:
                self._late.append(now - due)

    def _write(self, connection: _Connection, data: bytes) -> None:
        left = connection.left
        waited = bool(left)
        if waited:
            left += data
        try:
            sent = connection.sock.send(left if waited else data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close(connection)
            return
        if waited:
            del left[:sent]
        elif sent < len(data):
            left += data[sent:]
        if waited != bool(left):
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if left else 0)
            self._selector.modify(connection.sock, events, connection)

    def _close(self, connection: _Connection) -> None:
        if connection.is_open:
            connection.is_open = False
            self._selector.unregister(connection.sock)
            connection.sock.close()

    def _figures(self) -> dict[str, float]:
        """Units: milliseconds, and a share of one core. Begins anew."""
        late = sorted(self._late)
        cpu, now = time.process_time(), time.monotonic()
        figures = {
            "tokens": len(late),
            "late_p50_ms": late[len(late) // 2] * 1000 if late else 0.0,
            "late_p99_ms": late[len(late) * 99 // 100] * 1000 if late else 0.0,
            "core_share": (cpu - self._cpu) / max(now - self._since, 1e-9),
        }
        self._late = array("d")
        self._cpu, self._since = cpu, now
        return figures


def main() -> None:
    """Serve until SIGINT or SIGTERM. The first line of output is the port."""
    parser = argparse.ArgumentParser(prog="python -m load.upstream", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="the port to listen on; 0 picks a free one")
    parser.add_argument("--tokens", type=int, default=100, help="tokens of an answer whose request has no max_tokens")
    parser.add_argument("--gap-ms", type=float, default=50.0, help="time between two tokens of one answer")
    parser.add_argument("--ttft-ms", type=float, default=0.0, help="time from the request to the first token")
    parser.add_argument("--error-rate", type=float, default=0.0, help="share of the answers that stop half-way")
    parser.add_argument("--seed", type=int, default=1, help="seed of the choice which answers stop")
    parser.add_argument("--numbered", action="store_true", help="always send numbered tokens, --tokens of them")
    parser.add_argument("--with-parent", action="store_true", help="also end when the standard input ends")
    options = vars(parser.parse_args())
    host, port, with_parent = options.pop("host"), options.pop("port"), options.pop("with_parent")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        upstream = Upstream(Manner(**options), host, port)
        print(upstream.port, flush=True)
        gc.disable()  # nothing here is cyclic, and a collection would be late tokens
        upstream.run(sys.stdin.fileno() if with_parent else None)  # whoever started it may be killed, and cannot end it


if __name__ == "__main__":
    main()
