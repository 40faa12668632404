"""Be the model of a load test: an OpenAI-compatible server that sends tokens on an exact schedule, and says when.

Every token carries its number, when it was sent and how late that was: `t17/123456789.123/0.042 `. The clock is
CLOCK_MONOTONIC, which all processes of one machine share, so whoever reads the token knows how long it was under way.
It never waits for its reader: a slow one must not slow the schedule by which it is judged.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import re
import signal
import socket
import sys
import time
from typing import Any, Final

STAMP = re.compile(r"t([0-9]+)/([0-9.]+)/([0-9.]+) ")
"""What each token's text begins with: its number from 0, when it was sent, and how late. Units: milliseconds."""

WORDS: Final = ("plain ", "é ", "日本 ", "😀 ", "\r\n", "\u2028", '"quoted" ', "data: x\n\n", "\\ ", "word ")
"""What follows the stamp, in turn: text that a careless splitter or encoder would change."""

_LONG_WORDS = re.compile(r"words of ([0-9]+) characters")
"""What a message says to get tokens that are longer by so much: more bytes of as many tokens."""

_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
_CHUNK = (
    '{"id":"chatcmpl-load","object":"chat.completion.chunk","created":1700000000,"model":"load","choices":'
    '[{"index":0,"delta":%s,"logprobs":null,"finish_reason":%s}]}'
)
_TOKENS = [
    ("data: " + _CHUNK % ('{"content":"@"}', "null") + "\n\n").split("@")[0].encode(),
    *((json.dumps(word, ensure_ascii=False)[1:] + "}").encode() for word in WORDS),
]
_TOKEN_END = b',"logprobs":null,"finish_reason":null}]}\n\n'


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(data: str) -> bytes:
    return _chunk(f"data: {data}\n\n".encode())


def _token(index: int, sent_at: float, late_seconds: float, padding: bytes = b"") -> bytes:
    stamp = b"t%d/%.3f/%.3f " % (index, sent_at * 1000, max(late_seconds, 0.0) * 1000)
    return _chunk(_TOKENS[0] + stamp + padding + _TOKENS[1 + index % len(WORDS)] + _TOKEN_END)


def _padding(request: dict[str, Any]) -> bytes:
    """Make what the last message asks for, if it asks for long words."""
    messages = request.get("messages") or [{}]
    asked = _LONG_WORDS.search(str(messages[-1].get("content")))
    return b"x" * int(asked[1]) if asked else b""


class Upstream:
    """Hold how answers look: pace, delay of the first token, and how many of them break off in the middle."""

    def __init__(self, *, tokens: int, gap_ms: float, ttft_ms: float, error_rate: float, seed: int) -> None:
        self.tokens = tokens
        self.gap_seconds = gap_ms / 1000
        self.ttft_seconds = ttft_ms / 1000
        self._error_rate = error_rate
        self._random = random.Random(seed)

    def breaks(self) -> bool:
        """Decide whether the next answer breaks off."""
        return self._random.random() < self._error_rate


class _Connection(asyncio.Protocol):
    """Serve one connection, one request at a time."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._loop = asyncio.get_running_loop()
        self._read = bytearray()
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, end, rest = bytes(self._read).partition(b"\r\n\r\n")
        if not end:
            return
        length = _LENGTH.search(head)
        size = int(length[1]) if length else 0
        if len(rest) >= size:
            del self._read[:]
            self._answer(head, rest[:size])

    def _answer(self, head: bytes, body: bytes) -> None:
        if not head.startswith(b"POST"):
            models = b'{"object":"list","data":[{"id":"load","object":"model"}]}'
            header = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(models)
            self._transport.write(header + models)
            return
        request: dict[str, Any] = json.loads(body)
        self._tokens = request.get("max_tokens") or request.get("max_completion_tokens") or self._upstream.tokens
        self._breaks_at = self._tokens // 2 if self._upstream.breaks() else -1
        self._padding = _padding(request)
        self._index = 0
        self._begins_at = self._loop.time() + self._upstream.ttft_seconds
        self._transport.write(_HEAD + _event(_CHUNK % ('{"role":"assistant","content":""}', "null")))
        self._timer = self._loop.call_at(self._begins_at, self._send)

    def _send(self) -> None:
        """Send the token that is due, and come back for the next one at its time, also when this one was late."""
        due_at = self._begins_at + self._index * self._upstream.gap_seconds
        if self._index == self._breaks_at:
            self._transport.abort()
            return
        now = time.monotonic()
        self._transport.write(_token(self._index, now, now - due_at, self._padding))
        self._index += 1
        if self._index < self._tokens:
            self._timer = self._loop.call_at(due_at + self._upstream.gap_seconds, self._send)
        else:
            self._end()

    def _end(self) -> None:
        usage = {"prompt_tokens": 10, "completion_tokens": self._tokens, "total_tokens": 10 + self._tokens}
        last = json.dumps({"id": "chatcmpl-load", "object": "chat.completion.chunk", "choices": [], "usage": usage})
        self._transport.write(_event(_CHUNK % ("{}", '"stop"')) + _event(last) + _event("[DONE]") + b"0\r\n\r\n")


async def _serve(upstream: Upstream, host: str, port: int, with_parent: bool) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    if with_parent:  # whoever started it may be killed, and cannot end it then
        loop.add_reader(sys.stdin.fileno(), ended.set)
    server = await loop.create_server(lambda: _Connection(upstream), host, port, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    await ended.wait()
    server.close()


def main() -> None:
    """Serve until SIGINT or SIGTERM. The first line of output is the port."""
    parser = argparse.ArgumentParser(prog="python -m load.upstream", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--tokens", type=int, default=100, help="of a request without max_tokens")
    parser.add_argument("--gap-ms", type=float, default=50.0, help="between two tokens of one answer")
    parser.add_argument("--ttft-ms", type=float, default=0.0, help="from the request to the first token")
    parser.add_argument("--error-rate", type=float, default=0.0, help="share of the answers that break off half-way")
    parser.add_argument("--seed", type=int, default=1, help="of the choice which ones break off")
    parser.add_argument("--with-parent", action="store_true", help="also end when the standard input does")
    options = vars(parser.parse_args())
    host, port, with_parent = options.pop("host"), options.pop("port"), options.pop("with_parent")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(Upstream(**options), host, port, with_parent))


if __name__ == "__main__":
    main()
