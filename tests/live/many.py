"""Many readers in one loop: each reads a stream to its end and checks every token and the hash.

Must never import the service's code.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from load.events import EventParser
from tests.harness.answer import Answer
from tests.harness.http1 import Headers, Target, encode_body, parse_head, write_request
from tests.harness.net import narrow

T = TypeVar("T")

PIECE_BYTES = 64 << 10


@dataclass
class Got:
    """What one reader got. Units: seconds since it asked."""

    status: int
    headers: Headers
    body: bytes
    answer: Answer
    seconds: float

    @property
    def event(self) -> str:
        """Name the terminal event; empty for none."""
        return self.answer.terminal.event if self.answer.terminal else ""


class Asker:
    """Send one request and read its answer in pieces."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.status = 0
        self.headers = Headers([])
        self.asked_at = time.monotonic()

    @classmethod
    async def ask(
        cls, url: str, json: Any = None, headers: Mapping[str, str] | None = None, rcvbuf: int | None = None
    ) -> Asker:
        """Connect, ask (POST when there is `json`), and read the head of the answer."""
        asked_at = time.monotonic()
        target = Target.of(url)
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        if rcvbuf is not None:
            narrow(sock, rcvbuf)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (target.host, target.port))
        except BaseException:
            sock.close()
            raise
        asker = cls(*await asyncio.open_connection(sock=sock, limit=rcvbuf or PIECE_BYTES))
        asker.asked_at = asked_at
        try:
            await asker._send(target, json, headers or {})
        except BaseException:  # whoever gives up waiting leaves no open connection
            asker.reset()
            raise
        return asker

    async def _send(self, target: Target, json: Any, headers: Mapping[str, str]) -> None:
        body, fields = encode_body(json, None, {"Host": f"{target.host}:{target.port}", **headers})
        self.writer.write(write_request("GET" if json is None else "POST", target.path, fields, body))
        first, self.headers = parse_head((await self.reader.readuntil(b"\r\n\r\n"))[:-4])
        self.status = int(first.split()[1])

    async def pieces(self) -> AsyncIterator[bytes]:
        """Give the body as it comes. Raises: asyncio.IncompleteReadError when it breaks off."""
        if self.headers.get("transfer-encoding") == "chunked":
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                yield (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readexactly(2)
        else:
            yield await self.reader.readexactly(int(self.headers.get("content-length", "0")))

    def widen(self) -> None:
        """Hold more from now on, where `rcvbuf` was little: to read through a small window takes its time, and who
        meets it full again and again for longer than 30 s is taken for gone by the sender's kernel."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)

    def reset(self) -> None:
        """Close with RST."""
        with contextlib.suppress(OSError):
            sock = self.writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


async def read(asker: Asker) -> Got:
    """Read one answer to its end; of a stream every event is checked."""
    answer, body = Answer(), b""
    try:
        if asker.headers.get("content-type", "").startswith("text/event-stream"):
            answer.begin_connection(asker.headers)
            parser = EventParser()
            async for piece in asker.pieces():
                for event in parser.feed(piece):
                    answer.add(event)
            answer.verify()
        else:
            async for piece in asker.pieces():
                body += piece
    finally:
        await asker.close()
    return Got(asker.status, asker.headers, body, answer, time.monotonic() - asker.asked_at)


async def read_one(url: str, json: Any = None, headers: Mapping[str, str] | None = None) -> Got:
    return await read(await Asker.ask(url, json, headers))


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a loop and a thread of its own: the test's thread may have a loop already (playwright's)."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


def run_all(calls: Iterable[Callable[[], Awaitable[T]]], *, at_once: int, seconds: float = 100.0) -> list[T]:
    """Make the calls in one loop, so many at a time. Raises: TimeoutError, and what they raise."""

    async def all_of_them() -> list[T]:
        room = asyncio.Semaphore(at_once)

        async def one(call: Callable[[], Awaitable[T]]) -> T:
            async with room:
                return await call()

        async with asyncio.timeout(seconds):
            return list(await asyncio.gather(*(one(call) for call in calls)))

    return run(all_of_them())


def read_many(url: str, count: int, *, at_once: int | None = None) -> list[Got]:
    """Start so many generations and read them, `at_once` at a time (all of them by default). Raises: TimeoutError."""
    return run_all([lambda: read_one(url, {"message": "Hi"})] * count, at_once=at_once or count)
